//! Recursive page directories: a directory in a slot of a directory, so that a kernel reads its tables at addresses of
//! its own. x86_32 guests may do that for reading only; x86_64 guests may not at all.
#![no_std]
#![no_main]

#[cfg(target_arch = "x86")]
mod attacks;
#[cfg(target_arch = "x86_64")]
mod refused;
#[cfg(target_arch = "x86")]
mod window;

use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Arch, StartInfo, Word, check, check_eq, probe};

proxenos_guest::test_guest!(main);

/// Level of the top table.
const TOP: u32 = Arch::PAGE_TABLE_LEVELS as u32;

fn main(_: &StartInfo) {
    proxenos_guest::init();
    #[cfg(target_arch = "x86")]
    {
        window::run();
        attacks::run();
    }
    #[cfg(target_arch = "x86_64")]
    refused::run();
}

/// A fresh frame.
fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

/// Maps a frame at its usual address with these flags.
fn remap(frame: Frame, flags: PteFlags) -> Result<(), Errno> {
    map(frame.virt(), Pte::new(frame.mfn(), flags))
}

/// Maps something at a page that is the test's own, with its translation flushed.
fn map(at: GuestVirt, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests map pages of their own, to which no reference exists.
    unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::INVLPG) }
}

/// Writes an entry of a table.
fn write(table: Mfn, index: usize, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests change entries that map nothing anybody refers to.
    unsafe { memory::write_entry(tables::entry_address(table, index), entry) }
}

/// A frame that holds the entries that another table has in the guest's slots, and a few more; mapped read-only, to
/// become a table.
fn copy_of(table: Mfn, more: &[(usize, Pte)]) -> Frame {
    let new = frame();
    for index in 0..Arch::PAGE_TABLE_ENTRIES {
        let reserved = if TOP == 2 { index >= 1008 } else { (256..=271).contains(&index) };
        let extra = more.iter().find(|(slot, _)| *slot == index).map(|(_, entry)| *entry);
        let entry = extra.or_else(|| tables::read_entry(table, index)).filter(|entry| entry.is_present() && !reserved);
        if let Some(entry) = entry {
            let at = GuestVirt(new.virt().raw() + (index * size_of::<Word>()) as u64);
            // SAFETY: a fresh frame, mapped writable.
            check!(unsafe { probe::store(at, entry.0) });
        }
    }
    check_eq!(remap(new, PteFlags::KERNEL_RO), Ok(()));
    new
}

/// Slots of the top table that are not in use and not the hypervisor's.
fn unused_slots() -> impl Iterator<Item = usize> {
    (1..Arch::PAGE_TABLE_ENTRIES / 4)
        .filter(|&index| tables::read_entry(tables::root(), index).is_some_and(|entry| !entry.is_present()))
}
