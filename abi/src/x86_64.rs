//! What is x86_64's alone (`arch-x86_64.h`), and the calls that only x86_64 guests have.
//!
//! Selectors, addresses and a virtual CPU's registers.

use crate::arch::{GuestArch, X86_64};
use crate::context::CpuContext;
use crate::ids::Selector;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `FLAT_RING3_CS32`: descriptor 260, flat 32-bit code.
pub const FLAT_RING3_CS32: Selector = Selector(0x0823);
/// `FLAT_RING3_CS64`: descriptor 261, flat 64-bit code.
pub const FLAT_RING3_CS64: Selector = Selector(0x082b);
/// `FLAT_RING3_DS`: descriptor 262, flat data.
pub const FLAT_RING3_DS: Selector = Selector(0x0833);
/// `FLAT_GUESTOS_CS32`: flat 32-bit code for a kernel.
pub const FLAT_GUESTOS_CS32: Selector = FLAT_RING3_CS32;
/// `FLAT_USER_CS32`: flat 32-bit code for applications.
pub const FLAT_USER_CS32: Selector = FLAT_RING3_CS32;

/// First slot of a guest's top-level page table that belongs to the hypervisor.
pub const FIRST_RESERVED_L4_SLOT: usize = 256;
/// Last slot of a guest's top-level page table that belongs to the hypervisor.
pub const LAST_RESERVED_L4_SLOT: usize = 271;

impl GuestArch for X86_64 {
    type Word = u64;
    type Pad = [u8; 0];
    type TrapPad = [u8; 4];
    type ExecutionContext = ExecutionContext;
    type FpuContext = [u8; 512];
    type FastTrapIdx = [u8; 0];

    const NAME: &'static str = "x86_64";
    const PAGE_TABLE_LEVELS: usize = 4;
    const PAGE_TABLE_ENTRIES: usize = 512;
    const FLAT_GUESTOS_CS: Selector = FLAT_RING3_CS64;
    const FLAT_GUESTOS_DS: Selector = FLAT_RING3_DS;
    const FLAT_USER_CS: Selector = FLAT_RING3_CS64;
    const FLAT_USER_DS: Selector = FLAT_RING3_DS;
    const KERNEL_RING: u8 = 3;
    const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
    const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
    const MACHINE_TO_PHYS: u64 = 0xffff_8100_0000_0000;
}

const _: () = {
    let slot_size = 1u64 << 39;
    let base = 0xffff_0000_0000_0000u64;
    assert!(X86_64::HYPERVISOR_VIRT_START == base + FIRST_RESERVED_L4_SLOT as u64 * slot_size);
    assert!(X86_64::HYPERVISOR_VIRT_END == base + (LAST_RESERVED_L4_SLOT as u64 + 1) * slot_size);
};

/// `execution_context_t`: registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ExecutionContext {
    /// Register.
    pub r15: u64,
    /// Register.
    pub r14: u64,
    /// Register.
    pub r13: u64,
    /// Register.
    pub r12: u64,
    /// Register.
    pub rbp: u64,
    /// Register.
    pub rbx: u64,
    /// Register.
    pub r11: u64,
    /// Register.
    pub r10: u64,
    /// Register.
    pub r9: u64,
    /// Register.
    pub r8: u64,
    /// Register.
    pub rax: u64,
    /// Register.
    pub rcx: u64,
    /// Register.
    pub rdx: u64,
    /// Register.
    pub rsi: u64,
    /// Register.
    pub rdi: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Code selector, in the low 16 bits.
    pub cs: u64,
    /// Flags.
    pub eflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector, in the low 16 bits.
    pub ss: u64,
}

layout!(ExecutionContext: 160 {
    r15: 0, r14: 8, r13: 16, r12: 24, rbp: 32, rbx: 40, r11: 48, r10: 56, r9: 64, r8: 72, rax: 80, rcx: 88, rdx: 96,
    rsi: 104, rdi: 112, rip: 120, cs: 128, eflags: 136, rsp: 144, ss: 152,
});

impl CpuContext for ExecutionContext {
    #[inline]
    fn ip(&self) -> u64 {
        self.rip
    }

    #[inline]
    fn set_ip(&mut self, ip: u64) {
        self.rip = ip;
    }

    #[inline]
    fn sp(&self) -> u64 {
        self.rsp
    }

    #[inline]
    fn set_sp(&mut self, sp: u64) {
        self.rsp = sp;
    }

    #[inline]
    fn flags(&self) -> u64 {
        self.eflags
    }

    #[inline]
    fn set_flags(&mut self, flags: u64) {
        self.eflags = flags;
    }

    #[inline]
    fn code(&self) -> Selector {
        Selector(self.cs as u16)
    }

    #[inline]
    fn set_code(&mut self, cs: Selector) {
        self.cs = u64::from(cs.raw());
    }

    #[inline]
    fn stack(&self) -> Selector {
        Selector(self.ss as u16)
    }

    #[inline]
    fn set_stack(&mut self, ss: Selector) {
        self.ss = u64::from(ss.raw());
    }

    #[inline]
    fn start_info(&self) -> u64 {
        self.rsi
    }

    #[inline]
    fn set_start_info(&mut self, address: u64) {
        self.rsi = address;
    }
}
