//! The references that a mapping holds, taken and given back in one exchange each.
//!
//! A writable mapping holds a reference to its frame and one to its type. Both counts lie in one word, so what is
//! [`FrameInfo::get`] and then [`FrameInfo::get_type`] is one compare-and-swap where nothing has to be done in between:
//! the frame is the owner's and writable memory already. It is then the same as the two, with nobody looking in
//! between.

use super::FrameInfo;
use super::FrameType::{Descriptor, Writable};
use super::word::{
    ALLOCATED, CROWDED, KIND, ONE_REF, ONE_TYPE, OWNER, REFS, STATE, TYPES, VALIDATED, kind_field, owner_field,
    type_count,
};
use crate::addr::DomId;
use crate::atomics::Ordering;

/// Type counts from 2 on.
const OTHERS: u64 = TYPES & !ONE_TYPE;

/// What is looked at of a frame that a domain owns and has not given up: it has references, and room for more.
const OWNED: u64 = OWNER | ALLOCATED | CROWDED & REFS;

/// How the word of a frame looks that is a domain's, and how if it is writable memory, with room for more references.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WritableOf {
    /// What is looked at.
    seen: u64,
    /// What must be found.
    wanted: u64,
    /// What must be found of [`OWNED`], if it need not be writable memory.
    owned: u64,
}

impl WritableOf {
    /// Of this domain's frames.
    #[inline]
    pub(crate) const fn domain(owner: DomId) -> Self {
        // A validated type has a count, and so has the frame then. Marks and partial tables are no writable memory's.
        let wanted = owner_field(owner) | kind_field(Writable) | VALIDATED;
        // A number that does not fit might spoil the very bit.
        let owned = if owner_field(owner) & !OWNER == 0 { owner_field(owner) | ALLOCATED } else { u64::MAX };
        Self { seen: OWNER | KIND | STATE | CROWDED, wanted, owned }
    }

    /// The same, in a form that a loop over many frames does not build anew for each.
    #[inline]
    pub(crate) fn kept(self) -> Self {
        Self { seen: core::hint::black_box(self.seen), ..self }
    }
}

impl FrameInfo {
    /// Takes a reference to `owner`'s frame, and one to it as writable memory. False says nothing and changes nothing:
    /// then [`get`](Self::get) and [`get_type`](Self::get_type) tell.
    #[inline(always)]
    #[must_use]
    pub fn get_writable(&self, owner: DomId) -> bool {
        self.get_writable_quickly(WritableOf::domain(owner)) || self.get_writable_again(owner)
    }

    /// As [`get_writable`](Self::get_writable), if nobody else is quicker and the frame is writable memory now.
    #[inline(always)]
    pub(crate) fn get_writable_quickly(&self, wanted: WritableOf) -> bool {
        let now = self.word.load(Ordering::Acquire);
        let next = now.wrapping_add(ONE_REF + ONE_TYPE);
        now & wanted.seen == wanted.wanted
            && self.word.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// As [`get`](Self::get), if nobody else is quicker and the owner has not given the frame up. False says nothing
    /// and changes nothing.
    #[inline(always)]
    pub(crate) fn get_readable_quickly(&self, wanted: WritableOf) -> bool {
        let now = self.word.load(Ordering::Relaxed);
        now & OWNED == wanted.owned
            && self.word.compare_exchange_weak(now, now + ONE_REF, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// As [`get_writable`](Self::get_writable) where somebody else was quicker, or the frame was writable memory last
    /// and is nothing since. No other type came between then, so no TLB need be flushed.
    #[cold]
    #[inline(never)]
    pub(crate) fn get_writable_again(&self, owner: DomId) -> bool {
        let wanted = owner_field(owner) | kind_field(Writable);
        self.change_if(|now| {
            let state = if now & TYPES == 0 { 0 } else { VALIDATED };
            let fits = now & (OWNER | KIND | STATE | CROWDED) == wanted | state && now & REFS != 0;
            fits.then_some((now + (ONE_REF + ONE_TYPE)) | VALIDATED)
        })
        .is_some()
    }

    /// Gives back a reference to the frame as writable memory and one to the frame itself: [`put_type`](Self::put_type)
    /// and [`put`](Self::put); nothing, if it is I/O memory. `stamp` is the TLB clock, read when no CPU could walk to
    /// the mapping any more. True when the frame is to be freed.
    #[inline(always)]
    #[must_use]
    pub fn put_writable(&self, stamp: u32) -> bool {
        !self.put_writable_quickly(stamp) && self.put_last_writable()
    }

    /// As [`put_writable`](Self::put_writable), if others rely on the type too and nobody else is quicker. False says
    /// nothing and leaves no more than the stamp; true: done, and the frame is not to be freed.
    #[inline(always)]
    pub(crate) fn put_writable_quickly(&self, stamp: u32) -> bool {
        self.set_stamp(stamp);
        let now = self.word.load(Ordering::Acquire);
        let next = now.wrapping_sub(ONE_REF + ONE_TYPE);
        now & OTHERS != 0 && self.word.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    #[cold]
    #[inline(never)]
    fn put_last_writable(&self) -> bool {
        let before = self.change_if(|now| {
            debug_assert!(now & OWNER == owner_field(DomId::IO) || type_count(now) != 0 && now & REFS != 0, "{now:#x}");
            let state = if type_count(now) == 1 { STATE } else { 0 };
            // Of I/O memory nothing is counted.
            (now & OWNER != owner_field(DomId::IO)).then(|| (now - (ONE_REF + ONE_TYPE)) & !state)
        });
        before.is_some_and(|before| before & REFS == ONE_REF)
    }

    /// Gives back the reference of a mapping that allows no writes; `stamp` and result are as
    /// [`put_writable`](Self::put_writable)'s. A page that is only read may still be in a TLB when it is given to
    /// somebody else.
    #[inline]
    #[must_use]
    pub fn put_readable(&self, stamp: u32) -> bool {
        self.set_stamp(stamp);
        // Of I/O memory nothing is counted; of what the mapping keeps, at least that is.
        self.word.load(Ordering::Relaxed) & REFS != 0 && self.put()
    }

    /// As [`put_readable`](Self::put_readable), under the conditions of
    /// [`put_writable_quickly`](Self::put_writable_quickly), and if the frame is no page of descriptors, whose owner
    /// wants to know.
    #[inline(always)]
    pub(crate) fn put_readable_quickly(&self, stamp: u32) -> bool {
        const OTHER_REFS: u64 = REFS & !ONE_REF;
        self.set_stamp(stamp);
        let now = self.word.load(Ordering::Acquire);
        now & OTHER_REFS != 0
            && now & KIND != kind_field(Descriptor)
            && self.word.compare_exchange_weak(now, now - ONE_REF, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
