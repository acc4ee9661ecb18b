//! Events sent to ourselves: what finds the port pending, what goes all the way, what is delivered.

use crate::Bench;
use crate::traps::{map_shared_page, quick_upcall};
use core::sync::atomic::Ordering;
use proxenos_guest::abi::{GuestArch, Port};
use proxenos_guest::arch::failsafe_callback;
use proxenos_guest::events::{self, send};
use proxenos_guest::{Arch, hypercall, shared_info};

pub fn run(bench: &Bench) {
    let (near, far) = events::bind_loopback().expect("domain 0 may connect to itself");
    assert!(far.raw() < 32, "the quick upcall clears the first word of pending bits only");
    events::unmask(far);
    events::mask_upcalls();
    reset();
    send(near).expect("the channel was just made");
    bench.measure("event-send-pending", |_| near, |port| send(port).is_ok());
    bench.measure("event-send-fresh", |_| reset_for(near), |port| send(port).is_ok());
    reset();

    map_shared_page();
    let cs = Arch::FLAT_GUESTOS_CS;
    // SAFETY: both are entry points made for it.
    unsafe { hypercall::set_callbacks((cs, quick_upcall()), (cs, failsafe_callback())) }.expect("callbacks of ours");
    events::unmask_upcalls();
    bench.measure("event-send-upcall", |_| delivered(near, far), |port| send(port).is_ok());
    delivered(near, far);

    events::install().expect("the SDK's own callbacks");
    events::set_handler(far, |_| ());
    events::unmask(far);
    bench.measure("event-send-upcall-sdk", |_| delivered(near, far), |port| send(port).is_ok());
    delivered(near, far);
}

/// Undoes what an event did to the shared page.
fn reset() {
    shared_info::pending_word(0).store(0, Ordering::SeqCst);
    shared_info::pending_selector().store(0, Ordering::SeqCst);
    shared_info::upcall_pending().store(0, Ordering::SeqCst);
}

fn reset_for(port: Port) -> Port {
    reset();
    port
}

/// Makes sure that the last event has been taken by an upcall.
fn delivered(near: Port, far: Port) -> Port {
    assert!(!shared_info::is_pending(far), "the upcall took the event");
    assert_eq!(shared_info::upcall_mask().load(Ordering::SeqCst), 0, "and unmasked upcalls");
    near
}
