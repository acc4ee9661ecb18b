//! The console of a domain that is not the initial one: messages in the control interface, half a page behind
//! `shared_info` (`io/domain_controller.h`).
//!
//! Output is a message of up to 60 bytes in the transmit ring; the controller answers in the same slot, which frees it.
//! Input comes in the receive ring and is answered with length 0. Used with upcalls masked, by one virtual CPU.

use crate::{balloon, boot, events, shared_info, shutdown};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_abi::Port;
use proxenos_abi::io::domain_controller::{
    CONTROL_MSG_BYTES, CONTROL_RING_SIZE, ConsoleMessage, ControlIf, ControlMsg, MemRequest, MemRequestMessage,
    MessageType,
};
use proxenos_abi::shared_info::CONTROL_IF_OFFSET;
use proxenos_abi::zerocopy::IntoBytes;

/// Slots of either ring.
const SLOTS: u32 = CONTROL_RING_SIZE as u32;
/// Bytes of a slot: type, subtype, id, length, and the body.
const SLOT_SIZE: usize = size_of::<ControlMsg>();
const PAYLOAD: usize = CONTROL_MSG_BYTES;
const BODY: usize = SLOT_SIZE - PAYLOAD;
const TX_RING: usize = CONTROL_IF_OFFSET + ControlIf::TX_RING;
const RX_RING: usize = CONTROL_IF_OFFSET + ControlIf::RX_RING;
const TX_REQ_PROD: usize = CONTROL_IF_OFFSET + ControlIf::TX_REQ_PROD;
const TX_RESP_PROD: usize = CONTROL_IF_OFFSET + ControlIf::TX_RESP_PROD;
const RX_REQ_PROD: usize = CONTROL_IF_OFFSET + ControlIf::RX_REQ_PROD;
const RX_RESP_PROD: usize = CONTROL_IF_OFFSET + ControlIf::RX_RESP_PROD;
const CONSOLE: u8 = MessageType::Console.raw();
const CONSOLE_DATA: u8 = ConsoleMessage::Data.raw();
const SHUTDOWN: u8 = MessageType::Shutdown.raw();
const MEM_REQUEST: u8 = MessageType::MemRequest.raw();
const MEM_REQUEST_SET: u8 = MemRequestMessage::Set.raw();
/// The id of a message whose answer nobody waits for.
const NO_CALLBACK: u8 = 0xff;

fn index(offset: usize) -> &'static AtomicU32 {
    shared_info::word(offset)
}

fn slot(ring: usize, number: u32) -> usize {
    ring + (number % SLOTS) as usize * SLOT_SIZE
}

fn get(offset: usize) -> u8 {
    shared_info::byte(offset).load(Ordering::Relaxed)
}

fn put(offset: usize, value: u8) {
    shared_info::byte(offset).store(value, Ordering::Relaxed);
}

fn notify() {
    let port = Port(boot::start_info().domain_controller_evtchn.into());
    // A controller that is gone cannot be told; the message waits for the next one.
    let _ = events::send(port);
}

/// Sends bytes, waiting for the controller where the ring is full. The first maps the shared page, if nobody has.
pub(super) fn write(bytes: &[u8]) {
    if shared_info::map().is_err() {
        return;
    }
    for piece in bytes.chunks(PAYLOAD) {
        let produced = index(TX_REQ_PROD).load(Ordering::Relaxed);
        while produced.wrapping_sub(index(TX_RESP_PROD).load(Ordering::Acquire)) >= SLOTS {
            // Yielding, not blocking: blocking would unmask upcalls.
            let _ = crate::hypercall::sched_yield();
        }
        let at = slot(TX_RING, produced);
        for (offset, byte) in [CONSOLE, CONSOLE_DATA, NO_CALLBACK, piece.len() as u8].into_iter().enumerate() {
            put(at + offset, byte);
        }
        for (offset, &byte) in piece.iter().enumerate() {
            put(at + BODY + offset, byte);
        }
        index(TX_REQ_PROD).store(produced.wrapping_add(1), Ordering::Release);
        notify();
    }
}

/// Takes on the size that a request's body asks for, and writes into it what came of that.
fn resize(body: usize) {
    let mut request = MemRequest::default();
    for (offset, byte) in request.as_mut_bytes().iter_mut().enumerate() {
        *byte = get(body + offset);
    }
    request.status = balloon::resize(request.target as usize).map_or_else(|errno| errno as u32, |()| 0);
    for (offset, &byte) in request.as_bytes().iter().enumerate() {
        put(body + offset, byte);
    }
}

/// Takes what has come in. A message longer than the room left is cut. What the controller asks of the domain is done
/// (its size) or noted (its end); messages of other kinds are answered and ignored.
pub(super) fn read(into: &mut [u8]) -> usize {
    if !shared_info::is_mapped() {
        return 0;
    }
    let mut taken = 0;
    let mut answered = index(RX_RESP_PROD).load(Ordering::Relaxed);
    while answered != index(RX_REQ_PROD).load(Ordering::Acquire) && taken < into.len() {
        let at = slot(RX_RING, answered);
        let mut answer = 0;
        match (get(at), get(at + 1)) {
            (CONSOLE, CONSOLE_DATA) => {
                let len = usize::from(get(at + 3)).min(PAYLOAD).min(into.len() - taken);
                for offset in 0..len {
                    into[taken + offset] = get(at + BODY + offset);
                }
                taken += len;
            }
            (SHUTDOWN, how) => shutdown::ask(how),
            (MEM_REQUEST, MEM_REQUEST_SET) => {
                resize(at + BODY);
                answer = size_of::<MemRequest>() as u8;
            }
            _ => {}
        }
        put(at + 3, answer);
        answered = answered.wrapping_add(1);
        index(RX_RESP_PROD).store(answered, Ordering::Release);
        notify();
    }
    taken
}
