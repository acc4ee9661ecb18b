//! What the mechanisms need to know of the interface: which page-table format goes with which architecture, and which
//! virtual addresses are a guest's own.

use crate::addr::GuestVirt;
use crate::domain::Arch;
use crate::paging::format::{Format, FourLevel, TwoLevel};
use proxenos_abi::{GuestArch, X86_32, X86_64};

/// An architecture of the Xen 2.0 interface, as the mechanisms see it.
pub trait Personality: GuestArch {
    /// Its page tables.
    type Tables: Format;
    /// Its name at run time.
    const ARCH: Arch;

    /// Whether `bytes` from `at` on are all addresses that the guest may use: none of the hypervisor's, none that the
    /// CPU has no translation for.
    fn in_guest_range(at: GuestVirt, bytes: u64) -> bool;
}

impl Personality for X86_32 {
    type Tables = TwoLevel;
    const ARCH: Arch = Arch::X86_32;

    #[inline]
    fn in_guest_range(at: GuestVirt, bytes: u64) -> bool {
        at.0.checked_add(bytes).is_some_and(|end| end <= Self::HYPERVISOR_VIRT_START)
    }
}

impl Personality for X86_64 {
    type Tables = FourLevel;
    const ARCH: Arch = Arch::X86_64;

    #[inline]
    fn in_guest_range(at: GuestVirt, bytes: u64) -> bool {
        // The two halves of the canonical range, the upper one from behind the hypervisor's slots.
        const LOWER_END: u64 = 1 << 47;
        match at.0.checked_add(bytes) {
            Some(end) => end <= LOWER_END || at.0 >= Self::HYPERVISOR_VIRT_END,
            // Up to and with the last byte of the address space.
            None => at.0 >= Self::HYPERVISOR_VIRT_END && at.0.wrapping_add(bytes) == 0,
        }
    }
}
