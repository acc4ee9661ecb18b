//! Control of the schedulers (`sched_ctl.h`), arguments of `dom0_op`.
//!
//! The layout is the same for both architectures. The header's comments give other offsets than its packed structures
//! have; packing wins: in [`BvtAdjdom`] the limits lie at 12 and 20, and [`SchedAdjdom`] is 44 bytes.

use crate::ids::DomId;
use crate::payload::Payload;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

numbers! {
    /// A scheduler (`SCHED_*`).
    pub enum SchedulerId: u32 {
        /// `SCHED_BVT`: borrowed virtual time.
        Bvt = 0,
        /// `SCHED_ATROPOS`: slices of periods, guaranteed.
        Atropos = 2,
        /// `SCHED_RROBIN`: round robin.
        RoundRobin = 3,
    }
}

numbers! {
    /// Whether parameters are set or read (`SCHED_INFO_*`).
    pub enum SchedDirection: u32 {
        /// `SCHED_INFO_PUT`: set.
        Put = 0,
        /// `SCHED_INFO_GET`: read.
        Get = 1,
    }
}

/// Parameters of a scheduler as a whole (`struct sched_ctl_cmd`, `dom0_schedctl_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SchedCtl {
    /// See [`SchedulerId`].
    pub sched_id: u32,
    /// See [`SchedDirection`].
    pub direction: u32,
    /// By scheduler, [`BvtCtl`] or [`RoundRobinCtl`].
    pub u: Payload<8>,
}

layout!(SchedCtl: 16 { sched_id: 0, direction: 4, u: 8 });

/// Parameters of borrowed virtual time (`struct bvt_ctl`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BvtCtl {
    /// Context switch allowance.
    pub ctx_allow: u32,
}

layout!(BvtCtl: 4 { ctx_allow: 0 });

/// Parameters of round robin (`struct rrobin_ctl`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct RoundRobinCtl {
    /// Time slice, in nanoseconds.
    pub slice: u64,
}

layout!(RoundRobinCtl: 8 { slice: 0 });

/// Parameters of one domain's scheduling (`struct sched_adjdom_cmd`, `dom0_adjustdom_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SchedAdjdom {
    /// See [`SchedulerId`].
    pub sched_id: u32,
    /// See [`SchedDirection`].
    pub direction: u32,
    /// The domain.
    pub domain: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// `__pad1`.
    pub pad1: u32,
    /// By scheduler, [`BvtAdjdom`] or [`AtroposAdjdom`].
    pub u: Payload<28>,
}

layout!(SchedAdjdom: 44 { sched_id: 0, direction: 4, domain: 8, pad0: 10, pad1: 12, u: 16 });

/// A domain under borrowed virtual time (`struct bvt_adjdom`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BvtAdjdom {
    /// How fast its virtual time advances: the inverse of its weight.
    pub mcu_adv: u32,
    /// Non-zero: it may warp.
    pub warpback: u32,
    /// How far it warps.
    pub warpvalue: i32,
    /// How long it may stay warped.
    pub warpl: i64,
    /// How long it must then stay unwarped.
    pub warpu: i64,
}

layout!(BvtAdjdom: 28 { mcu_adv: 0, warpback: 4, warpvalue: 8, warpl: 12, warpu: 20 });

/// A domain under Atropos (`struct atropos_adjdom`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct AtroposAdjdom {
    /// Period, in nanoseconds.
    pub nat_period: u64,
    /// Share of each period, in nanoseconds.
    pub nat_slice: u64,
    /// Latency hint, in nanoseconds.
    pub latency: u64,
    /// Non-zero: it may use time that is left over.
    pub xtratime: u32,
}

layout!(AtroposAdjdom: 28 { nat_period: 0, nat_slice: 8, latency: 16, xtratime: 24 });
