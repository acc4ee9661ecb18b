//! Addresses and frame numbers, a type for each.
//!
//! A *machine* address names real memory; a *pseudo-physical* frame number (pfn) is a guest's own numbering of the
//! frames it was given; a guest-virtual address is what guest code uses. They never mix without a conversion that
//! says so. The types are the interface's own; this module is where `core` gets them from.

pub use proxenos_abi::{DomId, GuestVirt, MachineAddr, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};

/// The frames below this one (the first MiB) are the PC's: never handed out, mapped as I/O memory.
pub const FIRST_RAM_FRAME: Mfn = Mfn(0x100);
/// The first frame an x86_32 guest cannot name: 4 GiB.
pub const FRAMES_BELOW_4G: u64 = 1 << 20;
