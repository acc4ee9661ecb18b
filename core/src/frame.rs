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
//! No lock: both words change by compare-and-swap. Validating a table (walking its entries) is the paging module's
//! business and happens under the owner's paging lock; [`FrameInfo::get_type`] only tells its caller that it is due.

mod partial;
#[cfg(any(test, feature = "sim"))]
mod renew;

pub use partial::Condition;

use crate::addr::{DomId, Mfn};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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

/// A snapshot of a frame's reference word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refs(u64);

impl Refs {
    const COUNT: u64 = 0xffff_ffff;
    const OWNER_SHIFT: u32 = 32;
    const ALLOCATED: u64 = 1 << 48;
    const SHARED: u64 = 1 << 49;

    const fn new(owner: DomId, count: u32) -> Self {
        Self((owner.0 as u64) << Self::OWNER_SHIFT | count as u64)
    }

    /// How many references there are; a domain's ownership itself is one.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0 as u32
    }

    /// Who owns the frame.
    #[must_use]
    pub const fn owner(self) -> DomId {
        DomId((self.0 >> Self::OWNER_SHIFT) as u16)
    }

    /// Whether the owner still holds the reference that owning it gives.
    #[must_use]
    pub const fn is_allocated(self) -> bool {
        self.0 & Self::ALLOCATED != 0
    }

    /// Whether the frame is the hypervisor's but shared with its owner (shared_info): it is not part of the domain's
    /// reservation.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }
}

/// A snapshot of a frame's type word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TypeWord(u64);

impl TypeWord {
    const COUNT: u64 = 0xffff_ffff;
    const TYPE_SHIFT: u32 = 32;
    const VALIDATED: u64 = 1 << 36;
    const PINNED: u64 = 1 << 37;

    const fn new(kind: FrameType, count: u32) -> Self {
        Self((kind as u64) << Self::TYPE_SHIFT | count as u64)
    }

    /// How many references rely on the type.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0 as u32
    }

    /// The type. At count zero it says only what the frame was last.
    #[must_use]
    pub const fn kind(self) -> FrameType {
        FrameType::from_bits(self.0 >> Self::TYPE_SHIFT)
    }

    /// Whether every entry holds its references.
    #[must_use]
    pub const fn is_validated(self) -> bool {
        self.0 & Self::VALIDATED != 0
    }

    /// Whether the guest pinned the table.
    #[must_use]
    pub const fn is_pinned(self) -> bool {
        self.0 & Self::PINNED != 0
    }
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

/// What is left after a type reference was given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TypeRest {
    /// Others still use the type.
    Held,
    /// The last use is gone.
    Last,
}

/// What is known of one machine frame. 32 bytes, so that two share a cache line.
#[repr(C, align(32))]
pub struct FrameInfo {
    refs: AtomicU64,
    kind: AtomicU64,
    /// Free-list links (frame numbers), for the allocator alone while the frame is free. What they are while it is a
    /// two-level guest's directory, [`crate::paging::linear`] says; a four-level guest's L1, [`FrameInfo::note_parent`].
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// First frame of this table's shadow; zero when it has none.
    shadow: AtomicU32,
    /// TLB clock when a type or the frame itself was last given up: who reuses it flushes older TLBs first.
    stamp: AtomicU32,
}

const _: () = assert!(size_of::<FrameInfo>() == 32);

impl FrameInfo {
    /// A frame that nobody may have: what the table starts with.
    #[must_use]
    pub const fn reserved() -> Self {
        Self {
            refs: AtomicU64::new(Refs::new(DomId::IO, 0).0),
            kind: AtomicU64::new(0),
            next: AtomicU32::new(0),
            prev: AtomicU32::new(0),
            shadow: AtomicU32::new(0),
            stamp: AtomicU32::new(0),
        }
    }

    /// The reference word, now.
    pub fn refs(&self) -> Refs {
        Refs(self.refs.load(Ordering::Acquire))
    }

    /// The type word, now.
    pub fn type_word(&self) -> TypeWord {
        TypeWord(self.kind.load(Ordering::Acquire))
    }

    /// First frame of the table's shadow, if it has one.
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

    /// Notes which slot of which table led to this one last. A hint: nobody takes it back. It lies where a free frame has its
    /// links, and is read only of frames that are in use.
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
    pub(crate) fn set_stamp(&self, stamp: u32) {
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
        self.kind.store(TypeWord::new(FrameType::None, 0).0, Ordering::Relaxed);
        self.refs.store(Refs::new(owner, 1).0 | Refs::ALLOCATED, Ordering::Release);
    }

    /// As [`assign`](Self::assign), for a frame of the hypervisor's that `owner` may map (shared_info). The hypervisor
    /// itself writes to it, so it is writable memory for good and can never become a table.
    pub(crate) fn assign_shared(&self, owner: DomId) {
        self.kind.store(TypeWord::new(FrameType::Writable, 1).0 | TypeWord::VALIDATED, Ordering::Relaxed);
        self.refs.store(Refs::new(owner, 1).0 | Refs::ALLOCATED | Refs::SHARED, Ordering::Release);
    }

    /// Marks the frame as RAM that nobody owns.
    pub(crate) fn set_unowned(&self) {
        self.refs.store(Refs::new(NOBODY, 0).0, Ordering::Release);
    }

    /// Marks the (unowned) frame as the first of a free block of 2^`order` frames.
    pub(crate) fn set_free(&self, order: u32) {
        self.kind.store(TypeWord::new(FrameType::Free, order).0, Ordering::Release);
    }

    /// Takes the frame off the free lists; it is nobody's until it is assigned.
    pub(crate) fn clear_free(&self) {
        self.kind.store(TypeWord::new(FrameType::None, 0).0, Ordering::Release);
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
        let mut now = self.refs.load(Ordering::Relaxed);
        loop {
            let refs = Refs(now);
            if refs.owner() != owner || refs.count() == 0 {
                return Err(RefError::NotOwner);
            }
            if refs.0 & Refs::COUNT == Refs::COUNT {
                return Err(RefError::Overflow);
            }
            match self.refs.compare_exchange_weak(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => now = seen,
            }
        }
    }

    /// Gives a reference back; true when it was the last and the frame is to be freed.
    #[must_use]
    pub fn put(&self) -> bool {
        let before = Refs(self.refs.fetch_sub(1, Ordering::AcqRel));
        debug_assert!(before.count() != 0, "reference count underflow");
        before.count() == 1
    }

    /// Gives up the owner's own reference; `None` when it was given up before, else whether it was the last one.
    #[must_use]
    pub fn put_allocation(&self) -> Option<bool> {
        let before = Refs(self.refs.fetch_and(!Refs::ALLOCATED, Ordering::AcqRel));
        before.is_allocated().then(|| self.put())
    }

    /// Hands the frame from one owner to another, if owning it is the only reference there is. False when it is not.
    /// `flush` is called with the frame's stamp while it is nobody's: the old owner's last mapping may still be in a TLB,
    /// and the new one can refer to the frame as soon as it has it (invariant I5).
    #[must_use]
    pub fn reassign(&self, from: DomId, to: DomId, flush: impl FnOnce(u32)) -> bool {
        let (old, between) = (Refs::new(from, 1).0 | Refs::ALLOCATED, Refs::new(NOBODY, 1).0);
        if self.refs.compare_exchange(old, between, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        flush(self.stamp());
        self.refs.store(Refs::new(to, 1).0 | Refs::ALLOCATED, Ordering::Release);
        true
    }

    /// Takes one more reference to the frame as writable memory, if it is that already: what [`get_type`](Self::get_type)
    /// does then. False if it is not, or if somebody else was faster.
    #[inline]
    #[must_use]
    pub fn get_writable_once_more(&self) -> bool {
        let now = self.kind.load(Ordering::Acquire);
        let count = now & TypeWord::COUNT;
        now - count == TypeWord::new(FrameType::Writable, 0).0 | TypeWord::VALIDATED
            && (1..TypeWord::COUNT).contains(&count)
            && self.kind.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes a reference to the frame *as* `kind`. The caller already holds a plain reference. `flush` is called with
    /// the frame's stamp when the type changes, before anyone can rely on the new one (invariant I5).
    ///
    /// The flush comes *after* the type has changed: before, another CPU could take the old type once more, fill its
    /// TLB and give the type up again between our flush and our change (this was Xen's XSA-401). So that nobody relies
    /// on the new type until the flush is over, it begins unvalidated; who finds writable memory in that state flushes
    /// too instead of waiting.
    pub fn get_type(&self, kind: FrameType, flush: impl Fn(u32)) -> Result<TypeGrant, RefError> {
        let mut now = self.kind.load(Ordering::Acquire);
        loop {
            let word = TypeWord(now);
            let (next, changes) = if word.count() == 0 {
                let changes = word.kind() != kind;
                let ready = !changes && !kind.needs_validation();
                (TypeWord::new(kind, 1).0 | if ready { TypeWord::VALIDATED } else { 0 }, changes)
            } else {
                // A table whose validation is under way is as good as a wrong type: only a table that contains itself
                // meets one, since validation happens under the owner's lock.
                if word.kind() != kind || !word.is_validated() && kind.needs_validation() {
                    return Err(RefError::WrongType);
                }
                if word.0 & TypeWord::COUNT == TypeWord::COUNT {
                    return Err(RefError::Overflow);
                }
                (now + 1, !word.is_validated())
            };
            match self.kind.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if changes {
                        flush(self.stamp());
                    }
                    if word.count() == 0 && kind.needs_validation() {
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
        let mut now = self.kind.load(Ordering::Acquire);
        loop {
            let word = TypeWord(now);
            if word.count() == 0 || word.kind() != kind || !word.is_validated() {
                return Err(RefError::WrongType);
            }
            if word.0 & TypeWord::COUNT == TypeWord::COUNT {
                return Err(RefError::Overflow);
            }
            match self.kind.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(seen) => now = seen,
            }
        }
    }

    /// Declares the frame valid as its type, after [`TypeGrant::MustValidate`].
    pub fn set_validated(&self) {
        self.kind.fetch_or(TypeWord::VALIDATED, Ordering::Release);
    }

    /// Gives the type up again, when validation failed.
    pub fn abandon_type(&self) {
        self.kind.store(TypeWord::new(FrameType::None, 0).0, Ordering::Release);
    }

    /// Gives a type reference back. For a table, the caller takes its entries' references back *before* it gives up the
    /// last one, under the owner's paging lock. `stamp` is the TLB clock, now.
    pub fn put_type(&self, stamp: impl Fn() -> u32) -> TypeRest {
        let mut now = self.kind.load(Ordering::Acquire);
        loop {
            let word = TypeWord(now);
            debug_assert!(word.count() != 0, "type count underflow");
            let last = word.count() == 1;
            // At count zero the word keeps only the type's name: whoever takes it as that type again validates anew.
            let next = if last { TypeWord::new(word.kind(), 0).0 } else { now - 1 };
            if last {
                self.set_stamp(stamp());
            }
            match self.kind.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return if last { TypeRest::Last } else { TypeRest::Held },
                Err(seen) => now = seen,
            }
        }
    }

    /// Marks the table pinned; false when it was.
    #[must_use]
    pub fn pin(&self) -> bool {
        self.kind.fetch_or(TypeWord::PINNED, Ordering::AcqRel) & TypeWord::PINNED == 0
    }

    /// Removes the mark; false when there was none.
    #[must_use]
    pub fn unpin(&self) -> bool {
        self.kind.fetch_and(!TypeWord::PINNED, Ordering::AcqRel) & TypeWord::PINNED != 0
    }
}

/// The table of all frames, indexed by machine frame number.
#[derive(Clone, Copy)]
pub struct FrameTable {
    frames: &'static [FrameInfo],
}

impl FrameTable {
    /// Takes over the frames' records, all of them [`FrameInfo::reserved`].
    #[must_use]
    pub const fn new(frames: &'static [FrameInfo]) -> Self {
        Self { frames }
    }

    /// How many frames the table knows: one more than the highest frame number of RAM.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Whether the table is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The record of a frame, if the table knows it.
    #[inline]
    #[must_use]
    pub fn info(&self, mfn: Mfn) -> Option<&'static FrameInfo> {
        self.frames.get(usize::try_from(mfn.0).ok()?)
    }

    /// Takes a reference to a frame owned by `owner`.
    #[inline]
    pub fn get(&self, mfn: Mfn, owner: DomId) -> Result<&'static FrameInfo, RefError> {
        let info = self.info(mfn).ok_or(RefError::NoSuchFrame)?;
        info.get(owner)?;
        Ok(info)
    }

    /// Whether the frame is RAM that domains or the hypervisor use: anything else is I/O memory (or nothing at all).
    #[inline]
    #[must_use]
    pub fn is_ram(&self, mfn: Mfn) -> bool {
        self.info(mfn).is_some_and(|info| info.refs().owner() != DomId::IO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> FrameInfo {
        let frame = FrameInfo::reserved();
        frame.assign(DomId(1));
        frame
    }

    #[test]
    fn only_the_owner_gets_references() {
        let frame = frame();
        assert_eq!(frame.get(DomId(2)), Err(RefError::NotOwner));
        assert_eq!(frame.get(DomId(1)), Ok(()));
        assert_eq!(frame.refs().count(), 2);
        assert!(!frame.put());
        assert_eq!(frame.put_allocation(), Some(true));
        assert_eq!(frame.put_allocation(), None);
        assert_eq!(frame.get(DomId(1)), Err(RefError::NotOwner), "a freed frame is nobody's");
    }

    #[test]
    fn a_type_excludes_every_other_until_its_count_is_zero() {
        let frame = frame();
        let no_flush = |_| ();
        assert_eq!(frame.get_type(FrameType::Writable, no_flush), Ok(TypeGrant::Held));
        assert_eq!(frame.get_type(FrameType::L1, no_flush), Err(RefError::WrongType));
        assert_eq!(frame.put_type(|| 7), TypeRest::Last);
        let flushed = core::cell::Cell::new(None);
        assert_eq!(frame.get_type(FrameType::L1, |stamp| flushed.set(Some(stamp))), Ok(TypeGrant::MustValidate));
        assert_eq!(flushed.get(), Some(7), "a new type is preceded by a flush as of the old one's end");
        assert_eq!(frame.get_type(FrameType::L1, no_flush), Err(RefError::WrongType), "not validated yet");
        frame.set_validated();
        assert_eq!(frame.get_type(FrameType::L1, no_flush), Ok(TypeGrant::Held));
        assert_eq!(frame.get_type(FrameType::Writable, no_flush), Err(RefError::WrongType));
        assert_eq!(frame.put_type(|| 8), TypeRest::Held);
        assert_eq!(frame.put_type(|| 9), TypeRest::Last);
        assert!(!frame.type_word().is_validated());
    }

    #[test]
    fn no_type_is_taken_again_while_its_successor_is_being_flushed() {
        let frame = frame();
        assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Ok(TypeGrant::Held));
        assert_eq!(frame.put_type(|| 5), TypeRest::Last);
        // What another CPU does meanwhile happens within the flush. It must not get the old type back: nobody would
        // flush for it (XSA-401).
        let became = frame.get_type(FrameType::L1, |_| {
            assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Err(RefError::WrongType));
            assert_eq!(frame.get_type(FrameType::L1, |_| ()), Err(RefError::WrongType), "nor the new one, unvalidated");
        });
        assert_eq!(became, Ok(TypeGrant::MustValidate));
        frame.abandon_type();
        // Writable memory needs no validation, but the flush all the same: the second to take it makes it as well.
        let flushes = core::cell::Cell::new(0);
        let flush = |_| flushes.set(flushes.get() + 1);
        let became = frame.get_type(FrameType::Writable, |_| {
            flush(0);
            assert_eq!(frame.get_type(FrameType::Writable, flush), Ok(TypeGrant::Held));
        });
        assert_eq!((became, flushes.get()), (Ok(TypeGrant::Held), 2));
        assert_eq!((frame.type_word().count(), frame.type_word().is_validated()), (2, true));
    }

    #[test]
    fn the_later_stamp_stays_even_when_the_clock_wraps() {
        let frame = frame();
        for (stamp, stays) in [(7, 7), (5, 7), (0x7000_0000, 0x7000_0000), (0xe000_0000, 0xe000_0000), (3, 3)] {
            frame.set_stamp(stamp);
            assert_eq!(frame.stamp(), stays);
        }
    }

    #[test]
    fn a_frame_is_nobodys_while_it_changes_hands() {
        let frame = frame();
        frame.set_stamp(9);
        assert!(frame.reassign(DomId(1), DomId(2), |stamp| {
            assert_eq!(stamp, 9);
            assert_eq!(frame.get(DomId(1)), Err(RefError::NotOwner));
            assert_eq!(frame.get(DomId(2)), Err(RefError::NotOwner));
        }));
        assert_eq!(frame.get(DomId(2)), Ok(()));
        assert!(!frame.reassign(DomId(2), DomId(1), |_| ()), "somebody refers to it");
    }

    #[test]
    fn counts_stop_at_their_limit() {
        let frame = frame();
        assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Ok(TypeGrant::Held));
        frame.refs.fetch_add(u64::from(u32::MAX) - 1, Ordering::Relaxed);
        frame.kind.fetch_add(u64::from(u32::MAX) - 1, Ordering::Relaxed);
        assert_eq!(frame.get(DomId(1)), Err(RefError::Overflow));
        assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Err(RefError::Overflow));
        assert_eq!((frame.refs().owner(), frame.type_word().kind()), (DomId(1), FrameType::Writable));
    }

    #[test]
    fn pins_are_counted_once() {
        let frame = frame();
        assert!(frame.pin());
        assert!(!frame.pin());
        assert!(frame.unpin());
        assert!(!frame.unpin());
    }
}
