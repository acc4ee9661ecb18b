//! A test for each request and each refusal of `mmu_update`, `update_va_mapping` and their relatives, for both
//! architectures.

use super::segments::set_gdt;
use super::world::*;
use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use crate::domain::{Arch, Privileges};
use crate::frame::FrameType;
use crate::machine::MachineMemory;
use crate::paging::format::bits::{self, A, D, RW, US};
use crate::sim_hw::Mode;
use core::sync::atomic::Ordering::Relaxed;
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, Hypercall};

/// Refused as invalid.
pub const INVALID: u64 = error(Errno::EINVAL);

/// Runs a test for both architectures, in a world with a privileged domain and a plain one, and checks it at the end.
#[track_caller]
pub fn both(test: impl Fn(&mut World)) {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        test(&mut world);
        world.check();
    }
}

impl World {
    /// The plain domain makes a request, which must be refused and change nothing.
    #[track_caller]
    pub fn refused(&mut self, request: impl Fn(&Guest) -> Request) {
        self.refused_for(1, &[], request);
    }

    /// So for any domain, after other requests in the same call.
    #[track_caller]
    pub fn refused_for(&mut self, who: usize, first: &[Request], request: impl Fn(&Guest) -> Request) {
        let mut requests = first.to_vec();
        requests.push(request(&self.guests[who]));
        let words: alloc::vec::Vec<u64> = requests.iter().flat_map(|&(ptr, val)| [ptr, val]).collect();
        assert!(self.guests[who].put_args(&words));
        let result = self.judge(who, |guest| {
            let done = guest.mmu_update_in_place(requests.len());
            assert_eq!(done, Done { result: INVALID, count: first.len() as u32 });
            done.result
        });
        assert_eq!(result, Ok(INVALID));
    }

    /// The plain domain makes a request, which must be carried out.
    #[track_caller]
    pub fn done(&mut self, request: impl Fn(&Guest) -> Request) {
        let request = request(&self.guests[1]);
        assert_eq!(self.guests[1].request(request), OK);
        self.check();
    }

    /// What a frame of the plain domain's is in use as.
    pub fn type_of(&self, pfn: usize) -> (FrameType, u32) {
        self.guests[1].type_of(self.guests[1].frames[pfn])
    }

    /// The plain domain changes a page of its region.
    #[track_caller]
    pub fn remap(&mut self, page: usize, entry: impl Fn(&Guest) -> u64) -> u64 {
        let entry = entry(&self.guests[1]);
        self.judge(1, |guest| guest.remap(page, entry, 2)).expect("nothing is wrong")
    }
}

#[test]
fn an_l1_entry_is_changed_and_seen() {
    both(|world| {
        world.done(|guest| guest.set(guest.frames[L1], FRAMES + 1, guest.entry(DATA, RW)));
        let guest = world.guest(1);
        let (one, other) = (guest.va(DATA), guest.va(FRAMES + 1));
        guest.run();
        assert_eq!(guest.host.hw.guest_store(other, 0x1234_5678, Mode::Kernel), Ok(()));
        assert_eq!(guest.host.hw.guest_load(one, Mode::Kernel), Ok(0x1234_5678));
        assert_eq!(guest.type_of(guest.frames[DATA]), (FrameType::Writable, 2));
        world.done(|guest| guest.set(guest.frames[L1], FRAMES + 1, 0));
        assert_eq!(world.guest(1).request(extended(MmuExtCommand::TlbFlush, 0, 0)), OK);
        assert!(world.host.hw.guest_load(other, Mode::Kernel).is_err());
    });
}

#[test]
fn bits_that_guests_may_not_set_are_refused_at_every_level() {
    both(|world| {
        let mut refused = alloc::vec![bits::G, bits::PAT_OR_PS, bits::G | RW];
        if world.guest(1).dom.arch == Arch::X86_64 {
            // Protection keys; an address that this CPU does not have.
            refused.extend([1 << 59, 1 << 62, 1 << 51]);
        }
        for bad in refused {
            world.refused(|guest| guest.set(guest.frames[L1], DATA, guest.entry(DATA, RW) | bad));
            assert_eq!(world.remap(DATA, |guest| guest.entry(DATA, RW) | bad), INVALID);
            let top_slot =
                (world.guest(1).base() >> if world.guest(1).dom.arch == Arch::X86_32 { 22 } else { 39 } & 511) as usize;
            let top_slot = if world.guest(1).dom.arch == Arch::X86_32 { 0x300 } else { top_slot };
            world.refused(|guest| {
                let (top, below) = (guest.frames[TOP], if guest.top_level() == 2 { L1 } else { 3 });
                guest.set(top, top_slot, guest.entry(below, RW) | US | bad)
            });
            // The same bits in an entry that maps nothing are the guest's own business.
            world.done(|guest| guest.set(guest.frames[L1], FRAMES + 1, bad | 0xe00));
        }
    });
}

#[test]
fn what_looks_harmless_is_allowed_and_keeps_its_references() {
    both(|world| {
        let before = world.snapshot();
        for flags in [bits::PWT, bits::PCD, bits::PWT | bits::PCD, bits::AVL, D, A] {
            world.done(|guest| guest.set(guest.frames[L1], DATA, (guest.entry(DATA, RW) & !A) | flags));
        }
        world.done(|guest| guest.set(guest.frames[L1], DATA, guest.entry(DATA, RW) ^ US));
        if world.guest(1).dom.arch == Arch::X86_64 {
            world.done(|guest| guest.set(guest.frames[L1], DATA, guest.entry(DATA, RW) | bits::NX));
        }
        assert_eq!(world.snapshot(), before);
    });
}

#[test]
fn a_foreign_frame_needs_a_privileged_domain() {
    both(|world| {
        let mine = world.guest(0).frames[DATA];
        world.refused(|guest| guest.set(guest.frames[L1], DATA, mine.addr().0 | guest.flags(0)));
        world.refused(|_| foreign(DomId(0)));
        world.refused(|_| foreign(DomId::XEN));
        // The privileged one must say so first, and name the right domain.
        let theirs = world.guest(1).frames[DATA];
        let map = |guest: &Guest| guest.set(guest.frames[L1], FRAMES + 1, theirs.addr().0 | guest.flags(RW));
        world.refused_for(0, &[], map);
        world.refused_for(0, &[foreign(DomId(0))], map);
        world.refused_for(0, &[], |_| foreign(DomId(5)));
        let request = map(&world.guests[0]);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), request]), Done { result: OK, count: 2 });
        world.check();
        assert_eq!(world.guest(1).type_of(theirs), (FrameType::Writable, 2));
        let at = world.guest(0).va(FRAMES + 1);
        world.guest(0).run();
        assert_eq!(world.host.hw.guest_store(at, 7, Mode::Kernel), Ok(()));
        assert_eq!(world.host.hw.load64(theirs.addr()), 7);
    });
}

#[test]
fn a_foreign_domain_is_forgotten_when_told_to_when_another_fails_and_with_the_call() {
    both(|world| {
        let theirs = world.guest(1).frames[DATA];
        let map = |guest: &Guest| guest.set(guest.frames[L1], FRAMES + 1, theirs.addr().0 | guest.flags(0));
        let clear = extended(MmuExtCommand::ClearForeigndom, 0, 0);
        world.refused_for(0, &[foreign(DomId(1)), clear], map);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1))]).result, OK);
        world.refused_for(0, &[], map);
        let (request, bad) = (map(&world.guests[0]), foreign(DomId(9)));
        let done = world.guest(0).mmu_update(&[foreign(DomId(1)), bad, request]);
        assert_eq!(done, Done { result: INVALID, count: 1 });
        // The table that is changed stays the caller's: a foreign one is out of reach.
        world.refused_for(0, &[foreign(DomId(1))], |guest| {
            let mut other = guest.set(theirs, 0, 0);
            other.0 += 8;
            other
        });
    });
}

#[test]
fn io_memory_is_for_those_with_the_right_to_it() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::new(&[(arch, PRIVILEGED), (arch, Privileges::DEVICES), (arch, PLAIN)]);
        let map =
            |frame: u64| move |guest: &Guest| guest.set(guest.frames[L1], FRAMES + 1, frame << 12 | guest.flags(RW));
        for (who, first) in [(0, None), (0, Some(DomId::IO)), (1, None), (1, Some(DomId::IO))] {
            for frame in [0xb8, 0xf_0000] {
                let mut requests: alloc::vec::Vec<Request> = first.map(foreign).into_iter().collect();
                requests.push(map(frame)(&world.guests[who]));
                assert_eq!(world.guest(who).mmu_update(&requests).result, OK, "{frame:#x} by {who} with {first:?}");
                world.check();
            }
            let first: alloc::vec::Vec<Request> = first.map(foreign).into_iter().collect();
            world.refused_for(who, &first, map(0xfee00));
        }
        for frame in [0xb8, 0xf_0000, 0xfee00] {
            world.refused_for(2, &[], map(frame));
            world.refused_for(2, &[foreign(DomId::IO)], map(frame));
        }
        // DOMID_IO means I/O memory and nothing else.
        let mine = world.guest(1).frames[DATA];
        world.refused_for(1, &[foreign(DomId::IO)], map(mine.0));
        // Nor are tables made of I/O memory.
        for level in 1..=4 {
            world.refused_for(0, &[], |_| pin(Mfn(0xb8), level));
            world.refused_for(0, &[], |_| pin(Mfn(0xf_0000), level));
        }
        world.refused_for(0, &[], |_| new_base(Mfn(0xb8)));
    }
}

#[test]
fn the_hypervisors_frames_are_mapped_by_nobody_but_what_it_shares_to_read() {
    let narrow = Mfn(0x200);
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::with_memory(0x800, &[(arch, PRIVILEGED), (arch, PLAIN)], Some(narrow));
        let own = world.guest(0).dom.gdt_page;
        let map = |frame: Mfn, rw| {
            move |guest: &Guest| guest.set(guest.frames[L1], FRAMES + 1, frame.addr().0 | guest.flags(rw))
        };
        for frame in [own, narrow] {
            world.refused_for(0, &[], map(frame, 0));
            world.refused_for(0, &[foreign(DomId::XEN)], map(frame, RW));
            world.refused_for(1, &[], map(frame, 0));
        }
        world.refused_for(0, &[foreign(DomId::XEN)], map(own, 0));
        let request = map(narrow, 0)(&world.guests[0]);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId::XEN), request]).result, OK);
        world.check();
        // A 32-bit kernel reads the whole table at its address, an application does not, and nobody writes there.
        if arch == Arch::X86_32 {
            let guest = world.guest(1);
            guest.run();
            let entry = GuestVirt(0xfc00_0000 + 4 * (guest.frames[DATA].0 & !1));
            let expected = guest.host.hw.load64(MachineAddr(narrow.addr().0 + 4 * (guest.frames[DATA].0 & !1)));
            assert_eq!(guest.host.hw.guest_load(entry, Mode::Kernel), Ok(expected));
            assert!(guest.host.hw.guest_load(entry, Mode::User).is_err());
            assert!(guest.host.hw.guest_store(entry, 0, Mode::Kernel).is_err());
        }
    }
}

#[test]
fn tables_are_pinned_once_and_unpinned_once() {
    both(|world| {
        world.done(|guest| pin(guest.frames[SPARE], 1));
        world.refused(|guest| pin(guest.frames[SPARE], 1));
        world.refused(|guest| pin(guest.frames[SPARE], 2));
        let (kind, count) = world.type_of(SPARE);
        assert_eq!((kind, count), (FrameType::L1, 1));
        world.done(|guest| unpin(guest.frames[SPARE]));
        world.refused(|guest| unpin(guest.frames[SPARE]));
        for level in 1..=4 {
            // What is mapped writable is no table, of whatever level; nor is another's frame.
            world.refused(|guest| pin(guest.frames[DATA], level));
            let other = world.guest(0).frames[SPARE];
            world.refused(|_| pin(other, level));
            world.refused(|guest| pin(guest.dom.shared_info, level));
            world.refused(|guest| pin(guest.dom.gdt_page, level));
        }
        let levels = world.guest(1).top_level();
        for level in levels + 1..=4 {
            world.refused(|guest| pin(guest.frames[SPARE], level));
        }
    });
}

#[test]
fn a_privileged_domain_pins_and_unpins_for_others() {
    for (builder, built) in [(Arch::X86_32, Arch::X86_64), (Arch::X86_64, Arch::X86_32), (Arch::X86_32, Arch::X86_32)] {
        let mut world = World::new(&[(builder, PRIVILEGED), (built, PLAIN)]);
        let frame = world.guest(1).frames[SPARE];
        let for_other = |world: &mut World, request| world.guest(0).mmu_update(&[foreign(DomId(1)), request]).result;
        assert_eq!(for_other(&mut world, pin(frame, 1)), OK);
        world.check();
        assert_eq!(for_other(&mut world, pin(frame, 1)), INVALID);
        world.refused_for(0, &[], |_| unpin(frame));
        assert_eq!(for_other(&mut world, unpin(frame)), OK);
        // A frame of the builder's own is not the other's.
        let mine = world.guest(0).frames[SPARE];
        assert_eq!(for_other(&mut world, pin(mine, 1)), INVALID);
        // What a table is depends on whose it is.
        let level3 = for_other(&mut world, pin(frame, 3));
        assert_eq!(level3, if built == Arch::X86_64 { OK } else { INVALID });
        world.check();
    }
}

#[test]
fn a_new_base_is_a_top_table_and_takes_effect() {
    both(|world| {
        world.refused(|guest| new_base(guest.frames[DATA]));
        world.refused(|guest| new_base(guest.frames[L1]));
        let other = world.guest(0).frames[SECOND_TOP];
        world.refused(|_| new_base(other));
        let flushes = world.host.hw.machine().full_flushes.load(Relaxed);
        world.done(|guest| new_base(guest.frames[SECOND_TOP]));
        assert_eq!(world.host.hw.machine().full_flushes.load(Relaxed), flushes, "loading the base flushes enough");
        world.done(|guest| new_base(guest.frames[SECOND_TOP]));
        // The first one is still pinned, but can cease to be a table now.
        world.done(|guest| unpin(guest.frames[TOP]));
        assert_eq!(world.type_of(TOP).0, FrameType::None);
        world.refused(|guest| guest.set(guest.frames[L1], SECOND_TOP, guest.entry(SECOND_TOP, RW)));
        world.done(|guest| guest.set(guest.frames[L1], TOP, guest.entry(TOP, RW)));
    });
}

#[test]
fn entries_above_l1_lead_to_own_tables_of_the_next_level() {
    both(|world| {
        let slot = 1;
        let top = world.guest(1).top_level();
        let set =
            |value: fn(&Guest) -> u64| move |guest: &Guest| guest.set(guest.frames[TOP], slot, value(guest) | RW | US);
        world.refused(set(|guest| guest.entry(DATA, 0)));
        world.refused(set(|guest| guest.entry(TOP, 0)));
        world.refused(set(|guest| guest.entry(SECOND_TOP, 0) & !0xfff_ffff_f000 | guest.frames[TOP].addr().0));
        world.refused(set(|guest| guest.dom.shared_info.addr().0 | guest.flags(0)));
        world.refused(set(|guest| guest.dom.gdt_page.addr().0 | guest.flags(0)));
        world.refused(set(|guest| 0xb8000 | guest.flags(0)));
        let other = world.guest(0).frames[SPARE];
        world.refused(move |guest| guest.set(guest.frames[TOP], slot, other.addr().0 | guest.flags(RW)));
        // A page of zeroes is a table of any level, but of one at a time.
        world.done(set(|guest| guest.entry(SPARE, 0)));
        assert_eq!(world.type_of(SPARE), (FrameType::table(top - 1), 1));
        world.done(move |guest| guest.set(guest.frames[TOP], slot + 1, guest.entry(SPARE, 0) | US));
        world.refused(move |guest| pin(guest.frames[SPARE], top));
        world.done(move |guest| guest.set(guest.frames[TOP], slot + 1, 0));
        world.done(set(|guest| guest.entry(SPARE2, 0)));
        assert_eq!(world.type_of(SPARE), (FrameType::None, 0));
    });
}

#[test]
fn reserved_slots_are_the_hypervisors() {
    both(|world| {
        let slots = if world.guest(1).dom.arch == Arch::X86_32 { 1008..1024 } else { 256..272 };
        for slot in slots {
            world.refused(|guest| guest.set(guest.frames[TOP], slot, guest.entry(SPARE, RW) | US));
            world.refused(|guest| guest.set(guest.frames[TOP], slot, 0));
        }
        // Whatever stood there before the frame became a table does not count.
        if world.guest(1).dom.arch == Arch::X86_64 {
            world.done(|guest| guest.set(guest.frames[SPARE], 256, guest.entry(DATA, RW)));
            world.done(|guest| guest.set(guest.frames[SPARE], 271, u64::MAX));
            world.done(|guest| pin(guest.frames[SPARE], 4));
        } else {
            world.done(|guest| guest.set(guest.frames[SPARE], 1008, guest.entry(DATA, RW)));
            world.done(|guest| guest.set(guest.frames[SPARE], 1023, u64::from(u32::MAX)));
            world.done(|guest| pin(guest.frames[SPARE], 2));
        }
    });
}

#[test]
fn a_store_to_what_is_no_table_is_a_checked_store() {
    both(|world| {
        world.done(|guest| guest.set(guest.frames[SPARE], 3, 0x1234_5677));
        let guest = world.guest(1);
        let at = MachineAddr(guest.frames[SPARE].addr().0 + 3 * guest.width());
        assert_eq!(guest.host.hw.load32(at), 0x1234_5677);
        let other = world.guest(0).frames[SPARE];
        world.refused(move |guest| guest.set(other, 0, 0));
        world.refused(|guest| guest.set(guest.dom.gdt_page, 0, 0));
        world.refused(|guest| guest.set(Mfn(0xb8), 0, guest.entry(DATA, 0)));
        world.refused(|guest| guest.set(Mfn(0xf_0000), 0, guest.entry(DATA, 0)));
        // Descriptor tables have a call of their own.
        set_gdt(world, &[SPARE], 512).expect("zeroes are good descriptors");
        world.refused(|guest| guest.set(guest.frames[SPARE], 3, 1));
    });
}

#[test]
fn an_x86_64_entry_is_stored_whole_or_not_at_all() {
    let mut world = World::of(Arch::X86_64);
    for frame in [L1, SPARE] {
        world.refused(|guest| (guest.frames[frame].addr().0 + 4, guest.entry(DATA, 0)));
    }
}

#[test]
fn machine_to_phys_follows_its_owner() {
    both(|world| {
        let frame = world.guest(1).frames[DATA];
        world.done(|guest| guest.machphys(guest.frames[DATA], 0x77));
        let wide = world.host.m2p.wide().expect("the simulated host has one");
        let entry = MachineAddr(wide.addr().0 + 8 * frame.0);
        assert_eq!(world.host.hw.load64(entry), 0x77);
        let other = world.guest(0).frames[DATA];
        world.refused(|guest| guest.machphys(other, 1));
        world.refused(|guest| guest.machphys(guest.dom.gdt_page, 1));
        world.refused(|guest| guest.machphys(Mfn(0xb8), 1));
        world.refused(|guest| guest.machphys(Mfn(0xf_0000), 1));
        world.refused_for(0, &[], |guest| guest.machphys(frame, 1));
        world.refused_for(0, &[foreign(DomId::IO)], |guest| guest.machphys(frame, 1));
        let request = world.guest(0).machphys(frame, 0x99);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), request]).result, OK);
        assert_eq!(world.host.hw.load64(entry), 0x99);
    });
}

#[test]
fn frames_are_reassigned_when_nothing_refers_to_them() {
    both(|world| {
        let give = |guest: &Guest| reassign(guest.frames[DATA]);
        world.refused(give);
        world.refused_for(0, &[], give);
        world.refused_for(0, &[foreign(DomId(1))], give);
        let at = world.guest(0).va(DATA);
        world.guest(0).run();
        assert_eq!(world.host.hw.guest_store(at, 0xfeed, Mode::Kernel), Ok(()), "now its TLB has it");
        assert_eq!(world.guest(0).remap(DATA, 0, 0), OK);
        let request = give(&world.guests[0]);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), request]), Done { result: OK, count: 2 });
        let frame = world.guest(0).frames[DATA];
        assert_eq!(world.host.frames.info(frame).map(|info| info.refs().owner()), Some(DomId(1)));
        assert_eq!(world.guest(1).dom.total_pages.load(Relaxed), FRAMES as u32 + 1);
        world.check();
        assert!(world.host.hw.guest_load(at, Mode::Kernel).is_err(), "it is gone from the old owner's TLB");
        world.refused_for(0, &[foreign(DomId(1))], |guest| reassign(guest.dom.shared_info));
        world.refused_for(0, &[foreign(DomId(1))], |guest| reassign(guest.dom.gdt_page));
        world.refused_for(0, &[foreign(DomId::XEN)], |guest| reassign(guest.frames[SPARE]));
    });
}

#[test]
fn no_page_is_transferred_where_no_grant_accepts_it() {
    both(|world| {
        for to in [0, 1, 7] {
            world.refused(|guest| extended(MmuExtCommand::TransferPage, guest.frames[SPARE].addr().0, to << 8));
        }
    });
}

#[test]
fn flushes_are_made_when_and_where_they_are_due() {
    both(|world| {
        let machine = world.host.clone();
        let count = || {
            let machine = machine.hw.machine();
            (
                machine.full_flushes.load(Relaxed),
                machine.page_flushes.load(Relaxed),
                machine.cache_flushes.load(Relaxed),
            )
        };
        let (full, page, caches) = count();
        let flush = extended(MmuExtCommand::TlbFlush, 0, 0);
        assert_eq!(world.guest(1).mmu_update(&[flush, flush, flush]).result, OK);
        assert_eq!(count(), (full + 1, page, caches), "at the end, once");
        let at = world.guest(1).va(DATA).0;
        assert_eq!(world.guest(1).request(extended(MmuExtCommand::Invlpg, at, 0)), OK);
        assert_eq!(world.guest(1).request(extended(MmuExtCommand::Invlpg, 0xffff_8300_0000_0000, 0)), OK);
        let narrow = world.guest(1).dom.arch == Arch::X86_32;
        // What is not the guest's is no reason for an error, nor for a flush (the narrow word cannot say it at all).
        assert_eq!(count(), (full + 1, page + if narrow { 2 } else { 1 }, caches));
        world.refused(|_| extended(MmuExtCommand::FlushCache, 0, 0));
        assert_eq!(world.guest(0).request(extended(MmuExtCommand::FlushCache, 0, 0)), OK);
        assert_eq!(count().2, caches + 1);
        assert_eq!(world.remap(DATA, |guest| guest.entry(DATA, RW)), OK);
        let entry = world.guest(1).entry(DATA, RW);
        let (full, page, _) = count();
        assert_eq!(world.guest(1).remap(DATA, entry, 1), OK);
        assert_eq!(world.guest(1).remap(DATA, entry, 2), OK);
        assert_eq!(world.guest(1).remap(DATA, entry, 0), OK);
        assert_eq!((count().0, count().1), (full + 1, page + 1));
    });
}

#[test]
fn unknown_commands_stop_the_list_and_are_counted_out() {
    both(|world| {
        for bad in [(1, 0), (3, 15), (3, 255)] {
            world.refused(|_| bad);
            let good = extended(MmuExtCommand::TlbFlush, 0, 0);
            assert_eq!(world.guest(1).mmu_update(&[good, good, bad, good]), Done { result: INVALID, count: 2 });
        }
    });
}

#[test]
fn bad_pointers_to_the_list_are_faults() {
    both(|world| {
        let fault = error(Errno::EFAULT);
        let guest = world.guest(1);
        let (args, hypervisor) =
            (guest.va(ARGS).0, if guest.dom.arch == Arch::X86_32 { 0xfc00_0000 } else { 0xffff_8000_0000_0000 });
        for list in [0, 0x1000, hypervisor, hypervisor + 0x1000, u64::from(u32::MAX) - 7, guest.va(FRAMES + 1).0] {
            assert_eq!(guest.call(Hypercall::MmuUpdate, [list, 1, 0, 0, 0, 0]), fault, "{list:#x}");
        }
        // A list that would not end before the address space does.
        let end = if guest.dom.arch == Arch::X86_32 { args } else { 0xffff_ffff_0000_0000 };
        assert_eq!(guest.call(Hypercall::MmuUpdate, [end, u64::from(u32::MAX), 0, 0, 0, 0]), fault);
        // It runs into a page that is not there: what lies before is done.
        let last = guest.va(FRAMES).0 + 4096 - 2 * guest.width();
        assert_eq!(guest.remap(FRAMES, guest.entry(DATA, RW), 1), OK);
        let (ptr, val) = extended(MmuExtCommand::TlbFlush, 0, 0);
        let words = if guest.dom.arch == Arch::X86_32 { alloc::vec![ptr | val << 32] } else { alloc::vec![ptr, val] };
        for (at, word) in (last..).step_by(8).zip(words) {
            assert_eq!(guest.host.hw.guest_store(GuestVirt(at), word, Mode::Kernel), Ok(()));
        }
        assert_eq!(guest.call(Hypercall::MmuUpdate, [last, 2, args + 4088, 0, 0, 0]), fault);
        assert_eq!(guest.host.hw.guest_load(GuestVirt(args + 4088), Mode::Kernel).map(|word| word as u32), Ok(1));
        // Where the count cannot be written, the work is done all the same.
        assert_eq!(guest.call(Hypercall::MmuUpdate, [last, 1, hypervisor, 0, 0, 0]), OK);
        assert_eq!(guest.call(Hypercall::MmuUpdate, [last, 1, 0x1000, 0, 0, 0]), OK);
        // Nothing to do is done anywhere.
        assert_eq!(guest.call(Hypercall::MmuUpdate, [args, 0, 0, 0, 0, 0]), OK);
    });
}

#[test]
fn update_va_mapping_reaches_the_guests_own_addresses_only() {
    both(|world| {
        let narrow = world.guest(1).dom.arch == Arch::X86_32;
        let hypervisor: u64 = if narrow { 0xfc00_0000 } else { 0xffff_8000_0000_0000 };
        let mut bad = alloc::vec![hypervisor, hypervisor + 0x3ff_f000, 0, 0x40_0000, 1 << 47, u64::MAX << 12];
        if !narrow {
            bad.extend([0xffff_87ff_ffff_f000, 0x8000_0000_0000_0000]);
        }
        for at in bad {
            let entry = world.guest(1).entry(DATA, 0);
            let result = world.judge(1, |guest| guest.call(Hypercall::UpdateVaMapping, [at >> 12, entry, 0, 0, 0, 0]));
            assert_eq!(result, Ok(INVALID), "{at:#x}");
        }
        // A number of pages that no address is as large as.
        for page in [u64::MAX, 1 << 52, 1 << 40] {
            let result = world.judge(1, |guest| guest.call(Hypercall::UpdateVaMapping, [page, 0, 0, 0, 0, 0]));
            assert_eq!(result, Ok(INVALID), "{page:#x}");
        }
    });
}

#[test]
fn update_va_mapping_otherdomain_is_for_the_privileged() {
    both(|world| {
        let frame = world.guest(1).frames[DATA];
        let map = |guest: &mut Guest, frame: Mfn, id: DomId| {
            let args = [guest.va(FRAMES + 1).0 >> 12, frame.addr().0 | guest.flags(RW), 0, id.0.into(), 0, 0];
            guest.call(Hypercall::UpdateVaMappingOtherdomain, args)
        };
        assert_eq!(world.judge(1, |guest| map(guest, frame, DomId(1))), Ok(error(Errno::EPERM)));
        for id in [DomId::SELF, DomId::IO, DomId::XEN, DomId(7)] {
            assert_eq!(world.judge(0, |guest| map(guest, frame, id)), Ok(error(Errno::ESRCH)));
        }
        assert_eq!(world.judge(0, |guest| map(guest, frame, DomId(0))), Ok(INVALID));
        assert_eq!(world.judge(0, |guest| map(guest, frame, DomId(1))), Ok(OK));
        assert_eq!(world.guest(1).type_of(frame), (FrameType::Writable, 2));
        // It cannot become a table while the other domain can write to it.
        assert_eq!(world.guest(1).remap(DATA, 0, 0), OK);
        world.refused(move |_| pin(frame, 1));
    });
}
#[test]
fn accessed_and_dirty_bits_are_true() {
    both(|world| {
        assert_eq!(world.remap(DATA, |guest| guest.entry(DATA, RW) & !A), OK);
        let guest = world.guest(1);
        guest.run();
        let (at, slot) = (guest.va(DATA), MachineAddr(guest.frames[L1].addr().0 + DATA as u64 * guest.width()));
        let used = || guest.host.hw.load32(slot) as u64 & (A | D);
        assert_eq!(used(), 0);
        assert!(guest.host.hw.guest_load(at, Mode::Kernel).is_ok());
        assert_eq!(used(), A);
        assert!(guest.host.hw.guest_store(at, 1, Mode::Kernel).is_ok());
        assert_eq!(used(), A | D);
        world.check();
        // A page that is only read never becomes dirty, whoever tries.
        assert_eq!(world.remap(DATA, |guest| guest.entry(DATA, 0) & !A), OK);
        assert!(world.host.hw.guest_store(at, 1, Mode::Kernel).is_err());
        let slot = world.host.hw.load32(slot) as u64;
        assert_eq!(slot & D, 0);
    });
}

#[test]
fn applications_see_what_has_the_user_bit_only() {
    let mut world = World::of(Arch::X86_32);
    let at = world.guest(1).va(DATA);
    world.guest(1).run();
    assert!(world.host.hw.guest_load(at, Mode::User).is_err());
    assert_eq!(world.remap(DATA, |guest| guest.entry(DATA, 0) | US), OK);
    assert!(world.host.hw.guest_load(at, Mode::User).is_ok());
    assert!(world.host.hw.guest_store(at, 0, Mode::User).is_err());
    world.check();
}

#[test]
fn without_memory_for_a_shadow_a_table_is_one_and_a_base_is_refused() {
    let mut world = World::of(Arch::X86_32);
    let mut taken = alloc::vec::Vec::new();
    while let Some(frame) = world.host.alloc.lock().alloc_hypervisor(0, crate::frame_alloc::Zone::Any, &world.host.hw) {
        taken.push(frame);
    }
    for level in [1, 2] {
        world.done(|guest| pin(guest.frames[SPARE], level));
        world.done(|guest| unpin(guest.frames[SPARE]));
    }
    // What is walked must be there, and two frames of the current base's L1 are not four in a row.
    world.refused(|guest| new_base(guest.frames[SECOND_TOP]));
    for frame in taken {
        world.host.free_hypervisor(frame, 0);
    }
    world.done(|guest| pin(guest.frames[SPARE], 2));
    world.done(|guest| new_base(guest.frames[SECOND_TOP]));
}
