//! `dom_mem_op`: frames asked for and given back, within the domain's limit.
#![no_std]
#![no_main]

use proxenos_guest::abi::hypercall::DomMemOp;
use proxenos_guest::abi::mmu::{MmuCommand, UpdateVaFlags};
use proxenos_guest::abi::{DomId, Errno, GuestArch, GuestVirt, GuestWord, MachineAddr, Mfn, Pfn};
use proxenos_guest::arch::hypercall5;
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, StartInfo, Word, check, check_eq, hypercall, probe};

proxenos_guest::test_guest!(main);

/// What the machine-to-physical table says of a frame that is nobody's.
const NO_PFN: Word = if size_of::<Word>() == 4 { 0x5555_5555 } else { 0x5555_5555_5555_5555_u64 as Word };

/// What stands in frames that are given back, and in frames that we got and have looked at.
const SECRET: Word = 0x5ec2_e75e;
const SEEN: Word = 0x5ee1_5ee1;

fn main(_: &StartInfo) {
    proxenos_guest::init();
    one_by_one();
    the_limit();
    extents();
    in_use();
    not_ours();
    pointers();
    many();
}

fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

fn take(list: &mut [Word], order: u32) -> Result<usize, Errno> {
    // SAFETY: gives nothing away.
    unsafe { hypercall::dom_mem_op(DomMemOp::IncreaseReservation, list, order, DomId::SELF) }
}

fn give(list: &mut [Word], order: u32) -> Result<usize, Errno> {
    // SAFETY: the tests give away frames of their own.
    unsafe { hypercall::dom_mem_op(DomMemOp::DecreaseReservation, list, order, DomId::SELF) }
}

/// Maps a frame at a page of the test's own.
fn map(at: GuestVirt, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests map pages of their own, to which no reference exists.
    unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::INVLPG) }
}

/// Unmaps a page and gives its frame back.
#[track_caller]
fn part_with(frame: Frame) -> Word {
    let word = hypercall::frame_word(frame.mfn());
    check_eq!(map(frame.virt(), Pte::NONE), Ok(()));
    check_eq!(give(&mut [word], 0), Ok(1));
    word
}

/// Puts a new frame where one of ours was, as far as its mapping and number go.
#[track_caller]
fn settle(place: Frame, word: Word) {
    let mfn = Mfn(word.to_u64());
    check_eq!(map(place.virt(), Pte::new(mfn, PteFlags::KERNEL_RW)), Ok(()), "a frame that we got can be mapped");
    let request = memory::request(MmuCommand::MachphysUpdate, mfn.addr(), place.pfn().raw() as Word);
    // SAFETY: says which frame this is; the test alone cares.
    check_eq!(unsafe { memory::update(request) }, Ok(()), "and is ours to number");
}

fn one_by_one() {
    section("a frame is given back, and another asked for");
    let (place, spare) = (frame(), frame());
    // SAFETY: a frame of the test's own.
    unsafe { place.words().write_volatile(0x5ec2e7) };
    let old = part_with(place);
    check_eq!(memory::machine_to_phys(Mfn(old.to_u64())), Some(NO_PFN), "it has no number any more");
    check_eq!(
        map(spare.virt(), Pte::new(Mfn(old.to_u64()), PteFlags::KERNEL_RO)),
        Err(Errno::EINVAL),
        "nor is it ours"
    );
    check_eq!(give(&mut [old], 0), Ok(0), "to give back twice, for instance");
    let mut list = [0];
    check_eq!(take(&mut list, 0), Ok(1));
    settle(place, list[0]);
    if list[0] == old {
        check_eq!(probe::load(place.virt()), Some(0), "what had been in it is gone");
    }
    check!(probe::is_writable(place.virt()));
}

/// Domain 0 may have what it had at its start.
fn the_limit() {
    section("the limit");
    check_eq!(take(&mut [0], 0), Ok(0), "no more than we had");
    let places = [frame(), frame()];
    for place in places {
        part_with(place);
    }
    let mut list = [0; 4];
    check_eq!(take(&mut list, 0), Ok(2), "two frames less, two more");
    check_eq!((list[2], list[3]), (0, 0), "the rest of the list is untouched");
    for (place, word) in places.into_iter().zip(list) {
        settle(place, word);
    }
}

fn extents() {
    section("extents");
    let places: [Frame; 8] = core::array::from_fn(|_| frame());
    for place in places {
        part_with(place);
    }
    let mut list = [0];
    check_eq!(take(&mut list, 4), Ok(0), "sixteen frames are too many");
    if !check_eq!(take(&mut list, 3), Ok(1), "eight are not") {
        return;
    }
    let first = list[0];
    check_eq!(first % 8, 0, "aligned");
    check_eq!(give(&mut [first, first], 2), Ok(1), "half of it goes back, once");
    check_eq!(give(&mut [first], 3), Ok(0), "then it is no extent any more");
    check_eq!(take(&mut list, 2), Ok(1));
    let second = list[0];
    let words = (0..4).map(|i| second + i).chain((4..8).map(|i| first + i));
    for (place, word) in places.into_iter().zip(words) {
        settle(place, word);
        check!(probe::is_writable(place.virt()));
    }
    for order in [11, 32, 64, u32::MAX] {
        check_eq!(take(&mut [0], order), Ok(0), "order {order}");
        check_eq!(give(&mut [first], order), Ok(0), "order {order}");
    }
}

/// A frame that is mapped, or a table, stays ours until that ends.
fn in_use() {
    section("frames in use");
    let place = frame();
    let word = hypercall::frame_word(place.mfn());
    // SAFETY: a frame of the test's own.
    unsafe { place.words().write_volatile(7) };
    check_eq!(give(&mut [word], 0), Ok(1), "a frame that is mapped");
    check_eq!(probe::load(place.virt()), Some(7), "is mapped still");
    check_eq!(take(&mut [0], 0), Ok(0), "and counts");
    check_eq!(map(place.virt(), Pte::NONE), Ok(()));
    let mut list = [0];
    check_eq!(take(&mut list, 0), Ok(1), "with the mapping it went");
    settle(place, list[0]);

    let table = memory::tables::new_table().expect("a frame");
    let word = hypercall::frame_word(table.mfn());
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    check_eq!(give(&mut [word], 0), Ok(1), "a frame that is pinned");
    check_eq!(memory::unpin(table.mfn()), Err(Errno::EINVAL), "is not pinned any more");
    check_eq!(map(table.virt(), Pte::NONE), Ok(()));
    check_eq!(take(&mut list, 0), Ok(1));
    settle(table, list[0]);
}

fn not_ours() {
    section("frames that are not ours");
    let shared = MachineAddr(proxenos_guest::boot::start_info().shared_info.to_u64()).mfn().raw();
    let beyond = (1u64 << 36 >> 12) as Word;
    for word in [0, 0xb8, 0xfee00, shared as Word, beyond, Word::MAX] {
        check_eq!(give(&mut [word], 0), Ok(0), "{word:#x}");
    }
    let last = (0..proxenos_guest::boot::frames()).map(|pfn| memory::mfn_of(Pfn(pfn)).raw()).max().unwrap_or(0);
    let foreign = (0x101..last).filter(|&mfn| mfn != shared && memory::pfn_of_mfn(Mfn(mfn)).is_none());
    let given = foreign.map(|mfn| give(&mut [mfn as Word], 0)).filter(|&result| result != Ok(0)).count();
    // Those that this test got for some of its own are ours, and a list of numbers from the start does not know it.
    check!(given <= 16, "{given} frames that were not ours were given back");
    // SAFETY: nothing is given away.
    let of = |op: DomMemOp, id| unsafe { hypercall::dom_mem_op(op, &mut [0], 0, id) };
    check_eq!(of(DomMemOp::IncreaseReservation, DomId(77)), Err(Errno::ESRCH), "no such domain");
    check_eq!(of(DomMemOp::DecreaseReservation, DomId(0)), Ok(0), "ourselves, by number");
}

fn pointers() {
    section("lists that cannot be had");
    let call = |op: usize, at: u64, count: usize| {
        // SAFETY: the lists tried lead to no frame of ours.
        hypercall::check(unsafe { hypercall5(12, op, at as usize, count, 0, 0x7ff0) })
    };
    for op in [0, 1] {
        for (at, count) in [
            (Arch::HYPERVISOR_VIRT_START, 1),
            (Arch::MACHINE_TO_PHYS, 4),
            (0x1000, 1),
            (Arch::HYPERVISOR_VIRT_START - 4, 2),
            (0, usize::MAX),
            (0, usize::MAX / size_of::<Word>() + 1),
            (0x1000, 0),
        ] {
            check_eq!(call(op, at, count), Ok(0), "op {op}, {count} extents at {at:#x}");
        }
    }
    check_eq!(call(2, 0x1000, 0), Err(Errno::ENOSYS), "an operation that does not exist");
    // There is a frame to be had, but nowhere to say which.
    let place = frame();
    part_with(place);
    let read_only = memory::tables::new_table().expect("a frame");
    check_eq!(call(0, read_only.virt().raw(), 1), Ok(0), "a list that cannot be written");
    let mut list = [0];
    check_eq!(take(&mut list, 0), Ok(1), "the frame was not lost");
    settle(place, list[0]);
}

/// A whole list at once, of everything that is left.
fn many() {
    section("all of the domain's memory");
    let list = frame();
    let mut count = 0;
    let first = frame();
    let mut last = first;
    // SAFETY: a frame of the test's own, of words.
    let words = unsafe { core::slice::from_raw_parts_mut(list.words(), 4096 / size_of::<Word>()) };
    while count < words.len() {
        let Some(next) = memory::alloc_frame() else { break };
        words[count] = hypercall::frame_word(next.mfn());
        for index in 0..4096 / size_of::<Word>() {
            // SAFETY: a frame of the test's own.
            unsafe { next.words().add(index).write_volatile(SECRET) };
        }
        check_eq!(map(next.virt(), Pte::NONE), Ok(()));
        (last, count) = (next, count + 1);
    }
    check!(count > 256 && last.pfn() != first.pfn(), "{count} frames");
    check_eq!(give(&mut words[..count], 0), Ok(count), "{count} frames at once");
    check_eq!(take(words, 0), Ok(count), "and no more than those again");
    let (mut secrets, mut twice) = (0, 0);
    for &word in &words[..count] {
        check_eq!(map(first.virt(), Pte::new(Mfn(word.to_u64()), PteFlags::KERNEL_RW)), Ok(()));
        for index in 0..4096 / size_of::<Word>() {
            // SAFETY: mapped just now.
            let found = unsafe { first.words().add(index).read_volatile() };
            secrets += u32::from(found == SECRET);
            twice += u32::from(index == 0 && found == SEEN);
        }
        // SAFETY: mapped just now.
        unsafe { first.words().write_volatile(SEEN) };
    }
    // What loader and firmware left in memory that nobody had yet may be there: domain 0 is trusted with it.
    check_eq!(secrets, 0, "words of what had been given back");
    check_eq!(twice, 0, "frames that are there twice");
}
