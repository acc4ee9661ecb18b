//! Grant tables (`grant_table.h`).
//!
//! A grant table is an array of [`GrantEntry`] in frames that a guest shares with the hypervisor. Entries are changed
//! by both at any time, so they are accessed atomically: write `domid` and `frame` first, then `flags` with the type;
//! withdraw a grant by compare-and-exchange of `flags` with 0 while neither [`GrantFlags::READING`] nor
//! [`GrantFlags::WRITING`] is set. `grant_table_op` takes a command and an array of its arguments.

use crate::arch::{GuestArch, Padded, X86_32, X86_64};
use crate::ids::{DomId, GrantRef};
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Greatest number of arguments in one `grant_table_op`.
pub const MAX_GRANT_TABLE_OPS: u32 = 512;

/// An entry of a grant table (`grant_entry_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct GrantEntry {
    /// See [`GrantFlags`]. Written by both sides.
    pub flags: u16,
    /// The domain that is granted something. Written by the guest.
    pub domid: DomId,
    /// Machine frame granted (written by the guest), or the one that has been transferred (by the hypervisor);
    /// before a transfer, the pseudo-physical slot that it is to fill, or 0.
    pub frame: u32,
}

layout!(GrantEntry: 8 { flags: 0, domid: 2, frame: 4 });

bitflags! {
    /// `flags` of [`GrantEntry`] (`GTF_*`). The low two bits are the entry's type, [`GrantType`]; the meaning of the
    /// others depends on it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GrantFlags: u16 {
        /// `GTF_permit_access`: the type that lets the domain map and access the frame.
        const PERMIT_ACCESS = 1;
        /// `GTF_accept_transfer`: the type that lets the domain give a frame away to this one.
        const ACCEPT_TRANSFER = 2;
        /// `GTF_type_mask`: the bits of the type.
        const TYPE_MASK = 3;
        /// `GTF_readonly`: the domain may only read. Set by the guest.
        const READONLY = 1 << GTF_READONLY_BIT;
        /// `GTF_reading`: the domain has mapped the frame for reading. Set by the hypervisor.
        const READING = 1 << GTF_READING_BIT;
        /// `GTF_writing`: the domain has mapped the frame for writing. Set by the hypervisor.
        const WRITING = 1 << GTF_WRITING_BIT;
        /// `GTF_transfer_committed`: a frame is on its way; the guest must leave the entry alone. Shares its bit with
        /// [`READONLY`](Self::READONLY).
        const TRANSFER_COMMITTED = 1 << GTF_TRANSFER_COMMITTED_BIT;
        /// `GTF_transfer_completed`: the frame's number has been written. Shares its bit with
        /// [`READING`](Self::READING).
        const TRANSFER_COMPLETED = 1 << GTF_TRANSFER_COMPLETED_BIT;
    }
}

/// `_GTF_readonly`: bit number of [`GrantFlags::READONLY`].
pub const GTF_READONLY_BIT: u32 = 2;
/// `_GTF_reading`: bit number of [`GrantFlags::READING`].
pub const GTF_READING_BIT: u32 = 3;
/// `_GTF_writing`: bit number of [`GrantFlags::WRITING`].
pub const GTF_WRITING_BIT: u32 = 4;
/// `_GTF_transfer_committed`: bit number of [`GrantFlags::TRANSFER_COMMITTED`].
pub const GTF_TRANSFER_COMMITTED_BIT: u32 = 2;
/// `_GTF_transfer_completed`: bit number of [`GrantFlags::TRANSFER_COMPLETED`].
pub const GTF_TRANSFER_COMPLETED_BIT: u32 = 3;

impl GrantFlags {
    /// The entry's type; `None` for the number that stands for none.
    #[inline]
    pub fn grant_type(self) -> Option<GrantType> {
        GrantType::from_raw(self.bits() & Self::TYPE_MASK.bits())
    }
}

numbers! {
    /// What a grant entry grants: the low two bits of its flags (`GTF_*`).
    pub enum GrantType: u16 {
        /// `GTF_invalid`: nothing.
        Invalid = 0,
        /// `GTF_permit_access`: mapping and access.
        PermitAccess = 1,
        /// `GTF_accept_transfer`: giving a frame away.
        AcceptTransfer = 2,
    }
}

numbers! {
    /// Command of `grant_table_op` (`GNTTABOP_*`).
    pub enum GrantTableCommand: u32 {
        /// `GNTTABOP_map_grant_ref`: see [`MapGrantRef`].
        MapGrantRef = 0,
        /// `GNTTABOP_unmap_grant_ref`: see [`UnmapGrantRef`].
        UnmapGrantRef = 1,
        /// `GNTTABOP_setup_table`: see [`SetupTable`].
        SetupTable = 2,
    }
}

/// Maps a granted frame for devices, for CPUs or for both (`gnttab_map_grant_ref_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct MapGrantRef<A: GuestArch> {
    /// In: virtual address of the mapping, in the current address space.
    pub host_virt_addr: Padded<A>,
    /// In: the granting domain.
    pub dom: DomId,
    /// `ref`. In: the grant.
    pub grant: GrantRef,
    /// In: see [`GrantMapFlags`].
    pub flags: u16,
    /// Out: a number, needed for unmapping, or a negative [`GrantStatus`].
    pub handle: i16,
    /// Out: the address at which devices find the frame.
    pub dev_bus_addr: Padded<A>,
}

layout!(MapGrantRef<X86_32>: 24 { host_virt_addr: 0, dom: 8, grant: 10, flags: 12, handle: 14, dev_bus_addr: 16 });
layout!(MapGrantRef<X86_64>: 24 { host_virt_addr: 0, dom: 8, grant: 10, flags: 12, handle: 14, dev_bus_addr: 16 });

/// Removes mappings of a granted frame (`gnttab_unmap_grant_ref_t`). An address of 0 removes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct UnmapGrantRef<A: GuestArch> {
    /// In: virtual address of the mapping, or 0.
    pub host_virt_addr: Padded<A>,
    /// In: address at which devices find the frame, or 0.
    pub dev_bus_addr: Padded<A>,
    /// In: the number that mapping returned.
    pub handle: u16,
    /// Out: see [`GrantStatus`].
    pub status: i16,
    /// `__pad`.
    pub pad: u32,
}

layout!(UnmapGrantRef<X86_32>: 24 { host_virt_addr: 0, dev_bus_addr: 8, handle: 16, status: 18, pad: 20 });
layout!(UnmapGrantRef<X86_64>: 24 { host_virt_addr: 0, dev_bus_addr: 8, handle: 16, status: 18, pad: 20 });

/// Gives a domain a grant table (`gnttab_setup_table_t`). It may come out larger than asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SetupTable<A: GuestArch> {
    /// In: the domain.
    pub dom: DomId,
    /// In: least number of frames, and length of `frame_list`.
    pub nr_frames: u16,
    /// `__pad`.
    pub pad: u16,
    /// Out: see [`GrantStatus`].
    pub status: i16,
    /// In: virtual address of an array of words, which receive the table's machine frame numbers.
    pub frame_list: Padded<A>,
}

layout!(SetupTable<X86_32>: 16 { dom: 0, nr_frames: 2, pad: 4, status: 6, frame_list: 8 });
layout!(SetupTable<X86_64>: 16 { dom: 0, nr_frames: 2, pad: 4, status: 6, frame_list: 8 });

bitflags! {
    /// `flags` of [`MapGrantRef`] (`GNTMAP_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GrantMapFlags: u16 {
        /// `GNTMAP_device_map`: map for devices.
        const DEVICE_MAP = 1 << GNTMAP_DEVICE_MAP_BIT;
        /// `GNTMAP_host_map`: map for CPUs.
        const HOST_MAP = 1 << GNTMAP_HOST_MAP_BIT;
        /// `GNTMAP_readonly`: for reading only.
        const READONLY = 1 << GNTMAP_READONLY_BIT;
        /// `GNTMAP_application_map`: the mapping for CPUs is for applications too, not for the kernel alone.
        const APPLICATION_MAP = 1 << GNTMAP_APPLICATION_MAP_BIT;
    }
}

/// `_GNTMAP_device_map`: bit number of [`GrantMapFlags::DEVICE_MAP`].
pub const GNTMAP_DEVICE_MAP_BIT: u32 = 0;
/// `_GNTMAP_host_map`: bit number of [`GrantMapFlags::HOST_MAP`].
pub const GNTMAP_HOST_MAP_BIT: u32 = 1;
/// `_GNTMAP_readonly`: bit number of [`GrantMapFlags::READONLY`].
pub const GNTMAP_READONLY_BIT: u32 = 2;
/// `_GNTMAP_application_map`: bit number of [`GrantMapFlags::APPLICATION_MAP`].
pub const GNTMAP_APPLICATION_MAP_BIT: u32 = 3;

numbers! {
    /// Outcome of a grant operation (`GNTST_*`).
    pub enum GrantStatus: i16 {
        /// `GNTST_okay`.
        Okay = 0,
        /// `GNTST_general_error`: something else went wrong.
        GeneralError = -1,
        /// `GNTST_bad_domain`: no such domain.
        BadDomain = -2,
        /// `GNTST_bad_gntref`: no such grant, or not a fitting one. [`BAD_HANDLE`](Self::BAD_HANDLE) is the same
        /// number.
        BadGrantRef = -3,
        /// `GNTST_no_device_space`: the I/O MMU has no room.
        NoDeviceSpace = -4,
        /// `GNTST_permission_denied`: the caller lacks the privilege.
        PermissionDenied = -5,
    }
}

impl GrantStatus {
    /// `GNTST_bad_handle`: no such handle, or not a fitting one.
    pub const BAD_HANDLE: Self = Self::BadGrantRef;
}
