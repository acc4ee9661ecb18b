//! What a kernel sees of its tables through a directory that names itself.

use crate::{copy_of, frame, map, remap, unused_slots, write};
use proxenos_guest::abi::{Errno, GuestVirt};
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{Word, check, check_eq, probe};

/// Error code of a page fault: the page was there, and it was a write.
const PROTECTION_ON_WRITE: u32 = 3;

pub fn run() {
    contents();
    changes();
    user_bit();
    other_directory();
}

/// Where entry `entry` of the table in slot `table` is read, by way of the directory in slot `linear`.
pub fn window(linear: usize, table: usize, entry: usize) -> GuestVirt {
    GuestVirt(((linear << 22) + (table << 12) + 4 * entry) as u64)
}

/// A directory as a table to read from.
pub fn linear(directory: proxenos_guest::abi::Mfn) -> Pte {
    Pte::new(directory, PteFlags::KERNEL_RO)
}

fn contents() {
    section("a directory that names itself");
    let (root, slot) = (tables::root(), unused_slots().next().expect("a free slot"));
    check_eq!(write(root, slot, linear(root)), Ok(()));
    let (mut tables_seen, mut entries) = (0, 0);
    for table in 0..1008 {
        let entry = tables::read_entry(root, table).unwrap_or(Pte::NONE);
        check_eq!(probe::load(window(slot, slot, table)), Some(entry.0), "entry {table} of the directory");
        if !entry.is_present() {
            check!(!probe::is_readable(window(slot, table, 0)), "no table in slot {table}");
            continue;
        }
        tables_seen += 1;
        for index in (0..1024).step_by(if table == slot { 64 } else { 1 }) {
            if table == slot && index >= 1008 {
                continue;
            }
            let usual = tables::read_entry(entry.mfn(), index).map(|entry| entry.0);
            let seen = probe::load(window(slot, table, index));
            // (The accessed bit of the page at which one of the two is read may come between them.)
            let bits = (PteFlags::ACCESSED | PteFlags::DIRTY).bits() as Word;
            if usual.map(|word| word & !bits) != seen.map(|word| word & !bits) {
                check_eq!(seen, usual, "entry {index} of table {table}");
            }
            entries += 1;
        }
    }
    check!(tables_seen >= 2 && entries > 1024, "{tables_seen} tables, {entries} entries");
    for table in [1008, 1009, 1010, 1023] {
        check!(!probe::is_readable(window(slot, table, 0)), "the hypervisor's slot {table}");
        check_eq!(traps::last_trap().error_code & 1, 0, "no page there");
        check_eq!(traps::last_trap().fault_address, window(slot, table, 0));
    }
    for table in [slot, memory::virt_base().raw() as usize >> 22] {
        check!(!probe::is_writable(window(slot, table, 4)), "table {table} is not to be written");
        check_eq!(traps::last_trap().vector, vector::PAGE_FAULT);
        check_eq!(traps::last_trap().error_code, PROTECTION_ON_WRITE);
    }
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
    check_eq!(memory::flush_tlb(), Ok(()));
    check!(!probe::is_readable(window(slot, slot, 0)), "gone");
}

fn changes() {
    section("changes show");
    let root = tables::root();
    let mut slots = unused_slots();
    let (slot, used) = (slots.next().expect("a free slot"), slots.next().expect("another"));
    check_eq!(write(root, slot, linear(root)), Ok(()));

    let page = frame();
    let seen = window(slot, page.virt().raw() as usize >> 22, page.virt().raw() as usize >> 12 & 1023);
    for entry in [
        Pte::new(page.mfn(), PteFlags::KERNEL_RO),
        Pte::NONE,
        Pte(0xffff_fffe),
        Pte::new(page.mfn(), PteFlags::KERNEL_RW | PteFlags::AVAILABLE),
    ] {
        check_eq!(map(page.virt(), entry), Ok(()));
        check_eq!(probe::load(seen), Some(entry.0), "update_va_mapping");
    }
    // Accessed and dirty bits, as the CPU sets them.
    check_eq!(remap(page, PteFlags::PRESENT | PteFlags::WRITABLE), Ok(()));
    let flags = || Pte(probe::load(seen).unwrap_or_default()).flags() & (PteFlags::ACCESSED | PteFlags::DIRTY);
    check_eq!(flags(), PteFlags::empty());
    check!(probe::is_readable(page.virt()));
    check_eq!(flags(), PteFlags::ACCESSED);
    check!(probe::is_writable(page.virt()));
    check_eq!(flags(), PteFlags::ACCESSED | PteFlags::DIRTY);

    // A table is hung up, exchanged, taken down: the window's translation is flushed like any other.
    let (one, two) = (copy_of(root, &[]), frame());
    check_eq!(remap(one, PteFlags::KERNEL_RW), Ok(()));
    for index in 0..1024 {
        let marked = if index == 7 { 0xe00 } else { 0 };
        // SAFETY: a frame of the test's own, mapped writable.
        check!(unsafe { probe::store(GuestVirt(one.virt().raw() + 4 * index), marked) });
    }
    for table in [one, two] {
        check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    }
    for (entry, expected) in [
        (Pte::new(one.mfn(), PteFlags::TABLE), Some(0xe00)),
        (Pte::new(two.mfn(), PteFlags::TABLE), Some(0)),
        (Pte::new(one.mfn(), PteFlags::KERNEL_RO), Some(0xe00)),
        (Pte::NONE, None),
    ] {
        check_eq!(write(root, used, entry), Ok(()));
        check_eq!(memory::flush_page(window(slot, used, 0)), Ok(()));
        check_eq!(probe::load(window(slot, used, 7)), expected, "after INVLPG");
    }
    check_eq!(remap(one, PteFlags::KERNEL_RW), Ok(()), "a table no more");
    // The window is no way to change what it shows.
    for at in [seen, window(slot, slot, 0), window(slot, used, 0), window(slot, 1010, 0)] {
        for entry in [Pte::NONE, Pte(0x800), Pte::new(page.mfn(), PteFlags::KERNEL_RO), linear(root)] {
            check_eq!(map(GuestVirt(at.raw() & !0xfff), entry), Err(Errno::EINVAL), "{at:?}");
        }
    }
    check_eq!(remap(page, PteFlags::KERNEL_RW), Ok(()));
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
}

fn user_bit() {
    section("harmless flags");
    let (root, slot) = (tables::root(), unused_slots().next().expect("a free slot"));
    for flags in [PteFlags::USER, PteFlags::UNCACHED | PteFlags::WRITE_THROUGH, PteFlags::AVAILABLE, PteFlags::DIRTY] {
        let entry = linear(root).with(flags);
        check_eq!(write(root, slot, entry), Ok(()), "{flags:?}");
        check_eq!(memory::flush_tlb(), Ok(()));
        check_eq!(probe::load(window(slot, slot, slot)), Some(entry.0), "{flags:?}");
    }
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
}

fn other_directory() {
    section("another directory");
    let root = tables::root();
    let mut slots = unused_slots();
    let (slot, own) = (slots.next().expect("a free slot"), slots.next().expect("another"));
    let other = frame();
    // It names itself before it is a table.
    check_eq!(remap(other, PteFlags::KERNEL_RW), Ok(()));
    let other = copy_of(root, &[(own, linear(other.mfn()))]);
    check_eq!(memory::pin(2, other.mfn()), Err(Errno::EINVAL), "it names what is mapped writable");
    check_eq!(remap(other, PteFlags::KERNEL_RW), Ok(()));
    // SAFETY: a frame of the test's own, mapped writable.
    check!(unsafe { probe::store(GuestVirt(other.virt().raw() + 4 * own as u64), linear(other.mfn()).0) });
    check_eq!(remap(other, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(2, other.mfn()), Ok(()));
    check_eq!(write(root, slot, linear(other.mfn())), Ok(()));
    check_eq!(probe::load(window(slot, own, own)), Some(linear(other.mfn()).0));
    check_eq!(memory::unpin(other.mfn()), Ok(()), "unpinned while it is shown");
    check_eq!(remap(other, PteFlags::KERNEL_RW), Err(Errno::EINVAL), "a directory still");
    check_eq!(write(other.mfn(), slot, linear(root)), Ok(()), "and to be changed as one");
    check_eq!(probe::load(window(slot, slot, slot)), Some(linear(other.mfn()).0), "it shows the base in turn");

    // Each in the other's place: the same tables from there.
    // SAFETY: it maps what the old one maps.
    check_eq!(unsafe { memory::set_base(other.mfn()) }, Ok(()));
    check_eq!(probe::load(window(slot, slot, slot)), Some(linear(root).0), "by way of the old base");
    check_eq!(probe::load(window(own, own, slot)), Some(linear(root).0), "by way of its own");
    let here = &raw const TABLE_READ as usize;
    let expected = tables::pte_of(GuestVirt(here as u64)).map(|entry| entry.0);
    check_eq!(probe::load(window(own, here >> 22, here >> 12 & 1023)), expected);
    // SAFETY: back to where we came from.
    check_eq!(unsafe { memory::set_base(root) }, Ok(()));
    check_eq!(write(root, slot, Pte::NONE), Ok(()));
    check_eq!(remap(other, PteFlags::KERNEL_RW), Ok(()), "nothing holds it any more");
}

/// Something that is mapped.
static TABLE_READ: u32 = 0;
