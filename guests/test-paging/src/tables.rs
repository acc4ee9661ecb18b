//! Page tables of one's own: pinning, types, and a second address space.

use crate::mappings::foreign_frame;
use crate::{check_read_only, frame, map, remap, store};
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, MachineAddr, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check, check_eq, probe};

/// Level of the top table.
const TOP: u32 = Arch::PAGE_TABLE_LEVELS as u32;

pub fn run() {
    live_tables();
    pinning();
    types();
    reserved_slots();
    upper_rights();
    second_address_space();
}

fn write(table: Mfn, index: usize, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests change entries that map nothing anybody refers to.
    unsafe { memory::write_entry(tables::entry_address(table, index), entry) }
}

fn live_tables() {
    section("tables in use");
    let spare = frame();
    for (level, table) in tables::tables_of(spare.virt()) {
        let mapping = map(spare.virt(), Pte::new(table, PteFlags::KERNEL_RW));
        check_eq!(mapping, Err(Errno::EINVAL), "the L{level} table mapped writable");
        check_eq!(map(spare.virt(), Pte::new(table, PteFlags::KERNEL_RO)), Ok(()), "mapped read-only");
        check_read_only(spare.virt(), "a second mapping of a table");
        check_eq!(remap(spare, PteFlags::KERNEL_RW), Ok(()));
        // Making the one mapping that there is writable, by the entry alone.
        let at = memory::pfn_of_mfn(table).map(memory::virt_of).unwrap_or_default();
        let opened = memory::pte_of(at).unwrap_or(Pte::NONE).with(PteFlags::WRITABLE);
        check_eq!(map(at, opened), Err(Errno::EINVAL), "the usual mapping of the L{level} table made writable");
        check_read_only(at, "the usual mapping");
    }
}

fn pinning() {
    section("pinning");
    let (table, page) = (frame(), frame());
    check!(store(table.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RW).0));
    check_eq!(memory::pin(1, table.mfn()), Err(Errno::EINVAL), "while it is mapped writable");
    check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    check_eq!(memory::pin(1, table.mfn()), Err(Errno::EINVAL), "twice");
    check_eq!(remap(table, PteFlags::KERNEL_RW), Err(Errno::EINVAL), "writable while it is pinned");
    check_eq!(memory::unpin(table.mfn()), Ok(()));
    check_eq!(memory::unpin(table.mfn()), Err(Errno::EINVAL), "unpinned twice");
    check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()), "writable again");
    check!(store(table.virt(), 0));
    check_eq!(memory::pin(1, foreign_frame()), Err(Errno::EINVAL), "a frame that is not ours");
    check_eq!(memory::pin(1, Mfn(0xf_ffff)), Err(Errno::EINVAL), "a frame that is not there");
    check_eq!(memory::unpin(page.mfn()), Err(Errno::EINVAL), "a frame that is no table");

    // A table is validated whole: one bad entry and it is none, and holds no references.
    for (bad, what) in [
        (Pte::new(page.mfn(), PteFlags::KERNEL_RW | PteFlags::GLOBAL), "a global entry"),
        (Pte::new(page.mfn(), PteFlags::KERNEL_RW | PteFlags::LARGE_OR_PAT), "a PAT entry"),
        (Pte::new(foreign_frame(), PteFlags::KERNEL_RO), "a frame that is not ours"),
        (Pte::new(tables::root(), PteFlags::KERNEL_RW), "a writable mapping of the top table"),
        (Pte::new(table.mfn(), PteFlags::KERNEL_RW), "a writable mapping of itself"),
    ] {
        check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()), "{what}: mapped writable");
        check!(store(table.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RW).0), "{what}");
        check!(store(GuestVirt(table.virt().raw() + 512), bad.0), "{what}");
        check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()), "{what}: mapped read-only");
        check_eq!(memory::pin(1, table.mfn()), Err(Errno::EINVAL), "{what}");
    }
    check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()), "no reference is left behind");
    check_eq!(remap(page, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(1, page.mfn()), Ok(()), "nor of the page it named: it may become a table");
    check_eq!(memory::unpin(page.mfn()), Ok(()));
}

fn types() {
    section("types");
    let (table, page) = (frame(), frame());
    check!(store(table.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RW).0));
    check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    for level in 2..=4 {
        check_eq!(memory::pin(level, table.mfn()), Err(Errno::EINVAL), "an L1 table as L{level}");
    }
    // SAFETY: refused.
    check_eq!(unsafe { memory::set_base(table.mfn()) }, Err(Errno::EINVAL), "an L1 table as base");
    if TOP == 4 {
        check_eq!(write(tables::root(), 300, Pte::new(table.mfn(), PteFlags::TABLE)), Err(Errno::EINVAL), "as L3");
    }
    check_eq!(memory::unpin(table.mfn()), Ok(()));
    // The page is mapped writable, so it cannot become a table by being named as one.
    let empty = unused_slot();
    check_eq!(write(tables::root(), empty, Pte::new(page.mfn(), PteFlags::TABLE)), Err(Errno::EINVAL), "a data page");
    for level in 1..=TOP {
        check_eq!(memory::pin(level, page.mfn()), Err(Errno::EINVAL), "a data page as L{level}");
    }
    // SAFETY: refused.
    check_eq!(unsafe { memory::set_base(page.mfn()) }, Err(Errno::EINVAL), "a data page as base");
    if TOP == 2 {
        for level in 3..=4 {
            check_eq!(memory::pin(level, table.mfn()), Err(Errno::EINVAL), "L{level} does not exist");
        }
    }
}

/// A slot of the top table that maps nothing and is the guest's.
fn unused_slot() -> usize {
    (1..Arch::PAGE_TABLE_ENTRIES / 4)
        .find(|&index| tables::read_entry(tables::root(), index).is_some_and(|entry| !entry.is_present()))
        .expect("some slot is free")
}

/// Bit 7 of an L2 entry and the hypervisor's slots.
fn reserved_slots() {
    section("slots and sizes that are refused");
    let reserved = if TOP == 2 { [1008, 1009, 1023] } else { [256, 258, 271] };
    let table = frame();
    check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    for index in reserved {
        let entry = Pte::new(table.mfn(), PteFlags::TABLE);
        check_eq!(write(tables::root(), index, entry), Err(Errno::EINVAL), "slot {index}");
        check_eq!(write(tables::root(), index, Pte::NONE), Err(Errno::EINVAL), "slot {index}, to clear it");
    }
    let (at, entry) = tables::entry_at(memory::virt_base(), 2).expect("the image is mapped");
    let (l2, index) = (at.mfn(), at.page_offset() / size_of::<Word>());
    let large = entry.with(PteFlags::LARGE_OR_PAT);
    check_eq!(write(l2, index, large), Err(Errno::EINVAL), "a large page");
    check_eq!(write(l2, index + 64, large), Err(Errno::EINVAL), "a large page elsewhere");
    check_eq!(write(l2, index, entry.with(PteFlags::GLOBAL)), Err(Errno::EINVAL), "a global L2 entry");
    check_eq!(write(MachineAddr(at.raw()).mfn(), index, entry), Ok(()), "the entry as it was");
}

/// Rights are those of all levels together.
fn upper_rights() {
    section("rights of the upper levels");
    let page = frame();
    let at = GuestVirt((memory::region_end().raw() | 0x0fff_ffff) + 1);
    check_eq!(tables::ensure_l1(at), Ok(()));
    check_eq!(map(at, Pte::new(page.mfn(), PteFlags::KERNEL_RW)), Ok(()));
    check!(store(at, 0x55));
    let (address, entry) = tables::entry_at(at, 2).expect("it was made just now");
    // SAFETY: maps the test's own page only.
    let set = |entry| unsafe { memory::write_entry(address, entry) };
    check_eq!(set(entry.without(PteFlags::WRITABLE)), Ok(()));
    check_eq!(memory::flush_tlb(), Ok(()));
    check_read_only(at, "below a read-only L2 entry");
    check_eq!(set(entry), Ok(()));
    check_eq!(memory::flush_tlb(), Ok(()));
    check!(store(at, 0x66), "writable again");
    check_eq!(set(Pte::NONE), Ok(()));
    check_eq!(memory::flush_tlb(), Ok(()));
    check!(!probe::is_readable(at), "below no entry at all");
    check_eq!(map(at, Pte::NONE), Err(Errno::EINVAL), "and there is no L1 table to change");
    check_eq!(set(entry), Ok(()));
    check_eq!(memory::flush_tlb(), Ok(()));
    check_eq!(probe::load(at), Some(0x66), "the table is as it was");
    check_eq!(map(at, Pte::NONE), Ok(()));
}

/// A copy of the top table: the same address space by another base.
fn second_address_space() {
    section("a second address space");
    let old = tables::root();
    let new: Frame = frame();
    let mut copied = 0;
    for index in 0..Arch::PAGE_TABLE_ENTRIES {
        let reserved = if TOP == 2 { index >= 1008 } else { (256..=271).contains(&index) };
        let entry = tables::read_entry(old, index).filter(|entry| entry.is_present() && !reserved);
        if let Some(entry) = entry {
            check!(store(GuestVirt(new.virt().raw() + (index * size_of::<Word>()) as u64), entry.0));
            copied += 1;
        }
    }
    check!(copied > 0, "the image is mapped by some slot");
    // SAFETY: refused.
    check_eq!(unsafe { memory::set_base(new.mfn()) }, Err(Errno::EINVAL), "a base that is mapped writable");
    check_eq!(remap(new, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(TOP, new.mfn()), Ok(()));

    let (page, other) = (frame(), frame());
    check!(store(page.virt(), 0xaaaa) && store(other.virt(), 0xbbbb));
    // SAFETY: the new space maps what the old one maps.
    check_eq!(unsafe { memory::set_base(new.mfn()) }, Ok(()));
    check_eq!(probe::load(page.virt()), Some(0xaaaa), "the same pages");
    // Both spaces share their L1 tables: a change shows in both.
    check_eq!(map(page.virt(), Pte::new(other.mfn(), PteFlags::KERNEL_RW)), Ok(()));
    check_eq!(probe::load(page.virt()), Some(0xbbbb));

    // Slots of the top table are each space's own.
    let slot = unused_slot();
    let at = GuestVirt((slot as u64) << if TOP == 2 { 22 } else { 39 });
    check_eq!(tables::ensure_l1(at), Ok(()));
    check_eq!(map(at, Pte::new(other.mfn(), PteFlags::KERNEL_RW)), Ok(()));
    check_eq!(probe::load(at), Some(0xbbbb));

    // SAFETY: back to where we came from.
    check_eq!(unsafe { memory::set_base(old) }, Ok(()));
    check_eq!(probe::load(page.virt()), Some(0xbbbb), "the change shows in the old space");
    check!(!probe::is_readable(at), "the new space's own slot does not");
    check_eq!(remap(page, PteFlags::KERNEL_RW), Ok(()));

    for _ in 0..50 {
        // SAFETY: both map what anybody cares about.
        let there_and_back = unsafe { memory::set_base(new.mfn()).and_then(|()| memory::set_base(old)) };
        if !check_eq!(there_and_back, Ok(())) {
            break;
        }
    }
    check_eq!(memory::unpin(new.mfn()), Ok(()));
    check_eq!(remap(new, PteFlags::KERNEL_RW), Ok(()), "a table no more");
    // SAFETY: refused.
    check_eq!(unsafe { memory::set_base(new.mfn()) }, Err(Errno::EINVAL), "nor a base");
}
