//! What a frame's type word says of a table that is half validated; what that means is `crate::paging::partial`'s.
//!
//! Under the owner's paging lock. Nobody else changes the word meanwhile, since the type cannot be had.

use super::{FrameInfo, TypeWord};
use core::sync::atomic::Ordering;

/// What is to become of a table that is half validated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// It waits for somebody to go on with it.
    Suspended,
    /// It waits to be undone.
    Condemned,
}

impl TypeWord {
    /// A table of which only the first entries hold references.
    const PARTIAL: u64 = 1 << 38;
    /// And is to lose those too.
    const CONDEMNED: u64 = 1 << 39;
    /// How many entries of a partial table hold references.
    const DONE_SHIFT: u32 = 40;
    const DONE: u64 = 0x7ff;

    /// Of a table that is half validated: how many of its first entries hold references, and what is to become of it.
    #[must_use]
    pub const fn partial(self) -> Option<(usize, Condition)> {
        if self.0 & Self::PARTIAL == 0 {
            return None;
        }
        let condition = if self.0 & Self::CONDEMNED == 0 { Condition::Suspended } else { Condition::Condemned };
        Some(((self.0 >> Self::DONE_SHIFT & Self::DONE) as usize, condition))
    }
}

impl FrameInfo {
    /// The one reference to the type becomes the frame's own, of a table of which `done` entries hold their references.
    pub(crate) fn set_partial(&self, done: usize, condition: Condition) {
        let word = self.type_word();
        debug_assert!(word.count() == 1 && !word.is_pinned(), "{word:?}");
        let condemned = if condition == Condition::Condemned { TypeWord::CONDEMNED } else { 0 };
        let partial = TypeWord::PARTIAL | condemned | (done as u64) << TypeWord::DONE_SHIFT;
        self.kind.store(TypeWord::new(word.kind(), 1).0 | partial, Ordering::Release);
    }

    /// The reference is the caller's again, whose table it is to validate.
    pub(crate) fn resume_validation(&self) {
        self.kind.store(TypeWord::new(self.type_word().kind(), 1).0, Ordering::Release);
    }
}
