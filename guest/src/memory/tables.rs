//! The page tables, read as the guest may: through the read-only mappings of their frames.
//!
//! An entry names its table by machine frame; the machine-to-physical table gives our own number of it, and that its
//! virtual address.

use crate::arch::{LEVEL_BITS, LEVELS, Word};
use crate::memory::{self, Frame};
use crate::pte::{Pte, PteFlags};
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_abi::{Errno, GuestVirt, GuestWord, MachineAddr, Mfn, PAGE_SHIFT};

/// Frame number of the top-level table, 0 until [`set_root`] is called: then it is the builder's.
static ROOT: AtomicUsize = AtomicUsize::new(0);

/// Notes a change of the top-level table.
#[inline]
pub(crate) fn set_root(frame: Mfn) {
    ROOT.store(frame.raw() as usize, Ordering::Relaxed);
}

/// The frame of the top-level table.
pub fn root() -> Mfn {
    match ROOT.load(Ordering::Relaxed) {
        0 => memory::mfn_of(memory::pfn_of(GuestVirt(crate::boot::start_info().pt_base.to_u64()))),
        frame => Mfn(frame as u64),
    }
}

/// Index of an address's entry in its table of a level (1 is the lowest).
pub fn index(at: GuestVirt, level: u32) -> usize {
    let shift = PAGE_SHIFT + (level - 1) * LEVEL_BITS;
    (at.raw() >> shift) as usize & ((1 << LEVEL_BITS) - 1)
}

/// Machine address of an entry of a table.
pub fn entry_address(table: Mfn, index: usize) -> MachineAddr {
    MachineAddr(table.addr().raw() + (index * size_of::<Word>()) as u64)
}

/// An entry of one of our tables; `None` if the table is not ours.
pub fn read_entry(table: Mfn, index: usize) -> Option<Pte> {
    let at = memory::virt_of(memory::pfn_of_mfn(table)?);
    // SAFETY: a frame of ours, mapped at its usual address; the hypervisor may set bits in it meanwhile.
    Some(Pte(unsafe { (at.raw() as usize as *const Word).add(index).read_volatile() }))
}

/// Machine address and contents of the entry of a level for an address, if the tables above it exist.
pub fn entry_at(at: GuestVirt, level: u32) -> Option<(MachineAddr, Pte)> {
    let mut table = root();
    let mut current = LEVELS;
    loop {
        let entry = read_entry(table, index(at, current))?;
        if current == level {
            return Some((entry_address(table, index(at, current)), entry));
        }
        if !entry.is_present() {
            return None;
        }
        table = entry.mfn();
        current -= 1;
    }
}

/// Machine address and contents of the L1 entry for an address, if it has one.
pub fn entry_of(at: GuestVirt) -> Option<(MachineAddr, Pte)> {
    entry_at(at, 1)
}

/// What maps an address, if anything does.
pub fn pte_of(at: GuestVirt) -> Option<Pte> {
    entry_of(at).map(|(_, entry)| entry).filter(|entry| entry.is_present())
}

/// Makes sure that the address has an L1 table, with fresh tables where some are missing.
pub fn ensure_l1(at: GuestVirt) -> Result<(), Errno> {
    for level in (2..=LEVELS).rev() {
        let (address, entry) = entry_at(at, level).ok_or(Errno::EINVAL)?;
        if !entry.is_present() {
            let table = new_table()?;
            // SAFETY: what was not mapped before is not mapped after: the table is empty.
            unsafe { memory::write_entry(address, Pte::new(table.mfn(), PteFlags::TABLE)) }?;
        }
    }
    Ok(())
}

/// A fresh frame, zeroed and mapped read-only, ready to become a page table.
pub fn new_table() -> Result<Frame, Errno> {
    let table = memory::alloc_frame().ok_or(Errno::ENOMEM)?;
    // SAFETY: a fresh frame: nobody else has a reference to it.
    unsafe { memory::remap(table, PteFlags::KERNEL_RO) }?;
    Ok(table)
}

/// Frames of the tables on the way to an address, from the top, as far as they exist.
pub fn tables_of(at: GuestVirt) -> impl Iterator<Item = (u32, Mfn)> {
    let mut next = Some((LEVELS, root()));
    core::iter::from_fn(move || {
        let (level, table) = next?;
        next = (level > 1)
            .then(|| read_entry(table, index(at, level)))
            .flatten()
            .filter(|entry| entry.is_present())
            .map(|entry| (level - 1, entry.mfn()));
        Some((level, table))
    })
}

/// A frame number as a word of the interface.
pub fn word_of(frame: Mfn) -> Word {
    Word::from_u64_truncating(frame.raw())
}
