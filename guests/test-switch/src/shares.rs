//! Shares of the CPU: what each gets that computes without end, by its own account of the time that it has run.

use crate::{ends, number};
use proxenos_guest::clock::TimeSnapshot;
use proxenos_guest::test::section;
use proxenos_guest::{boot, check, check_eq, hypercall, println, time};

/// From when to when everybody looks, in nanoseconds since the machine's boot: all have long been built then.
const FROM: u64 = 800_000_000;
const TO: u64 = 2_000_000_000;
/// How long everybody computes on then.
const AFTERWARDS: u64 = 100_000_000;
/// How far ahead a timer is, in nanoseconds.
const SOON: u64 = 200_000;

/// Another domain: computes, and checks what share of the time it got.
pub fn share() {
    proxenos_guest::init();
    measure();
    ends::take_leave();
}

/// Domain 0 does the same, beside `others=`.
pub fn run() {
    proxenos_guest::init();
    section("a share of the CPU");
    measure();
    for (before, domain) in (1..=number("others") as u16).enumerate() {
        if before == 0 {
            ends::dismiss(&[domain]);
        } else {
            ends::dismiss_next(domain, before as u32);
        }
    }
}

/// What is expected is a share, or one at least, in hundredths: `percent=`, `least=`.
fn measure() {
    // All go on for a while after that: nobody's share is to be looked at while others are at their ends.
    let [from, to, _] = [FROM, TO, TO + AFTERWARDS].map(look_at);
    let (ran, passed) = (to.domain_time - from.domain_time, (to.system_time - from.system_time).max(1));
    let got = ran * 1000 / passed;
    println!(
        "{}.{} % of the CPU, from {} to {} us",
        got / 10,
        got % 10,
        from.system_time / 1000,
        to.system_time / 1000
    );
    if boot::option("least").is_some() {
        let least = number("least");
        // Where a period begins and ends at the edges of what is looked at, a slice is missing at the most.
        check!(got + 10 >= u64::from(least) * 10, "{got} thousandths, at least {least} hundredths expected");
    } else {
        let percent = number("percent");
        check!(got.abs_diff(u64::from(percent) * 10) <= 15, "{got} thousandths, {percent} hundredths expected");
    }
}

/// Computes until a time comes: the clock as it then is.
///
/// Where instructions are counted, QEMU runs one CPU after the other, each until the next timer of any. So that none of
/// them hears of its own too late, there is always a timer soon.
fn look_at(when: u64) -> TimeSnapshot {
    let mut soon = 0;
    loop {
        let snapshot = time::snapshot();
        if snapshot.system_time >= when {
            return snapshot;
        }
        let now = time::system_time();
        if now >= soon {
            soon = now + SOON;
            check_eq!(hypercall::set_timer_op(soon), Ok(()));
        }
    }
}
