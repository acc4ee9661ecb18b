//! What is x86_32's alone (`arch-x86_32.h`).
//!
//! Selectors, addresses and the two orders in which a virtual CPU's registers may lie in memory.

use crate::arch::{GuestArch, X86_32};
use crate::context::CpuContext;
use crate::ids::Selector;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `FLAT_RING1_CS`: descriptor 259, flat code for a kernel in ring 1.
pub const FLAT_RING1_CS: Selector = Selector(0x0819);
/// `FLAT_RING1_DS`: descriptor 260, flat data for a kernel in ring 1.
pub const FLAT_RING1_DS: Selector = Selector(0x0821);
/// `FLAT_RING3_CS`: descriptor 261, flat code for applications.
pub const FLAT_RING3_CS: Selector = Selector(0x082b);
/// `FLAT_RING3_DS`: descriptor 262, flat data for applications.
pub const FLAT_RING3_DS: Selector = Selector(0x0833);
/// The vector of `TRAP_INSTR` (`int $0x82`).
pub const TRAP_VECTOR: u8 = 0x82;
/// `HYPERVISOR_VIRT_START`: guests may not change mappings from here on.
pub const HYPERVISOR_VIRT_START: u32 = 0xfc00_0000;

impl GuestArch for X86_32 {
    type Word = u32;
    type Pad = [u8; 4];
    type TrapPad = [u8; 0];
    type ExecutionContext = ExecutionContext;
    type FpuContext = [u8; 256];
    type FastTrapIdx = u32;

    const NAME: &'static str = "x86_32";
    const PAGE_TABLE_LEVELS: usize = 2;
    const PAGE_TABLE_ENTRIES: usize = 1024;
    const FLAT_GUESTOS_CS: Selector = FLAT_RING1_CS;
    const FLAT_GUESTOS_DS: Selector = FLAT_RING1_DS;
    const FLAT_USER_CS: Selector = FLAT_RING3_CS;
    const FLAT_USER_DS: Selector = FLAT_RING3_DS;
    const KERNEL_RING: u8 = 1;
    const HYPERVISOR_VIRT_START: u64 = HYPERVISOR_VIRT_START as u64;
    const HYPERVISOR_VIRT_END: u64 = 1 << 32;
    const MACHINE_TO_PHYS: u64 = HYPERVISOR_VIRT_START as u64;
}

/// `execution_context_t`: registers, in the order that goes with `dom0_op` version 0xAAAA0019.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ExecutionContext {
    /// Register.
    pub ebx: u32,
    /// Register.
    pub ecx: u32,
    /// Register.
    pub edx: u32,
    /// Register.
    pub esi: u32,
    /// Register.
    pub edi: u32,
    /// Register.
    pub ebp: u32,
    /// Register.
    pub eax: u32,
    /// Selector, in the low 16 bits.
    pub ds: u32,
    /// Selector, in the low 16 bits.
    pub es: u32,
    /// Selector, in the low 16 bits.
    pub fs: u32,
    /// Selector, in the low 16 bits.
    pub gs: u32,
    /// `_unused`: carries no meaning.
    pub unused: u32,
    /// Instruction pointer.
    pub eip: u32,
    /// Code selector, in the low 16 bits.
    pub cs: u32,
    /// Flags.
    pub eflags: u32,
    /// Stack pointer.
    pub esp: u32,
    /// Stack selector, in the low 16 bits.
    pub ss: u32,
}

layout!(ExecutionContext: 68 {
    ebx: 0, ecx: 4, edx: 8, esi: 12, edi: 16, ebp: 20, eax: 24, ds: 28, es: 32, fs: 36, gs: 40, unused: 44,
    eip: 48, cs: 52, eflags: 56, esp: 60, ss: 64,
});

/// `execution_context_t`: registers, in the order that goes with `dom0_op` version 0xAAAA001A, where the data
/// selectors follow `ss`. As large as the older order, with which it converts both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ExecutionContextV1A {
    /// Register.
    pub ebx: u32,
    /// Register.
    pub ecx: u32,
    /// Register.
    pub edx: u32,
    /// Register.
    pub esi: u32,
    /// Register.
    pub edi: u32,
    /// Register.
    pub ebp: u32,
    /// Register.
    pub eax: u32,
    /// `_unused`: carries no meaning.
    pub unused: u32,
    /// Instruction pointer.
    pub eip: u32,
    /// Code selector, in the low 16 bits.
    pub cs: u32,
    /// Flags.
    pub eflags: u32,
    /// Stack pointer.
    pub esp: u32,
    /// Stack selector, in the low 16 bits.
    pub ss: u32,
    /// Selector, in the low 16 bits.
    pub es: u32,
    /// Selector, in the low 16 bits.
    pub ds: u32,
    /// Selector, in the low 16 bits.
    pub fs: u32,
    /// Selector, in the low 16 bits.
    pub gs: u32,
}

layout!(ExecutionContextV1A: 68 {
    ebx: 0, ecx: 4, edx: 8, esi: 12, edi: 16, ebp: 20, eax: 24, unused: 28, eip: 32, cs: 36, eflags: 40, esp: 44,
    ss: 48, es: 52, ds: 56, fs: 60, gs: 64,
});

/// Gives one order of the registers from the other, field by field.
macro_rules! reorder {
    ($from:ident => $to:ident) => {
        impl From<$from> for $to {
            fn from(c: $from) -> Self {
                Self {
                    ebx: c.ebx,
                    ecx: c.ecx,
                    edx: c.edx,
                    esi: c.esi,
                    edi: c.edi,
                    ebp: c.ebp,
                    eax: c.eax,
                    ds: c.ds,
                    es: c.es,
                    fs: c.fs,
                    gs: c.gs,
                    unused: c.unused,
                    eip: c.eip,
                    cs: c.cs,
                    eflags: c.eflags,
                    esp: c.esp,
                    ss: c.ss,
                }
            }
        }
    };
}

reorder!(ExecutionContext => ExecutionContextV1A);
reorder!(ExecutionContextV1A => ExecutionContext);

/// Implements the registers that every architecture has, for one order of the fields.
macro_rules! cpu_context {
    ($type:ident) => {
        impl CpuContext for $type {
            #[inline]
            fn ip(&self) -> u64 {
                u64::from(self.eip)
            }

            #[inline]
            fn set_ip(&mut self, ip: u64) {
                self.eip = ip as u32;
            }

            #[inline]
            fn sp(&self) -> u64 {
                u64::from(self.esp)
            }

            #[inline]
            fn set_sp(&mut self, sp: u64) {
                self.esp = sp as u32;
            }

            #[inline]
            fn flags(&self) -> u64 {
                u64::from(self.eflags)
            }

            #[inline]
            fn set_flags(&mut self, flags: u64) {
                self.eflags = flags as u32;
            }

            #[inline]
            fn code(&self) -> Selector {
                Selector(self.cs as u16)
            }

            #[inline]
            fn set_code(&mut self, cs: Selector) {
                self.cs = u32::from(cs.raw());
            }

            #[inline]
            fn stack(&self) -> Selector {
                Selector(self.ss as u16)
            }

            #[inline]
            fn set_stack(&mut self, ss: Selector) {
                self.ss = u32::from(ss.raw());
            }

            #[inline]
            fn start_info(&self) -> u64 {
                u64::from(self.esi)
            }

            #[inline]
            fn set_start_info(&mut self, address: u64) {
                self.esi = address as u32;
            }
        }
    };
}

cpu_context!(ExecutionContext);
cpu_context!(ExecutionContextV1A);
