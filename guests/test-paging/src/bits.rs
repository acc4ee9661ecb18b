//! The bits of an entry: those that are refused, those that are the guest's, and those that the processor sets.

use crate::{check_read_only, frame, map, remap, store};
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt};
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, check, check_eq, probe};

/// What a mapping needs, without the bits the processor sets.
fn fresh() -> PteFlags {
    PteFlags::KERNEL_RW - PteFlags::ACCESSED - PteFlags::DIRTY
}

pub fn run() {
    refused();
    ours();
    uncached();
    accessed_and_dirty();
    cleared_again();
    through_two_mappings();
}

fn refused() {
    section("bits that are refused");
    let spare = frame();
    for bit in [PteFlags::GLOBAL, PteFlags::LARGE_OR_PAT] {
        for base in [PteFlags::KERNEL_RW, PteFlags::KERNEL_RO] {
            check_eq!(remap(spare, base | bit), Err(Errno::EINVAL), "{bit:?} with {base:?}");
        }
        check!(memory::pte_of(spare.virt()).is_some_and(|entry| !entry.flags().intersects(bit)));
    }
    check!(store(spare.virt(), 1), "the page is still mapped as it was");
}

fn ours() {
    section("bits that are ours");
    let spare = frame();
    check!(store(spare.virt(), 0x77));
    for bits in [
        PteFlags::WRITE_THROUGH,
        PteFlags::UNCACHED,
        PteFlags::WRITE_THROUGH | PteFlags::UNCACHED,
        PteFlags::AVAILABLE,
        PteFlags::USER,
    ] {
        check_eq!(remap(spare, PteFlags::KERNEL_RW | bits), Ok(()), "{bits:?}");
        check!(memory::pte_of(spare.virt()).is_some_and(|entry| entry.flags().contains(bits)), "{bits:?} is kept");
        check_eq!(probe::load(spare.virt()), Some(0x77));
        check!(store(spare.virt(), 0x77));
    }
}

/// What is written past the caches is what is checked. (An emulator has no caches: there the rules show, not what they
/// are for.)
fn uncached() {
    section("uncached memory");
    let (table, page) = (frame(), frame());
    for bits in [PteFlags::UNCACHED, PteFlags::WRITE_THROUGH, PteFlags::UNCACHED | PteFlags::WRITE_THROUGH] {
        check_eq!(remap(table, PteFlags::KERNEL_RW | bits), Ok(()), "{bits:?}");
        let bad = Pte::new(page.mfn(), PteFlags::KERNEL_RW | PteFlags::GLOBAL);
        check!(store(table.virt(), bad.0));
        check_eq!(remap(table, PteFlags::KERNEL_RO | bits), Ok(()), "{bits:?}, read-only");
        check_eq!(memory::pin(1, table.mfn()), Err(Errno::EINVAL), "a global entry, written with {bits:?}");
        check_eq!(remap(table, PteFlags::KERNEL_RW | bits), Ok(()), "{bits:?} again");
        check!(store(table.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RW | bits).0));
        check_eq!(remap(table, PteFlags::KERNEL_RO | bits), Ok(()));
        check_eq!(
            memory::pin(1, table.mfn()),
            Ok(()),
            "a table that is read with {bits:?}, and has them in its entries"
        );
        check_eq!(memory::unpin(table.mfn()), Ok(()));
        // Above L1 they are the guest's only where the processor does not walk its tables.
        let expected = if Arch::PAGE_TABLE_LEVELS == 2 { Ok(()) } else { Err(Errno::EINVAL) };
        let (at, entry) = tables::entry_at(memory::virt_base(), 2).expect("the image is mapped");
        // SAFETY: the entry leads to the same table.
        check_eq!(unsafe { memory::write_entry(at, entry.with(bits)) }, expected, "{bits:?} in an L2 entry");
        // SAFETY: as it was.
        check_eq!(unsafe { memory::write_entry(at, entry) }, Ok(()));
    }
    check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()));
}

fn flags_at(at: GuestVirt) -> PteFlags {
    memory::pte_of(at).map_or(PteFlags::empty(), Pte::flags) & (PteFlags::ACCESSED | PteFlags::DIRTY)
}

fn accessed_and_dirty() {
    section("accessed and dirty");
    let spare = frame();
    check_eq!(remap(spare, fresh()), Ok(()));
    check_eq!(flags_at(spare.virt()), PteFlags::empty(), "mapped, not touched");
    check!(probe::is_readable(spare.virt()));
    check_eq!(flags_at(spare.virt()), PteFlags::ACCESSED, "read");
    check!(store(spare.virt(), 1));
    check_eq!(flags_at(spare.virt()), PteFlags::ACCESSED | PteFlags::DIRTY, "written");

    check_eq!(remap(spare, fresh()), Ok(()));
    check!(store(spare.virt(), 2), "written first");
    check_eq!(flags_at(spare.virt()), PteFlags::ACCESSED | PteFlags::DIRTY);

    check_eq!(remap(spare, fresh() - PteFlags::WRITABLE), Ok(()));
    check_read_only(spare.virt(), "read-only and not touched");
    check_eq!(flags_at(spare.virt()), PteFlags::ACCESSED, "a refused write is no write");
    check_eq!(probe::load(spare.virt()), Some(2));
}

/// The guest clears the bits to learn whether a page is used again.
fn cleared_again() {
    section("accessed and dirty, cleared again and again");
    let spare = frame();
    for round in 0..20 {
        check_eq!(remap(spare, fresh()), Ok(()));
        check_eq!(flags_at(spare.virt()), PteFlags::empty(), "round {round}");
        check!(probe::is_readable(spare.virt()));
        check_eq!(flags_at(spare.virt()), PteFlags::ACCESSED, "round {round}, read");
        check_eq!(remap(spare, fresh() | PteFlags::ACCESSED), Ok(()));
        check!(store(spare.virt(), round));
        check_eq!(flags_at(spare.virt()), PteFlags::ACCESSED | PteFlags::DIRTY, "round {round}, written");
    }
    check_eq!(probe::load(spare.virt()), Some(19));
}

/// The bits belong to the mapping, not to the frame.
fn through_two_mappings() {
    section("accessed and dirty, two mappings");
    let (one, two) = (frame(), frame());
    check_eq!(remap(one, fresh()), Ok(()));
    check_eq!(map(two.virt(), Pte::new(one.mfn(), fresh())), Ok(()));
    check!(store(one.virt(), 9));
    check_eq!(flags_at(one.virt()), PteFlags::ACCESSED | PteFlags::DIRTY);
    check_eq!(flags_at(two.virt()), PteFlags::empty(), "the other mapping was not touched");
    check_eq!(probe::load(two.virt()), Some(9));
    check_eq!(flags_at(two.virt()), PteFlags::ACCESSED);
}
