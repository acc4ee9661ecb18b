//! Schedulers: which virtual CPU a physical CPU runs, and until when it need not ask again.
//!
//! A scheduler is a [`Policy`]: [borrowed virtual time](bvt), [round robin](round_robin) or [Atropos](atropos), with
//! the parameters of `sched_ctl.h` ([`control`]). Each physical CPU has a [`RunQueue`] of its own, which keeps the
//! books that all policies need: who is ready, who runs, what each has used. [`Schedulers`] are the queues of the
//! machine: where a new virtual CPU goes, and how it moves.
//!
//! Promises: no clock inside (time comes by argument and may stand still, but counts as standing still if it goes
//! back), and the same calls give the same answers. `wake`, `sleep`, `pick` and `charge` never allocate and cost at
//! most O(log n) steps for n virtual CPUs of that physical CPU (Atropos and borrowed virtual time: times the number
//! whose period, or whose pause from warping, has just ended). Dispatch is an `enum` over the three ([`Chosen`]), so
//! all of it can be inlined. A request that is refused changes nothing.
//!
//! Locks: whoever owns a [`RunQueue`] serialises its use; [`Schedulers`] has a mutex for each. Several are only ever
//! taken in the order of CPU numbers, and no other lock within.

mod alarms;
pub mod atropos;
pub mod bvt;
mod chosen;
pub mod control;
mod heap;
mod ring;
pub mod round_robin;
mod run_queue;
mod schedulers;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[cfg(test)]
mod tests;
mod wake_set;

pub use alarms::Alarms;
pub use chosen::{Chosen, Global, Params};
pub use run_queue::RunQueue;
pub use schedulers::{Affinity, CpuId, Home, Schedulers};
pub use wake_set::WakeSet;

use core::ops::Add;
use proxenos_abi::Errno;
pub use proxenos_abi::sched_ctl::SchedulerId;

/// A moment: nanoseconds since the hypervisor's boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);

/// A length of time, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Span(pub u64);

impl Span {
    /// None.
    pub const ZERO: Self = Self(0);

    /// So many microseconds.
    #[must_use]
    pub const fn micros(count: u64) -> Self {
        Self(count * 1_000)
    }

    /// So many milliseconds.
    #[must_use]
    pub const fn millis(count: u64) -> Self {
        Self(count * 1_000_000)
    }

    /// So many seconds.
    #[must_use]
    pub const fn seconds(count: u64) -> Self {
        Self(count * 1_000_000_000)
    }

    /// What is left of it; none if `used` was more.
    #[inline]
    #[must_use]
    pub const fn less(self, used: Self) -> Self {
        Self(self.0.saturating_sub(used.0))
    }
}

impl Time {
    /// How long ago `earlier` was; none if it is yet to come.
    #[inline]
    #[must_use]
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Span> for Time {
    type Output = Self;

    /// Stops at the end of time, in the year 2554 or so.
    #[inline]
    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Add for Span {
    type Output = Self;

    #[inline]
    fn add(self, more: Self) -> Self {
        Self(self.0.saturating_add(more.0))
    }
}

/// The shortest time that anyone is given on purpose. Below this a CPU switches more than it works, so parameters that
/// would ask for it are refused.
pub const SHORTEST: Span = Span::micros(10);

/// The most virtual CPUs of a physical one.
pub const MAX_VCPUS: usize = 1024;

/// A virtual CPU's place in one physical CPU's [`RunQueue`], from its insertion to its removal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot with an index; `None` if there is none.
    #[must_use]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < MAX_VCPUS { Some(Self(index as u16)) } else { None }
    }

    /// As an index: below [`MAX_VCPUS`].
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A part of a physical CPU's time, in units of 2^-32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Share(pub u64);

/// What to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// This one; `None`: the CPU idles.
    pub next: Option<Slot>,
    /// When to ask again at the latest; `None`: not until something changes.
    pub until: Option<Time>,
}

/// A turn that was given to another ([`RunQueue::hand_over`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandOver {
    /// Who ran.
    pub from: Slot,
    /// Who runs now.
    pub to: Slot,
    /// When to ask again at the latest.
    pub until: Time,
}

/// What a change means for the CPU whose queue it happened to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Repick {
    /// It is to pick at once.
    Now,
    /// It is to pick at this time, which is sooner than was planned.
    At(Time),
    /// Nothing: the time that was planned still holds.
    AsPlanned,
}

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SchedError {
    /// No scheduler has this number or name.
    UnknownScheduler,
    /// The parameters are those of a scheduler that is not in use.
    OtherScheduler,
    /// Neither to set nor to read.
    UnknownDirection,
    /// Virtual time would stand still: the weight would be infinite.
    ZeroAdvance,
    /// A time is negative.
    Negative,
    /// A time does not fit into 63 bits of nanoseconds.
    TooLong,
    /// A time is shorter than [`SHORTEST`].
    TooShort,
    /// More time a period than the period has.
    SliceAbovePeriod,
    /// A latency that is longer than the period.
    LatencyAbovePeriod,
    /// Neither a slice nor extra time: it would never run.
    NeverRuns,
    /// The CPU's time is promised to others.
    Overcommitted,
    /// No such physical CPU.
    NoSuchCpu,
    /// No such virtual CPU.
    NoSuchVcpu,
    /// It runs at the moment.
    StillRuns,
    /// The physical CPU has [`MAX_VCPUS`] already.
    Full,
    /// The hypervisor is out of memory.
    OutOfMemory,
}

impl From<SchedError> for Errno {
    fn from(error: SchedError) -> Self {
        match error {
            SchedError::UnknownScheduler
            | SchedError::OtherScheduler
            | SchedError::UnknownDirection
            | SchedError::ZeroAdvance
            | SchedError::Negative
            | SchedError::TooLong
            | SchedError::TooShort
            | SchedError::SliceAbovePeriod
            | SchedError::LatencyAbovePeriod
            | SchedError::NeverRuns
            | SchedError::NoSuchCpu => Self::EINVAL,
            SchedError::NoSuchVcpu => Self::ESRCH,
            SchedError::StillRuns => Self::EBUSY,
            SchedError::Overcommitted | SchedError::Full => Self::ENOSPC,
            SchedError::OutOfMemory => Self::ENOMEM,
        }
    }
}

/// A scheduler's rules for one physical CPU. Only a [`RunQueue`] calls it, and keeps to this order: a slot is inserted
/// (asleep), woken and put to sleep in turn, and removed asleep; the one that runs is charged before any other call.
pub trait Policy {
    /// A virtual CPU's parameters.
    type Params: Copy;
    /// The scheduler's own parameters.
    type Global: Copy;

    /// Makes room for slots below `slots`, so that nothing else needs to allocate.
    ///
    /// # Errors
    /// [`SchedError::OutOfMemory`].
    fn reserve(&mut self, slots: usize) -> Result<(), SchedError>;
    /// Adds a virtual CPU, asleep.
    ///
    /// # Errors
    /// Its parameters are not valid, or ask for more than there is.
    fn insert(&mut self, slot: Slot, params: Self::Params, now: Time) -> Result<(), SchedError>;
    /// Removes one that sleeps.
    fn remove(&mut self, slot: Slot);
    /// It can run.
    fn wake(&mut self, slot: Slot, now: Time);
    /// It can no longer run.
    fn sleep(&mut self, slot: Slot);
    /// It has run for so long until now, and may go on.
    fn charge(&mut self, slot: Slot, ran: Span, now: Time);
    /// What is to run, and until when. `yields` has given up its turn: it is picked only if there is no other.
    fn pick(&mut self, yields: Option<Slot>, now: Time) -> Pick;
    /// What charging the one that runs with `ran` and a [`pick`](Self::pick) to which it yields come to, if it is ready
    /// still and the case a plain one; `None`, and nothing has changed, if not.
    fn hand_over(&mut self, ran: Span, now: Time) -> Option<HandOver> {
        let _ = (ran, now);
        None
    }
    /// When to pick after `woken` was woken while `running` runs; `None`: no sooner than was planned.
    fn repick(&self, woken: Slot, running: Option<Slot>, now: Time) -> Option<Time>;
    /// Changes a virtual CPU's parameters.
    ///
    /// # Errors
    /// As for [`insert`](Self::insert).
    fn adjust(&mut self, slot: Slot, params: Self::Params, now: Time) -> Result<(), SchedError>;
    /// A virtual CPU's parameters.
    fn params(&self, slot: Slot) -> Self::Params;
    /// Changes the scheduler's own parameters.
    ///
    /// # Errors
    /// They are not valid.
    fn control(&mut self, global: Self::Global) -> Result<(), SchedError>;
    /// The scheduler's own parameters.
    fn global(&self) -> Self::Global;
    /// How much of the CPU's time is promised.
    fn promised(&self) -> Share;
}
