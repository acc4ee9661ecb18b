//! Tables that are held already: the references of a use of them, taken and given back in one exchange each.
//!
//! As [`super::mapping`] has it for mappings: what is [`FrameInfo::get`] and [`FrameInfo::get_type`] at once, where the
//! type is the one asked for and validated.

use super::word::{CROWDED, KIND, ONE_REF, ONE_TYPE, OWNER, VALIDATED, kind_field, owner_field, type_count};
use super::{FrameInfo, FrameType};
use crate::addr::DomId;
use crate::atomics::Ordering;

impl FrameInfo {
    /// Whether the frame is `owner`'s and validated as `kind`. A validated type has a count, and so has the frame then.
    #[inline]
    #[must_use]
    pub(crate) fn is_held(&self, owner: DomId, kind: FrameType) -> bool {
        const SEEN: u64 = OWNER | KIND | VALIDATED;
        self.word.load(Ordering::Acquire) & SEEN == owner_field(owner) | kind_field(kind) | VALIDATED
    }

    /// Takes a reference to `owner`'s frame, and one to it as `kind`, if it is validated as that. False says nothing
    /// and changes nothing.
    #[inline]
    #[must_use]
    pub(crate) fn get_held(&self, owner: DomId, kind: FrameType) -> bool {
        const SEEN: u64 = OWNER | KIND | VALIDATED | CROWDED;
        let wanted = owner_field(owner) | kind_field(kind) | VALIDATED;
        let mut now = self.word.load(Ordering::Acquire);
        while now & SEEN == wanted {
            let next = now + (ONE_REF + ONE_TYPE);
            match self.word.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(seen) => now = seen,
            }
        }
        false
    }

    /// Gives back a reference to the type and one to the frame. The caller knows that another keeps the type.
    #[inline]
    pub(crate) fn put_held(&self) {
        let before = self.word.fetch_sub(ONE_REF + ONE_TYPE, Ordering::AcqRel);
        debug_assert!(type_count(before) > 1 && before & VALIDATED != 0, "{before:#x}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::TypeGrant;
    use super::*;

    #[test]
    fn a_table_is_held_only_as_what_it_is_and_by_its_owner() {
        let frame = FrameInfo::reserved();
        frame.assign(DomId(1));
        let held = |owner, kind| (frame.is_held(DomId(owner), kind), frame.get_held(DomId(owner), kind));
        assert_eq!(held(1, FrameType::L2), (false, false));
        assert_eq!(frame.get(DomId(1)), Ok(()));
        assert_eq!(frame.get_type(FrameType::L2, |_| ()), Ok(TypeGrant::MustValidate));
        assert_eq!(held(1, FrameType::L2), (false, false), "not validated yet");
        frame.set_validated();
        assert_eq!(held(1, FrameType::L2), (true, true));
        assert_eq!(held(1, FrameType::L1), (false, false));
        assert_eq!(held(2, FrameType::L2), (false, false));
        assert!(frame.pin());
        assert_eq!(held(1, FrameType::L2), (true, true), "a pin changes nothing");
        assert_eq!((frame.refs().count(), frame.type_word().count()), (4, 3));
        frame.put_held();
        frame.put_held();
        assert_eq!((frame.refs().count(), frame.type_word().count()), (2, 1));
        assert!(frame.type_word().is_validated() && frame.type_word().is_pinned());
    }
}
