//! The heap: the domain's frames as they are needed, handed to `talc`.
//!
//! Frames come from the SDK in steps of [`STEP`] and never go back. The last [`KEPT`] are left to page tables, which
//! windows into guests need. An allocation for which there are not enough fails and takes none, which ends the control
//! domain only where the caller cannot be told: images, which are what is large, have a limit well below all that there
//! is ([`for_images`]).

use core::alloc::Layout;
use proxenos_guest::abi::PAGE_SIZE;
use proxenos_guest::memory;
use proxenos_rpc::ControlMemory;
use talc::locking::AssumeUnlockable;
use talc::{OomHandler, Span, Talc, Talck};

/// Frames that the heap grows by, at least.
const STEP: usize = 64;
/// Frames that it leaves: page tables for more windows than there can be domains, and pages for devices.
const KEPT: usize = 256;

/// Bytes that images may take of what there is at the start, so that there is always enough for everything else:
/// consoles above all.
pub fn for_images() -> usize {
    memory::frames::left().saturating_sub(KEPT) / 4 * 3 * PAGE_SIZE
}

/// The lock is one in name: there is one virtual CPU, and upcalls, which alone interrupt it, allocate nothing.
#[global_allocator]
static HEAP: Talck<AssumeUnlockable, Grow> = Talc::new(Grow { heap: Span::empty(), end: 0 }).lock();

/// How much of the domain's memory is used for what.
pub fn account() -> ControlMemory {
    let heap = HEAP.lock();
    let counters = heap.get_counters();
    ControlMemory {
        used: counters.allocated_bytes as u64,
        heap: counters.claimed_bytes as u64,
        left: (memory::frames::left() * PAGE_SIZE) as u64,
    }
}

/// Grows the heap.
struct Grow {
    /// The piece that was claimed last.
    heap: Span,
    /// Where the memory of that piece ends; 0 while there is none.
    end: usize,
}

impl OomHandler for Grow {
    fn handle_oom(talc: &mut Talc<Self>, layout: Layout) -> Result<(), ()> {
        // What the allocator itself needs beside what is asked for is less than a page.
        let frames = (layout.size() + layout.align()).div_ceil(PAGE_SIZE) + 1;
        let mut start = 0;
        let mut end = 0;
        let mut got_any = false;
        let left = memory::frames::left().saturating_sub(KEPT);
        if frames > left {
            return Err(());
        }
        for _ in 0..frames.max(STEP).min(left) {
            let Some(frame) = memory::alloc_frame() else { break };
            let at = frame.virt().raw() as usize;
            if at != end {
                // Frames in between went to somebody else: what is there so far stays a piece of its own.
                add(talc, start, end)?;
                start = at;
            }
            end = at + PAGE_SIZE;
            got_any = true;
        }
        add(talc, start, end)?;
        if got_any { Ok(()) } else { Err(()) }
    }
}

/// Gives a range of fresh memory to the allocator.
fn add(talc: &mut Talc<Grow>, start: usize, end: usize) -> Result<(), ()> {
    if start == end {
        return Ok(());
    }
    let fresh = Span::new(start as *mut u8, end as *mut u8);
    if talc.oom_handler.end == start && start != 0 {
        let old = talc.oom_handler.heap;
        let grown = old.fit_over(fresh);
        // SAFETY: `old` is what was claimed last, and what follows it is mapped, writable and nobody's.
        talc.oom_handler.heap = unsafe { talc.extend(old, grown) };
    } else {
        // SAFETY: fresh frames of ours, mapped and writable for good, that nobody else was given.
        talc.oom_handler.heap = unsafe { talc.claim(fresh) }?;
    }
    talc.oom_handler.end = end;
    Ok(())
}
