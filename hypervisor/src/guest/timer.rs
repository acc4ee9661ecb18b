//! Time for guests: the clock in their shared page, the tick, and the timer events they ask for.
//!
//! A domain that runs gets VIRQ_TIMER every 10 ms, when it is switched to, and when one of its timeouts has come (`set_timer_op`, and
//! `wall_timeout` and `domain_timeout` in its page: [`timers`](proxenos_core::timekeeping::timers)). One that waits gets only what it
//! asked for, so an idle machine is quiet. Whenever the event is sent, the clock in the shared page is fresh.
//!
//! What a guest writes to its page is noticed when its timers are looked at: at its ticks, when it begins to wait, when any of
//! them fires, and when it sets the one that fires next by call. So a timeout may be noticed a tick late, and is exact from then on.

use super::Running;
use crate::cpu::percpu::Cpu;
use crate::time;
use proxenos_abi::Virq;
use proxenos_core::event;
use proxenos_core::timekeeping::timers::{Due, Timeouts, Timers};
use proxenos_core::timekeeping::{self, Moment};

/// A domain's timers. They belong to the CPU that runs it.
#[derive(Debug)]
pub struct Timer(Timers);

impl Timer {
    /// The timers of a domain that has not run yet.
    pub const fn new() -> Self {
        Self(Timers::new())
    }
}

/// A domain is to run for the first time.
pub fn start(run: &mut Running) {
    let now = time::now_ns();
    run.timer.0.resume(now);
    write_clock(run);
    program(run, now, timeouts(run));
}

/// The domain ceases to run: it waits, or others have the CPU. Its virtual time stands still, and so do its ticks.
pub fn pause(run: &mut Running) {
    let now = time::now_ns();
    run.timer.0.pause(now);
    look(run, now);
}

/// A domain that did not run does again.
pub fn resume(run: &mut Running) {
    let now = time::now_ns();
    run.timer.0.resume(now);
    // What it asked for and has come meanwhile is told by the same event.
    let timeouts = timeouts(run);
    let _ = run.timer.0.take_due(now, &mut run.vcpu.timer, timeouts);
    send(run);
    program(run, now, timeouts);
}

/// The CPU's timer has fired, or the domain has changed what it wants: sends what is due and sets the timer anew.
pub fn serve(run: &mut Running) {
    time::tsc::refine(time::now_ns());
    look(run, time::now_ns());
}

fn look(run: &mut Running, now: u64) {
    let timeouts = timeouts(run);
    if run.timer.0.take_due(now, &mut run.vcpu.timer, timeouts) == Due::Now {
        send(run);
    }
    program(run, now, timeouts);
}

/// The domain has set its timer. The CPU's own need not be set anew if it fires before that anyway: [`serve`] then sets it to what
/// comes next. (So one that is put off again and again costs an interrupt for each time that was once waited for, no more.)
#[inline]
pub fn defer(run: &mut Running, cpu: &Cpu) {
    if run.vcpu.timer.is_none_or(|at| at >= cpu.deadline()) {
        run.vcpu.timer_changed = false;
    }
}

/// What the domain asks for in its page.
fn timeouts(run: &Running) -> Timeouts {
    timekeeping::read_timeouts(&run.host.hw, run.dom.shared_info)
}

/// Sends VIRQ_TIMER, with a fresh clock.
fn send(run: &Running) {
    write_clock(run);
    event::raise_virq(&*run.dom, &run.host.hw, Virq::Timer);
}

fn write_clock(run: &Running) {
    // Both from one reading: guests carry the time on from there, and must not get ahead.
    let tsc = time::tsc::read();
    let now = time::tsc::to_ns(tsc);
    let moment = Moment {
        tsc: tsc.0,
        hz: time::tsc::rate().0,
        system_ns: now,
        wall_ns: time::wall_at_zero().map_or(0, |zero| zero.0) + now,
        domain_ns: run.timer.0.domain_time(now),
    };
    timekeeping::write_moment(&run.host.hw, run.dom.shared_info, &moment);
}

/// Sets the CPU's timer to what comes next.
fn program(run: &Running, now: u64, timeouts: Timeouts) {
    match run.timer.0.next(now, run.vcpu.timer, timeouts) {
        Some(at) => time::set_deadline(at),
        None => time::cancel_deadline(),
    }
}
