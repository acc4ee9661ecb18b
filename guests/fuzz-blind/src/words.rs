//! The words that operations are made of: addresses, frames and entries of the guest's own, of the hypervisor's, and of
//! nobody's.

use core::sync::atomic::{AtomicUsize, Ordering};
use fastrand::Rng;
use proxenos_guest::abi::{GuestArch, GuestVirt, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Arch, probe};

/// A list that is made once.
struct Bag<const N: usize>([AtomicUsize; N], AtomicUsize);

impl<const N: usize> Bag<N> {
    const fn new() -> Self {
        Self([const { AtomicUsize::new(0) }; N], AtomicUsize::new(0))
    }

    fn put(&self, word: usize) {
        let at = self.1.fetch_add(1, Ordering::Relaxed);
        self.0[at].store(word, Ordering::Relaxed);
    }

    fn pick(&self, rng: &mut Rng) -> usize {
        self.0[rng.usize(..self.1.load(Ordering::Relaxed).max(1))].load(Ordering::Relaxed)
    }
}

/// Pages that may be written to and given away, from the first of which on nothing else lies.
const PLAYGROUND: usize = 16;
/// As many of them are page tables-to-be: mapped read-only at first.
const READ_ONLY: usize = 8;

/// Addresses of the playground's pages, its frames' numbers, machine addresses of the entries that map it, addresses
/// that lead nowhere.
static PAGES: Bag<PLAYGROUND> = Bag::new();
static FRAMES: Bag<32> = Bag::new();
static ENTRIES: Bag<PLAYGROUND> = Bag::new();
static NOWHERE: Bag<32> = Bag::new();
/// Frames and entries of the page tables in use: what touches them may be the guest's end.
static VITAL: Bag<16> = Bag::new();

/// Makes the playground and notes everything.
///
/// # Panics
/// If the domain has no memory for it.
pub fn prepare() {
    let mut first: Option<Frame> = None;
    for index in 0..PLAYGROUND {
        let frame = memory::alloc_frame().expect("padding");
        first.get_or_insert(frame);
        PAGES.put(frame.virt().raw() as usize);
        FRAMES.put(frame.mfn().raw() as usize);
        let (entry, _) = tables::entry_of(frame.virt()).expect("mapped");
        ENTRIES.put(entry.raw() as usize);
        if index < READ_ONLY {
            // SAFETY: a fresh frame: nobody else has a reference to it.
            unsafe { memory::remap(frame, PteFlags::KERNEL_RO) }.expect("a page of ours");
        }
    }
    let virt = first.expect("a page").virt();
    for (level, table) in tables::tables_of(virt) {
        VITAL.put(table.raw() as usize);
        VITAL.put(memory::pfn_of_mfn(table).map_or(0, |pfn| memory::virt_of(pfn).raw() as usize));
        VITAL.put(tables::entry_address(table, tables::index(virt, level)).raw() as usize);
    }
    for frame in [0, 1, 0x100, 0x7fff, 0x8000, 0xf_ffff, 0x10_0000] {
        FRAMES.put(frame);
    }
    let hypervisor = [Arch::HYPERVISOR_VIRT_START, Arch::HYPERVISOR_VIRT_END, Arch::MACHINE_TO_PHYS];
    for edge in hypervisor {
        for at in [edge, edge.wrapping_sub(4), edge.wrapping_add(0xff8)] {
            NOWHERE.put(at as usize);
        }
    }
    for at in [0, 4, usize::MAX, usize::MAX - 3, usize::MAX - 0xfff, 0x1000_0000, 0xfee0_0000] {
        NOWHERE.put(at);
    }
    #[cfg(target_arch = "x86_64")]
    for at in [0x7fff_ffff_fffc, 0x8000_0000_0000, 0xffff_7fff_ffff_fff8, 0xffff_8300_0000_0000, 1 << 63] {
        NOWHERE.put(at);
    }
}

/// An address in the playground, often near a page's edge.
pub fn address(rng: &mut Rng) -> usize {
    let offset = match rng.u8(..4) {
        0 => 0,
        1 => 0x1000 - rng.usize(1..=16),
        2 => rng.usize(..0x1000) & !7,
        _ => rng.usize(..0x1000),
    };
    PAGES.pick(rng) + offset
}

/// A page's address in the playground.
pub fn page(rng: &mut Rng) -> usize {
    PAGES.pick(rng)
}

/// An address that the guest has nothing at.
pub fn nowhere(rng: &mut Rng) -> usize {
    if rng.u8(..4) == 0 { rng.usize(..) } else { NOWHERE.pick(rng) }
}

/// A frame's number.
pub fn frame(rng: &mut Rng) -> usize {
    if rng.u16(..4096) == 0 { VITAL.pick(rng) } else { FRAMES.pick(rng) }
}

/// A page-table entry: a frame with flags, most of them sensible.
pub fn entry(rng: &mut Rng) -> usize {
    let flags = match rng.u8(..5) {
        0 => PteFlags::KERNEL_RO,
        1 => PteFlags::KERNEL_RW,
        2 => PteFlags::TABLE,
        3 => PteFlags::empty(),
        _ => PteFlags::from_bits_truncate(rng.u32(..0x1000)),
    };
    let entry = Pte::new(Mfn(frame(rng) as u64), flags).0 as usize;
    if rng.u8(..32) == 0 { entry ^ 1 << rng.u32(..usize::BITS) } else { entry }
}

/// The machine address of an entry: in a frame of the playground, or of one that maps it.
pub fn entry_address(rng: &mut Rng) -> usize {
    match rng.u16(..2048) {
        0 => VITAL.pick(rng),
        1..800 => ENTRIES.pick(rng),
        _ => (frame(rng) << 12).wrapping_add(rng.usize(..0x1000) & !7),
    }
}

/// An address to store to: page tables among them.
pub fn target(rng: &mut Rng) -> usize {
    match rng.u16(..2048) {
        0 => VITAL.pick(rng),
        1..500 => nowhere(rng),
        _ => address(rng),
    }
}

/// Any word.
pub fn any(rng: &mut Rng) -> usize {
    match rng.u8(..10) {
        0..3 => rng.usize(..24),
        3 => address(rng),
        4 => nowhere(rng),
        5 => frame(rng),
        6 => entry(rng),
        7 => 1 << rng.u32(..usize::BITS),
        8 => selector(rng),
        _ => rng.usize(..),
    }
}

/// A selector: of the flat segments at any ring, of the local table, or any.
pub fn selector(rng: &mut Rng) -> usize {
    match rng.u8(..3) {
        0 => 0x800 + (rng.usize(..16) << 3) + rng.usize(..4),
        1 => rng.usize(..64),
        _ => usize::from(rng.u16(..)),
    }
}

/// Fills a part of the playground.
pub fn scribble(rng: &mut Rng) {
    let at = page(rng);
    for index in 0..rng.usize(1..64) {
        let word = if rng.bool() { entry(rng) } else { any(rng) };
        // SAFETY: nothing of Rust's lies there.
        let written = unsafe { probe::store(GuestVirt((at + index * size_of::<usize>()) as u64), word as _) };
        if !written {
            return;
        }
    }
}
