//! Event channels (`event_channel.h`).
//!
//! `event_channel_op` takes a pointer to an [`EvtchnOp`]: a command and a union of arguments, into which results are
//! written back. The layout is the same for both architectures.

use crate::arch::Pod;
use crate::errno::UnknownValue;
use crate::ids::{DomId, Pirq, Port, Virq};
use crate::payload::Payload;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `NR_EVENT_CHANNELS` (`xen.h`): ports of a domain.
pub const NR_EVENT_CHANNELS: usize = 1024;

numbers! {
    /// Command of `event_channel_op` (`EVTCHNOP_*`).
    pub enum EventChannelOp: u32 {
        /// `EVTCHNOP_bind_interdomain`: see [`EvtchnBindInterdomain`].
        BindInterdomain = 0,
        /// `EVTCHNOP_bind_virq`: see [`EvtchnBindVirq`].
        BindVirq = 1,
        /// `EVTCHNOP_bind_pirq`: see [`EvtchnBindPirq`].
        BindPirq = 2,
        /// `EVTCHNOP_close`: see [`EvtchnClose`].
        Close = 3,
        /// `EVTCHNOP_send`: see [`EvtchnSend`].
        Send = 4,
        /// `EVTCHNOP_status`: see [`EvtchnStatus`].
        Status = 5,
        /// `EVTCHNOP_alloc_unbound`: see [`EvtchnAllocUnbound`].
        AllocUnbound = 6,
    }
}

/// An argument of `event_channel_op`: a member of [`EvtchnOp`]'s union.
pub trait EvtchnArgument: Pod {
    /// The command the argument goes with.
    const COMMAND: EventChannelOp;
}

/// Takes a fresh port and lets a domain connect to it (`evtchn_alloc_unbound_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnAllocUnbound {
    /// In: the domain that may connect.
    pub dom: DomId,
    /// `__pad`.
    pub pad: u16,
    /// Out: the port.
    pub port: Port,
}

layout!(EvtchnAllocUnbound: 8 { dom: 0, pad: 2, port: 4 });

/// Connects two ports (`evtchn_bind_interdomain_t`). Port 0 on input stands for any: a free one is taken.
///
/// An unprivileged caller's `dom1` must be itself, and its `dom2` too unless the remote port awaits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnBindInterdomain {
    /// In: one domain.
    pub dom1: DomId,
    /// In: the other domain.
    pub dom2: DomId,
    /// In and out: port of `dom1`.
    pub port1: Port,
    /// In and out: port of `dom2`.
    pub port2: Port,
}

layout!(EvtchnBindInterdomain: 12 { dom1: 0, dom2: 2, port1: 4, port2: 8 });

/// Binds a virtual interrupt to a port (`evtchn_bind_virq_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnBindVirq {
    /// In: the interrupt; see [`Virq`].
    pub virq: u32,
    /// Out: the port.
    pub port: Port,
}

layout!(EvtchnBindVirq: 8 { virq: 0, port: 4 });

/// Binds a physical interrupt to a port (`evtchn_bind_pirq_t`). For domains with access to hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnBindPirq {
    /// In: the interrupt.
    pub pirq: Pirq,
    /// In: see [`BindPirqFlags`].
    pub flags: u32,
    /// Out: the port.
    pub port: Port,
}

layout!(EvtchnBindPirq: 12 { pirq: 0, flags: 4, port: 8 });

bitflags! {
    /// `flags` of [`EvtchnBindPirq`] (`BIND_PIRQ__*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct BindPirqFlags: u32 {
        /// `BIND_PIRQ__WILL_SHARE`: other domains may bind the interrupt too.
        const WILL_SHARE = 1;
    }
}

/// Closes a port (`evtchn_close_t`). The remote end of an interdomain channel becomes unbound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnClose {
    /// In: the port's domain.
    pub dom: DomId,
    /// `__pad`.
    pub pad: u16,
    /// In: the port.
    pub port: Port,
}

layout!(EvtchnClose: 8 { dom: 0, pad: 2, port: 4 });

/// Sends an event to the other end of a port of the caller's (`evtchn_send_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnSend {
    /// In: the port.
    pub local_port: Port,
}

layout!(EvtchnSend: 4 { local_port: 0 });

/// Asks for a port's state (`evtchn_status_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnStatus {
    /// In: the port's domain.
    pub dom: DomId,
    /// `__pad`.
    pub pad: u16,
    /// In: the port.
    pub port: Port,
    /// Out: see [`ChannelStatus`].
    pub status: u32,
    /// Out: by status, [`StatusUnbound`], [`StatusInterdomain`], [`Pirq`] or a virtual interrupt's number (`u32`).
    pub u: Payload<8>,
}

layout!(EvtchnStatus: 20 { dom: 0, pad: 2, port: 4, status: 8, u: 12 });

/// Whom an unbound port waits for: a member of [`EvtchnStatus::u`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct StatusUnbound {
    /// The domain that may connect.
    pub dom: DomId,
}

layout!(StatusUnbound: 2 { dom: 0 });

/// The remote end of an interdomain channel: a member of [`EvtchnStatus::u`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct StatusInterdomain {
    /// The remote domain.
    pub dom: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The remote port.
    pub port: Port,
}

layout!(StatusInterdomain: 8 { dom: 0, pad: 2, port: 4 });

numbers! {
    /// `status` of [`EvtchnStatus`] (`EVTCHNSTAT_*`).
    pub enum ChannelStatus: u32 {
        /// `EVTCHNSTAT_closed`: not in use.
        Closed = 0,
        /// `EVTCHNSTAT_unbound`: waits for a domain to connect.
        Unbound = 1,
        /// `EVTCHNSTAT_interdomain`: connected to a port of some domain.
        Interdomain = 2,
        /// `EVTCHNSTAT_pirq`: bound to a physical interrupt.
        Pirq = 3,
        /// `EVTCHNSTAT_virq`: bound to a virtual interrupt.
        Virq = 4,
    }
}

/// A port's state, decoded from or encoded into [`EvtchnStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Not in use.
    Closed,
    /// Waits for a domain to connect.
    Unbound(DomId),
    /// Connected to a domain's port.
    Interdomain(DomId, Port),
    /// Bound to a physical interrupt.
    Pirq(Pirq),
    /// Bound to a virtual interrupt.
    Virq(Virq),
}

impl EvtchnStatus {
    /// The state that `status` and `u` describe.
    pub fn channel(&self) -> Result<Channel, UnknownValue> {
        Ok(match ChannelStatus::try_from(self.status)? {
            ChannelStatus::Closed => Channel::Closed,
            ChannelStatus::Unbound => Channel::Unbound(self.u.read::<StatusUnbound>().dom),
            ChannelStatus::Interdomain => {
                let remote: StatusInterdomain = self.u.read();
                Channel::Interdomain(remote.dom, remote.port)
            }
            ChannelStatus::Pirq => Channel::Pirq(self.u.read()),
            ChannelStatus::Virq => Channel::Virq(Virq::try_from(self.u.read::<u32>())?),
        })
    }

    /// Writes a state into `status` and `u`.
    pub fn set_channel(&mut self, channel: Channel) {
        let (status, u) = match channel {
            Channel::Closed => (ChannelStatus::Closed, Payload::ZERO),
            Channel::Unbound(dom) => (ChannelStatus::Unbound, Payload::of(StatusUnbound { dom })),
            Channel::Interdomain(dom, port) => {
                (ChannelStatus::Interdomain, Payload::of(StatusInterdomain { dom, pad: 0, port }))
            }
            Channel::Pirq(pirq) => (ChannelStatus::Pirq, Payload::of(pirq)),
            Channel::Virq(virq) => (ChannelStatus::Virq, Payload::of(virq.raw())),
        };
        self.status = status.raw();
        self.u = u;
    }
}

/// What `event_channel_op` points to (`evtchn_op_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct EvtchnOp {
    /// See [`EventChannelOp`].
    pub cmd: u32,
    /// `__reserved`.
    pub reserved: u32,
    /// The command's argument; an [`EvtchnArgument`].
    pub u: Payload<24>,
}

layout!(EvtchnOp: 32 { cmd: 0, reserved: 4, u: 8 });

impl EvtchnOp {
    /// A request with this argument.
    #[inline]
    pub fn new<T: EvtchnArgument>(argument: T) -> Self {
        Self { cmd: T::COMMAND.raw(), reserved: 0, u: Payload::of(argument) }
    }

    /// The command.
    #[inline]
    pub fn command(&self) -> Result<EventChannelOp, UnknownValue> {
        EventChannelOp::try_from(self.cmd)
    }

    /// The argument, read as this command's. Whether it is this command's is the caller's to know.
    #[inline]
    pub fn argument<T: EvtchnArgument>(&self) -> T {
        self.u.read()
    }

    /// The request with its argument, by command.
    pub fn decode(&self) -> Result<EvtchnRequest, UnknownValue> {
        Ok(match self.command()? {
            EventChannelOp::BindInterdomain => EvtchnRequest::BindInterdomain(self.argument()),
            EventChannelOp::BindVirq => EvtchnRequest::BindVirq(self.argument()),
            EventChannelOp::BindPirq => EvtchnRequest::BindPirq(self.argument()),
            EventChannelOp::Close => EvtchnRequest::Close(self.argument()),
            EventChannelOp::Send => EvtchnRequest::Send(self.argument()),
            EventChannelOp::Status => EvtchnRequest::Status(self.argument()),
            EventChannelOp::AllocUnbound => EvtchnRequest::AllocUnbound(self.argument()),
        })
    }
}

/// A decoded [`EvtchnOp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvtchnRequest {
    /// Connect two ports.
    BindInterdomain(EvtchnBindInterdomain),
    /// Bind a virtual interrupt.
    BindVirq(EvtchnBindVirq),
    /// Bind a physical interrupt.
    BindPirq(EvtchnBindPirq),
    /// Close a port.
    Close(EvtchnClose),
    /// Send an event.
    Send(EvtchnSend),
    /// Ask for a port's state.
    Status(EvtchnStatus),
    /// Take a fresh port.
    AllocUnbound(EvtchnAllocUnbound),
}

macro_rules! arguments {
    ($($argument:ident => $command:ident),+ $(,)?) => {
        $(impl EvtchnArgument for $argument {
            const COMMAND: EventChannelOp = EventChannelOp::$command;
        })+
    };
}

arguments! {
    EvtchnBindInterdomain => BindInterdomain,
    EvtchnBindVirq => BindVirq,
    EvtchnBindPirq => BindPirq,
    EvtchnClose => Close,
    EvtchnSend => Send,
    EvtchnStatus => Status,
    EvtchnAllocUnbound => AllocUnbound,
}
