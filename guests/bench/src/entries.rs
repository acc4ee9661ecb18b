//! What the measurements of paging work on: frames, and a stretch of addresses with a page table of its own.

use core::array;
use proxenos_guest::Word;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestVirt, MachineAddr, Mfn, PAGE_SIZE};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};

/// A fresh frame, mapped writable at its usual address.
pub fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this needs")
}

/// Fresh frames.
pub fn frames<const COUNT: usize>() -> [Mfn; COUNT] {
    array::from_fn(|_| frame().mfn())
}

/// An entry that maps a frame writable.
pub fn writable(frame: Mfn) -> Pte {
    Pte::new(frame, PteFlags::KERNEL_RW)
}

/// Addresses that nothing else uses, in the reach of an L1 table that is in use and theirs alone.
pub struct Window {
    /// The first address.
    pub at: GuestVirt,
    /// Machine address of its L1 entry.
    first: MachineAddr,
}

impl Window {
    /// The window, with the first frames of a list mapped in it.
    pub fn new(frames: &[Mfn]) -> Self {
        // A multiple of 256 MiB behind all memory that the SDK may map.
        let end = memory::virt_of(proxenos_guest::abi::Pfn(proxenos_guest::boot::frames())).raw();
        let at = GuestVirt((end | 0x0fff_ffff) + 1);
        tables::ensure_l1(at).expect("a table for the window");
        let (first, _) = memory::entry_of(at).expect("the table that was just made");
        for (index, &frame) in frames.iter().enumerate() {
            let page = GuestVirt(at.raw() + (index * PAGE_SIZE) as u64);
            // SAFETY: nothing refers to the window's pages.
            unsafe { memory::update_va_mapping(page, writable(frame), UpdateVaFlags::INVLPG) }
                .expect("a frame of ours");
        }
        Self { at, first }
    }

    /// Machine address of the L1 entry of one of the window's pages.
    pub fn entry(&self, page: usize) -> MachineAddr {
        MachineAddr(self.first.raw() + (page * size_of::<Word>()) as u64)
    }
}
