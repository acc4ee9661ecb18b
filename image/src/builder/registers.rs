//! The registers a domain starts with.

use super::{DomainKind, Layout};
use proxenos_abi::{Arch, GuestArch, GuestVirt, Selector, X86_32, X86_64};

/// The CPU's state at a guest's first instruction. General registers that are not named are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitialState {
    /// eip, rip.
    pub ip: GuestVirt,
    /// esp, rsp: the top of the boot stack.
    pub sp: GuestVirt,
    /// esi, rsi: the address of `start_info_t`.
    pub start_info: GuestVirt,
    /// eflags: interrupts enabled, for the hypervisor's own use; I/O privilege level 0.
    pub flags: u64,
    /// cs.
    pub code: Selector,
    /// ss, ds, es, fs and gs.
    pub data: Selector,
    /// The kernel's stack for traps from applications, until `stack_switch`: its segment.
    pub kernel_ss: Selector,
    /// Its pointer.
    pub kernel_sp: GuestVirt,
}

/// The registers that go with a layout.
#[must_use]
pub fn initial_state(layout: &Layout) -> InitialState {
    /// Bit 1, which is always set, and the interrupt flag.
    const INTERRUPTS_ON: u64 = 0x202;
    /// The parity flag, which Xen 2.0's tools happened to set.
    const PARITY: u64 = 1 << 2;
    let (code, data) = match layout.arch {
        Arch::X86_32 => (X86_32::FLAT_GUESTOS_CS, X86_32::FLAT_GUESTOS_DS),
        Arch::X86_64 => (X86_64::FLAT_GUESTOS_CS, X86_64::FLAT_GUESTOS_DS),
    };
    let (flags, kernel_ss, kernel_sp) = match layout.kind {
        DomainKind::Initial => (INTERRUPTS_ON, Selector::NULL, GuestVirt(0)),
        DomainKind::Ordinary => (INTERRUPTS_ON | PARITY, data, layout.stack_top),
    };
    let (ip, sp) = (layout.entry, layout.stack_top);
    InitialState { ip, sp, start_info: layout.start_info, flags, code, data, kernel_ss, kernel_sp }
}
