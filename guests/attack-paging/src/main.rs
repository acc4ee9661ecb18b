//! The known classes of attack on paravirtualised paging, one section each (SPECIFICATION.md lists them, with what
//! tries those that take a second domain). After each the hypervisor looks over the whole machine: what was refused
//! must have changed nothing, and what was allowed must be counted.
#![no_std]
#![no_main]

mod life;
mod lists;
mod tables;
mod writable;

use proxenos_guest::abi::mmu::{MmuExtCommand, MmuUpdate, UpdateVaFlags};
use proxenos_guest::abi::{DomId, Errno, GuestArch, GuestVirt, Mfn};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, StartInfo, Word, check_eq, hypercall, probe};

proxenos_guest::test_guest!(main);

/// Level of the top table.
pub const TOP: u32 = Arch::PAGE_TABLE_LEVELS as u32;
/// What every attack comes to.
pub const REFUSED: Result<(), Errno> = Err(Errno::EINVAL);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    for (title, attack) in [
        ("a writable mapping of a live table", writable::live_tables as fn()),
        ("bits that look harmless", writable::harmless_bits),
        ("a stale mapping", writable::stale_mappings),
        ("one frame, two types", tables::types),
        ("tables that contain themselves", tables::themselves),
        ("large pages", tables::large_pages),
        ("frames freed while they are in use", life::freed_in_use),
        ("frames handed on while they are in use", life::handed_on),
        ("foreign domains", life::foreign_domains),
        ("pins", life::pins),
        ("more than 2^16 references", life::references),
        ("requests across an edge", lists::edges),
        ("pointers into the hypervisor", lists::hypervisor_pointers),
        ("a list that changes while it is read", lists::changing),
    ] {
        section(title);
        attack();
        check_eq!(hypercall::audit(), Ok(()), "the audit after it");
    }
}

/// A fresh frame.
pub fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

/// A fresh frame of zeroes that is mapped read-only.
pub fn blank() -> Frame {
    let frame = frame();
    check_eq!(remap(frame, PteFlags::KERNEL_RO), Ok(()));
    frame
}

/// Maps something at a page that is the test's own, with its translation flushed.
pub fn map(at: GuestVirt, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests map pages of their own, to which no reference exists.
    unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::INVLPG) }
}

/// Maps a frame at its usual address with these flags.
pub fn remap(frame: Frame, flags: PteFlags) -> Result<(), Errno> {
    map(frame.virt(), Pte::new(frame.mfn(), flags))
}

/// Writes an entry of a table.
pub fn write(table: Mfn, index: usize, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests change entries that map nothing anybody refers to.
    unsafe { memory::write_entry(memory::tables::entry_address(table, index), entry) }
}

/// Writes a word of a page of the test's own, or tells that it cannot.
pub fn store(at: GuestVirt, index: usize, value: Word) -> bool {
    // SAFETY: the tests write to pages of their own.
    unsafe { probe::store(GuestVirt(at.raw() + (index * size_of::<Word>()) as u64), value) }
}

/// One request, after a foreign domain was set in the same call.
pub fn for_domain(id: DomId, request: MmuUpdate<Arch>) -> Result<(), Errno> {
    let list = [memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(id.0) << 8), request];
    // SAFETY: pages of the tests' own.
    unsafe { hypercall::mmu_update(&list) }.map(drop).map_err(|(errno, _)| errno)
}

/// Slots of the top table that map nothing and are the guest's.
pub fn unused_slots() -> impl Iterator<Item = usize> {
    let root = memory::tables::root();
    (1..Arch::PAGE_TABLE_ENTRIES / 4)
        .filter(move |&index| memory::tables::read_entry(root, index).is_some_and(|entry| !entry.is_present()))
}

/// Makes a frame one of zeroes again: who was an L4 table has the hypervisor's slots in it.
#[track_caller]
pub fn clear(frame: Frame) {
    check_eq!(remap(frame, PteFlags::KERNEL_RW), Ok(()), "it is plain memory");
    for index in 0..Arch::PAGE_TABLE_ENTRIES {
        // SAFETY: a frame of the test's own, mapped writable.
        unsafe { frame.words().add(index).write_volatile(0) };
    }
    check_eq!(remap(frame, PteFlags::KERNEL_RO), Ok(()));
}

/// The frame is memory like any other: nothing refers to it as a table, and no attempt has left anything behind.
#[track_caller]
pub fn is_plain(frame: Frame) {
    clear(frame);
    check_eq!(memory::pin(1, frame.mfn()), Ok(()), "and nobody writes to it");
    check_eq!(memory::unpin(frame.mfn()), Ok(()));
}
