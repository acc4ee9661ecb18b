//! Network devices: the rings that front end and back end share (`io/netif.h`).

use crate::arch::{GuestArch, Padded, X86_32, X86_64};
use crate::ids::PAGE_SIZE;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A packet to send (`netif_tx_request_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifTxRequest<A: GuestArch> {
    /// Machine address of the packet.
    pub addr: Padded<A>,
    /// Comes back in the response.
    pub id: u16,
    /// Bytes of the packet.
    pub size: u16,
}

layout!(NetifTxRequest<X86_32>: 12 { addr: 0, id: 8, size: 10 });
layout!(NetifTxRequest<X86_64>: 12 { addr: 0, id: 8, size: 10 });

/// A packet sent (`netif_tx_response_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifTxResponse {
    /// The request's.
    pub id: u16,
    /// See [`NetifStatus`].
    pub status: i8,
    /// `__pad`.
    pub pad: u8,
}

layout!(NetifTxResponse: 4 { id: 0, status: 2, pad: 3 });

/// A page to receive into (`netif_rx_request_t`). The page itself is given away by other means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifRxRequest {
    /// Comes back in the response.
    pub id: u16,
}

layout!(NetifRxRequest: 2 { id: 0 });

/// A packet received (`netif_rx_response_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifRxResponse<A: GuestArch> {
    /// Machine address of the packet.
    pub addr: Padded<A>,
    /// The request's.
    pub id: u16,
    /// Bytes of the packet, or a negative [`NetifStatus`].
    pub status: i16,
}

layout!(NetifRxResponse<X86_32>: 12 { addr: 0, id: 8, status: 10 });
layout!(NetifRxResponse<X86_64>: 12 { addr: 0, id: 8, status: 10 });

numbers! {
    /// Outcome of a request (`NETIF_RSP_*`).
    pub enum NetifStatus: i8 {
        /// `NETIF_RSP_OKAY`.
        Okay = 0,
        /// `NETIF_RSP_ERROR`.
        Error = -1,
        /// `NETIF_RSP_DROPPED`: there was no room for the packet.
        Dropped = -2,
    }
}

/// `NETIF_RING_IDX`: a free-running index; the slot is its remainder by the ring's size.
pub type NetifRingIdx = u32;

/// `NETIF_TX_RING_SIZE`: slots of the sending ring.
pub const NETIF_TX_RING_SIZE: usize = 256;
/// `NETIF_RX_RING_SIZE`: slots of the receiving ring.
pub const NETIF_RX_RING_SIZE: usize = 256;

/// `MASK_NETIF_TX_IDX`: the slot of the sending ring that a free-running index stands for.
#[inline]
pub const fn tx_slot(index: NetifRingIdx) -> usize {
    index as usize & (NETIF_TX_RING_SIZE - 1)
}

/// `MASK_NETIF_RX_IDX`: the slot of the receiving ring that a free-running index stands for.
#[inline]
pub const fn rx_slot(index: NetifRingIdx) -> usize {
    index as usize & (NETIF_RX_RING_SIZE - 1)
}

/// A slot of the sending ring: a request or a response, a union of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifTxSlot<A: GuestArch> {
    /// The slot as a request, the larger of the two.
    pub req: NetifTxRequest<A>,
}

impl<A: GuestArch> NetifTxSlot<A> {
    /// The slot as a response.
    pub fn response(&self) -> NetifTxResponse {
        let mut response = NetifTxResponse::default();
        response.as_mut_bytes().copy_from_slice(&self.as_bytes()[..size_of::<NetifTxResponse>()]);
        response
    }

    /// Writes a response into the slot.
    pub fn set_response(&mut self, response: NetifTxResponse) {
        self.as_mut_bytes()[..size_of::<NetifTxResponse>()].copy_from_slice(response.as_bytes());
    }
}

/// A slot of the receiving ring: a request or a response, a union of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifRxSlot<A: GuestArch> {
    /// The slot as a response, the larger of the two.
    pub resp: NetifRxResponse<A>,
}

impl<A: GuestArch> NetifRxSlot<A> {
    /// The slot as a request.
    pub fn request(&self) -> NetifRxRequest {
        let mut request = NetifRxRequest::default();
        request.as_mut_bytes().copy_from_slice(&self.as_bytes()[..size_of::<NetifRxRequest>()]);
        request
    }

    /// Writes a request into the slot.
    pub fn set_request(&mut self, request: NetifRxRequest) {
        self.as_mut_bytes()[..size_of::<NetifRxRequest>()].copy_from_slice(request.as_bytes());
    }
}

layout!(NetifTxSlot<X86_32>: 12 { req: 0 });
layout!(NetifTxSlot<X86_64>: 12 { req: 0 });
layout!(NetifRxSlot<X86_32>: 12 { resp: 0 });
layout!(NetifRxSlot<X86_64>: 12 { resp: 0 });

/// The sending ring (`netif_tx_interface_t`). It fits a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifTxInterface<A: GuestArch> {
    /// Requests produced. Written by the front end.
    pub req_prod: NetifRingIdx,
    /// Requests consumed. Written by the back end.
    pub req_cons: NetifRingIdx,
    /// Responses produced. Written by the back end.
    pub resp_prod: NetifRingIdx,
    /// The front end wants an event when `resp_prod` passes this. Written by the front end.
    pub event: NetifRingIdx,
    /// The slots.
    pub ring: [NetifTxSlot<A>; NETIF_TX_RING_SIZE],
}

layout!(NetifTxInterface<X86_32>: 3088 { req_prod: 0, req_cons: 4, resp_prod: 8, event: 12, ring: 16 });
layout!(NetifTxInterface<X86_64>: 3088 { req_prod: 0, req_cons: 4, resp_prod: 8, event: 12, ring: 16 });

impl<A: GuestArch> Default for NetifTxInterface<A> {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// The receiving ring (`netif_rx_interface_t`). It fits a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifRxInterface<A: GuestArch> {
    /// Requests produced. Written by the front end.
    pub req_prod: NetifRingIdx,
    /// Responses produced. Written by the back end.
    pub resp_prod: NetifRingIdx,
    /// The front end wants an event when `resp_prod` passes this. Written by the front end.
    pub event: NetifRingIdx,
    /// The slots.
    pub ring: [NetifRxSlot<A>; NETIF_RX_RING_SIZE],
}

layout!(NetifRxInterface<X86_32>: 3084 { req_prod: 0, resp_prod: 4, event: 8, ring: 12 });
layout!(NetifRxInterface<X86_64>: 3084 { req_prod: 0, resp_prod: 4, event: 8, ring: 12 });

impl<A: GuestArch> Default for NetifRxInterface<A> {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

const _: () = assert!(size_of::<NetifTxInterface<X86_64>>() <= PAGE_SIZE);
const _: () = assert!(size_of::<NetifRxInterface<X86_64>>() <= PAGE_SIZE);
