//! Bodies of block-device messages (`io/domain_controller.h`).

use crate::arch::{GuestArch, Padded, X86_32, X86_64};
use crate::ids::{DomId, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

numbers! {
    /// Subtype of a message of the block front end's (`CMSG_BLKIF_FE_*`).
    pub enum BlkifFeMessage: u8 {
        /// `CMSG_BLKIF_FE_INTERFACE_STATUS`, to the guest: see [`BlkifFeInterfaceStatus`].
        InterfaceStatus = 0,
        /// `CMSG_BLKIF_FE_DRIVER_STATUS`, from the guest: see [`BlkifFeDriverStatus`].
        DriverStatus = 32,
        /// `CMSG_BLKIF_FE_INTERFACE_CONNECT`, from the guest: see [`BlkifFeInterfaceConnect`].
        InterfaceConnect = 33,
        /// `CMSG_BLKIF_FE_INTERFACE_DISCONNECT`, from the guest: see [`BlkifFeInterfaceDisconnect`].
        InterfaceDisconnect = 34,
        /// `CMSG_BLKIF_FE_INTERFACE_QUERY`, from the guest: see [`BlkifFeInterfaceQuery`].
        InterfaceQuery = 35,
    }
}

numbers! {
    /// State of an interface (`BLKIF_INTERFACE_STATUS_*`).
    pub enum BlkifInterfaceStatus: u32 {
        /// `BLKIF_INTERFACE_STATUS_CLOSED`: does not exist.
        Closed = 0,
        /// `BLKIF_INTERFACE_STATUS_DISCONNECTED`: exists, is not connected.
        Disconnected = 1,
        /// `BLKIF_INTERFACE_STATUS_CONNECTED`: is connected.
        Connected = 2,
        /// `BLKIF_INTERFACE_STATUS_CHANGED`: a disk has come or gone.
        Changed = 3,
    }
}

numbers! {
    /// State of a driver (`BLKIF_DRIVER_STATUS_*`).
    pub enum BlkifDriverStatus: u32 {
        /// `BLKIF_DRIVER_STATUS_DOWN`.
        Down = 0,
        /// `BLKIF_DRIVER_STATUS_UP`.
        Up = 1,
    }
}

/// Tells a guest that an interface's state has changed (`blkif_fe_interface_status_t`). An interface that is closed or
/// disconnected has dropped what was under way, and its shared frame is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifFeInterfaceStatus {
    /// The interface.
    pub handle: u32,
    /// See [`BlkifInterfaceStatus`].
    pub status: u32,
    /// Port of the channel to the back end, if connected.
    pub evtchn: u16,
    /// The back end's domain, unless closed.
    pub domid: DomId,
}

layout!(BlkifFeInterfaceStatus: 12 { handle: 0, status: 4, evtchn: 8, domid: 10 });

/// Tells the controller that the front end is up or down (`blkif_fe_driver_status_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifFeDriverStatus {
    /// See [`BlkifDriverStatus`].
    pub status: u32,
    /// In the response: the greatest interface to ask about.
    pub max_handle: u32,
}

layout!(BlkifFeDriverStatus: 8 { status: 0, max_handle: 4 });

/// Asks for an interface to be connected (`blkif_fe_interface_connect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifFeInterfaceConnect<A: GuestArch> {
    /// The interface.
    pub handle: u32,
    /// `__pad`.
    pub pad: u32,
    /// Machine frame number of the ring.
    pub shmem_frame: Padded<A>,
}

layout!(BlkifFeInterfaceConnect<X86_32>: 16 { handle: 0, pad: 4, shmem_frame: 8 });
layout!(BlkifFeInterfaceConnect<X86_64>: 16 { handle: 0, pad: 4, shmem_frame: 8 });

/// Asks for an interface to be disconnected (`blkif_fe_interface_disconnect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifFeInterfaceDisconnect {
    /// The interface.
    pub handle: u32,
}

layout!(BlkifFeInterfaceDisconnect: 4 { handle: 0 });

/// Asks for an interface's state (`blkif_fe_interface_query_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifFeInterfaceQuery {
    /// The interface.
    pub handle: u32,
    /// In the response: see [`BlkifInterfaceStatus`].
    pub status: u32,
    /// In the response: port of the channel to the back end, if connected.
    pub evtchn: u16,
    /// In the response: the back end's domain, unless closed.
    pub domid: DomId,
}

layout!(BlkifFeInterfaceQuery: 12 { handle: 0, status: 4, evtchn: 8, domid: 10 });

numbers! {
    /// Subtype of a message of the block back end's (`CMSG_BLKIF_BE_*`).
    pub enum BlkifBeMessage: u8 {
        /// `CMSG_BLKIF_BE_CREATE`, to the guest: see [`BlkifBeCreate`].
        Create = 0,
        /// `CMSG_BLKIF_BE_DESTROY`, to the guest: see [`BlkifBeDestroy`].
        Destroy = 1,
        /// `CMSG_BLKIF_BE_CONNECT`, to the guest: see [`BlkifBeConnect`].
        Connect = 2,
        /// `CMSG_BLKIF_BE_DISCONNECT`, to the guest: see [`BlkifBeDisconnect`].
        Disconnect = 3,
        /// `CMSG_BLKIF_BE_VBD_CREATE`, to the guest: see [`BlkifBeVbdCreate`].
        VbdCreate = 4,
        /// `CMSG_BLKIF_BE_VBD_DESTROY`, to the guest: see [`BlkifBeVbdDestroy`].
        VbdDestroy = 5,
        /// `CMSG_BLKIF_BE_VBD_GROW`, to the guest: see [`BlkifBeVbdGrow`].
        VbdGrow = 6,
        /// `CMSG_BLKIF_BE_VBD_SHRINK`, to the guest: see [`BlkifBeVbdShrink`].
        VbdShrink = 7,
        /// `CMSG_BLKIF_BE_DRIVER_STATUS`, from the guest: see [`BlkifBeDriverStatus`].
        DriverStatus = 32,
    }
}

numbers! {
    /// Outcome of a back end's work (`BLKIF_BE_STATUS_*`).
    pub enum BlkifBeStatus: u32 {
        /// `BLKIF_BE_STATUS_OKAY`.
        Okay = 0,
        /// `BLKIF_BE_STATUS_ERROR`: none of the others.
        Error = 1,
        /// `BLKIF_BE_STATUS_INTERFACE_EXISTS`.
        InterfaceExists = 2,
        /// `BLKIF_BE_STATUS_INTERFACE_NOT_FOUND`.
        InterfaceNotFound = 3,
        /// `BLKIF_BE_STATUS_INTERFACE_CONNECTED`: still connected.
        InterfaceConnected = 4,
        /// `BLKIF_BE_STATUS_VBD_EXISTS`.
        VbdExists = 5,
        /// `BLKIF_BE_STATUS_VBD_NOT_FOUND`.
        VbdNotFound = 6,
        /// `BLKIF_BE_STATUS_OUT_OF_MEMORY`.
        OutOfMemory = 7,
        /// `BLKIF_BE_STATUS_EXTENT_NOT_FOUND`.
        ExtentNotFound = 8,
        /// `BLKIF_BE_STATUS_MAPPING_ERROR`: the domain's memory could not be mapped.
        MappingError = 9,
    }
}

/// A piece of a real disk (`blkif_extent_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifExtent {
    /// First sector.
    pub sector_start: u64,
    /// Number of sectors.
    pub sector_length: u64,
    /// The disk.
    pub device: u16,
    /// `__pad`.
    pub pad: u16,
}

layout!(BlkifExtent: 20 { sector_start: 0, sector_length: 8, device: 16, pad: 18 });

/// Creates an interface (`blkif_be_create_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeCreate {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The interface's number within that domain.
    pub blkif_handle: u32,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeCreate: 12 { domid: 0, pad: 2, blkif_handle: 4, status: 8 });

/// Destroys an interface (`blkif_be_destroy_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeDestroy {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The interface.
    pub blkif_handle: u32,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeDestroy: 12 { domid: 0, pad: 2, blkif_handle: 4, status: 8 });

/// Connects an interface (`blkif_be_connect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeConnect<A: GuestArch> {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The interface.
    pub blkif_handle: u32,
    /// Machine frame number of the ring.
    pub shmem_frame: Padded<A>,
    /// Port of the channel to the front end.
    pub evtchn: Port,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeConnect<X86_32>: 24 { domid: 0, pad: 2, blkif_handle: 4, shmem_frame: 8, evtchn: 16, status: 20 });
layout!(BlkifBeConnect<X86_64>: 24 { domid: 0, pad: 2, blkif_handle: 4, shmem_frame: 8, evtchn: 16, status: 20 });

/// Disconnects an interface (`blkif_be_disconnect_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeDisconnect {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The interface.
    pub blkif_handle: u32,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeDisconnect: 12 { domid: 0, pad: 2, blkif_handle: 4, status: 8 });

/// Creates a virtual disk (`blkif_be_vbd_create_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeVbdCreate {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad`.
    pub pad: u16,
    /// The interface.
    pub blkif_handle: u32,
    /// The disk's number within the interface.
    pub vdevice: u16,
    /// Non-zero: for reading only.
    pub readonly: u16,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeVbdCreate: 16 { domid: 0, pad: 2, blkif_handle: 4, vdevice: 8, readonly: 10, status: 12 });

/// Destroys a virtual disk (`blkif_be_vbd_destroy_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeVbdDestroy {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// The interface.
    pub blkif_handle: u32,
    /// The disk.
    pub vdevice: u16,
    /// `__pad1`.
    pub pad1: u16,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeVbdDestroy: 16 { domid: 0, pad0: 2, blkif_handle: 4, vdevice: 8, pad1: 10, status: 12 });

/// Appends a piece of a real disk to a virtual one (`blkif_be_vbd_grow_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeVbdGrow {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// The interface.
    pub blkif_handle: u32,
    /// The piece.
    pub extent: BlkifExtent,
    /// The disk.
    pub vdevice: u16,
    /// `__pad1`.
    pub pad1: u16,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeVbdGrow: 36 { domid: 0, pad0: 2, blkif_handle: 4, extent: 8, vdevice: 28, pad1: 30, status: 32 });

/// Removes a virtual disk's last piece (`blkif_be_vbd_shrink_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeVbdShrink {
    /// The front end's domain.
    pub domid: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// The interface.
    pub blkif_handle: u32,
    /// The disk.
    pub vdevice: u16,
    /// `__pad1`.
    pub pad1: u16,
    /// In the response: see [`BlkifBeStatus`].
    pub status: u32,
}

layout!(BlkifBeVbdShrink: 16 { domid: 0, pad0: 2, blkif_handle: 4, vdevice: 8, pad1: 10, status: 12 });

/// Tells the controller that the back end is up or down (`blkif_be_driver_status_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifBeDriverStatus {
    /// See [`BlkifDriverStatus`].
    pub status: u32,
}

layout!(BlkifBeDriverStatus: 4 { status: 0 });
