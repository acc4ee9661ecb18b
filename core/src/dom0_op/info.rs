//! What domains are and do: `DOM0_GETDOMAININFO`.

use crate::domain::{Domain, RunState};
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::personality::Personality;
use crate::preempt::Stop;
use core::sync::atomic::Ordering;
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::{DomainFlags, GetDomainInfo};
use proxenos_abi::{Errno, GuestWord, Padded};

/// `DOM0_GETDOMAININFO`: of the domain with the lowest number that is not below the one asked for.
pub(super) fn get_domain_info<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    _version: Dom0Version,
    argument: &mut GetDomainInfo<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    let asked = argument.domain;
    let found = host.domains.all().into_iter().filter(|dom| dom.id >= asked).min_by_key(|dom| dom.id);
    let dom = found.ok_or(Errno::ESRCH)?;
    let word = |value: u64| Padded::new(P::Word::from_u64_truncating(value));
    *argument = GetDomainInfo {
        domain: dom.id,
        flags: flags(&dom, host.hw.is_running(&dom) || dom.id == caller.dom.id).bits(),
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
