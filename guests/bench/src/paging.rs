//! Changes to page-table entries, and flushes. Every frame that is mapped and unmapped here has another writable
//! mapping, as a kernel's frames have: its type stays what it is.

use crate::Bench;
use crate::entries::{Window, frame, frames, writable};
use core::cell::Cell;
use proxenos_guest::abi::hypercall::DomMemOp;
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate, UpdateVaFlags};
use proxenos_guest::abi::{DomId, GuestWord, Mfn};
use proxenos_guest::hypercall::{dom_mem_op, mmu_update};
use proxenos_guest::memory::{extended, flush_page, flush_tlb, request, update, update_va_mapping, write_entry};
use proxenos_guest::pte::Pte;
use proxenos_guest::{Arch, Word};

/// Entries in the long list.
const MANY: usize = 128;

pub fn run(bench: &Bench) {
    let (even, odd) = (frames::<MANY>(), frames::<MANY>());
    // From round to round another frame, so that each entry really changes.
    let list = |round: usize| if round.is_multiple_of(2) { &even } else { &odd };
    let window = Window::new(&odd);
    requests(bench, &window, list);
    single_pages(bench, &window, list);
    bench.measure("tlb-flush", |_| (), |()| flush_tlb().is_ok());
    bench.measure("invlpg", |_| (), |()| flush_page(window.at).is_ok());
    // SAFETY: caches hold nothing that memory does not get.
    bench.measure("cache-flush", |_| (), |()| unsafe { update(extended(MmuExtCommand::FlushCache, 0, 0)) }.is_ok());
    exchange_of_frames(bench);
}

/// A frame given back, and another asked for: as many as before, of which one is nowhere mapped.
fn exchange_of_frames(bench: &Bench) {
    if !bench.measures("memory-decrease-increase") {
        return;
    }
    let given = frame();
    // SAFETY: a fresh page, to which nothing refers.
    unsafe { update_va_mapping(given.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("a page of ours");
    let extent = Cell::new([Word::from_u64_truncating(given.mfn().raw())]);
    let take = |op, list: &mut [Word; 1]| {
        // SAFETY: the frame is nowhere mapped.
        let done = unsafe { dom_mem_op(op, list, 0, DomId::SELF) };
        done == Ok(1)
    };
    bench.measure(
        "memory-decrease-increase",
        |_| extent.get(),
        |mut list| {
            let done = take(DomMemOp::DecreaseReservation, &mut list) && take(DomMemOp::IncreaseReservation, &mut list);
            extent.set(list);
            done
        },
    );
}

fn change(window: &Window, page: usize, entry: Pte) -> MmuUpdate<Arch> {
    request(MmuCommand::NormalPtUpdate, window.entry(page), entry.0)
}

fn requests<'a>(bench: &Bench, window: &Window, list: impl Fn(usize) -> &'a [Mfn; MANY]) {
    // SAFETY: nothing refers to the window's pages.
    bench.measure("mmu-update-0", |_| [], |none| unsafe { mmu_update(&none) } == Ok(0));
    let one = |round| [change(window, 0, writable(list(round)[0]))];
    // SAFETY: as above.
    bench.measure("mmu-update-1", one, |one| unsafe { mmu_update(&one) } == Ok(1));
    // Lists of their own, so that nothing is copied while it is measured.
    let all = |round| core::array::from_fn::<_, MANY, _>(|page| change(window, page, writable(list(round)[page])));
    let lists = [all(0), all(1)];
    let which = |round: usize| &lists[round % 2];
    // SAFETY: as above.
    bench.measure_many("mmu-update-128", MANY as u64, which, |all| unsafe { mmu_update(all) } == Ok(MANY));
    let none = core::array::from_fn::<_, MANY, _>(|page| change(window, page, Pte::NONE));
    let mapped = |round| {
        // SAFETY: as above.
        unsafe { mmu_update(which(round)) }.expect("frames of ours");
        &none
    };
    // SAFETY: as above.
    bench.measure_many("mmu-update-unmap-128", MANY as u64, mapped, |all| unsafe { mmu_update(all) } == Ok(MANY));
    let mapped = |round| {
        // SAFETY: as above.
        unsafe { write_entry(window.entry(0), writable(list(round)[0])) }.expect("a frame of ours");
        [change(window, 0, Pte::NONE)]
    };
    // SAFETY: as above.
    bench.measure("mmu-update-unmap-1", mapped, |one| unsafe { mmu_update(&one) } == Ok(1));
}

fn single_pages<'a>(bench: &Bench, window: &Window, list: impl Fn(usize) -> &'a [Mfn; MANY]) {
    let flushes = [
        ("update-va-mapping", UpdateVaFlags::empty()),
        ("update-va-invlpg", UpdateVaFlags::INVLPG),
        ("update-va-flush", UpdateVaFlags::FLUSH_TLB),
    ];
    for (name, flags) in flushes {
        let entry = |round: usize| writable(list(round)[0]);
        // SAFETY: nothing refers to the window's pages.
        unsafe { update_va_mapping(window.at, entry(1), flags) }.expect("a frame of ours");
        // SAFETY: as above.
        bench.measure(name, entry, |entry| unsafe { update_va_mapping(window.at, entry, flags) }.is_ok());
    }
}
