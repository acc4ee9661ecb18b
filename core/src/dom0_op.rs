//! `dom0_op`: requests of a domain that controls the machine.
//!
//! Refused in this order, as Xen 2.0 did: callers without the privilege (-EPERM), a request that cannot be read (-EFAULT), another
//! version of the interface (-EACCES), a command that does not exist (-ENOSYS). So far the only one is `DOM0_IOPL`.
//! No lock: what changes is the calling virtual CPU's own.

use crate::addr::{DomId, GuestVirt};
use crate::domain::Domain;
use crate::host::{Hardware, Host};
use crate::hypercall::{Caller, head_of_request};
use crate::personality::Personality;
use crate::ports::Level;
use crate::vcpu::Vcpu;
use core::mem::offset_of;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::args::Iopl;
use proxenos_abi::dom0_ops::{Dom0Command, Dom0Op, Dom0Version};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};

/// `dom0_op(op)`.
pub fn dom0_op<P: Personality, H: Hardware>(caller: &mut Caller<'_, H>, at: GuestVirt) -> Result<u64, Errno> {
    if !caller.dom.is_privileged() {
        return Err(Errno::EPERM);
    }
    let mut op = Dom0Op::new_zeroed();
    caller.copy_from_guest::<P>(at, op.as_mut_bytes())?;
    op.version().map_err(|_| Errno::EACCES)?;
    match op.command() {
        Ok(Dom0Command::Iopl) => iopl(caller.dom, caller.vcpu, op.argument()),
        _ => Err(Errno::ENOSYS),
    }
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
