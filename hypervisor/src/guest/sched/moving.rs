//! A domain that goes to another CPU (`DOM0_PINCPUDOMAIN`), and parameters that change under a CPU's feet.
//!
//! What is moved is parked, and not the one that its CPU has picked; one that runs is held until it is. Under the locks of both CPUs' seats it
//! leaves one queue for the other with its seat and its alarm, so neither CPU meets half of it: they look for seats under those
//! locks.
//!
//! No wakeup is lost on the way. Whoever changes its run state does so by an atomic exchange, and reads where it is behind that; whoever
//! moves it stores where it is, and notes it at the new CPU by another. If the first still saw the old place, its exchange came
//! before the second's, and the new CPU, which looks at the state once it has found the note, sees it. What was noted at the old place is
//! nobody's, or somebody else's, who is looked at once too often.

use super::{Scheduling, Seats, now, ring, scheduling, told};
use crate::guest::sched::reach::attempt;
use crate::guest::timer;
use proxenos_core::control::NotMoved;
use proxenos_core::domain::{Domain, News, RunState};
use proxenos_core::sched::{CpuId, Home, MAX_VCPUS, SchedError, Schedulers, Time};

/// The queues.
pub fn schedulers() -> &'static Schedulers {
    &scheduling().schedulers
}

/// Has a CPU choose anew who runs.
pub fn choose_again(cpu: CpuId) {
    let of = scheduling().of(cpu);
    // To be noted while one runs says so (`super::wake`); one that idles chooses whenever it is told of anything.
    if let Some(home) = Home::from_bits(of.runs.load(core::sync::atomic::Ordering::SeqCst)) {
        of.woken.add(home.slot);
    }
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
    // Of two CPUs' seats the lower number's first.
    let moved = if home.cpu < to {
        let mut from = all.of(home.cpu).seats.lock();
        change_seats(all, dom, home, &mut from, to, &mut all.of(to).seats.lock())
    } else {
        let mut target = all.of(to).seats.lock();
        change_seats(all, dom, home, &mut all.of(home.cpu).seats.lock(), to, &mut target)
    };
    if moved == Some(Ok(())) {
        told(dom, News::RunState);
        choose_again(to);
    }
    moved
}

fn change_seats(
    all: &Scheduling,
    dom: &Domain,
    home: Home,
    from: &mut Seats,
    to: CpuId,
    target: &mut Seats,
) -> Option<Result<(), NotMoved>> {
    let Some(seat) = from.by_slot.get(home.slot.index()).cloned().flatten() else {
        return Some(Err(NotMoved::Nowhere));
    };
    // Nobody takes it out or puts it in meanwhile: that needs the lock of the seats.
    let alarm = match &*seat.parked.lock() {
        None => return None,
        Some(parked) if parked.dom.run_state().contains(RunState::BLOCKED) => timer::alarm_time(parked),
        Some(_) => None,
    };
    // Room first: what can fail, fails before anything has changed. A new slot is one that there is, or the next.
    if let Err(error) = target.alarms.reserve_slots((target.by_slot.len() + 1).min(MAX_VCPUS)) {
        return Some(Err(NotMoved::Refused(error)));
    }
    if target.by_slot.try_reserve(1).is_err() {
        return Some(Err(NotMoved::Refused(SchedError::OutOfMemory)));
    }
    let new = match all.schedulers.move_to(home, to, now()) {
        // It has been picked, and will be taken out of its seat as soon as we let go.
        Err(SchedError::StillRuns) => return None,
        Err(error) => return Some(Err(NotMoved::Refused(error))),
        Ok((new, _)) => new,
    };
    from.by_slot[home.slot.index()] = None;
    from.alarms.cancel(home.slot);
    let slots = target.by_slot.len().max(new.slot.index() + 1);
    target.by_slot.resize_with(slots, || None);
    target.by_slot[new.slot.index()] = Some(seat);
    if let Some(at) = alarm {
        target.alarms.set(new.slot, Time(at));
    }
    dom.set_home(new, told);
    Some(Ok(()))
}
