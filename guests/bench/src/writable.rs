//! Writable page tables: a store to a table that is carried out by itself, and many that are let through and checked by
//! a flush.

use crate::Bench;
use crate::entries::frame;
use proxenos_guest::abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_guest::hypercall;
use proxenos_guest::memory::{Range, flush_tlb};
use proxenos_guest::pte::{Pte, PteFlags};

/// Stores in a row.
const MANY: usize = 128;

pub fn run(bench: &Bench) {
    if !["writable-pt-1", "writable-pt-128"].iter().any(|name| bench.measures(name)) {
        return;
    }
    let range = Range::new(4);
    let entry = Pte::new(frame().mfn(), PteFlags::KERNEL_RW);
    let table = range.table.raw() as usize as *mut Pte;
    let store = |index: usize, entry| {
        // SAFETY: an entry of a range that is for nothing else, in a table that may be written to.
        unsafe { table.add(index).write_volatile(entry) }
    };
    assist(VmAssistCommand::Enable);
    let empty = |_| {
        (0..MANY).for_each(|index| store(index, Pte::NONE));
        flush_tlb().expect("it has no errors");
    };
    bench.measure("writable-pt-1", empty, |()| {
        store(0, entry);
        true
    });
    bench.measure("writable-pt-128", empty, |()| {
        (0..MANY).for_each(|index| store(index, entry));
        flush_tlb().is_ok()
    });
    empty(0);
    assist(VmAssistCommand::Disable);
}

fn assist(command: VmAssistCommand) {
    hypercall::vm_assist(command, VmAssistType::WritablePagetables).expect("writable page tables exist");
}
