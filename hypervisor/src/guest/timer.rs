//! Time for guests: the clock in their shared page, the tick, and the timer event they ask for.
//!
//! A domain that runs gets VIRQ_TIMER every 10 ms, when it is switched to, and at the time it has set (`set_timer_op`). One
//! that waits gets only the last of these, by an alarm ([`proxenos_core::sched::Alarms`]), so an idle machine is quiet. One that
//! could run but has to wait its turn gets none: it will be told when it is switched to. Whenever the event is sent, the clock in
//! the shared page is fresh.
//!
//! The CPU's own timer is set to what comes first of these and of the scheduler's times ([`program`]), on the way back to a guest.

use super::{CpuLocal, Running};
use crate::cpu::percpu::Cpu;
use crate::time;
use proxenos_abi::Virq;
use proxenos_core::event;
use proxenos_core::timekeeping::{self, Moment};

/// Time between two ticks of a domain that runs.
const TICK_NS: u64 = 10_000_000;

/// A domain's timers on the CPU that runs it.
#[derive(Debug)]
pub struct Timer {
    /// System time of the next tick.
    next_tick: u64,
    /// Whether the domain runs.
    state: Guest,
    /// System time since when it has been running, if it runs.
    running_since: u64,
    /// What it had run before, in nanoseconds.
    ran_before: u64,
    /// It has run before.
    began: bool,
}

impl Timer {
    /// The timers of a domain that has not run yet.
    pub const fn new() -> Self {
        Self { next_tick: 0, state: Guest::Waits, running_since: 0, ran_before: 0, began: false }
    }
}

/// Whether a domain uses its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Guest {
    /// It does.
    Runs,
    /// It waits for an event.
    Waits,
}

/// A domain's turn has begun, perhaps its first.
pub fn resume(run: &mut Running, now: u64) {
    run.timer.state = Guest::Runs;
    run.timer.running_since = now;
    run.timer.next_tick = now + TICK_NS;
    run.vcpu.timer_changed = false;
    if core::mem::replace(&mut run.timer.began, true) {
        if run.vcpu.timer.is_some_and(|at| at <= now) {
            run.vcpu.timer = None;
        }
        send(run, now);
    } else {
        timekeeping::write_frequency(&run.host.hw, run.dom.shared_info, time::tsc::rate().0);
        write_clock(run, now);
    }
}

/// A domain's turn has ended: its virtual time stands still, and so do its ticks.
pub fn pause(run: &mut Running, now: u64) {
    run.timer.ran_before += now - run.timer.running_since;
    run.timer.state = Guest::Waits;
}

/// The alarm of a domain that waits has rung: its time has come.
pub fn alarm(run: &mut Running, now: u64) {
    run.vcpu.timer = None;
    send(run, now);
}

/// The CPU's timer has fired, or the domain has changed what it wants: sends what is due to it. The timer is then to be set anew.
pub fn serve(run: &mut Running, now: u64) {
    let timeout = run.vcpu.timer.is_some_and(|at| at <= now);
    if timeout {
        run.vcpu.timer = None;
    }
    let tick = run.timer.state == Guest::Runs && run.timer.next_tick <= now;
    if tick {
        // Ticks keep their rhythm; those that were missed are not made up for.
        let missed = (now - run.timer.next_tick) / TICK_NS;
        run.timer.next_tick += (missed + 1) * TICK_NS;
    }
    if timeout || tick {
        send(run, now);
    }
}

/// The domain has set its timer. The CPU's own need not be set anew if it fires before that anyway: it is then set to what
/// comes next. (So one that is put off again and again costs an interrupt for each time that was once waited for, no more.)
#[inline]
pub fn defer(run: &mut Running, cpu: &Cpu) {
    if run.vcpu.timer.is_none_or(|at| at >= cpu.deadline()) {
        run.vcpu.timer_changed = false;
    }
}

/// Sends VIRQ_TIMER, with a fresh clock.
fn send(run: &mut Running, now: u64) {
    write_clock(run, now);
    event::raise_virq(&*run.dom, &run.host.hw, Virq::Timer);
}

fn write_clock(run: &Running, now: u64) {
    let this_turn = match run.timer.state {
        Guest::Runs => now - run.timer.running_since,
        Guest::Waits => 0,
    };
    let moment = Moment {
        tsc: time::tsc::from_ns(now).0,
        system_ns: now,
        wall_ns: time::wall_at_zero().map_or(0, |zero| zero.0) + now,
        domain_ns: run.timer.ran_before + this_turn,
    };
    timekeeping::write_moment(&run.host.hw, run.dom.shared_info, &moment);
}

/// Sets the CPU's timer to what comes next: for who runs, for those that wait, or the next turn.
pub fn program(local: &CpuLocal, run: Option<&Running>) {
    let own = run.map_or(u64::MAX, |run| run.timer.next_tick.min(run.vcpu.timer.unwrap_or(u64::MAX)));
    match own.min(local.turn_ends.get()).min(local.alarm.get()) {
        u64::MAX => time::cancel_deadline(),
        at => time::set_deadline(at),
    }
}
