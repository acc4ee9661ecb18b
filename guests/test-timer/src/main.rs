//! Time: what the shared page says, the timer, the timeouts of the page, and waiting.
//!
//! How long anything takes is not judged, only the order of events; but in the run `exact`, where time is counted in
//! instructions. In the run `idle` the machine sleeps, and the hypervisor says how often it was woken.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::{Port, Virq};
use proxenos_guest::arch::read_tsc;
use proxenos_guest::test::section;
use proxenos_guest::time::Timeout;
use proxenos_guest::{StartInfo, boot, check, check_eq, events, hypercall, shared_info, time};

proxenos_guest::test_guest!(main);

static TICKS: AtomicU32 = AtomicU32::new(0);
/// System time at the last tick.
static LAST: AtomicU64 = AtomicU64::new(0);
/// What the page said at the last events: system time and virtual time.
static SEEN: [[AtomicU64; 2]; 64] = [const { [const { AtomicU64::new(0) }; 2] }; 64];

fn on_tick(_: Port) {
    let count = TICKS.fetch_add(1, Ordering::Relaxed);
    let snapshot = time::snapshot();
    let [system, domain] = &SEEN[count as usize % SEEN.len()];
    system.store(snapshot.system_time, Ordering::Relaxed);
    domain.store(snapshot.domain_time, Ordering::Relaxed);
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
    match boot::option("part") {
        Some("idle") => return idle(),
        Some("exact") => return exact(),
        _ => {}
    }
    clocks();
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    past();
    future();
    many();
    cancelled();
    interrupting();
    refreshed();
    virtual_time();
    timeouts();
    events::mask(port);
}

/// Virtual time advances with system time while the domain runs, and stands still while it waits.
fn virtual_time() {
    section("virtual time");
    let first = time::snapshot();
    check!(first.domain_time > 0 && first.domain_time <= first.system_time, "{first:?}");
    spin_until(first.system_time + 50_000_000);
    let second = time::snapshot();
    check!(second.system_time > first.system_time);
    check_eq!(second.domain_time - first.domain_time, second.system_time - first.system_time, "while it runs");
    let waits = || {
        let first = time::snapshot();
        let until = time::system_time() + 100_000_000;
        check_eq!(hypercall::set_timer_op(until), Ok(()));
        events::wait_until(|| LAST.load(Ordering::Relaxed) >= until);
        let second = time::snapshot();
        check!(second.domain_time >= first.domain_time);
        (second.system_time - first.system_time).saturating_sub(second.domain_time - first.domain_time)
    };
    // Whoever runs us may keep us from going to sleep in time.
    check!((0..10).any(|_| waits() >= 50_000_000), "it stands still while the domain waits");
}

/// Waits for some system time by the timer, and tells how often the domain was woken till then.
fn wakeups_until(until: u64) -> u32 {
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    let mut wakeups = 0;
    events::wait_until(|| {
        wakeups += 1;
        time::system_time() >= until
    });
    wakeups
}

fn timeouts() {
    section("wall_timeout");
    check_eq!(time::cancel_timer(), Ok(()));
    let until = time::system_time() + 20_000_000;
    time::set_timeout(Timeout::System, until);
    // Nothing else wakes us.
    events::wait_until(|| LAST.load(Ordering::Relaxed) >= until);
    check!(time::system_time() >= until);
    for past in [1, until, time::system_time()] {
        let before = ticks();
        time::set_timeout(Timeout::System, past);
        events::wait_until(|| ticks() > before);
        check!(ticks() > before, "one in the past fires at once");
        let wakeups = wakeups_until(time::system_time() + 100_000_000);
        check!(wakeups < 10, "and once: {wakeups} wakeups");
    }
    time::set_timeout(Timeout::System, time::system_time() + 5_000_000);
    time::set_timeout(Timeout::System, 0);
    let wakeups = wakeups_until(time::system_time() + 50_000_000);
    check!(wakeups < 10, "taken back: {wakeups} wakeups");

    section("domain_timeout");
    let until = time::domain_time() + 60_000_000;
    time::set_timeout(Timeout::Domain, until);
    let wakeups = wakeups_until(time::system_time() + 200_000_000);
    check!(wakeups < 10, "it does not come while the domain waits: {wakeups} wakeups");
    let before = ticks();
    while time::domain_time() < until || ticks() == before {
        core::hint::spin_loop();
    }
    check!(ticks() > before, "and comes when the domain has run");
    let wakeups = wakeups_until(time::system_time() + 100_000_000);
    check!(wakeups < 10, "once: {wakeups} wakeups");
    time::set_timeout(Timeout::Domain, 0);
}

/// Timeouts between two ticks: at their time, and not before. An instruction is a nanosecond here.
fn exact() {
    section("exactly");
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    const LATE: u64 = 200_000;
    for which in [Timeout::System, Timeout::Domain, Timeout::System, Timeout::Domain] {
        let before = ticks();
        while ticks() == before {
            core::hint::spin_loop();
        }
        // Ticks come ten, twenty and thirty milliseconds from here.
        let now = time::snapshot();
        let (column, target) = match which {
            Timeout::System => (0, now.system_time + 25_000_000),
            Timeout::Domain => (1, now.domain_time + 25_000_000),
        };
        time::set_timeout(which, target);
        spin_until(now.system_time + 40_000_000);
        let events = SEEN.iter().map(|seen| seen[column].load(Ordering::Relaxed));
        let between = events.filter(|at| (target - 4_000_000..target + 4_000_000).contains(at));
        let (mut count, mut first) = (0, 0);
        between.for_each(|at| (count, first) = (count + 1, at));
        check_eq!(count, 1, "events by {which:?}");
        check!((target..target + LATE).contains(&first), "{which:?}: {first} for {target}");
    }
    section("ticks");
    let now = time::snapshot().system_time;
    let before = ticks();
    spin_until(now + 200_000_000);
    check!((19..=21).contains(&(ticks() - before)), "{} in 200 ms", ticks() - before);
    section("a wait");
    let until = time::system_time() + 123_456_789;
    let wakeups = wakeups_until(until);
    check!(wakeups <= 2, "{wakeups} wakeups");
    check!(time::system_time() < until + LATE);
    events::mask(port);
}

/// Nothing happens for five minutes.
fn idle() {
    section("idle");
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    let wakeups = wakeups_until(time::system_time() + 300_000_000_000);
    check!(wakeups <= 3, "{wakeups} wakeups");
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
    // The rate may have been measured better meanwhile: by how much depends on how busy an emulator's computer was at
    // boot, so how well the clocks agree is `test-drift`'s to judge.
    check!(first.cpu_freq.abs_diff(second.cpu_freq) < first.cpu_freq / 16, "{first:?} {second:?}");
    let blocked = time::snapshot();
    let until = time::system_time() + 700_000_000;
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    events::wait_until(|| time::system_time() >= until);
    check!(time::snapshot().system_time > blocked.system_time, "and while the guest was blocked");
}
