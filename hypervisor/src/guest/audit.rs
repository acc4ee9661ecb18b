//! The audit of the whole machine's memory ([`proxenos_core::audit`]): when a domain ends, and when a guest asks for it
//! by the debugging call 31, each if the options say so (`audit`). What it finds is a fault of the hypervisor's: it
//! ends the machine, like any other.
//!
//! It takes the domains' paging locks and then the allocator's, and 160 KiB of the heap at most: it is called with none
//! of the hypervisor's locks held, on the way from a guest. The other CPUs stand still meanwhile, none with a lock, so
//! that a domain is in its seat or runs on one of them.

use super::{Running, running_elsewhere, sched};
use crate::boot;
use crate::cpu::entry::TrapFrame;
use crate::cpu::ipi;
use crate::cpu::percpu::Cpu;
use crate::options::Audit;
use alloc::vec::Vec;
use proxenos_abi::Errno;
use proxenos_core::audit::{Subject, audit};
use proxenos_core::segments::Segments;

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
    ipi::while_others_stand_still(|| sched::with_all_parked(|parked, running| look(run, parked, running)));
}

/// All other CPUs stand still. `parked` are the domains that do not run, and `running` is how many do, with the one
/// here.
fn look(run: &Running, parked: &[&Running], running: usize) {
    // SAFETY: the other CPUs stand still until this is over.
    let elsewhere = unsafe { running_elsewhere() };
    let all: Vec<&Running> = core::iter::once(run).chain(elsewhere).chain(parked.iter().copied()).collect();
    assert!(all.len() == running + parked.len(), "a domain neither runs nor is in its seat");
    // Those that end have no virtual CPU any more.
    let domains = run.host.domains.all();
    let others: Vec<_> = domains
        .iter()
        .filter(|dom| !all.iter().any(|run| run.dom.id == dom.id))
        .map(|dom| (dom, dom.ending.lock()))
        .collect();
    let none = Segments::new();
    let ending = others.iter().map(|(dom, ending)| Subject { dom, segments: ending.segments().unwrap_or(&none) });
    let subjects: Vec<Subject<'_>> =
        all.iter().map(|run| Subject { dom: &run.dom, segments: &run.vcpu.segments }).chain(ending).collect();
    match audit(run.host, &subjects) {
        Ok(census) => log::info!("audit: {census}: all hold"),
        Err(violations) => {
            violations.iter().for_each(|violation| log::error!("audit: {violation}"));
            panic!("the audit found {} violations", violations.len())
        }
    }
}
