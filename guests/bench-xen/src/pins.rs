//! Whole tables: becoming one, ceasing to be one, and the change of the address space.

use crate::abi::{self, mmuext};
use crate::hypercall;
use crate::measure::Bench;
use crate::memory::{self, ENTRIES, Frame, KERNEL_RO, KERNEL_RW, entry, frames, pin};

pub fn run(bench: &Bench) {
    let pages = frames::<ENTRIES>();
    pin_and_unpin(bench, "pin-unpin-l1-empty", |_| 0);
    pin_and_unpin(bench, "pin-unpin-l1-full-ro", |index| entry(pages[index], KERNEL_RO));
    pin_and_unpin(bench, "pin-unpin-l1-full-rw", |index| entry(pages[index], KERNEL_RW));
    change_base(bench);
}

/// A table that is none yet: its entries written, its mapping read-only.
fn table(entry: impl Fn(usize) -> u64) -> u64 {
    let table = Frame::new();
    for index in 0..ENTRIES {
        table.store(index, entry(index));
    }
    table.make_read_only();
    table.mfn()
}

fn pin_and_unpin(bench: &Bench, name: &str, entry: impl Fn(usize) -> u64) {
    let table = table(entry);
    bench.measure(name, |_| table, |table| pin(mmuext::PIN_L1_TABLE, table) && pin(mmuext::UNPIN_TABLE, table));
}

/// There and back between two address spaces that map the same.
fn change_base(bench: &Bench) {
    let old = memory::root();
    let new = table(|index| if abi::XEN_SLOTS.contains(&index) { 0 } else { memory::read_entry(old, index) });
    assert!(pin(mmuext::PIN_L4_TABLE, new), "a copy of a table is a table");
    let other = |round: usize| if round.is_multiple_of(2) { new } else { old };
    // SAFETY: both spaces map the same.
    bench.measure("new-baseptr", other, |base| unsafe { hypercall::mmuext(mmuext::NEW_BASEPTR, base) });
    // SAFETY: as above.
    assert!(unsafe { hypercall::mmuext(mmuext::NEW_BASEPTR, old) }, "the base that there was");
    assert!(pin(mmuext::UNPIN_TABLE, new), "it is pinned, and not in use");
}
