//! How the machine's memory is divided among the hypervisor and the domains that the loader brings, in frames.
//!
//! Promises: domain 0 gets what it is said to have, or all that can be spared; what further domains want is put aside
//! before that, up to half of it, and is there when they are built: whatever the machine's size, building domain 0
//! takes no more than is counted here, and a quarter of the reserve. Arithmetic, and nothing but `core`, so that host
//! tests can include it.

/// What the hypervisor keeps of free memory for its own tables and shadows, when domains take all that there is: a
/// sixteenth, within these bounds.
const RESERVE: core::ops::RangeInclusive<u64> = 2048..=32768;
/// While a domain is built, its frames stand in a list: so many of them in a frame of the hypervisor's.
const LISTED: u64 = 512;
/// Shadows that a domain may have if nothing else is said, whatever its memory; an eighth of that comes on top.
const SHADOWS: u64 = 128;

/// A number of frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Frames(pub u64);

impl Frames {
    /// So many fewer, or none.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// What is left free of so much.
#[must_use]
pub fn reserve(free: Frames) -> Frames {
    Frames((free.0 / 16).clamp(*RESERVE.start(), *RESERVE.end()))
}

/// What a domain's memory takes, with the list that it is built from.
#[must_use]
pub const fn to_build(pages: Frames) -> Frames {
    pages.and(Frames(pages.0.div_ceil(LISTED)))
}

/// What a further domain takes: its memory, and what its shadows may come to, by its memory if `shadows` does not say
/// it.
#[must_use]
pub fn needs(pages: Frames, shadows: Option<Frames>) -> Frames {
    to_build(pages).and(shadows.unwrap_or(Frames(SHADOWS + pages.0 / 8)))
}

/// How much memory domain 0 gets of what is free before any domain is built: what is `asked`, or all but what further
/// domains want.
///
/// # Errors
/// How much it can have, if that is less than is asked.
pub fn of_domain0(free: Frames, reserve: Frames, asked: Option<Frames>, wanted: Frames) -> Result<Frames, Frames> {
    let spare = free.less(reserve);
    let all_of = |frames: Frames| Frames(frames.0 - frames.0.div_ceil(LISTED + 1));
    match asked {
        Some(asked) if to_build(asked) > spare => Err(all_of(spare)),
        Some(asked) => Ok(asked),
        None => Ok(all_of(spare.less(wanted.min(Frames(spare.0 / 2))))),
    }
}

/// How much a further domain can take of what is free now: those built before have taken some for themselves, of which
/// half of the reserve has to be left.
#[must_use]
pub const fn for_further(free: Frames, reserve: Frames) -> Frames {
    free.less(Frames(reserve.0 / 2))
}
