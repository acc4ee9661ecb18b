//! Page tables that domains have opened for writing when their turn ends: what is in them counts when they go on, and
//! nobody else sees anything of it. All domains do the same, at the same addresses where they are of one architecture.

use crate::{ends, number};
use core::hint::black_box;
use proxenos_guest::abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_guest::abi::{GuestVirt, Virq};
use proxenos_guest::memory::{self, Frame, Range, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Word, boot, check, check_eq, events, hypercall, probe, time};

const ROUNDS: usize = 120;
/// Entries that are written to in a row: enough for the table to be opened.
const ENTRIES: usize = 12;

/// Somebody else's turn, which comes by yielding, by waiting, or with a timer.
fn give_way(how: usize) {
    match how % 3 {
        0 => check_eq!(hypercall::sched_yield(), Ok(())),
        1 => {
            let until = time::system_time() + 200_000;
            check_eq!(hypercall::set_timer_op(until), Ok(()));
            events::wait_until(|| time::system_time() >= until);
            true
        }
        _ => {
            let until = time::system_time() + 300_000;
            while time::system_time() < until {
                black_box(until);
            }
            true
        }
    };
}

fn store(at: GuestVirt, value: Word) -> bool {
    // SAFETY: pages of the test's own.
    unsafe { probe::store(at, value) }
}

/// Whether the entries that lead to these tables are there. A four-level guest's table that is open is taken out of the
/// one above it, and is back when others have run; the other kind's stays.
fn are_hung_in(ranges: &[Range]) -> bool {
    ranges.iter().all(|range| tables::entry_at(range.at, 2).is_some_and(|(_, above)| above.is_present()))
}

/// Every domain's part.
pub fn part() {
    rounds();
    ends::take_leave();
}

/// Domain 0, which looks over the whole machine too.
pub fn run() {
    section("page tables that are open when a turn ends");
    rounds();
    ends::dismiss(&[1, 2]);
}

fn rounds() {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, |_| ()).expect("the timer can be bound");
    check_eq!(hypercall::vm_assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), Ok(()));
    let ranges = [Range::new(1), Range::new(2)];
    let frames = [0; 4].map(|_| memory::alloc_frame().expect("a frame"));
    let mark = number("mark") as usize;
    for (index, frame) in frames.iter().enumerate() {
        check!(store(frame.virt(), (mark + index) as Word));
    }
    let entry = |frame: Frame| Pte::new(frame.mfn(), PteFlags::KERNEL_RW);
    let (mut opened, mut closed) = (0, 0);
    for round in 0..ROUNDS {
        let frame_of = |index: usize| (index + round) % frames.len();
        // One table, or two at a time.
        let used = &ranges[..1 + round / 3 % 2];
        let write = |from: usize, to: usize, what: &dyn Fn(usize) -> Pte| {
            for index in from..to {
                used.iter().for_each(|range| _ = check!(range.write(index, what(index)), "round {round}: a store"));
            }
        };
        write(0, ENTRIES, &|index| entry(frames[frame_of(index)]));
        opened += usize::from(!are_hung_in(used));
        give_way(round);
        // (Who gives way and is alone goes on with its tables as they are.)
        closed += usize::from(are_hung_in(used));
        // On in the middle, with nothing looked at before.
        write(ENTRIES, 2 * ENTRIES, &|index| entry(frames[frame_of(index)]));
        give_way(round / 2);
        for range in used {
            for index in 0..2 * ENTRIES {
                let expected = Some((mark + frame_of(index)) as Word);
                check_eq!(probe::load(range.page(index)), expected, "round {round}: page {index}");
            }
        }
        // What was there becomes something else, which counts with the flush behind the others' turns.
        write(0, ENTRIES, &|index| entry(frames[frame_of(index + 1)]));
        give_way(round + 1);
        check_eq!(memory::flush_tlb(), Ok(()));
        for range in used {
            for index in 0..ENTRIES {
                let expected = Some((mark + frame_of(index + 1)) as Word);
                check_eq!(probe::load(range.page(index)), expected, "round {round}: page {index}, changed");
            }
        }
        write(0, 2 * ENTRIES, &|_| Pte::NONE);
        give_way(round + 2);
        check_eq!(memory::flush_tlb(), Ok(()));
        let left = used.iter().flat_map(|range| (0..2 * ENTRIES).map(|index| range.page(index)));
        check_eq!(left.filter(|page| probe::is_readable(*page)).count(), 0, "round {round}: pages that are left");
        if boot::is_initial_domain() && round % 8 == 0 {
            check_eq!(hypercall::audit(), Ok(()));
        }
    }
    check!(closed > ROUNDS / 4, "tables that were closed: {closed}");
    // Some turns end just before the look.
    check!(cfg!(target_arch = "x86") || opened > ROUNDS / 2, "tables that were open: {opened}");
    for (index, frame) in frames.iter().enumerate() {
        check_eq!(probe::load(frame.virt()), Some((mark + index) as Word), "a page of its own");
        check!(store(frame.virt(), 0));
        // All references are given back: it may become a table.
        // SAFETY: a page of the test's own.
        check_eq!(unsafe { memory::remap(*frame, PteFlags::KERNEL_RO) }, Ok(()));
        check_eq!(memory::pin(1, frame.mfn()), Ok(()));
        check_eq!(memory::unpin(frame.mfn()), Ok(()));
    }
}

/// Another domain: an entry that it may not have is in an open table when its turn is taken away, and it asks for
/// nothing.
pub fn bad() -> ! {
    proxenos_guest::init();
    check_eq!(hypercall::vm_assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), Ok(()));
    let range = Range::new(1);
    let page = memory::alloc_frame().expect("a frame");
    ends::take_leave();
    for index in 0..ENTRIES {
        check!(range.write(index, Pte::new(page.mfn(), PteFlags::KERNEL_RW)), "a good entry");
    }
    // A writable mapping of the top-level table.
    range.write(ENTRIES, Pte::new(tables::root(), PteFlags::KERNEL_RW));
    loop {
        core::hint::spin_loop();
    }
}
