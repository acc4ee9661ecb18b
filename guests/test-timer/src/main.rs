//! Time: what the shared page says, the timer, and waiting.
//!
//! How long anything takes is not judged, only the order of events.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::{Port, Virq};
use proxenos_guest::arch::read_tsc;
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, check, check_eq, events, hypercall, shared_info, time};

proxenos_guest::test_guest!(main);

static TICKS: AtomicU32 = AtomicU32::new(0);
/// System time at the last tick.
static LAST: AtomicU64 = AtomicU64::new(0);

fn on_tick(_: Port) {
    TICKS.fetch_add(1, Ordering::Relaxed);
    LAST.store(time::system_time(), Ordering::Relaxed);
}

fn ticks() -> u32 {
    TICKS.load(Ordering::Relaxed)
}

/// Waits, without blocking, until some system time.
fn spin_until(system_time: u64) {
    while time::system_time() < system_time {
        core::hint::spin_loop();
    }
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    clocks();
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    past();
    future();
    many();
    cancelled();
    interrupting();
    refreshed();
    events::mask(port);
}

fn clocks() {
    section("clocks");
    let snapshot = time::snapshot();
    check!(snapshot.cpu_freq > 1_000_000, "{} Hz", snapshot.cpu_freq);
    check!(snapshot.tsc_timestamp <= read_tsc(), "the snapshot is not from the future");
    let mut last = time::system_time();
    let mut backwards = 0;
    for _ in 0..100_000 {
        let now = time::system_time();
        backwards += u32::from(now < last);
        last = now;
    }
    check_eq!(backwards, 0, "steps backwards of system time");
    let word = |offset| shared_info::word(offset).load(Ordering::Relaxed);
    check_eq!(word(SharedInfo::TIME_VERSION1), word(SharedInfo::TIME_VERSION2), "versions when nobody writes");
    // Wall clock and system time advance together: their difference is the moment of the boot.
    let boot = |snapshot: proxenos_guest::clock::TimeSnapshot| {
        (u64::from(snapshot.wc_sec) * 1_000_000 + u64::from(snapshot.wc_usec)).wrapping_sub(snapshot.system_time / 1000)
    };
    let first = boot(time::snapshot());
    spin_until(time::system_time() + 600_000_000);
    let second = boot(time::snapshot());
    check!(first.abs_diff(second) <= 2, "the boot was at {first} us, then at {second} us");
}

/// A time that has passed fires at once.
fn past() {
    section("a time in the past");
    for at in [1, time::system_time().saturating_sub(1_000_000_000).max(1), time::system_time()] {
        let before = ticks();
        check_eq!(hypercall::set_timer_op(at), Ok(()));
        events::wait_until(|| ticks() > before);
        check!(ticks() > before);
    }
}

/// A time to come fires when it has come, not before.
fn future() {
    section("a time to come");
    for delay in [1_000_000u64, 20_000_000, 100_000_000] {
        let before = ticks();
        let until = time::system_time() + delay;
        check_eq!(hypercall::set_timer_op(until), Ok(()));
        // The virtual interrupt also says that time was updated, so it may come before its time; then one waits on.
        events::wait_until(|| LAST.load(Ordering::Relaxed) >= until && ticks() > before);
        check!(time::system_time() >= until);
    }
}

fn many() {
    section("a hundred in a row");
    for _ in 0..100 {
        let until = time::system_time() + 500_000;
        check_eq!(hypercall::set_timer_op(until), Ok(()));
        events::wait_until(|| LAST.load(Ordering::Relaxed) >= until);
    }
    section("the last one counts");
    let soon = time::system_time() + 50_000_000;
    check_eq!(hypercall::set_timer_op(soon + 3_600_000_000_000), Ok(()));
    check_eq!(hypercall::set_timer_op(soon), Ok(()));
    events::wait_until(|| LAST.load(Ordering::Relaxed) >= soon);
    check!(time::system_time() >= soon);
}

/// What wakes us then is another timer: nobody else runs here.
fn cancelled() {
    section("cancelled");
    check_eq!(time::set_timer_in(3_600_000_000_000), Ok(()));
    check_eq!(time::cancel_timer(), Ok(()));
    check_eq!(hypercall::set_timer_op(time::system_time() + 5_000_000), Ok(()));
    check_eq!(time::cancel_timer(), Ok(()));
    check_eq!(hypercall::sched_yield(), Ok(()));
    check_eq!(time::set_timer_in(10_000_000), Ok(()));
    let before = ticks();
    events::wait_until(|| ticks() > before);
    check!(ticks() > before, "a timer can be set again");
}

/// The timer also reaches a guest that neither blocks nor calls.
fn interrupting() {
    section("a guest that does not call");
    let until = time::system_time() + 30_000_000;
    let before = ticks();
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    while ticks() == before {
        core::hint::spin_loop();
    }
    check!(ticks() > before, "interrupted");
    // With upcalls masked it has to wait.
    events::mask_upcalls();
    let before = ticks();
    let until = time::system_time() + 10_000_000;
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    spin_until(until);
    while shared_info::upcall_pending().load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    check_eq!(ticks(), before, "nothing is delivered while upcalls are masked");
    events::unmask_upcalls();
    check!(ticks() > before, "and then it is");
}

/// The time fields are written anew before 32 bits of the counter can overflow.
fn refreshed() {
    section("refreshed");
    let first = time::snapshot();
    let until = time::system_time() + 700_000_000;
    spin_until(until);
    let second = time::snapshot();
    check!(second.system_time > first.system_time, "the fields were updated within 700 ms");
    check!(second.tsc_timestamp > first.tsc_timestamp);
    check_eq!(first.cpu_freq, second.cpu_freq);
    let blocked = time::snapshot();
    let until = time::system_time() + 700_000_000;
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    events::wait_until(|| time::system_time() >= until);
    check!(time::snapshot().system_time > blocked.system_time, "and while the guest was blocked");
}
