//! The life of domains: create, destroy, pause, unpause.
//!
//! A domain is created paused and unbuilt, and runs when it is built and unpaused. Both its creation and its end can
//! take long and make way. A creation that nobody comes back for has left a domain without all of its memory, which
//! `DOM0_GETDOMAININFO` shows and `DOM0_DESTROYDOMAIN` ends like any other; an end that nobody comes back for is gone
//! on with by whoever destroys the domain again.

use super::other;
use crate::addr::DomId;
use crate::domain::{Arch, Domain, RunState};
use crate::event::EventDomains;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::life::{self, Hungry};
use crate::personality::Personality;
use crate::preempt::{Call, Poll, Progress, Stop};
use crate::sched::{Affinity, CpuId};
use crate::trace::Event;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::args::{CREATE_OTHER_ARCH, CreateDomain, DestroyDomain, PauseDomain, UnpauseDomain};

/// `DOM0_CREATEDOMAIN`: a domain with so much memory, paused, of the caller's architecture or, if it says so, of the
/// other.
///
/// # Errors
/// EINVAL for a number that is taken or reserved, and for a CPU that there is not; ENOMEM; ENOSPC for a CPU that has no
/// room.
pub(super) fn create<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    call: Call,
    argument: &mut CreateDomain<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    let pages = pages_of_kib(argument.memory_kb.to_u64());
    let begun = match caller.vcpu.unfinished.take(&call) {
        Some(Progress::Create(id)) => host.domains.find(id),
        _ => None,
    };
    let dom = match begun {
        Some(dom) => dom,
        None => begin::<H>(host, wanted_arch::<P>(argument.domain), argument, pages)?,
    };
    let mut poll = Poll::begin();
    let hungry = match dom.run_state().contains(RunState::DYING) {
        false => life::feed(host, &dom, pages, &mut poll).err(),
        // It could not be fed before.
        true => Some(Hungry::NoMemory),
    };
    let stop = match hungry {
        None => {
            argument.domain = dom.id;
            host.hw.trace(|| Event::DomainAdded(dom.id));
            return Ok(0);
        }
        Some(Hungry::NotYet) => Stop::Preempted,
        Some(Hungry::NoMemory) => match life::end(host, &dom, &mut poll) {
            Err(Stop::Preempted) => Stop::Preempted,
            _ => Errno::ENOMEM.into(),
        },
    };
    if stop == Stop::Preempted {
        caller.vcpu.unfinished.keep(call, Progress::Create(dom.id));
    } else {
        life::reap(host);
    }
    Err(stop)
}

/// Which architecture is asked for.
fn wanted_arch<P: Personality>(asked: DomId) -> Arch {
    match (P::ARCH, asked.0 & CREATE_OTHER_ARCH != 0) {
        (Arch::X86_32, false) | (Arch::X86_64, true) => Arch::X86_32,
        (Arch::X86_64, false) | (Arch::X86_32, true) => Arch::X86_64,
    }
}

/// Makes the domain, without its memory.
fn begin<H: Hardware>(
    host: &Host<H>,
    arch: Arch,
    argument: &CreateDomain<impl Personality>,
    pages: u32,
) -> Result<Arc<Domain>, Errno> {
    life::reap(host);
    let asked = DomId(argument.domain.0 & !CREATE_OTHER_ARCH);
    let id = match asked {
        DomId(0) => host.domains.free_id().ok_or(Errno::ENOMEM)?,
        id if id.is_reserved() || host.domains.find(id).is_some() => return Err(Errno::EINVAL),
        id => id,
    };
    // Known to be too much, it is not even begun.
    if u64::from(pages) > host.alloc.lock().free_frames(life::zone(arch)) {
        return Err(Errno::ENOMEM);
    }
    let affinity = match argument.cpu {
        u32::MAX => Affinity::Any,
        cpu => Affinity::Pinned(CpuId(u16::try_from(cpu).map_err(|_| Errno::EINVAL)?)),
    };
    let dom = life::conceive(host, id, arch, host.new_privileges).ok_or(Errno::ENOMEM)?;
    dom.set_state(RunState::PAUSED | RunState::UNBUILT);
    dom.max_pages.store(pages, Ordering::Relaxed);
    if let Err(error) = host.hw.admit(&dom, affinity) {
        life::discard(host, &dom);
        return Err(error.into());
    }
    Ok(dom)
}

/// Frames that so many KiB take; all that there can be, if more.
pub(super) fn pages_of_kib(kib: u64) -> u32 {
    u32::try_from(kib.div_ceil(4)).unwrap_or(u32::MAX)
}

/// `DOM0_DESTROYDOMAIN`: when this returns 0, the domain has no memory but what others map of it.
pub(super) fn destroy<H: Hardware>(caller: &mut Caller<'_, H>, argument: DestroyDomain) -> Result<u64, Stop> {
    let dom = other(caller, argument.domain)?;
    // Its end is the machine's.
    if dom.id == DomId::DOM0 {
        return Err(Errno::EINVAL.into());
    }
    caller.vcpu.unfinished.forget_creation(dom.id);
    life::end(caller.host, &dom, &mut Poll::begin())?;
    caller.host.hw.trace(|| Event::DomainRemoved(dom.id));
    life::reap(caller.host);
    Ok(0)
}

/// `DOM0_PAUSEDOMAIN`: when this returns 0, the domain does not run, until it is unpaused. Once paused is as good as
/// twice.
pub(super) fn pause<H: Hardware>(caller: &Caller<'_, H>, argument: PauseDomain) -> Result<u64, Stop> {
    let dom = other(caller, argument.domain)?;
    dom.pause();
    if !dom.run_state().contains(RunState::DYING) {
        caller.host.hw.await_stop(&dom)?;
    }
    Ok(0)
}

/// `DOM0_UNPAUSEDOMAIN`: the domain goes on as far as this is concerned. EINVAL before it is built.
pub(super) fn unpause<H: Hardware>(caller: &Caller<'_, H>, argument: UnpauseDomain) -> Result<u64, Stop> {
    let dom = caller.host.domains.find(argument.domain).ok_or(Errno::ESRCH)?;
    if dom.run_state().contains(RunState::UNBUILT) {
        return Err(Errno::EINVAL.into());
    }
    dom.unpause();
    Ok(0)
}
