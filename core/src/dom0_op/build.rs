//! `DOM0_BUILDDOMAIN`: a domain gets the state in which it begins.
//!
//! Its memory holds what its builder has put there by then; of that, the page tables and the pages of its GDT are
//! validated here, if its builder has not pinned them before, which makes way as always. The rest of the context is
//! looked at first, so a request that is refused leaves the domain unbuilt and as it was.

use super::Request;
use super::context::{self, Boxed, Layout};
use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use crate::domain::{Arch, Domain, RunState};
use crate::event::EventDomains;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::mmu::{Abandoned, settle};
use crate::others::{MachineState, Stopped};
use crate::paging::partial::Drained;
use crate::paging::{Pager, PagingError};
use crate::personality::Personality;
use crate::preempt::{Poll, Stop};
use crate::segments::{INITIAL_GDT_ENTRIES, TABLE_PAGES};
use crate::vcpu::Vcpu;
use proxenos_abi::context::{ContextFlags, FullExecutionContext};
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::BuildDomain;
use proxenos_abi::zerocopy::IntoBytes;
use proxenos_abi::{Errno, GuestWord, X86_32, X86_64};

/// `DOM0_BUILDDOMAIN`.
pub(super) fn build<P: Personality, H: Hardware>(request: &mut Request<'_, '_, H>) -> Result<u64, Stop> {
    let argument: BuildDomain<P> = request.op.argument();
    let caller = &mut *request.caller;
    // 2.0 says so of a domain that there is not.
    let dom = caller.host.domains.find(argument.domain).ok_or(Errno::EINVAL)?;
    let state = dom.run_state();
    if !state.contains(RunState::UNBUILT) || state.contains(RunState::DYING) || dom.id == DomId::DOM0 {
        return Err(Errno::EINVAL.into());
    }
    let at = GuestVirt(argument.ctxt.to_u64());
    match dom.arch {
        Arch::X86_32 => build_as::<P, X86_32, H>(caller, &dom, at, request.version),
        Arch::X86_64 => build_as::<P, X86_64, H>(caller, &dom, at, request.version),
    }
}

fn build_as<P: Personality, A: Layout, H: Hardware>(
    caller: &mut Caller<'_, H>,
    dom: &Domain,
    at: GuestVirt,
    version: Dom0Version,
) -> Result<u64, Stop> {
    let mut context = Boxed::<A>::zeroed()?;
    caller.copy_from_guest::<P>(at, context.get_mut().as_mut_bytes())?;
    let context = context.get();
    let flags = ContextFlags::from_bits_retain(context.flags.to_u64() as u32);
    if flags.contains(ContextFlags::OTHER_ARCH) != (A::ARCH != P::ARCH) {
        return Err(Errno::EINVAL.into());
    }
    let host = caller.host;
    let built = host.hw.with_stopped(dom, |Stopped { vcpu, state }| {
        // What it may do with ports was said of the domain, not of its state.
        let new = Vcpu { ports: vcpu.ports, ..Vcpu::new() };
        *vcpu = new;
        *state = MachineState::ZERO;
        let built = context::load(context, version, vcpu, state)
            .map_err(Stop::from)
            .and_then(|()| take_tables::<A, H>(host, dom, vcpu, context));
        if built.is_err() {
            *vcpu = Vcpu { ports: vcpu.ports, ..Vcpu::new() };
        }
        built
    });
    // What was loaded on the way was the other domain's.
    caller.vcpu.segments.load(host, caller.dom);
    built??;
    dom.complete();
    Ok(0)
}

/// Makes the context's page tables and descriptor tables the domain's. On failure it has none.
fn take_tables<A: Layout, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    context: &FullExecutionContext<A>,
) -> Result<(), Stop> {
    let (ldt_base, ldt_entries) = (GuestVirt(context.ldt_base.to_u64()), context.ldt_ents.to_u64());
    let entries = context.gdt_ents.to_u64();
    if entries != 0 && !(u64::from(INITIAL_GDT_ENTRIES)..=512 * TABLE_PAGES as u64).contains(&entries) {
        return Err(Errno::EINVAL.into());
    }
    let base = MachineAddr(context.pt_base.to_u64()).mfn();
    if !host.is_ram(base) {
        return Err(Errno::EINVAL.into());
    }
    let mut poll = Poll::begin();
    if settle(host, dom, &mut poll, Abandoned::Keep) == Drained::Partly {
        return Err(Stop::Preempted);
    }
    let pager = Pager::new(host, dom);
    let mut state = pager.lock();
    state.poll = poll;
    let set = pager.set_base::<A::Tables>(&mut state, base);
    poll = core::mem::replace(&mut state.poll, Poll::NEVER);
    drop(state);
    match set {
        Ok(()) => {}
        Err(PagingError::Preempted) => return Err(Stop::Preempted),
        Err(error) => {
            // What there is no time to undo now is undone before anything else is made of these frames.
            let _: Drained = settle(host, dom, &mut poll, Abandoned::Keep);
            return Err(Errno::from(error).into());
        }
    }
    let given = context.gdt_frames;
    let frames = given.map(|frame| Mfn(frame.to_u64()));
    let frames = &frames[..(entries as usize).div_ceil(512)];
    let mut tables = || {
        if entries != 0 {
            vcpu.segments.set_gdt::<A, H>(host, dom, frames, entries as u16)?;
        }
        vcpu.segments.set_ldt::<A, H>(host, dom, ldt_base, ldt_entries)
    };
    let result = tables();
    if result.is_err() {
        vcpu.segments.release::<A, H>(host, dom);
        pager.clear_base::<A::Tables>(&mut pager.lock());
    }
    Ok(result?)
}
