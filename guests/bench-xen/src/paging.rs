//! Changes to page-table entries, and flushes. Every frame that is mapped and unmapped here has another writable
//! mapping, as a kernel's frames have: its type stays what it is.

use crate::abi::{DOMID_SELF, MmuUpdate, memory_op, mmuext, uvmf, vm_assist};
use crate::hypercall::{mmu_update, mmuext, reserve, update_va_mapping, writable_page_tables};
use crate::measure::Bench;
use crate::memory::{Frame, KERNEL_RW, Window, entry, frames};
use core::cell::Cell;

/// Entries in the long list.
const MANY: usize = 128;

pub fn run(bench: &Bench) {
    let (even, odd) = (frames::<MANY>(), frames::<MANY>());
    // From round to round another frame, so that each entry really changes.
    let list = |round: usize| if round.is_multiple_of(2) { &even } else { &odd };
    let window = Window::new(&odd);
    requests(bench, &window, list);
    single_pages(bench, &window, list);
    // SAFETY: flushes change no mapping.
    bench.measure("tlb-flush", |_| (), |()| unsafe { mmuext(mmuext::TLB_FLUSH_LOCAL, 0) });
    // SAFETY: as above.
    bench.measure("invlpg", |_| (), |()| unsafe { mmuext(mmuext::INVLPG_LOCAL, window.at) });
    // SAFETY: caches hold nothing that memory does not get.
    bench.measure("cache-flush", |_| (), |()| unsafe { mmuext(mmuext::FLUSH_CACHE, 0) });
    stores(bench, &window, odd[0]);
    exchange_of_frames(bench);
}

/// Stores to a table whose mapping is read-only: one, and many with a flush.
fn stores(bench: &Bench, window: &Window, frame: u64) {
    let entry = entry(frame, KERNEL_RW);
    let store = |index: usize, entry| window.table().store(index, entry);
    let empty = |_| {
        (0..MANY).for_each(|index| store(index, 0));
        // SAFETY: a flush changes no mapping.
        assert!(unsafe { mmuext(mmuext::TLB_FLUSH_LOCAL, 0) });
    };
    assert!(writable_page_tables(vm_assist::ENABLE), "writable page tables exist");
    bench.measure("writable-pt-1", empty, |()| {
        store(0, entry);
        true
    });
    bench.measure("writable-pt-128", empty, |()| {
        (0..MANY).for_each(|index| store(index, entry));
        // SAFETY: as above.
        unsafe { mmuext(mmuext::TLB_FLUSH_LOCAL, 0) }
    });
    empty(0);
    assert!(writable_page_tables(vm_assist::DISABLE));
}

/// A frame given back, and another asked for: as many as before, of which one is nowhere mapped.
fn exchange_of_frames(bench: &Bench) {
    let given = Frame::new();
    let list = Cell::new([given.mfn()]);
    given.unmap();
    bench.measure(
        "memory-decrease-increase",
        |_| list.get(),
        |mut extents| {
            // SAFETY: the frame is nowhere mapped.
            let done = unsafe {
                reserve(memory_op::DECREASE_RESERVATION, &mut extents, 0, DOMID_SELF)
                    && reserve(memory_op::INCREASE_RESERVATION, &mut extents, 0, DOMID_SELF)
            };
            list.set(extents);
            done
        },
    );
}

fn change(window: &Window, page: usize, val: u64) -> MmuUpdate {
    MmuUpdate { ptr: window.entry(page), val }
}

fn requests<'a>(bench: &Bench, window: &Window, list: impl Fn(usize) -> &'a [u64; MANY]) {
    let mapping = |round: usize, page: usize| change(window, page, entry(list(round)[page], KERNEL_RW));
    // SAFETY: nothing refers to the window's pages.
    bench.measure("mmu-update-0", |_| [], |none| unsafe { mmu_update(&none) });
    // SAFETY: as above.
    bench.measure("mmu-update-1", |round| [mapping(round, 0)], |one| unsafe { mmu_update(&one) });
    // Lists of their own, so that nothing is copied while it is measured.
    let all = |round| core::array::from_fn::<_, MANY, _>(|page| mapping(round, page));
    let lists = [all(0), all(1)];
    let which = |round: usize| &lists[round % 2];
    // SAFETY: as above.
    bench.measure_many("mmu-update-128", MANY as u64, which, |all| unsafe { mmu_update(all) });
    let none = core::array::from_fn::<_, MANY, _>(|page| change(window, page, 0));
    let mapped = |round| {
        // SAFETY: as above.
        assert!(unsafe { mmu_update(which(round)) }, "frames of ours can be mapped");
        &none
    };
    // SAFETY: as above.
    bench.measure_many("mmu-update-unmap-128", MANY as u64, mapped, |all| unsafe { mmu_update(all) });
    let mapped = |round| {
        // SAFETY: as above.
        assert!(unsafe { mmu_update(&[mapping(round, 0)]) }, "a frame of ours can be mapped");
        [change(window, 0, 0)]
    };
    // SAFETY: as above.
    bench.measure("mmu-update-unmap-1", mapped, |one| unsafe { mmu_update(&one) });
}

fn single_pages<'a>(bench: &Bench, window: &Window, list: impl Fn(usize) -> &'a [u64; MANY]) {
    let flushes =
        [("update-va-mapping", uvmf::NONE), ("update-va-invlpg", uvmf::INVLPG), ("update-va-flush", uvmf::TLB_FLUSH)];
    for (name, flags) in flushes {
        let entry = |round: usize| entry(list(round)[0], KERNEL_RW);
        // SAFETY: nothing refers to the window's pages.
        assert!(unsafe { update_va_mapping(window.at, entry(1), flags) }, "a frame of ours can be mapped");
        // SAFETY: as above.
        bench.measure(name, entry, |entry| unsafe { update_va_mapping(window.at, entry, flags) });
    }
}
