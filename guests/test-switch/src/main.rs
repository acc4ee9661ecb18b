//! Several domains on one CPU: each gets its turn, hears of its events, and keeps what is its own.
//!
//! Domain 0 makes the test that its command line names (`test=`) and judges it; the others play a part in it (`role=`),
//! some of them with a judgement of their own.
#![no_std]
#![no_main]

mod attacks;
mod console;
mod disturb;
mod ends;
mod failsafe;
mod multicall;
mod open_tables;
mod relay;
mod shares;
mod state;
mod unprivileged;
mod witness;
mod yields;

use proxenos_guest::{StartInfo, boot, shutdown, test};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    match boot::option("test").or(boot::option("role")) {
        Some("ping-pong") => relay::ping_pong(),
        Some("round") => relay::round(),
        Some("relay") => relay::relay(),
        Some("witness") => witness::run(),
        Some("disturb") => disturb::run(),
        Some("failsafe") => failsafe::run(),
        Some("unloadable") => failsafe::unloadable(),
        Some("ends") => ends::run(),
        Some("end") => ends::end(),
        Some("crash") => ends::crash(),
        Some("shares") => shares::run(),
        Some("share") => shares::share(),
        Some("multicall") => multicall::run(),
        Some("console") if boot::is_initial_domain() => console::run(),
        Some("console") => console::refused(),
        Some("open-tables") if boot::is_initial_domain() => open_tables::run(),
        Some("open-tables") => open_tables::part(),
        Some("yields") if boot::is_initial_domain() => yields::run(),
        Some("yields") => yields::part(),
        Some("yields-watched") => yields::watch(),
        Some("bad-table") => open_tables::bad(),
        Some("quiet") => ends::quiet(),
        Some("bad-list") => attacks::bad_list(),
        Some("unprivileged") => unprivileged::run(),
        Some("attacked") => attacks::run(),
        Some("stuck") => attacks::stuck(),
        Some("storm") => attacks::storm(),
        Some("shut") => attacks::shut(),
        Some("callback-unmapped") => attacks::callback_unmapped(),
        _ => test::error("no such part"),
    }
}

/// A number on the command line.
fn number(key: &str) -> u32 {
    match boot::option(key).and_then(|text| text.parse().ok()) {
        Some(number) => number,
        None => shutdown::shutdown(shutdown::TEST_ERROR),
    }
}
