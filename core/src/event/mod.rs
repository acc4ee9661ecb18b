//! Event channels: 1024 ports a domain, each closed, waiting, or bound to another port, a virtual or a physical
//! interrupt.
//!
//! Promises: the two ends of a bound channel always name each other; a virtual or physical interrupt is bound to at
//! most one port of a domain, and its port says so; a refused request changes nothing; nothing binds to a dying domain.
//!
//! Locks: each domain's ports are behind the mutex of its [`EventChannels`]. Two are taken in order of domain id, never
//! otherwise. The tables from interrupt to port are atomics beside it, so an interrupt is delivered without a lock. The
//! mutex is not for interrupt context.
//!
//! What the interface says is in `event_channel.h`; the notes cited below are that header's.

mod deliver;
mod ops;
mod page;
#[cfg(test)]
mod tests;
mod wire;

pub use deliver::{raise_pirq, raise_virq, raise_virq_at};
pub use ops::{
    End, alloc_unbound, bind_interdomain, bind_pirq, bind_virq, close, close_all, close_some, send, send_at_once,
    status,
};
pub use page::{block, is_masked, signal, upcall_is_due};
pub use wire::{Reply, event_channel_op};

use crate::addr::Mfn;
use crate::sync::{Mutex, MutexGuard};
use alloc::vec::Vec;
use core::ops::Deref;
use core::sync::atomic::{AtomicU16, Ordering};
use proxenos_abi::ids::NR_VIRQS;
use proxenos_abi::{DomId, Errno, Pirq, Port, Virq};

/// Ports of a domain (`NR_EVENT_CHANNELS`).
pub const PORTS: usize = 1024;
/// Physical interrupt lines that can be bound, as many as in Xen 2.0.
pub const PIRQS: usize = 128;

/// What a domain must offer for its event channels. The hypervisor's domain implements it; tests have their own.
pub trait EventDomain {
    /// The domain's number. Never reserved, never changes.
    fn id(&self) -> DomId;
    /// Whether it may act on other domains' channels.
    fn is_privileged(&self) -> bool;
    /// Its channels.
    fn events(&self) -> &EventChannels;
    /// The frame of its shared_info page. It stays the domain's until after [`close_all`].
    fn shared_info(&self) -> Mfn;
    /// `upcall_pending` was just set: wake the domain if it is blocked, interrupt its CPU if it runs on another.
    /// May be called with another domain's port mutex held, and from interrupt context.
    fn notify(&self);
    /// The same, if it is the domain that runs on this CPU which has sent the event: it looks for itself on its way
    /// back.
    fn notify_self(&self) {
        self.notify();
    }
    /// Routes a physical interrupt to the domain. Called with its port mutex held.
    ///
    /// # Errors
    /// [`EventError::NotPermitted`] without the right to it, [`EventError::InterruptBusy`] when it is in use and one
    /// side will not share.
    fn route_pirq(&self, pirq: Pirq, sharing: PirqSharing) -> Result<(), EventError>;
    /// Ends what [`route_pirq`](Self::route_pirq) began. Called with the domain's port mutex held.
    fn unroute_pirq(&self, pirq: Pirq);
}

/// All domains, by number.
pub trait EventDomains {
    /// The domains.
    type Domain: EventDomain;
    /// A reference that keeps a domain alive.
    type Ref: Deref<Target = Self::Domain>;
    /// The domain with this number, until its [`close_all`] has returned.
    fn find(&self, id: DomId) -> Option<Self::Ref>;
}

/// Whether a domain accepts others on the same physical interrupt (`BIND_PIRQ__WILL_SHARE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PirqSharing {
    /// The flag is clear.
    Exclusive,
    /// The flag is set.
    Shared,
}

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventError {
    /// The caller lacks the privilege.
    NotPermitted,
    /// There is no such domain, or it is dying.
    NoSuchDomain,
    /// The port number is not below [`PORTS`].
    PortOutOfRange,
    /// The port's state does not allow the request.
    PortState,
    /// Port 0 belongs to `VIRQ_MISDIRECT` for good.
    PortReserved,
    /// No virtual or physical interrupt has this number.
    NoSuchInterrupt,
    /// The physical interrupt is in use and is not shared.
    InterruptBusy,
    /// Every port is taken.
    NoFreePort,
    /// The hypervisor is out of memory for port tables.
    OutOfMemory,
    /// No operation has this number.
    UnknownOperation,
}

impl From<EventError> for Errno {
    fn from(error: EventError) -> Self {
        match error {
            EventError::NotPermitted => Self::EPERM,
            EventError::NoSuchDomain => Self::ESRCH,
            EventError::PortOutOfRange
            | EventError::PortState
            | EventError::PortReserved
            | EventError::NoSuchInterrupt => Self::EINVAL,
            EventError::InterruptBusy => Self::EBUSY,
            EventError::NoFreePort => Self::ENOSPC,
            EventError::OutOfMemory => Self::ENOMEM,
            EventError::UnknownOperation => Self::ENOSYS,
        }
    }
}

/// A port's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    /// Not in use.
    Closed,
    /// Waits for that domain to bind it.
    Unbound {
        /// The domain it waits for.
        remote: DomId,
    },
    /// One end of a channel.
    Interdomain {
        /// The domain at the other end.
        remote: DomId,
        /// Its port.
        port: Port,
        /// Its shared_info frame: a send needs no look at the domain itself unless it must be woken. Valid because a
        /// domain's end, and with it this one, leaves this state before the frame leaves the domain ([`close_all`]).
        shared_info: Mfn,
    },
    /// Bound to a physical interrupt.
    Pirq(Pirq),
    /// Bound to a virtual interrupt.
    Virq(Virq),
}

const _: () = assert!(size_of::<Channel>() == 16);

/// A domain's event channels.
#[derive(Debug)]
pub struct EventChannels {
    ports: Mutex<EventPorts>,
    /// Port of each virtual interrupt; 0, the port of `VIRQ_MISDIRECT`, for those not bound.
    virqs: [AtomicU16; NR_VIRQS],
    /// Port of each physical interrupt, 0 for none.
    pirqs: [AtomicU16; PIRQS],
}

impl Default for EventChannels {
    fn default() -> Self {
        Self::new()
    }
}

impl EventChannels {
    /// Channels as a domain starts with them: all closed but port 0, which `VIRQ_MISDIRECT` has.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ports: Mutex::new(EventPorts { channels: Vec::new(), dying: false }),
            virqs: [const { AtomicU16::new(0) }; NR_VIRQS],
            pirqs: [const { AtomicU16::new(0) }; PIRQS],
        }
    }

    /// The port that a virtual interrupt arrives at.
    #[must_use]
    pub fn virq_port(&self, virq: Virq) -> Port {
        Port(u32::from(self.virqs[virq.raw() as usize].load(Ordering::Relaxed)))
    }

    /// The port that a physical interrupt arrives at, if it is bound.
    #[must_use]
    pub fn pirq_port(&self, pirq: Pirq) -> Option<Port> {
        let port = self.pirqs.get(pirq.0 as usize)?.load(Ordering::Relaxed);
        (port != 0).then_some(Port(u32::from(port)))
    }

    /// The state of a port.
    ///
    /// # Errors
    /// [`EventError::PortOutOfRange`].
    pub fn channel(&self, port: Port) -> Result<Channel, EventError> {
        self.ports.lock().channel(port)
    }

    fn lock(&self) -> MutexGuard<'_, EventPorts> {
        self.ports.lock()
    }

    #[inline(always)]
    fn try_lock(&self) -> Option<MutexGuard<'_, EventPorts>> {
        self.ports.try_lock()
    }
}

/// The ports themselves, behind the mutex.
#[derive(Debug)]
struct EventPorts {
    /// By port number. Grows as ports are used; those beyond its end are closed. Index 0 is always closed here.
    channels: Vec<Channel>,
    /// Set when the domain dies: nothing is opened any more.
    dying: bool,
}

impl EventPorts {
    fn channel(&self, port: Port) -> Result<Channel, EventError> {
        self.state(port).copied()
    }

    /// The state of a port, where it is kept.
    #[inline(always)]
    fn state(&self, port: Port) -> Result<&Channel, EventError> {
        match port.0 as usize {
            0 => Ok(&Channel::Virq(Virq::Misdirect)),
            index if index >= PORTS => Err(EventError::PortOutOfRange),
            index => Ok(self.channels.get(index).unwrap_or(&Channel::Closed)),
        }
    }

    /// Refuses a port number that does not exist, and makes room for its state.
    fn make_room(&mut self, port: Port) -> Result<(), EventError> {
        let index = port.0 as usize;
        if index >= PORTS {
            return Err(EventError::PortOutOfRange);
        }
        if index >= self.channels.len() {
            // Powers of two from 16, so that a domain that opens all its ports copies the table six times.
            let len = (index + 1).next_power_of_two().max(16);
            self.channels.try_reserve_exact(len - self.channels.len()).map_err(|_| EventError::OutOfMemory)?;
            self.channels.resize(len, Channel::Closed);
        }
        Ok(())
    }

    /// Sets the state of a port there is room for.
    fn set(&mut self, port: Port, channel: Channel) {
        self.channels[port.0 as usize] = channel;
    }

    /// The lowest closed port above 0, other than `taken`, with room made for it. Kernels expect low numbers.
    fn free_port(&mut self, taken: Option<Port>) -> Result<Port, EventError> {
        let index = (1..PORTS)
            .find(|&index| {
                self.channels.get(index).is_none_or(|channel| *channel == Channel::Closed)
                    && taken != Some(Port(index as u32))
            })
            .ok_or(EventError::NoFreePort)?;
        let port = Port(index as u32);
        self.make_room(port)?;
        Ok(port)
    }

    /// Refuses when the domain is dying.
    fn alive(&self) -> Result<(), EventError> {
        if self.dying { Err(EventError::NoSuchDomain) } else { Ok(()) }
    }
}

/// The ports of two domains, or of one that plays both parts, locked in order of domain id.
enum Pair<'a> {
    One(MutexGuard<'a, EventPorts>),
    Two(MutexGuard<'a, EventPorts>, MutexGuard<'a, EventPorts>),
}

impl<'a> Pair<'a> {
    fn lock<D: EventDomain>(first: &'a D, second: &'a D) -> Self {
        if first.id() == second.id() {
            Self::One(first.events().lock())
        } else if first.id() < second.id() {
            let one = first.events().lock();
            let two = second.events().lock();
            Self::Two(one, two)
        } else {
            let two = second.events().lock();
            let one = first.events().lock();
            Self::Two(one, two)
        }
    }

    fn first(&mut self) -> &mut EventPorts {
        match self {
            Self::One(ports) | Self::Two(ports, _) => ports,
        }
    }

    fn second(&mut self) -> &mut EventPorts {
        match self {
            Self::One(ports) | Self::Two(_, ports) => ports,
        }
    }
}
