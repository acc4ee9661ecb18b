//! The seats of parked domains under several CPUs, for the model checker (loom).
//!
//! The seat is the hypervisor's own code, compiled here over loom's atomics. Who sits there is as little as can be told
//! apart: a number that every change makes greater by one. The checker watches it: who reads or changes it while
//! another does, or behind another with no order between the two, is found out, whatever the number is.
//!
//! Nothing else is here that could order what CPUs do. The locks of queues and places do so in many cases in the
//! hypervisor, never where a turn begins or ends; what a seat promises it keeps without them.

extern crate alloc;

#[path = "../../src/guest/sched/seat.rs"]
pub mod seat;

/// What seats are compiled over.
mod atomics {
    pub(crate) use super::wait_a_little;
    pub(crate) use loom::sync::atomic::{AtomicPtr, Ordering};
}

use loom::cell::UnsafeCell;
use std::cell::Cell;

/// How often a CPU waits in a run that is tried in all its orders.
const WAITS: u32 = 2;

loom::thread_local! {
    /// How often this CPU has waited.
    static WAITED: Cell<u32> = Cell::new(0);
}

/// A CPU waits: another does something first. Two that wait could go round for ever, with a third that never comes to
/// let either go on. So what follows many waits is not tried in every order, but in one where each has its turn.
pub fn wait_a_little() {
    let before = WAITED.with(|waited| waited.replace(waited.get() + 1));
    if before >= WAITS {
        loom::skip_branch();
    }
    loom::thread::yield_now();
}

/// A domain that may be parked.
pub struct Running {
    changes: UnsafeCell<u32>,
}

impl Running {
    /// One that was changed so often.
    pub fn changed(changes: u32) -> Box<Self> {
        Box::new(Self { changes: UnsafeCell::new(changes) })
    }

    /// Changes it, as its CPU does that has run it, and whoever holds it. How often that was done before.
    pub fn change(&mut self) -> u32 {
        self.changes.with_mut(|changes| {
            // SAFETY: of the only reference.
            let changes = unsafe { &mut *changes };
            *changes += 1;
            *changes - 1
        })
    }

    /// How often it was changed.
    pub fn changes(&self) -> u32 {
        // SAFETY: who changes it has the only reference.
        self.changes.with(|changes| unsafe { *changes })
    }
}
