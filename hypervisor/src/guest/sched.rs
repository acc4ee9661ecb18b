//! Who runs on this CPU, and until when: the run queues of [`proxenos_core::sched`], and the domains in them.
//!
//! A domain has a place in one CPU's queue ([`Home`]). Its [`Running`] is the CPU's while it runs there; else it is parked in
//! its [`Seat`], for any CPU to look at. Only a queue's own CPU wakes, puts to sleep and picks: others note whom it is to wake
//! ([`WakeSet`]) and [`ring`], so whoever sends an event takes no lock of a queue's.
//!
//! Whatever keeps a domain from running is in its run state. The CPU looks at that after it has taken what was noted, and again
//! on each way back to a guest; whoever changes the state notes the domain behind that. So no wakeup is lost.
//!
//! Locks, in this order: a CPU's seats, its run queue; and, with either, a seat. Of two CPUs', which only
//! who moves a domain holds together, the lower number's first.

mod moving;
mod reach;

pub use moving::{choose_again, migrate, schedulers};

use super::{Running, timer, trace};
use crate::cpu::percpu::{Cpu, Pending};
use crate::options;
use crate::time::Now;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_abi::sched_ctl::SchedulerId;
use proxenos_core::domain::{Domain, News, RunState};
use proxenos_core::sched::{
    Affinity, Alarms, Chosen, CpuId, Global, Home, Params, Pick, Repick, RunQueue, SchedError, Schedulers, Slot, Span,
    Time, WakeSet,
};
use proxenos_core::sync::{Mutex, MutexGuard};
use proxenos_core::trace::Event;
use spin::Once;

static SCHEDULING: Once<Scheduling> = Once::new();

/// How another CPU is made to look at its queue.
static INTERRUPT: Once<fn(CpuId)> = Once::new();

/// The machine's run queues and who is in them.
struct Scheduling {
    schedulers: Schedulers,
    cpus: Vec<OfCpu>,
}

/// What belongs to one CPU's queue.
pub struct OfCpu {
    seats: Mutex<Seats>,
    /// Whom the CPU is to wake, or to look at.
    woken: WakeSet,
    /// Whose turn it is: their [`Home`], as bits. No home if the CPU idles.
    runs: AtomicU32,
}

/// The domains of a queue, by slot.
struct Seats {
    by_slot: Vec<Option<Arc<Seat>>>,
    alarms: Alarms,
}

/// A domain's place, whether it runs or not.
pub struct Seat {
    /// The domain, unless it runs.
    parked: Mutex<Option<Box<Running>>>,
}

/// A CPU's own queue, and what belongs to it.
#[derive(Clone, Copy)]
pub struct Own {
    of: &'static OfCpu,
    queue: &'static Mutex<RunQueue<Chosen>>,
}

/// No [`Home`].
const NOBODY: u32 = u32::MAX;

fn scheduling() -> &'static Scheduling {
    SCHEDULING.get().expect("the schedulers are set up")
}

fn id(cpu: &Cpu) -> CpuId {
    CpuId(cpu.id.0 as u16)
}

/// The queue of the CPU this runs on, which has [entered](enter).
#[inline]
fn own(cpu: &Cpu) -> Own {
    cpu.local.queue.get().expect("it has its queue")
}

impl Scheduling {
    fn of(&self, cpu: CpuId) -> &OfCpu {
        &self.cpus[usize::from(cpu.0)]
    }

    fn queue(&self, cpu: CpuId) -> MutexGuard<'_, RunQueue<Chosen>> {
        self.schedulers.queue(cpu).expect("a queue for each CPU")
    }
}

/// Sets up the queues of so many CPUs, as the options say.
pub fn init(cpus: u16) {
    let (scheduler, global) = match crate::boot::options().scheduler {
        options::Scheduler::Bvt(allowance) => (SchedulerId::Bvt, allowance.map(|at| Global::Bvt(span(at)))),
        options::Scheduler::RoundRobin(slice) => {
            (SchedulerId::RoundRobin, slice.map(|at| Global::RoundRobin(span(at))))
        }
        options::Scheduler::Atropos => (SchedulerId::Atropos, None),
    };
    let schedulers = Schedulers::new(scheduler, cpus).expect("memory for the run queues");
    if let Some(Err(error)) = global.map(|global| schedulers.control(global)) {
        log::warn!("the scheduler's parameter is ignored: {error:?}");
    }
    let of_cpu = |_| OfCpu {
        seats: Mutex::new(Seats { by_slot: Vec::new(), alarms: Alarms::new() }),
        woken: WakeSet::new(),
        runs: AtomicU32::new(NOBODY),
    };
    SCHEDULING.call_once(|| Scheduling { schedulers, cpus: (0..cpus).map(of_cpu).collect() });
}

/// This CPU is about to run domains.
pub fn enter(cpu: &Cpu) {
    let (all, here) = (scheduling(), id(cpu));
    let queue = all.schedulers.mutex(here).expect("a queue for each CPU");
    cpu.local.queue.set(Some(Own { of: all.of(here), queue }));
}

pub fn span(micros: options::Micros) -> Span {
    Span::micros(micros.0.into())
}

/// Which scheduler it is.
pub fn scheduler() -> SchedulerId {
    scheduling().schedulers.id()
}

/// Says how another CPU is interrupted, so that it looks at its queue: its handler does [`Cpu::set_pending`] with
/// [`Pending::SCHEDULE`].
pub fn set_interrupt(interrupt: fn(CpuId)) {
    INTERRUPT.call_once(|| interrupt);
}

/// Takes a place in a queue for a domain that is to be built.
pub fn reserve(params: Params, affinity: Affinity) -> Result<Home, SchedError> {
    let all = scheduling();
    let home = all.schedulers.place(params, affinity, now())?;
    let mut seats = all.of(home.cpu).seats.lock();
    if let Err(error) = seats.alarms.reserve(home.slot) {
        drop(seats);
        release(home);
        return Err(error);
    }
    let slots = seats.by_slot.len().max(home.slot.index() + 1);
    seats.by_slot.resize_with(slots, || None);
    Ok(home)
}

/// Gives up a place in which there is no domain.
pub fn release(home: Home) {
    scheduling().schedulers.remove(home).expect("the place is there, and nobody runs in it");
}

/// Puts a domain into its place. It runs when it is its turn, unless its run state says otherwise.
pub fn place(home: Home, mut running: Box<Running>) {
    let dom = running.dom.clone();
    let seat = Arc::new(Seat { parked: Mutex::new(None) });
    running.seat = Some(seat.clone());
    *seat.parked.lock() = Some(running);
    scheduling().of(home.cpu).seats.lock().by_slot[home.slot.index()] = Some(seat);
    dom.set_home(home, told);
    told(&dom, News::RunState);
}

fn now() -> Time {
    Time(crate::time::now_ns())
}

/// Something has changed that its CPU should know of.
fn told(dom: &Domain, news: News) {
    let Some(home) = dom.home() else { return };
    let of = scheduling().of(home.cpu);
    let runs = || of.runs.load(Ordering::SeqCst) == home.to_bits();
    match news {
        News::Woken | News::RunState => of.woken.add(home.slot),
        // On this CPU, it looks for itself on its way back; parked, when it is its turn.
        News::Event if home.cpu == id(Cpu::current()) || !runs() => return,
        News::Event => {}
    }
    ring(home.cpu);
}

/// Makes a CPU look at its queue.
fn ring(cpu: CpuId) {
    let here = Cpu::current();
    if id(here) == cpu {
        here.set_pending(Pending::SCHEDULE);
        here.local.attention.store(1, Ordering::Relaxed);
    } else if let Some(interrupt) = INTERRUPT.get() {
        interrupt(cpu);
    }
}

/// What a look at the queue comes to.
pub enum Turn {
    /// Who runs goes on.
    GoesOn,
    /// Another is to run, which has been taken out of its seat, or nobody.
    Next(Option<Box<Running>>),
}

impl Running {
    /// Whether it cannot go on now. Within a multicall, what follows a call that waits is done first.
    #[inline]
    pub fn must_stop(&self) -> bool {
        let state = self.dom.run_state();
        let finishes_first = state == RunState::BLOCKED && self.vcpu.call_made_way;
        !state.is_empty() && !finishes_first
    }
}

/// Whether this CPU has to look at its queue at all.
#[inline]
pub fn is_due(cpu: &Cpu, run: &Running, pending: Pending, now: u64) -> bool {
    pending.contains(Pending::SCHEDULE) || run.vcpu.reschedule || cpu.local.turn_ends.get() <= now || run.must_stop()
}

/// Looks at the queue while a domain runs here.
pub fn reconsider(cpu: &Cpu, run: &mut Running, now: u64) -> Turn {
    let (own, time) = (own(cpu), Time(now));
    let here = run.dom.home().expect("who runs has a place").slot;
    let mut seats = own.of.seats.lock();
    let mut queue = own.queue.lock();
    let woken = wake(own.of, &mut seats, &mut queue, Some(here), time);
    let yields = core::mem::take(&mut run.vcpu.reschedule);
    let pick = if run.must_stop() {
        let _ = queue.sleep(here, time);
        trace::event(|| Event::Blocked(run.dom.id));
        if run.dom.run_state().contains(RunState::BLOCKED)
            && let Some(at) = timer::alarm_time(run)
        {
            seats.alarms.set(here, Time(at));
        }
        queue.pick(time)
    } else if yields {
        trace::event(|| Event::Yielded(run.dom.id));
        queue.pick_other(time)
    } else if woken == Repick::Now || cpu.local.turn_ends.get() <= now {
        queue.pick(time)
    } else {
        note(cpu, &seats, &queue);
        if let Repick::At(at) = woken {
            cpu.local.turn_ends.set(cpu.local.turn_ends.get().min(at.0));
        }
        return Turn::GoesOn;
    };
    note(cpu, &seats, &queue);
    drop(queue);
    picked(cpu, own.of, pick);
    match pick.next {
        Some(slot) if slot == here => Turn::GoesOn,
        next => Turn::Next(next.map(|slot| seats.unpark(slot))),
    }
}

/// What [`reconsider`] comes to where a domain yields and nobody has been woken or told of: who runs next, taken out of its seat.
/// `None`, and nothing has changed, where that takes more than a look at who waits.
///
/// Who is ready, and whose alarm comes first, is as it was when it was last [noted](note), or another CPU has changed it meanwhile: then
/// this one is about to be told.
#[inline(always)]
pub fn hand_over(cpu: &Cpu, now: u64) -> Option<Box<Running>> {
    let own = own(cpu);
    if own.of.woken.may_have_any() {
        return None;
    }
    let seats = own.of.seats.lock();
    let turn = own.queue.lock().hand_over(Time(now))?;
    picked(cpu, own.of, Pick { next: Some(turn.to), until: Some(turn.until) });
    Some(seats.unpark(turn.to))
}

/// Looks at the queue while this CPU idles: who is to run, taken out of its seat.
pub fn pick(cpu: &Cpu, now: u64) -> Option<Box<Running>> {
    let own = own(cpu);
    let mut seats = own.of.seats.lock();
    let mut queue = own.queue.lock();
    let _ = wake(own.of, &mut seats, &mut queue, None, Time(now));
    let pick = queue.pick(Time(now));
    note(cpu, &seats, &queue);
    drop(queue);
    picked(cpu, own.of, pick);
    pick.next.map(|slot| seats.unpark(slot))
}

#[inline]
fn picked(cpu: &Cpu, of: &OfCpu, pick: Pick) {
    cpu.local.turn_ends.set(pick.until.map_or(u64::MAX, |at| at.0));
    let home = pick.next.map_or(NOBODY, |slot| Home { cpu: id(cpu), slot }.to_bits());
    // Whoever sends an event sees this, or its bits are seen behind it, on the way to the guest.
    of.runs.swap(home, Ordering::SeqCst);
}

/// Keeps at hand what the short ways and the timer want to know.
fn note(cpu: &Cpu, seats: &Seats, queue: &RunQueue<Chosen>) {
    cpu.local.alone.set(queue.ready() <= 1);
    cpu.local.alarm.set(seats.alarms.first().map_or(u64::MAX, |at| at.0));
}

/// Wakes, or puts to sleep, those that this CPU has been told of, but for who runs on it: what that means for it.
#[inline]
fn wake(of: &OfCpu, seats: &mut Seats, queue: &mut RunQueue<Chosen>, runs: Option<Slot>, now: Time) -> Repick {
    if of.woken.may_have_any() { wake_some(of, seats, queue, runs, now) } else { Repick::AsPlanned }
}

#[inline(never)]
fn wake_some(of: &OfCpu, seats: &mut Seats, queue: &mut RunQueue<Chosen>, runs: Option<Slot>, now: Time) -> Repick {
    let mut result = Repick::AsPlanned;
    let Seats { by_slot, alarms } = seats;
    of.woken.take(|slot| {
        let Some(Some(seat)) = by_slot.get(slot.index()) else { return };
        if runs == Some(slot) {
            // It was told of, so something may have changed that its turn depends on.
            result = Repick::Now;
            return;
        }
        let parked = seat.parked.lock();
        let can_run = parked.as_ref().is_some_and(|parked| !parked.must_stop());
        trace::event(|| match &*parked {
            Some(parked) if can_run => Some(Event::Woken(parked.dom.id)),
            _ => None,
        });
        drop(parked);
        let repick = if can_run {
            alarms.cancel(slot);
            queue.wake(slot, now)
        } else {
            queue.sleep(slot, now)
        };
        result = match (result, repick) {
            (Repick::Now, _) | (_, Repick::Now) => Repick::Now,
            (Repick::At(one), Repick::At(other)) => Repick::At(one.min(other)),
            (Repick::At(at), Repick::AsPlanned) | (Repick::AsPlanned, Repick::At(at)) => Repick::At(at),
            (Repick::AsPlanned, Repick::AsPlanned) => Repick::AsPlanned,
        };
    });
    result
}

/// Time has come for the first alarm: tells those whose time it is.
#[cold]
pub fn sound_alarms(cpu: &Cpu, now: &Now) {
    let mut seats = own(cpu).of.seats.lock();
    let Seats { by_slot, alarms } = &mut *seats;
    while let Some(slot) = alarms.take_due(Time(now.ns)) {
        let Some(Some(seat)) = by_slot.get(slot.index()) else { continue };
        if let Some(parked) = &mut *seat.parked.lock() {
            timer::serve(parked, now);
            // It may not want to hear of that; what else it asked for is later than now.
            if let Some(at) = timer::alarm_time(parked) {
                alarms.set(slot, Time(at));
            }
        }
    }
    cpu.local.alarm.set(seats.alarms.first().map_or(u64::MAX, |at| at.0));
}

impl Seats {
    /// Takes a domain that was picked out of its seat.
    #[inline(always)]
    fn unpark(&self, slot: Slot) -> Box<Running> {
        let seat = self.by_slot[slot.index()].as_ref().expect("who was picked has a seat");
        seat.parked.lock().take().expect("who was picked does not run elsewhere")
    }
}

/// Puts a domain whose turn has ended into its seat. Nothing of it is left in this CPU.
#[inline(always)]
pub fn park(running: Box<Running>) {
    let seat = running.seat.clone().expect("who ran has a seat");
    *seat.parked.lock() = Some(running);
}

/// Calls `each` with every domain that does not run, all of them held still, and with the number of those that do.
pub fn with_all_parked<R>(each: impl FnOnce(&[&Running], usize) -> R) -> R {
    let Some(all) = SCHEDULING.get() else { return each(&[], 0) };
    let seats: Vec<Arc<Seat>> =
        all.cpus.iter().flat_map(|of| of.seats.lock().by_slot.iter().flatten().cloned().collect::<Vec<_>>()).collect();
    let held: Vec<_> = seats.iter().map(|seat| seat.parked.lock()).collect();
    let parked: Vec<&Running> = held.iter().filter_map(|parked| parked.as_deref()).collect();
    each(&parked, held.len() - parked.len())
}
