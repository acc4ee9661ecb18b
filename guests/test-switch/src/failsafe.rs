//! Segments that were taken from under a domain: they stay in the CPU until its turn ends, and cannot be loaded when
//! the next begins.

use crate::ends;
use crate::state::{self, Ldt};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::{GuestArch, Selector};
use proxenos_guest::arch::failsafe_count;
use proxenos_guest::test::section;
use proxenos_guest::{Arch, boot, check, check_eq, events, hypercall, shared_info, time};

static WORDS: [AtomicU32; 2] = [AtomicU32::new(1), AtomicU32::new(2)];

/// Domain 0, and another: the failsafe callback is told, once.
pub fn run() {
    proxenos_guest::init();
    let ldt = Ldt::install([WORDS[0].as_ptr(), WORDS[1].as_ptr()]);
    section("a segment that is there");
    ldt.load();
    // Somebody else always can run: the domain that waits to be let end.
    for _ in 0..3 {
        check_eq!(hypercall::sched_yield(), Ok(()));
    }
    check_eq!(ldt.read(), Some([1, 2]));
    check_eq!(failsafe_count(), 0);
    section("one that is not");
    events::mask_upcalls();
    ldt.load();
    ldt.set(0, 0);
    for _ in 0..3 {
        check_eq!(hypercall::sched_yield(), Ok(()));
    }
    check_eq!(failsafe_count(), 1, "failsafe callbacks");
    check_eq!(state::selectors(), [Selector::NULL; 2], "fs and gs, of which the callback makes no use");
    section("each data register");
    let flat = Arch::FLAT_GUESTOS_DS;
    for (which, name) in ["ds", "es", "fs", "gs"].into_iter().enumerate() {
        ldt.set(1, state::data_segment(core::ptr::null()));
        // SAFETY: the segment begins at 0.
        unsafe { state::load_data_selector(which, Selector(state::local(1))) };
        ldt.set(1, 0);
        let before = failsafe_count();
        check_eq!(state::data_selectors()[which], Selector(state::local(1)), "{name} stays while nobody else runs");
        for _ in 0..3 {
            check_eq!(hypercall::sched_yield(), Ok(()));
        }
        check_eq!(failsafe_count() - before, 1, "{name}: failsafe callbacks");
        check!(state::data_selectors()[which] != Selector(state::local(1)), "{name} is none any more");
        // SAFETY: the flat segment.
        unsafe { state::load_data_selector(which, flat) };
    }
    events::unmask_upcalls();
    match boot::is_initial_domain() {
        // The other takes turns until it is let end, so that the first has somebody to yield to.
        true => ends::dismiss(&[1, 2]),
        false => ends::take_leave(),
    }
}

/// Another domain: it has no callback.
pub fn unloadable() {
    shared_info::map().expect("the shared page can be mapped");
    while !shared_info::is_pending(ends::LEAVE) {
        let _ = hypercall::sched_yield();
    }
    let ldt = Ldt::install([WORDS[0].as_ptr(), WORDS[1].as_ptr()]);
    ldt.load();
    ldt.set(0, 0);
    // Nobody else may want the CPU: it waits, with no event pending, until its time comes. The first time it does not
    // come back.
    for _ in 0..3 {
        shared_info::pending_word(0).store(0, Ordering::SeqCst);
        shared_info::pending_selector().store(0, Ordering::SeqCst);
        shared_info::upcall_pending().store(0, Ordering::SeqCst);
        let _ = time::set_timer_in(1_000_000);
        let _ = hypercall::sched_block();
    }
}
