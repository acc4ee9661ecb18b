//! Shares of the CPU: what each gets that computes without end, by its own account of the time that it has run.

use crate::{ends, number};
use proxenos_guest::test::section;
use proxenos_guest::{check, println, time};

/// From when to when everybody looks, in nanoseconds since the machine's boot: all have long been built then.
const FROM: u64 = 400_000_000;
const TO: u64 = 1_400_000_000;

/// Another domain: computes, and checks what share of the time it got.
pub fn share() {
    proxenos_guest::init();
    measure(number("percent"));
    ends::take_leave();
}

/// Domain 0 does the same: its weight is the usual one, 100, which makes 450 in all. It shares with domains of 50, 100 and 200.
pub fn run() {
    proxenos_guest::init();
    section("a share of the CPU");
    measure(22);
    ends::dismiss(&[1, 2, 3]);
}

fn measure(percent: u32) {
    let [from, to] = [FROM, TO].map(ran_at);
    let got = (to - from) * 1000 / (TO - FROM);
    println!("{}.{} % of the CPU, {percent} % expected", got / 10, got % 10);
    check!(got.abs_diff(u64::from(percent) * 10) <= 15, "{got} thousandths, {percent} hundredths expected");
}

/// Computes until a time comes: how long this domain has run until then.
fn ran_at(when: u64) -> u64 {
    loop {
        let snapshot = time::snapshot();
        if snapshot.system_time >= when {
            return snapshot.domain_time;
        }
    }
}
