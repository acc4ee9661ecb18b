//! How much is done between two looks at the clock: of long lists and large extents a part.

use super::preempted::{HANDLER, MAIN, make};
use super::world::*;
use crate::addr::{DomId, MachineAddr, Mfn};
use crate::domain::Arch;
use crate::frame::Condition;
use crate::machine::{GuestMemory, MachineMemory};
use crate::paging::format::bits::{D, RW, US};
use crate::paging::partial::followed;
use crate::paging::writable::WINDOWS;
use crate::preempt::Answer;
use alloc::vec::Vec;
use proxenos_abi::{Errno, Hypercall};

const SELF: u64 = DomId::SELF.0 as u64;

impl World {
    /// Frames that a domain asks for, so many extents of 2^`order` of them: the first of each.
    fn more(&mut self, who: usize, extents: usize, order: u64) -> Vec<Mfn> {
        let guest = self.guest(who);
        assert!(guest.put_args(&[0]));
        let at = guest.va(ARGS);
        let take = |guest: &mut Guest| {
            assert_eq!(guest.call(Hypercall::DomMemOp, [0, at.0, 1, order, SELF, 0]), 1);
            let mut word = [0; 8];
            guest.host.hw.copy_from_guest(at, &mut word).expect("mapped");
            Mfn(u64::from_le_bytes(word) & 0xffff_ffff)
        };
        (0..extents).map(|_| take(self.guest(who))).collect()
    }

    /// As [`list`](World::list), of one request, where the list of a call that has made way stays as it is.
    fn list_elsewhere(&mut self, who: usize, (ptr, val): Request) -> (Hypercall, [u64; 6]) {
        let guest = self.guest(who);
        guest.run();
        let (at, width) = (guest.va(DATA + 2), guest.width() as usize);
        let bytes: Vec<u8> = [ptr, val].iter().flat_map(|word| word.to_le_bytes().into_iter().take(width)).collect();
        guest.host.hw.copy_to_guest(at, &bytes).expect("mapped");
        (Hypercall::MmuUpdate, [at.0, 1, 0, 0, 0, 0])
    }

    /// Pages of zeroes whose pins as L2 tables have made way and were not made again.
    fn suspended(&mut self, count: usize) -> Vec<Mfn> {
        let tables = self.more(1, count, 0);
        for &table in &tables {
            let what = self.list(1, &[pin(table, 2)]);
            self.host.hw.preempt_every(1);
            assert_eq!(self.guest(1).hypercall_once(what.0, what.1, MAIN), Answer::Again);
            self.host.hw.preempt_every(0);
        }
        self.check();
        assert_eq!(self.waiting(&tables), count);
        tables
    }

    /// How many of them wait for their pins to be made again.
    fn waiting(&self, tables: &[Mfn]) -> usize {
        let condition = |&mfn: &Mfn| self.host.frames.info(mfn).and_then(|info| info.type_word().partial());
        tables.iter().filter_map(condition).filter(|&(_, how)| how == Condition::Suspended).count()
    }
}

impl World {
    /// Writes the same into all entries of a frame that is nothing yet.
    fn fill_table(&self, who: usize, table: Mfn, value: u64) -> usize {
        let guest = &self.guests[who];
        let entries = 4096 / guest.width() as usize;
        for slot in 0..entries {
            let at = MachineAddr(guest.set(table, slot, 0).0);
            match guest.dom.arch {
                Arch::X86_32 => self.host.hw.store32(at, value as u32),
                Arch::X86_64 => self.host.hw.store64(at, value),
            }
        }
        entries
    }

    /// Makes a call that makes way whenever it can: its result, how often it was made, and the most that was done in
    /// one go.
    #[track_caller]
    fn measure(&mut self, who: usize, what: (Hypercall, [u64; 6])) -> (u64, usize, usize) {
        self.host.hw.preempt_every(1);
        let _ = self.host.hw.longest_stretch();
        let (result, times) = make(self, who, MAIN, what, |world, _| {
            world.host.hw.end_stretch();
            world.check();
            world.host.hw.leave_out();
        });
        self.host.hw.preempt_every(0);
        (result, times, self.host.hw.longest_stretch())
    }
}

#[test]
fn no_more_than_a_table_is_done_between_two_looks() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let tables = world.more(1, 10, 0);
        let value = world.guests[1].entry(DATA, 0);
        let entries = tables[1..].iter().map(|&table| world.fill_table(1, table, value)).sum::<usize>() / 9;
        for (slot, table) in tables.iter().enumerate().skip(1) {
            let guest = &world.guests[1];
            let (at, value) = guest.set(tables[0], 3 * slot, table.addr().0 | guest.flags(RW) | US);
            world.host.hw.store64(MachineAddr(at & !7), if at % 8 == 0 { value } else { value << 32 });
        }
        // A shadow of a directory is four frames, and its view two, written once each.
        let most = if arch == Arch::X86_32 { 5 * entries } else { 2 * entries };
        for request in [pin(tables[0], 2), unpin(tables[0])] {
            let what = world.list(1, &[request]);
            let (result, times, longest) = world.measure(1, what);
            assert_eq!(result, OK);
            assert!(times > 9 && longest > entries && longest < most, "{arch:?}: {longest} in one of {times} goes");
            world.check();
        }
    }
}

#[test]
fn an_extent_of_tables_is_given_back_in_many_goes() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let (free, first) = (world.check().free, world.more(0, 1, 3)[0]);
        let value = world.guests[0].entry(DATA, 0);
        let mut entries = 0;
        for table in (first.0..first.0 + 8).map(Mfn) {
            entries = world.fill_table(0, table, value);
            assert_eq!(world.guest(0).request(pin(table, 1)), OK);
        }
        world.check();
        let guest = world.guest(0);
        assert!(guest.put_args(&[first.0]));
        let what = (Hypercall::DomMemOp, [1, guest.va(ARGS).0, 1, 3, SELF, 0]);
        let (result, times, longest) = world.measure(0, what);
        assert_eq!(result, 1);
        assert!(times > 8 && longest < 3 * entries, "{arch:?}: {longest} in one of {times} goes");
        assert_eq!(world.check().free, free);
    }
}

#[test]
fn what_is_abandoned_is_undone_a_table_at_a_time() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let tables = world.suspended(24);
        // Refused, whatever is in the way.
        let what = world.list(1, &[unpin(Mfn(0x1f0))]);
        world.host.hw.preempt_every(1);
        let mut left = tables.len();
        let (result, times) = make(&mut world, 1, HANDLER, what, |world, _| {
            world.check();
            let now = world.waiting(&tables);
            assert!(left - now <= 2, "{} tables in one go", left - now);
            left = now;
        });
        world.host.hw.preempt_every(0);
        assert_eq!(result, error(Errno::EINVAL));
        assert!(times > tables.len(), "{times}");
        assert_eq!(world.waiting(&tables), 0);
        assert!(!world.guests[1].dom.is_unsettled());
        world.check();
    }
}

#[test]
fn a_suspended_table_is_gone_on_with_wherever_it_stands() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let tables = world.suspended(9);
        // The oldest, the youngest, one between others, and their neighbours.
        for index in [0, 8, 4, 3, 5, 7, 1] {
            assert_eq!(world.guest(1).request(pin(tables[index], 2)), OK);
            world.check();
        }
        assert_eq!(world.waiting(&tables), 2);
        // The rest is abandoned; then somebody comes back for one after all.
        let what = world.list(1, &[unpin(Mfn(0x1f0))]);
        world.host.hw.preempt_every(1);
        let mut once = true;
        let (result, _) = make(&mut world, 1, HANDLER, what, |world, _| {
            if core::mem::replace(&mut once, false) {
                assert_eq!(world.waiting(&tables), 2);
                let what = world.list_elsewhere(1, pin(tables[2], 2));
                world.host.hw.preempt_every(0);
                let _ = world.guest(1).hypercall_once(what.0, what.1, MAIN);
                world.host.hw.preempt_every(1);
                world.check();
            }
        });
        world.host.hw.preempt_every(0);
        assert_eq!(result, error(Errno::EINVAL));
        assert_eq!(world.waiting(&tables), 0);
        assert_eq!([2, 6].map(|index| world.guests[1].type_of(tables[index]).1), [1, 0]);
        assert!(!world.guests[1].dom.is_unsettled());
        world.check();
    }
}

#[test]
fn one_is_gone_on_with_in_the_same_time_however_many_there_are() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let effort = |count: usize, index: fn(usize) -> usize| {
            let mut world = World::of(arch);
            let tables = world.suspended(count);
            let what = world.list(1, &[pin(tables[index(count)], 2)]);
            world.host.hw.leave_out();
            let _ = (world.host.hw.longest_stretch(), followed::links());
            assert_eq!(world.guest(1).hypercall_once(what.0, what.1, HANDLER), Answer::Done(OK));
            let effort = (followed::links(), world.host.hw.longest_stretch());
            world.check();
            assert_eq!(world.waiting(&tables), count - 1);
            effort
        };
        for index in [|_| 0, |count| count / 2, |count| count - 1] {
            let few = effort(5, index);
            assert!(few.0 <= 2, "{arch:?}: {few:?}");
            assert_eq!(effort(25, index), few, "{arch:?}: links that were followed, accesses");
            assert_eq!(effort(100, index), few, "{arch:?}");
        }
    }
}

/// A guest with as many open tables as there can be, each of whose entries it has written to, makes a long request.
#[test]
fn open_tables_are_closed_before_the_first_look() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        let (guest, pages) = (&world.guests[1], [SPARE, SPARE2]);
        let requests: Vec<Request> = (0..40).map(|_| guest.machphys(guest.frames[DATA], DATA as u64)).collect();
        let what = world.list(1, &requests);
        (1..).zip(pages).for_each(|(slot, page)| world.hang(page, slot));
        let guest = &world.guests[1];
        let entries = 4096 / guest.width() as usize;
        for slot in 0..entries {
            for page in pages {
                assert_eq!(guest.write(page, slot, guest.entry(DATA + slot % 4, RW | D)), Ok(()));
            }
        }
        assert_eq!(guest.open_tables(), WINDOWS, "{arch:?}");
        assert_eq!(WINDOWS, pages.len(), "no more can be");
        world.check();
        world.host.hw.leave_out();
        let _ = world.host.hw.longest_stretch();
        world.host.hw.preempt_every(1);
        let (result, times) = make(&mut world, 1, MAIN, what, |world, times| {
            let longest = world.host.hw.longest_stretch();
            assert_eq!(world.guests[1].open_tables(), 0, "{arch:?}: at look {times}");
            // Of an entry: both it and its copy are read, its reference is taken, and its shadow written.
            let (least, most) = if times == 1 { (2 * entries, 2 * 12 * entries) } else { (0, 64) };
            assert!((least..most).contains(&longest), "{arch:?}: {longest} accesses before look {times}");
            world.check();
            world.host.hw.leave_out();
            let _ = world.host.hw.longest_stretch();
        });
        world.host.hw.preempt_every(0);
        assert_eq!(result, OK);
        assert!(times >= requests.len(), "{times}");
    }
}
