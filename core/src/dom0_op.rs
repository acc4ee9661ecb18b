//! `dom0_op`: requests of a domain that controls the machine.
//!
//! Refused in this order, as Xen 2.0 did: callers without the privilege (-EPERM), a request that cannot be read (-EFAULT), another
//! version of the interface (-EACCES), a command that does not exist (-ENOSYS). Then each command has its own errors, and one that is
//! refused changes nothing. Where a command answers in its argument, the request is written back if it succeeded; whether it can be
//! is found out before anything is done (-EFAULT).
//!
//! No lock is held from one command to the next. Other domains' virtual CPUs are reached through [`crate::others`].

mod info;
mod life;

use crate::addr::{DomId, GuestVirt};
use crate::domain::Domain;
use crate::event::EventDomains;
use crate::host::{Hardware, Host};
use crate::hypercall::{Caller, head_of_request};
use crate::personality::Personality;
use crate::ports::Level;
use crate::preempt::Stop;
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use core::mem::offset_of;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::args::Iopl;
use proxenos_abi::dom0_ops::{Dom0Argument, Dom0Command, Dom0Op, Dom0Version};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};

/// `dom0_op(op)`.
pub fn dom0_op<P: Personality, H: Hardware>(caller: &mut Caller<'_, H>, at: GuestVirt) -> Result<u64, Stop> {
    if !caller.dom.is_privileged() {
        return Err(Errno::EPERM.into());
    }
    let mut op = Dom0Op::new_zeroed();
    caller.copy_from_guest::<P>(at, op.as_mut_bytes())?;
    let version = op.version().map_err(|_| Errno::EACCES)?;
    let command = op.command().map_err(|_| Errno::ENOSYS)?;
    Request { caller, at, op, version }.carry_out::<P>(command)
}

/// A request that is well-formed, and its caller.
struct Request<'r, 'c, H> {
    caller: &'r mut Caller<'c, H>,
    /// Where the caller has it.
    at: GuestVirt,
    op: Dom0Op,
    version: Dom0Version,
}

impl<'c, H: Hardware> Request<'_, 'c, H> {
    /// One arm a command. Those that only take arguments are called with them; those that answer in them as well, through
    /// [`with_answer`](Self::with_answer).
    fn carry_out<P: Personality>(mut self, command: Dom0Command) -> Result<u64, Stop> {
        match command {
            Dom0Command::Iopl => Ok(iopl(self.caller.dom, self.caller.vcpu, self.op.argument())?),
            Dom0Command::PauseDomain => life::pause(self.caller, self.op.argument()),
            Dom0Command::UnpauseDomain => life::unpause(self.caller, self.op.argument()),
            Dom0Command::GetDomainInfo => self.with_answer::<P, _>(info::get_domain_info::<P, H>),
            // The life of domains.
            Dom0Command::CreateDomain
            | Dom0Command::BuildDomain
            | Dom0Command::DestroyDomain
            | Dom0Command::GetMemList
            | Dom0Command::GetPageFrameInfo
            | Dom0Command::GetPageFrameInfo2
            | Dom0Command::SetDomainInitialMem
            | Dom0Command::SetDomainMaxMem
            | Dom0Command::SetDomainVmAssist => Err(Errno::ENOSYS.into()),
            // The machine and its schedulers.
            Dom0Command::SchedCtl
            | Dom0Command::AdjustDom
            | Dom0Command::PinCpuDomain
            | Dom0Command::SchedId
            | Dom0Command::PhysInfo
            | Dom0Command::SetTime
            | Dom0Command::ReadConsole
            | Dom0Command::GetTbufs
            | Dom0Command::Msr
            | Dom0Command::Debug
            | Dom0Command::PcidevAccess
            | Dom0Command::ShadowControl => Err(Errno::ENOSYS.into()),
        }
    }

    /// Carries out a command that answers in its argument.
    fn with_answer<P: Personality, T: Dom0Argument>(
        &mut self,
        command: impl FnOnce(&mut Caller<'c, H>, Dom0Version, &mut T) -> Result<u64, Stop>,
    ) -> Result<u64, Stop> {
        self.caller.copy_to_guest::<P>(self.at, self.op.as_bytes())?;
        let mut argument: T = self.op.argument();
        let result = command(self.caller, self.version, &mut argument)?;
        self.op.u.write(argument);
        self.caller.copy_to_guest::<P>(self.at, self.op.as_bytes())?;
        Ok(result)
    }
}

/// The domain that a command names, which must not be the caller.
fn other<H: Hardware>(caller: &Caller<'_, H>, id: DomId) -> Result<Arc<Domain>, Errno> {
    let dom = caller.host.domains.find(id).ok_or(Errno::ESRCH)?;
    if dom.id == caller.dom.id { Err(Errno::EINVAL) } else { Ok(dom) }
}

/// `dom0_op`, if it is a `DOM0_IOPL` that is carried out: kernels make it whenever they change tasks.
#[inline(always)]
pub(crate) fn answer_iopl<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    at: GuestVirt,
) -> Option<u64> {
    const { assert!(offset_of!(Dom0Op, interface_version) == 4 && offset_of!(Dom0Op, u) == 8) };
    const { assert!(offset_of!(Iopl, domain) == 0 && offset_of!(Iopl, iopl) == 4) };
    if !dom.is_privileged() {
        return None;
    }
    let [command, argument] = head_of_request::<P, H, { size_of::<Dom0Op>() }>(host, at)?;
    if command as u32 != Dom0Command::Iopl.raw() || Dom0Version::try_from((command >> 32) as u32).is_err() {
        return None;
    }
    let argument = Iopl { domain: DomId(argument as u16), iopl: (argument >> 32) as u32, ..Iopl::default() };
    iopl(dom, vcpu, argument).ok()
}

/// `DOM0_IOPL`: the caller's I/O privilege level, of which the low two bits count. 2.0 did not look at the domain, and gave the level to
/// the caller whichever it named; here it must name itself.
#[inline]
fn iopl(dom: &Domain, vcpu: &mut Vcpu, argument: Iopl) -> Result<u64, Errno> {
    let domain = argument.domain;
    if domain != DomId::SELF && domain != dom.id {
        return Err(Errno::ESRCH);
    }
    vcpu.ports.set_level(Level::from_raw(argument.iopl));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Arch, Privileges};
    use crate::ports::Mode;
    use crate::sim_hw::{domain, host};
    use proxenos_abi::Hypercall;

    #[test]
    fn the_unprivileged_get_no_further() {
        for arch in [Arch::X86_32, Arch::X86_64] {
            let host = host(512, 4);
            for (id, privileges) in [(1, Privileges::empty()), (2, Privileges::DEVICES)] {
                let mut guest = domain(&host, DomId(id), arch, privileges, 4);
                let result = guest.hypercall(Hypercall::Dom0Op, [0; 6]);
                assert_eq!(result as u32, Errno::EPERM.to_result() as u32);
                assert!(!guest.vcpu.ports.allow(Mode::Kernel));
            }
            let mut guest = domain(&host, DomId(3), arch, Privileges::all(), 4);
            assert_eq!(guest.hypercall(Hypercall::Dom0Op, [0; 6]) as u32, Errno::EFAULT.to_result() as u32);
        }
    }
}
