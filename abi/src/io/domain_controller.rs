//! The control channel between a domain and its controller (`io/domain_controller.h`): rings and message types.
//!
//! The rings ([`ControlIf`]) lie in the shared page, at [`CONTROL_IF_OFFSET`](crate::shared_info::CONTROL_IF_OFFSET). A
//! message is answered in its own slot: the responder overwrites it, advances the response index and sends an event.
//! The messages' bodies are in [`blkif_msg`] and [`netif_msg`].

pub mod blkif_msg;
pub mod netif_msg;

use crate::arch::AbiType;
use crate::errno::UnknownValue;
use crate::payload::Payload;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use crate::hypercall::ShutdownReason;

/// Bytes of a message's body.
pub const CONTROL_MSG_BYTES: usize = 60;

/// A message or its response (`control_msg_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ControlMsg {
    /// See [`MessageType`]. The response has the message's.
    pub msg_type: u8,
    /// What the message says, by type. The response has the message's.
    pub subtype: u8,
    /// The sender's own. The response has the message's.
    pub id: u8,
    /// Bytes of `msg` that count.
    pub length: u8,
    /// The body, by type and subtype.
    pub msg: Payload<CONTROL_MSG_BYTES>,
}

layout!(ControlMsg: 64 { msg_type: 0, subtype: 1, id: 2, length: 3, msg: 4 });

impl Default for ControlMsg {
    fn default() -> Self {
        Self { msg_type: 0, subtype: 0, id: 0, length: 0, msg: Payload::ZERO }
    }
}

impl ControlMsg {
    /// A message with this body.
    pub fn new<T: AbiType>(msg_type: MessageType, subtype: u8, id: u8, body: T) -> Self {
        Self { msg_type: msg_type.raw(), subtype, id, length: size_of::<T>() as u8, msg: Payload::of(body) }
    }

    /// The message's type.
    #[inline]
    pub fn message_type(&self) -> Result<MessageType, UnknownValue> {
        MessageType::try_from(self.msg_type)
    }

    /// The body, if as many bytes count as it has.
    #[inline]
    pub fn body<T: AbiType>(&self) -> Option<T> {
        (usize::from(self.length) == size_of::<T>()).then(|| self.msg.read())
    }

    /// The bytes that count, at most all there are.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.msg.0[..usize::from(self.length).min(CONTROL_MSG_BYTES)]
    }
}

/// `CONTROL_RING_SIZE`: slots of each ring.
pub const CONTROL_RING_SIZE: usize = 8;

/// `CONTROL_RING_IDX`: a free-running index; the slot is its remainder by the ring's size.
pub type ControlRingIdx = u32;

/// `MASK_CONTROL_IDX`: the slot that a free-running index stands for.
#[inline]
pub const fn control_slot(index: ControlRingIdx) -> usize {
    index as usize & (CONTROL_RING_SIZE - 1)
}

/// The two rings (`control_if_t`). Both sides change them at any time: access them field by field, by the offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ControlIf {
    /// Messages from the guest to the controller.
    pub tx_ring: [ControlMsg; CONTROL_RING_SIZE],
    /// Messages from the controller to the guest.
    pub rx_ring: [ControlMsg; CONTROL_RING_SIZE],
    /// Messages produced in `tx_ring`. Written by the guest.
    pub tx_req_prod: ControlRingIdx,
    /// Responses produced in `tx_ring`. Written by the controller.
    pub tx_resp_prod: ControlRingIdx,
    /// Messages produced in `rx_ring`. Written by the controller.
    pub rx_req_prod: ControlRingIdx,
    /// Responses produced in `rx_ring`. Written by the guest.
    pub rx_resp_prod: ControlRingIdx,
}

layout!(ControlIf: 1040 {
    tx_ring: 0, rx_ring: 512, tx_req_prod: 1024, tx_resp_prod: 1028, rx_req_prod: 1032, rx_resp_prod: 1036,
});

/// Byte offsets of the fields, for atomic access to each.
impl ControlIf {
    /// Of `tx_ring`.
    pub const TX_RING: usize = core::mem::offset_of!(Self, tx_ring);
    /// Of `rx_ring`.
    pub const RX_RING: usize = core::mem::offset_of!(Self, rx_ring);
    /// Of `tx_req_prod`.
    pub const TX_REQ_PROD: usize = core::mem::offset_of!(Self, tx_req_prod);
    /// Of `tx_resp_prod`.
    pub const TX_RESP_PROD: usize = core::mem::offset_of!(Self, tx_resp_prod);
    /// Of `rx_req_prod`.
    pub const RX_REQ_PROD: usize = core::mem::offset_of!(Self, rx_req_prod);
    /// Of `rx_resp_prod`.
    pub const RX_RESP_PROD: usize = core::mem::offset_of!(Self, rx_resp_prod);
}

const _: () = assert!(crate::shared_info::CONTROL_IF_OFFSET + size_of::<ControlIf>() <= crate::ids::PAGE_SIZE);

numbers! {
    /// Type of a message (`CMSG_*`).
    pub enum MessageType: u8 {
        /// `CMSG_CONSOLE`: console; see [`ConsoleMessage`].
        Console = 0,
        /// `CMSG_BLKIF_BE`: block back end; see [`blkif_msg::BlkifBeMessage`].
        BlkifBe = 1,
        /// `CMSG_BLKIF_FE`: block front end; see [`blkif_msg::BlkifFeMessage`].
        BlkifFe = 2,
        /// `CMSG_NETIF_BE`: network back end; see [`netif_msg::NetifBeMessage`].
        NetifBe = 3,
        /// `CMSG_NETIF_FE`: network front end; see [`netif_msg::NetifFeMessage`].
        NetifFe = 4,
        /// `CMSG_SHUTDOWN`: the domain is asked to stop; see [`ShutdownMessage`].
        Shutdown = 6,
        /// `CMSG_MEM_REQUEST`: the domain is asked to change its size; see [`MemRequestMessage`].
        MemRequest = 7,
    }
}

numbers! {
    /// Subtype of a [`MessageType::Console`] message.
    pub enum ConsoleMessage: u8 {
        /// `CMSG_CONSOLE_DATA`: the body is text, at most 60 bytes.
        Data = 0,
    }
}

numbers! {
    /// Subtype of a [`MessageType::Shutdown`] message.
    pub enum ShutdownMessage: u8 {
        /// `CMSG_SHUTDOWN_POWEROFF`: stop for [`ShutdownReason::Poweroff`].
        Poweroff = 0,
        /// `CMSG_SHUTDOWN_REBOOT`: stop for [`ShutdownReason::Reboot`].
        Reboot = 1,
        /// `CMSG_SHUTDOWN_SUSPEND`: write a suspend record, then stop for [`ShutdownReason::Suspend`].
        Suspend = 2,
    }
}

numbers! {
    /// Subtype of a [`MessageType::MemRequest`] message.
    pub enum MemRequestMessage: u8 {
        /// `CMSG_MEM_REQUEST_SET`: see [`MemRequest`].
        Set = 0,
    }
}

/// Asks a domain to change its size (`mem_request_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct MemRequest {
    /// The size to take, in pages.
    pub target: u32,
    /// In the response: 0, or an error number.
    pub status: u32,
}

layout!(MemRequest: 8 { target: 0, status: 4 });
