//! A range of addresses with a page table of its own, whose entries are read and written to as memory is: with writable
//! page tables (`vm_assist`) a kernel may.

use super::{pfn_of_mfn, region_end, tables, virt_of};
use crate::arch::{LEVEL_BITS, Word};
use crate::probe;
use crate::pte::Pte;
use proxenos_abi::{GuestVirt, MachineAddr};

/// The range, empty at first, and its table as it is mapped.
#[derive(Clone, Copy)]
pub struct Range {
    /// Where it begins.
    pub at: GuestVirt,
    /// Where its table lies.
    pub table: GuestVirt,
    /// Machine address of the first entry.
    pub machine: MachineAddr,
}

impl Range {
    /// The `number`th such range.
    ///
    /// # Panics
    /// Where there is no memory for its table.
    pub fn new(number: u64) -> Self {
        let first = (region_end().raw() | 0x0fff_ffff) + 1;
        let at = GuestVirt(first + (number << (12 + LEVEL_BITS)));
        tables::ensure_l1(at).expect("memory for a table");
        let (machine, _) = tables::entry_of(at).expect("it was made just now");
        let table = virt_of(pfn_of_mfn(machine.mfn()).expect("a table of ours"));
        Self { at, table, machine }
    }

    /// Its `index`th page.
    pub fn page(&self, index: usize) -> GuestVirt {
        GuestVirt(self.at.raw() + 4096 * index as u64)
    }

    /// Where the page's entry lies.
    pub fn slot(&self, index: usize) -> GuestVirt {
        GuestVirt(self.table.raw() + (index * size_of::<Word>()) as u64)
    }

    /// Stores an entry by a plain `mov`; whether that could be done.
    pub fn write(&self, index: usize, entry: Pte) -> bool {
        // SAFETY: an entry of a range that is for nothing else.
        unsafe { probe::store(self.slot(index), entry.0) }
    }

    /// Reads an entry.
    pub fn read(&self, index: usize) -> Option<Pte> {
        probe::load(self.slot(index)).map(Pte)
    }
}
