//! Page-table entries: 32 bits on x86_32, 64 bits on x86_64, with the same flags in the low twelve (Intel SDM vol. 3,
//! §4.3 and §4.5).

use crate::arch::{KERNEL_PAGES_ARE_USER, Word};
use bitflags::bitflags;
use proxenos_abi::{GuestWord, MachineAddr, Mfn, PAGE_SHIFT};

bitflags! {
    /// Flags of an entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PteFlags: u32 {
        /// Present.
        const PRESENT = 1 << 0;
        /// Writable.
        const WRITABLE = 1 << 1;
        /// Accessible from ring 3.
        const USER = 1 << 2;
        /// Write-through.
        const WRITE_THROUGH = 1 << 3;
        /// Uncached.
        const UNCACHED = 1 << 4;
        /// Accessed, set by the processor.
        const ACCESSED = 1 << 5;
        /// Written to, set by the processor.
        const DIRTY = 1 << 6;
        /// Page size in an L2 entry, page attribute (PAT) in an L1 entry. Refused.
        const LARGE_OR_PAT = 1 << 7;
        /// Global. Refused.
        const GLOBAL = 1 << 8;
        /// Free for the guest.
        const AVAILABLE = 7 << 9;
    }
}

impl PteFlags {
    const USER_IF_NEEDED: Self = if KERNEL_PAGES_ARE_USER { Self::USER } else { Self::empty() };

    /// A read-only page of the kernel.
    pub const KERNEL_RO: Self = Self::PRESENT.union(Self::ACCESSED).union(Self::USER_IF_NEEDED);
    /// A writable page of the kernel.
    pub const KERNEL_RW: Self = Self::KERNEL_RO.union(Self::WRITABLE).union(Self::DIRTY);
    /// An entry that points to a lower table.
    pub const TABLE: Self =
        Self::PRESENT.union(Self::WRITABLE).union(Self::USER).union(Self::ACCESSED).union(Self::DIRTY);
}

/// A page-table entry.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pte(pub Word);

impl Pte {
    /// An entry that maps nothing.
    pub const NONE: Self = Self(0);

    /// Bits of the frame number: 12 to 31, or 12 to 51.
    const FRAME: Word = if size_of::<Word>() == 8 { 0x000f_ffff_ffff_f000u64 as Word } else { 0xffff_f000 };

    /// An entry for a frame.
    pub fn new(frame: Mfn, flags: PteFlags) -> Self {
        let frame = Word::from_u64_truncating(frame.raw() << PAGE_SHIFT) & Self::FRAME;
        Self(frame | flags.bits() as Word)
    }

    /// The frame, whatever the flags.
    pub fn mfn(self) -> Mfn {
        MachineAddr((self.0 & Self::FRAME).to_u64()).mfn()
    }

    /// The flags among the low twelve bits.
    pub fn flags(self) -> PteFlags {
        PteFlags::from_bits_truncate(self.0.to_u64() as u32)
    }

    /// The same frame with flags added.
    #[must_use]
    pub fn with(self, flags: PteFlags) -> Self {
        Self(self.0 | flags.bits() as Word)
    }

    /// The same frame with flags removed.
    #[must_use]
    pub fn without(self, flags: PteFlags) -> Self {
        Self(self.0 & !(flags.bits() as Word))
    }

    /// Whether the entry maps anything.
    pub fn is_present(self) -> bool {
        self.flags().contains(PteFlags::PRESENT)
    }

    /// Whether the entry allows writes.
    pub fn is_writable(self) -> bool {
        self.flags().contains(PteFlags::WRITABLE)
    }
}

impl core::fmt::Debug for Pte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Pte({:#x})", self.0)
    }
}
