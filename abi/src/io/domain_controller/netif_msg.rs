//! Bodies of network-device messages (`io/domain_controller.h`).

use crate::arch::{GuestArch, Padded, X86_32, X86_64};
use crate::ids::DomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

numbers! {
    /// Subtype of a message of the network front end's (`CMSG_NETIF_FE_*`).
    pub enum NetifFeMessage: u8 {
        /// `CMSG_NETIF_FE_INTERFACE_STATUS`, to the guest: see [`NetifFeInterfaceStatus`].
        InterfaceStatus = 0,
        /// `CMSG_NETIF_FE_DRIVER_STATUS`, from the guest: see [`NetifFeDriverStatus`].
        DriverStatus = 32,
        /// `CMSG_NETIF_FE_INTERFACE_CONNECT`, from the guest: see [`NetifFeInterfaceConnect`].
        InterfaceConnect = 33,
        /// `CMSG_NETIF_FE_INTERFACE_DISCONNECT`, from the guest: see [`NetifFeInterfaceDisconnect`].
        InterfaceDisconnect = 34,
        /// `CMSG_NETIF_FE_INTERFACE_QUERY`, from the guest: see [`NetifFeInterfaceQuery`].
        InterfaceQuery = 35,
    }
}

numbers! {
    /// State of an interface (`NETIF_INTERFACE_STATUS_*`).
    pub enum NetifInterfaceStatus: u32 {
        /// `NETIF_INTERFACE_STATUS_CLOSED`: does not exist.
        Closed = 0,
        /// `NETIF_INTERFACE_STATUS_DISCONNECTED`: exists, is not connected.
        Disconnected = 1,
        /// `NETIF_INTERFACE_STATUS_CONNECTED`: is connected.
        Connected = 2,
        /// `NETIF_INTERFACE_STATUS_CHANGED`: a device has come or gone.
        Changed = 3,
    }
}

numbers! {
    /// State of a driver (`NETIF_DRIVER_STATUS_*`).
    pub enum NetifDriverStatus: u32 {
        /// `NETIF_DRIVER_STATUS_DOWN`.
        Down = 0,
        /// `NETIF_DRIVER_STATUS_UP`.
        Up = 1,
    }
}

/// Tells a guest that an interface's state has changed (`netif_fe_interface_status_t`). An interface that is closed or
/// disconnected has dropped what was under way, and its shared frames are free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifFeInterfaceStatus {
    /// The interface.
    pub handle: u32,
    /// See [`NetifInterfaceStatus`].
    pub status: u32,
    /// Port of the channel to the back end, if connected.
    pub evtchn: u16,
    /// The interface's Ethernet address, if connected.
    pub mac: [u8; 6],
    /// The back end's domain, unless closed.
    pub domid: DomId,
}

layout!(NetifFeInterfaceStatus: 18 { handle: 0, status: 4, evtchn: 8, mac: 10, domid: 16 });

/// Tells the controller that the front end is up or down (`netif_fe_driver_status_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifFeDriverStatus {
    /// See [`NetifDriverStatus`].
    pub status: u32,
    /// In the response: the greatest interface to ask about.
    pub max_handle: u32,
}

layout!(NetifFeDriverStatus: 8 { status: 0, max_handle: 4 });

/// Asks for an interface to be connected (`netif_fe_interface_connect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifFeInterfaceConnect<A: GuestArch> {
    /// The interface.
    pub handle: u32,
    /// `__pad`.
    pub pad: u32,
    /// Machine frame number of the sending ring.
    pub tx_shmem_frame: Padded<A>,
    /// Machine frame number of the receiving ring.
    pub rx_shmem_frame: Padded<A>,
}

layout!(NetifFeInterfaceConnect<X86_32>: 24 { handle: 0, pad: 4, tx_shmem_frame: 8, rx_shmem_frame: 16 });
layout!(NetifFeInterfaceConnect<X86_64>: 24 { handle: 0, pad: 4, tx_shmem_frame: 8, rx_shmem_frame: 16 });

/// Asks for an interface to be disconnected (`netif_fe_interface_disconnect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifFeInterfaceDisconnect {
    /// The interface.
    pub handle: u32,
}

layout!(NetifFeInterfaceDisconnect: 4 { handle: 0 });

/// Asks for an interface's state (`netif_fe_interface_query_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifFeInterfaceQuery {
    /// The interface.
    pub handle: u32,
    /// In the response: see [`NetifInterfaceStatus`].
    pub status: u32,
    /// In the response: port of the channel to the back end, if connected.
    pub evtchn: u16,
    /// In the response: the interface's Ethernet address, if connected.
    pub mac: [u8; 6],
    /// In the response: the back end's domain, unless closed.
    pub domid: DomId,
}

layout!(NetifFeInterfaceQuery: 18 { handle: 0, status: 4, evtchn: 8, mac: 10, domid: 16 });

numbers! {
    /// Subtype of a message of the network back end's (`CMSG_NETIF_BE_*`).
    pub enum NetifBeMessage: u8 {
        /// `CMSG_NETIF_BE_CREATE`, to the guest: see [`NetifBeCreate`].
        Create = 0,
        /// `CMSG_NETIF_BE_DESTROY`, to the guest: see [`NetifBeDestroy`].
        Destroy = 1,
        /// `CMSG_NETIF_BE_CONNECT`, to the guest: see [`NetifBeConnect`].
        Connect = 2,
        /// `CMSG_NETIF_BE_DISCONNECT`, to the guest: see [`NetifBeDisconnect`].
        Disconnect = 3,
        /// `CMSG_NETIF_BE_DRIVER_STATUS`, from the guest: see [`NetifBeDriverStatus`].
        DriverStatus = 32,
    }
}

numbers! {
    /// Outcome of a back end's work (`NETIF_BE_STATUS_*`).
    pub enum NetifBeStatus: u32 {
        /// `NETIF_BE_STATUS_OKAY`.
        Okay = 0,
        /// `NETIF_BE_STATUS_ERROR`: none of the others.
        Error = 1,
        /// `NETIF_BE_STATUS_INTERFACE_EXISTS`.
        InterfaceExists = 2,
        /// `NETIF_BE_STATUS_INTERFACE_NOT_FOUND`.
        InterfaceNotFound = 3,
        /// `NETIF_BE_STATUS_INTERFACE_CONNECTED`: still connected.
        InterfaceConnected = 4,
        /// `NETIF_BE_STATUS_OUT_OF_MEMORY`.
        OutOfMemory = 5,
        /// `NETIF_BE_STATUS_MAPPING_ERROR`: the domain's memory could not be mapped.
        MappingError = 6,
    }
}

/// Creates an interface (`netif_be_create_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifBeCreate {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// The interface's number within that domain.
    pub netif_handle: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// `__pad1`.
    pub pad1: u16,
    /// In the response: see [`NetifBeStatus`].
    pub status: u32,
}

layout!(NetifBeCreate: 20 { domid: 0, pad0: 2, netif_handle: 4, mac: 8, pad1: 14, status: 16 });

/// Destroys an interface (`netif_be_destroy_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifBeDestroy {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The interface.
    pub netif_handle: u32,
    /// In the response: see [`NetifBeStatus`].
    pub status: u32,
}

layout!(NetifBeDestroy: 12 { domid: 0, pad: 2, netif_handle: 4, status: 8 });

/// Connects an interface (`netif_be_connect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifBeConnect<A: GuestArch> {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// The interface.
    pub netif_handle: u32,
    /// Machine frame number of the sending ring.
    pub tx_shmem_frame: Padded<A>,
    /// Machine frame number of the receiving ring.
    pub rx_shmem_frame: Padded<A>,
    /// Port of the channel to the front end.
    pub evtchn: u16,
    /// `__pad1`.
    pub pad1: u16,
    /// In the response: see [`NetifBeStatus`].
    pub status: u32,
}

layout!(NetifBeConnect<X86_32>: 32 {
    domid: 0, pad0: 2, netif_handle: 4, tx_shmem_frame: 8, rx_shmem_frame: 16, evtchn: 24, pad1: 26, status: 28,
});
layout!(NetifBeConnect<X86_64>: 32 {
    domid: 0, pad0: 2, netif_handle: 4, tx_shmem_frame: 8, rx_shmem_frame: 16, evtchn: 24, pad1: 26, status: 28,
});

/// Disconnects an interface (`netif_be_disconnect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifBeDisconnect {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The interface.
    pub netif_handle: u32,
    /// In the response: see [`NetifBeStatus`].
    pub status: u32,
}

layout!(NetifBeDisconnect: 12 { domid: 0, pad: 2, netif_handle: 4, status: 8 });

/// Tells the controller that the back end is up or down (`netif_be_driver_status_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct NetifBeDriverStatus {
    /// See [`NetifDriverStatus`].
    pub status: u32,
}

layout!(NetifBeDriverStatus: 4 { status: 0 });
