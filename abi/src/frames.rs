//! What lies on a guest kernel's stack when a trap or callback handler is entered.
//!
//! The headers do not define these frames; guests rely on them all the same. A frame is put together from the parts
//! below. From its lowest address, where the stack pointer is at entry, it holds:
//!
//! | | x86_32 | x86_64 |
//! |---|---|---|
//! | always | | [`ScratchRegisters`] |
//! | failsafe callback | [`DataSelectors32`] | [`DataSelectors64`] |
//! | page fault | fault address, a word | fault address, a word |
//! | exception with an error code | the code, a word | the code, a word |
//! | always | [`IretFrame32`] | [`IretFrame64`] |
//! | from ring 3 | [`OuterStack32`] | (part of [`IretFrame64`]) |
//!
//! Events, the failsafe callback and `int n` have no error code. A kernel that has removed what lies below the last two
//! rows returns by `iret`; to its applications an x86_64 kernel returns by `switch_to_user`
//! ([`SwitchToUser`](crate::hypercall::SwitchToUser)).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Exceptions that push an error code, a bit a vector: #DF, #TS, #NP, #SS, #GP, #PF and #AC (Intel SDM vol. 3 §6.15).
pub const ERROR_CODE_VECTORS: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;

/// The vector of a page fault, whose frame also holds the fault address.
pub const PAGE_FAULT_VECTOR: u8 = 14;

/// Whether the frame of this exception has an error code.
#[inline]
pub const fn has_error_code(vector: u8) -> bool {
    vector < 32 && ERROR_CODE_VECTORS >> vector & 1 != 0
}

/// x86_32: what `iret` within the same ring takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct IretFrame32 {
    /// Instruction pointer.
    pub eip: u32,
    /// Code selector, in the low 16 bits.
    pub cs: u32,
    /// Flags.
    pub eflags: u32,
}

layout!(IretFrame32: 12 { eip: 0, cs: 4, eflags: 8 });

/// x86_32: what follows [`IretFrame32`] when the trap came from ring 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct OuterStack32 {
    /// Stack pointer.
    pub esp: u32,
    /// Stack selector, in the low 16 bits.
    pub ss: u32,
}

layout!(OuterStack32: 8 { esp: 0, ss: 4 });

/// x86_32: the selectors of a failsafe frame, one of which could not be loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct DataSelectors32 {
    /// Selector, in the low 16 bits.
    pub ds: u32,
    /// Selector, in the low 16 bits.
    pub es: u32,
    /// Selector, in the low 16 bits.
    pub fs: u32,
    /// Selector, in the low 16 bits.
    pub gs: u32,
}

layout!(DataSelectors32: 16 { ds: 0, es: 4, fs: 8, gs: 12 });

/// x86_64: the two registers that `syscall` overwrites, lowest in every frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ScratchRegisters {
    /// Register.
    pub rcx: u64,
    /// Register.
    pub r11: u64,
}

layout!(ScratchRegisters: 16 { rcx: 0, r11: 8 });

/// x86_64: what `iret` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct IretFrame64 {
    /// Instruction pointer.
    pub rip: u64,
    /// Code selector, in the low 16 bits.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector, in the low 16 bits.
    pub ss: u64,
}

layout!(IretFrame64: 40 { rip: 0, cs: 8, rflags: 16, rsp: 24, ss: 32 });

/// x86_64: the selectors of a failsafe frame, one of which could not be loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct DataSelectors64 {
    /// Selector, in the low 16 bits.
    pub ds: u64,
    /// Selector, in the low 16 bits.
    pub es: u64,
    /// Selector, in the low 16 bits.
    pub fs: u64,
    /// Selector, in the low 16 bits.
    pub gs: u64,
}

layout!(DataSelectors64: 32 { ds: 0, es: 8, fs: 16, gs: 24 });
