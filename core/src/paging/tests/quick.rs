//! The short way of the calls that kernels make most (`crate::mmu::quick`): whatever it does must be what the way at
//! length does, request by request, and where it stops the other must go on.

use super::world::*;
use crate::addr::GuestVirt;
use crate::bounce;
use crate::domain::Arch;
use crate::hypercall::Caller;
use crate::machine::MachineMemory;
use crate::paging::Pager;
use crate::paging::fault::Page;
use crate::paging::format::bits::{self, RW};
use crate::paging::format::{FourLevel, TwoLevel};
use crate::paging::shadow::Access;
use crate::paging::user_base::NoUserBase;
use crate::preempt::{Answer, Place};
use crate::sim_hw::Mode;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, Hypercall, Selector};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What a random request does.
#[derive(Clone, Copy, Debug)]
enum Req {
    /// Writes an entry that maps a frame, with these flags besides the usual ones, into a slot of a frame.
    Map {
        table: usize,
        slot: usize,
        frame: usize,
        flags: u64,
    },
    /// Writes what is no entry.
    Junk {
        table: usize,
        slot: usize,
        value: u64,
    },
    /// The same at an address that is no entry's.
    Askew {
        table: usize,
        slot: usize,
    },
    Clear {
        table: usize,
        slot: usize,
    },
    MachPhys {
        frame: usize,
        pfn: u64,
    },
    Pin {
        frame: usize,
        level: u8,
    },
    Unpin {
        frame: usize,
    },
    NewBase {
        frame: usize,
    },
    Flush,
    FlushPage {
        page: usize,
    },
    Unknown,
}

impl Req {
    fn of(self, guest: &Guest) -> Request {
        let frame = |pfn: usize| guest.frames[pfn % FRAMES];
        match self {
            Self::Map { table, slot, frame, flags } => guest.set(guest.frames[table], slot, guest.entry(frame, flags)),
            Self::Junk { table, slot, value } => guest.set(guest.frames[table], slot, value),
            Self::Askew { table, slot } => {
                let (at, value) = guest.set(guest.frames[table], slot, guest.entry(DATA, RW));
                (at + 4, value)
            }
            Self::Clear { table, slot } => guest.set(guest.frames[table], slot, 0),
            Self::MachPhys { frame: pfn, pfn: value } => guest.machphys(frame(pfn), value),
            Self::Pin { frame: pfn, level } => pin(frame(pfn), level),
            Self::Unpin { frame: pfn } => unpin(frame(pfn)),
            Self::NewBase { frame: pfn } => new_base(frame(pfn)),
            Self::Flush => extended(MmuExtCommand::TlbFlush, 0, 0),
            Self::Unknown => (1, 0),
            Self::FlushPage { page } => extended(MmuExtCommand::Invlpg, guest.va(page).0, 0),
        }
    }
}

fn requests() -> impl Strategy<Value = Vec<Req>> {
    // Slots that do not concern the arguments' page, and the tables' own mappings.
    let slot = || prop_oneof![8 => DATA..FRAMES + 4, 1 => 0_usize..4, 1 => Just(SPARE)];
    let table = || prop_oneof![12 => Just(L1), 1 => Just(SPARE), 1 => DATA..FRAMES, 1 => 0_usize..5];
    let frame = || prop_oneof![8 => DATA..FRAMES, 2 => 0..FRAMES];
    let flags = || {
        prop_oneof![
            6 => Just(RW),
            2 => Just(0),
            2 => Just(RW | bits::D),
            1 => Just(RW | bits::PCD | bits::AVL),
            1 => Just(RW | bits::G),
            1 => Just(bits::PAT_OR_PS)
        ]
    };
    let request = prop_oneof![
        14 => (table(), slot(), frame(), flags()).prop_map(|(table, slot, frame, flags)| Req::Map {
            table, slot, frame, flags
        }),
        5 => (table(), slot()).prop_map(|(table, slot)| Req::Clear { table, slot }),
        1 => (table(), slot(), any::<u64>()).prop_map(|(table, slot, value)| Req::Junk { table, slot, value }),
        1 => (table(), slot()).prop_map(|(table, slot)| Req::Askew { table, slot }),
        2 => (frame(), 0..1000_u64).prop_map(|(frame, pfn)| Req::MachPhys { frame, pfn }),
        1 => (frame(), 1..5_u8).prop_map(|(frame, level)| Req::Pin { frame, level }),
        1 => frame().prop_map(|frame| Req::Unpin { frame }),
        3 => (0..3_usize).prop_map(|frame| Req::NewBase { frame }),
        1 => Just(Req::Flush),
        2 => (DATA..FRAMES).prop_map(|page| Req::FlushPage { page }),
        1 => Just(Req::Unknown),
    ];
    prop::collection::vec(request, 1..14)
}

/// Makes a call without trying the short way.
pub(super) fn at_length(guest: &mut Guest, number: Hypercall, args: [u64; 6]) -> u64 {
    guest.run();
    let (host, dom) = (guest.host.clone(), guest.dom.clone());
    loop {
        let mut caller = Caller { host: &*host, dom: &dom, vcpu: &mut guest.vcpu, place: Place::default() };
        let answer = match dom.arch {
            Arch::X86_32 => caller.call_at_length::<proxenos_abi::X86_32>(number, &args),
            Arch::X86_64 => caller.call_at_length::<proxenos_abi::X86_64>(number, &args),
        };
        if let Answer::Done(result) = answer {
            return if dom.arch == Arch::X86_32 { result as u32 as i32 as i64 as u64 } else { result };
        }
    }
}

/// What is in a domain's frames, but for that of the arguments.
fn contents(guest: &Guest) -> Vec<u64> {
    let words = |pfn: usize| (0..512).map(move |word| (pfn, 8 * word));
    let load = |(pfn, offset): (usize, u64)| {
        guest.host.hw.load64(crate::addr::MachineAddr(guest.frames[pfn].addr().0 + offset))
    };
    (0..FRAMES).filter(|&pfn| pfn != ARGS).flat_map(words).map(load).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// A list does what its requests do one by one at length, up to the first that is refused. (An LDT would make a
    /// difference, since each call looks anew where it lies; [`super::random`] has some.)
    #[test]
    fn a_list_does_what_its_requests_do_at_length(lists in prop::collection::vec(requests(), 1..4), wide: bool) {
        let arch = if wide { Arch::X86_64 } else { Arch::X86_32 };
        let (mut quick, mut slow) = (World::of(arch), World::of(arch));
        for list in lists {
            let list: Vec<Request> = list.iter().map(|request| request.of(quick.guest(0))).collect();
            // The arguments' page may be gone in both worlds.
            if !quick.guest(0).rescue() | !slow.guest(0).rescue() {
                break;
            }
            let done = quick.guest(0).mmu_update(&list);
            prop_assert!(quick.verdict().is_ok(), "{:#?}", quick.verdict());
            let mut expected = Done { result: OK, count: 0 };
            for &(ptr, val) in &list {
                let guest = slow.guest(0);
                if !guest.put_args(&[ptr, val]) {
                    // Where the list is read from is gone: the other may have gone on with what it had read.
                    return Ok(());
                }
                let at = guest.va(ARGS).0;
                expected.result = at_length(guest, Hypercall::MmuUpdate, [at, 1, 0, 0, 0, 0]);
                if expected.result != OK {
                    break;
                }
                expected.count += 1;
            }
            prop_assert!(slow.verdict().is_ok(), "{:#?}", slow.verdict());
            if !slow.guest(0).put_args(&[0]) {
                // Nor could the other write how many it did.
                return Ok(());
            }
            prop_assert_eq!(done, expected);
            prop_assert_eq!(quick.snapshot(), slow.snapshot());
            prop_assert_eq!(contents(quick.guest(0)), contents(slow.guest(0)));
        }
    }

    /// The same for changes of a single mapping, each flag included.
    #[test]
    fn a_mapping_changes_as_it_does_at_length(
        changes in prop::collection::vec((DATA..FRAMES + 3, 0..FRAMES, 0..4_u64, 0..7_u8), 1..12),
        wide: bool,
    ) {
        let arch = if wide { Arch::X86_64 } else { Arch::X86_32 };
        let (mut quick, mut slow) = (World::of(arch), World::of(arch));
        for (page, frame, flags, kind) in changes {
            let entry = |guest: &Guest| match kind {
                0 => 0,
                1 => guest.entry(frame, 0),
                2 => guest.entry(frame, RW | bits::G),
                3 => guest.entry(page % FRAMES, RW | bits::D | bits::AVL),
                _ => guest.entry(frame, RW),
            };
            let value = entry(quick.guest(0));
            let result = quick.guest(0).remap(page, value, flags);
            let guest = slow.guest(0);
            let args = [guest.va(page).0 >> 12, entry(guest), flags, 0, 0, 0];
            prop_assert_eq!(result, at_length(guest, Hypercall::UpdateVaMapping, args));
            prop_assert!(quick.verdict().is_ok(), "{:#?}", quick.verdict());
            prop_assert!(slow.verdict().is_ok(), "{:#?}", slow.verdict());
            prop_assert_eq!(quick.snapshot(), slow.snapshot());
            prop_assert_eq!(contents(quick.guest(0)), contents(slow.guest(0)));
        }
    }
}

/// Puts requests so that the last of them lie behind the end of a page that nothing is mapped behind.
fn list_at_the_end(guest: &mut Guest, page: usize, requests: &[Request], readable: u64) -> u64 {
    let bytes = 2 * guest.width();
    let at = guest.va(page + 1).0 - readable * bytes;
    assert_eq!(guest.remap(page + 1, 0, 2), OK);
    for (index, &(ptr, val)) in (0..readable).zip(requests) {
        let words: &[u64] = if guest.width() == 4 { &[ptr | val << 32] } else { &[ptr, val] };
        for (word, &value) in (0..).zip(words) {
            let slot = GuestVirt(at + index * bytes + 8 * word);
            guest.host.hw.guest_store(slot, value, Mode::Kernel).expect("mapped");
        }
    }
    at
}

#[test]
fn requests_before_an_unmapped_page_are_carried_out() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        for readable in 0..8 {
            let mut world = World::of(arch);
            let guest = world.guest(0);
            let (page, l1) = (DATA + 4, guest.frames[L1]);
            let list: Vec<Request> =
                (0..8).map(|slot| guest.set(l1, FRAMES + 8 + slot, guest.entry(DATA, RW))).collect();
            let at = list_at_the_end(guest, page, &list, readable);
            let done = guest.va(ARGS).offset(4088);
            assert!(guest.put_args(&[]));
            let result = guest.call(Hypercall::MmuUpdate, [at, 8, done.0, 0, 0, 0]);
            assert_eq!(result, error(Errno::EFAULT), "{arch:?} {readable}");
            assert_eq!(guest.host.hw.guest_load(done, Mode::Kernel).map(|count| count as u32), Ok(readable as u32));
            let width = guest.width();
            for slot in 0..8 {
                let at = l1.addr().0 + (FRAMES as u64 + 8 + slot) * width;
                let word = guest.host.hw.load32(crate::addr::MachineAddr(at));
                assert_eq!(word & 1 != 0, slot < readable, "{arch:?}: request {slot} of {readable}");
            }
            world.check();
        }
    }
}

#[test]
fn a_list_may_change_itself() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        // Before and behind the end of what is read at a time.
        for victim in 1..8 {
            let mut world = World::of(arch);
            let guest = world.guest(0);
            // By a plain store to the list's own page: what it changes is read after it.
            let (l1, list) = (guest.frames[L1], guest.frames[ARGS]);
            let slot = |request: usize| FRAMES + 8 + request;
            let store = guest.set(list, 2 * victim + 1, guest.entry(DATA + 1, RW));
            let rest = (1..8).map(|request| guest.set(l1, slot(request), guest.entry(DATA, RW)));
            let requests: Vec<Request> = core::iter::once(store).chain(rest).collect();
            assert_eq!(guest.mmu_update(&requests), Done { result: OK, count: 8 });
            for request in 1..8 {
                let at = l1.addr().0 + slot(request) as u64 * guest.width();
                let found = u64::from(guest.host.hw.load32(crate::addr::MachineAddr(at)));
                let wanted = guest.entry(if request == victim { DATA + 1 } else { DATA }, RW) & 0xffff_ffff;
                assert_eq!(found, wanted, "{arch:?}: request {request}, changed: {victim}");
            }
            world.check();
        }
    }
}

#[test]
fn a_list_may_unmap_itself() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        for place in 0..7 {
            let mut world = World::of(arch);
            let guest = world.guest(0);
            let l1 = guest.frames[L1];
            let mut requests: Vec<Request> =
                (0..8).map(|slot| guest.set(l1, FRAMES + 8 + slot, guest.entry(DATA, RW))).collect();
            requests[place] = guest.set(l1, ARGS, 0);
            // It is not flushed, so to go on with what was there and to find nothing are both right.
            let done = guest.mmu_update(&requests);
            assert!(done.result == OK || done.result == error(Errno::EFAULT), "{arch:?} {place}: {done:?}");
            world.check();
            assert!(world.guest(0).rescue());
            world.check();
        }
    }
}

/// What an entry of a multicall's list holds, as words.
fn call(number: Hypercall, args: [u64; 3]) -> [u64; 8] {
    [number.raw().into(), args[0], args[1], args[2], 0, 0, 0x5555, 0]
}

/// Compares the result of one of the calls whose list is in the arguments' page.
fn check_result(guest: &Guest, index: u64, wanted: u64) {
    let slot = guest.va(ARGS).offset((8 * index + 6) * guest.width());
    let mask = if guest.width() == 4 { 0xffff_ffff } else { u64::MAX };
    let found = guest.host.hw.guest_load(GuestVirt(slot.0 & !7), Mode::Kernel).expect("mapped");
    let found = if slot.0 & 4 == 0 { found } else { found >> 32 };
    assert_eq!(found & mask, wanted & mask, "{:?}: call {index}", guest.dom.arch);
}

#[test]
fn a_multicall_goes_on_where_its_short_way_stops() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let guest = world.guest(0);
        let version = call(Hypercall::XenVersion, [0; 3]);
        let remap = call(Hypercall::UpdateVaMapping, [guest.va(DATA).0 >> 12, guest.entry(DATA + 1, RW), 2]);
        let refused = call(Hypercall::UpdateVaMapping, [guest.va(DATA).0 >> 12, guest.entry(L1, RW), 0]);
        let nested = call(Hypercall::Multicall, [guest.va(ARGS).0, 1, 0]);
        let calls = [version, call(Hypercall::XenVersion, [1, 0, 0]), remap, version, nested, refused, version];
        let words: Vec<u64> = calls.iter().flatten().copied().collect();
        assert!(guest.put_args(&words));
        let at = guest.va(ARGS);
        assert_eq!(guest.call(Hypercall::Multicall, [at.0, calls.len() as u64, 0, 0, 0, 0]), OK);
        let einval = error(Errno::EINVAL);
        let expected = [0x2_0000, error(Errno::ENOSYS), OK, 0x2_0000, einval, einval, 0x2_0000];
        for (index, wanted) in (0..).zip(expected) {
            check_result(guest, index, wanted);
        }
        // None of it can be read, then some of it.
        let size = 8 * guest.width();
        for readable in [0, 2] {
            assert_eq!(guest.remap(DATA + 5, 0, 2), OK);
            let at = guest.va(DATA + 5).0 - readable * size;
            for index in 0..readable {
                let slot = GuestVirt(at + index * size);
                guest.host.hw.guest_store(slot, Hypercall::XenVersion.raw().into(), Mode::Kernel).expect("mapped");
            }
            let result = guest.call(Hypercall::Multicall, [at, 4, 0, 0, 0, 0]);
            assert_eq!(result, error(Errno::EFAULT));
            for index in 0..readable {
                let slot = at + index * size + 6 * guest.width();
                let found = guest.host.hw.guest_load(GuestVirt(slot), Mode::Kernel).expect("mapped");
                assert_eq!(found as u32, 0x2_0000);
            }
        }
        // Of the second, the number and the first argument can be read, and no more: it is not made.
        let start = guest.va(DATA + 5).0 - size - 2 * guest.width();
        let first = [Hypercall::XenVersion.raw().into(), 0];
        let second = [Hypercall::StackSwitch.raw().into(), 0x823];
        for (entry, [op, argument]) in [(start, first), (start + size, second)] {
            let words = if guest.width() == 4 { vec![op | argument << 32] } else { vec![op, argument] };
            for (index, word) in (0..).zip(words) {
                guest.host.hw.guest_store(GuestVirt(entry + 8 * index), word, Mode::Kernel).expect("mapped");
            }
        }
        let before = guest.vcpu.kernel_stack;
        assert_eq!(guest.call(Hypercall::Multicall, [start, 2, 0, 0, 0, 0]), error(Errno::EFAULT));
        assert_eq!(guest.vcpu.kernel_stack, before);
        assert_eq!(at.0 % PAGE, 0);
        world.check();
    }
}

/// Whoever is kept waiting goes the way at length: a short one does nothing then.
#[test]
fn a_short_way_waits_for_no_lock() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let guest = world.guest(0);
        guest.run();
        let pager = Pager::new(&guest.host, &guest.dom);
        let absent = (guest.va(FRAMES + 2), Access { write: false, user: false });
        let look = || match arch {
            Arch::X86_32 => pager.plain_fault::<TwoLevel>(absent.0, absent.1, Page::Absent),
            Arch::X86_64 => pager.plain_fault::<FourLevel>(absent.0, absent.1, Page::Absent),
        };
        let held = guest.dom.paging.lock();
        // A four-level guest's fault is its own without a look at anything.
        assert_eq!(look().is_none(), arch == Arch::X86_32);
        assert!(pager.switch_mode_at_once(bounce::Mode::User, |_| panic!("nothing is loaded")).is_none());
        drop(held);
        assert_eq!(look(), Some(Page::Absent));
        let switched = pager.switch_mode_at_once(bounce::Mode::User, |_| panic!("nothing is loaded"));
        assert!(matches!(switched, Some(Err(NoUserBase))), "and what it says then is the answer");
        world.check();
    }
}

/// What kernels put into a multicall when they change tasks comes to the same as it does alone.
#[test]
fn the_calls_of_a_task_switch_are_what_they_are_alone() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let guest = world.guest(0);
        const CALLS: u64 = 8;
        let (ss, sp) = (if arch == Arch::X86_64 { 0x823 } else { 0x821 }, 0x1000);
        let descriptor = guest.frames[DATA + 3].addr().0;
        let request = guest.set(guest.frames[L1], FRAMES + 2, guest.entry(DATA + 1, 0));
        let calls = [
            call(Hypercall::StackSwitch, [ss, sp, 0]),
            call(Hypercall::StackSwitch, [0x820, sp + 8, 0]),
            call(Hypercall::FpuTaskswitch, [0; 3]),
            call(Hypercall::UpdateDescriptor, [descriptor + 8, 0, 0]),
            call(Hypercall::UpdateDescriptor, [descriptor + 1, 0, 0]),
            call(Hypercall::MmuUpdate, [guest.va(ARGS).offset(CALLS * 8 * guest.width()).0, 1, 0]),
            call(Hypercall::SchedOp, [99, 0, 0]),
            call(Hypercall::StackSwitch, [ss, sp + 16, 0]),
        ];
        assert_eq!(calls.len() as u64, CALLS);
        let words: Vec<u64> = calls.iter().flatten().copied().chain([request.0, request.1]).collect();
        assert!(guest.put_args(&words));
        let at = guest.va(ARGS);
        assert_eq!(guest.call(Hypercall::Multicall, [at.0, calls.len() as u64, 0, 0, 0, 0]), OK);
        let expected = [OK, error(Errno::EPERM), OK, OK, error(Errno::EINVAL), OK, error(Errno::ENOSYS), OK];
        for (index, wanted) in (0..).zip(expected) {
            check_result(guest, index, wanted);
        }
        assert_eq!(guest.vcpu.kernel_stack, (Selector(ss as u16), GuestVirt(sp + 16)));
        assert!(guest.vcpu.fpu.guest_trap);
        world.check();
    }
}
