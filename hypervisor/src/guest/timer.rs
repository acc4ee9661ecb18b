//! Time for guests: the clock in their shared page, the tick, and the timer events they ask for.
//!
//! A domain that runs gets VIRQ_TIMER every 10 ms, when it is switched to, and when one of its timeouts has come
//! (`set_timer_op`, and `wall_timeout` and `domain_timeout` in its page:
//! [`timers`](proxenos_core::timekeeping::timers)). One that waits gets only what it asked for, by an alarm
//! ([`proxenos_core::sched::Alarms`]), so an idle machine is quiet. One that could run but has to wait its turn gets
//! none: it will be told when it is switched to. Whenever the event is sent, the clock in the shared page is fresh.
//!
//! What a guest writes to its page is noticed when its timers are looked at: at its ticks, when it begins to wait, when
//! any of them fires, and when it sets the one that fires next by call. So a timeout may be noticed a tick late, and is
//! exact from then on.
//!
//! The CPU's own timer is set to what comes first of these and of the scheduler's times ([`program_for`]), on the way
//! back to a guest.

use super::{CpuLocal, Running};
use crate::cpu::percpu::Cpu;
use crate::time::tsc::{Hz, Tsc};
use crate::time::{self, Now};
use proxenos_abi::Virq;
use proxenos_core::addr::Mfn;
use proxenos_core::event;
use proxenos_core::timekeeping::timers::{Due, Timeouts, Timers};
use proxenos_core::timekeeping::{self, Moment, Second};

/// A domain's timers. They belong to the CPU that runs it.
#[derive(Debug)]
pub struct Timer {
    timers: Timers,
    /// The last second of the wall clock that it was told.
    second: Second,
    /// It has run before.
    began: bool,
}

impl Timer {
    /// The timers of a domain that has not run yet.
    pub const fn new() -> Self {
        Self { timers: Timers::new(), second: Second::new(), began: false }
    }
}

/// A domain's turn has begun, perhaps its first.
pub fn resume(run: &mut Running, now: &Now) {
    run.timer.timers.resume(now.ns);
    run.vcpu.timer_changed = false;
    if core::mem::replace(&mut run.timer.began, true) {
        // What it asked for and has come meanwhile is told by the same event.
        let _ = take_due(run, now.ns);
        send(run, now);
    } else {
        write_clock(run, now);
    }
}

/// A domain's turn has begun at once behind another's: [`resume`], and [`program_for`] behind it.
#[inline(always)]
pub fn resume_and_program(cpu: &Cpu, run: &mut Running, now: &Now) {
    // (Looked up once: nobody can say that what is written to it does not change it.)
    let page = run.dom.shared_info;
    let timeouts = timekeeping::read_timeouts(&run.host.hw, page);
    if run.timer.began
        && let Some(turn) = run.timer.timers.begin_plain_turn(now.ns, run.vcpu.timer, timeouts)
    {
        run.vcpu.timer_changed = false;
        write_clock_at(run, page, now, turn.domain_ns);
        event::raise_virq_at(&*run.dom, &run.host.hw, page, Virq::Timer);
        program_own(cpu, turn.next_tick, now);
    } else {
        resume_and_program_at_length(cpu, run, now.tsc, now.ns, now.rate);
    }
}

/// (The moment comes in registers: else it would lie on the stack of all who do not come here, too.)
#[cold]
#[inline(never)]
fn resume_and_program_at_length(cpu: &Cpu, run: &mut Running, tsc: Tsc, ns: u64, rate: Hz) {
    let now = Now { tsc, ns, rate };
    resume(run, &now);
    program_for(cpu, run, &now);
}

/// A domain's turn has ended: its virtual time stands still, and so do its ticks.
#[inline]
pub fn pause(run: &mut Running, now: u64) {
    run.timer.timers.pause(now);
}

/// When a domain that is to wait, or does, wants to be woken; `None`: by others only.
pub fn alarm_time(run: &Running) -> Option<u64> {
    run.timer.timers.next_alarm(run.vcpu.timer, timeouts(run))
}

/// The CPU's timer has fired, or the domain has changed what it wants, or the alarm of one that waits has rung: sends
/// what is due to it. The timer, or the alarm, is then to be set anew.
pub fn serve(run: &mut Running, now: &Now) {
    time::tsc::refine(now.ns);
    if take_due(run, now.ns) == Due::Now {
        send(run, now);
    }
}

fn take_due(run: &mut Running, now: u64) -> Due {
    let timeouts = timeouts(run);
    run.timer.timers.take_due(now, &mut run.vcpu.timer, timeouts)
}

/// The domain has set its timer. The CPU's own need not be set anew if it fires before that anyway: it is then set to
/// what comes next. (So one that is put off again and again costs an interrupt for each time that was once waited for,
/// no more.)
#[inline]
pub fn defer(run: &mut Running, cpu: &Cpu) {
    if run.vcpu.timer.is_none_or(|at| at >= cpu.deadline()) {
        run.vcpu.timer_changed = false;
    }
}

/// What the domain asks for in its page.
#[inline]
fn timeouts(run: &Running) -> Timeouts {
    timekeeping::read_timeouts(&run.host.hw, run.dom.shared_info)
}

/// Sends VIRQ_TIMER, with a fresh clock.
#[inline]
fn send(run: &mut Running, now: &Now) {
    write_clock(run, now);
    event::raise_virq(&*run.dom, &run.host.hw, Virq::Timer);
}

/// All from one reading: guests carry the time on from there, and must not get ahead.
fn write_clock(run: &mut Running, now: &Now) {
    let domain_ns = run.timer.timers.domain_time(now.ns);
    write_clock_at(run, run.dom.shared_info, now, domain_ns);
}

/// The same, where it is known how long the domain has run.
#[inline(always)]
fn write_clock_at(run: &mut Running, page: Mfn, now: &Now, domain_ns: u64) {
    let moment = Moment {
        tsc: now.tsc.0,
        hz: now.rate.0,
        system_ns: now.ns,
        wall: run.timer.second.wall_clock(time::date_at_zero(), now.ns),
        domain_ns,
    };
    timekeeping::write_moment(&run.host.hw, page, &moment);
}

/// Sets the CPU's timer to what comes next: for who runs, for those that wait, or the next turn.
///
/// One that is armed for an earlier time is left alone: it interrupts once in vain, and is then set to what comes next.
/// So domains that change places many times a tick do not arm it each time.
pub fn program_for(cpu: &Cpu, run: &Running, now: &Now) {
    program_own(cpu, run.timer.timers.next(run.vcpu.timer, timeouts(run)).unwrap_or(u64::MAX), now);
}

/// The same, where it is known what comes next for who runs.
#[inline(always)]
fn program_own(cpu: &Cpu, own: u64, now: &Now) {
    let (turn_ends, alarm, armed) = (cpu.local.turn_ends.get(), cpu.local.alarm.get(), cpu.deadline());
    if !(now.ns < armed && armed <= own && armed <= turn_ends && armed <= alarm) {
        set(own.min(turn_ends).min(alarm));
    }
}

/// The same where nobody runs: exactly, so that an idle CPU is woken for nothing.
pub fn program_for_nobody(local: &CpuLocal) {
    set(local.turn_ends.get().min(local.alarm.get()));
}

#[cold]
#[inline(never)]
fn set(at: u64) {
    match at {
        u64::MAX => time::cancel_deadline(),
        at => time::set_deadline(at),
    }
}
