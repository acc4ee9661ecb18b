//! The scheduler that was chosen at boot: one of the three, without a table of functions.
//!
//! Each call is a `match`, so the compiler sees what it comes to. The choice never changes while the machine runs.

use super::atropos::{Atropos, AtroposParams};
use super::bvt::{Bvt, BvtParams};
use super::round_robin::RoundRobin;
use super::{HandOver, Pick, Policy, SchedError, Share, Slot, Span, Time};
use proxenos_abi::DomId;
use proxenos_abi::sched_ctl::SchedulerId;

/// One of the schedulers.
pub enum Chosen {
    /// Borrowed virtual time.
    Bvt(Bvt),
    /// Round robin.
    RoundRobin(RoundRobin),
    /// Atropos.
    Atropos(Atropos),
}

/// A virtual CPU's parameters, for one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Params {
    /// Of borrowed virtual time.
    Bvt(BvtParams),
    /// Of round robin, which has none.
    RoundRobin,
    /// Of Atropos.
    Atropos(AtroposParams),
}

/// A scheduler's own parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Global {
    /// Borrowed virtual time's context switch allowance.
    Bvt(Span),
    /// Round robin's slice.
    RoundRobin(Span),
    /// Atropos has none.
    Atropos,
}

impl Chosen {
    /// A scheduler for one CPU.
    #[must_use]
    pub const fn new(id: SchedulerId) -> Self {
        match id {
            SchedulerId::Bvt => Self::Bvt(Bvt::new()),
            SchedulerId::RoundRobin => Self::RoundRobin(RoundRobin::new()),
            SchedulerId::Atropos => Self::Atropos(Atropos::new()),
        }
    }

    /// Which it is.
    #[must_use]
    pub const fn id(&self) -> SchedulerId {
        match self {
            Self::Bvt(_) => SchedulerId::Bvt,
            Self::RoundRobin(_) => SchedulerId::RoundRobin,
            Self::Atropos(_) => SchedulerId::Atropos,
        }
    }
}

impl Params {
    /// Those of a new domain.
    #[must_use]
    pub fn of_new_domain(id: SchedulerId, domain: DomId) -> Self {
        match id {
            SchedulerId::Bvt => Self::Bvt(BvtParams::default()),
            SchedulerId::RoundRobin => Self::RoundRobin,
            SchedulerId::Atropos if domain == DomId::DOM0 => Self::Atropos(AtroposParams::DOMAIN0),
            SchedulerId::Atropos => Self::Atropos(AtroposParams::BEST_EFFORT),
        }
    }
}

/// Calls the same method of whichever it is.
macro_rules! whichever {
    ($self:ident, $policy:ident => $call:expr) => {
        match $self {
            Self::Bvt($policy) => $call,
            Self::RoundRobin($policy) => $call,
            Self::Atropos($policy) => $call,
        }
    };
}

impl Policy for Chosen {
    type Params = Params;
    type Global = Global;

    fn reserve(&mut self, slots: usize) -> Result<(), SchedError> {
        whichever!(self, policy => policy.reserve(slots))
    }

    fn insert(&mut self, slot: Slot, params: Params, now: Time) -> Result<(), SchedError> {
        match (self, params) {
            (Self::Bvt(policy), Params::Bvt(params)) => policy.insert(slot, params, now),
            (Self::RoundRobin(policy), Params::RoundRobin) => policy.insert(slot, (), now),
            (Self::Atropos(policy), Params::Atropos(params)) => policy.insert(slot, params, now),
            _ => Err(SchedError::OtherScheduler),
        }
    }

    fn remove(&mut self, slot: Slot) {
        whichever!(self, policy => policy.remove(slot));
    }

    fn wake(&mut self, slot: Slot, now: Time) {
        whichever!(self, policy => policy.wake(slot, now));
    }

    fn sleep(&mut self, slot: Slot) {
        whichever!(self, policy => policy.sleep(slot));
    }

    #[inline(always)]
    fn charge(&mut self, slot: Slot, ran: Span, now: Time) {
        whichever!(self, policy => policy.charge(slot, ran, now));
    }

    #[inline(always)]
    fn pick(&mut self, yields: Option<Slot>, now: Time) -> Pick {
        whichever!(self, policy => policy.pick(yields, now))
    }

    #[inline(always)]
    fn hand_over(&mut self, ran: Span, now: Time) -> Option<HandOver> {
        // The others have no short way.
        let Self::Bvt(policy) = self else { return None };
        policy.hand_over(ran, now)
    }

    fn repick(&self, woken: Slot, running: Option<Slot>, now: Time) -> Option<Time> {
        whichever!(self, policy => policy.repick(woken, running, now))
    }

    fn adjust(&mut self, slot: Slot, params: Params, now: Time) -> Result<(), SchedError> {
        match (self, params) {
            (Self::Bvt(policy), Params::Bvt(params)) => policy.adjust(slot, params, now),
            (Self::RoundRobin(policy), Params::RoundRobin) => policy.adjust(slot, (), now),
            (Self::Atropos(policy), Params::Atropos(params)) => policy.adjust(slot, params, now),
            _ => Err(SchedError::OtherScheduler),
        }
    }

    fn params(&self, slot: Slot) -> Params {
        match self {
            Self::Bvt(policy) => Params::Bvt(policy.params(slot)),
            Self::RoundRobin(_) => Params::RoundRobin,
            Self::Atropos(policy) => Params::Atropos(policy.params(slot)),
        }
    }

    fn control(&mut self, global: Global) -> Result<(), SchedError> {
        match (self, global) {
            (Self::Bvt(policy), Global::Bvt(allowance)) => policy.control(allowance),
            (Self::RoundRobin(policy), Global::RoundRobin(slice)) => policy.control(slice),
            (Self::Atropos(_), Global::Atropos) => Ok(()),
            _ => Err(SchedError::OtherScheduler),
        }
    }

    fn global(&self) -> Global {
        match self {
            Self::Bvt(policy) => Global::Bvt(policy.global()),
            Self::RoundRobin(policy) => Global::RoundRobin(policy.global()),
            Self::Atropos(_) => Global::Atropos,
        }
    }

    fn promised(&self) -> Share {
        whichever!(self, policy => policy.promised())
    }
}
