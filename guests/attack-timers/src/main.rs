//! Timers nobody should want: in the past, at the end of time, by the thousand; timeouts torn in halves; a shared page
//! full of wrong times. The guest must go on as if nothing were, and so must its host.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::{Port, Virq};
use proxenos_guest::test::section;
use proxenos_guest::time::Timeout;
use proxenos_guest::{StartInfo, check, check_eq, events, hypercall, shared_info, time};

proxenos_guest::test_guest!(main);

/// The first and the last times, where signs change, and where halves do.
const EDGES: [u64; 13] = [
    0,
    1,
    2,
    u32::MAX as u64,
    1 << 32,
    (1 << 62) - 1,
    i64::MAX as u64 - 1,
    i64::MAX as u64,
    1 << 63,
    (1 << 63) + 1,
    u64::MAX - 10_000_000,
    u64::MAX - 1,
    u64::MAX,
];

static TICKS: AtomicU32 = AtomicU32::new(0);

fn on_tick(_: Port) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    edges();
    storm();
    torn();
    scribbled();
    events::mask(port);
}

/// A wait for a time that is near ends then, whatever was asked for besides, and without a storm of events.
fn still_works(what: &str, value: u64) {
    let until = time::system_time() + 2_000_000;
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    let mut wakeups = 0;
    events::wait_until(|| {
        wakeups += 1;
        time::system_time() >= until
    });
    check!(wakeups < 10, "{what} {value:#x}: {wakeups} wakeups");
}

fn edges() {
    section("the first and the last times");
    for at in EDGES {
        check_eq!(hypercall::set_timer_op(at), Ok(()), "{at:#x}");
        check_eq!(hypercall::sched_yield(), Ok(()));
        // Nothing else could wake us from this but the time in the page.
        let until = time::system_time() + 2_000_000;
        time::set_timeout(Timeout::System, until);
        events::wait_until(|| time::system_time() >= until);
        time::set_timeout(Timeout::System, 0);
        still_works("set_timer_op", at);
    }
    for system in EDGES {
        for domain in EDGES {
            time::set_timeout(Timeout::System, system);
            time::set_timeout(Timeout::Domain, domain);
            still_works("timeouts", system ^ domain);
        }
    }
    time::set_timeout(Timeout::System, 0);
    time::set_timeout(Timeout::Domain, 0);
}

/// Thousands of times that have passed, with upcalls on and off.
fn storm() {
    section("a storm");
    let before = TICKS.load(Ordering::Relaxed);
    let mut refused = 0;
    for count in 0..20_000u64 {
        refused += u32::from(hypercall::set_timer_op(1 + count % 7).is_err());
    }
    check!(TICKS.load(Ordering::Relaxed) > before);
    events::without_upcalls(|| {
        for _ in 0..20_000 {
            refused += u32::from(hypercall::set_timer_op(1).is_err());
            time::set_timeout(Timeout::System, 1);
            time::set_timeout(Timeout::System, 2);
        }
    });
    check_eq!(refused, 0);
    time::set_timeout(Timeout::System, 0);
    still_works("after a storm", 0);
}

/// Timeouts that change all the time while the hypervisor looks.
fn torn() {
    section("torn timeouts");
    let until = time::system_time() + 150_000_000;
    let mut value = 1u64;
    while time::system_time() < until {
        value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        time::set_timeout(Timeout::System, value);
        time::set_timeout(Timeout::Domain, value.rotate_left(31));
    }
    still_works("torn", value);
    time::set_timeout(Timeout::System, 0);
    time::set_timeout(Timeout::Domain, 0);
}

/// All fields are the hypervisor's to write: what the guest puts there is gone with the next update, and the versions
/// agree.
fn scribbled() {
    section("scribbles over the time");
    for pattern in [0, u32::MAX, 0x5555_5555, 0x8000_0000] {
        let earlier = time::system_time();
        events::without_upcalls(|| {
            for offset in (SharedInfo::CPU_FREQ..SharedInfo::WALL_TIMEOUT).step_by(4) {
                shared_info::word(offset).store(pattern, Ordering::Relaxed);
            }
        });
        // A time that has passed: the clock is written with the event.
        check_eq!(hypercall::set_timer_op(1), Ok(()));
        let word = |offset| shared_info::word(offset).load(Ordering::Relaxed);
        check_eq!(word(SharedInfo::TIME_VERSION1), word(SharedInfo::TIME_VERSION2), "versions over {pattern:#x}");
        let now = time::snapshot();
        check!(now.cpu_freq > 1_000_000 && now.cpu_freq < 100_000_000_000, "{now:?}");
        check!(now.system_time >= earlier && now.system_time < earlier + 1_000_000_000_000, "{now:?}");
        check!(now.domain_time <= now.system_time, "{now:?}");
        still_works("scribble", pattern.into());
    }
}
