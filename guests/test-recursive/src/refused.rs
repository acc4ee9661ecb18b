//! Four-level guests: the CPU walks their tables as they are, and no table is ever hung in but one level above its own.

use crate::{TOP, copy_of, frame, remap, unused_slots, write};
use proxenos_guest::abi::Errno;
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, probe};

pub fn run() {
    section("tables in the place of others");
    let slot = unused_slots().next().expect("a free slot");
    let spare = frame();
    for (level, table) in tables::tables_of(spare.virt()).filter(|(level, _)| *level > 1) {
        let free = (0..256).find(|&index| tables::read_entry(table, index) == Some(Pte::NONE));
        let index = if level == TOP { slot } else { free.expect("a free slot") };
        for (of_level, named) in tables::tables_of(spare.virt()).filter(|(other, _)| *other != level - 1) {
            for flags in [PteFlags::TABLE, PteFlags::KERNEL_RO, PteFlags::KERNEL_RW, PteFlags::PRESENT] {
                let result = write(table, index, Pte::new(named, flags));
                check_eq!(result, Err(Errno::EINVAL), "L{of_level} in L{level}, {flags:?}");
            }
        }
    }

    section("tables that name themselves before they are tables");
    for level in 2..=TOP {
        let table = frame();
        for flags in [PteFlags::TABLE, PteFlags::KERNEL_RO] {
            check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()));
            // SAFETY: a frame of the test's own, mapped writable.
            check!(unsafe { probe::store(table.virt(), Pte::new(table.mfn(), flags).0) });
            check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
            check_eq!(memory::pin(level, table.mfn()), Err(Errno::EINVAL), "L{level}, {flags:?}");
        }
        check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()), "no reference is left");
    }
    let root = tables::root();
    let copy = copy_of(root, &[(slot, Pte::new(root, PteFlags::KERNEL_RO))]);
    check_eq!(memory::pin(TOP, copy.mfn()), Err(Errno::EINVAL));
    // SAFETY: refused.
    check_eq!(unsafe { memory::set_base(copy.mfn()) }, Err(Errno::EINVAL));
}
