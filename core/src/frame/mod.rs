//! The frame table: one [`FrameInfo`] for each machine frame, saying who owns it, how often it is referred to, and as
//! what it is used.
//!
//! Every frame that is in use has an owner and a *reference count*. A frame may also have a *type* (page table of some
//! level, descriptor table, or plainly writable) with a count of its own: how many of the references rely on it being
//! that. What makes paravirtualised paging safe is written down here:
//!
//! - a frame has one type at a time, so it is never at once writable to a guest and a table (invariant I1);
//! - the type changes only at type count zero (I2);
//! - the reference count is at least the type count, and a frame is freed only when it reaches zero (I3).
//!
//! No lock: owner, counts and type lie in one [`word`] that changes by compare-and-swap, so a frame never has, even for
//! an instant, a type that its references do not cover; `core/frame-model` tries out what several CPUs can do to it at
//! once. Validating a table (walking its entries) is the paging module's business and happens under the owner's paging
//! lock; [`FrameInfo::get_type`] only tells its caller that it is due.

mod caching;
mod held;
mod mapping;
mod partial;
#[cfg(any(test, feature = "sim"))]
mod renew;
mod table;
#[cfg(test)]
mod tests;
mod word;

pub(crate) use mapping::WritableOf;
pub use partial::Condition;
pub use table::FrameTable;
pub use word::{Refs, TypeWord};

use crate::addr::{DomId, Mfn};
use crate::atomics::{AtomicU32, AtomicU64, Ordering};
use word::{
    ALLOCATED, KIND, MARKED, ONE_REF, ONE_TYPE, OWNER, PARTIAL, REFS, SHARED, STATE, TYPE_FIELDS, TYPES, TYPES_SHIFT,
    VALIDATED, ZEROED, kind_field, kind_of, owner_field, type_count,
};

/// Owner of RAM that is free. No domain has this number, so nobody can take a reference.
const NOBODY: DomId = DomId(0x7fff);

/// What a frame is used as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameType {
    /// Nothing in particular; it may become anything.
    None = 0,
    /// A page table whose entries map frames.
    L1 = 1,
    /// A page table whose entries name L1 tables.
    L2 = 2,
    /// A page table whose entries name L2 tables.
    L3 = 3,
    /// A page table whose entries name L3 tables.
    L4 = 4,
    /// A page of a global or local descriptor table.
    Descriptor = 5,
    /// Mapped writable somewhere.
    Writable = 6,
    /// On the allocator's free lists (the first frame of a block).
    Free = 7,
}

impl FrameType {
    const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            1 => Self::L1,
            2 => Self::L2,
            3 => Self::L3,
            4 => Self::L4,
            5 => Self::Descriptor,
            6 => Self::Writable,
            7 => Self::Free,
            _ => Self::None,
        }
    }

    /// The page-table type of a level, 1 to 4.
    #[must_use]
    pub const fn table(level: u8) -> Self {
        Self::from_bits(level as u64 & 7)
    }

    /// The level, when this is a page-table type.
    #[must_use]
    pub const fn level(self) -> Option<u8> {
        match self {
            Self::L1 | Self::L2 | Self::L3 | Self::L4 => Some(self as u8),
            _ => None,
        }
    }

    /// Whether a frame must be checked entry by entry before it may be used as this.
    #[must_use]
    pub const fn needs_validation(self) -> bool {
        matches!(self, Self::L1 | Self::L2 | Self::L3 | Self::L4 | Self::Descriptor)
    }
}

/// Why a reference could not be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefError {
    /// The frame is not RAM that the table knows.
    NoSuchFrame,
    /// The frame belongs to somebody else, or to nobody.
    NotOwner,
    /// The frame is in use as something else.
    WrongType,
    /// The count is at its limit.
    Overflow,
}

/// What [`FrameInfo::get_type`] achieved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TypeGrant {
    /// The type is held.
    Held,
    /// The type is held, and the caller must now validate the frame and call [`FrameInfo::set_validated`] or
    /// [`FrameInfo::abandon_type`].
    MustValidate,
}

/// What is known of what a frame holds that nobody owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Anything.
    Unknown,
    /// Zeroes, and nobody can have changed them: no guest has had a mapping of the frame.
    Zeroes,
}

/// What is left after a type reference was given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TypeRest {
    /// Others still use the type.
    Held,
    /// The last use is gone.
    Last,
}

/// What is known of one machine frame. 32 bytes, so that two share a cache line and none lies in two.
#[repr(C, align(32))]
pub struct FrameInfo {
    word: AtomicU64,
    /// Free-list links (frame numbers), for the allocator alone while the frame is free. What they are while it is a
    /// two-level guest's directory, [`crate::paging::linear`] says; a four-level guest's L1,
    /// [`FrameInfo::note_parent`].
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// First frame of this table's shadow; zero when it has none.
    shadow: AtomicU32,
    /// TLB clock when a type or the frame itself was last given up: who reuses it flushes older TLBs first.
    stamp: AtomicU32,
    /// Not zero when the frame has been mapped uncached and writable since what caches hold of it was last dropped
    /// ([`caching`]).
    uncached: AtomicU32,
}

// (The model checker's atomics are larger than what they stand for.)
const _: () = assert!(size_of::<FrameInfo>() == 32 || size_of::<AtomicU32>() > 4);

impl FrameInfo {
    /// A frame that nobody may have: what the table starts with.
    #[must_use]
    pub fn reserved() -> Self {
        Self {
            word: AtomicU64::new(owner_field(DomId::IO)),
            next: AtomicU32::new(0),
            prev: AtomicU32::new(0),
            shadow: AtomicU32::new(0),
            stamp: AtomicU32::new(0),
            uncached: AtomicU32::new(0),
        }
    }

    /// What the frame's word says of its references, now.
    #[inline]
    pub fn refs(&self) -> Refs {
        Refs(self.word.load(Ordering::Acquire))
    }

    /// What the frame's word says of its type, now.
    #[inline]
    pub fn type_word(&self) -> TypeWord {
        TypeWord(self.word.load(Ordering::Acquire))
    }

    /// Changes the word, whatever else changes it meanwhile; returns what it was.
    #[inline]
    fn change(&self, next: impl Fn(u64) -> u64) -> u64 {
        self.change_if(|now| Some(next(now))).expect("a change that is always made")
    }

    /// As [`change`](Self::change), but leaves the word alone when there is nothing to make of it.
    #[inline]
    fn change_if(&self, next: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut now = self.word.load(Ordering::Acquire);
        loop {
            match self.word.compare_exchange_weak(now, next(now)?, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(now),
                Err(seen) => now = seen,
            }
        }
    }

    /// First frame of the table's shadow, if it has one.
    #[inline]
    pub fn shadow(&self) -> Option<Mfn> {
        match self.shadow.load(Ordering::Relaxed) {
            0 => None,
            mfn => Some(Mfn(mfn.into())),
        }
    }

    /// Records (or forgets) the shadow. Called under the owner's paging lock.
    pub fn set_shadow(&self, shadow: Option<Mfn>) {
        self.shadow.store(shadow.map_or(0, |m| m.0 as u32), Ordering::Relaxed);
    }

    /// Notes which slot of which table led to this one last. A hint: nobody takes it back. It lies where a free frame
    /// has its links, and is read only of frames that are in use.
    pub(crate) fn note_parent(&self, table: Mfn, index: usize) {
        self.next.store(table.0 as u32, Ordering::Relaxed);
        self.prev.store(index as u32, Ordering::Relaxed);
    }

    /// What was noted last; perhaps no longer true, or never.
    pub(crate) fn noted_parent(&self) -> (Mfn, usize) {
        (Mfn(self.next.load(Ordering::Relaxed).into()), self.prev.load(Ordering::Relaxed) as usize)
    }

    /// TLB clock when the frame's last type or owner let go of it.
    pub fn stamp(&self) -> u32 {
        self.stamp.load(Ordering::Acquire)
    }

    /// Records that the frame was let go of at `stamp`. The later of two stamps stays, whichever CPU writes first; the
    /// difference is signed, so that the clock may wrap.
    #[inline]
    pub(crate) fn set_stamp(&self, stamp: u32) {
        if self.stamp.load(Ordering::Relaxed) != stamp {
            self.raise_stamp(stamp);
        }
    }

    #[cold]
    #[inline(never)]
    fn raise_stamp(&self, stamp: u32) {
        let mut now = self.stamp.load(Ordering::Relaxed);
        while stamp.wrapping_sub(now) as i32 > 0 {
            match self.stamp.compare_exchange_weak(now, stamp, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => now = seen,
            }
        }
    }

    /// Makes the frame the property of `owner`, with the one reference that owning is.
    pub(crate) fn assign(&self, owner: DomId) {
        self.word.store(owner_field(owner) | ONE_REF | ALLOCATED, Ordering::Release);
    }

    /// As [`assign`](Self::assign), for a frame of the hypervisor's that `owner` may map (shared_info). The hypervisor
    /// itself writes to it, so it is writable memory for good and can never become a table.
    pub(crate) fn assign_shared(&self, owner: DomId) {
        let kind = kind_field(FrameType::Writable) | ONE_TYPE | VALIDATED;
        self.word.store(owner_field(owner) | ONE_REF | ALLOCATED | SHARED | kind, Ordering::Release);
    }

    /// Marks the frame as RAM that nobody owns.
    pub(crate) fn set_unowned(&self, contents: Contents) {
        let state = if contents == Contents::Zeroes { ZEROED } else { 0 };
        self.word.store(owner_field(NOBODY) | state, Ordering::Release);
    }

    /// Whether the (unowned) frame is known to hold nothing but zeroes.
    pub(crate) fn is_zeroed(&self) -> bool {
        self.word.load(Ordering::Relaxed) & (OWNER | ZEROED) == owner_field(NOBODY) | ZEROED
    }

    /// Marks the (unowned) frame as the first of a free block of 2^`order` frames.
    pub(crate) fn set_free(&self, order: u32) {
        let kind = kind_field(FrameType::Free) | u64::from(order) << TYPES_SHIFT;
        let zeroed = self.word.load(Ordering::Relaxed) & ZEROED;
        self.word.store(owner_field(NOBODY) | zeroed | kind, Ordering::Release);
    }

    /// Takes the frame off the free lists; it is nobody's until it is assigned.
    pub(crate) fn clear_free(&self) {
        let zeroed = self.word.load(Ordering::Relaxed) & ZEROED;
        self.word.store(owner_field(NOBODY) | zeroed, Ordering::Release);
    }

    /// The order of the free block that starts here.
    pub(crate) fn free_order(&self) -> Option<u32> {
        let word = self.type_word();
        (word.kind() == FrameType::Free).then(|| word.count())
    }

    /// Takes a reference, if the frame is `owner`'s. It stays so until the last reference is gone, though the owner may
    /// have given up its own before.
    #[inline]
    pub fn get(&self, owner: DomId) -> Result<(), RefError> {
        let mut now = self.word.load(Ordering::Relaxed);
        loop {
            if now & OWNER != owner_field(owner) || now & REFS == 0 {
                return Err(RefError::NotOwner);
            }
            if now & REFS == REFS {
                return Err(RefError::Overflow);
            }
            match self.word.compare_exchange_weak(now, now + ONE_REF, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => now = seen,
            }
        }
    }

    /// Gives a reference back; true when it was the last and the frame is to be freed.
    #[inline]
    #[must_use]
    pub fn put(&self) -> bool {
        let before = self.word.fetch_sub(ONE_REF, Ordering::AcqRel);
        debug_assert!(before & REFS != 0, "reference count underflow");
        before & REFS == ONE_REF
    }

    /// Gives up the owner's own reference; `None` when it was given up before, else whether it was the last one.
    #[must_use]
    pub fn put_allocation(&self) -> Option<bool> {
        let before = self.change_if(|now| (now & ALLOCATED != 0).then(|| (now & !ALLOCATED) - ONE_REF))?;
        Some(before & REFS == ONE_REF)
    }

    /// Gives up the owner's own reference to a frame that is shared with the hypervisor, and the hypervisor's use of it
    /// as writable memory; the result is as [`put_allocation`](Self::put_allocation)'s. It stays outside the owner's
    /// reservation.
    #[must_use]
    pub(crate) fn put_shared(&self) -> Option<bool> {
        let before = self.change_if(|now| {
            let state = if type_count(now) == 1 { STATE } else { 0 };
            let both = ALLOCATED | SHARED;
            (now & both == both).then(|| ((now & !ALLOCATED) - (ONE_REF + ONE_TYPE)) & !state)
        })?;
        Some(before & REFS == ONE_REF)
    }

    /// Hands the frame from one owner to another, if owning it is the only reference there is. False when it is not.
    /// `flush` is called with the frame's stamp while it is nobody's: the old owner's last mapping may still be in a
    /// TLB, and the new one can refer to the frame as soon as it has it (invariant I5).
    #[must_use]
    pub fn reassign(&self, from: DomId, to: DomId, flush: impl FnOnce(u32)) -> bool {
        self.hand_on(from, to, |stamp| {
            flush(stamp);
            true
        })
    }

    /// As [`reassign`](Self::reassign), if `flush` says, when the frame is nobody's, that it is to be done; else the
    /// old owner has it back.
    #[must_use]
    pub(crate) fn hand_on(&self, from: DomId, to: DomId, flush: impl FnOnce(u32) -> bool) -> bool {
        const SEEN: u64 = OWNER | REFS | TYPES | STATE | ALLOCATED | SHARED;
        let owned_by = |owner| owner_field(owner) | ONE_REF | ALLOCATED;
        let now = self.word.load(Ordering::Acquire);
        let between = now & KIND | owner_field(NOBODY) | ONE_REF;
        if now & SEEN != owned_by(from)
            || self.word.compare_exchange(now, between, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        let done = flush(self.stamp());
        // Nobody could refer to it meanwhile.
        self.word.store(now & KIND | owned_by(if done { to } else { from }), Ordering::Release);
        done
    }

    /// Takes a reference to the frame *as* `kind`. The caller already holds a plain reference. `flush` is called with
    /// the frame's stamp when the type changes, before anyone can rely on the new one (invariant I5).
    ///
    /// The flush comes *after* the type has changed: before, another CPU could take the old type once more, fill its
    /// TLB and give the type up again between our flush and our change (this was Xen's XSA-401). So that nobody relies
    /// on the new type until the flush is over, it begins unvalidated; who finds writable memory in that state flushes
    /// too instead of waiting.
    pub fn get_type(&self, kind: FrameType, flush: impl Fn(u32)) -> Result<TypeGrant, RefError> {
        let mut now = self.word.load(Ordering::Acquire);
        loop {
            let (next, changes) = if type_count(now) == 0 {
                let changes = kind_of(now) != kind;
                let ready = !changes && !kind.needs_validation();
                let state = if ready { VALIDATED } else { 0 };
                (now & !TYPE_FIELDS | kind_field(kind) | ONE_TYPE | state, changes)
            } else {
                let validated = now & VALIDATED != 0;
                // A table whose validation is under way is as good as a wrong type: only a table that contains itself
                // meets one, since validation happens under the owner's lock.
                if kind_of(now) != kind || !validated && kind.needs_validation() {
                    return Err(RefError::WrongType);
                }
                if now & TYPES == TYPES {
                    return Err(RefError::Overflow);
                }
                (now + ONE_TYPE, !validated)
            };
            match self.word.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if changes {
                        flush(self.stamp());
                    }
                    if type_count(now) == 0 && kind.needs_validation() {
                        return Ok(TypeGrant::MustValidate);
                    }
                    if changes {
                        self.set_validated();
                    }
                    return Ok(TypeGrant::Held);
                }
                Err(seen) => now = seen,
            }
        }
    }

    /// Takes one more reference to the frame as `kind`, if it is validated as that and somebody relies on it already.
    pub(crate) fn get_held_type(&self, kind: FrameType) -> Result<(), RefError> {
        let mut now = self.word.load(Ordering::Acquire);
        loop {
            if type_count(now) == 0 || kind_of(now) != kind || now & VALIDATED == 0 {
                return Err(RefError::WrongType);
            }
            if now & TYPES == TYPES {
                return Err(RefError::Overflow);
            }
            match self.word.compare_exchange_weak(now, now + ONE_TYPE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(seen) => now = seen,
            }
        }
    }

    /// Declares the frame valid as its type, after [`TypeGrant::MustValidate`].
    pub fn set_validated(&self) {
        self.word.fetch_or(VALIDATED, Ordering::AcqRel);
    }

    /// Gives the type up again, when validation failed.
    pub fn abandon_type(&self) {
        self.change(|now| now & !TYPE_FIELDS);
    }

    /// Gives a type reference back. For a table, the caller takes its entries' references back *before* it gives up the
    /// last one, under the owner's paging lock. `stamp` is the TLB clock, now.
    ///
    /// Not only the last one leaves its stamp: between a look at the count and the change to zero another CPU may take
    /// the type, flush, fill its TLB and give the type back, so that the count is what it was but the first stamp too
    /// old.
    pub fn put_type(&self, stamp: impl Fn() -> u32) -> TypeRest {
        self.set_stamp(stamp());
        let before = self.change(|now| {
            debug_assert!(type_count(now) != 0, "type count underflow");
            // At count zero the word keeps only the type's name: whoever takes it as that type again validates anew.
            if type_count(now) == 1 { now & !(TYPES | STATE) } else { now - ONE_TYPE }
        });
        if type_count(before) == 1 { TypeRest::Last } else { TypeRest::Held }
    }

    /// Marks the (validated) table pinned; false when it was.
    #[must_use]
    pub fn pin(&self) -> bool {
        debug_assert!(!self.is_partial(), "nobody has a reference to a partial table");
        self.word.fetch_or(MARKED, Ordering::AcqRel) & MARKED == 0
    }

    /// Removes the mark; false when there was none.
    #[must_use]
    pub fn unpin(&self) -> bool {
        // A partial table may be named here, and its mark means something else.
        self.change_if(|now| (now & (MARKED | PARTIAL) == MARKED).then_some(now & !MARKED)).is_some()
    }

    fn is_partial(&self) -> bool {
        self.type_word().partial().is_some()
    }
}
