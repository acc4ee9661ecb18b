//! Events while an application runs.

use crate::{DATA, World, at, program, to_system_call};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use proxenos_guest::abi::{Port, Virq};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, events, hypercall, shared_info, time};

/// The word that an application waits for.
static FLAG: AtomicPtr<u64> = AtomicPtr::new(core::ptr::null_mut());
static EVENTS: AtomicUsize = AtomicUsize::new(0);

fn on_event(_: Port) {
    EVENTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the page that applications share.
    unsafe { FLAG.load(Ordering::Relaxed).write_volatile(1) }
}

pub fn run(world: &World) {
    section("events while an application runs");
    FLAG.store(world.word(4), Ordering::Relaxed);
    let timer = events::handle_virq(Virq::Timer, on_event).expect("the timer can be bound");
    for _ in 0..5 {
        // SAFETY: the page that applications share.
        unsafe { world.word(4).write_volatile(0) };
        hypercall::set_timer_op(time::system_time() + 300_000).expect("a time");
        let mut app = at(program::wait);
        (app.rdi, app.rcx, app.r11, app.rbx) = (DATA + 32, 1, 2, 3);
        to_system_call(&mut app);
        check_eq!((app.rbx, app.rdi), (3, DATA + 32));
    }
    events::mask(timer);
    check!(EVENTS.load(Ordering::Relaxed) >= 5);

    section("an event that is due when the application is to go on");
    let (ours, other) = events::bind_loopback().expect("a channel to ourselves");
    events::set_handler(other, on_event);
    events::unmask(other);
    events::mask_upcalls();
    events::send(ours).expect("a channel of ours");
    let before = EVENTS.load(Ordering::Relaxed);
    shared_info::upcall_mask().store(0, Ordering::SeqCst);
    // The next way out of the hypervisor, whether to the kernel or to the application.
    let mut app = at(program::calls);
    to_system_call(&mut app);
    check_eq!(EVENTS.load(Ordering::Relaxed), before + 1);

    section("events that are masked wait for the kernel");
    events::mask_upcalls();
    events::send(ours).expect("a channel of ours");
    to_system_call(&mut app);
    check_eq!(EVENTS.load(Ordering::Relaxed), before + 1);
    events::unmask_upcalls();
    check_eq!(EVENTS.load(Ordering::Relaxed), before + 2);
    events::close(ours).expect("a channel of ours");
}
