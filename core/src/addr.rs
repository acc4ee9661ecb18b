//! Addresses and frame numbers, a type for each.
//!
//! A *machine* address names real memory; a *pseudo-physical* frame number (pfn) is a guest's own numbering of the
//! frames it was given; a guest-virtual address is what guest code uses. They never mix without a conversion that
//! says so.

pub use proxenos_abi::{MachineAddr, Mfn, Pfn};

/// Bytes in a frame (and a page): 4 KiB in both architectures.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// A guest-virtual (linear) address, of either width.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GuestVirt(pub u64);

impl GuestVirt {
    /// The address `bytes` further, wrapping at 2^64 (range checks happen where memory is touched).
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The address of the page's first byte.
    #[must_use]
    pub const fn page_base(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }
}
