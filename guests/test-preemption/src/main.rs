//! Long requests make way for events, go on where they were, and end as if nothing had been.
//!
//! A timer that each event sets anew fires every millisecond. A request that lasts for tens of them must be interrupted
//! more than once: were events held back until its end, there would be one. What handlers do meanwhile are hypercalls
//! as well.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use proxenos_guest::abi::hypercall::MulticallEntry;
use proxenos_guest::abi::mmu::{MmuCommand, MmuUpdate, UpdateVaFlags};
use proxenos_guest::abi::{Errno, GuestVirt, Mfn, Port, Virq};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, StartInfo, Word, check, check_eq, events, hypercall, probe, time};

proxenos_guest::test_guest!(main);

/// Requests of the long list.
const REQUESTS: usize = 200_000;
/// Calls of the long multicall.
const CALLS: usize = 1_000_000;
/// Tables of the lowest level in the tree. All their entries map one frame, which can be mapped writable 2^18 - 1
/// times.
const TABLES: usize = 256_000 / (4096 / size_of::<Word>());
/// Time between two events.
const EVERY_NS: u64 = 1_000_000;
/// Where things are mapped that the SDK does not map, from the base of its mapping.
const WINDOW: u64 = 512 << 20;

static EVENTS: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static RUNNING: AtomicBool = AtomicBool::new(false);
/// A frame whose number the handler changes, by its machine number.
static PLAYGROUND: AtomicU32 = AtomicU32::new(0);

fn on_timer(_: Port) {
    if !RUNNING.load(Ordering::Relaxed) {
        return;
    }
    let count = EVENTS.fetch_add(1, Ordering::Relaxed) + 1;
    let frame = Mfn(PLAYGROUND.load(Ordering::Relaxed).into());
    let number = |value| memory::request(MmuCommand::MachphysUpdate, frame.addr(), value);
    let requests = [number(1), number(2), number(count as Word)];
    // SAFETY: says which frame that is; nobody else asks.
    let done = unsafe { hypercall::mmu_update(&requests) };
    let good = done == Ok(3) && memory::machine_to_phys(frame) == Some(count as Word);
    FAILED.fetch_add(u32::from(!good), Ordering::Relaxed);
    FAILED.fetch_add(u32::from(time::set_timer_in(EVERY_NS).is_err()), Ordering::Relaxed);
}

/// Does something long; events must come in its midst.
#[track_caller]
fn interrupted<R>(what: &str, work: impl FnOnce() -> R) -> R {
    EVENTS.store(0, Ordering::Relaxed);
    FAILED.store(0, Ordering::Relaxed);
    RUNNING.store(true, Ordering::SeqCst);
    check_eq!(time::set_timer_in(EVERY_NS), Ok(()));
    let result = work();
    let events = EVENTS.load(Ordering::SeqCst);
    RUNNING.store(false, Ordering::SeqCst);
    check!(events >= 2, "{what}: {events} events in its midst");
    check_eq!(FAILED.load(Ordering::Relaxed), 0, "{what}: hypercalls of handlers that failed");
    result
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    let port = events::handle_virq(Virq::Timer, on_timer).expect("the timer can be bound");
    PLAYGROUND.store(frame().mfn().raw() as u32, Ordering::Relaxed);
    long_list();
    long_multicall();
    trees();
    events::mask(port);
}

fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

/// Maps one frame at so many pages in a row; returns the first address.
fn repeat(frame: Frame, pages: usize) -> GuestVirt {
    let first = GuestVirt(memory::virt_base().raw() + WINDOW);
    for page in 0..pages as u64 {
        let at = GuestVirt(first.raw() + 4096 * page);
        tables::ensure_l1(at).expect("frames for page tables");
        let entry = Pte::new(frame.mfn(), PteFlags::KERNEL_RW);
        // SAFETY: addresses that nobody else uses.
        let mapped = unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::INVLPG) };
        if mapped.is_err() {
            check_eq!(mapped, Ok(()), "mapping {at:#x}");
        }
    }
    first
}

fn long_list() {
    section("a list of 200,000 requests");
    let (list, page) = (frame(), frame());
    let per_frame = 4096 / size_of::<MmuUpdate<Arch>>();
    let (entry, _) = memory::entry_of(page.virt()).expect("mapped");
    // The page becomes read-only and writable in turn, and writable in the end.
    let flags = |index: usize| if index.is_multiple_of(2) { PteFlags::KERNEL_RO } else { PteFlags::KERNEL_RW };
    for index in 0..per_frame {
        let request = memory::request(MmuCommand::NormalPtUpdate, entry, Pte::new(page.mfn(), flags(index)).0);
        // SAFETY: within the frame.
        unsafe { list.words().cast::<MmuUpdate<Arch>>().add(index).write_unaligned(request) };
    }
    let first = repeat(list, REQUESTS.div_ceil(per_frame));
    // SAFETY: mapped just now, and long enough.
    let requests = unsafe { core::slice::from_raw_parts(first.raw() as usize as *const MmuUpdate<Arch>, REQUESTS) };
    // SAFETY: the page is the test's own.
    let done = interrupted("the list", || unsafe { hypercall::mmu_update(requests) });
    check_eq!(done, Ok(REQUESTS));
    check!(probe::is_writable(page.virt()), "the last request counts");
    // One that is bad, seen first at the end.
    let bad = (REQUESTS - 1) % per_frame;
    let refused = Pte::new(page.mfn(), PteFlags::KERNEL_RW).with(PteFlags::GLOBAL);
    let request = memory::request(MmuCommand::NormalPtUpdate, entry, refused.0);
    let last = memory::alloc_frame().expect("a frame");
    // SAFETY: frames of the test's own.
    unsafe {
        core::ptr::copy_nonoverlapping(list.words(), last.words(), 4096 / size_of::<Word>());
        last.words().cast::<MmuUpdate<Arch>>().add(bad).write_unaligned(request);
        let at = GuestVirt(first.raw() + ((REQUESTS - 1) / per_frame * 4096) as u64);
        check_eq!(
            memory::update_va_mapping(at, Pte::new(last.mfn(), PteFlags::KERNEL_RW), UpdateVaFlags::INVLPG),
            Ok(())
        );
    }
    // SAFETY: the page is the test's own.
    let done = interrupted("the list with a bad end", || unsafe { hypercall::mmu_update(requests) });
    check_eq!(done, Err((Errno::EINVAL, REQUESTS - 1)));
}

fn long_multicall() {
    section("a multicall of 1,000,000");
    let list = frame();
    let per_frame = 4096 / size_of::<MulticallEntry<Arch>>();
    // xen_version, in places with an argument that it refuses.
    for index in 0..per_frame {
        let mut entry = [0; 8];
        entry[0] = 17;
        entry[1] = Word::from(index.is_multiple_of(5));
        // SAFETY: within the frame.
        unsafe { list.words().cast::<[Word; 8]>().add(index).write(entry) };
    }
    let first = repeat(list, CALLS.div_ceil(per_frame));
    // SAFETY: mapped just now, long enough; all parts of it are the same frame, which nobody else has a reference to.
    let calls = unsafe { core::slice::from_raw_parts_mut(first.raw() as usize as *mut MulticallEntry<Arch>, CALLS) };
    // SAFETY: xen_version does nothing.
    check_eq!(interrupted("the multicall", || unsafe { hypercall::multicall(calls) }), Ok(()));
    let wrong = (0..per_frame)
        .filter(|&index| {
            // SAFETY: within the frame.
            let entry = unsafe { list.words().cast::<[Word; 8]>().add(index).read_volatile() };
            let expected = if index.is_multiple_of(5) { (Errno::ENOSYS.to_result() as u64) as Word } else { 0x2_0000 };
            entry[6] != expected
        })
        .count();
    check_eq!(wrong, 0, "results");
}

/// A tree of many tables is pinned and unpinned.
fn trees() {
    section("a tree of hundreds of tables");
    let target = frame();
    let entries = 4096 / size_of::<Word>();
    let mut upper = [None::<Frame>; 3];
    let levels = proxenos_guest::arch::LEVELS as usize;
    for table in &mut upper[..levels - 1] {
        *table = Some(frame());
    }
    let level_2 = upper[0].expect("there is one");
    let mut slot = 0;
    let set = |table: Frame, slot: usize, entry: Pte| {
        // SAFETY: a frame of the test's own, which is no table yet.
        unsafe { table.words().add(slot).write_volatile(entry.0) }
    };
    while slot < TABLES {
        let table = frame();
        for index in 0..entries {
            set(table, index, Pte::new(target.mfn(), PteFlags::KERNEL_RW));
        }
        // SAFETY: a frame of the test's own.
        check_eq!(unsafe { memory::remap(table, PteFlags::KERNEL_RO) }, Ok(()));
        set(level_2, slot, Pte::new(table.mfn(), PteFlags::TABLE));
        slot += 1;
    }
    for level in 1..levels - 1 {
        let (below, table) = (upper[level - 1].expect("there is one"), upper[level].expect("there is one"));
        set(table, 5, Pte::new(below.mfn(), PteFlags::TABLE));
    }
    for table in upper.iter().flatten() {
        // SAFETY: frames of the test's own.
        check_eq!(unsafe { memory::remap(*table, PteFlags::KERNEL_RO) }, Ok(()));
    }
    let top = upper[levels - 2].expect("there is one");
    let level = proxenos_guest::arch::LEVELS;
    for _ in 0..2 {
        check_eq!(interrupted("pinning", || memory::pin(level, top.mfn())), Ok(()));
        check_eq!(memory::pin(level, top.mfn()), Err(Errno::EINVAL), "it is pinned");
        // SAFETY: refused.
        check_eq!(unsafe { memory::remap(top, PteFlags::KERNEL_RW) }, Err(Errno::EINVAL), "and a table");
        check_eq!(interrupted("unpinning", || memory::unpin(top.mfn())), Ok(()));
        check_eq!(memory::unpin(top.mfn()), Err(Errno::EINVAL), "it is not pinned any more");
    }
    // The last table's last entry is one that cannot be: the whole tree is refused, and nothing is left of it.
    // SAFETY: no table any more.
    check_eq!(unsafe { memory::remap(level_2, PteFlags::KERNEL_RW) }, Ok(()));
    set(level_2, entries / 2 + 1, Pte::new(target.mfn(), PteFlags::TABLE).with(PteFlags::GLOBAL));
    // SAFETY: as above.
    check_eq!(unsafe { memory::remap(level_2, PteFlags::KERNEL_RO) }, Ok(()));
    let refused = interrupted("pinning what is no tree", || memory::pin(level, top.mfn()));
    check_eq!(refused, Err(Errno::EINVAL));
    for table in upper.iter().flatten() {
        // SAFETY: frames of the test's own.
        check_eq!(unsafe { memory::remap(*table, PteFlags::KERNEL_RW) }, Ok(()), "nothing holds it");
    }
    check!(probe::is_writable(target.virt()));
}
