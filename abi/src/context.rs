//! A virtual CPU's state: trap table entries and the whole context (`arch-x86_32.h`, `arch-x86_64.h`).

use crate::arch::{AbiType, GuestArch, X86_32, X86_64};
use crate::ids::Selector;
use crate::x86_32;
use bitflags::bitflags;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The registers that both architectures have, whatever their names and widths.
///
/// Setters keep the low bits that the register has room for.
pub trait CpuContext {
    /// Instruction pointer.
    fn ip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_ip(&mut self, ip: u64);
    /// Stack pointer.
    fn sp(&self) -> u64;
    /// Sets the stack pointer.
    fn set_sp(&mut self, sp: u64);
    /// Flags register.
    fn flags(&self) -> u64;
    /// Sets the flags register.
    fn set_flags(&mut self, flags: u64);
    /// Code selector.
    fn code(&self) -> Selector;
    /// Sets the code selector.
    fn set_code(&mut self, cs: Selector);
    /// Stack selector.
    fn stack(&self) -> Selector;
    /// Sets the stack selector.
    fn set_stack(&mut self, ss: Selector);
    /// The register that holds the address of `start_info_t` at the start of day (esi, rsi).
    fn start_info(&self) -> u64;
    /// Sets that register.
    fn set_start_info(&mut self, address: u64);
}

/// An entry of the table passed to `set_trap_table` (`trap_info_t`). An entry with address 0 ends the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct TrapInfo<A: GuestArch> {
    /// Exception or interrupt vector.
    pub vector: u8,
    /// Privilege level and event masking; see [`TrapFlags`].
    pub flags: u8,
    /// Code selector of the handler.
    pub cs: Selector,
    /// `__pad`: empty on x86_32.
    pub pad: A::TrapPad,
    /// Code address of the handler.
    pub address: A::Word,
}

layout!(TrapInfo<X86_32>: 8 { vector: 0, flags: 1, cs: 2, pad: 4, address: 4 });
layout!(TrapInfo<X86_64>: 16 { vector: 0, flags: 1, cs: 2, pad: 4, address: 8 });

impl<A: GuestArch> TrapInfo<A> {
    /// An entry with zero padding.
    pub fn new(vector: u8, flags: TrapFlags, cs: Selector, address: A::Word) -> Self {
        Self { vector, flags: flags.bits(), cs, pad: A::TrapPad::default(), address }
    }

    /// `TI_GET_DPL`: the least privileged ring, 0 to 3, that may raise the trap by an `int` instruction.
    #[inline]
    pub fn dpl(&self) -> u8 {
        TrapFlags::from_bits_retain(self.flags).dpl()
    }

    /// `TI_GET_IF`: whether events are masked when the handler is entered.
    #[inline]
    pub fn masks_events(&self) -> bool {
        TrapFlags::from_bits_retain(self.flags).contains(TrapFlags::MASK_EVENTS)
    }
}

bitflags! {
    /// `flags` of [`TrapInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TrapFlags: u8 {
        /// Bits 0 and 1: the least privileged ring that may raise the trap by an `int` instruction.
        const DPL = 3;
        /// Bit 2: events are masked when the handler is entered.
        const MASK_EVENTS = 4;
    }
}

impl TrapFlags {
    /// Flags with this privilege level (its low two bits) and nothing else.
    #[inline]
    pub const fn from_dpl(dpl: u8) -> Self {
        Self::from_bits_retain(dpl & 3)
    }

    /// The privilege level, 0 to 3.
    #[inline]
    pub const fn dpl(self) -> u8 {
        self.bits() & 3
    }
}

/// Entries of the virtual trap table.
pub const NR_TRAPS: usize = 256;
/// Frames that a guest's descriptor table may take.
pub const NR_GDT_FRAMES: usize = 16;

/// A virtual CPU's whole state (`full_execution_context_t`), as `dom0_op` reads and sets it.
///
/// The second parameter is the order of the registers; it is the architecture's own unless the caller of `dom0_op`
/// speaks version 0xAAAA001A (see [`x86_32::ExecutionContextV1A`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct FullExecutionContext<A: GuestArch, C: AbiType = <A as GuestArch>::ExecutionContext> {
    /// Which parts are valid; see [`ContextFlags`].
    pub flags: A::Word,
    /// General registers.
    pub cpu_ctxt: C,
    /// Floating-point state, as FXSAVE (or FSAVE, where the CPU has no FXSAVE) stores it; cut short on x86_32.
    pub fpu_ctxt: A::FpuContext,
    /// Virtual interrupt table.
    pub trap_ctxt: [TrapInfo<A>; NR_TRAPS],
    /// Vector of the fast trap, or 0; empty on x86_64.
    pub fast_trap_idx: A::FastTrapIdx,
    /// Linear address of the local descriptor table.
    pub ldt_base: A::Word,
    /// Entries of the local descriptor table.
    pub ldt_ents: A::Word,
    /// Machine frame numbers of the global descriptor table.
    pub gdt_frames: [A::Word; NR_GDT_FRAMES],
    /// Entries of the global descriptor table.
    pub gdt_ents: A::Word,
    /// Virtual TSS: selector of the kernel's stack.
    pub guestos_ss: A::Word,
    /// Virtual TSS: stack pointer of the kernel's stack.
    pub guestos_esp: A::Word,
    /// Machine address of the top-level page table (CR3).
    pub pt_base: A::Word,
    /// Debug registers 0 to 7.
    pub debugreg: [A::Word; 8],
    /// Code selector of the event callback.
    pub event_callback_cs: A::Word,
    /// Code address of the event callback.
    pub event_callback_eip: A::Word,
    /// Code selector of the failsafe callback.
    pub failsafe_callback_cs: A::Word,
    /// Code address of the failsafe callback.
    pub failsafe_callback_eip: A::Word,
}

layout!(FullExecutionContext<X86_32>: 2516 {
    flags: 0, cpu_ctxt: 4, fpu_ctxt: 72, trap_ctxt: 328, fast_trap_idx: 2376, ldt_base: 2380, ldt_ents: 2384,
    gdt_frames: 2388, gdt_ents: 2452, guestos_ss: 2456, guestos_esp: 2460, pt_base: 2464, debugreg: 2468,
    event_callback_cs: 2500, event_callback_eip: 2504, failsafe_callback_cs: 2508, failsafe_callback_eip: 2512,
});
layout!(FullExecutionContext<X86_32, x86_32::ExecutionContextV1A>: 2516 { cpu_ctxt: 4, fpu_ctxt: 72 });
layout!(FullExecutionContext<X86_64>: 5048 {
    flags: 0, cpu_ctxt: 8, fpu_ctxt: 168, trap_ctxt: 680, fast_trap_idx: 4776, ldt_base: 4776, ldt_ents: 4784,
    gdt_frames: 4792, gdt_ents: 4920, guestos_ss: 4928, guestos_esp: 4936, pt_base: 4944, debugreg: 4952,
    event_callback_cs: 5016, event_callback_eip: 5024, failsafe_callback_cs: 5032, failsafe_callback_eip: 5040,
});

impl<A: GuestArch, C: AbiType> Default for FullExecutionContext<A, C> {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// x86_32's whole context with the registers in the order of `dom0_op` version 0xAAAA001A.
pub type FullExecutionContextV1A = FullExecutionContext<X86_32, x86_32::ExecutionContextV1A>;

impl<A: GuestArch, C: AbiType> FullExecutionContext<A, C> {
    /// The same state with the registers in another order.
    pub fn reordered<D: AbiType + From<C>>(&self) -> FullExecutionContext<A, D> {
        FullExecutionContext {
            flags: self.flags,
            cpu_ctxt: D::from(self.cpu_ctxt),
            fpu_ctxt: self.fpu_ctxt,
            trap_ctxt: self.trap_ctxt,
            fast_trap_idx: self.fast_trap_idx,
            ldt_base: self.ldt_base,
            ldt_ents: self.ldt_ents,
            gdt_frames: self.gdt_frames,
            gdt_ents: self.gdt_ents,
            guestos_ss: self.guestos_ss,
            guestos_esp: self.guestos_esp,
            pt_base: self.pt_base,
            debugreg: self.debugreg,
            event_callback_cs: self.event_callback_cs,
            event_callback_eip: self.event_callback_eip,
            failsafe_callback_cs: self.failsafe_callback_cs,
            failsafe_callback_eip: self.failsafe_callback_eip,
        }
    }
}

bitflags! {
    /// `flags` of [`FullExecutionContext`] (`ECF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ContextFlags: u32 {
        /// `ECF_I387_VALID`: `fpu_ctxt` holds state.
        const I387_VALID = 1;
        /// The context is that of a guest of the architecture that the caller of `dom0_op` is not of, and laid out as
        /// that one lays it out. The header knows of no such thing. Where a context is asked for, this says what was
        /// given; where one is passed on, it must be right.
        const OTHER_ARCH = 1 << 1;
    }
}
