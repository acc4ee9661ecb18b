//! A domain's shadow memory: counted, bounded, and taken back where it is not in use.
//!
//! Everything that the CPU walks for a domain in place of its own tables is counted here, in frames: the shadows of its
//! tables, the views of its directories ([`super::linear`]), and the two tables above them. The count stays within a
//! limit ([`Pager::shadow_limit`]).
//!
//! **A shadow may be absent.** It is a function of the guest's tables, so it can be dropped at any time and made again.
//! What is absent is simply not in the table above it, and the fault that comes of that makes it
//! ([`Pager::fill_path`]). So no request fails for want of a shadow: one for which there is no room when its table is
//! validated is made later. Only [`MINIMUM`] is needed to go on, and that much may come out of the hypervisor's own
//! reserve.
//!
//! **What goes first.** There is a list for each level, of shadows in the order in which they were made. When one is
//! needed and there is no room, at least [`RECLAIM`] frames are freed, level by level from the top: first the shadows
//! of top-level tables other than the current base's, which nobody walks. Only when those are gone does a lower level
//! follow; then only the base's shadow can lead to what is dropped, so that one table is all that must be looked
//! through. Of a two-level guest's L1 tables those go first that do not hang under the base, and then those that do; of
//! each kind the oldest, that is the one that was made first, used lately or not.
//!
//! **How long that takes.** Nearly everything that is looked at is dropped. What is not is bounded: the base's own
//! shadow and those that open tables need, and of a two-level guest's L1 tables those under the base, for each of which
//! it has one entry.
//!
//! **Why that ends.** An instruction can need half a dozen pages at once, and so as many paths of shadows. What is
//! freed at one go is enough for all of them: whatever is dropped for the first is not needed for the last. Where less
//! than that can be freed, a domain has little, and what it lacks up to [`MINIMUM`] comes out of the reserve; when that
//! is used up too, it ends.
//!
//! A dropped shadow may still be in a TLB. The allocator flushes before its frames are used again, and until then they
//! are empty: nothing can be reached through them that the guest's tables did not show when it was last flushed (I5).
//!
//! An open table and the one that maps it keep their shadows: what is in an open table has not been looked at.
//!
//! The lists run through the records of the shadows' first frames, whose `shadow` names the table. Lock: the owner's
//! paging lock.

use super::format::Format;
use super::linear::VIEW_ORDER;
use super::shadow::order;
use super::{Pager, PagingState};
use crate::addr::Mfn;
use crate::frame::FrameInfo;
use crate::frame_alloc::Zone;
use crate::host::{Hardware, Walked};
use crate::preempt::cost;
use core::sync::atomic::Ordering::Relaxed;

/// The least that a limit may be: what the widest instruction needs and what can never be dropped, with room to spare.
/// (In tests, whose instructions need two pages at most, it is small, so that small domains meet it.)
pub const MINIMUM: ShadowFrames = ShadowFrames(if cfg!(test) { 22 } else { 96 });
/// What is freed at least, when something must be, if there is that much.
const RECLAIM: u32 = if cfg!(test) { 4 } else { 32 };
/// What a domain may have besides a share of its memory.
const BASIC: u32 = 128;
/// One frame of shadows for so many of memory. A kernel that gives each process a directory and four tables needs
/// twelve frames for it; with this share a domain of 64 MiB has room for 170 of those.
const SHARE: u32 = 8;

/// A number of frames of shadows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ShadowFrames(pub u32);

/// A limit below [`MINIMUM`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitTooLow;

/// How badly a shadow is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    /// It may come in useful: it is made if there is room.
    Later,
    /// Nothing goes on without it: others are dropped for it.
    Now,
}

/// What a node of a list is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// The shadow of a table of a level.
    Shadow(u8),
    /// The view of a directory.
    View,
}

impl Part {
    /// The level on whose list it is: a view stands in the place of an L1's shadow.
    const fn level(self) -> u8 {
        match self {
            Self::Shadow(level) => level,
            Self::View => 1,
        }
    }

    /// log2 of its frames.
    const fn order<F: Format>(self) -> u32 {
        match self {
            Self::Shadow(level) => order::<F>(level),
            Self::View => VIEW_ORDER,
        }
    }
}

/// Levels that there are.
const LEVELS: usize = 4;

/// Shadows of one level.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    oldest: Option<Mfn>,
    youngest: Option<Mfn>,
}

/// Which shadows of a level may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    /// Those that do not have the mark of this round.
    Unmarked(u32),
    /// Any.
    Any,
}

/// A domain's shadow memory.
#[derive(Debug, Default)]
pub struct ShadowPool {
    used: u32,
    limit: Option<u32>,
    /// Of each level, from the lowest.
    lists: [List; LEVELS],
    /// How often what is in use has been marked.
    rounds: u32,
    /// How often a shadow was dropped while its table was one, or not made when it became one.
    absences: u32,
}

impl ShadowPool {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        let none = List { oldest: None, youngest: None };
        Self { used: 0, limit: None, lists: [none; LEVELS], rounds: 0, absences: 0 }
    }

    /// Frames in use.
    #[must_use]
    pub const fn used(&self) -> ShadowFrames {
        ShadowFrames(self.used)
    }

    /// Whether there was ever too little room: if not, every table has its shadow, and every upper entry leads to one.
    #[must_use]
    pub const fn was_short(&self) -> bool {
        self.absences != 0
    }

    const fn list(&mut self, level: u8) -> &mut List {
        &mut self.lists[level as usize - 1]
    }

    pub(super) const fn note_absence(&mut self) {
        self.absences = self.absences.saturating_add(1);
    }

    /// Frames that are in no list: the tables above the shadows.
    pub(super) const fn count(&mut self, frames: u32) {
        self.used += frames;
    }

    /// Takes that back.
    pub(super) const fn discount(&mut self, frames: u32) {
        self.used -= frames;
    }
}

/// Links of a shadow's first frame. Frame 0 is never one.
fn link(mfn: u32) -> Option<Mfn> {
    (mfn != 0).then_some(Mfn(mfn.into()))
}

fn word(mfn: Option<Mfn>) -> u32 {
    mfn.map_or(0, |mfn| mfn.0 as u32)
}

impl<H: Hardware> Pager<'_, H> {
    fn node(&self, first: Mfn) -> &'static FrameInfo {
        self.host.frames.info(first).expect("a shadow is RAM")
    }

    /// The most frames that the domain's shadows may take: what [`set_shadow_limit`](Self::set_shadow_limit) said, or
    /// 128 and an eighth of its memory.
    #[must_use]
    pub fn shadow_limit(&self, state: &PagingState) -> ShadowFrames {
        let share = || BASIC + self.dom.total_pages.load(Relaxed) / SHARE;
        ShadowFrames(state.pool.limit.unwrap_or_else(share))
    }

    /// Sets the limit, and drops what is above it, as far as it can be dropped.
    ///
    /// # Errors
    /// If the domain could not go on with so little.
    pub fn set_shadow_limit<F: Format>(&self, state: &mut PagingState, limit: ShadowFrames) -> Result<(), LimitTooLow> {
        if limit < MINIMUM {
            return Err(LimitTooLow);
        }
        state.pool.limit = Some(limit.0);
        while state.pool.used > limit.0 && self.reclaim::<F>(state) != 0 {}
        Ok(())
    }

    /// Takes the frames for a shadow or a view of `table`, cleared, and puts them on the list of their level.
    pub(super) fn take_shadow<F: Format>(
        &self,
        state: &mut PagingState,
        table: Mfn,
        part: Part,
        need: Need,
    ) -> Option<Mfn> {
        let order = part.order::<F>();
        let frames = 1 << order;
        loop {
            let wanted = state.pool.used + frames;
            let mut first = None;
            if wanted <= self.shadow_limit(state).0 {
                first = self.host.alloc.lock().alloc_for_guest(order, &self.host.hw);
            }
            if first.is_none() && need == Need::Now && wanted <= MINIMUM.0 {
                first = self.host.alloc.lock().alloc_hypervisor(order, Zone::Any, &self.host.hw);
            }
            if let Some(first) = first {
                self.enlist(state, table, first, part, frames);
                return Some(first);
            }
            // To drop a few and go on would be to drop, for one page, what the same instruction needs for another.
            if need == Need::Later || self.reclaim::<F>(state) < RECLAIM {
                return None;
            }
        }
    }

    fn enlist(&self, state: &mut PagingState, table: Mfn, first: Mfn, part: Part, frames: u32) {
        state.pool.used += frames;
        self.node(first).set_shadow(Some(table));
        if frames > 1 {
            self.second(first).prev.store(0, Relaxed);
            self.second(first).next.store(0, Relaxed);
        }
        self.append(state, first, part.level());
    }

    /// Frees the frames of a shadow, to which no table leads any more. The allocator flushes the TLBs before they are
    /// used again.
    pub(super) fn release_shadow<F: Format>(&self, state: &mut PagingState, first: Mfn, level: u8) {
        let order = order::<F>(level);
        self.delist(state, first, level, order);
        self.host.free_hypervisor(first, order);
    }

    /// The same, of a view.
    pub(super) fn release_view(&self, state: &mut PagingState, first: Mfn) {
        self.delist(state, first, Part::View.level(), VIEW_ORDER);
        self.host.free_hypervisor(first, VIEW_ORDER);
    }

    /// As [`release_shadow`](Self::release_shadow), of a two-level guest's L1 shadow in which the caller has left
    /// nothing but zeroes.
    pub(super) fn release_zeroed_shadow<F: Format>(&self, state: &mut PagingState, first: Mfn) {
        let order = order::<F>(1);
        self.delist(state, first, 1, order);
        let walked = if self.was_hung(first) { Walked::Perhaps } else { Walked::Never };
        self.host.free_zeroed(first, order, walked);
    }

    /// The second frame of a shadow that has more than one. Its record's `prev` says whether the shadow was ever hung
    /// into another, where a CPU walks to it; its `next` in which round it was last marked as in use.
    fn second(&self, first: Mfn) -> &'static FrameInfo {
        self.node(Mfn(first.0 + 1))
    }

    /// Notes that a two-level guest's shadow is hung into another.
    #[inline]
    pub(super) fn note_hung(&self, first: Mfn) {
        self.second(first).prev.store(1, Relaxed);
    }

    fn was_hung(&self, first: Mfn) -> bool {
        self.second(first).prev.load(Relaxed) != 0
    }

    fn delist(&self, state: &mut PagingState, first: Mfn, level: u8, order: u32) {
        self.unlink(state, first, level);
        state.pool.used -= 1 << order;
        self.node(first).set_shadow(None);
    }

    fn append(&self, state: &mut PagingState, first: Mfn, level: u8) {
        let (node, list) = (self.node(first), state.pool.list(level));
        node.next.store(0, Relaxed);
        node.prev.store(word(list.youngest), Relaxed);
        match list.youngest.replace(first) {
            Some(before) => self.node(before).next.store(first.0 as u32, Relaxed),
            None => list.oldest = Some(first),
        }
    }

    fn unlink(&self, state: &mut PagingState, first: Mfn, level: u8) {
        let (node, list) = (self.node(first), state.pool.list(level));
        let (next, prev) = (link(node.next.load(Relaxed)), link(node.prev.load(Relaxed)));
        match prev {
            Some(prev) => self.node(prev).next.store(word(next), Relaxed),
            None => list.oldest = next,
        }
        match next {
            Some(next) => self.node(next).prev.store(word(prev), Relaxed),
            None => list.youngest = prev,
        }
    }

    /// The domain's shadows and views on the list of a level, the oldest first: each first frame, with the table it
    /// belongs to.
    pub(crate) fn shadows(&self, state: &PagingState, level: u8) -> impl Iterator<Item = (Mfn, Mfn)> {
        let oldest = state.pool.lists[level as usize - 1].oldest;
        let next = |&first: &Mfn| link(self.node(first).next.load(Relaxed));
        core::iter::successors(oldest, next).filter_map(|first| Some((first, self.node(first).shadow()?)))
    }

    /// What a node of a list is to the table it names.
    pub(crate) fn part(&self, first: Mfn, table: Mfn) -> Part {
        let info = self.node(table);
        if info.shadow() == Some(first) {
            Part::Shadow(info.type_word().kind().level().expect("what has a shadow is a table"))
        } else {
            Part::View
        }
    }

    /// Drops shadows, first those of tables that are not in use, until [`RECLAIM`] frames are free. How many it were.
    pub(super) fn reclaim<F: Format>(&self, state: &mut PagingState) -> u32 {
        let before = state.pool.used;
        let goal = before.saturating_sub(RECLAIM);
        for level in (1..=F::TOP).rev() {
            let at_level = state.pool.used;
            if level == 1 && F::LINEAR {
                let round = self.mark_those_in_use::<F>(state);
                self.drop_oldest::<F>(state, level, goal, Choice::Unmarked(round));
            }
            self.drop_oldest::<F>(state, level, goal, Choice::Any);
            if state.pool.used != at_level {
                state.pool.note_absence();
                if level + 1 == F::TOP {
                    self.rewrite_base::<F>(state);
                }
            }
            if state.pool.used <= goal {
                break;
            }
        }
        before - state.pool.used
    }

    /// Drops shadows of a level, the oldest first, until no more than `goal` frames are in use.
    fn drop_oldest<F: Format>(&self, state: &mut PagingState, level: u8, goal: u32, choice: Choice) {
        let mut at = state.pool.list(level).oldest;
        while let Some(first) = at.filter(|_| state.pool.used > goal) {
            at = link(self.node(first).next.load(Relaxed));
            state.poll.step(cost::EMPTY);
            if choice == Choice::Any || choice != Choice::Unmarked(self.second(first).next.load(Relaxed)) {
                self.drop_unless_needed::<F>(state, first);
            }
        }
    }

    /// Drops everything that can be dropped.
    pub(super) fn reclaim_all<F: Format>(&self, state: &mut PagingState) {
        while self.reclaim::<F>(state) != 0 {}
    }

    /// Drops a shadow, unless it is the base's or one that an open table needs.
    fn drop_unless_needed<F: Format>(&self, state: &mut PagingState, first: Mfn) {
        let table = self.node(first).shadow().expect("what is on the list names its table");
        match self.part(first, table) {
            Part::View => {
                self.node(table).set_view(None);
                self.release_view(state, first);
            }
            Part::Shadow(level) if state.bases().all(|base| base != table) && !state.writable.involves(table) => {
                self.node(table).set_shadow(None);
                self.release_shadow::<F>(state, first, level);
            }
            Part::Shadow(_) => return,
        }
        state.poll.step(cost::ENTRY);
    }

    /// Marks the shadows and views that hang under the base of a two-level guest: with what.
    fn mark_those_in_use<F: Format>(&self, state: &mut PagingState) -> u32 {
        state.pool.rounds = state.pool.rounds.wrapping_add(1);
        let round = state.pool.rounds;
        let Some(base) = state.base else { return round };
        for index in (0..F::ENTRIES).filter(|&index| F::is_guest_slot(F::TOP, index)) {
            let entry = F::load(&self.host.hw, base, index);
            if let Some(first) = self.shadow_below::<F>(entry) {
                self.second(first).next.store(round, Relaxed);
            }
        }
        round
    }

    /// Drops all, the bases' too: the CPU walks the guest's tables.
    pub(super) fn drop_all<F: Format>(&self, state: &mut PagingState) {
        for level in 1..=F::TOP {
            while let Some(first) = state.pool.list(level).oldest {
                let table = self.node(first).shadow().expect("what is on the list names its table");
                debug_assert_eq!(self.part(first, table), Part::Shadow(level), "who has views needs its shadows");
                self.node(table).set_shadow(None);
                self.release_shadow::<F>(state, first, level);
            }
        }
    }

    /// Writes the shadows of the bases anew, so that they lead to nothing that is gone.
    fn rewrite_base<F: Format>(&self, state: &PagingState) {
        for base in state.bases() {
            for index in (0..F::ENTRIES).filter(|&index| F::is_guest_slot(F::TOP, index)) {
                self.shadow_entry::<F>(F::TOP, base, index, F::load(&self.host.hw, base, index));
            }
        }
    }
}
