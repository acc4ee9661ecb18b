//! What the mechanisms need to know of the interface: which page-table format goes with which architecture, and which
//! virtual addresses are a guest's own.

use crate::addr::GuestVirt;
use crate::domain::Arch;
use crate::paging::format::{Format, FourLevel, TwoLevel};
use crate::rarely;
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

    /// The address of a page, by its number, if all of it is the guest's.
    fn guest_page(number: u64) -> Option<GuestVirt>;
}

impl Personality for X86_32 {
    type Tables = TwoLevel;
    const ARCH: Arch = Arch::X86_32;

    #[inline]
    fn in_guest_range(at: GuestVirt, bytes: u64) -> bool {
        at.0.checked_add(bytes).is_some_and(|end| end <= Self::HYPERVISOR_VIRT_START)
    }

    #[inline]
    fn guest_page(number: u64) -> Option<GuestVirt> {
        (number < Self::HYPERVISOR_VIRT_START >> 12).then_some(GuestVirt(number << 12))
    }
}

impl Personality for X86_64 {
    type Tables = FourLevel;
    const ARCH: Arch = Arch::X86_64;

    #[inline]
    fn in_guest_range(at: GuestVirt, bytes: u64) -> bool {
        // The two halves of the canonical range, the upper one from behind the hypervisor's slots.
        const LOWER_END: u64 = 1 << 47;
        if bytes <= LOWER_END && at.0 <= LOWER_END - bytes {
            return true;
        }
        // As below.
        rarely();
        match at.0.checked_add(bytes) {
            Some(end) => end <= LOWER_END || at.0 >= Self::HYPERVISOR_VIRT_END,
            // Up to and with the last byte of the address space.
            None => at.0 >= Self::HYPERVISOR_VIRT_END && at.0.wrapping_add(bytes) == 0,
        }
    }

    #[inline]
    fn guest_page(number: u64) -> Option<GuestVirt> {
        const LOWER: core::ops::Range<u64> = 0..1 << (47 - 12);
        const UPPER: core::ops::Range<u64> = X86_64::HYPERVISOR_VIRT_END >> 12..1 << (64 - 12);
        if LOWER.contains(&number) {
            return Some(GuestVirt(number << 12));
        }
        // Not rarely taken, but so the compiler does not work out both for each.
        rarely();
        UPPER.contains(&number).then_some(GuestVirt(number << 12))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<P: Personality>(edges: &[u64]) {
        for number in edges.iter().flat_map(|edge| edge.saturating_sub(2)..edge.saturating_add(3)) {
            let at = number.checked_mul(4096).map(GuestVirt).filter(|&at| P::in_guest_range(at, 4096));
            assert_eq!(P::guest_page(number), at, "{number:#x}");
        }
    }

    #[test]
    fn pages_are_the_guests_where_all_their_addresses_are() {
        check::<X86_32>(&[0, X86_32::HYPERVISOR_VIRT_START >> 12, 1 << 20, 1 << 52, u64::MAX]);
        let hole = [1 << 35, X86_64::HYPERVISOR_VIRT_START >> 12, X86_64::HYPERVISOR_VIRT_END >> 12];
        check::<X86_64>(&[&hole[..], &[0, 1 << 36, 1 << 52, u64::MAX]].concat());
    }
}
