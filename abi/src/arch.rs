//! The two guest architectures, as types: what differs between `arch-x86_32.h` and `arch-x86_64.h`.
//!
//! [`GuestArch`] is sealed: [`X86_32`] and [`X86_64`] are its only implementors. Code generic over it is compiled once
//! for each and pays nothing for the choice.

use crate::context::CpuContext;
use crate::ids::Selector;
use core::fmt::{Debug, Display, LowerHex};
use core::hash::Hash;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Plain data of the interface: any bytes are a value, and a value is nothing but its bytes.
pub trait Pod: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Eq + Debug + Send + Sync + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Eq + Debug + Send + Sync + 'static> Pod for T {}

/// A packed structure of the interface: plain data that may lie at any address.
pub trait AbiType: Pod + Unaligned {}

impl<T: Pod + Unaligned> AbiType for T {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::X86_32 {}
    impl Sealed for super::X86_64 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// A guest's machine word: `memory_t`, `cpureg_t` and `unsigned long` of the headers (`u32` or `u64`).
pub trait GuestWord: Pod + Default + Ord + Hash + Display + LowerHex + sealed::Sealed {
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize;
    /// Zero.
    const ZERO: Self;

    /// The value, zero-extended.
    fn to_u64(self) -> u64;

    /// The value, if the word is wide enough for it.
    fn from_u64(value: u64) -> Option<Self>;

    /// The value's low bits. Right for negative results too: they keep their sign.
    fn from_u64_truncating(value: u64) -> Self;
}

impl GuestWord for u32 {
    const BITS: u32 = 32;
    const BYTES: usize = 4;
    const ZERO: Self = 0;

    #[inline]
    fn to_u64(self) -> u64 {
        u64::from(self)
    }

    #[inline]
    fn from_u64(value: u64) -> Option<Self> {
        u32::try_from(value).ok()
    }

    #[inline]
    fn from_u64_truncating(value: u64) -> Self {
        value as u32
    }
}

impl GuestWord for u64 {
    const BITS: u32 = 64;
    const BYTES: usize = 8;
    const ZERO: Self = 0;

    #[inline]
    fn to_u64(self) -> u64 {
        self
    }

    #[inline]
    fn from_u64(value: u64) -> Option<Self> {
        Some(value)
    }

    #[inline]
    fn from_u64_truncating(value: u64) -> Self {
        value
    }
}

/// A guest architecture of the interface.
///
/// The associated types are the parts of structures that differ; the constants are those numbers of the two
/// architecture headers that both define, each with its own value.
pub trait GuestArch: sealed::Sealed + Copy + Eq + Ord + Hash + Debug + Default + Send + Sync + 'static {
    /// The machine word: `memory_t`, `cpureg_t`, `unsigned long`, and a page-table entry.
    type Word: GuestWord;
    /// What follows a word to fill 64 bits (`MEMORY_PADDING`): four bytes on x86_32, none on x86_64.
    type Pad: AbiType + Default;
    /// `__pad` of `trap_info_t`: none on x86_32, four bytes on x86_64.
    type TrapPad: AbiType + Default;
    /// `execution_context_t`: a virtual CPU's registers.
    type ExecutionContext: AbiType + CpuContext;
    /// `fpu_ctxt` of `full_execution_context_t`: 256 bytes on x86_32, 512 on x86_64.
    type FpuContext: AbiType + AsRef<[u8]> + AsMut<[u8]>;
    /// `fast_trap_idx` of `full_execution_context_t`: four bytes on x86_32, none on x86_64.
    type FastTrapIdx: Pod;

    /// The architecture's name, as used on command lines: `x86_32` or `x86_64`.
    const NAME: &'static str;
    /// Levels of the guest's own page tables: 2 or 4.
    const PAGE_TABLE_LEVELS: usize;
    /// Entries of one page table: 1024 or 512.
    const PAGE_TABLE_ENTRIES: usize;
    /// `FLAT_GUESTOS_CS`: the kernel's flat code selector.
    const FLAT_GUESTOS_CS: Selector;
    /// `FLAT_GUESTOS_DS`: the kernel's flat data selector.
    const FLAT_GUESTOS_DS: Selector;
    /// `FLAT_USER_CS`: an application's flat code selector.
    const FLAT_USER_CS: Selector;
    /// `FLAT_USER_DS`: an application's flat data selector.
    const FLAT_USER_DS: Selector;
    /// The ring a guest's kernel runs in: 1 on x86_32, 3 on x86_64.
    const KERNEL_RING: u8;
    /// The first virtual address that belongs to the hypervisor, in the guest's own address width.
    const HYPERVISOR_VIRT_START: u64;
    /// The first virtual address behind the hypervisor's: 2^32 on x86_32.
    const HYPERVISOR_VIRT_END: u64;
    /// `machine_to_phys_mapping`: virtual address of the machine-to-physical table, an array of
    /// [`Word`](Self::Word), read-only to the guest.
    const MACHINE_TO_PHYS: u64;
}

/// `NR_RESERVED_GDT_ENTRIES`: descriptor-table slots that belong to the hypervisor.
pub const NR_RESERVED_GDT_ENTRIES: u16 = 40;
/// `FIRST_RESERVED_GDT_ENTRY`: the first of them.
pub const FIRST_RESERVED_GDT_ENTRY: u16 = 256;
/// `LAST_RESERVED_GDT_ENTRY`: the last of them, itself reserved.
pub const LAST_RESERVED_GDT_ENTRY: u16 = FIRST_RESERVED_GDT_ENTRY + NR_RESERVED_GDT_ENTRIES - 1;

/// The 32-bit architecture: kernel in ring 1, two-level page tables, `int $0x82`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct X86_32;

/// The 64-bit architecture: kernel in ring 3, four-level page tables, `syscall`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct X86_64;

/// A guest's architecture, where it is chosen at run time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Arch {
    /// 32-bit: ring 1, two-level tables.
    X86_32,
    /// 64-bit: ring 3, four-level tables.
    X86_64,
}

/// A pointer or address field with its padding to 64 bits (`memory_t` followed by `MEMORY_PADDING`).
///
/// Eight bytes for both architectures. The padding of an x86_32 guest carries no meaning: readers ignore it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct Padded<A: GuestArch> {
    /// The value.
    pub value: A::Word,
    /// The padding, written as zero.
    pub pad: A::Pad,
}

impl<A: GuestArch> Padded<A> {
    /// A word with zero padding.
    #[inline]
    pub fn new(value: A::Word) -> Self {
        Self { value, pad: A::Pad::default() }
    }

    /// The value.
    #[inline]
    pub fn get(self) -> A::Word {
        self.value
    }

    /// The value, zero-extended.
    #[inline]
    pub fn to_u64(self) -> u64 {
        self.get().to_u64()
    }

    /// A field of this value, if the guest's word is wide enough for it.
    #[inline]
    pub fn from_u64(value: u64) -> Option<Self> {
        A::Word::from_u64(value).map(Self::new)
    }
}

layout!(Padded<X86_32>: 8 { value: 0, pad: 4 });
layout!(Padded<X86_64>: 8 { value: 0, pad: 8 });
