//! What a frame is: one thing at a time, never part of itself, and never larger than a page.

use crate::{REFUSED, TOP, blank, clear, frame, is_plain, map, remap, store, unused_slots, write};
use proxenos_guest::abi::{Errno, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Word, check, check_eq, hypercall};

/// Makes the frame the GDT.
fn set_gdt(frame: Frame) -> Result<(), Errno> {
    // SAFETY: the selectors in use are the reserved ones, which the hypervisor fills in.
    unsafe { hypercall::set_gdt(&[hypercall::frame_word(frame.mfn())], 512) }
}

fn set_ldt(frame: Frame, entries: u32) -> Result<(), Errno> {
    // SAFETY: no selector of the LDT is in use.
    unsafe { memory::set_ldt(frame.virt(), entries) }
}

/// A frame of zeroes is good as a table of any level and as descriptors. It is one of these at a time, whichever came
/// first.
pub fn types() {
    let subject = blank();
    let others = |own: u32| {
        for level in (1..=4).filter(|&level| level != own) {
            check_eq!(memory::pin(level, subject.mfn()), REFUSED, "as L{level}, while it is {own}");
        }
        check_eq!(remap(subject, PteFlags::KERNEL_RW), REFUSED, "writable, while it is {own}");
        if own != TOP {
            // SAFETY: refused.
            check_eq!(unsafe { memory::set_base(subject.mfn()) }, REFUSED, "as base, while it is {own}");
        }
        if own != TOP - 1 {
            let slot = unused_slots().next().expect("a free slot");
            let entry = Pte::new(subject.mfn(), PteFlags::TABLE);
            check_eq!(write(tables::root(), slot, entry), REFUSED, "hung in, while it is {own}");
        }
    };
    for level in 1..=TOP {
        check_eq!(memory::pin(level, subject.mfn()), Ok(()));
        others(level);
        check_eq!(set_gdt(subject), REFUSED, "as GDT, while it is L{level}");
        check_eq!(set_ldt(subject, 512), Ok(()), "an LDT that is found to be none when it is used");
        check_eq!(set_ldt(subject, 0), Ok(()));
        check_eq!(memory::unpin(subject.mfn()), Ok(()));
        clear(subject);
    }
    const DESCRIPTORS: u32 = 0;
    check_eq!(set_gdt(subject), Ok(()));
    others(DESCRIPTORS);
    // Nor is it changed as anything else: descriptors have a call of their own.
    check_eq!(write(subject.mfn(), 5, Pte(0)), REFUSED, "as if it were an entry");
    check_eq!(set_gdt(blank()), Ok(()));
    check_eq!(set_ldt(subject, 512), Ok(()));
    others(DESCRIPTORS);
    check_eq!(write(subject.mfn(), 5, Pte(0)), REFUSED, "as if it were an entry");
    check_eq!(set_ldt(subject, 0), Ok(()));
    // A table is not written to as descriptors.
    check_eq!(memory::pin(1, subject.mfn()), Ok(()));
    // SAFETY: refused.
    check_eq!(unsafe { hypercall::update_descriptor(subject.mfn().addr(), 0) }, REFUSED);
    check_eq!(memory::unpin(subject.mfn()), Ok(()));
    // What is written to is neither.
    check_eq!(remap(subject, PteFlags::KERNEL_RW), Ok(()));
    for level in 1..=TOP {
        check_eq!(memory::pin(level, subject.mfn()), REFUSED, "as L{level}, mapped writable");
    }
    check_eq!(set_gdt(subject), REFUSED, "mapped writable");
    is_plain(subject);
}

fn prepared(entries: &[(usize, Pte)]) -> Frame {
    let table = frame();
    for &(index, entry) in entries {
        check!(store(table.virt(), index, entry.0));
    }
    check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    table
}

/// Undoes [`prepared`].
fn discard(table: Frame, entries: &[usize]) {
    check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()), "no reference is left");
    for &index in entries {
        check!(store(table.virt(), index, 0));
    }
}

pub fn themselves() {
    let root = tables::root();
    let slot = unused_slots().next().expect("a free slot");
    let named = |table: Mfn, flags| Pte::new(table, flags);
    // The live tree: each table in each table's free slot, as something to write through.
    let spare = frame();
    for (level, table) in tables::tables_of(spare.virt()) {
        // One of the level below may hang in two slots.
        let expected = if level == TOP - 1 { Ok(()) } else { REFUSED };
        check_eq!(write(root, slot, named(table, PteFlags::TABLE)), expected, "L{level} in the top table");
        check_eq!(write(root, slot, Pte::NONE), Ok(()));
        check_eq!(map(spare.virt(), named(table, PteFlags::KERNEL_RW)), REFUSED);
    }
    // Before they are tables: each level that names itself, as the table below or as a page.
    for level in 1..=TOP {
        let table = frame();
        for flags in [PteFlags::TABLE, PteFlags::KERNEL_RW] {
            check!(store(table.virt(), 1, named(table.mfn(), flags).0));
            check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
            check_eq!(memory::pin(level, table.mfn()), REFUSED, "an L{level} that names itself, {flags:?}");
            check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()), "no reference is left");
        }
        check!(store(table.virt(), 1, 0));
        // Once it is one.
        check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
        check_eq!(memory::pin(level, table.mfn()), Ok(()));
        for flags in [PteFlags::TABLE, PteFlags::KERNEL_RW] {
            check_eq!(write(table.mfn(), 1, named(table.mfn(), flags)), REFUSED, "L{level}, {flags:?}");
        }
        check_eq!(memory::unpin(table.mfn()), Ok(()));
        is_plain(table);
    }
    // Two that name each other: the first cannot be before the second is.
    let first = frame();
    let second = prepared(&[(1, named(first.mfn(), PteFlags::TABLE))]);
    check!(store(first.virt(), 1, named(second.mfn(), PteFlags::TABLE).0));
    check_eq!(remap(first, PteFlags::KERNEL_RO), Ok(()));
    for level in 2..=TOP {
        check_eq!(memory::pin(level, first.mfn()), REFUSED, "two L{level} that name each other");
        check_eq!(memory::pin(level, second.mfn()), REFUSED);
    }
    for table in [first, second] {
        discard(table, &[1]);
    }
}

pub fn large_pages() {
    let spare = frame();
    let large = PteFlags::TABLE | PteFlags::LARGE_OR_PAT;
    for level in 2..=TOP {
        let (address, entry) = tables::entry_at(spare.virt(), level).expect("the page is mapped");
        let (table, index) = (address.mfn(), address.page_offset() / size_of::<Word>());
        for target in [entry.mfn(), Mfn(0), Mfn(0x400), spare.mfn()] {
            let bad = Pte::new(target, large);
            for bad in [bad, bad.without(PteFlags::WRITABLE), bad.with(PteFlags::GLOBAL)] {
                check_eq!(write(table, index, bad), REFUSED, "L{level} in use, {:#x}", bad.0);
                // In tables that are to be one.
                let raw = prepared(&[(3, bad)]);
                check_eq!(memory::pin(level, raw.mfn()), REFUSED, "L{level}, {:#x}", bad.0);
                discard(raw, &[3]);
                // And are one.
                let empty = blank();
                check_eq!(memory::pin(level, empty.mfn()), Ok(()));
                check_eq!(write(empty.mfn(), 3, bad), REFUSED, "L{level} pinned, {:#x}", bad.0);
                check_eq!(write(empty.mfn(), 3, bad.without(PteFlags::PRESENT)), Ok(()), "not present");
                check_eq!(write(empty.mfn(), 3, bad), REFUSED, "then present");
                check_eq!(memory::unpin(empty.mfn()), Ok(()));
                discard(empty, &[3]);
            }
        }
        check_eq!(tables::entry_at(spare.virt(), level).map(|(_, entry)| entry.0), Some(entry.0), "as it was");
    }
}
