//! Parameters of the schedulers (`sched_ctl.h`), in units of their own.

use serde::{Deserialize, Serialize};

use crate::{Millis, Nanos};

/// Which scheduler a host runs; chosen when it boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheduler {
    /// Borrowed virtual time (`SCHED_BVT`).
    Bvt,
    /// Slices of periods, guaranteed (`SCHED_ATROPOS`).
    Atropos,
    /// Round robin (`SCHED_RROBIN`).
    RoundRobin,
}

/// Parameters of a scheduler as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostSched {
    /// Borrowed virtual time.
    Bvt {
        /// How long a domain runs at least before another takes its place; the interface has 32 bits for it.
        context_allowance: Nanos,
    },
    /// Atropos has none.
    Atropos,
    /// Round robin.
    RoundRobin {
        /// How long a turn is.
        slice: Nanos,
    },
}

/// Parameters of one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DomainSched {
    /// Borrowed virtual time.
    Bvt {
        /// How fast its virtual time goes, the inverse of its weight; not zero. A new domain has 10.
        advance: u32,
        /// Whether it may warp.
        warping: bool,
        /// How far, in units of virtual time, of which an advance of 1 makes one in 100 µs.
        warp: i32,
        /// How long it may stay warped; zero: without limit.
        warp_limit: Millis,
        /// How long it must then stay unwarped; zero: for good.
        unwarp: Millis,
    },
    /// Atropos.
    Atropos {
        /// Every so often it gets its slice.
        period: Nanos,
        /// Its slice; zero is no reservation.
        slice: Nanos,
        /// When it wants to run after it wakes, at the latest.
        latency: Nanos,
        /// Whether it takes time that is left over.
        extra: bool,
    },
    /// Round robin has none.
    RoundRobin,
}

impl DomainSched {
    /// Whose parameters these are.
    pub const fn scheduler(&self) -> Scheduler {
        match self {
            Self::Bvt { .. } => Scheduler::Bvt,
            Self::Atropos { .. } => Scheduler::Atropos,
            Self::RoundRobin => Scheduler::RoundRobin,
        }
    }
}

impl HostSched {
    /// Whose parameters these are.
    pub const fn scheduler(&self) -> Scheduler {
        match self {
            Self::Bvt { .. } => Scheduler::Bvt,
            Self::Atropos => Scheduler::Atropos,
            Self::RoundRobin { .. } => Scheduler::RoundRobin,
        }
    }
}
