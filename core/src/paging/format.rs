//! The two page-table formats guests use, as types: two levels of 32-bit entries, four levels of 64-bit ones.
//!
//! The low twelve bits mean the same in both, so an entry is handled as a [`Pte`] of 64 bits whichever table it came
//! from; what differs is width, fan-out, the bits that must be zero and the slots that belong to the hypervisor.

use crate::addr::{GuestVirt, MachineAddr, Mfn, PAGE_SHIFT};
use crate::machine::MachineMemory;

/// A page-table entry, zero-extended to 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pte(pub u64);

/// Bits of a page-table entry (Intel SDM vol. 3 §4.3, §4.5).
pub mod bits {
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const RW: u64 = 1 << 1;
    /// Accessible from ring 3.
    pub const US: u64 = 1 << 2;
    /// Write-through.
    pub const PWT: u64 = 1 << 3;
    /// Cache disabled.
    pub const PCD: u64 = 1 << 4;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty.
    pub const D: u64 = 1 << 6;
    /// PAT in an L1 entry, page size (a large page) above.
    pub const PAT_OR_PS: u64 = 1 << 7;
    /// Global.
    pub const G: u64 = 1 << 8;
    /// Free for software.
    pub const AVL: u64 = 7 << 9;
    /// No execute.
    pub const NX: u64 = 1 << 63;
    /// Frame number.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
    /// Bits 59..62, which mean protection keys to a CPU that has them.
    pub const KEYS: u64 = 0xf << 59;

    /// Not through the caches, or not wholly.
    pub const UNCACHED: u64 = PCD | PWT;

    /// What may change in a present entry without a new look at the frame it names: none of these bits lets the guest
    /// reach another frame, or reach its own in a way that its references do not cover. (Caching is not among them:
    /// `frame::caching`.)
    pub const HARMLESS: u64 = US | A | D | AVL | NX;
}

/// What [`Pte::plain_mfn`] leaves of a shifted entry: all but NX. In a form that a loop over many entries does not
/// build anew for each.
#[derive(Clone, Copy)]
pub struct PlainNumbers(u64);

impl PlainNumbers {
    /// To be made before the loop.
    #[inline]
    #[must_use]
    pub fn kept() -> Self {
        Self(core::hint::black_box(!bits::NX >> PAGE_SHIFT))
    }
}

impl Pte {
    /// Whether the entry maps anything.
    #[inline]
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & bits::P != 0
    }

    /// Whether the entry allows writes.
    #[inline]
    #[must_use]
    pub const fn writable(self) -> bool {
        self.0 & bits::RW != 0
    }

    /// The frame it names.
    #[inline]
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn((self.0 & bits::FRAME) >> PAGE_SHIFT)
    }

    /// The frame it names, if no bit between that and NX is set; else a number that no frame has.
    #[inline]
    #[must_use]
    pub const fn plain_mfn(self, numbers: PlainNumbers) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT & numbers.0)
    }

    /// Whether all of `bits` are set.
    #[inline]
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Whether `other` maps the same frame with the same rights, so that no reference changes between the two.
    #[inline]
    #[must_use]
    pub const fn differs_harmlessly(self, other: Self) -> bool {
        self.present() && (self.0 ^ other.0) & !bits::HARMLESS == 0
    }
}

/// A guest's page-table format.
pub trait Format {
    /// Level of the table that the page-table base names.
    const TOP: u8;
    /// Entries of a table.
    const ENTRIES: usize;
    /// log2 of [`ENTRIES`](Self::ENTRIES).
    const INDEX_BITS: u32;
    /// Bits that a present entry must not have.
    const REFUSED: u64;
    /// Bits that a present entry above L1 must not have. Where the CPU walks these tables, how it reads the one below
    /// is not the guest's to say.
    const REFUSED_ABOVE: u64;
    /// The present bits of all entries that lie in 64 bits of a table.
    const PRESENT: u64;
    /// Whether the CPU cannot walk these tables and walks shadows instead.
    const SHADOWED: bool;
    /// Whether a top-level table may be hung in as a table of the lowest level, to be read ([`super::linear`]).
    const LINEAR: bool;

    /// Machine address of an entry.
    fn entry_addr(table: Mfn, index: usize) -> MachineAddr;
    /// Which entry of its frame lies at `at`, if `at` is an entry's address.
    fn entry_index(at: MachineAddr) -> Option<usize>;
    /// Reads the entry at an entry's address.
    fn load_at(mem: &impl MachineMemory, at: MachineAddr) -> Pte;
    /// Replaces the entry at an entry's address, whatever it is; says what it was.
    fn swap_at(mem: &impl MachineMemory, at: MachineAddr, new: Pte) -> Pte;
    /// Replaces an entry, if it is still `old`; else says what it is.
    fn cas(mem: &impl MachineMemory, table: Mfn, index: usize, old: Pte, new: Pte) -> Result<(), Pte>;
    /// Whether the slot is the guest's to fill: the others lead to the hypervisor.
    fn is_guest_slot(level: u8, index: usize) -> bool;
    /// The entry as the guest's word has it: what cannot be stored is dropped.
    fn truncate(value: u64) -> Pte;

    /// Reads an entry.
    #[inline]
    fn load(mem: &impl MachineMemory, table: Mfn, index: usize) -> Pte {
        Self::load_at(mem, Self::entry_addr(table, index))
    }

    /// The slot that translates `at` in a table of `level`.
    #[inline]
    fn index(level: u8, at: GuestVirt) -> usize {
        (at.0 >> (PAGE_SHIFT + Self::INDEX_BITS * u32::from(level - 1))) as usize & (Self::ENTRIES - 1)
    }
}

/// Two levels of 1024 32-bit entries: x86_32 guests.
pub enum TwoLevel {}

/// Four levels of 512 64-bit entries: x86_64 guests.
pub enum FourLevel {}

/// First L2 slot of a two-level table that is the hypervisor's: the one of 0xFC000000.
const TWO_LEVEL_HYPERVISOR_SLOT: usize = 0xfc00_0000 >> 22;
/// First L4 slot of the hypervisor in a four-level table (and sixteen in all).
pub const HYPERVISOR_L4_FIRST: usize = 256;
/// How many L4 slots the hypervisor has.
pub const HYPERVISOR_L4_SLOTS: usize = 16;

impl Format for TwoLevel {
    const TOP: u8 = 2;
    const ENTRIES: usize = 1024;
    const INDEX_BITS: u32 = 10;
    const REFUSED: u64 = bits::G | bits::PAT_OR_PS;
    const REFUSED_ABOVE: u64 = Self::REFUSED;
    const PRESENT: u64 = bits::P << 32 | bits::P;
    const SHADOWED: bool = true;
    const LINEAR: bool = true;

    #[inline]
    fn entry_addr(table: Mfn, index: usize) -> MachineAddr {
        MachineAddr(table.addr().0 + index as u64 * 4)
    }

    #[inline]
    fn entry_index(at: MachineAddr) -> Option<usize> {
        at.0.is_multiple_of(4).then_some(at.page_offset() / 4)
    }

    #[inline]
    fn load_at(mem: &impl MachineMemory, at: MachineAddr) -> Pte {
        Pte(mem.load32(at).into())
    }

    #[inline]
    fn swap_at(mem: &impl MachineMemory, at: MachineAddr, new: Pte) -> Pte {
        Pte(mem.swap32(at, new.0 as u32).into())
    }

    #[inline]
    fn cas(mem: &impl MachineMemory, table: Mfn, index: usize, old: Pte, new: Pte) -> Result<(), Pte> {
        mem.cas32(Self::entry_addr(table, index), old.0 as u32, new.0 as u32).map_err(|seen| Pte(seen.into()))
    }

    #[inline]
    fn is_guest_slot(level: u8, index: usize) -> bool {
        level != 2 || index < TWO_LEVEL_HYPERVISOR_SLOT
    }

    #[inline]
    fn truncate(value: u64) -> Pte {
        Pte(value & 0xffff_ffff)
    }
}

impl Format for FourLevel {
    const TOP: u8 = 4;
    const ENTRIES: usize = 512;
    const INDEX_BITS: u32 = 9;
    const REFUSED: u64 = bits::G | bits::PAT_OR_PS | bits::KEYS;
    const REFUSED_ABOVE: u64 = Self::REFUSED | bits::UNCACHED;
    const PRESENT: u64 = bits::P;
    const SHADOWED: bool = false;
    const LINEAR: bool = false;

    #[inline]
    fn entry_addr(table: Mfn, index: usize) -> MachineAddr {
        MachineAddr(table.addr().0 + index as u64 * 8)
    }

    #[inline]
    fn entry_index(at: MachineAddr) -> Option<usize> {
        at.0.is_multiple_of(8).then_some(at.page_offset() / 8)
    }

    #[inline]
    fn load_at(mem: &impl MachineMemory, at: MachineAddr) -> Pte {
        Pte(mem.load64(at))
    }

    #[inline]
    fn swap_at(mem: &impl MachineMemory, at: MachineAddr, new: Pte) -> Pte {
        Pte(mem.swap64(at, new.0))
    }

    #[inline]
    fn cas(mem: &impl MachineMemory, table: Mfn, index: usize, old: Pte, new: Pte) -> Result<(), Pte> {
        mem.cas64(Self::entry_addr(table, index), old.0, new.0).map_err(Pte)
    }

    #[inline]
    fn is_guest_slot(level: u8, index: usize) -> bool {
        level != 4 || !(HYPERVISOR_L4_FIRST..HYPERVISOR_L4_FIRST + HYPERVISOR_L4_SLOTS).contains(&index)
    }

    #[inline]
    fn truncate(value: u64) -> Pte {
        Pte(value)
    }
}
