//! What a frame's word says of a table that is half validated; what that means is `crate::paging::partial`'s.
//!
//! Under the owner's paging lock. Nobody else changes the type meanwhile, since it cannot be had.

use super::word::{MARKED, ONE_TYPE, PARTIAL, STATE, TYPES, TYPES_SHIFT};
use super::{FrameInfo, TypeWord};

/// What is to become of a table that is half validated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// It waits for somebody to go on with it.
    Suspended,
    /// It waits to be undone.
    Condemned,
}

impl TypeWord {
    /// Of a table that is half validated: how many of its first entries hold references, and what is to become of it.
    #[must_use]
    pub const fn partial(self) -> Option<(usize, Condition)> {
        if self.0 & PARTIAL == 0 {
            return None;
        }
        let condition = if self.0 & MARKED == 0 { Condition::Suspended } else { Condition::Condemned };
        Some((((self.0 & TYPES) >> TYPES_SHIFT) as usize, condition))
    }
}

impl FrameInfo {
    /// The one reference to the type becomes the frame's own, of a table of which `done` entries hold their references.
    pub(crate) fn set_partial(&self, done: usize, condition: Condition) {
        let word = self.type_word();
        debug_assert!(word.count() == 1 && !word.is_pinned(), "{word:?}");
        let condemned = if condition == Condition::Condemned { MARKED } else { 0 };
        // The type count is 1, so its place is free.
        let partial = PARTIAL | condemned | (done as u64) << TYPES_SHIFT;
        self.change(|now| now & !(TYPES | STATE) | partial);
    }

    /// The reference is the caller's again, whose table it is to validate.
    pub(crate) fn resume_validation(&self) {
        self.change(|now| now & !(TYPES | STATE) | ONE_TYPE);
    }
}
