//! Domains that end or have to be stopped, beside those that go on. Domain 0 is told of each.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use proxenos_guest::abi::event_channel::EvtchnBindInterdomain;
use proxenos_guest::abi::{DomId, Errno, Port, Virq};
use proxenos_guest::shutdown::{Reason, shutdown};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, events, hypercall, shared_info, time};

/// The port of another domain that domain 0 lets it end by.
pub const LEAVE: Port = Port(9);

static ENDED: AtomicU32 = AtomicU32::new(0);
static TICKS: AtomicU32 = AtomicU32::new(0);
static MAY_LEAVE: AtomicBool = AtomicBool::new(false);

fn on_end(_: Port) {
    ENDED.store(ended() + 1, Ordering::Relaxed);
}

fn on_tick(_: Port) {
    TICKS.store(TICKS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn ended() -> u32 {
    ENDED.load(Ordering::Relaxed)
}

/// Domain 0 lets others end, one after the other, and is told of each.
pub fn dismiss(domains: &[u16]) {
    events::handle_virq(Virq::DomExc, on_end).expect("domain 0 may");
    check_eq!(ended(), 0, "domains that have ended");
    for (before, &domain) in (0..).zip(domains) {
        dismiss_next(domain, before);
    }
}

/// Domain 0 lets another end, when so many have.
pub fn dismiss_next(domain: u16, before: u32) {
    let request = EvtchnBindInterdomain { dom1: DomId::SELF, dom2: DomId(domain), port1: Port(0), port2: LEAVE };
    let bound = hypercall::event_channel_op(request).expect("domain 0 may");
    check_eq!(events::send(bound.port1), Ok(()));
    events::wait_until(|| ended() > before);
    check_eq!(ended(), before + 1, "domains that have ended");
}

/// Another domain waits until domain 0 lets it end.
pub fn take_leave() {
    listen();
    events::wait_until(may_leave);
}

/// From now on it hears of that.
pub fn listen() {
    events::set_handler(LEAVE, |_| MAY_LEAVE.store(true, Ordering::Relaxed));
    events::unmask(LEAVE);
}

/// Whether it has.
pub fn may_leave() -> bool {
    MAY_LEAVE.load(Ordering::Relaxed)
}

/// Domain 0: two others end.
pub fn run() {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    section("two others end");
    dismiss(&[1, 2]);
    section("and this one goes on");
    let (before, until) = (TICKS.load(Ordering::Relaxed), time::system_time() + 50_000_000);
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    events::wait_until(|| time::system_time() >= until && TICKS.load(Ordering::Relaxed) > before);
    check!(time::system_time() >= until);
    // Their channels stay theirs: who is dead can be sent to, and is not woken by it.
    let bound = events::bind_interdomain(DomId::SELF, DomId(1));
    check!(bound.is_ok(), "a channel to a domain that has ended: {bound:?}");
    if let Ok((port, _)) = bound {
        check_eq!(events::send(port), Ok(()));
    }
    check_eq!(hypercall::sched_yield(), Ok(()));
    check_eq!(events::bind_interdomain(DomId::SELF, DomId(9)), Err(Errno::ESRCH), "a domain that there is not");
}

/// Another domain: ends, for a reason of its own.
pub fn end() {
    proxenos_guest::init();
    take_leave();
    shutdown(Reason(5));
}

/// Another domain: has a fault that it cannot handle.
pub fn crash() {
    shared_info::map().expect("the shared page can be mapped");
    while !shared_info::is_pending(LEAVE) {
        core::hint::spin_loop();
    }
    // SAFETY: there is no trap table: the domain is at its end.
    unsafe { core::arch::asm!("ud2") };
}

/// Domain 0 waits while others compute: no tick is for it, and its own time stands still.
pub fn quiet() {
    const WAIT: u64 = 400_000_000;
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    section("a wait beside others that run");
    let (before, ticks) = (time::snapshot(), TICKS.load(Ordering::Relaxed));
    let until = time::system_time() + WAIT;
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    let mut wakeups = 0;
    events::wait_until(|| {
        wakeups += 1;
        time::system_time() >= until
    });
    let (after, came) = (time::snapshot(), TICKS.load(Ordering::Relaxed) - ticks);
    // Its timer, and the switches to it.
    check!(wakeups <= 4 && came <= 4, "{wakeups} wakeups, {came} ticks in {WAIT} ns");
    let (ran, passed) = (after.domain_time - before.domain_time, after.system_time - before.system_time);
    check!(passed >= WAIT - 20_000_000 && ran < WAIT / 20, "it ran {ran} of {passed} ns");
}
