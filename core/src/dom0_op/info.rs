//! What domains are and do: `DOM0_GETDOMAININFO`.

use super::context::{self, Boxed, Layout};
use crate::addr::GuestVirt;
use crate::domain::{Arch, Domain, RunState};
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::life;
use crate::others::{Stopped, Unreached};
use crate::personality::Personality;
use crate::preempt::Stop;
use core::sync::atomic::Ordering;
use proxenos_abi::context::ContextFlags;
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::{DomainFlags, GetDomainInfo};
use proxenos_abi::zerocopy::IntoBytes;
use proxenos_abi::{Errno, GuestWord, Padded, X86_32, X86_64};

/// `DOM0_GETDOMAININFO`: of the domain with the lowest number that is not below the one asked for. Its context is
/// looked at while it does not run. A domain at its end has none; of the caller's own, the registers are those that a
/// call hands over, with its data selectors, and there is no FPU's. (2.0 gave the registers of when the caller was last
/// switched from.)
///
/// # Errors
/// ESRCH when there is no such domain; EINVAL (as in 2.0) for a context that cannot be written.
pub(super) fn get_domain_info<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    version: Dom0Version,
    argument: &mut GetDomainInfo<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    life::reap(host);
    let dom = host.domains.first_from(argument.domain).ok_or(Errno::ESRCH)?;
    let runs = dom.id == caller.dom.id || host.hw.is_running(&dom);
    // Before it is stopped to be looked at: that is not what it does.
    let flags = flags(&dom, runs);
    let at = GuestVirt(argument.ctxt.to_u64());
    if at.0 != 0 {
        match dom.arch {
            Arch::X86_32 => give_context::<P, X86_32, H>(caller, &dom, version, at)?,
            Arch::X86_64 => give_context::<P, X86_64, H>(caller, &dom, version, at)?,
        }
    }
    let word = |value: u64| Padded::new(P::Word::from_u64_truncating(value));
    *argument = GetDomainInfo {
        domain: dom.id,
        flags: flags.bits(),
        tot_pages: word(dom.total_pages.load(Ordering::Relaxed).into()),
        max_pages: word(dom.max_pages.load(Ordering::Relaxed).into()),
        shared_info_frame: word(dom.shared_info.0),
        cpu_time: host.hw.cpu_time(&dom).0,
        ..*argument
    };
    Ok(0)
}

/// What a domain does at the moment, with its CPU and the reason for a shutdown.
fn flags(dom: &Domain, runs: bool) -> DomainFlags {
    let state = dom.run_state();
    let mut flags = DomainFlags::empty();
    for (of, flag) in [
        (RunState::DYING, DomainFlags::DYING),
        (RunState::CRASHED, DomainFlags::CRASHED),
        (RunState::PAUSED, DomainFlags::PAUSED),
        (RunState::BLOCKED, DomainFlags::BLOCKED),
    ] {
        flags.set(flag, state.contains(of));
    }
    flags.set(DomainFlags::RUNNING, runs);
    let flags = flags.with_cpu(dom.home().map_or(0, |home| home.cpu.0 as u8));
    dom.shutdown_reason().map_or(flags, |reason| flags.with_shutdown_reason(reason))
}

fn give_context<P: Personality, A: Layout, H: Hardware>(
    caller: &Caller<'_, H>,
    dom: &Domain,
    version: Dom0Version,
    at: GuestVirt,
) -> Result<(), Stop> {
    let mut boxed = Boxed::<A>::zeroed()?;
    let context = boxed.get_mut();
    let hw = &caller.host.hw;
    if dom.id == caller.dom.id {
        context::store(context, version, caller.vcpu, &hw.caller_state(caller.vcpu));
        // Those are still in the CPU, or not: what there is here is not them.
        let flags = context.flags.to_u64() & !u64::from(ContextFlags::I387_VALID.bits());
        context.flags = A::Word::from_u64_truncating(flags);
    } else {
        match hw.with_stopped(dom, |Stopped { vcpu, state }| context::store(context, version, vcpu, state)) {
            Ok(()) | Err(Unreached::None) => {}
            Err(Unreached::Running) => return Err(Stop::Preempted),
        }
    }
    let base = dom.paging.lock().base.map_or(0, |base| base.addr().0);
    context.pt_base = A::Word::from_u64_truncating(base);
    if A::ARCH != P::ARCH {
        let flags = context.flags.to_u64() | u64::from(ContextFlags::OTHER_ARCH.bits());
        context.flags = A::Word::from_u64_truncating(flags);
    }
    Ok(caller.copy_to_guest::<P>(at, context.as_bytes()).map_err(|_| Errno::EINVAL)?)
}
