//! Who runs on this CPU, and until when: the run queues of [`proxenos_core::sched`], and the domains in them.
//!
//! A domain has a place in one CPU's queue ([`Home`]). Its [`Running`] is the CPU's while it runs there; else it is
//! parked in that slot's [`Seat`], for any CPU to look at. Only a queue's own CPU wakes, puts to sleep and picks:
//! others note whom it is to wake ([`WakeSet`]) and [`ring`], so whoever sends an event takes no lock of a queue's.
//!
//! Whatever keeps a domain from running is in its run state. The CPU looks at that after it has taken what was noted,
//! and again on each way back to a guest; whoever changes the state notes the domain behind that. So no wakeup is lost.
//!
//! Who comes to a seat, or leaves it for good, does so under a lock of the CPU's that guards its alarms too
//! ([`Places`]). Whose turn begins or ends does so without: who is picked is nobody else's from then on, since a queue
//! does not let go of the one that runs.
//!
//! Locks, in this order: a CPU's places, its run queue; and, with either, a seat, or a seat and then the queue, where
//! the places' lock keeps others from the contrary. Of two CPUs', which only who moves a domain holds together, the
//! lower number's first.

mod moving;
mod reach;
mod seat;

pub use moving::{choose_again, migrate, schedulers};

use super::{Running, timer, trace};
use crate::cpu::percpu::{Cpu, Pending};
use crate::options;
use crate::time::Now;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::array;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_abi::sched_ctl::SchedulerId;
use proxenos_core::domain::{Domain, News, RunState};
use proxenos_core::sched::{
    Affinity, Alarms, Chosen, CpuId, Global, Home, MAX_VCPUS, Params, Pick, Repick, RunQueue, SchedError, Schedulers,
    Slot, Span, Time, WakeSet,
};
use proxenos_core::sync::{Mutex, MutexGuard};
use proxenos_core::trace::Event;
use seat::{Held, Seat};
use spin::Once;

/// What seats are made of: the processor's, and how its CPUs wait.
mod atomics {
    pub(super) use core::sync::atomic::{AtomicPtr, Ordering};
    pub(super) use proxenos_core::sync::wait_a_little;
}

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
    places: Mutex<Places>,
    seats: [Seat; MAX_VCPUS],
    /// Whom the CPU is to wake, or to look at.
    woken: WakeSet,
    /// Whose turn it is: the index of their slot, or [`NOBODY`] if the CPU idles.
    runs: AtomicU32,
}

/// What changes where a domain comes to a queue, or leaves it; and the alarms of those that wait.
struct Places {
    /// How many slots are domains', whether they sit or run.
    taken: usize,
    alarms: Alarms,
}

/// A CPU's own queue, and what belongs to it.
#[derive(Clone, Copy)]
pub struct Own {
    of: &'static OfCpu,
    queue: &'static Mutex<RunQueue<Chosen>>,
}

/// The index of no slot.
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

    fn seat(&self, home: Home) -> &Seat {
        self.of(home.cpu).seat(home.slot)
    }

    fn queue(&self, cpu: CpuId) -> MutexGuard<'_, RunQueue<Chosen>> {
        self.schedulers.queue(cpu).expect("a queue for each CPU")
    }
}

impl OfCpu {
    fn new() -> Self {
        Self {
            places: Mutex::new(Places { taken: 0, alarms: Alarms::new() }),
            seats: array::from_fn(|_| Seat::empty()),
            woken: WakeSet::new(),
            runs: AtomicU32::new(NOBODY),
        }
    }

    #[inline(always)]
    fn seat(&self, slot: Slot) -> &Seat {
        // SAFETY: a slot's index is below that, by its contract ([`Slot::index`]).
        unsafe { self.seats.get_unchecked(slot.index()) }
    }

    /// Takes a domain that was picked out of its seat.
    #[inline(always)]
    fn unpark(&self, slot: Slot) -> Box<Running> {
        self.seat(slot).take().expect("who was picked sits there")
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
    SCHEDULING.call_once(|| Scheduling { schedulers, cpus: (0..cpus).map(|_| OfCpu::new()).collect() });
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
    if let Err(error) = all.of(home.cpu).places.lock().alarms.reserve(home.slot) {
        release(home);
        return Err(error);
    }
    Ok(home)
}

/// Gives up a place in which there is no domain.
pub fn release(home: Home) {
    scheduling().schedulers.remove(home).expect("the place is there, and nobody runs in it");
}

/// Puts a domain into its place. It runs when it is its turn, unless its run state says otherwise.
pub fn place(home: Home, running: Box<Running>) {
    let dom = running.dom.clone();
    let of = scheduling().of(home.cpu);
    let mut places = of.places.lock();
    places.taken += 1;
    of.seat(home.slot).put(running);
    drop(places);
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
    let runs = || of.runs.load(Ordering::SeqCst) == home.slot.index() as u32;
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
    let mut places = own.of.places.lock();
    let mut queue = own.queue.lock();
    let woken = wake(own.of, &mut places, &mut queue, Some(here), time);
    let yields = core::mem::take(&mut run.vcpu.reschedule);
    let pick = if run.must_stop() {
        let _ = queue.sleep(here, time);
        trace::event(|| Event::Blocked(run.dom.id));
        if run.dom.run_state().contains(RunState::BLOCKED)
            && let Some(at) = timer::alarm_time(run)
        {
            places.alarms.set(here, Time(at));
        }
        queue.pick(time)
    } else if yields {
        trace::event(|| Event::Yielded(run.dom.id));
        queue.pick_other(time)
    } else if woken == Repick::Now || cpu.local.turn_ends.get() <= now {
        queue.pick(time)
    } else {
        note(cpu, &places, &queue);
        if let Repick::At(at) = woken {
            cpu.local.turn_ends.set(cpu.local.turn_ends.get().min(at.0));
        }
        return Turn::GoesOn;
    };
    note(cpu, &places, &queue);
    drop(queue);
    picked(cpu, own.of, pick);
    match pick.next {
        Some(slot) if slot == here => Turn::GoesOn,
        next => Turn::Next(next.map(|slot| own.of.unpark(slot))),
    }
}

/// A turn that was given to another ([`hand_over`]).
pub struct HandedOver {
    /// Who is to run, taken out of its seat.
    pub next: Box<Running>,
    /// Where the one that ran is to be parked.
    pub seat: &'static Seat,
}

/// What [`reconsider`] comes to where a domain yields and nobody has been woken or told of: who runs next, taken out of
/// its seat. `None`, and nothing has changed, where that takes more than a look at who waits.
///
/// Who is ready, and whose alarm comes first, is as it was when it was last [noted](note), or another CPU has changed
/// it meanwhile: then this one is about to be told.
#[inline(always)]
pub fn hand_over(cpu: &Cpu, now: u64) -> Option<HandedOver> {
    let own = own(cpu);
    if own.of.woken.may_have_any() {
        return None;
    }
    let turn = own.queue.lock().hand_over(Time(now))?;
    picked(cpu, own.of, Pick { next: Some(turn.to), until: Some(turn.until) });
    Some(HandedOver { next: own.of.unpark(turn.to), seat: own.of.seat(turn.from) })
}

/// Looks at the queue while this CPU idles: who is to run, taken out of its seat.
pub fn pick(cpu: &Cpu, now: u64) -> Option<Box<Running>> {
    let own = own(cpu);
    let mut places = own.of.places.lock();
    let mut queue = own.queue.lock();
    let _ = wake(own.of, &mut places, &mut queue, None, Time(now));
    let pick = queue.pick(Time(now));
    note(cpu, &places, &queue);
    drop(queue);
    picked(cpu, own.of, pick);
    pick.next.map(|slot| own.of.unpark(slot))
}

#[inline]
fn picked(cpu: &Cpu, of: &OfCpu, pick: Pick) {
    cpu.local.turn_ends.set(pick.until.map_or(u64::MAX, |at| at.0));
    let runs = pick.next.map_or(NOBODY, |slot| slot.index() as u32);
    // Whoever sends an event sees this, or its bits are seen behind it, on the way to the guest.
    of.runs.swap(runs, Ordering::SeqCst);
}

/// Keeps at hand what the short ways and the timer want to know.
fn note(cpu: &Cpu, places: &Places, queue: &RunQueue<Chosen>) {
    cpu.local.alone.set(queue.ready() <= 1);
    cpu.local.alarm.set(places.alarms.first().map_or(u64::MAX, |at| at.0));
}

/// Wakes, or puts to sleep, those that this CPU has been told of, but for who runs on it: what that means for it.
#[inline]
fn wake(of: &OfCpu, places: &mut Places, queue: &mut RunQueue<Chosen>, runs: Option<Slot>, now: Time) -> Repick {
    if of.woken.may_have_any() { wake_some(of, places, queue, runs, now) } else { Repick::AsPlanned }
}

#[inline(never)]
fn wake_some(of: &OfCpu, places: &mut Places, queue: &mut RunQueue<Chosen>, runs: Option<Slot>, now: Time) -> Repick {
    let mut result = Repick::AsPlanned;
    let asked = of.woken.take(|slot| {
        if runs == Some(slot) {
            // It was told of, so something may have changed that its turn depends on.
            result = Repick::Now;
            return;
        }
        // (It may have left meanwhile, and another not come.)
        let Some(parked) = of.seat(slot).hold() else { return };
        let can_run = !parked.must_stop();
        trace::event(|| can_run.then_some(Event::Woken(parked.dom.id)));
        drop(parked);
        let repick = if can_run {
            places.alarms.cancel(slot);
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
    if asked { Repick::Now } else { result }
}

/// Time has come for the first alarm: tells those whose time it is.
#[cold]
pub fn sound_alarms(cpu: &Cpu, now: &Now) {
    let of = own(cpu).of;
    let mut places = of.places.lock();
    while let Some(slot) = places.alarms.take_due(Time(now.ns)) {
        let Some(mut parked) = of.seat(slot).hold() else { continue };
        timer::serve(&mut parked, now);
        // It may not want to hear of that; what else it asked for is later than now.
        if let Some(at) = timer::alarm_time(&parked) {
            places.alarms.set(slot, Time(at));
        }
    }
    cpu.local.alarm.set(places.alarms.first().map_or(u64::MAX, |at| at.0));
}

/// Puts a domain whose turn has ended into its seat. Nothing of it is left in this CPU.
pub fn park(cpu: &Cpu, running: Box<Running>) {
    let home = running.dom.home().expect("who ran has a place");
    own(cpu).of.seat(home.slot).put(running);
}

/// Calls `each` with every domain that does not run, all of them held, and with the number of those that do.
pub fn with_all_parked<R>(each: impl FnOnce(&[&Running], usize) -> R) -> R {
    let Some(all) = SCHEDULING.get() else { return each(&[], 0) };
    let taken: usize = all.cpus.iter().map(|of| of.places.lock().taken).sum();
    let held: Vec<Held<'_>> = all.cpus.iter().flat_map(|of| of.seats.iter().filter_map(Seat::hold)).collect();
    let parked: Vec<&Running> = held.iter().map(|held| &**held).collect();
    // (Exact where all others stand still.)
    each(&parked, taken.saturating_sub(parked.len()))
}
