//! An attack of each known class on paravirtualised paging, which must fail.
//!
//! The attacker is the plain domain, number 1, unless the attack needs a privileged one that is careless.

use super::world::*;
use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use crate::domain::Arch;
use crate::frame::FrameType;
use crate::machine::MachineMemory;
use crate::paging::format::bits::{self, A, D, P, RW, US};
use crate::sim_hw::Mode;
use alloc::vec::Vec;
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, Hypercall};

const INVALID: u64 = error(Errno::EINVAL);

#[track_caller]
fn both(attack: impl Fn(&mut World)) {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        attack(&mut world);
        world.check();
    }
}

impl World {
    /// The attacker makes a request.
    #[track_caller]
    fn attempt(&mut self, request: impl Fn(&Guest) -> Request) -> u64 {
        let request = request(&self.guests[1]);
        assert!(self.guests[1].put_args(&[request.0, request.1]));
        self.judge(1, |guest| guest.mmu_update_in_place(1).result).expect("nothing is wrong")
    }

    /// The attacker stores a word at a page of its region.
    fn store(&self, page: usize, value: u64) -> bool {
        self.guests[1].run();
        self.host.hw.guest_store(self.guests[1].va(page), value, Mode::Kernel).is_ok()
    }
}

#[test]
fn a_live_table_is_mapped_writable_in_no_way() {
    both(|world| {
        let tables: &[usize] = if world.guest(1).dom.arch == Arch::X86_32 { &[TOP, L1] } else { &[TOP, 3, 4, L1] };
        for &table in tables {
            for rw in [RW, RW | D, RW | US, RW | bits::PCD] {
                // By a list, by address, over a mapping that was there, and over one that maps it read-only.
                for slot in [FRAMES + 1, DATA, table] {
                    let entry = world.guest(1).entry(table, rw);
                    assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], slot, entry)), INVALID);
                    assert_eq!(world.judge(1, |guest| guest.remap(slot, entry, 2)), Ok(INVALID));
                }
                // In a table that is only about to become one: the pin is what fails.
                assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE], 5, guest.entry(table, rw))), OK);
                assert_eq!(world.attempt(|guest| pin(guest.frames[SPARE], 1)), INVALID);
                let (top, slot) = if world.guest(1).top_level() == 2 { (TOP, 1) } else { (4, 1) };
                assert_eq!(world.attempt(|guest| guest.set(guest.frames[top], slot, guest.entry(SPARE, RW))), INVALID);
            }
            // By a privileged domain, in all good faith.
            let frame = world.guest(1).frames[table];
            let entry = frame.addr().0 | world.guest(0).flags(RW);
            let l1 = world.guest(0).frames[L1];
            let request = world.guest(0).set(l1, FRAMES + 1, entry);
            assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), request]).result, INVALID);
            // Nor is a table stored to as plain memory, or as descriptors.
            let at = frame.addr().0;
            assert_eq!(
                world.judge(1, |guest| guest.call(Hypercall::UpdateDescriptor, [at, 0, 0, 0, 0, 0])),
                Ok(INVALID)
            );
            assert!(!world.store(table, 0));
        }
    });
}

#[test]
fn a_mapping_that_is_gone_but_cached_writes_to_no_table() {
    both(|world| {
        // Another address still has the page in the TLB; both mappings go, but nothing is flushed.
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], FRAMES + 1, guest.entry(DATA, RW))), OK);
        assert!(world.store(DATA, 0) && world.store(FRAMES + 1, 0));
        for slot in [DATA, FRAMES + 1] {
            assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], slot, 0)), OK);
        }
        assert!(world.store(DATA, 0), "the attack is one: the mapping is still cached");
        assert_eq!(world.attempt(|guest| pin(guest.frames[DATA], 1)), OK);
        assert!(!world.store(DATA, 0x1067) && !world.store(FRAMES + 1, 0x1067));
        // Neither does one that has lost only its right to write.
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], DATA + 1, guest.entry(DATA + 1, RW))), OK);
        assert!(world.store(DATA + 1, 0));
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], DATA + 1, guest.entry(DATA + 1, 0))), OK);
        assert_eq!(world.attempt(|guest| pin(guest.frames[DATA + 1], 1)), OK);
        assert!(!world.store(DATA + 1, 0x1067));
    });
}

#[test]
fn another_cpus_cached_mapping_writes_to_no_table() {
    both(|world| {
        // Domain 0, on a CPU of its own, had the page mapped and does not flush.
        let frame = world.guest(1).frames[SPARE];
        let slot = FRAMES + 1;
        let (table, at) = (world.guest(0).frames[L1], world.guest(0).va(slot));
        let entry = frame.addr().0 | world.guest(0).flags(RW);
        let map = world.guest(0).set(table, slot, entry);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), map]).result, OK);
        assert_eq!(world.host.hw.guest_store(at, 0, Mode::Kernel), Ok(()));
        assert_eq!(world.attempt(|_| pin(frame, 1)), INVALID);
        let unmap = world.guest(0).set(table, slot, 0);
        assert_eq!(world.guest(0).request(unmap), OK);
        assert_eq!(world.attempt(|_| pin(frame, 1)), OK);
        world.guest(0).run();
        assert!(world.host.hw.guest_store(at, 0x1067, Mode::Kernel).is_err());
    });
}

/// Uses of a frame, each of which excludes all others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Table(u8),
    Gdt,
    Writable,
}

impl World {
    fn take(&mut self, pfn: usize, as_what: Use) -> u64 {
        match as_what {
            Use::Table(level) => self.attempt(|guest| pin(guest.frames[pfn], level)),
            Use::Writable => self.attempt(|guest| guest.set(guest.frames[L1], pfn, guest.entry(pfn, RW))),
            Use::Gdt => {
                let frame = self.guests[1].frames[pfn].0;
                assert!(self.guests[1].put_args(&[frame]));
                let args = [self.guests[1].va(ARGS).0, 512, 0, 0, 0, 0];
                self.judge(1, |guest| guest.call(Hypercall::SetGdt, args)).expect("nothing is wrong")
            }
        }
    }

    fn give_back(&mut self, pfn: usize, as_what: Use) -> u64 {
        match as_what {
            Use::Table(_) => self.attempt(|guest| unpin(guest.frames[pfn])),
            Use::Writable => self.attempt(|guest| guest.set(guest.frames[L1], pfn, guest.entry(pfn, 0))),
            Use::Gdt => self.take(SPARE2, Use::Gdt),
        }
    }
}

#[test]
fn no_frame_has_two_uses() {
    both(|world| {
        let levels = world.guest(1).top_level();
        let uses: Vec<Use> = (1..=levels).map(Use::Table).chain([Use::Gdt, Use::Writable]).collect();
        for &first in &uses {
            assert_eq!(world.take(SPARE, first), OK, "{first:?}");
            for &second in &uses {
                let expected = if first == second && !matches!(first, Use::Table(_)) { OK } else { INVALID };
                assert_eq!(world.take(SPARE, second), expected, "{first:?}, then {second:?}");
            }
            // An entry of a table is a use like any other.
            for level in 1..levels {
                let above = world.guest(1).frames[if level + 1 == levels { TOP } else { 5 - usize::from(level) }];
                let slot = 2;
                let expected = if first == Use::Table(level) { OK } else { INVALID };
                assert_eq!(world.attempt(|guest| guest.set(above, slot, guest.entry(SPARE, RW))), expected);
                assert_eq!(world.attempt(|guest| guest.set(above, slot, 0)), OK);
            }
            assert_eq!(world.give_back(SPARE, first), OK, "{first:?}");
        }
    });
}

#[test]
fn tables_do_not_contain_themselves() {
    both(|world| {
        let levels = world.guest(1).top_level();
        for level in 1..=levels {
            // Before validation ...
            assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE], 7, guest.entry(SPARE, RW))), OK);
            assert_eq!(world.attempt(|guest| pin(guest.frames[SPARE], level)), INVALID);
            // ... by way of each other ...
            assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE], 7, guest.entry(SPARE2, RW))), OK);
            assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE2], 7, guest.entry(SPARE, RW))), OK);
            assert_eq!(world.attempt(|guest| pin(guest.frames[SPARE], level)), if level == 1 { OK } else { INVALID });
            if level == 1 {
                // (each other's writable mapping: the second is what cannot be)
                assert_eq!(world.attempt(|guest| pin(guest.frames[SPARE2], 1)), INVALID);
                assert_eq!(world.attempt(|guest| unpin(guest.frames[SPARE])), OK);
            }
            for pfn in [SPARE, SPARE2] {
                assert_eq!(world.attempt(|guest| guest.set(guest.frames[pfn], 7, 0)), OK);
            }
            // ... and after it.
            assert_eq!(world.attempt(|guest| pin(guest.frames[SPARE], level)), OK);
            assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE], 7, guest.entry(SPARE, RW))), INVALID);
            // Reading oneself is harmless: as a page, and where the hypervisor shows it, as a table.
            let read_only = world.attempt(|guest| guest.set(guest.frames[SPARE], 7, guest.entry(SPARE, 0)));
            assert_eq!(read_only, if level == 1 || levels == 2 { OK } else { INVALID }, "level {level} of {levels}");
            assert_eq!(world.attempt(|guest| unpin(guest.frames[SPARE])), OK);
            assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE], 7, 0)), OK);
        }
    });
}

#[test]
fn large_pages_are_refused_by_every_path() {
    both(|world| {
        let (above, slot) = if world.guest(1).top_level() == 2 { (TOP, 1) } else { (4, 1) };
        let large = bits::PAT_OR_PS | RW | US;
        // Outright; in the place of a table; as a table's frame with one more bit; not present, then present.
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[above], slot, guest.flags(0) | large)), INVALID);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[above], slot, guest.entry(SPARE, RW))), OK);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[above], slot, guest.entry(SPARE, 0) | large)), INVALID);
        assert_eq!(
            world.attempt(|guest| guest.set(guest.frames[above], slot, (guest.entry(SPARE, 0) | large) & !P)),
            OK
        );
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[above], slot, guest.entry(SPARE, 0) | large)), INVALID);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[above], slot, 0)), OK);
        // In a table that becomes one later.
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE2], slot, guest.entry(SPARE, 0) | large)), OK);
        assert_eq!(world.attempt(|guest| pin(guest.frames[SPARE2], 2)), INVALID);
    });
}

#[test]
fn rights_change_by_the_quick_path_only_where_no_reference_does() {
    both(|world| {
        // A table, mapped to be read: every bit that is no address, one by one, on top.
        assert_eq!(world.attempt(|guest| pin(guest.frames[SPARE], 1)), OK);
        for bit in (1..12).chain(52..64) {
            if world.guest(1).width() == 4 && bit >= 32 {
                continue;
            }
            let result = world.attempt(|guest| guest.set(guest.frames[L1], SPARE, guest.entry(SPARE, 0) ^ 1 << bit));
            let refused = bit == 1 || bit == 7 || bit == 8 || (59..63).contains(&bit);
            assert_eq!(result, if refused { INVALID } else { OK }, "bit {bit}");
            assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], SPARE, guest.entry(SPARE, 0))), OK);
            assert!(!world.store(SPARE, 0));
        }
        assert_eq!(world.guests[1].type_of(world.guests[1].frames[SPARE]), (FrameType::L1, 1));
    });
}

#[test]
fn a_frame_that_is_freed_stays_until_nobody_has_it() {
    both(|world| {
        let frame = world.guest(1).frames[SPARE];
        let id = world.guest(1).dom.id;
        assert_eq!(world.attempt(|_| pin(frame, 1)), OK);
        let info = world.host.frames.get(frame, id).expect("its own");
        assert_eq!(info.put_allocation(), Some(false));
        assert_eq!(info.put_allocation(), None, "once");
        world.host.put_frame(frame, info);
        assert_eq!(info.refs().owner(), id, "pinned and mapped");
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], SPARE, 0)), OK);
        assert_eq!(info.refs().owner(), id, "pinned");
        // It can be given to nobody meanwhile, not even by one who may.
        assert_eq!(world.attempt(|_| reassign(frame)), INVALID);
        assert_eq!(world.attempt(|_| unpin(frame)), OK);
        assert_ne!(info.refs().owner(), id);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], SPARE, frame.addr().0 | guest.flags(0))), INVALID);
        assert_eq!(world.attempt(|_| pin(frame, 1)), INVALID);
        assert!(world.host.hw.machine().frame_bytes(frame).iter().all(|&byte| byte == 0));
    });
}

#[test]
fn what_was_in_a_freed_frame_is_gone_and_so_are_its_cached_mappings() {
    both(|world| {
        let frame = world.guest(1).frames[DATA];
        let id = world.guest(1).dom.id;
        assert!(world.store(DATA, 0x5ec2e7));
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], DATA, 0)), OK);
        let info = world.host.frames.get(frame, id).expect("its own");
        assert_eq!(info.put_allocation(), Some(false));
        world.host.put_frame(frame, info);
        assert_eq!(info.refs().count(), 0);
        assert_eq!(world.host.hw.load64(frame.addr()), 0, "scrubbed");
        // Whoever gets it next is not written to by the old owner's CPU.
        let mut taken = Vec::new();
        while taken.last() != Some(&frame) {
            let next = world.host.alloc.lock().alloc_hypervisor(0, crate::frame_alloc::Zone::Any, &world.host.hw);
            taken.push(next.expect("the frame is free, so it must come"));
        }
        assert!(!world.store(DATA, 1));
        for frame in taken {
            world.host.free_hypervisor(frame, 0);
        }
    });
}

#[test]
fn a_table_is_unpinned_by_its_owner_and_those_above_it_only() {
    both(|world| {
        let theirs = world.guest(0).frames[TOP];
        assert_eq!(world.attempt(|_| unpin(theirs)), INVALID);
        assert_eq!(world.attempt(|_| pin(theirs, 1)), INVALID);
        assert_eq!(world.attempt(|_| new_base(theirs)), INVALID);
        assert_eq!(world.attempt(|guest| guest.set(theirs, 0, guest.entry(L1, RW))), INVALID);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[TOP], 1, theirs.addr().0 | guest.flags(RW))), INVALID);
        // The base holds a table even when it is not pinned any more.
        assert_eq!(world.attempt(|guest| unpin(guest.frames[TOP])), OK);
        assert_eq!(world.attempt(|guest| unpin(guest.frames[TOP])), INVALID);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], TOP, guest.entry(TOP, RW))), INVALID);
    });
}

#[test]
fn more_than_2_to_the_16_references_are_counted() {
    both(|world| {
        let frame = world.guest(1).frames[DATA];
        let info = world.host.frames.info(frame).expect("RAM");
        let id = world.guest(1).dom.id;
        let taken = 70_000;
        for _ in 0..taken {
            info.get(id).expect("room for more");
            info.get_type(FrameType::Writable, |_| ()).expect("it is writable");
        }
        assert_eq!(world.guests[1].type_of(frame), (FrameType::Writable, taken + 1));
        for _ in 0..taken {
            assert_ne!(info.put_type(|| 0), crate::frame::TypeRest::Last);
            world.host.put_frame(frame, info);
        }
    });
}

#[test]
fn a_list_is_read_once_and_in_order() {
    both(|world| {
        // The first request rewrites the second, which lies in the same page, before it is read.
        let guest = world.guest(1);
        let (args, width) = (guest.frames[ARGS], guest.width() as usize);
        let good = extended(MmuExtCommand::TlbFlush, 0, 0);
        let rewrite = guest.set(args, 2, 1);
        assert_eq!(guest.mmu_update(&[rewrite, good]), Done { result: INVALID, count: 1 });
        // The count is written into the list: over requests that are done.
        let at = guest.va(ARGS).0;
        assert!(guest.put_args(&[good.0, good.1, good.0, good.1]));
        assert_eq!(guest.call(Hypercall::MmuUpdate, [at, 2, at + 2 * width as u64, 0, 0, 0]), OK);
        // The list's own page becomes a table, then is written to: no, it is mapped writable.
        assert_eq!(guest.mmu_update(&[pin(args, 1), good]), Done { result: INVALID, count: 0 });
        // It is unmapped by its first request; the flush is late, the TLB may or may not have it, and nothing breaks.
        let unmap = guest.set(guest.frames[L1], ARGS, 0);
        let (result, count) = (guest.put_args(&[unmap.0, unmap.1, good.0, good.1]), 2);
        assert!(result);
        let result = guest.call(Hypercall::MmuUpdate, [at, count, 0, 0, 0, 0]);
        assert!([OK, error(Errno::EFAULT)].contains(&result));
        assert!(guest.rescue());
    });
}

#[test]
fn a_list_may_cross_pages_and_its_end_may_not() {
    both(|world| {
        let guest = world.guest(1);
        let flush = extended(MmuExtCommand::TlbFlush, 0, 0);
        // DATA and the page behind it are neighbours; the list begins half a request before the edge.
        let edge = guest.va(DATA + 1).0;
        let begin = edge - guest.width();
        guest.run();
        for (index, word) in [flush.0, flush.1, flush.0, flush.1].into_iter().enumerate() {
            let at = begin + index as u64 * guest.width();
            let word_at = GuestVirt(at & !7);
            let old = guest.host.hw.guest_load(word_at, Mode::Kernel).expect("mapped");
            let (mask, shift) =
                if guest.width() == 8 { (u64::MAX, 0) } else { (0xffff_ffff << (at % 8 * 8), at % 8 * 8) };
            guest.host.hw.guest_store(word_at, old & !mask | word << shift, Mode::Kernel).expect("mapped writable");
        }
        assert_eq!(guest.call(Hypercall::MmuUpdate, [begin, 2, 0, 0, 0, 0]), OK);
        // Where the count goes is looked at as closely: across the edge of what is the guest's.
        let end = if guest.dom.arch == Arch::X86_32 { 0xfc00_0000_u64 } else { 1 << 47 };
        for done in [end - 2, end - 3, end, u64::MAX - 1, 0xffff_8300_0000_0000, 0xffff_87ff_ffff_fffe] {
            assert_eq!(guest.call(Hypercall::MmuUpdate, [begin, 2, done, 0, 0, 0]), OK);
        }
        // The hypervisor's memory is as it was.
        let slots = guest.host.hypervisor_slots;
        if guest.dom.arch == Arch::X86_64 {
            for (slot, entry) in slots.iter().enumerate() {
                let at = MachineAddr(guest.frames[TOP].addr().0 + 8 * (256 + slot as u64));
                assert_eq!(guest.host.hw.load64(at), *entry);
            }
        }
    });
}

#[test]
fn the_hypervisors_range_is_out_of_a_guests_reach() {
    both(|world| {
        world.guest(1).run();
        let hw = &world.host.hw;
        for at in (0xffff_8000_0000_0000_u64..0xffff_8880_0000_0000).step_by(1 << 39) {
            assert!(hw.guest_load(GuestVirt(at), Mode::Kernel).is_err());
            assert!(hw.guest_store(GuestVirt(at), 0, Mode::Kernel).is_err());
        }
        if world.guests[1].dom.arch == Arch::X86_32 {
            for at in (0xfc00_0000_u64..1 << 32).step_by(1 << 20) {
                assert!(hw.guest_load(GuestVirt(at), Mode::Kernel).is_err(), "no table of 32-bit entries here");
            }
        }
    });
}

#[test]
fn accessed_and_dirty_bits_reach_no_frame_that_is_no_table_any_more() {
    // The CPU has an L1 table cached on its way to a page. The table is unhooked and becomes writable memory: the CPU's
    // next walk must not set bits in it.
    both(|world| {
        let (above, level2) = if world.guest(1).top_level() == 2 { (TOP, 22) } else { (4, 21) };
        let slot = 1;
        let entry = world.guest(1).entry(DATA, RW) & !(A | D);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[SPARE], 9, entry)), OK);
        let mut index = slot;
        if world.guest(1).top_level() == 2 {
            index += 0x300;
        }
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[above], index, guest.entry(SPARE, RW) | US)), OK);
        let at = GuestVirt(world.guest(1).base() + (slot as u64) * (1 << level2) + 9 * 4096);
        world.guest(1).run();
        assert!(world.host.hw.guest_load(at, Mode::Kernel).is_ok());
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[above], index, 0)), OK);
        assert_eq!(world.attempt(|guest| guest.set(guest.frames[L1], SPARE, guest.entry(SPARE, RW))), OK);
        world.guest(1).run();
        let slot = MachineAddr(world.guests[1].frames[SPARE].addr().0 + 9 * world.guests[1].width());
        world.host.hw.store32(slot, entry as u32);
        assert!(world.host.hw.guest_store(at, 1, Mode::Kernel).is_err());
        assert_eq!(world.host.hw.load32(slot), entry as u32);
    });
}

#[test]
fn a_multicall_is_no_way_around() {
    both(|world| {
        use proxenos_abi::hypercall::MULTICALL_RESULT_ARG;
        let guest = world.guest(1);
        let (page, bad) = (guest.va(TOP).0 >> 12, guest.entry(TOP, RW));
        let call = |number: Hypercall, args: [u64; 3]| [number.raw().into(), args[0], args[1], args[2], 0, 0, 0, 0];
        let list = guest.va(ARGS).0;
        let calls = [
            call(Hypercall::UpdateVaMapping, [page, bad, 0]),
            call(Hypercall::Multicall, [list, 1, 0]),
            call(Hypercall::UpdateVaMapping, [page, guest.entry(TOP, 0), 0]),
        ];
        assert!(guest.put_args(&calls.concat()));
        assert_eq!(guest.call(Hypercall::Multicall, [list, 3, 0, 0, 0, 0]), OK);
        let result = |index: u64| {
            let at = list + (index * 8 + 1 + MULTICALL_RESULT_ARG as u64) * guest.width();
            let word = guest.host.hw.guest_load(GuestVirt(at & !7), Mode::Kernel).expect("mapped");
            if guest.width() == 8 { word } else { (word >> (at % 8 * 8)) as u32 as i32 as i64 as u64 }
        };
        assert_eq!([result(0), result(1), result(2)], [INVALID, INVALID, OK]);
    });
}

#[test]
fn domains_of_different_widths_do_not_confuse_each_others_tables() {
    for (first, second) in [(Arch::X86_32, Arch::X86_64), (Arch::X86_64, Arch::X86_32)] {
        let mut world = World::new(&[(first, PRIVILEGED), (second, PLAIN)]);
        // A frame that was a table of one domain's is reassigned and becomes a table of the other's.
        let frame = world.guest(0).frames[SPARE];
        let entry = world.guest(0).entry(DATA, RW);
        let request = world.guest(0).set(frame, 0, entry);
        assert_eq!(world.guest(0).request(request), OK);
        assert_eq!(world.guest(0).request(pin(frame, 1)), OK);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), reassign(frame)]).result, INVALID);
        assert_eq!(world.guest(0).request(unpin(frame)), OK);
        assert_eq!(world.guest(0).remap(SPARE, 0, 0), OK);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), reassign(frame)]).result, OK);
        // What it holds maps a frame of the old owner's: no table of the new one's.
        assert_eq!(world.attempt(|_| pin(frame, 1)), INVALID);
        assert_eq!(world.attempt(|guest| guest.set(frame, 0, 0)), OK);
        assert_eq!(world.attempt(|_| pin(frame, 1)), OK);
        // The privileged one may change it by no quick path: it is not its own.
        assert_eq!(world.guest(0).request(request), INVALID);
        world.check();
    }
}

/// A frame's number is as good as any other for an argument that means something else.
#[test]
fn frame_numbers_without_frames_are_refused() {
    both(|world| {
        let frames = [0, 0xff, world.host.frames.len(), 1 << 20, (1 << 24) - 1, 1 << 24, (1 << 40) - 1, (1 << 52) - 1];
        for frame in frames.map(Mfn) {
            for level in 1..=4 {
                assert_eq!(world.attempt(|_| pin(frame, level)), INVALID);
            }
            assert_eq!(world.attempt(|_| unpin(frame)), INVALID);
            assert_eq!(world.attempt(|_| new_base(frame)), INVALID);
            assert_eq!(world.attempt(|_| reassign(frame)), INVALID);
            assert_eq!(world.attempt(|guest| guest.machphys(frame, 0)), INVALID);
            assert_eq!(world.attempt(|guest| guest.set(frame, 0, 0)), INVALID);
            let narrow = world.guest(1).width() == 4;
            if !narrow || frame.0 < 1 << 20 {
                let map = |guest: &Guest| guest.set(guest.frames[L1], DATA, frame.addr().0 | guest.flags(0));
                assert_eq!(world.attempt(map), INVALID, "{frame:?}");
                let hook = |guest: &Guest| guest.set(guest.frames[TOP], 1, frame.addr().0 | guest.flags(0));
                assert_eq!(world.attempt(hook), INVALID, "{frame:?}");
            }
        }
    });
}
