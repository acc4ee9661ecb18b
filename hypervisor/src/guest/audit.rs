//! The audit of the whole machine's memory ([`proxenos_core::audit`]): when a domain ends, and when a guest asks for it by
//! the debugging call 31, each if the options say so (`audit`). What it finds is a fault of the hypervisor's: it ends the
//! machine, like any other.
//!
//! It takes the domains' paging locks and then the allocator's, and 160 KiB of the heap at most: it is called with none of
//! the hypervisor's locks held, on the way from a guest. The other CPUs stand still meanwhile.

use super::Running;
use crate::boot;
use crate::cpu::entry::TrapFrame;
use crate::cpu::ipi;
use crate::cpu::percpu::Cpu;
use crate::options::Audit;
use proxenos_abi::Errno;
use proxenos_core::audit::{Subject, audit};

/// A domain has ended: it is looked at as it was, before anything of it is taken down.
pub fn at_end(run: &Running) {
    if boot::options().audit != Audit::Off {
        check(run);
    }
}

/// The debugging call: its result.
#[cold]
pub fn call(frame: &mut TrapFrame) -> u64 {
    if boot::options().audit != Audit::OnCall {
        return Errno::ENOSYS.to_result() as u64;
    }
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { Cpu::current().local.running() }) else { crate::fault::report_trap(frame) };
    check(run);
    0
}

/// Prints one line if all is well.
///
/// # Panics
/// If not.
fn check(run: &Running) {
    let subjects = [Subject { dom: &run.dom, segments: &run.vcpu.segments }];
    match ipi::while_others_stand_still(|| audit(run.host, &subjects)) {
        Ok(census) => log::info!("audit: {census}: all hold"),
        Err(violations) => {
            violations.iter().for_each(|violation| log::error!("audit: {violation}"));
            panic!("the audit found {} violations", violations.len())
        }
    }
}
