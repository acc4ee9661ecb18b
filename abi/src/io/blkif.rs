//! Block devices: the ring that front end and back end share (`io/blkif.h`).

use crate::arch::{AbiType, GuestArch, X86_32, X86_64};
use crate::ids::PAGE_SIZE;
use bitflags::bitflags;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

numbers! {
    /// What a request asks for (`BLKIF_OP_*`).
    pub enum BlkifOperation: u8 {
        /// `BLKIF_OP_READ`: from the disk.
        Read = 0,
        /// `BLKIF_OP_WRITE`: to the disk.
        Write = 1,
        /// `BLKIF_OP_PROBE`: which disks there are: a list of [`Vdisk`] is written to the buffers.
        Probe = 2,
    }
}

/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`: pieces of memory of one request.
pub const BLKIF_MAX_SEGMENTS_PER_REQUEST: usize = 11;

/// `BLKIF_RING_SIZE` of x86_32: slots of the ring. The header has this number for x86_64 too, where the ring would not
/// fit a page: see [`BLKIF_RING_SIZE_X86_64`].
pub const BLKIF_RING_SIZE: usize = 64;

/// Slots of the ring on x86_64. With the header's 64 the ring would be 6,920 bytes; with 32 it fits a page, as the
/// header asks of it.
pub const BLKIF_RING_SIZE_X86_64: usize = 32;

/// Bytes in a sector.
pub const SECTOR_SIZE: usize = 512;

/// A request (`blkif_request_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifRequest<A: GuestArch> {
    /// See [`BlkifOperation`].
    pub operation: u8,
    /// How many of `frame_and_sects` count.
    pub nr_segments: u8,
    /// The disk; of no meaning in a probe.
    pub device: u16,
    /// The front end's own; comes back in the response.
    pub id: A::Word,
    /// First sector on the disk; of no meaning in a probe.
    pub sector_number: u64,
    /// Pieces of memory; see [`segment`].
    pub frame_and_sects: [A::Word; BLKIF_MAX_SEGMENTS_PER_REQUEST],
}

layout!(BlkifRequest<X86_32>: 60 {
    operation: 0, nr_segments: 1, device: 2, id: 4, sector_number: 8, frame_and_sects: 16,
});
layout!(BlkifRequest<X86_64>: 108 {
    operation: 0, nr_segments: 1, device: 2, id: 4, sector_number: 12, frame_and_sects: 20,
});

/// A piece of memory in one word: machine address of a frame, first sector in bits 3 to 5, last in 0 to 2.
pub mod segment {
    use crate::arch::GuestWord;
    use crate::ids::MachineAddr;

    /// The word, if the frame's address fits the guest's word. Sectors are 0 to 7, both inclusive.
    #[inline]
    pub fn new<W: GuestWord>(frame: MachineAddr, first_sect: u8, last_sect: u8) -> Option<W> {
        let base = frame.mfn().addr().raw();
        W::from_u64(base | u64::from(first_sect & 7) << 3 | u64::from(last_sect & 7))
    }

    /// The frame's machine address.
    #[inline]
    pub fn frame<W: GuestWord>(word: W) -> MachineAddr {
        MachineAddr(word.to_u64()).mfn().addr()
    }

    /// `blkif_first_sect`: the first sector within the frame.
    #[inline]
    pub fn first_sect<W: GuestWord>(word: W) -> u8 {
        (word.to_u64() >> 3 & 7) as u8
    }

    /// `blkif_last_sect`: the last sector within the frame, inclusive.
    #[inline]
    pub fn last_sect<W: GuestWord>(word: W) -> u8 {
        (word.to_u64() & 7) as u8
    }
}

/// A response (`blkif_response_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifResponse<A: GuestArch> {
    /// The request's.
    pub id: A::Word,
    /// The request's.
    pub operation: u8,
    /// See [`BlkifResponseStatus`]; for a probe that went well, the number of disks.
    pub status: i16,
}

layout!(BlkifResponse<X86_32>: 7 { id: 0, operation: 4, status: 5 });
layout!(BlkifResponse<X86_64>: 11 { id: 0, operation: 8, status: 9 });

numbers! {
    /// Outcome of a request (`BLKIF_RSP_*`).
    pub enum BlkifResponseStatus: i16 {
        /// `BLKIF_RSP_OKAY`.
        Okay = 0,
        /// `BLKIF_RSP_ERROR`.
        Error = -1,
    }
}

/// A slot of the ring: a request or a response, a union of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifSlot<A: GuestArch> {
    /// The slot as a request, the larger of the two.
    pub req: BlkifRequest<A>,
}

layout!(BlkifSlot<X86_32>: 60 { req: 0 });
layout!(BlkifSlot<X86_64>: 108 { req: 0 });

impl<A: GuestArch> BlkifSlot<A> {
    /// The slot as a response.
    pub fn response(&self) -> BlkifResponse<A> {
        let mut response = BlkifResponse::new_zeroed();
        let size = size_of::<BlkifResponse<A>>();
        response.as_mut_bytes().copy_from_slice(&self.as_bytes()[..size]);
        response
    }

    /// Writes a response into the slot.
    pub fn set_response(&mut self, response: BlkifResponse<A>) {
        let size = size_of::<BlkifResponse<A>>();
        self.as_mut_bytes()[..size].copy_from_slice(response.as_bytes());
    }
}

/// `BLKIF_RING_IDX`: a free-running index; the slot is its remainder by the ring's size.
pub type BlkifRingIdx = u32;

/// The slots of an architecture's ring.
pub trait BlkifArch: GuestArch {
    /// How many there are.
    const RING_SIZE: usize;
    /// All of them.
    type Slots: AbiType + AsRef<[BlkifSlot<Self>]> + AsMut<[BlkifSlot<Self>]>;

    /// `MASK_BLKIF_IDX`: the slot that a free-running index stands for.
    #[inline]
    fn slot(index: BlkifRingIdx) -> usize {
        index as usize & (Self::RING_SIZE - 1)
    }
}

impl BlkifArch for X86_32 {
    const RING_SIZE: usize = BLKIF_RING_SIZE;
    type Slots = [BlkifSlot<Self>; BLKIF_RING_SIZE];
}

impl BlkifArch for X86_64 {
    const RING_SIZE: usize = BLKIF_RING_SIZE_X86_64;
    type Slots = [BlkifSlot<Self>; BLKIF_RING_SIZE_X86_64];
}

const _: () = assert!(X86_32::RING_SIZE.is_power_of_two() && X86_64::RING_SIZE.is_power_of_two());

/// The ring (`blkif_ring_t`). It fits a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BlkifRing<A: BlkifArch> {
    /// Requests produced. Written by the front end.
    pub req_prod: BlkifRingIdx,
    /// Responses produced. Written by the back end.
    pub resp_prod: BlkifRingIdx,
    /// The slots.
    pub ring: A::Slots,
}

layout!(BlkifRing<X86_32>: 3848 { req_prod: 0, resp_prod: 4, ring: 8 });
layout!(BlkifRing<X86_64>: 3464 { req_prod: 0, resp_prod: 4, ring: 8 });
const _: () = assert!(size_of::<BlkifRing<X86_32>>() <= PAGE_SIZE && size_of::<BlkifRing<X86_64>>() <= PAGE_SIZE);

impl<A: BlkifArch> Default for BlkifRing<A> {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// A disk, as a probe lists it (`vdisk_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct Vdisk {
    /// Size, in sectors of 512 bytes.
    pub capacity: u64,
    /// The number by which requests name it.
    pub device: u16,
    /// See [`VdiskFlags`] and [`VdiskType`].
    pub info: u16,
}

layout!(Vdisk: 12 { capacity: 0, device: 8, info: 10 });

impl Vdisk {
    /// `VDISK_TYPE`: the kind of disk.
    #[inline]
    pub fn disk_type(&self) -> Option<VdiskType> {
        VdiskType::from_raw(self.info & VDISK_TYPE_MASK)
    }

    /// The flags (`VDISK_READONLY`, `VDISK_VIRTUAL`).
    #[inline]
    pub fn flags(&self) -> VdiskFlags {
        VdiskFlags::from_bits_truncate(self.info)
    }
}

numbers! {
    /// A kind of disk: the low six bits of [`Vdisk::info`] (`VDISK_TYPE_*`).
    pub enum VdiskType: u16 {
        /// `VDISK_TYPE_FLOPPY`.
        Floppy = 0x00,
        /// `VDISK_TYPE_TAPE`.
        Tape = 0x01,
        /// `VDISK_TYPE_CDROM`.
        Cdrom = 0x05,
        /// `VDISK_TYPE_OPTICAL`.
        Optical = 0x07,
        /// `VDISK_TYPE_DISK`.
        Disk = 0x20,
    }
}

/// `VDISK_TYPE_MASK`: the bits of [`Vdisk::info`] that hold the kind.
pub const VDISK_TYPE_MASK: u16 = 0x3f;

bitflags! {
    /// Flags in [`Vdisk::info`] (`VDISK_FLAG_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VdiskFlags: u16 {
        /// `VDISK_FLAG_RO`: for reading only.
        const RO = 0x40;
        /// `VDISK_FLAG_VIRT`: a virtual disk.
        const VIRT = 0x80;
    }
}
