//! The short way of a yield: the CPU goes to the domain that is next in the queue, where nothing else is due.
//!
//! It is a special case of the long way (`attend` and `change` in [`super`]), made of the same parts, and leaves out what has nothing to do
//! there: no interrupt left anything, no alarm has come, the domain is neither at its end nor about to wait, its timer is as it was,
//! nobody has been woken or told of, nothing is recorded, and the queue has a short way of its own
//! ([`RunQueue::hand_over`](proxenos_core::sched::RunQueue::hand_over)). Otherwise nothing has been changed, but that no page table of the
//! domain's is open any more, and the long way begins anew.
//!
//! No lock but those of its parts, one after another as there.

use super::switch::{self, Loaded};
use super::{Running, sched, timer, trace};
use crate::cpu::entry::TrapFrame;
use crate::cpu::percpu::Cpu;
use crate::time;
use proxenos_core::paging::Pager;

/// The domain that runs here yields. Mostly this does not return: another goes on, with what was saved of it. Else it returns who runs,
/// with its frame in place: another, for which there is more to do, or the same, which still wants to give up the CPU.
///
/// No reference to the domain that ran is used any more if another runs.
#[inline(always)]
pub fn attempt(cpu: &'static Cpu, run: &'static mut Running, frame: &mut TrapFrame) -> &'static mut Running {
    let local = &cpu.local;
    if cpu.has_pending() || run.vcpu.timer_changed || trace::is_on() {
        return run;
    }
    let now = time::now();
    if local.alarm.get() <= now.ns {
        return run;
    }
    // What is found in a table that is closed may be the domain's end.
    drop(Pager::new(run.host, &run.dom).lock());
    if !run.dom.run_state().is_empty() {
        return run;
    }
    let Some(turn) = sched::hand_over(cpu, now.ns) else { return run };
    run.vcpu.reschedule = false;
    switch::save(local, run, frame);
    timer::pause(run, now.ns);
    // SAFETY: the caller's reference has ended.
    let (run, old) = unsafe { local.exchange(turn.next) };
    let loaded = switch::load_all_but_frame(cpu, run);
    if let Some(old) = old {
        turn.seat.put(old);
    }
    timer::resume_and_program(cpu, run, &now);
    // As at the end of `attend` and in `leave`.
    if loaded == Loaded::All && !cpu.has_pending() && run.dom.run_state().is_empty() && !run.upcall_is_due() {
        // SAFETY: the domain's tables are loaded, validated, and its frame is that of a guest when it was last interrupted. Nothing that is
        // alive here or in the entry needs to be dropped: whoever ran before has been parked.
        unsafe { switch::resume_saved(run, frame) }
    }
    switch::load_frame(run, frame, loaded);
    run
}
