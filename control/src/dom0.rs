//! `dom0_op`, and what its errors mean to a client.

use alloc::format;
use proxenos_guest::abi::Errno;
use proxenos_guest::abi::dom0_ops::{Dom0Argument, Dom0Op};
use proxenos_guest::hypercall;
use proxenos_rpc::{Cause, Failure};

/// Carries a command out, and answers its argument as it was filled in.
///
/// # Safety
/// Addresses in the argument are good for what the command does with them, and what it does to this domain's memory is sound.
pub unsafe fn op_with_memory<T: Dom0Argument>(argument: T) -> Result<(usize, T), Errno> {
    let mut op = Dom0Op::new(argument);
    // SAFETY: the caller's promise.
    let result = unsafe { hypercall::dom0_op(&mut op) }?;
    Ok((result, op.argument()))
}

/// The same for a command that has no addresses.
pub fn op<T: Dom0Argument>(argument: T) -> Result<T, Errno> {
    // SAFETY: there are no addresses, and nothing is done to this domain's memory.
    unsafe { op_with_memory(argument) }.map(|(_, argument)| argument)
}

/// What the hypervisor's refusal means.
pub fn refused(what: &str, errno: Errno) -> Failure {
    let (cause, why) = match errno {
        Errno::ESRCH => (Cause::NoSuchDomain, "there is no such domain"),
        Errno::ENOMEM => (Cause::OutOfMemory, "the machine has not enough memory left"),
        Errno::EINVAL => (Cause::Invalid, "the hypervisor finds it invalid"),
        Errno::ENOSYS => (Cause::NotSupported, "the hypervisor does not know this request"),
        Errno::ENOSPC => (Cause::TooManyDomains, "there is no room for another"),
        other => (Cause::Hypervisor(other as i32), "the hypervisor refuses"),
    };
    Failure::new(cause, &format!("{what}: {why} ({errno})"))
}
