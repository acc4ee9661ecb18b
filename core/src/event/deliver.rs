//! Delivery: from an interrupt or a send to the bits in the receiver's shared_info page.
//!
//! Promises: no lock is taken; an event that finds its port pending, masked or its selector bit set causes no upcall
//! (the edge is lost, as the comment in `shared_info_t` says); `upcall_pending` is set last, so whoever sees it set
//! finds the port's bits set too.

use super::EventDomain;
use crate::addr::{MachineAddr, Mfn, PAGE_SHIFT};
use crate::machine::MachineMemory;
use proxenos_abi::shared_info::SharedInfo;
use proxenos_abi::{Pirq, Port, Virq};

/// Address of the shared_info field at a byte offset.
#[inline]
const fn field(shared_info: Mfn, offset: usize) -> MachineAddr {
    MachineAddr((shared_info.0 << PAGE_SHIFT) + offset as u64)
}

/// What setting a port pending came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Raised {
    /// `upcall_pending` was set: the domain must be notified.
    Upcall,
    /// The port was pending already, is masked, or others of its word await service: nothing further is to do.
    Quiet,
}

/// Sets a port pending on a shared_info page. The port must be below [`PORTS`](super::PORTS).
#[inline(always)]
pub fn set_pending<M: MachineMemory>(memory: &M, shared_info: Mfn, port: Port) -> Raised {
    let (word, bit) = (port.0 / 32 % 32, 1 << (port.0 % 32));
    let pending = field(shared_info, SharedInfo::EVTCHN_PENDING + 4 * word as usize);
    let mask = field(shared_info, SharedInfo::EVTCHN_MASK + 4 * word as usize);
    let selector = field(shared_info, SharedInfo::EVTCHN_PENDING_SEL);
    // The order of these four is the interface: the guest clears in the opposite one.
    if memory.or32(pending, bit) & bit != 0
        || memory.load32(mask) & bit != 0
        || memory.or32(selector, 1 << word) & (1 << word) != 0
    {
        return Raised::Quiet;
    }
    // The flag is the first byte of its 32-bit word, so its bit 0 is the word's.
    memory.or32(field(shared_info, SharedInfo::EVTCHN_UPCALL_PENDING), 1);
    Raised::Upcall
}

/// Whether the domain has masked a port. The port must be below [`PORTS`](super::PORTS).
pub fn is_masked<M: MachineMemory>(memory: &M, shared_info: Mfn, port: Port) -> bool {
    let word = field(shared_info, SharedInfo::EVTCHN_MASK + 4 * (port.0 / 32 % 32) as usize);
    memory.load32(word) & 1 << (port.0 % 32) != 0
}

/// Sets one of a domain's ports pending, and notifies the domain if that calls for an upcall.
#[inline(always)]
pub(super) fn raise<D: EventDomain, M: MachineMemory>(domain: &D, memory: &M, port: Port) {
    if set_pending(memory, domain.shared_info(), port) == Raised::Upcall {
        domain.notify();
    }
}

/// Delivers a virtual interrupt to a domain: to the port it is bound to, else to port 0.
#[inline]
pub fn raise_virq<D: EventDomain, M: MachineMemory>(domain: &D, memory: &M, virq: Virq) {
    raise(domain, memory, domain.events().virq_port(virq));
}

/// Delivers a physical interrupt to a domain it is routed to; nothing happens when it is not bound to a port (it was
/// closed a moment ago).
#[inline]
pub fn raise_pirq<D: EventDomain, M: MachineMemory>(domain: &D, memory: &M, pirq: Pirq) {
    if let Some(port) = domain.events().pirq_port(pirq) {
        raise(domain, memory, port);
    }
}
