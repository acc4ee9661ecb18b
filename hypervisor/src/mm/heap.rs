//! The heap: what `alloc` allocates from.
//!
//! It starts as [`INITIAL`] bytes of frames mapped at [`layout::HEAP`], and grows there in steps, first from the early
//! allocator, later from the source that [`early::set_frame_source`] names. It never shrinks.
//!
//! The allocator's own lock guards it. Growing takes the lock of the page tables and that of the frame source inside
//! it; so neither may be held while allocating. NMI and machine-check handlers do not allocate.

use crate::mm::early;
use crate::mm::layout::{self, PAGE_SIZE};
use crate::mm::paging::{self, Flags};
use core::alloc::Layout;
use core::ptr::NonNull;
use proxenos_core::sync::Mutex;
use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;
use x86_64::VirtAddr;

/// Bytes the heap starts with.
pub const INITIAL: u64 = 512 << 10;
/// It grows by at least so many bytes.
const STEP: u64 = 256 << 10;

#[global_allocator]
static HEAP: TalcLock<Mutex<()>, Growing> = TalcLock::new(Growing { mapped: 0, end: None });

/// Where the heap's memory comes from.
#[derive(Debug)]
struct Growing {
    /// Bytes mapped from [`layout::HEAP`] on.
    mapped: u64,
    /// What the allocator calls the end of the heap, once there is one.
    end: Option<NonNull<u8>>,
}

// SAFETY: the end of the heap is an address in the hypervisor's part of every address space, not bound to a CPU.
unsafe impl Send for Growing {}

impl Growing {
    /// Maps `bytes` more at the end, as far as frames last; returns the new end.
    fn map_more(&mut self, bytes: u64) -> Option<VirtAddr> {
        let base = VirtAddr::new_truncate(layout::HEAP);
        if self.mapped.checked_add(bytes)? > layout::HEAP_MAX {
            return None;
        }
        for _ in 0..bytes / PAGE_SIZE {
            let frame = early::frame()?;
            let at = base + self.mapped;
            paging::map(at..at + PAGE_SIZE, frame.addr(), Flags::DATA);
            self.mapped += PAGE_SIZE;
        }
        Some(base + self.mapped)
    }
}

// SAFETY: `acquire` uses only the allocator it was given: frames and page tables come without any allocation.
unsafe impl Source for Growing {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let wanted = layout.size().max(layout.align()) as u64 * 2;
        let bytes = wanted.checked_next_multiple_of(PAGE_SIZE).ok_or(())?.max(STEP);
        grow(talc, bytes).ok_or(())
    }
}

/// Adds `bytes` to the heap, or what frames there are.
fn grow<B: Binning>(talc: &mut Talc<Growing, B>, bytes: u64) -> Option<()> {
    let base: *mut u8 = VirtAddr::new_truncate(layout::HEAP).as_mut_ptr();
    let end: *mut u8 = talc.source.map_more(bytes)?.as_mut_ptr();
    let end = match talc.source.end {
        // SAFETY: the memory up to `end` was just mapped, directly behind the heap, and belongs to nothing else.
        Some(old) => unsafe { talc.extend(old, end) },
        // SAFETY: all memory from `base` to `end` is mapped, zeroed and used by nothing else.
        None => unsafe { talc.claim(base, end.addr() - base.addr()) }?,
    };
    talc.source.end = Some(end);
    Some(())
}

/// Makes the first part of the heap.
///
/// # Panics
/// When there is no memory for it.
pub fn init() {
    grow(&mut HEAP.lock(), INITIAL).expect("memory for the heap");
}
