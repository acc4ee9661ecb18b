//! What a guest wrote must count at the moments when it can tell.

use crate::{Range, frame};
use proxenos_guest::abi::hypercall::MULTICALL_RESULT_ARG;
use proxenos_guest::abi::mmu::{MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::{Errno, GuestVirt, Hypercall};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Word, arch, check, check_eq, hypercall, probe};

pub fn run() {
    seen_at_once();
    flushed();
    requests();
    forks();
    two_slots();
    own_table();
    accessed_and_dirty();
    tables_edge();
    each_through_the_other();
}

fn pte(frame: Frame) -> Pte {
    Pte::new(frame.mfn(), PteFlags::KERNEL_RW)
}

const fn number(call: Hypercall) -> usize {
    call.raw() as usize
}

fn store(at: GuestVirt, value: Word) -> bool {
    // SAFETY: pages of the test's own.
    unsafe { probe::store(at, value) }
}

/// An entry that was not present is there for the next access, after one store and after many.
fn seen_at_once() {
    section("seen at once");
    let range = Range::new(2);
    let frames = [frame(), frame(), frame()];
    for (count, what) in [(1, "one store"), (3, "some"), (5, "enough to open the table"), (128, "many")] {
        for index in 0..count {
            check!(range.write(index, pte(frames[index % 3])), "{what}");
        }
        for index in (0..count).rev() {
            check!(store(range.page(index), index as Word), "{what}: page {index}");
            check_eq!(probe::load(frames[index % 3].virt()), Some(index as Word), "{what}: page {index}");
        }
        for index in 0..count {
            check!(range.write(index, Pte::NONE), "{what}");
        }
        check_eq!(memory::flush_tlb(), Ok(()));
        check!((0..count).all(|index| !probe::is_readable(range.page(index))), "{what}: gone");
    }
    // All references are given back: the frames may become tables.
    for frame in frames {
        // SAFETY: pages of the test's own.
        check_eq!(unsafe { memory::remap(frame, PteFlags::KERNEL_RO) }, Ok(()));
        check_eq!(memory::unpin(frame.mfn()), Err(Errno::EINVAL), "it is none");
        // SAFETY: as above.
        check_eq!(unsafe { memory::remap(frame, PteFlags::KERNEL_RW) }, Ok(()));
        check!(store(frame.virt(), 0));
        // SAFETY: as above.
        check_eq!(unsafe { memory::remap(frame, PteFlags::KERNEL_RO) }, Ok(()));
        check_eq!(memory::pin(1, frame.mfn()), Ok(()));
        check_eq!(memory::unpin(frame.mfn()), Ok(()));
    }
}

/// An entry that was present changes, for good, with the flush.
fn flushed() {
    section("with a flush");
    let range = Range::new(3);
    let (one, two) = (frame(), frame());
    check!(store(one.virt(), 1) && store(two.virt(), 2));
    type Flush = fn(GuestVirt) -> bool;
    let flushes: [(&str, Flush); 3] = [
        ("MMUEXT_INVLPG", |at| memory::flush_page(at).is_ok()),
        ("MMUEXT_TLB_FLUSH", |_| memory::flush_tlb().is_ok()),
        // SAFETY: the base that it is already.
        ("MMUEXT_NEW_BASEPTR", |_| unsafe { memory::set_base(tables::root()) }.is_ok()),
    ];
    for (what, flush) in flushes {
        for count in [1, 40] {
            for (frame, value) in [(one, 1), (two, 2), (one, 1)] {
                for index in 0..count {
                    check!(range.write(index, pte(frame)));
                }
                check!((0..count).all(|index| flush(range.page(index))), "{what}");
                check!((0..count).all(|index| probe::load(range.page(index)) == Some(value)), "{what}, {count}");
            }
            for index in 0..count {
                check!(range.write(index, pte(one).without(PteFlags::WRITABLE)));
            }
            check!((0..count).all(|index| flush(range.page(index))), "{what}");
            check!((0..count).all(|index| !probe::is_writable(range.page(index))), "{what}, {count}: read-only");
        }
    }
    (0..40).for_each(|index| {
        check!(range.write(index, Pte::NONE));
    });
}

/// Requests on the table, on its entries and on others, in the middle of many stores.
fn requests() {
    section("requests meanwhile");
    let range = Range::new(4);
    let page = frame();
    let (parent, above) = tables::entry_at(range.at, 2).expect("mapped");
    let table = above.mfn();
    let mut round: usize = 0;
    let mut then = |what: &str, action: &dyn Fn() -> bool| {
        let first = 16 * round;
        for index in first..first + 16 {
            check!(range.write(index, pte(page)), "{what}");
        }
        check!(action(), "{what}");
        check!((first..first + 16).all(|index| store(range.page(index), 7)), "{what}: all are there");
        check_eq!(range.read(first + 1).map(|entry| entry.mfn()), Some(page.mfn()), "{what}");
        round += 1;
    };
    then("nothing", &|| true);
    then("a pin", &|| memory::pin(1, table).is_ok());
    then("a second pin", &|| memory::pin(1, table) == Err(Errno::EINVAL));
    then("an unpin", &|| memory::unpin(table).is_ok());
    then("a second unpin", &|| memory::unpin(table) == Err(Errno::EINVAL));
    // SAFETY: pages of the test's own.
    then("a mapping of another page", &|| unsafe { memory::remap(page, PteFlags::KERNEL_RW) }.is_ok());
    then("a mapping in the range", &|| {
        // SAFETY: a page of the test's own.
        unsafe { memory::update_va_mapping(range.page(3), pte(page), UpdateVaFlags::INVLPG) }.is_ok()
    });
    then("yield", &|| hypercall::sched_yield().is_ok());
    then("the table mapped writable", &|| {
        let at = memory::virt_of(memory::pfn_of_mfn(table).expect("ours"));
        let writable = Pte::new(table, PteFlags::KERNEL_RW);
        // SAFETY: refused.
        let result = unsafe { memory::update_va_mapping(at, writable, UpdateVaFlags::INVLPG) };
        result == Err(Errno::EINVAL)
    });
    then("the entry above again", &|| {
        // SAFETY: what is there already.
        unsafe { memory::write_entry(parent, above) }.is_ok()
    });
    then("the entry above gone and back", &|| {
        // SAFETY: the range is the test's own.
        unsafe { memory::write_entry(parent, Pte::NONE).and_then(|()| memory::write_entry(parent, above)) }.is_ok()
    });
    (0..16 * 12).for_each(|index| {
        check!(range.write(index, Pte::NONE));
    });
}

/// What a fork does: from one table to another, taking the right to write from both.
fn forks() {
    section("from one table to another");
    let (parent, child) = (Range::new(5), Range::new(6));
    let page = frame();
    for index in 0..256 {
        check!(parent.write(index, pte(page)));
    }
    check!(store(parent.page(200), 5));
    for index in 0..256 {
        let entry = parent.read(index).expect("readable").without(PteFlags::WRITABLE);
        check!(parent.write(index, entry) && child.write(index, entry));
    }
    check_eq!(memory::flush_tlb(), Ok(()));
    for index in (0..256).step_by(17) {
        check_eq!(probe::load(child.page(index)), Some(5));
        check!(!probe::is_writable(child.page(index)) && !probe::is_writable(parent.page(index)), "page {index}");
    }
    // A write fault, as for a page that is copied when it is written to: one entry, and on.
    for index in 0..64 {
        check!(parent.write(index, pte(page)));
        check!(store(parent.page(index), index as Word), "page {index}");
        check_eq!(probe::load(child.page(index)), Some(index as Word));
    }
    for index in 0..256 {
        check!(parent.write(index, Pte::NONE) && child.write(index, Pte::NONE));
    }
    check_eq!(memory::flush_tlb(), Ok(()));
    check!(!probe::is_readable(parent.page(1)) && !probe::is_readable(child.page(1)));
}

/// A table that two slots lead to.
fn two_slots() {
    section("a table in two slots");
    let (range, other) = (Range::new(7), Range::new(8));
    let (_, entry) = tables::entry_at(range.at, 2).expect("mapped");
    let (slot, before) = tables::entry_at(other.at, 2).expect("mapped");
    let page = frame();
    // SAFETY: ranges of the test's own.
    check_eq!(unsafe { memory::write_entry(slot, entry) }, Ok(()));
    check_eq!(memory::flush_tlb(), Ok(()));
    for index in 0..64 {
        check!(range.write(index, pte(page)));
    }
    for index in 0..64 {
        check!(store(range.page(index), index as Word));
        check_eq!(probe::load(other.page(index)), Some(index as Word));
    }
    for index in 0..64 {
        check!(range.write(index, Pte::NONE));
    }
    check_eq!(memory::flush_tlb(), Ok(()));
    check!((0..64).all(|index| !probe::is_readable(other.page(index))));
    // SAFETY: as above.
    check_eq!(unsafe { memory::write_entry(slot, before) }, Ok(()));
}

/// The table that maps the test's own code, stack and page tables.
fn own_table() {
    section("the table that maps everything");
    let page = frame();
    let (machine, old) = tables::entry_of(page.virt()).expect("mapped");
    let at = memory::virt_of(memory::pfn_of_mfn(machine.mfn()).expect("ours"));
    let slot = GuestVirt(at.raw() + machine.page_offset() as u64);
    check!(store(page.virt(), 9));
    for round in 0..100 {
        check!(store(slot, Pte::NONE.0), "round {round}");
        check_eq!(memory::flush_page(page.virt()), Ok(()));
        check!(!probe::is_readable(page.virt()), "round {round}");
        check!(store(slot, old.0));
        check_eq!(probe::load(page.virt()), Some(9), "round {round}");
    }
    for _ in 0..100 {
        check!(store(slot, old.without(PteFlags::WRITABLE).0));
        check!(store(slot, old.0));
    }
    check!(store(page.virt(), 10));
}

/// The bits that the processor sets, in entries that the guest wrote.
fn accessed_and_dirty() {
    section("accessed and dirty");
    let range = Range::new(9);
    let page = frame();
    let used = PteFlags::ACCESSED | PteFlags::DIRTY;
    let flags = |index| range.read(index).map_or(PteFlags::empty(), Pte::flags) & used;
    for count in [1, 20] {
        for index in 0..count {
            check!(range.write(index, pte(page).without(used)));
        }
        check_eq!(flags(0), PteFlags::empty(), "not touched");
        check!(probe::is_readable(range.page(0)));
        check_eq!(flags(0), PteFlags::ACCESSED, "read");
        check!(store(range.page(0), 1));
        check_eq!(flags(0), used, "written");
        for index in 0..count {
            check!(range.write(index, Pte::NONE));
        }
        check_eq!(memory::flush_tlb(), Ok(()));
    }
}

/// The hypervisor writes for the guest across a table's edge, into a page of some other kind: a fault there closes the
/// table, so no store of the hypervisor's may need both.
fn tables_edge() {
    section("over a table's edge");
    let (range, around) = (Range::new(12), Range::new(13));
    let (table, page) = (Pte::new(range.machine.mfn(), PteFlags::KERNEL_RO), frame());
    let inside = Pte::new(page.mfn(), PteFlags::KERNEL_RW);
    let unused = PteFlags::ACCESSED | PteFlags::DIRTY;
    // What is behind the table, and before it.
    let kinds = [Pte::NONE, inside.without(PteFlags::WRITABLE), inside.without(unused), table];
    for kind in kinds {
        for table_first in [true, false] {
            let (first, second) = if table_first { (table, kind) } else { (kind, table) };
            check!(around.write(0, first) && around.write(1, second));
            check_eq!(memory::flush_tlb(), Ok(()));
            for below in 1..4 {
                let flush = [memory::extended(MmuExtCommand::TlbFlush, 0, 0)];
                let done = (around.page(1).raw() - below) as usize;
                // SAFETY: pages of the test's own, and a table in which no entry becomes present: 1 is stored at an odd
                // address, or before its beginning.
                let result =
                    unsafe { arch::hypercall4(number(Hypercall::MmuUpdate), flush.as_ptr() as usize, 1, done, 0x7ff0) };
                // As in 2.0, a count that cannot be written is no error.
                check_eq!(hypercall::check(result), Ok(0), "{kind:?}, {below} bytes before the edge");
            }
            let other = around.page(if table_first { 1 } else { 0 });
            check_eq!(probe::is_readable(other), kind != Pte::NONE, "{kind:?} is what it was");
            for at in [0, (1 << arch::LEVEL_BITS) - 1] {
                check!(range.write(at, Pte::NONE));
            }
        }
    }
    check!(around.write(0, Pte::NONE) && around.write(1, Pte::NONE));
}

/// The same where one page is a table, the next another, and each is reached through the other: to open the one closes
/// the other.
fn each_through_the_other() {
    section("two tables, each mapped by the other");
    const WORD: u64 = size_of::<Word>() as u64;
    let (low, high) = (Range::new(10), Range::new(11));
    let last = (1 << arch::LEVEL_BITS) - 1;
    let table = |range: &Range| Pte::new(range.machine.mfn(), PteFlags::KERNEL_RO);
    check!(low.write(last, table(&high)) && high.write(0, table(&low)));
    check_eq!(memory::flush_tlb(), Ok(()));
    let edge = high.at.raw();
    let entries = || (high.read(last).map(|entry| entry.0), low.read(0).map(|entry| entry.0));
    let clear = || check!(high.write(last, Pte::NONE) && low.write(0, Pte::NONE));
    // The low byte of what is written is on this side, so that neither entry becomes present.
    for below in 1..4 {
        let flush = [memory::extended(MmuExtCommand::TlbFlush, 0, 0)];
        let done = (edge - below) as usize;
        // SAFETY: tables of the test's own.
        let result =
            unsafe { arch::hypercall4(number(Hypercall::MmuUpdate), flush.as_ptr() as usize, 1, done, 0x7ff0) };
        check_eq!(hypercall::check(result), Ok(0), "{below} bytes before the edge");
        check_eq!(entries(), (Some(1 << (8 * (WORD - below))), Some(0)), "how many were done");
        clear();
    }
    let version = Word::from(hypercall::xen_version().expect("it has one"));
    for below in 1..WORD {
        // A multicall's entry, so that its result lies across the edge.
        let list = GuestVirt(edge - below - WORD * MULTICALL_RESULT_ARG as u64 - WORD);
        check!(store(list, number(Hypercall::XenVersion) as Word) && store(GuestVirt(list.raw() + WORD), 0));
        // SAFETY: as above.
        let result = unsafe { arch::hypercall2(number(Hypercall::Multicall), list.raw() as usize, 1) };
        check_eq!(hypercall::check(result), Ok(0), "{below} bytes before the edge");
        check_eq!(entries(), (Some(version << (8 * (WORD - below))), Some(version >> (8 * below))), "the result");
        check!(store(list, 0));
        clear();
    }
    check!(low.write(last, Pte::NONE) && high.write(0, Pte::NONE));
}
