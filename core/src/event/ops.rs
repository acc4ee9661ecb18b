//! The seven operations on event channels, and the eighth that a guest cannot call: closing all of a dying domain's.

use super::page::signal;
use super::{Channel, EventDomain, EventDomains, EventError, EventPorts, PORTS, Pair, PirqSharing};
use crate::addr::Mfn;
use crate::machine::MachineMemory;
use crate::sync::MutexGuard;
use core::ops::Deref;
use core::sync::atomic::Ordering;
use proxenos_abi::{DomId, Pirq, Port, Virq};

/// One end of a channel to be: a domain (`DOMID_SELF` for the caller) and a port of it, or any free one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// The domain.
    pub domain: DomId,
    /// The port; `None` is the wildcard.
    pub port: Option<Port>,
}

/// A domain that a request names: the caller itself, or one that was looked up.
enum Named<'a, D, R> {
    Caller(&'a D),
    Other(R),
}

impl<D, R: Deref<Target = D>> Deref for Named<'_, D, R> {
    type Target = D;
    fn deref(&self) -> &D {
        match self {
            Self::Caller(domain) => domain,
            Self::Other(domain) => domain,
        }
    }
}

/// Finds a domain by the number in a request.
fn named<'a, S: EventDomains>(
    caller: &'a S::Domain,
    domains: &S,
    id: DomId,
) -> Result<Named<'a, S::Domain, S::Ref>, EventError> {
    if id == DomId::SELF || id == caller.id() {
        Ok(Named::Caller(caller))
    } else {
        domains.find(id).map(Named::Other).ok_or(EventError::NoSuchDomain)
    }
}

/// Refuses an unprivileged caller that names a domain other than by `DOMID_SELF`.
fn self_or_privileged<D: EventDomain>(caller: &D, id: DomId) -> Result<(), EventError> {
    if id == DomId::SELF || caller.is_privileged() { Ok(()) } else { Err(EventError::NotPermitted) }
}

/// Opens a port of the caller for `remote` to bind to. `remote` need not exist yet; `DOMID_SELF` is the caller.
///
/// # Errors
/// [`EventError::NoFreePort`], [`EventError::OutOfMemory`].
pub fn alloc_unbound<D: EventDomain>(caller: &D, remote: DomId) -> Result<Port, EventError> {
    let remote = if remote == DomId::SELF { caller.id() } else { remote };
    let mut ports = caller.events().lock();
    ports.alive()?;
    let port = ports.free_port(None)?;
    ports.set(port, Channel::Unbound { remote });
    Ok(port)
}

/// Binds two ports to each other; answers both, which may have been bound to each other before.
///
/// # Errors
/// [`EventError::NotPermitted`] (notes 2 and 3), [`EventError::NoSuchDomain`], [`EventError::PortOutOfRange`],
/// [`EventError::PortState`] (notes 4 and 5), [`EventError::NoFreePort`], [`EventError::OutOfMemory`].
pub fn bind_interdomain<S: EventDomains>(
    caller: &S::Domain,
    domains: &S,
    first: End,
    second: End,
) -> Result<(Port, Port), EventError> {
    self_or_privileged(caller, first.domain)?;
    let (one, two) = (named(caller, domains, first.domain)?, named(caller, domains, second.domain)?);
    let mut pair = Pair::lock(&*one, &*two);
    pair.first().alive()?;
    pair.second().alive()?;

    if let Some(port) = first.port {
        match pair.first().channel(port)? {
            Channel::Closed => {}
            Channel::Unbound { remote } if remote == two.id() => {}
            Channel::Interdomain { remote, port: peer, .. }
                if remote == two.id() && second.port.is_none_or(|wanted| wanted == peer) =>
            {
                return Ok((port, peer));
            }
            _ => return Err(EventError::PortState),
        }
    }
    let remote_closed = match second.port {
        None => true,
        Some(port) => match pair.second().channel(port)? {
            Channel::Closed => true,
            Channel::Unbound { remote } if remote == one.id() => false,
            Channel::Interdomain { remote, port: peer, .. }
                if remote == one.id() && first.port.is_none_or(|wanted| wanted == peer) =>
            {
                return Ok((peer, port));
            }
            _ => return Err(EventError::PortState),
        },
    };
    if remote_closed {
        self_or_privileged(caller, second.domain)?;
    }

    // Nothing is written until both ports are certain. In one domain, neither wildcard may take the other's port.
    let same = one.id() == two.id();
    let port1 = choose(pair.first(), first.port, second.port.filter(|_| same))?;
    let port2 = choose(pair.second(), second.port, Some(port1).filter(|_| same))?;
    let end1 = Channel::Interdomain { remote: two.id(), port: port2, shared_info: two.shared_info() };
    let end2 = Channel::Interdomain { remote: one.id(), port: port1, shared_info: one.shared_info() };
    pair.first().set(port1, end1);
    pair.second().set(port2, end2);
    Ok((port1, port2))
}

/// The port asked for, or a free one other than `taken`, with room made for its state.
fn choose(ports: &mut EventPorts, wanted: Option<Port>, taken: Option<Port>) -> Result<Port, EventError> {
    match wanted {
        Some(port) => ports.make_room(port).map(|()| port),
        None => ports.free_port(taken),
    }
}

/// Binds a virtual interrupt to a free port of the caller; answers the port it has already, if it has one.
/// `VIRQ_MISDIRECT` always has port 0.
///
/// # Errors
/// [`EventError::NoFreePort`], [`EventError::OutOfMemory`].
pub fn bind_virq<D: EventDomain>(caller: &D, virq: Virq) -> Result<Port, EventError> {
    let events = caller.events();
    let mut ports = events.lock();
    let bound = events.virq_port(virq);
    if virq == Virq::Misdirect || bound != Port(0) {
        return Ok(bound);
    }
    ports.alive()?;
    let port = ports.free_port(None)?;
    ports.set(port, Channel::Virq(virq));
    events.virqs[virq.raw() as usize].store(port.0 as u16, Ordering::Relaxed);
    Ok(port)
}

/// Routes a physical interrupt to the caller and binds it to a free port; answers the port it has already, if it has
/// one.
///
/// # Errors
/// [`EventError::NoSuchInterrupt`], [`EventError::NoFreePort`], [`EventError::OutOfMemory`], and those of
/// [`EventDomain::route_pirq`].
pub fn bind_pirq<D: EventDomain>(caller: &D, pirq: Pirq, sharing: PirqSharing) -> Result<Port, EventError> {
    let events = caller.events();
    let slot = events.pirqs.get(pirq.0 as usize).ok_or(EventError::NoSuchInterrupt)?;
    let mut ports = events.lock();
    if let Some(bound) = events.pirq_port(pirq) {
        return Ok(bound);
    }
    ports.alive()?;
    let port = ports.free_port(None)?;
    // Before the route exists, so that the first interrupt finds its port.
    slot.store(port.0 as u16, Ordering::Release);
    if let Err(error) = caller.route_pirq(pirq, sharing) {
        slot.store(0, Ordering::Relaxed);
        return Err(error);
    }
    ports.set(port, Channel::Pirq(pirq));
    Ok(port)
}

/// Closes a port of a domain (`DOMID_SELF` for the caller). The other end of a channel then waits for the domain again.
///
/// # Errors
/// [`EventError::NotPermitted`] (note 2), [`EventError::NoSuchDomain`], [`EventError::PortOutOfRange`],
/// [`EventError::PortReserved`] for port 0, [`EventError::PortState`] for a closed port.
pub fn close<S: EventDomains>(caller: &S::Domain, domains: &S, id: DomId, port: Port) -> Result<(), EventError> {
    self_or_privileged(caller, id)?;
    close_port(&*named(caller, domains, id)?, domains, port)
}

/// Closes every port of a dying domain, and lets none be opened again. To be called once the domain no longer runs,
/// while [`EventDomains::find`] still knows it and before its shared_info frame is freed.
pub fn close_all<S: EventDomains>(domain: &S::Domain, domains: &S) {
    let rest = close_some(domain, domains, Port(1), || false);
    debug_assert!(rest.is_none());
}

/// The same from a port on, until there is no time for more (`is_due`, asked before each): the port to go on with.
pub fn close_some<S: EventDomains>(
    domain: &S::Domain,
    domains: &S,
    first: Port,
    mut is_due: impl FnMut() -> bool,
) -> Option<Port> {
    let len = {
        let mut ports = domain.events().lock();
        ports.dying = true;
        ports.channels.len() as u32
    };
    for port in (first.0.max(1)..len).map(Port) {
        if is_due() {
            return Some(port);
        }
        // An error means that the port is closed already.
        let _ = close_port(domain, domains, port);
    }
    None
}

fn close_port<S: EventDomains>(domain: &S::Domain, domains: &S, port: Port) -> Result<(), EventError> {
    if port == Port(0) {
        return Err(EventError::PortReserved);
    }
    loop {
        let peer = {
            let mut ports = domain.events().lock();
            match ports.channel(port)? {
                Channel::Closed => return Err(EventError::PortState),
                Channel::Interdomain { remote, .. } if remote != domain.id() => remote,
                channel => {
                    release(domain, &mut ports, channel);
                    ports.set(port, Channel::Closed);
                    return Ok(());
                }
            }
        };
        // The mutex had to be let go to take both in order, so the channel may have changed: look again.
        let Some(other) = domains.find(peer) else {
            // `find` knows every domain that still has an end, so this one is gone already, unless the caller broke
            // that rule: then at least no end is left here.
            let mut ports = domain.events().lock();
            if matches!(ports.channel(port)?, Channel::Interdomain { remote, .. } if remote == peer) {
                ports.set(port, Channel::Closed);
                return Ok(());
            }
            continue;
        };
        let mut pair = Pair::lock(domain, &*other);
        match pair.first().channel(port)? {
            Channel::Interdomain { remote, port: end, .. } if remote == peer => {
                pair.second().set(end, Channel::Unbound { remote: domain.id() });
                pair.first().set(port, Channel::Closed);
                return Ok(());
            }
            _ => {}
        }
    }
}

/// Undoes what a channel within one domain is bound to.
fn release<D: EventDomain>(domain: &D, ports: &mut EventPorts, channel: Channel) {
    match channel {
        Channel::Closed | Channel::Unbound { .. } => {}
        // Both ends are this domain's. Should they be one port, the caller closes it after this.
        Channel::Interdomain { port, .. } => ports.set(port, Channel::Unbound { remote: domain.id() }),
        Channel::Pirq(pirq) => {
            domain.unroute_pirq(pirq);
            domain.events().pirqs[pirq.0 as usize].store(0, Ordering::Relaxed);
        }
        Channel::Virq(virq) => domain.events().virqs[virq.raw() as usize].store(0, Ordering::Relaxed),
    }
}

/// Sends an event to the other end of one of the caller's channels.
///
/// # Errors
/// [`EventError::PortOutOfRange`]; [`EventError::PortState`] unless the port is bound to another port.
pub fn send<S: EventDomains, M: MachineMemory>(
    caller: &S::Domain,
    domains: &S,
    memory: &M,
    port: Port,
) -> Result<(), EventError> {
    match send_holding(caller.events().lock(), caller, domains, memory, port) {
        Some(_) => Ok(()),
        None => Err(not_bound(port)),
    }
}

/// The same, where the ports are free at once and the port is bound to another: the result of the call. Else nothing is
/// done.
#[inline(always)]
pub fn send_at_once<S: EventDomains, M: MachineMemory>(
    caller: &S::Domain,
    domains: &S,
    memory: &M,
    port: Port,
) -> Option<u64> {
    // A wait here would cost those who need not wait some registers.
    send_holding(caller.events().try_lock()?, caller, domains, memory, port)
}

/// Sends an event through one of the caller's ports, which are locked: to the end, so that the remote domain cannot
/// take its end away, and free its page, in between.
#[inline(always)]
fn send_holding<S: EventDomains, M: MachineMemory>(
    ports: MutexGuard<'_, EventPorts>,
    caller: &S::Domain,
    domains: &S,
    memory: &M,
    port: Port,
) -> Option<u64> {
    // Port 0 and those beyond the end have no channel there.
    match ports.channels.get(port.0 as usize) {
        Some(&Channel::Interdomain { remote, port, .. }) if remote == caller.id() => {
            signal(memory, caller.shared_info(), port, || caller.notify_self());
            Some(0)
        }
        Some(&Channel::Interdomain { remote, port, shared_info }) => {
            Some(send_to(ports, domains, memory, remote, port, shared_info))
        }
        _ => None,
    }
}

/// Why a port that is not bound to another cannot be sent through.
#[cold]
fn not_bound(port: Port) -> EventError {
    if port.0 as usize >= PORTS { EventError::PortOutOfRange } else { EventError::PortState }
}

/// Sends to another domain. The result is the call's: so it is the last that is done for one.
#[inline(never)]
fn send_to<S: EventDomains, M: MachineMemory>(
    held: MutexGuard<'_, EventPorts>,
    domains: &S,
    memory: &M,
    remote: DomId,
    port: Port,
    shared_info: Mfn,
) -> u64 {
    signal(memory, shared_info, port, || {
        if let Some(domain) = domains.find(remote) {
            domain.notify();
        }
    });
    drop(held);
    0
}

/// The state of a port of a domain (`DOMID_SELF` for the caller).
///
/// # Errors
/// [`EventError::NotPermitted`] (note 2), [`EventError::NoSuchDomain`], [`EventError::PortOutOfRange`].
pub fn status<S: EventDomains>(caller: &S::Domain, domains: &S, id: DomId, port: Port) -> Result<Channel, EventError> {
    self_or_privileged(caller, id)?;
    named(caller, domains, id)?.events().channel(port)
}
