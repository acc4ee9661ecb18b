//! Events sent to ourselves: what finds the port pending, what goes all the way, what is delivered.

use crate::abi;
use crate::hypercall::{self, send};
use crate::measure::Bench;
use crate::memory;
use crate::traps::{Return, failsafe, upcall};
use core::sync::atomic::Ordering;

pub fn run(bench: &Bench) {
    let (near, far) = hypercall::bind(abi::DOMID_SELF).expect("a domain may connect to itself");
    assert!(near < 64 && far < 64, "the quick upcall clears the first word of pending bits only");
    memory::masked().store(!(1 << far), Ordering::SeqCst);
    memory::upcall_mask().store(1, Ordering::SeqCst);
    reset();
    assert!(send(near), "the channel was just made");
    bench.measure("event-send-pending", |_| near, send);
    bench.measure("event-send-fresh", |_| reset_for(near), send);
    reset();

    for (name, back) in [("event-send-upcall-iret", Return::Hypercall), ("event-send-upcall", Return::Instruction)] {
        // SAFETY: both are entry points made for it; there are no applications yet.
        assert!(unsafe { hypercall::set_callbacks(upcall(back), failsafe(), 0) }, "callbacks of ours");
        memory::upcall_mask().store(0, Ordering::SeqCst);
        bench.measure(name, |_| delivered(near, far), send);
        delivered(near, far);
    }
    memory::upcall_mask().store(1, Ordering::SeqCst);
}

/// Undoes what an event did to the shared page.
pub fn reset() {
    memory::pending().store(0, Ordering::SeqCst);
    memory::pending_selector().store(0, Ordering::SeqCst);
    memory::upcall_pending().store(0, Ordering::SeqCst);
}

fn reset_for(port: u32) -> u32 {
    reset();
    port
}

/// Makes sure that the last event has been taken by an upcall.
fn delivered(near: u32, far: u32) -> u32 {
    assert!(memory::pending().load(Ordering::SeqCst) & 1 << far == 0, "the upcall took the event");
    assert_eq!(memory::upcall_mask().load(Ordering::SeqCst), 0, "and unmasked upcalls");
    near
}
