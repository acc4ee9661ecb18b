//! The run queues of all physical CPUs: where a new virtual CPU goes, and how it moves.
//!
//! A virtual CPU stays where it is put until it is moved ([`Schedulers::move_to`]): nothing is balanced behind
//! anyone's back, as in Xen 2.0. It goes to the CPU it is pinned to, else to the one with the least promised time,
//! then the fewest, then the lowest number. 2.0 took the number of a CPU modulo how many there are; here one that
//! does not exist is refused.
//!
//! One mutex a queue; of two, the lower CPU's is taken first. Nothing else is locked within.

use super::{Chosen, Policy, Repick, RunQueue, SchedError, Slot, Time};
use crate::sync::{Mutex, MutexGuard};
use alloc::vec::Vec;
use proxenos_abi::sched_ctl::SchedulerId;

/// A physical CPU's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct CpuId(pub u16);

/// Where a virtual CPU may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Affinity {
    /// Anywhere.
    Any,
    /// On this CPU only.
    Pinned(CpuId),
}

/// Where a virtual CPU is: what its domain remembers of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Home {
    /// The physical CPU.
    pub cpu: CpuId,
    /// Its place there.
    pub slot: Slot,
}

impl Home {
    /// Both in one word.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        (self.cpu.0 as u32) << 16 | self.slot.0 as u32
    }

    /// What [`to_bits`](Self::to_bits) made; `None` if no home gives this.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match Slot::from_index((bits & 0xffff) as usize) {
            Some(slot) => Some(Self { cpu: CpuId((bits >> 16) as u16), slot }),
            None => None,
        }
    }
}

/// The run queues of the machine, all with the same scheduler.
pub struct Schedulers<P = Chosen> {
    queues: Vec<Mutex<RunQueue<P>>>,
}

impl Schedulers<Chosen> {
    /// For this many CPUs.
    ///
    /// # Errors
    /// [`SchedError::OutOfMemory`]; [`SchedError::NoSuchCpu`] for no CPU at all.
    pub fn new(id: SchedulerId, cpus: u16) -> Result<Self, SchedError> {
        if cpus == 0 {
            return Err(SchedError::NoSuchCpu);
        }
        let mut queues = Vec::new();
        queues.try_reserve_exact(cpus.into()).map_err(|_| SchedError::OutOfMemory)?;
        queues.extend((0..cpus).map(|_| Mutex::new(RunQueue::new(Chosen::new(id)))));
        Ok(Self { queues })
    }

    /// Which scheduler it is.
    #[must_use]
    pub fn id(&self) -> SchedulerId {
        self.queues[0].lock().policy().id()
    }
}

impl<P: Policy> Schedulers<P> {
    /// How many CPUs there are.
    #[must_use]
    pub fn cpus(&self) -> u16 {
        self.queues.len() as u16
    }

    /// One CPU's queue.
    ///
    /// # Errors
    /// [`SchedError::NoSuchCpu`].
    #[inline]
    pub fn queue(&self, cpu: CpuId) -> Result<MutexGuard<'_, RunQueue<P>>, SchedError> {
        Ok(self.mutex(cpu)?.lock())
    }

    /// The lock of a CPU's queue.
    ///
    /// # Errors
    /// [`SchedError::NoSuchCpu`].
    pub fn mutex(&self, cpu: CpuId) -> Result<&Mutex<RunQueue<P>>, SchedError> {
        self.queues.get(usize::from(cpu.0)).ok_or(SchedError::NoSuchCpu)
    }

    /// Adds a virtual CPU, asleep, where there is most room. May allocate.
    ///
    /// # Errors
    /// Its parameters are refused there, or the CPU does not exist.
    pub fn place(&self, params: P::Params, affinity: Affinity, now: Time) -> Result<Home, SchedError> {
        let cpu = match affinity {
            Affinity::Pinned(cpu) => cpu,
            Affinity::Any => self.least_loaded(),
        };
        let slot = self.queue(cpu)?.insert(params, now)?;
        Ok(Home { cpu, slot })
    }

    /// Removes a virtual CPU.
    ///
    /// # Errors
    /// It still runs, or is not there.
    pub fn remove(&self, home: Home) -> Result<(), SchedError> {
        self.queue(home.cpu)?.remove(home.slot)
    }

    /// Moves a virtual CPU to another physical CPU; one that is ready is ready there, and the answer is what that means
    /// for the CPU. What it has run is kept, what it is owed or owes is not. May allocate. `arrive` is called with its
    /// new place, before either CPU can pick it; it takes no lock of a queue's.
    ///
    /// # Errors
    /// It runs; or its parameters are refused there, or `arrive` refuses. It stays where it was.
    pub fn move_to(
        &self,
        home: Home,
        cpu: CpuId,
        now: Time,
        arrive: impl FnOnce(Home) -> Result<(), SchedError>,
    ) -> Result<(Home, Repick), SchedError> {
        let (from, to) = (self.mutex(home.cpu)?, self.mutex(cpu)?);
        if home.cpu == cpu {
            from.lock().params(home.slot)?;
            return Ok((home, Repick::AsPlanned));
        }
        let (mut from, mut to) = if home.cpu < cpu {
            let from = from.lock();
            (from, to.lock())
        } else {
            let to = to.lock();
            (from.lock(), to)
        };
        if from.running() == Some(home.slot) {
            return Err(SchedError::StillRuns);
        }
        let slot = to.insert(from.params(home.slot)?, now)?;
        let new = Home { cpu, slot };
        if let Err(error) = arrive(new) {
            to.remove(slot)?;
            return Err(error);
        }
        let removed = from.take(home.slot)?;
        to.carry_over(slot, removed.ran);
        let repick = if removed.is_ready { to.wake(slot, now) } else { Repick::AsPlanned };
        Ok((new, repick))
    }

    /// Changes the scheduler's own parameters, on all CPUs.
    ///
    /// # Errors
    /// They are refused.
    pub fn control(&self, global: P::Global) -> Result<(), SchedError> {
        // All have the same rules, so if the first accepts them, all do.
        self.queues.iter().try_for_each(|queue| queue.lock().control(global))
    }

    /// The scheduler's own parameters.
    #[must_use]
    pub fn global(&self) -> P::Global {
        self.queues[0].lock().global()
    }

    fn least_loaded(&self) -> CpuId {
        let loads = self.queues.iter().map(|queue| queue.lock().load());
        let least = loads.enumerate().min_by_key(|&(_, load)| load);
        CpuId(least.map_or(0, |(index, _)| index as u16))
    }
}
