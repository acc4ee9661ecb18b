//! The machine's memory map, and frames for what is built before there is a real frame allocator.
//!
//! [`init`] takes the loader's map and everything that must not be touched; [`alloc`] then hands out zeroed frames
//! until [`hand_over`] gives all that is left to the frame allocator of `core` and closes this one. Page tables and the
//! heap that grow later take frames from the source that [`set_frame_source`] names.
//!
//! One lock, [`EARLY`], held only here and never while calling anything else.

use crate::boot::info::{BootInfo, RegionKind};
use crate::mm::layout::{self, PAGE_SIZE};
use crate::mm::ranges::{MachineRange, RangeSet};
use core::sync::atomic::{AtomicBool, Ordering};
use proxenos_abi::{MachineAddr, Mfn};
use proxenos_core::sync::Mutex;
use spin::Once;

/// Where early frames may come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zone {
    /// Below 4 GiB: for what must be reachable while the boot page tables are in use, or by 32-bit means.
    Low,
    /// Anywhere, but preferably above 4 GiB: frames below are the only ones that x86_32 guests can name.
    Any,
}

/// The first address that 32 bits cannot name.
pub const LOW_END: MachineAddr = MachineAddr(1 << 32);
/// What lies below belongs to firmware, BIOS data and tables of old: never handed out.
const FIRST_MIB: MachineRange = MachineAddr(0)..MachineAddr(1 << 20);

struct Early {
    free: RangeSet,
    open: Open,
}

#[derive(PartialEq, Eq)]
enum Open {
    Yes,
    No,
}

static EARLY: Mutex<Early> = Mutex::new(Early { free: RangeSet::new(), open: Open::No });
static RAM: Once<RangeSet> = Once::new();
/// Whether all of RAM is mapped, so [`Zone::Any`] may really mean any.
static DIRECT_MAP_COMPLETE: AtomicBool = AtomicBool::new(false);
static FRAME_SOURCE: Once<fn() -> Option<Mfn>> = Once::new();

/// All RAM, whole frames, whoever uses it: what the direct map covers.
///
/// # Panics
/// Before [`init`].
pub fn ram() -> &'static RangeSet {
    RAM.get().expect("the memory map is known")
}

/// The frame behind the last frame of RAM.
#[must_use]
pub fn end_of_ram() -> Mfn {
    ram().iter().next_back().map_or(Mfn(0), |last| last.end.mfn())
}

/// Takes over the loader's memory map.
pub fn init(info: &BootInfo) {
    let mut ram = RangeSet::new();
    let limit = MachineAddr(layout::DIRECT_MAP_SIZE);
    for region in info.regions.iter().filter(|region| region.kind == RegionKind::Ram) {
        ram.insert(region.range.start.min(limit)..region.range.end.min(limit));
    }
    // Firmware maps overlap now and then: what anything else claims is not RAM.
    for region in info.regions.iter().filter(|region| region.kind != RegionKind::Ram) {
        let end = region.range.end.0.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
        ram.remove(MachineAddr(region.range.start.0 / PAGE_SIZE * PAGE_SIZE)..MachineAddr(end));
    }
    ram.align_inward(PAGE_SIZE);

    let mut free = ram.clone();
    free.remove(FIRST_MIB);
    free.remove(whole_frames(image()));
    for module in &info.modules {
        let range = &module.range;
        let inside = ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end);
        let apart = range.end <= image().start || range.start >= image().end;
        assert!(inside || range.is_empty(), "the loader says that a module lies at {range:x?}, which is not memory");
        assert!(apart || range.is_empty(), "the loader put a module at {range:x?}, over the hypervisor");
        free.remove(whole_frames(range.clone()));
    }
    RAM.call_once(|| ram);
    *EARLY.lock() = Early { free, open: Open::Yes };
}

/// The machine memory of the image.
#[must_use]
pub fn image() -> MachineRange {
    let size = layout::image().end - layout::image().start;
    MachineAddr(layout::IMAGE_PHYS)..MachineAddr(layout::IMAGE_PHYS + size)
}

/// The smallest range of whole frames around a range.
fn whole_frames(range: MachineRange) -> MachineRange {
    let end = range.end.0.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
    MachineAddr(range.start.0 / PAGE_SIZE * PAGE_SIZE)..MachineAddr(end)
}

/// Takes `frames` contiguous frames, zeroed, aligned to `align` frames, for good.
///
/// Returns `None` when there is no such run, or after [`hand_over`].
pub fn alloc(frames: u64, align: u64, zone: Zone) -> Option<Mfn> {
    assert!(frames > 0 && align.is_power_of_two());
    let found = {
        let mut early = EARLY.lock();
        if early.open == Open::No {
            return None;
        }
        let zone = if DIRECT_MAP_COMPLETE.load(Ordering::Relaxed) { zone } else { Zone::Low };
        let high = (zone == Zone::Any).then(|| find(&early.free, frames, align, MachineAddr(u64::MAX))).flatten();
        let range = high.or_else(|| find(&early.free, frames, align, LOW_END))?;
        early.free.remove(range.clone());
        range
    };
    let at: *mut u8 = layout::direct(found.start).as_mut_ptr();
    // SAFETY: the range is RAM that was nobody's until it left the set just now, and the direct map covers it, or its
    // part below 4 GiB while only that is mapped.
    unsafe { at.write_bytes(0, (frames * PAGE_SIZE) as usize) };
    Some(found.start.mfn())
}

/// The highest run of `frames` aligned frames that ends at or below `limit`.
fn find(free: &RangeSet, frames: u64, align: u64, limit: MachineAddr) -> Option<MachineRange> {
    let size = frames.checked_mul(PAGE_SIZE)?;
    let align = align.checked_mul(PAGE_SIZE)?;
    free.iter().rev().find_map(|range| {
        let end = range.end.min(limit).0;
        let start = end.checked_sub(size)? / align * align;
        (start >= range.start.0).then(|| MachineAddr(start)..MachineAddr(start + size))
    })
}

/// Takes contiguous zeroed frames for good: what the frame table and its like are made of before [`hand_over`].
///
/// # Panics
/// When there is no such run of memory: the machine is too small.
#[must_use]
pub fn alloc_boot_pages(frames: u64, align: u64, zone: Zone) -> Mfn {
    alloc(frames, align, zone).unwrap_or_else(|| {
        panic!("no {frames} contiguous frames left for the hypervisor's own tables: this machine has too little memory")
    })
}

/// As [`alloc_boot_pages`], for what the machine can do without.
#[must_use]
pub fn try_boot_pages(frames: u64, align: u64, zone: Zone) -> Option<Mfn> {
    alloc(frames, align, zone)
}

/// Gives away all frames that are left, as ranges of whole frames, and closes the early allocator.
///
/// # Panics
/// The second time.
pub fn hand_over() -> RangeSet {
    let mut early = EARLY.lock();
    assert!(early.open == Open::Yes, "memory is handed over once");
    early.open = Open::No;
    core::mem::take(&mut early.free)
}

/// What is free now, before [`hand_over`]; for the boot log.
#[must_use]
pub fn free_bytes() -> u64 {
    EARLY.lock().free.bytes()
}

/// Says where page tables and the heap get frames after [`hand_over`].
///
/// The source must not allocate from the heap, log, or take a lock that is held while allocating from the heap. Its
/// frames need not be zeroed.
pub fn set_frame_source(source: fn() -> Option<Mfn>) {
    FRAME_SOURCE.call_once(|| source);
}

/// A zeroed frame for the hypervisor's own use, for good, early or late.
#[must_use]
pub fn frame() -> Option<Mfn> {
    let zone = Zone::Any;
    alloc(1, 1, zone).or_else(|| {
        let frame = FRAME_SOURCE.get()?()?;
        let at: *mut u8 = layout::direct_frame(frame).as_mut_ptr();
        // SAFETY: the source gave the frame away, and all RAM is mapped.
        unsafe { at.write_bytes(0, PAGE_SIZE as usize) };
        Some(frame)
    })
}

/// Called once the direct map covers all RAM.
pub(super) fn direct_map_is_complete() {
    DIRECT_MAP_COMPLETE.store(true, Ordering::Relaxed);
}
