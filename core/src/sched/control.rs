//! `DOM0_SCHEDCTL` and `DOM0_ADJUSTDOM`: the parameters as `sched_ctl.h` has them.
//!
//! Promises: a request names the scheduler that runs, or is refused; what is refused changes nothing; what was set
//! can be read. Atropos has no parameters as a whole and round robin none of a domain: such a request changes nothing
//! and succeeds, as in 2.0.

use super::atropos::{AtroposParams, ExtraTime};
use super::bvt::{BvtParams, Warping};
use super::{Chosen, Global, Home, Params, Repick, SchedError, Schedulers, Span, Time};
use core::num::NonZeroU32;
use proxenos_abi::sched_ctl::{
    AtroposAdjdom, BvtAdjdom, BvtCtl, RoundRobinCtl, SchedAdjdom, SchedCtl, SchedDirection, SchedulerId,
};

/// A millisecond.
const MILLI: u64 = Span::millis(1).0;

/// The scheduler that the option `sched=` names, by the names it had in 2.0.
///
/// # Errors
/// [`SchedError::UnknownScheduler`].
pub fn scheduler_named(name: &str) -> Result<SchedulerId, SchedError> {
    match name {
        "bvt" => Ok(SchedulerId::Bvt),
        "rrobin" => Ok(SchedulerId::RoundRobin),
        "atropos" => Ok(SchedulerId::Atropos),
        _ => Err(SchedError::UnknownScheduler),
    }
}

fn check(asked: u32, direction: u32, runs: SchedulerId) -> Result<SchedDirection, SchedError> {
    match SchedulerId::from_raw(asked) {
        None => Err(SchedError::UnknownScheduler),
        Some(id) if id != runs => Err(SchedError::OtherScheduler),
        Some(_) => SchedDirection::from_raw(direction).ok_or(SchedError::UnknownDirection),
    }
}

/// `DOM0_SCHEDCTL`: sets the scheduler's own parameters, or fills them in.
///
/// # Errors
/// Another scheduler is named, or the parameters are refused.
pub fn schedule_control(schedulers: &Schedulers, request: &mut SchedCtl) -> Result<(), SchedError> {
    let id = schedulers.id();
    match check(request.sched_id, request.direction, id)? {
        SchedDirection::Put => schedulers.control(match id {
            SchedulerId::Bvt => Global::Bvt(Span(request.u.read::<BvtCtl>().ctx_allow.into())),
            SchedulerId::RoundRobin => Global::RoundRobin(Span(request.u.read::<RoundRobinCtl>().slice)),
            SchedulerId::Atropos => Global::Atropos,
        })?,
        SchedDirection::Get => match schedulers.global() {
            Global::Bvt(allowance) => request.u.write(BvtCtl { ctx_allow: allowance.0 as u32 }),
            Global::RoundRobin(slice) => request.u.write(RoundRobinCtl { slice: slice.0 }),
            Global::Atropos => {}
        },
    }
    Ok(())
}

/// Whether a `DOM0_ADJUSTDOM` names the scheduler that runs, and something that is done to a domain: asked before
/// whether there is that domain.
///
/// # Errors
/// It does not.
pub fn check_adjustment(schedulers: &Schedulers, request: &SchedAdjdom) -> Result<(), SchedError> {
    check(request.sched_id, request.direction, schedulers.id()).map(drop)
}

/// `DOM0_ADJUSTDOM`, once its domain is found: sets the parameters of its virtual CPU, or fills them in. The answer
/// is for the CPU of its home.
///
/// # Errors
/// Another scheduler is named, or the parameters are refused.
pub fn adjust_domain(
    schedulers: &Schedulers,
    home: Home,
    request: &mut SchedAdjdom,
    now: Time,
) -> Result<Repick, SchedError> {
    let mut queue = schedulers.queue(home.cpu)?;
    let id = Chosen::id(queue.policy());
    match check(request.sched_id, request.direction, id)? {
        SchedDirection::Put => {
            let params = match id {
                SchedulerId::Bvt => Params::Bvt(BvtParams::try_from(request.u.read::<BvtAdjdom>())?),
                SchedulerId::RoundRobin => Params::RoundRobin,
                SchedulerId::Atropos => Params::Atropos(request.u.read::<AtroposAdjdom>().into()),
            };
            queue.adjust(home.slot, params, now)
        }
        SchedDirection::Get => {
            match queue.params(home.slot)? {
                Params::Bvt(params) => request.u.write(BvtAdjdom::from(params)),
                Params::RoundRobin => {}
                Params::Atropos(params) => request.u.write(AtroposAdjdom::from(params)),
            }
            Ok(Repick::AsPlanned)
        }
    }
}

fn from_millis(count: i64) -> Result<Span, SchedError> {
    let count = u64::try_from(count).map_err(|_| SchedError::Negative)?;
    count.checked_mul(MILLI).map(Span).ok_or(SchedError::TooLong)
}

impl TryFrom<BvtAdjdom> for BvtParams {
    type Error = SchedError;

    fn try_from(raw: BvtAdjdom) -> Result<Self, SchedError> {
        Ok(Self {
            advance: NonZeroU32::new(raw.mcu_adv).ok_or(SchedError::ZeroAdvance)?,
            warping: if raw.warpback == 0 { Warping::Off } else { Warping::On },
            warp: raw.warpvalue,
            limit: from_millis(raw.warpl)?,
            pause: from_millis(raw.warpu)?,
        })
    }
}

impl From<BvtParams> for BvtAdjdom {
    fn from(params: BvtParams) -> Self {
        Self {
            mcu_adv: params.advance.get(),
            warpback: (params.warping == Warping::On).into(),
            warpvalue: params.warp,
            warpl: (params.limit.0 / MILLI) as i64,
            warpu: (params.pause.0 / MILLI) as i64,
        }
    }
}

impl From<AtroposAdjdom> for AtroposParams {
    fn from(raw: AtroposAdjdom) -> Self {
        Self {
            period: Span(raw.nat_period),
            slice: Span(raw.nat_slice),
            latency: Span(raw.latency),
            extra: if raw.xtratime == 0 { ExtraTime::No } else { ExtraTime::Yes },
        }
    }
}

impl From<AtroposParams> for AtroposAdjdom {
    fn from(params: AtroposParams) -> Self {
        Self {
            nat_period: params.period.0,
            nat_slice: params.slice.0,
            latency: params.latency.0,
            xtratime: (params.extra == ExtraTime::Yes).into(),
        }
    }
}
