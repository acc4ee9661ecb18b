//! How far the clock drifts from the real-time clock, which counts by an oscillator of its own: below 100 parts in a
//! million, idle and loaded.
//!
//! The moment when the real-time clock's second changes lies between the last reading of the old one and the first of
//! the new; so a drift is known as an interval, and it is judged by the worse end. Time is counted in instructions
//! here, and the emulated clock with it: the same drift in every run.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::dom0_ops::Dom0Op;
use proxenos_guest::abi::dom0_ops::args::Iopl;
use proxenos_guest::abi::{DomId, Port, Virq};
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, boot, check, check_eq, events, hypercall, println, time};

proxenos_guest::test_guest!(main);

const NS_PER_SECOND: u64 = 1_000_000_000;
/// The most that is promised.
const LIMIT_PPM: i64 = 100;

static TICKS: AtomicU32 = AtomicU32::new(0);

fn on_tick(_: Port) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    // SAFETY: no memory is concerned.
    let asked = unsafe { hypercall::dom0_op(&mut Dom0Op::new(Iopl { domain: DomId::SELF, pad: 0, iopl: 1 })) };
    check_eq!(asked, Ok(0), "the right to ports");
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    // The clock may be mended in the first seconds.
    sleep_until(time::system_time() + 2 * NS_PER_SECOND);
    section("idle");
    judge(30, sleep_until);
    section("loaded");
    judge(2, work_until);
    events::mask(port);
}

fn judge(seconds: u64, pass: impl Fn(u64)) {
    let first = next_second();
    pass(first.1 + seconds * NS_PER_SECOND - 20_000_000);
    let second = next_second();
    // What the clock makes of so many seconds, at least and at most.
    let (least, most) = ((second.0 - first.1) as i64, (second.1 - first.0) as i64);
    let ppm = |ns: i64| (ns - (seconds * NS_PER_SECOND) as i64) / (seconds * 1000) as i64;
    let (low, high) = (ppm(least), ppm(most));
    println!("drift over {seconds} s: between {low} and {high} ppm");
    match boot::option("drift") {
        Some("below") => check!(low > -LIMIT_PPM && high < LIMIT_PPM, "between {low} and {high} ppm"),
        // A clock on purpose so wrong that it has to be seen.
        _ => check!(high < -LIMIT_PPM, "between {low} and {high} ppm: this should have been more"),
    };
}

/// System time right before and right after the real-time clock's next second begins, as nearly as it can be seen.
fn next_second() -> (u64, u64) {
    let start = seconds();
    let mut before = time::system_time();
    while seconds() == start {
        before = time::system_time();
    }
    (before, time::system_time())
}

/// The seconds register of the real-time clock.
fn seconds() -> u8 {
    let seconds: u8;
    // SAFETY: reads a register of the clock; the domain has the right to its ports.
    unsafe { asm!("out 0x70, al", "in al, 0x71", inout("al") 0u8 => seconds) };
    seconds
}

fn sleep_until(until: u64) {
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    events::wait_until(|| time::system_time() >= until);
}

/// Calls, timers and arithmetic.
fn work_until(until: u64) {
    let mut sum = 0u32;
    let mut refused = 0;
    while time::system_time() < until {
        for round in 0..1000u32 {
            sum = sum.wrapping_mul(31).wrapping_add(round);
            refused += u32::from(hypercall::xen_version().is_err());
        }
        refused += u32::from(time::set_timer_in(1_500_000).is_err());
    }
    check_eq!(refused, 0, "calls refused");
    check!(TICKS.load(Ordering::Relaxed) > 0, "ticks came, {sum} in the end");
}
