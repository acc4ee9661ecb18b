//! What somebody who wants to write to his own tables may try with directories in the place of tables.

use crate::window::{linear, window};
use crate::{copy_of, frame, remap, unused_slots, write};
use proxenos_guest::abi::{Errno, GuestVirt, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, probe};

pub fn run() {
    writable_entries();
    not_directories();
    shown_while_it_goes();
    cycles();
}

fn writable_entries() {
    section("writable linear entries");
    let (root, slot) = (tables::root(), unused_slots().next().expect("a free slot"));
    let other = copy_of(root, &[]);
    check_eq!(memory::pin(2, other.mfn()), Ok(()));
    for directory in [root, other.mfn()] {
        for flags in [PteFlags::KERNEL_RW, PteFlags::TABLE, PteFlags::WRITABLE | PteFlags::PRESENT] {
            check_eq!(write(root, slot, Pte::new(directory, flags)), Err(Errno::EINVAL), "outright, {flags:?}");
            check_eq!(write(root, slot, linear(directory)), Ok(()));
            let opened = linear(directory).with(PteFlags::WRITABLE);
            check_eq!(write(root, slot, opened), Err(Errno::EINVAL), "by the one bit");
            check_eq!(write(root, slot, opened.with(flags)), Err(Errno::EINVAL), "by it and others, {flags:?}");
            check_eq!(write(root, slot, opened.without(PteFlags::PRESENT)), Ok(()), "while it is not present");
            check_eq!(write(root, slot, opened), Err(Errno::EINVAL), "then made present");
            check!(!probe::is_writable(window(slot, slot, slot)));
        }
        for bad in [PteFlags::GLOBAL, PteFlags::LARGE_OR_PAT] {
            check_eq!(write(root, slot, linear(directory).with(bad)), Err(Errno::EINVAL), "{bad:?}");
        }
        for reserved in 1008..1024 {
            check_eq!(write(root, reserved, linear(directory)), Err(Errno::EINVAL), "slot {reserved}");
        }
        // In a table that is to become one.
        let later = copy_of(root, &[(slot, Pte::new(directory, PteFlags::TABLE))]);
        check_eq!(memory::pin(2, later.mfn()), Err(Errno::EINVAL));
        // SAFETY: refused.
        check_eq!(unsafe { memory::set_base(later.mfn()) }, Err(Errno::EINVAL));
        check_eq!(remap(later, PteFlags::KERNEL_RW), Ok(()), "no reference is left");
    }
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
    check_eq!(memory::unpin(other.mfn()), Ok(()));
}

fn not_directories() {
    section("what is no directory yet");
    let (root, slot) = (tables::root(), unused_slots().next().expect("a free slot"));
    // Not validated, it would be taken as an L1 table, and it maps tables writable.
    let raw = copy_of(root, &[]);
    check_eq!(write(root, slot, linear(raw.mfn())), Err(Errno::EINVAL));
    // A directory maps a table; the table's frame is no directory because of that.
    let table = frame();
    check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(write(root, slot, linear(table.mfn())), Ok(()), "an empty table, to be read");
    check_eq!(memory::pin(2, table.mfn()), Err(Errno::EINVAL), "an L1 table now");
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
    check_eq!(memory::pin(2, table.mfn()), Ok(()));
    check_eq!(memory::pin(1, table.mfn()), Err(Errno::EINVAL), "no L1 table, though it may be read as one");
    check_eq!(write(root, slot, linear(table.mfn())), Ok(()));
    check_eq!(memory::pin(1, table.mfn()), Err(Errno::EINVAL));
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
    check_eq!(memory::unpin(table.mfn()), Ok(()));
    // An L1 table holds mappings: one of a directory is a page, never a table.
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    check_eq!(write(table.mfn(), 0, Pte::new(root, PteFlags::KERNEL_RW)), Err(Errno::EINVAL));
    check_eq!(write(table.mfn(), 0, linear(root)), Ok(()));
    check_eq!(memory::unpin(table.mfn()), Ok(()));
}

fn shown_while_it_goes() {
    section("a table that goes while it is shown");
    let (root, slot) = (tables::root(), unused_slots().next().expect("a free slot"));
    let other = copy_of(root, &[]);
    check_eq!(memory::pin(2, other.mfn()), Ok(()));
    check_eq!(write(root, slot, linear(other.mfn())), Ok(()));
    check!(probe::is_readable(window(slot, memory::virt_base().raw() as usize >> 22, 0)), "cached now");
    check_eq!(memory::unpin(other.mfn()), Ok(()));
    check_eq!(memory::unpin(other.mfn()), Err(Errno::EINVAL));
    for level in 1..=4 {
        let expected = if level == 2 { Ok(()) } else { Err(Errno::EINVAL) };
        check_eq!(memory::pin(level, other.mfn()), expected, "as L{level}");
    }
    check_eq!(memory::unpin(other.mfn()), Ok(()));
    check_eq!(remap(other, PteFlags::KERNEL_RW), Err(Errno::EINVAL));
    // The entry goes and nothing is flushed: the page may be written, the window at worst still reads it.
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
    check_eq!(remap(other, PteFlags::KERNEL_RW), Ok(()));
    // SAFETY: a frame of the test's own, mapped writable.
    check!(unsafe { probe::store(other.virt(), 0x1067) });
    check!(!probe::is_writable(window(slot, 0, 0)));
    // SAFETY: as above.
    check!(unsafe { probe::store(other.virt(), 0) });
}

fn cycles() {
    section("directories that name each other");
    let root = tables::root();
    let mut rings: [Option<Frame>; 6] = [None; 6];
    for round in 0..8 {
        let length = 2 + round % 5;
        for link in &mut rings[..length] {
            let table = link.take().unwrap_or_else(frame);
            check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
            check_eq!(memory::pin(2, table.mfn()), Ok(()));
            *link = Some(table);
        }
        let ring = |index: usize| rings[index % length].map_or(Mfn(0), |table| table.mfn());
        for index in 0..length {
            check_eq!(write(ring(index), 5, linear(ring(index + 1))), Ok(()));
            check_eq!(write(ring(index), 6, linear(ring(index))), Ok(()));
            check_eq!(write(ring(index), 7, linear(root)), Ok(()));
        }
        for index in 0..length {
            check_eq!(memory::unpin(ring(index)), Ok(()));
        }
        for table in rings[..length].iter().flatten() {
            check_eq!(remap(*table, PteFlags::KERNEL_RW), Err(Errno::EINVAL), "they hold each other");
        }
        check_eq!(write(ring(round), 5, Pte::NONE), Ok(()));
        for table in rings[..length].iter().flatten() {
            check_eq!(remap(*table, PteFlags::KERNEL_RW), Ok(()), "all are memory again");
            for slot in 5..8 {
                // SAFETY: a frame of the test's own, mapped writable.
                check!(unsafe { probe::store(GuestVirt(table.virt().raw() + 4 * slot), 0) });
            }
        }
    }
}
