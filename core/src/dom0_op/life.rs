//! The life of domains: pause and unpause.

use super::other;
use crate::domain::RunState;
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::preempt::Stop;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::args::{PauseDomain, UnpauseDomain};

/// `DOM0_PAUSEDOMAIN`: when this returns 0, the domain does not run, until it is unpaused. Once paused is as good as twice.
pub(super) fn pause<H: Hardware>(caller: &Caller<'_, H>, argument: PauseDomain) -> Result<u64, Stop> {
    let dom = other(caller, argument.domain)?;
    dom.pause();
    caller.host.hw.await_stop(&dom)?;
    Ok(0)
}

/// `DOM0_UNPAUSEDOMAIN`: the domain goes on as far as this is concerned.
pub(super) fn unpause<H: Hardware>(caller: &Caller<'_, H>, argument: UnpauseDomain) -> Result<u64, Stop> {
    let dom = other(caller, argument.domain)?;
    if dom.run_state().contains(RunState::DYING) {
        return Err(Errno::EINVAL.into());
    }
    dom.unpause();
    Ok(0)
}
