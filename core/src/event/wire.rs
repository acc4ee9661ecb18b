//! `event_channel_op` of the 2.0 interface: from the request's 32 bytes to an operation, and its results back.

use super::{Channel, End, EventDomains, EventError, PirqSharing, ops};
use crate::machine::MachineMemory;
use proxenos_abi::event_channel::{
    BindPirqFlags, Channel as WireChannel, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnBindPirq, EvtchnBindVirq,
    EvtchnOp, EvtchnRequest, EvtchnStatus,
};
use proxenos_abi::payload::Payload;
use proxenos_abi::{Port, Virq};

/// Whether a request has results that the guest is waiting for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Reply {
    /// The request holds results: copy it back to where it came from.
    CopyBack,
    /// The request is as it was.
    Nothing,
}

/// Carries out a request of the calling domain. Results are written into `op`; a refused request is left as it was.
///
/// # Errors
/// Those of the operations, and [`EventError::UnknownOperation`].
pub fn event_channel_op<S: EventDomains, M: MachineMemory>(
    caller: &S::Domain,
    domains: &S,
    memory: &M,
    op: &mut EvtchnOp,
) -> Result<Reply, EventError> {
    match op.decode().map_err(|_| EventError::UnknownOperation)? {
        EvtchnRequest::Send(send) => {
            ops::send(caller, domains, memory, send.local_port)?;
            return Ok(Reply::Nothing);
        }
        EvtchnRequest::Close(close) => {
            ops::close(caller, domains, close.dom, close.port)?;
            return Ok(Reply::Nothing);
        }
        EvtchnRequest::AllocUnbound(request) => {
            let port = ops::alloc_unbound(caller, request.dom)?;
            write(op, EvtchnAllocUnbound { port, ..request });
        }
        EvtchnRequest::BindInterdomain(request) => {
            let first = End { domain: request.dom1, port: wildcard(request.port1) };
            let second = End { domain: request.dom2, port: wildcard(request.port2) };
            let (port1, port2) = ops::bind_interdomain(caller, domains, first, second)?;
            write(op, EvtchnBindInterdomain { port1, port2, ..request });
        }
        EvtchnRequest::BindVirq(request) => {
            let virq = Virq::from_raw(request.virq).ok_or(EventError::NoSuchInterrupt)?;
            let port = ops::bind_virq(caller, virq)?;
            write(op, EvtchnBindVirq { port, ..request });
        }
        EvtchnRequest::BindPirq(request) => {
            let shared = BindPirqFlags::from_bits_retain(request.flags).contains(BindPirqFlags::WILL_SHARE);
            let sharing = if shared { PirqSharing::Shared } else { PirqSharing::Exclusive };
            let port = ops::bind_pirq(caller, request.pirq, sharing)?;
            write(op, EvtchnBindPirq { port, ..request });
        }
        EvtchnRequest::Status(mut request) => {
            let channel = ops::status(caller, domains, request.dom, request.port)?;
            let unused = request.u;
            request.set_channel(to_wire(channel));
            // As in C, bytes of the union that the state does not use stay the caller's.
            if channel == Channel::Closed {
                request.u = unused;
            }
            write::<EvtchnStatus>(op, request);
        }
    }
    Ok(Reply::CopyBack)
}

/// Port 0 stands for any.
fn wildcard(port: Port) -> Option<Port> {
    (port.0 != 0).then_some(port)
}

/// Writes results over the request's argument.
fn write<T: proxenos_abi::Pod>(op: &mut EvtchnOp, argument: T) {
    let mut payload: Payload<24> = op.u;
    payload.write(argument);
    op.u = payload;
}

fn to_wire(channel: Channel) -> WireChannel {
    match channel {
        Channel::Closed => WireChannel::Closed,
        Channel::Unbound { remote } => WireChannel::Unbound(remote),
        Channel::Interdomain { remote, port, .. } => WireChannel::Interdomain(remote, port),
        Channel::Pirq(pirq) => WireChannel::Pirq(pirq),
        Channel::Virq(virq) => WireChannel::Virq(virq),
    }
}
