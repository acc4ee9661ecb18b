//! Why a domain does not run: one word, which any CPU may change at any time.
//!
//! Promise: whoever removes [`RunState::BLOCKED`] and whoever adds it see what the other did before, in one of the
//! two orders. That is what keeps a wakeup from being lost ([`crate::event`]); `core/event-model` tries it out. No
//! lock.

use crate::atomics::{AtomicU32, Ordering};

bitflags::bitflags! {
    /// Why a domain does not run, or that it does.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RunState: u32 {
        /// Waiting for an event.
        const BLOCKED = 1 << 0;
        /// It shut itself down.
        const SHUTDOWN = 1 << 1;
        /// The hypervisor stopped it for what it did.
        const CRASHED = 1 << 2;
        /// Another domain has stopped it, and may let it go on.
        const PAUSED = 1 << 3;
        /// The hypervisor stopped it for a moment, to look at it or to change it.
        const HELD = 1 << 4;
        /// It has no state yet in which it could begin.
        const UNBUILT = 1 << 6;
        /// It is being taken down, and never runs again.
        const DYING = 1 << 5;
    }
}

/// A domain's run state, as it is shared between CPUs.
#[derive(Debug)]
pub struct RunWord(AtomicU32);

impl Default for RunWord {
    fn default() -> Self {
        Self::new()
    }
}

impl RunWord {
    /// Of a domain that runs.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// The state, now.
    #[inline]
    pub fn get(&self) -> RunState {
        RunState::from_bits_retain(self.0.load(Ordering::Acquire))
    }

    /// Adds to the state.
    pub fn set(&self, state: RunState) {
        self.0.fetch_or(state.bits(), Ordering::AcqRel);
    }

    /// Removes from the state.
    #[inline]
    pub fn clear(&self, state: RunState) {
        self.0.fetch_and(!state.bits(), Ordering::AcqRel);
    }

    /// Removes from the state, and says what it was.
    #[inline]
    pub fn take(&self, state: RunState) -> RunState {
        RunState::from_bits_retain(self.0.fetch_and(!state.bits(), Ordering::AcqRel))
    }
}
