//! Whole tables: becoming one, ceasing to be one, and the change of the address space.

use crate::Bench;
use crate::entries::{frame, frames, writable};
use proxenos_guest::Arch;
use proxenos_guest::abi::{GuestArch, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};

/// Entries of a table.
const ENTRIES: usize = Arch::PAGE_TABLE_ENTRIES;
/// Level of the top table.
const TOP: u32 = Arch::PAGE_TABLE_LEVELS as u32;

pub fn run(bench: &Bench) {
    let pages = frames::<ENTRIES>();
    pin_and_unpin(bench, "pin-unpin-l1-empty", |_| Pte::NONE);
    pin_and_unpin(bench, "pin-unpin-l1-full-ro", |index| Pte::new(pages[index], PteFlags::KERNEL_RO));
    pin_and_unpin(bench, "pin-unpin-l1-full-rw", |index| writable(pages[index]));
    change_base(bench);
}

/// A table that is none yet: its entries written, its mapping read-only.
fn table(entry: impl Fn(usize) -> Pte) -> Frame {
    let table = frame();
    for index in 0..ENTRIES {
        // SAFETY: a fresh frame, mapped writable.
        unsafe { table.words().add(index).write(entry(index).0) };
    }
    // SAFETY: no reference to it exists.
    unsafe { memory::remap(table, PteFlags::KERNEL_RO) }.expect("a page can be made read-only");
    table
}

fn pin_and_unpin(bench: &Bench, name: &str, entry: impl Fn(usize) -> Pte) {
    let table = table(entry).mfn();
    bench.measure(name, |_| table, |table| memory::pin(1, table).is_ok() && memory::unpin(table).is_ok());
}

/// There and back between two address spaces that map the same.
fn change_base(bench: &Bench) {
    let old = tables::root();
    let reserved = |index: usize| if TOP == 2 { index >= 1008 } else { (256..=271).contains(&index) };
    let ours = |index: usize| tables::read_entry(old, index).filter(|_| !reserved(index)).unwrap_or(Pte::NONE);
    let new = table(ours).mfn();
    memory::pin(TOP, new).expect("a copy of a table is a table");
    let other = |round: usize| -> Mfn { if round.is_multiple_of(2) { new } else { old } };
    // SAFETY: both spaces map the same.
    bench.measure("new-baseptr", other, |base| unsafe { memory::set_base(base) }.is_ok());
    // SAFETY: as above.
    unsafe { memory::set_base(old) }.expect("the base that there was");
    memory::unpin(new).expect("it is pinned, and not in use");
}
