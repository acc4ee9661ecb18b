//! Time for guests: the clock in their shared page, the tick, and the timer events they ask for.
//!
//! A domain that runs gets VIRQ_TIMER every 10 ms, when it is switched to, and when one of its timeouts has come (`set_timer_op`, and
//! `wall_timeout` and `domain_timeout` in its page: [`timers`](proxenos_core::timekeeping::timers)). One that waits gets only what it
//! asked for, by an alarm ([`proxenos_core::sched::Alarms`]), so an idle machine is quiet. One that could run but has to wait its turn gets
//! none: it will be told when it is switched to. Whenever the event is sent, the clock in the shared page is fresh.
//!
//! What a guest writes to its page is noticed when its timers are looked at: at its ticks, when it begins to wait, when any of
//! them fires, and when it sets the one that fires next by call. So a timeout may be noticed a tick late, and is exact from then on.
//!
//! The CPU's own timer is set to what comes first of these and of the scheduler's times ([`program`]), on the way back to a guest.

use super::{CpuLocal, Running};
use crate::cpu::percpu::Cpu;
use crate::time;
use proxenos_abi::Virq;
use proxenos_core::event;
use proxenos_core::timekeeping::timers::{Due, Timeouts, Timers};
use proxenos_core::timekeeping::{self, Moment};

/// A domain's timers. They belong to the CPU that runs it.
#[derive(Debug)]
pub struct Timer {
    timers: Timers,
    /// It has run before.
    began: bool,
}

impl Timer {
    /// The timers of a domain that has not run yet.
    pub const fn new() -> Self {
        Self { timers: Timers::new(), began: false }
    }
}

/// A domain's turn has begun, perhaps its first.
pub fn resume(run: &mut Running, now: u64) {
    run.timer.timers.resume(now);
    run.vcpu.timer_changed = false;
    if core::mem::replace(&mut run.timer.began, true) {
        // What it asked for and has come meanwhile is told by the same event.
        let _ = take_due(run, now);
        send(run);
    } else {
        write_clock(run);
    }
}

/// A domain's turn has ended: its virtual time stands still, and so do its ticks.
pub fn pause(run: &mut Running, now: u64) {
    run.timer.timers.pause(now);
}

/// When a domain that is to wait, or does, wants to be woken; `None`: by others only.
pub fn alarm_time(run: &Running) -> Option<u64> {
    run.timer.timers.next_alarm(run.vcpu.timer, timeouts(run))
}

/// The CPU's timer has fired, or the domain has changed what it wants, or the alarm of one that waits has rung: sends what is due
/// to it. The timer, or the alarm, is then to be set anew.
pub fn serve(run: &mut Running, now: u64) {
    time::tsc::refine(now);
    if take_due(run, now) == Due::Now {
        send(run);
    }
}

fn take_due(run: &mut Running, now: u64) -> Due {
    let timeouts = timeouts(run);
    run.timer.timers.take_due(now, &mut run.vcpu.timer, timeouts)
}

/// The domain has set its timer. The CPU's own need not be set anew if it fires before that anyway: it is then set to what
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
        wall_ns: time::date_at(now).0,
        domain_ns: run.timer.timers.domain_time(now),
    };
    timekeeping::write_moment(&run.host.hw, run.dom.shared_info, &moment);
}

/// Sets the CPU's timer to what comes next: for who runs, for those that wait, or the next turn.
pub fn program(local: &CpuLocal, run: Option<&Running>) {
    let own = run.and_then(|run| run.timer.timers.next(run.vcpu.timer, timeouts(run))).unwrap_or(u64::MAX);
    match own.min(local.turn_ends.get()).min(local.alarm.get()) {
        u64::MAX => time::cancel_deadline(),
        at => time::set_deadline(at),
    }
}
