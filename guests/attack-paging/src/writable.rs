//! Getting to write to a table that is in use: by a mapping, by a bit of one, by one that is gone.

use crate::{REFUSED, TOP, blank, for_domain, frame, map, remap, store, unused_slots, write};
use proxenos_guest::abi::mmu::{MmuCommand, UpdateVaFlags};
use proxenos_guest::abi::{DomId, GuestVirt, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Word, check, check_eq, hypercall, probe};

/// Every set of flags with which somebody might write, and what might be thought to be looked at first.
const WRITABLE: [PteFlags; 6] = [
    PteFlags::KERNEL_RW,
    PteFlags::PRESENT.union(PteFlags::WRITABLE),
    PteFlags::KERNEL_RW.union(PteFlags::USER),
    PteFlags::KERNEL_RW.union(PteFlags::UNCACHED).union(PteFlags::WRITE_THROUGH),
    PteFlags::KERNEL_RW.union(PteFlags::AVAILABLE),
    PteFlags::PRESENT.union(PteFlags::WRITABLE).union(PteFlags::USER),
];

/// A mapping of a page, in every way there is to ask for one: none of them is carried out.
fn in_no_way(spare: Frame, target: Mfn, flags: PteFlags) {
    let entry = Pte::new(target, flags);
    let at = spare.virt();
    let (address, before) = tables::entry_of(at).expect("the page is mapped");
    let update = memory::request(MmuCommand::NormalPtUpdate, address, entry.0);
    for how in [UpdateVaFlags::empty(), UpdateVaFlags::INVLPG, UpdateVaFlags::FLUSH_TLB] {
        // SAFETY: refused.
        check_eq!(unsafe { memory::update_va_mapping(at, entry, how) }, REFUSED, "{target:?}, {flags:?}, {how:?}");
    }
    // SAFETY: refused.
    check_eq!(unsafe { memory::update(update) }, REFUSED, "by its entry: {target:?}, {flags:?}");
    // Not for any domain that somebody might take it to be, either.
    for id in [DomId(0), DomId::SELF, DomId::IO, DomId::XEN, DomId(1)] {
        check_eq!(for_domain(id, update), REFUSED, "for {id:?}: {target:?}, {flags:?}");
        // SAFETY: refused.
        let result = unsafe { hypercall::update_va_mapping_otherdomain(at, entry, UpdateVaFlags::INVLPG, id) };
        check!(result.is_err(), "of {id:?}'s: {target:?}, {flags:?}");
    }
    // Prepared while it is not present, or read-only, and then opened.
    for first in [entry.without(PteFlags::PRESENT), entry.without(PteFlags::WRITABLE)] {
        check_eq!(map(at, first), Ok(()), "{target:?}, {flags:?}: prepared");
        check_eq!(map(at, entry), REFUSED, "{target:?}, {flags:?}: then opened");
        // SAFETY: refused.
        check_eq!(unsafe { memory::update(update) }, REFUSED, "{target:?}, {flags:?}: then opened by its entry");
    }
    check_eq!(map(at, before), Ok(()));
    // In a table that is to be one: alone, and hung in.
    let table = frame();
    check!(store(table.virt(), 7, entry.0));
    check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(1, table.mfn()), REFUSED, "{target:?}, {flags:?}: in a table of its own");
    if TOP == 2 {
        let slot = unused_slots().next().expect("a free slot");
        let hung = write(tables::root(), slot, Pte::new(table.mfn(), PteFlags::TABLE));
        check_eq!(hung, REFUSED, "{target:?}, {flags:?}: in one that is hung in");
    }
    check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()), "no reference is left");
    check!(store(table.virt(), 7, 0));
}

pub fn live_tables() {
    let spare = frame();
    let gdt = blank();
    // SAFETY: the selectors in use are the reserved ones, which the hypervisor fills in.
    check_eq!(unsafe { hypercall::set_gdt(&[hypercall::frame_word(gdt.mfn())], 512) }, Ok(()));
    let mut found = 0;
    for (level, table) in tables::tables_of(spare.virt()).chain([(0, gdt.mfn())]) {
        for flags in WRITABLE {
            in_no_way(spare, table, flags);
        }
        check_eq!(remap(spare, PteFlags::KERNEL_RO), Ok(()));
        check_eq!(map(spare.virt(), Pte::new(table, PteFlags::KERNEL_RO)), Ok(()), "L{level}, to be read");
        check!(!probe::is_writable(spare.virt()));
        check_eq!(remap(spare, PteFlags::KERNEL_RW), Ok(()));
        found += 1;
    }
    check_eq!(found, TOP + 1);
    // SAFETY: as above.
    check_eq!(unsafe { hypercall::set_gdt(&[hypercall::frame_word(blank().mfn())], 512) }, Ok(()));
}

/// The bits of an entry, one by one and by every path, where a reference hangs on some of them.
pub fn harmless_bits() {
    let spare = frame();
    let (_, table) = tables::tables_of(spare.virt()).last().expect("a table");
    let read_only = Pte::new(table, PteFlags::KERNEL_RO);
    check_eq!(map(spare.virt(), read_only), Ok(()), "a table, to be read");
    let (address, _) = tables::entry_of(spare.virt()).expect("mapped");
    let by_every_path = |entry: Pte, expected, what: &str| {
        check_eq!(map(spare.virt(), entry), expected, "{what}, {:#x}", entry.0);
        // SAFETY: the page is the test's own.
        check_eq!(unsafe { memory::write_entry(address, entry) }, expected, "{what}, {:#x}, by its entry", entry.0);
        let shows = probe::is_writable(spare.virt());
        check!(!shows, "{what}: not to be written");
    };
    let bits = [
        PteFlags::WRITE_THROUGH,
        PteFlags::UNCACHED,
        PteFlags::AVAILABLE,
        PteFlags::DIRTY,
        PteFlags::USER,
        PteFlags::ACCESSED,
    ];
    for mask in 0..1u32 << bits.len() {
        let flags =
            (0..).zip(bits).filter(|(bit, _)| mask >> bit & 1 != 0).map(|(_, flags)| flags).collect::<PteFlags>();
        let entry = Pte(read_only.0 ^ flags.bits() as Word);
        by_every_path(entry, Ok(()), "bits that mean no reference");
        by_every_path(entry.with(PteFlags::WRITABLE), REFUSED, "and RW");
        by_every_path(entry.with(PteFlags::GLOBAL), REFUSED, "and G");
        by_every_path(entry.with(PteFlags::LARGE_OR_PAT), REFUSED, "and PAT");
        by_every_path(entry.with(PteFlags::GLOBAL | PteFlags::WRITABLE), REFUSED, "and G and RW");
    }
    #[cfg(target_arch = "x86_64")]
    {
        const NX: Word = 1 << 63;
        by_every_path(Pte(read_only.0 | NX), Ok(()), "NX");
        by_every_path(Pte(read_only.0 | NX).with(PteFlags::WRITABLE), REFUSED, "NX and RW");
        // Protection keys, and an address that no CPU has: another frame, to those who look at fewer bits.
        for bit in [51, 59, 62] {
            by_every_path(Pte(read_only.0 | 1 << bit), REFUSED, "reserved bits");
            by_every_path(Pte(read_only.0 | 1 << bit | NX), REFUSED, "reserved bits and NX");
        }
    }
    // RW is given up by the same paths, and with it the reference: then the frame can be a table, and not before.
    let page = frame();
    check_eq!(map(spare.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RW)), Ok(()));
    check_eq!(remap(page, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(1, page.mfn()), REFUSED, "mapped writable once");
    check_eq!(map(spare.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RO | PteFlags::AVAILABLE)), Ok(()));
    check_eq!(memory::pin(1, page.mfn()), Ok(()));
    check_eq!(map(spare.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RW | PteFlags::AVAILABLE)), REFUSED);
    check_eq!(memory::unpin(page.mfn()), Ok(()));
    check_eq!(remap(spare, PteFlags::KERNEL_RW), Ok(()));
    check_eq!(remap(page, PteFlags::KERNEL_RW), Ok(()));
}

/// A writable translation is still in the TLB when its frame becomes a table.
pub fn stale_mappings() {
    type Change = fn(GuestVirt, Pte);
    let lazily: Change = |at, entry| {
        // SAFETY: a page of the test's own.
        check_eq!(unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::empty()) }, Ok(()));
    };
    let by_entry: Change = |at, entry| {
        let (address, _) = tables::entry_of(at).expect("mapped");
        check_eq!(write(address.mfn(), address.page_offset() / size_of::<Word>(), entry), Ok(()));
    };
    for change in [lazily, by_entry] {
        for (entry, what) in [(PteFlags::empty(), "unmapped"), (PteFlags::KERNEL_RO, "read-only")] {
            for level in 1..=TOP {
                let page = frame();
                check!(store(page.virt(), 0, 0), "now it is in the TLB, dirty");
                let entry = if entry.is_empty() { Pte::NONE } else { Pte::new(page.mfn(), entry) };
                change(page.virt(), entry);
                check_eq!(memory::pin(level, page.mfn()), Ok(()), "{what}, an L{level} table");
                check!(!store(page.virt(), 0, 0x1067), "{what}: no write to an L{level} table");
                check_eq!(memory::unpin(page.mfn()), Ok(()));
            }
            // As a page of descriptors.
            let page = frame();
            check!(store(page.virt(), 0, 0));
            let entry = if entry.is_empty() { Pte::NONE } else { Pte::new(page.mfn(), entry) };
            change(page.virt(), entry);
            let word = hypercall::frame_word(page.mfn());
            // SAFETY: the selectors in use are the reserved ones.
            check_eq!(unsafe { hypercall::set_gdt(&[word], 512) }, Ok(()));
            check!(!store(page.virt(), 0, 0xffff), "{what}: no write to a GDT");
        }
    }
    // Of another page of the same table, below a slot that was taken away.
    let at = GuestVirt((memory::region_end().raw() | 0x0fff_ffff) + 1);
    check_eq!(tables::ensure_l1(at), Ok(()));
    let page = frame();
    check_eq!(map(at, Pte::new(page.mfn(), PteFlags::KERNEL_RW)), Ok(()));
    check!(store(at, 0, 0));
    let (address, entry) = tables::entry_at(at, 2).expect("it was made just now");
    let slot = |entry| write(address.mfn(), address.page_offset() / size_of::<Word>(), entry);
    check_eq!(slot(Pte::NONE), Ok(()), "the table is taken away, and nothing is flushed");
    check_eq!(remap(page, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(1, page.mfn()), Ok(()), "with the table went the mapping");
    check!(!store(at, 0, 0x1067), "which writes to no table");
    check_eq!(slot(entry), REFUSED, "nor comes back while there is one");
    check_eq!(memory::unpin(page.mfn()), Ok(()));
    check_eq!(slot(entry), Ok(()));
    check_eq!(map(at, Pte::NONE), Ok(()));
}
