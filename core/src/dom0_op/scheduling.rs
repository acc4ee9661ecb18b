//! Who runs where and how much: `DOM0_SCHED_ID`, `DOM0_SCHEDCTL`, `DOM0_ADJUSTDOM`, `DOM0_PINCPUDOMAIN`. (What the
//! parameters mean: [`crate::sched::control`].)

use super::other;
use crate::event::EventDomains;
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::preempt::Stop;
use crate::sched::control::{adjust_domain, check_adjustment, schedule_control};
use crate::sched::{CpuId, Repick, Time};
use crate::trace::Event;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::{PinCpuDomain, SchedId};
use proxenos_abi::sched_ctl::{SchedAdjdom, SchedCtl};

/// A CPU's number that stands for any.
const ANY_CPU: i32 = -1;

/// `DOM0_SCHED_ID`.
pub(super) fn sched_id<H: Hardware>(
    caller: &mut Caller<'_, H>,
    _: Dom0Version,
    argument: &mut SchedId,
) -> Result<u64, Stop> {
    argument.sched_id = caller.host.hw.schedulers().id().raw();
    Ok(0)
}

/// `DOM0_SCHEDCTL`.
pub(super) fn sched_ctl<H: Hardware>(
    caller: &mut Caller<'_, H>,
    _: Dom0Version,
    argument: &mut SchedCtl,
) -> Result<u64, Stop> {
    let hw = &caller.host.hw;
    hw.trace(|| Event::SchedulerControlled);
    schedule_control(hw.schedulers(), argument).map_err(Errno::from)?;
    Ok(0)
}

/// `DOM0_ADJUSTDOM`. A domain may adjust itself.
pub(super) fn adjust_dom<H: Hardware>(
    caller: &mut Caller<'_, H>,
    _: Dom0Version,
    argument: &mut SchedAdjdom,
) -> Result<u64, Stop> {
    let hw = &caller.host.hw;
    check_adjustment(hw.schedulers(), argument).map_err(Errno::from)?;
    let dom = caller.host.domains.find(argument.domain).ok_or(Errno::ESRCH)?;
    // One that is being taken down has no place any more.
    let home = dom.home().ok_or(Errno::ESRCH)?;
    hw.trace(|| Event::DomainAdjusted(dom.id));
    let repick = adjust_domain(hw.schedulers(), home, argument, Time(hw.now_ns())).map_err(Errno::from)?;
    if repick != Repick::AsPlanned {
        hw.choose_again(home.cpu);
    }
    Ok(0)
}

/// `DOM0_PINCPUDOMAIN`: the domain runs on this CPU from now on. Nothing else moves a domain, so that one that is not
/// pinned stays as well, and -1 has no effect, as in 2.0.
pub(super) fn pin_cpu_domain<H: Hardware>(caller: &Caller<'_, H>, argument: PinCpuDomain) -> Result<u64, Stop> {
    let dom = other(caller, argument.domain)?;
    if { argument.cpu } == ANY_CPU {
        return Ok(0);
    }
    let cpu = u16::try_from(argument.cpu).map_err(|_| Errno::EINVAL)?;
    caller.host.hw.migrate(&dom, CpuId(cpu))?;
    Ok(0)
}
