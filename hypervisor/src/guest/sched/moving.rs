//! A domain that goes to another CPU (`DOM0_PINCPUDOMAIN`), and parameters that change under a CPU's feet.
//!
//! What is moved is parked, and not the one that its CPU has picked; one that runs is held until it is. Under the locks
//! of both CPUs' places it leaves one queue for the other with its alarm, and under those of both queues one seat for
//! the other, so neither CPU meets half of it.
//!
//! No wakeup is lost on the way. Whoever changes its run state does so by an atomic exchange, and reads where it is
//! behind that; whoever moves it stores where it is, and notes it at the new CPU by another. If the first still saw the
//! old place, its exchange came before the second's, and the new CPU, which looks at the state once it has found the
//! note, sees it. What was noted at the old place is nobody's, or somebody else's, who is looked at once too often.

use super::{Places, Scheduling, now, ring, scheduling, told};
use crate::guest::sched::reach::attempt;
use crate::guest::timer;
use proxenos_core::control::NotMoved;
use proxenos_core::domain::{Domain, News, RunState};
use proxenos_core::sched::{CpuId, Home, SchedError, Schedulers, Time};

/// The queues.
pub fn schedulers() -> &'static Schedulers {
    &scheduling().schedulers
}

/// Has a CPU choose anew who runs, whoever that is when it looks.
pub fn choose_again(cpu: CpuId) {
    scheduling().of(cpu).woken.ask();
    ring(cpu);
}

/// Moves a domain that is not the caller's.
pub fn migrate(dom: &Domain, to: CpuId) -> Result<(), NotMoved> {
    if to.0 >= schedulers().cpus() {
        return Err(NotMoved::Refused(SchedError::NoSuchCpu));
    }
    if let Some(result) = try_to_move(dom, to) {
        return result;
    }
    dom.hold();
    let result = attempt(|| try_to_move(dom, to));
    dom.let_go();
    result.unwrap_or(Err(NotMoved::Running))
}

/// Moves it, unless it runs or was picked to.
fn try_to_move(dom: &Domain, to: CpuId) -> Option<Result<(), NotMoved>> {
    let all = scheduling();
    let Some(home) = dom.home() else { return Some(Err(NotMoved::Nowhere)) };
    if home.cpu == to {
        return Some(Ok(()));
    }
    // Of two CPUs' places the lower number's first.
    let moved = if home.cpu < to {
        let mut from = all.of(home.cpu).places.lock();
        change_places(all, dom, home, &mut from, to, &mut all.of(to).places.lock())
    } else {
        let mut target = all.of(to).places.lock();
        change_places(all, dom, home, &mut all.of(home.cpu).places.lock(), to, &mut target)
    };
    if moved == Some(Ok(())) {
        told(dom, News::RunState);
        choose_again(to);
    }
    moved
}

fn change_places(
    all: &Scheduling,
    dom: &Domain,
    home: Home,
    from: &mut Places,
    to: CpuId,
    target: &mut Places,
) -> Option<Result<(), NotMoved>> {
    // Its turn does not begin meanwhile. (Whoever else would be there has its place by now, and it another.)
    let held = all.seat(home).hold().filter(|held| core::ptr::eq(&*held.dom, dom))?;
    let alarm = if held.dom.run_state().contains(RunState::BLOCKED) { timer::alarm_time(&held) } else { None };
    let mut held = Some(held);
    // Before either CPU can pick it.
    let moved = all.schedulers.move_to(home, to, now(), |new| {
        target.alarms.reserve(new.slot)?;
        if let Some(held) = held.take() {
            all.seat(new).put(held.take());
        }
        dom.set_home(new, told);
        Ok(())
    });
    let new = match moved {
        // It has been picked, and is taken out of its seat as soon as we let go.
        Err(SchedError::StillRuns) => return None,
        Err(error) => return Some(Err(NotMoved::Refused(error))),
        Ok((new, _)) => new,
    };
    from.taken -= 1;
    from.alarms.cancel(home.slot);
    target.taken += 1;
    if let Some(at) = alarm {
        target.alarms.set(new.slot, Time(at));
    }
    Some(Ok(()))
}
