//! The hypervisor's own page tables.
//!
//! [`init`] builds them and leaves the boot's; then every mapping is either writable or executable and never both, the
//! direct map has all RAM and nothing else, and the frames of the image's code and constants are read-only in it.
//! Tables are never freed, and the 16 L3 tables never change place, so copies of the top-level entries stay right for
//! ever.
//!
//! The lock [`TABLES`] guards every change below the top level. Readers (the CPU, [`translate`]) need none: entries are
//! written whole, and only from not present to present or back.

use crate::cpu::features;
use crate::mm::early::{self, Zone};
use crate::mm::layout::{self, PAGE_SIZE, VirtRange};
use core::sync::atomic::{AtomicU64, Ordering};
use proxenos_abi::{MachineAddr, Mfn};
use proxenos_core::sync::Mutex;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

bitflags::bitflags! {
    /// Bits of a page-table entry (Intel SDM vol. 3, table 4-20).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Flags: u64 {
        /// Present.
        const PRESENT = 1 << 0;
        /// Writable.
        const WRITABLE = 1 << 1;
        /// Reachable from ring 3.
        const USER = 1 << 2;
        /// Write-through.
        const PWT = 1 << 3;
        /// Cache disable.
        const PCD = 1 << 4;
        /// Accessed.
        const ACCESSED = 1 << 5;
        /// Dirty.
        const DIRTY = 1 << 6;
        /// A 2 MiB or 1 GiB page, in an L2 or L3.
        const LARGE = 1 << 7;
        /// No execution.
        const NO_EXECUTE = 1 << 63;

        /// Code: readable, executable.
        const TEXT = Self::PRESENT.bits() | Self::ACCESSED.bits();
        /// Constants: readable.
        const RODATA = Self::TEXT.bits() | Self::NO_EXECUTE.bits();
        /// Data: readable, writable.
        const DATA = Self::RODATA.bits() | Self::WRITABLE.bits() | Self::DIRTY.bits();
        /// Registers of devices: data, uncached.
        const DEVICE = Self::DATA.bits() | Self::PCD.bits() | Self::PWT.bits();
        /// What an entry that leads to another table allows: all that the entries below it do.
        const TABLE = Self::PRESENT.bits() | Self::WRITABLE.bits() | Self::USER.bits() | Self::ACCESSED.bits();
    }
}

/// The bits of an entry that hold the frame.
const FRAME_BITS: u64 = 0x000f_ffff_ffff_f000;

/// A page table as the CPU sees it.
type Table = [AtomicU64; 512];

static TABLES: Mutex<()> = Mutex::new(());
static TOP: Once<Mfn> = Once::new();

/// The table in a frame.
fn table(frame: Mfn) -> &'static Table {
    let at: *const Table = layout::direct_frame(frame).as_ptr();
    // SAFETY: callers pass only frames that `new_table` took, which stay tables for good; they are mapped in the direct
    // map, aligned, and changed only by atomic stores.
    unsafe { &*at }
}

/// An empty table.
fn new_table() -> Mfn {
    early::frame().expect("memory for the hypervisor's page tables")
}

/// The size of page that an entry of a level maps: level 1 is an L1.
const fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

/// Index of an address in a table of a level.
const fn index(at: VirtAddr, level: u32) -> usize {
    (at.as_u64() >> (12 + 9 * (level - 1)) & 511) as usize
}

/// The table of the next lower level below an entry, made if there is none.
///
/// # Panics
/// When a large page is in the way: nothing of ours maps over another mapping.
fn descend(entry: &AtomicU64) -> Mfn {
    let value = entry.load(Ordering::Relaxed);
    if value & Flags::PRESENT.bits() == 0 {
        let below = new_table();
        entry.store(below.addr().0 | Flags::TABLE.bits(), Ordering::Release);
        return below;
    }
    assert!(value & Flags::LARGE.bits() == 0, "a large page is in the way");
    MachineAddr(value & FRAME_BITS).mfn()
}

/// Maps a range of whole pages to contiguous machine memory, in the largest pages that fit.
///
/// # Panics
/// When the range is not the hypervisor's, not whole pages, or (partly) mapped already; when memory for tables runs
/// out.
pub fn map(range: VirtRange, to: MachineAddr, flags: Flags) {
    let top = *TOP.get().expect("page tables exist");
    map_in(top, range, to, flags);
}

fn map_in(top: Mfn, range: VirtRange, to: MachineAddr, flags: Flags) {
    let _guard = TABLES.lock();
    let limit = range.end.as_u64();
    assert!(range.start.as_u64() >= layout::HYPERVISOR_START && limit <= layout::HYPERVISOR_END);
    assert!(range.start.is_aligned(PAGE_SIZE) && range.end.is_aligned(PAGE_SIZE) && to.page_offset() == 0);
    assert!(
        !flags.contains(Flags::WRITABLE) || flags.contains(Flags::NO_EXECUTE),
        "no page is both writable and executable"
    );
    let largest = if features::get().huge_pages.is_there() { 3 } else { 2 };
    let (mut at, mut to) = (range.start, to);
    while at < range.end {
        let left = range.end - at;
        let fits = |level: u32| at.is_aligned(span(level)) && to.0 % span(level) == 0 && left >= span(level);
        let level = (2..=largest).rev().find(|&level| fits(level)).unwrap_or(1);
        let mut frame = top;
        for above in (level + 1..=4).rev() {
            frame = descend(&table(frame)[index(at, above)]);
        }
        let entry = &table(frame)[index(at, level)];
        assert!(entry.load(Ordering::Relaxed) & Flags::PRESENT.bits() == 0, "mapped already: {at:?}");
        let size_bit = if level > 1 { Flags::LARGE } else { Flags::empty() };
        entry.store(to.0 | (flags | size_bit).bits(), Ordering::Release);
        to = MachineAddr(to.0 + span(level));
        match at.as_u64().checked_add(span(level)) {
            Some(next) => at = VirtAddr::new_truncate(next),
            None => break,
        }
    }
}

/// Maps a range of whole pages to fresh zeroed frames, anywhere in memory.
///
/// # Panics
/// As [`map`], and when memory runs out.
pub fn map_fresh(range: VirtRange, flags: Flags) {
    let mut at = range.start;
    while at < range.end {
        let frame = early::frame().expect("memory for the hypervisor's own data");
        map(at..at + PAGE_SIZE, frame.addr(), flags);
        at += PAGE_SIZE;
    }
}

/// Removes the mappings of a range of whole 4 KiB pages, and drops them from this CPU's TLB. No other can have them:
/// they are of firmware tables, which are looked at before other CPUs start, or of a domain's descriptor tables, which
/// only a CPU looks into that runs the domain, and whose translations go when it changes to another's tables.
///
/// # Panics
/// When a page of the range is not mapped, or by a large page.
pub fn unmap(range: VirtRange) {
    let _guard = TABLES.lock();
    let mut at = range.start;
    while at < range.end {
        let entry = leaf(at).filter(|&(_, level)| level == 1).expect("a 4 KiB page is mapped").0;
        entry.store(0, Ordering::Release);
        tlb::flush(at);
        at += PAGE_SIZE;
    }
}

/// The entry that maps an address, and its level.
fn leaf(at: VirtAddr) -> Option<(&'static AtomicU64, u32)> {
    let mut frame = *TOP.get()?;
    for level in (1..=4).rev() {
        let entry = &table(frame)[index(at, level)];
        let value = entry.load(Ordering::Acquire);
        if value & Flags::PRESENT.bits() == 0 {
            return None;
        }
        if level == 1 || value & Flags::LARGE.bits() != 0 {
            return Some((entry, level));
        }
        frame = MachineAddr(value & FRAME_BITS).mfn();
    }
    None
}

/// What an address of the hypervisor's part is mapped to, and how.
#[must_use]
pub fn translate(at: VirtAddr) -> Option<(MachineAddr, Flags)> {
    if !(layout::HYPERVISOR_START..layout::HYPERVISOR_END).contains(&at.as_u64()) {
        return None;
    }
    let (entry, level) = leaf(at)?;
    let value = entry.load(Ordering::Acquire);
    let offset = at.as_u64() & (span(level) - 1);
    let base = value & FRAME_BITS & !(span(level) - 1);
    Some((MachineAddr(base | offset), Flags::from_bits_truncate(value)))
}

/// The hypervisor's own top-level table: what is loaded when no guest runs.
///
/// # Panics
/// Before [`init`].
pub fn top() -> Mfn {
    *TOP.get().expect("page tables exist")
}

/// The entries of slots 256 to 271, which every guest's top-level table gets. They never change.
#[must_use]
pub fn hypervisor_slots() -> [u64; layout::SLOTS] {
    let top = table(top());
    core::array::from_fn(|slot| top[layout::FIRST_SLOT + slot].load(Ordering::Relaxed))
}

/// Loads the hypervisor's own tables.
pub fn load() {
    let frame = PhysFrame::containing_address(x86_64::PhysAddr::new(top().addr().0));
    // SAFETY: the table maps all that runs: image, stacks, direct map. It lives for ever.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) }
}

/// Builds the page tables and switches to them.
///
/// # Panics
/// When memory runs out.
pub fn init() {
    let new = early::alloc_boot_pages(1, 1, Zone::Low);
    for slot in 0..layout::SLOTS {
        descend(&table(new)[layout::FIRST_SLOT + slot]);
    }
    let image = |range: VirtRange, flags| {
        let to = layout::image_to_machine(range.start);
        map_in(new, range, to, flags);
    };
    image(layout::text(), Flags::TEXT);
    image(layout::rodata(), Flags::RODATA);
    image(layout::data(), Flags::DATA);

    // From the boot page on to the end of the constants the image is read-only in the direct map too.
    let fixed = MachineAddr(layout::IMAGE_PHYS)..layout::image_to_machine(layout::data().start);
    for ram in early::ram().iter() {
        let cut = |at: MachineAddr| at.clamp(ram.start, ram.end);
        let pieces = [
            (ram.start..cut(fixed.start), Flags::DATA),
            (cut(fixed.start)..cut(fixed.end), Flags::RODATA),
            (cut(fixed.end)..ram.end, Flags::DATA),
        ];
        for (piece, flags) in pieces {
            if !piece.is_empty() {
                let virt = layout::direct(piece.start);
                map_in(new, virt..virt + (piece.end.0 - piece.start.0), piece.start, flags);
            }
        }
    }
    TOP.call_once(|| new);
    load();
    early::direct_map_is_complete();
}
