//! The life of a frame: given back, handed on, pinned and referred to while something else relies on it.

use crate::{REFUSED, TOP, blank, for_domain, frame, is_plain, map, remap, store, unused_slots, write};
use proxenos_guest::abi::hypercall::DomMemOp;
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand};
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::{DomId, Errno, GuestArch, GuestWord, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Arch, Word, boot, check, check_eq, hypercall, probe};

fn give(frame: Mfn) -> Result<usize, Errno> {
    // SAFETY: the tests give away frames of their own.
    unsafe { hypercall::dom_mem_op(DomMemOp::DecreaseReservation, &mut [hypercall::frame_word(frame)], 0, DomId::SELF) }
}

/// How many frames the domain has below its limit: as many as it gets.
fn take() -> Option<Mfn> {
    let mut list = [0];
    // SAFETY: gives nothing away.
    let done = unsafe { hypercall::dom_mem_op(DomMemOp::IncreaseReservation, &mut list, 0, DomId::SELF) };
    (done == Ok(1)).then(|| Mfn(list[0].to_u64()))
}

/// Puts the one frame that there is to be had where one of ours was.
#[track_caller]
fn replace(place: Frame) {
    let new = take();
    check!(new.is_some(), "it is free now");
    let Some(new) = new else { return };
    check!(take().is_none(), "and it alone");
    check_eq!(map(place.virt(), Pte::new(new, PteFlags::KERNEL_RW)), Ok(()));
    check_eq!(probe::load(place.virt()), Some(0), "nothing is left in it");
    let number = memory::request(MmuCommand::MachphysUpdate, new.addr(), place.pfn().raw() as Word);
    // SAFETY: says which frame this is; the test alone cares.
    check_eq!(unsafe { memory::update(number) }, Ok(()));
}

pub fn freed_in_use() {
    // Mapped, writable: it stays that, and so no table; twice is once.
    let page = frame();
    check!(store(page.virt(), 0, 0x5ec2e7));
    check_eq!(give(page.mfn()), Ok(1));
    check_eq!(give(page.mfn()), Ok(0), "given back already");
    check!(take().is_none(), "it is not free");
    check!(store(page.virt(), 0, 0x5ec2e7), "mapped still");
    check_eq!(memory::pin(1, page.mfn()), REFUSED, "and written to");
    check_eq!(map(page.virt(), Pte::NONE), Ok(()));
    check_eq!(remap(page, PteFlags::KERNEL_RO), REFUSED, "gone");
    replace(page);

    // A table that is hung in: it loses its pin, but stays the table that the CPU walks.
    let table = blank();
    let slot = unused_slots().next().expect("a free slot");
    let above = if TOP == 2 { tables::root() } else { tables::entry_at(memory::virt_base(), 2).expect("L2").0.mfn() };
    let slot = if TOP == 2 { slot } else { 500 };
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    check_eq!(write(above, slot, Pte::new(table.mfn(), PteFlags::TABLE)), Ok(()));
    check_eq!(give(table.mfn()), Ok(1));
    check_eq!(memory::unpin(table.mfn()), REFUSED, "its pin went");
    check_eq!(remap(table, PteFlags::KERNEL_RW), REFUSED, "a table");
    for level in 2..=TOP {
        check_eq!(memory::pin(level, table.mfn()), REFUSED, "of its level");
    }
    check_eq!(hypercall::audit(), Ok(()), "while nobody owns what is used");
    check_eq!(write(above, slot, Pte::NONE), Ok(()));
    check_eq!(map(table.virt(), Pte::NONE), Ok(()));
    replace(table);

    // A page of descriptors.
    let gdt = blank();
    // SAFETY: the selectors in use are the reserved ones.
    let set = |frame: Frame| unsafe { hypercall::set_gdt(&[hypercall::frame_word(frame.mfn())], 512) };
    check_eq!(set(gdt), Ok(()));
    check_eq!(give(gdt.mfn()), Ok(1));
    check_eq!(remap(gdt, PteFlags::KERNEL_RW), REFUSED, "descriptors");
    check_eq!(map(gdt.virt(), Pte::NONE), Ok(()));
    check!(take().is_none(), "in use");
    check_eq!(set(blank()), Ok(()));
    replace(gdt);

    // A table that names a page which goes: the entry holds it.
    let (table, page) = (frame(), frame());
    check!(store(table.virt(), 9, Pte::new(page.mfn(), PteFlags::KERNEL_RW).0));
    check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    check_eq!(map(page.virt(), Pte::NONE), Ok(()));
    check_eq!(give(page.mfn()), Ok(1));
    check!(take().is_none(), "an entry holds it");
    check_eq!(memory::unpin(table.mfn()), Ok(()));
    replace(page);
    check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()));
}

/// To other domains, where there are such: none can be made yet, so each is refused, whatever the frame is in use as.
pub fn handed_on() {
    let table = blank();
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    let mapped = frame();
    let shared = proxenos_guest::boot::start_info().shared_info.to_u64() >> 12;
    for target in [table.mfn(), mapped.mfn(), tables::root(), Mfn(shared), Mfn(0xb8), Mfn(0xf_ffff)] {
        let reassign = memory::extended(MmuExtCommand::ReassignPage, target.addr().raw(), 0);
        // SAFETY: refused.
        check_eq!(unsafe { memory::update(reassign) }, REFUSED, "{target:?}, to nobody");
        for id in [DomId(0), DomId::SELF, DomId::IO, DomId::XEN, DomId(1)] {
            check_eq!(for_domain(id, reassign), REFUSED, "{target:?}, to {id:?}");
        }
        for to in [0, 1, 0x7ff0] {
            let transfer = memory::extended(MmuExtCommand::TransferPage, target.addr().raw(), to << 8);
            // SAFETY: refused.
            check_eq!(unsafe { memory::update(transfer) }, REFUSED, "{target:?}, transferred to {to:#x}");
        }
    }
    check!(store(mapped.virt(), 0, 1));
    check_eq!(memory::unpin(table.mfn()), Ok(()));
    is_plain(table);
}

/// Whose frames are meant, said and taken back within a list: as long as one says so, and not a request longer.
pub fn foreign_domains() {
    let page = frame();
    let (address, before) = tables::entry_of(page.virt()).expect("mapped");
    let foreign = |id: DomId| memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(id.0) << 8);
    let clear = memory::extended(MmuExtCommand::ClearForeigndom, 0, 0);
    let maps = |frame: Mfn, flags| memory::request(MmuCommand::NormalPtUpdate, address, Pte::new(frame, flags).0);
    let own = maps(page.mfn(), PteFlags::KERNEL_RO);
    let frame_buffer = maps(Mfn(0xb8), PteFlags::KERNEL_RW | PteFlags::UNCACHED);
    let numbers = proxenos_guest::shared_info::double_word(SharedInfo::MFN_TO_PFN_START);
    let [read, written] = [PteFlags::KERNEL_RO, PteFlags::KERNEL_RW].map(|flags| maps(Mfn(numbers), flags));
    // Domain 0 may name whom others may not, and has I/O memory.
    let privileged = |count| if boot::is_initial_domain() { count } else { 0 };
    let frame_buffer_mapped = if boot::is_initial_domain() { 3 } else { 1 };
    // Lists of three: which request is the first that is refused, if any.
    for (list, carried_out, what) in [
        ([foreign(DomId::IO), clear, own], 3, "ours again"),
        ([foreign(DomId::IO), own, clear], 1, "ours is no I/O memory"),
        ([foreign(DomId::IO), frame_buffer, clear], frame_buffer_mapped, "I/O memory is"),
        ([foreign(DomId::XEN), read, own], privileged(2), "the hypervisor's table, and ours as the hypervisor's"),
        ([foreign(DomId::XEN), written, clear], privileged(1), "to be read only"),
        ([foreign(DomId::XEN), clear, read], privileged(2), "nor without saying whose"),
        ([foreign(DomId(77)), own, own], 0, "nobody"),
        ([clear, clear, own], 3, "nothing to take back"),
    ] {
        let expected = if carried_out == list.len() { Ok(carried_out) } else { Err((Errno::EINVAL, carried_out)) };
        // SAFETY: a page of the test's own.
        check_eq!(unsafe { hypercall::mmu_update(&list) }, expected, "{what}");
        // The same entry once more would be no change, which needs no right.
        check_eq!(map(page.virt(), before), Ok(()));
    }
    // With the call it is forgotten.
    // SAFETY: as above.
    check_eq!(unsafe { hypercall::mmu_update(&[foreign(DomId::XEN)]) }.is_ok(), boot::is_initial_domain());
    // SAFETY: refused.
    check_eq!(unsafe { memory::update(read) }, REFUSED, "in the next call nobody is meant");
    check_eq!(map(page.virt(), before), Ok(()));
    check!(store(page.virt(), 0, 0));
}

pub fn pins() {
    let table = blank();
    for level in 1..=TOP {
        check_eq!(memory::unpin(table.mfn()), REFUSED, "before it is pinned");
        check_eq!(memory::pin(level, table.mfn()), Ok(()));
        for _ in 0..3 {
            check_eq!(memory::pin(level, table.mfn()), REFUSED, "L{level} twice");
        }
        let request = |command| memory::extended(command, table.mfn().addr().raw(), 0);
        for id in [DomId::IO, DomId::XEN] {
            check_eq!(for_domain(id, request(MmuExtCommand::UnpinTable)), REFUSED, "as {id:?}'s");
            check_eq!(for_domain(id, request(MmuExtCommand::PinL1Table)), REFUSED, "as {id:?}'s");
        }
        // Pinned and unpinned in one list, over and over: each has its effect in turn.
        let list = [request(MmuExtCommand::UnpinTable), request(MmuExtCommand::UnpinTable)];
        // SAFETY: no mapping changes.
        check_eq!(unsafe { hypercall::mmu_update(&list) }, Err((Errno::EINVAL, 1)), "unpinned twice in a list");
        is_plain(table);
    }
    // The base is held by being the base: without its pin it is as much a table as with it.
    let root = tables::root();
    check_eq!(memory::unpin(root), Ok(()));
    check_eq!(memory::unpin(root), REFUSED);
    check_eq!(map(table.virt(), Pte::new(root, PteFlags::KERNEL_RW)), REFUSED);
    check_eq!(hypercall::audit(), Ok(()));
    check_eq!(memory::pin(TOP, root), Ok(()));
    check_eq!(memory::pin(TOP, root), REFUSED);
}

/// So many writable mappings of one frame that sixteen bits do not count them.
pub fn references() {
    const TABLES: usize = 66_000 / Arch::PAGE_TABLE_ENTRIES + 1;
    let target = frame();
    let entry = Pte::new(target.mfn(), PteFlags::KERNEL_RW).0;
    let mut tables: [Option<Frame>; TABLES] = [None; TABLES];
    for slot in &mut tables {
        let table = frame();
        for index in 0..Arch::PAGE_TABLE_ENTRIES {
            // SAFETY: a frame of the test's own, mapped writable.
            unsafe { table.words().add(index).write_volatile(entry) };
        }
        check_eq!(remap(table, PteFlags::KERNEL_RO), Ok(()));
        check_eq!(memory::pin(1, table.mfn()), Ok(()));
        *slot = Some(table);
    }
    check_eq!(remap(target, PteFlags::KERNEL_RO), Ok(()));
    check_eq!(hypercall::audit(), Ok(()), "every one of them is counted");
    for (nth, table) in tables.into_iter().flatten().enumerate() {
        if nth % 16 == 0 || nth + 2 >= TABLES {
            check_eq!(memory::pin(1, target.mfn()), REFUSED, "{nth} tables are gone");
        }
        check_eq!(memory::unpin(table.mfn()), Ok(()));
    }
    is_plain(target);
}
