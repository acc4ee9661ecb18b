//! Free frames: what lies behind the boot stack, in the initial region and beyond.
//!
//! A bump allocator: frames are handed out once and never come back. What the builder left mapped goes first; then the
//! mapping is carried on, one page table's reach at a time. What was never handed out can be given back to the
//! hypervisor, from the last frame on ([`balloon`](crate::balloon)), so the frames there are have no holes.

use crate::arch::{Arch, LEVEL_BITS, Word};
use crate::boot;
use crate::hypercall;
use crate::memory::{self, tables};
use crate::pte::{Pte, PteFlags};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use proxenos_abi::hypercall::DomMemOp;
use proxenos_abi::mmu::{MmuCommand, MmuUpdate, UpdateVaFlags};
use proxenos_abi::{DomId, Errno, GuestArch, GuestVirt, GuestWord, Mfn, PAGE_SIZE, Pfn};

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

/// Next frame to hand out, first frame that is not mapped yet, first that the domain has not got (any more); 0 before
/// the first use.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static MAPPED: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
static GROWING: AtomicBool = AtomicBool::new(false);

/// Frames kept back for the page tables that more frames need.
const RESERVE: usize = 4;
/// Requests in one call.
const BATCH: usize = 64;

/// Takes over from the builder, once.
fn begin() {
    if NEXT.load(Ordering::Relaxed) == 0 {
        NEXT.store(memory::pfn_of(memory::boot_stack_end()).raw() as usize, Ordering::Relaxed);
        MAPPED.store(memory::pfn_of(memory::region_end()).raw() as usize, Ordering::Relaxed);
        END.store(boot::frames() as usize, Ordering::Relaxed);
    }
}

/// A fresh, zeroed frame, or `None` when the domain has no more.
pub fn alloc_frame() -> Option<Frame> {
    begin();
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
    let end = ((first / per_table + 1) * per_table).min(END.load(Ordering::Relaxed));
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

/// How many frames can still be handed out, the page tables for them included.
pub fn left() -> usize {
    begin();
    END.load(Ordering::Relaxed).saturating_sub(NEXT.load(Ordering::Relaxed))
}

/// How many frames the domain has.
pub(crate) fn count() -> usize {
    begin();
    END.load(Ordering::Relaxed)
}

/// Frames that [`give_back_last`] leaves.
pub(crate) fn least() -> usize {
    begin();
    NEXT.load(Ordering::Relaxed) + RESERVE
}

/// Gives the last frame back to the hypervisor.
pub(crate) fn give_back_last() -> Result<(), Errno> {
    if count() <= least() {
        return Err(Errno::ENOMEM);
    }
    let frame = Frame(Pfn(count() as u64 - 1));
    let (number, machine) = (frame.pfn().raw() as usize, frame.mfn());
    let was_mapped = number < MAPPED.load(Ordering::Relaxed);
    if was_mapped {
        // SAFETY: handed out to nobody.
        unsafe { memory::update_va_mapping(frame.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }?;
    }
    let mut extents = [hypercall::frame_word(machine)];
    // SAFETY: nothing maps the frame, and nobody has it.
    if unsafe { hypercall::dom_mem_op(DomMemOp::DecreaseReservation, &mut extents, 0, DomId::SELF) }? != 1 {
        if was_mapped {
            // SAFETY: as it was before.
            unsafe { memory::remap(frame, PteFlags::KERNEL_RW) }?;
        }
        return Err(Errno::EINVAL);
    }
    memory::set_mfn_of(frame.pfn(), None);
    END.store(number, Ordering::Relaxed);
    MAPPED.fetch_min(number, Ordering::Relaxed);
    Ok(())
}

/// Takes a frame from the hypervisor, behind the last; it is mapped when it is needed.
pub(crate) fn take_another() -> Result<(), Errno> {
    let pfn = Pfn(count() as u64);
    if pfn.raw() >= boot::frames() {
        // The list of frames has no entry for it.
        return Err(Errno::EINVAL);
    }
    let mut extents = [0];
    // SAFETY: the frame that comes is nobody's.
    if unsafe { hypercall::dom_mem_op(DomMemOp::IncreaseReservation, &mut extents, 0, DomId::SELF) }? != 1 {
        return Err(Errno::ENOMEM);
    }
    let machine = Mfn(GuestWord::to_u64(extents[0]));
    memory::set_mfn_of(pfn, Some(machine));
    // SAFETY: no mapping changes.
    unsafe { memory::update(memory::request(MmuCommand::MachphysUpdate, machine.addr(), pfn.raw() as Word)) }?;
    END.store(pfn.raw() as usize + 1, Ordering::Relaxed);
    Ok(())
}
