//! How much is done between two looks at the clock: of long lists and large extents a part.

use super::preempted::{HANDLER, MAIN, make};
use super::world::*;
use crate::addr::{DomId, Mfn};
use crate::domain::Arch;
use crate::frame::Condition;
use crate::machine::GuestMemory;
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
