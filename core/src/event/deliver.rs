//! Delivery: from an interrupt to the receiver's port, and to the bits in its shared_info page.

use super::EventDomain;
use super::page::signal;
use crate::addr::Mfn;
use crate::machine::MachineMemory;
use proxenos_abi::{Pirq, Port, Virq};

/// Sets one of a domain's ports pending, and notifies the domain if that calls for an upcall.
#[inline(always)]
pub(super) fn raise<D: EventDomain, M: MachineMemory>(domain: &D, memory: &M, port: Port) {
    signal(memory, domain.shared_info(), port, || domain.notify());
}

/// Delivers a virtual interrupt to a domain: to the port it is bound to, else to port 0.
#[inline(always)]
pub fn raise_virq<D: EventDomain, M: MachineMemory>(domain: &D, memory: &M, virq: Virq) {
    raise_virq_at(domain, memory, domain.shared_info(), virq);
}

/// The same for a caller that has the number of the domain's shared page at hand.
#[inline(always)]
pub fn raise_virq_at<D: EventDomain, M: MachineMemory>(domain: &D, memory: &M, shared_info: Mfn, virq: Virq) {
    debug_assert_eq!(shared_info, domain.shared_info());
    signal(memory, shared_info, domain.events().virq_port(virq), || domain.notify());
}

/// Delivers a physical interrupt to a domain it is routed to; nothing happens when it is not bound to a port (it was
/// closed a moment ago).
#[inline]
pub fn raise_pirq<D: EventDomain, M: MachineMemory>(domain: &D, memory: &M, pirq: Pirq) {
    if let Some(port) = domain.events().pirq_port(pirq) {
        raise(domain, memory, port);
    }
}
