//! Free frames: what lies behind the boot stack, in the initial region and beyond.
//!
//! A bump allocator: frames are handed out once and never come back. What the builder left mapped goes first; then the
//! mapping is carried on, one page table's reach at a time.

use crate::arch::{Arch, LEVEL_BITS, Word};
use crate::boot;
use crate::hypercall;
use crate::memory::{self, tables};
use crate::pte::{Pte, PteFlags};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use proxenos_abi::mmu::{MmuCommand, MmuUpdate};
use proxenos_abi::{GuestArch, GuestVirt, Mfn, PAGE_SIZE, Pfn};

/// A frame of ours, mapped at its usual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame(Pfn);

impl Frame {
    /// The frame's number in our own view.
    pub fn pfn(self) -> Pfn {
        self.0
    }

    /// Its machine number.
    pub fn mfn(self) -> Mfn {
        memory::mfn_of(self.0)
    }

    /// Where it is mapped.
    pub fn virt(self) -> GuestVirt {
        memory::virt_of(self.0)
    }

    /// Where it is mapped, as words.
    pub fn words(self) -> *mut Word {
        self.virt().raw() as usize as *mut Word
    }
}

/// Next frame to hand out, and first frame that is not mapped yet; 0 before the first use.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static MAPPED: AtomicUsize = AtomicUsize::new(0);
static GROWING: AtomicBool = AtomicBool::new(false);

/// Frames kept back for the page tables that more frames need.
const RESERVE: usize = 4;
/// Requests in one call.
const BATCH: usize = 64;

/// A fresh, zeroed frame, or `None` when the domain has no more.
pub fn alloc_frame() -> Option<Frame> {
    if NEXT.load(Ordering::Relaxed) == 0 {
        NEXT.store(memory::pfn_of(memory::boot_stack_end()).raw() as usize, Ordering::Relaxed);
        MAPPED.store(memory::pfn_of(memory::region_end()).raw() as usize, Ordering::Relaxed);
    }
    let left = MAPPED.load(Ordering::Relaxed) - NEXT.load(Ordering::Relaxed);
    if left <= RESERVE && !GROWING.swap(true, Ordering::Relaxed) {
        grow();
        GROWING.store(false, Ordering::Relaxed);
    }
    let next = NEXT.load(Ordering::Relaxed);
    if next >= MAPPED.load(Ordering::Relaxed) {
        return None;
    }
    NEXT.store(next + 1, Ordering::Relaxed);
    let frame = Frame(Pfn(next as u64));
    // SAFETY: mapped, writable, and handed out to nobody before.
    unsafe { core::ptr::write_bytes(frame.words().cast::<u8>(), 0, PAGE_SIZE) };
    Some(frame)
}

/// Maps as many more frames as one L1 table reaches. If that fails there is just no more memory.
fn grow() {
    let first = MAPPED.load(Ordering::Relaxed);
    let per_table = 1usize << LEVEL_BITS;
    let end = ((first / per_table + 1) * per_table).min(boot::frames() as usize);
    if first >= end || memory::virt_of(Pfn(end as u64)).raw() > highest_mappable() {
        return;
    }
    let start = memory::virt_of(Pfn(first as u64));
    if tables::ensure_l1(start).is_err() {
        return;
    }
    let Some((address, _)) = tables::entry_of(start) else { return };
    let mut requests = [MmuUpdate::<Arch>::default(); BATCH];
    let mut pfn = first;
    while pfn < end {
        let count = BATCH.min(end - pfn);
        for (offset, request) in requests[..count].iter_mut().enumerate() {
            let at = address.raw() + ((pfn + offset - first) * size_of::<Word>()) as u64;
            let entry = Pte::new(memory::mfn_of(Pfn((pfn + offset) as u64)), PteFlags::KERNEL_RW);
            *request = memory::request(MmuCommand::NormalPtUpdate, at.into(), entry.0);
        }
        // SAFETY: the addresses were not mapped before.
        if unsafe { hypercall::mmu_update(&requests[..count]) }.is_err() {
            return;
        }
        pfn += count;
        MAPPED.store(pfn, Ordering::Relaxed);
    }
}

/// The last address at which the SDK maps frames.
fn highest_mappable() -> u64 {
    if Arch::HYPERVISOR_VIRT_END == 1 << 32 { Arch::HYPERVISOR_VIRT_START } else { 1 << 46 }
}

/// How many frames can still be handed out without growing.
pub fn mapped_left() -> usize {
    MAPPED.load(Ordering::Relaxed).saturating_sub(NEXT.load(Ordering::Relaxed))
}
