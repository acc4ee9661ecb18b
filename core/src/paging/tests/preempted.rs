//! Requests that make way: at every point where one can, the audit must be content, and in the end all must be as if it
//! had never been interrupted. What runs in between may be anything.

use super::world::*;
use crate::addr::{DomId, Mfn};
use crate::domain::Arch;
use crate::frame::FrameType;
use crate::machine::GuestMemory;
use crate::paging::format::bits::{self, RW, US};
use crate::preempt::{Answer, Place};
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_abi::{Errno, Hypercall};

const SELF: u64 = DomId::SELF.0 as u64;
/// Where the calls are made, and where those of a handler that interrupts them are.
pub(super) const MAIN: Place = Place { ip: 0x1000, sp: 0x8000, entry: None };
pub(super) const HANDLER: Place = Place { ip: 0x1000, sp: 0x7f00, entry: None };

/// Makes a call until it is over; between two times something else happens. Returns its result and how often it was
/// made.
#[track_caller]
pub(super) fn make(
    world: &mut World,
    who: usize,
    place: Place,
    (number, args): (Hypercall, [u64; 6]),
    mut between: impl FnMut(&mut World, usize),
) -> (u64, usize) {
    for times in 1..5000 {
        if let Answer::Done(result) = world.guest(who).hypercall_once(number, args, place) {
            let narrow = world.guests[who].dom.arch == Arch::X86_32;
            return (if narrow { result as u32 as i32 as i64 as u64 } else { result }, times);
        }
        between(world, times);
    }
    panic!("the call never comes to an end");
}

/// Tables that hang together, the first of which is the top one.
struct Tree {
    tables: Vec<(Mfn, u8)>,
}

impl Tree {
    fn root(&self) -> Mfn {
        self.tables[0].0
    }

    fn last(&self) -> Mfn {
        self.tables[self.tables.len() - 1].0
    }
}

impl World {
    /// Gets a domain frames and writes a tree into them, some of its tables in two places. What is to be its last entry
    /// can be spoiled.
    fn plant(&mut self, who: usize, spoil: u64) -> Tree {
        let guest = self.guest(who);
        let levels: &[u8] = if guest.top_level() == 2 { &[2, 1, 1, 1, 1, 1] } else { &[4, 3, 3, 2, 2, 2, 1, 1, 1, 1] };
        let mut tables = Vec::new();
        for &level in levels {
            assert!(guest.put_args(&[0]));
            assert_eq!(guest.call(Hypercall::DomMemOp, [0, guest.va(ARGS).0, 1, 0, SELF, 0]), 1);
            let mut word = [0; 8];
            guest.host.hw.copy_from_guest(guest.va(ARGS), &mut word).expect("mapped");
            tables.push((Mfn(u64::from_le_bytes(word) & 0xffff_ffff), level));
        }
        let to = |index: usize| tables[index].0.addr().0 | guest.flags(RW) | US;
        let at = |index: usize, slot: usize, value: u64| guest.set(tables[index].0, slot, value);
        let (region, top) = match guest.dom.arch {
            Arch::X86_32 => (0x300, guest.entry(L1, RW) | US),
            Arch::X86_64 => ((guest.base() >> 39 & 511) as usize, guest.entry(3, RW)),
        };
        let mut stores = alloc::vec![at(0, region, top)];
        let lowest = match guest.dom.arch {
            Arch::X86_32 => {
                stores.extend((1..6).map(|l1| at(0, 3 * l1, to(l1))));
                stores.push(at(0, 40, to(2)));
                // The directory shows itself twice, and the current one.
                let itself = tables[0].0.addr().0 | guest.flags(0) | US;
                stores.extend([at(0, 50, itself), at(0, 55, guest.entry(TOP, 0) | US), at(0, 60, itself)]);
                1..6
            }
            Arch::X86_64 => {
                stores.extend([at(0, 1, to(1)), at(0, 300, to(2)), at(1, 0, to(3)), at(1, 7, to(4)), at(2, 3, to(5))]);
                stores.extend([at(2, 4, to(4)), at(3, 0, to(6)), at(3, 1, to(7)), at(4, 9, to(8)), at(5, 511, to(9))]);
                stores.extend([at(5, 2, to(6)), at(0, 301, to(1))]);
                6..10
            }
        };
        for l1 in lowest.clone() {
            stores.push(at(l1, 5, guest.entry(DATA + l1, RW)));
            stores.push(at(l1, 6, guest.entry(DATA + 1, 0)));
        }
        stores.push(at(lowest.end - 1, 400, guest.entry(DATA, RW) | spoil));
        for chunk in stores.chunks(16) {
            assert_eq!(self.guest(who).mmu_update(chunk).count as usize, chunk.len());
        }
        self.check();
        Tree { tables }
    }

    /// The arguments of an `mmu_update` of requests that are put into memory for it.
    pub(super) fn list(&mut self, who: usize, requests: &[Request]) -> (Hypercall, [u64; 6]) {
        let words: Vec<u64> = requests.iter().flat_map(|&(ptr, val)| [ptr, val]).collect();
        let guest = self.guest(who);
        assert!(guest.put_args(&words));
        let at = guest.va(ARGS).0;
        (Hypercall::MmuUpdate, [at, requests.len() as u64, at + 4088, 0, 0, 0])
    }

    fn settled(&self) {
        for guest in &self.guests {
            assert!(!guest.dom.is_unsettled(), "nothing is left half done");
        }
    }
}

/// Does the same in two worlds, in one of which every `nth` look at the clock makes the call make way; what is
/// returned, and what is left, must be the same.
#[track_caller]
fn same(prepare: impl Fn(&mut World) -> Tree, call: impl Fn(&mut World, &Tree) -> (Hypercall, [u64; 6])) -> usize {
    let mut most = 0;
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut calm = World::of(arch);
        let tree = prepare(&mut calm);
        let what = call(&mut calm, &tree);
        let (expected, once) = make(&mut calm, 1, MAIN, what, |_, _| ());
        assert_eq!(once, 1);
        calm.check();
        let wanted = calm.snapshot();
        for nth in 1..12 {
            let mut world = World::of(arch);
            let tree = prepare(&mut world);
            let what = call(&mut world, &tree);
            world.host.hw.preempt_every(nth);
            let (result, times) = make(&mut world, 1, MAIN, what, |world, _| {
                world.check();
            });
            world.host.hw.preempt_every(0);
            assert_eq!(result, expected, "{arch:?}, every {nth}th look");
            world.check();
            world.settled();
            assert!(world.guests[1].vcpu.unfinished.is_empty());
            assert_eq!(world.snapshot(), wanted, "{arch:?}, every {nth}th look");
            most = most.max(times);
        }
    }
    most
}

#[test]
fn a_tree_is_pinned_in_many_goes() {
    let times = same(|world| world.plant(1, 0), |world, tree| world.list(1, &[pin(tree.root(), tree.tables[0].1)]));
    assert!(times > 10, "{times}");
}

#[test]
fn a_tree_that_is_bad_at_its_end_is_refused_and_nothing_is_left() {
    let times = same(
        |world| world.plant(1, bits::G),
        |world, tree| world.list(1, &[pin(tree.root(), tree.tables[0].1), pin(tree.last(), 1)]),
    );
    assert!(times > 10, "{times}");
}

#[test]
fn a_tree_is_unpinned_in_many_goes() {
    let times = same(
        |world| {
            let tree = world.plant(1, 0);
            assert_eq!(world.guest(1).request(pin(tree.root(), tree.tables[0].1)), OK);
            tree
        },
        |world, tree| world.list(1, &[unpin(tree.root()), pin(tree.last(), 1)]),
    );
    assert!(times > 10, "{times}");
}

#[test]
fn bases_come_and_go_in_many_goes() {
    let times = same(
        |world| world.plant(1, 0),
        |world, tree| {
            let top = world.guests[1].frames[TOP];
            let second = world.guests[1].frames[SECOND_TOP];
            world.list(1, &[new_base(tree.root()), new_base(top), new_base(second), unpin(top), new_base(tree.root())])
        },
    );
    assert!(times > 20, "{times}");
}

#[test]
fn entries_above_the_lowest_level_bring_and_drop_whole_trees() {
    same(
        |world| world.plant(1, 0),
        |world, tree| {
            let top = world.guests[1].frames[TOP];
            let guest = &world.guests[1];
            let below = tree.tables[1].0.addr().0 | guest.flags(RW) | US;
            let set = |slot, value| guest.set(top, slot, value);
            let requests =
                [set(9, below), set(10, below), set(9, 0), set(10, below | bits::PCD), set(10, 0), set(9, below)];
            world.list(1, &requests)
        },
    );
}

#[test]
fn a_list_stops_where_it_would_have_stopped() {
    same(
        |world| world.plant(1, 0),
        |world, tree| {
            let guest = &world.guests[1];
            let (l1, root, level) = (guest.frames[L1], tree.root(), tree.tables[0].1);
            let map = |slot: usize, rw| guest.set(l1, FRAMES + slot, guest.entry(DATA + slot, rw));
            let mut requests: Vec<Request> = (1..30).map(|i| map(1 + i % 5, if i % 3 == 0 { RW } else { 0 })).collect();
            requests.extend([pin(root, level), pin(root, level), map(1, RW)]);
            world.list(1, &requests)
        },
    );
}

#[test]
fn a_foreign_domain_is_remembered() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        for nth in 1..6 {
            let mut world = World::of(arch);
            let tree = world.plant(1, 0);
            let what = world.list(0, &[foreign(DomId(1)), pin(tree.root(), tree.tables[0].1), unpin(tree.root())]);
            world.host.hw.preempt_every(nth);
            let (result, times) = make(&mut world, 0, MAIN, what, |world, _| {
                world.check();
            });
            assert_eq!(result, OK);
            assert!(times > 2);
            world.settled();
        }
    }
}

#[test]
fn frames_are_taken_and_given_back_in_many_goes() {
    let times = same(
        |world| {
            let tree = world.plant(1, 0);
            assert_eq!(world.guest(1).request(pin(tree.root(), tree.tables[0].1)), OK);
            tree
        },
        |world, tree| {
            let mut words: Vec<u64> = tree.tables.iter().map(|(mfn, _)| mfn.0).collect();
            // Once more, which is once too often.
            words.push(words[0]);
            let guest = world.guest(1);
            assert!(guest.put_args(&words));
            (Hypercall::DomMemOp, [1, guest.va(ARGS).0, words.len() as u64, 0, SELF, 0])
        },
    );
    assert!(times > 10, "{times}");
    same(
        |world| world.plant(1, 0),
        |world, _| {
            let guest = world.guest(1);
            assert!(guest.put_args(&[0; 50]));
            (Hypercall::DomMemOp, [0, guest.va(ARGS).0, 50, 0, SELF, 0])
        },
    );
}

#[test]
fn a_multicall_goes_on_within_the_call_that_made_way() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut results = Vec::new();
        for nth in [0, 1, 2, 3, 5, 8] {
            let mut world = World::of(arch);
            let tree = world.plant(1, 0);
            let guest = world.guest(1);
            // The list of requests is in the second half of the page.
            let half = guest.va(ARGS).offset(2048).0;
            let (root, level) = (tree.root(), tree.tables[0].1);
            let requests = [pin(root, level), unpin(root), pin(root, level)];
            let words_before = 2048 / guest.width() as usize;
            let mut words = alloc::vec![0; words_before];
            let update = u64::from(Hypercall::MmuUpdate.raw());
            let version = u64::from(Hypercall::XenVersion.raw());
            let calls = [
                [update, half, 3, 0, 0, 0, 0, 0],
                [version, 0, 0, 0, 0, 0, 0, 0],
                // The same call once more: the first request fails now.
                [update, half, 3, 0, 0, 0, 0, 0],
                [update, half, 1, 0, 0, 0, 0, 0],
                [version, 0, 0, 0, 0, 0, 0, 0],
            ];
            for (slot, word) in words.iter_mut().zip(calls.iter().flatten()) {
                *slot = *word;
            }
            words.extend(requests.iter().flat_map(|&(ptr, val)| [ptr, val]));
            assert!(guest.put_args(&words));
            let at = guest.va(ARGS);
            world.host.hw.preempt_every(nth);
            let what = (Hypercall::Multicall, [at.0, calls.len() as u64, 0, 0, 0, 0]);
            let (result, times) = make(&mut world, 1, MAIN, what, |world, _| {
                world.check();
            });
            assert_eq!((result, times > 1), (OK, nth != 0));
            world.settled();
            assert!(world.guests[1].vcpu.unfinished.is_empty());
            world.host.hw.preempt_every(0);
            let mut list = alloc::vec![0; calls.len() * 8 * world.guests[1].width() as usize];
            world.host.hw.copy_from_guest(at, &mut list).expect("mapped");
            results.push((list, world.snapshot()));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn what_nobody_comes_back_for_is_in_nobodys_way() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        for first in 1..25 {
            let mut world = World::of(arch);
            let tree = world.plant(1, 0);
            let before = world.snapshot();
            let (root, level) = (tree.root(), tree.tables[0].1);
            let what = world.list(1, &[pin(root, level)]);
            world.host.hw.preempt_every(first);
            let answer = world.guest(1).hypercall_once(what.0, what.1, MAIN);
            world.check();
            if answer != Answer::Again {
                break;
            }
            assert!(world.guests[1].dom.is_unsettled());
            // The frames are wanted for something else, and are to be had.
            let guest = &world.guests[1];
            let entry = root.addr().0 | guest.flags(RW);
            let map = (Hypercall::UpdateVaMapping, [guest.va(FRAMES + 1).0 >> 12, entry, 2, 0, 0, 0]);
            let (result, _) = make(&mut world, 1, HANDLER, map, |world, _| {
                world.check();
            });
            assert_eq!(result, OK);
            world.settled();
            // Then the call cannot go on; it is refused as it would be had it not begun before.
            let (result, _) = make(&mut world, 1, MAIN, what, |_, _| ());
            assert_eq!(result, error(Errno::EINVAL));
            world.host.hw.preempt_every(0);
            assert_eq!(world.guest(1).remap(FRAMES + 1, 0, 2), OK);
            world.check();
            assert_eq!(world.snapshot(), before);
        }
    }
}

#[test]
fn another_call_for_the_same_tables_goes_on_where_the_first_made_way() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let tree = world.plant(1, 0);
        let (root, level) = (tree.root(), tree.tables[0].1);
        let what = world.list(1, &[pin(root, level)]);
        world.host.hw.preempt_every(7);
        assert_eq!(world.guest(1).hypercall_once(what.0, what.1, MAIN), Answer::Again);
        world.host.hw.preempt_every(0);
        assert_eq!(world.guest(1).hypercall_once(what.0, what.1, HANDLER), Answer::Done(OK));
        world.check();
        assert_eq!(world.guest(1).type_of(root), (FrameType::table(level), 1));
        // The first finds it done.
        let (result, _) = make(&mut world, 1, MAIN, what, |_, _| ());
        assert_eq!(result, error(Errno::EINVAL), "pinned already");
        world.check();
    }
}

#[test]
fn nothing_can_be_done_with_a_table_that_is_half_one() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let tree = world.plant(1, 0);
        let (root, level) = (tree.root(), tree.tables[0].1);
        let what = world.list(1, &[pin(root, level)]);
        world.host.hw.preempt_every(9);
        assert_eq!(world.guest(1).hypercall_once(what.0, what.1, MAIN), Answer::Again);
        world.host.hw.preempt_every(0);
        let info = world.host.frames.info(root).expect("RAM");
        assert!(info.type_word().partial().is_some());
        // Another domain cannot have it, nor can anybody map it writable meanwhile, whoever asks.
        let value = root.addr().0 | world.guests[0].flags(RW);
        let page = world.guests[0].va(FRAMES + 1).0 >> 12;
        let args = [page, value, 0, 1, 0, 0];
        assert_eq!(world.guest(0).call(Hypercall::UpdateVaMappingOtherdomain, args), error(Errno::EINVAL));
        assert!(info.type_word().partial().is_some(), "another domain's request undoes nothing");
        assert_eq!(world.guest(1).mmu_update(&[foreign(DomId(1))]).result, error(Errno::EINVAL));
        world.check();
    }
}

#[test]
fn a_domain_is_taken_down_in_many_goes() {
    use crate::preempt::Poll;
    use crate::teardown::Teardown;
    for arch in [Arch::X86_32, Arch::X86_64] {
        for nth in [0, 1, 3, 10] {
            let mut world = World::of(arch);
            let (free, hypervisor) = (world.check().free, world.check().hypervisor);
            let tree = world.plant(1, 0);
            assert_eq!(world.guest(1).request(pin(tree.root(), tree.tables[0].1)), OK);
            // Descriptor tables, a pin that is half made, and a frame that another domain maps.
            assert_eq!(world.guest(1).remap(DATA + 11, 0, 2), OK);
            let gdt = world.guests[1].frames[DATA + 11].0;
            assert!(world.guest(1).put_args(&[gdt]));
            let at = world.guests[1].va(ARGS).0;
            assert_eq!(world.guest(1).call(Hypercall::SetGdt, [at, 512, 0, 0, 0, 0]), OK);
            let second = world.plant(1, 0);
            let what = world.list(1, &[pin(second.root(), second.tables[0].1)]);
            world.host.hw.preempt_every(4);
            assert_eq!(world.guest(1).hypercall_once(what.0, what.1, MAIN), Answer::Again);
            world.host.hw.preempt_every(0);
            let theirs = world.guests[1].frames[DATA].addr().0 | world.guests[0].flags(RW);
            let page = world.guests[0].va(FRAMES + 1).0 >> 12;
            assert_eq!(world.guest(0).call(Hypercall::UpdateVaMappingOtherdomain, [page, theirs, 0, 1, 0, 0]), OK);
            if arch == Arch::X86_32 {
                // Two directories keep each other.
                let guest = world.guest(1);
                let there = tree.root().addr().0 | guest.flags(0) | US;
                let requests = [guest.set(guest.frames[TOP], 70, there)];
                assert_eq!(guest.mmu_update(&requests).result, OK);
            }
            // Its CPU leaves it; then it goes.
            world.guests[1].run();
            world.host.hw.leave();
            world.host.hw.preempt_every(nth);
            let (mut teardown, mut goes) = (Teardown::Begun, 0);
            while teardown != Teardown::Done {
                let guest = world.guest(1);
                let (host, dom) = (guest.host.clone(), guest.dom.clone());
                teardown.go_on(&host, &dom, &mut guest.vcpu.segments, &mut Poll::begin());
                world.check();
                goes += 1;
                assert!(goes < 5000, "it never comes to an end");
            }
            assert_eq!(goes > 10, nth != 0, "{goes}");
            world.host.hw.preempt_every(0);
            let pages = |world: &World| world.guests[1].dom.total_pages.load(core::sync::atomic::Ordering::Relaxed);
            assert_eq!(pages(&world), 1, "what another domain maps");
            assert_eq!(world.guest(0).remap(FRAMES + 1, 0, 2), OK);
            assert_eq!(pages(&world), 0);
            let after = world.check();
            assert_eq!(after.hypervisor, hypervisor);
            assert!(after.free >= free + FRAMES as u64, "{} of {free}", after.free);
        }
    }
}

/// What a handler does.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Nothing,
    Pin(usize),
    Unpin(usize),
    Map(usize, bool),
    Store(usize, usize),
    GiveBack(usize),
    Clear(usize, usize),
    /// Hangs the root, as if it were an L1 table, into the directory that is the base at first.
    Show(usize),
    /// Writes to a table itself: to change nothing, or to clear an entry.
    Write(usize, usize, bool),
}

fn deed() -> impl Strategy<Value = Deed> {
    let table = || 0..10usize;
    prop_oneof![
        4 => Just(Deed::Nothing),
        2 => table().prop_map(Deed::Pin),
        2 => table().prop_map(Deed::Unpin),
        2 => (table(), any::<bool>()).prop_map(|(table, writable)| Deed::Map(table, writable)),
        1 => (table(), table()).prop_map(|(table, slot)| Deed::Store(table, slot)),
        1 => table().prop_map(Deed::GiveBack),
        1 => (table(), 0..512usize).prop_map(|(table, slot)| Deed::Clear(table, slot)),
        1 => (60..80usize).prop_map(Deed::Show),
        2 => (table(), 4..8usize, any::<bool>()).prop_map(|(table, slot, clear)| Deed::Write(table, slot, clear)),
    ]
}

impl World {
    fn perform_deed(&mut self, tree: &Tree, deed: Deed) {
        let table = |index: usize| tree.tables[index % tree.tables.len()];
        let guest = &self.guests[1];
        // A page of its own for arguments: the interrupted call reads its list again.
        let requests: Vec<Request> = match deed {
            Deed::Nothing => return,
            Deed::Pin(index) => alloc::vec![pin(table(index).0, table(index).1)],
            Deed::Unpin(index) => alloc::vec![unpin(table(index).0)],
            Deed::Store(index, slot) => {
                alloc::vec![guest.set(table(index).0, slot, table(slot).0.addr().0 | guest.flags(RW) | US)]
            }
            Deed::Clear(index, slot) => alloc::vec![guest.set(table(index).0, slot, 0)],
            Deed::Show(slot) => {
                alloc::vec![guest.set(guest.frames[TOP], slot, tree.root().addr().0 | guest.flags(0) | US)]
            }
            Deed::Map(..) | Deed::GiveBack(_) => Vec::new(),
            Deed::Write(index, slot, clear) => {
                self.perform_deed(tree, Deed::Map(index, false));
                let guest = &self.guests[1];
                let value = if clear { 0 } else { guest.entry(DATA + 1, 0) };
                for _ in 0..7 {
                    let _ = guest.write(FRAMES + 1, slot, value);
                }
                return;
            }
        };
        let at = guest.va(DATA + 2);
        let width = guest.width() as usize;
        let write = |words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes().into_iter().take(width)).collect();
            guest.run();
            guest.host.hw.copy_to_guest(at, &bytes).is_ok()
        };
        let what = match deed {
            Deed::Map(index, writable) => {
                let entry = table(index).0.addr().0 | guest.flags(if writable { RW } else { 0 });
                (Hypercall::UpdateVaMapping, [guest.va(FRAMES + 1).0 >> 12, entry, 2, 0, 0, 0])
            }
            Deed::GiveBack(index) => {
                if !write(&[table(index).0.0]) {
                    return;
                }
                (Hypercall::DomMemOp, [1, at.0, 1, 0, SELF, 0])
            }
            _ => {
                let words: Vec<u64> = requests.iter().flat_map(|&(ptr, val)| [ptr, val]).collect();
                if !write(&words) {
                    return;
                }
                (Hypercall::MmuUpdate, [at.0, requests.len() as u64, 0, 0, 0, 0])
            }
        };
        let _ = make(self, 1, HANDLER, what, |world, _| {
            world.check();
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever handlers do between the goes of a call, it comes to an end, and at every point all invariants hold.
    #[test]
    fn handlers_may_do_anything(
        wide in any::<bool>(),
        spoil in prop_oneof![Just(0), Just(bits::G)],
        nth in 1..9usize,
        pinned in any::<bool>(),
        assisted in any::<bool>(),
        deeds in proptest::collection::vec(deed(), 1..24),
    ) {
        let arch = if wide { Arch::X86_64 } else { Arch::X86_32 };
        let mut world = World::of(arch);
        let tree = world.plant(1, spoil);
        let (root, level) = (tree.root(), tree.tables[0].1);
        if assisted {
            world.guest(1).assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables);
        }
        if pinned {
            let _ = world.guest(1).request(pin(root, level));
        }
        let what = world.list(1, &[pin(root, level), unpin(root), pin(root, level), new_base(root), unpin(root)]);
        world.host.hw.preempt_every(nth);
        let (_, _) = make(&mut world, 1, MAIN, what, |world, times| {
            world.check();
            if let Some(&deed) = deeds.get(times - 1) {
                world.perform_deed(&tree, deed);
                world.check();
            }
        });
        world.host.hw.preempt_every(0);
        world.check();
        // With one refusal, whatever was left half done is gone.
        let _ = world.guest(1).mmu_update(&[unpin(Mfn(0x1f0))]);
        world.check();
        world.settled();
    }
}
