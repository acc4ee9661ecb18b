//! `dom_mem_op`: what is taken and given back, what is refused, and where a list ends.

use super::world::*;
use crate::addr::{DomId, MachineAddr, Mfn};
use crate::domain::Arch;
use crate::frame::FrameType;
use crate::host::{Host, NO_PFN_WIDE};
use crate::machine::{GuestMemory, MachineMemory};
use crate::paging::format::bits::RW;
use crate::sim_hw::{Mode, SimHardware, domain, host_with};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use proxenos_abi::{Errno, Hypercall};

/// MEMOP_increase_reservation and MEMOP_decrease_reservation.
const INCREASE: u64 = 0;
const DECREASE: u64 = 1;
const SELF: u64 = DomId::SELF.0 as u64;

#[track_caller]
fn both(test: impl Fn(&mut World)) {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        test(&mut world);
        world.check();
    }
}

impl Guest {
    /// `dom_mem_op` on a list; the result, and the list as it is then.
    fn mem_op(&mut self, op: u64, list: &[u64], order: u64, id: u64) -> (u64, Vec<u64>) {
        assert!(self.put_args(list));
        let at = self.va(ARGS);
        let result = self.call(Hypercall::DomMemOp, [op, at.0, list.len() as u64, order, id, 0]);
        let read = |index: usize| {
            let mut word = [0; 8];
            let width = self.width() as usize;
            self.host.hw.copy_from_guest(at.offset((index * width) as u64), &mut word[..width]).expect("mapped");
            u64::from_le_bytes(word)
        };
        (result, (0..list.len()).map(read).collect())
    }

    fn free(&self) -> u64 {
        self.host.alloc.lock().free_frames(crate::frame_alloc::Zone::Any)
    }

    fn pages(&self) -> u32 {
        self.dom.total_pages.load(Relaxed)
    }
}

#[test]
fn the_hypervisors_reserve_is_nobodys_to_have() {
    both(|world| {
        const RESERVE: u64 = 24;
        world.host.alloc.lock().set_reserve(RESERVE);
        for (who, order) in [(0, 2), (1, 0)] {
            world.guest(who).dom.max_pages.store(u32::MAX, Relaxed);
            while world.guest(who).mem_op(INCREASE, &[0], order, SELF).0 == 1 {}
            let free = world.guest(1).free();
            assert!((RESERVE..RESERVE + (1 << order)).contains(&free), "{free} are left at order {order}");
        }
        world.host.alloc.lock().set_reserve(0);
        assert_eq!(world.guest(1).mem_op(INCREASE, &[0], 0, SELF).0, 1);
    });
}

#[test]
fn frames_come_and_go() {
    both(|world| {
        let guest = world.guest(1);
        let (free, pages) = (guest.free(), guest.pages());
        let (done, list) = guest.mem_op(INCREASE, &[0, 0, 0], 0, SELF);
        assert_eq!((done, guest.free(), guest.pages()), (3, free - 3, pages + 3));
        for &mfn in &list {
            let refs = guest.host.frames.info(Mfn(mfn)).expect("RAM").refs();
            assert_eq!((refs.owner(), refs.count(), refs.is_allocated()), (DomId(1), 1, true));
            // It can be used, like any other.
            assert_eq!(guest.request(guest.machphys(Mfn(mfn), 99)), OK);
            assert_eq!(guest.remap(FRAMES + 1, Mfn(mfn).addr().0 | guest.flags(RW), 2), OK);
            assert_eq!(guest.host.hw.guest_store(guest.va(FRAMES + 1), 0x5ec2e7, Mode::Kernel), Ok(()));
            assert_eq!(guest.remap(FRAMES + 1, 0, 2), OK);
        }
        let (done, _) = guest.mem_op(DECREASE, &list, 0, SELF);
        assert_eq!((done, guest.free(), guest.pages()), (3, free, pages));
        let wide = guest.host.m2p.wide().expect("there is one").addr().0;
        for &mfn in &list {
            assert_eq!(guest.host.hw.load64(Mfn(mfn).addr()), 0, "scrubbed");
            assert_eq!(guest.host.hw.load64(MachineAddr(wide + 8 * mfn)), NO_PFN_WIDE, "and no pfn of anybody's");
            assert_ne!(guest.remap(FRAMES + 1, Mfn(mfn).addr().0 | guest.flags(0), 2), OK, "nor to be had");
        }
    });
}

#[test]
fn extents_are_contiguous_and_aligned() {
    both(|world| {
        let free = world.guest(0).free();
        let (done, list) = world.guest(0).mem_op(INCREASE, &[0, 0], 3, SELF);
        assert_eq!((done, world.guest(0).free()), (2, free - 16));
        for &first in &list {
            assert!(first.is_multiple_of(8));
            for mfn in first..first + 8 {
                assert_eq!(world.host.frames.info(Mfn(mfn)).expect("RAM").refs().owner(), DomId(0));
            }
        }
        world.check();
        // One frame of the second extent goes alone, then the extent is none any more.
        assert_eq!(world.guest(0).mem_op(DECREASE, &[list[1] + 5], 0, SELF).0, 1);
        let pages = world.guest(0).pages();
        assert_eq!(world.guest(0).mem_op(DECREASE, &list, 3, SELF).0, 1, "the first extent only");
        assert_eq!(world.guest(0).pages(), pages - 8, "nothing of the second");
        world.check();
        let rest: Vec<u64> = (list[1]..list[1] + 8).filter(|&mfn| mfn != list[1] + 5).collect();
        assert_eq!(world.guest(0).mem_op(DECREASE, &rest, 0, SELF).0, 7);
        assert_eq!(world.guest(0).free(), free);
        // More than a frame at a time is for those with devices; any number can be given back.
        assert_eq!(world.guest(1).mem_op(INCREASE, &[0], 1, SELF).0, 0);
        for order in [11, 31, 32, 63, 64, u64::from(u32::MAX)] {
            assert_eq!(world.guest(0).mem_op(INCREASE, &[0], order, SELF).0, 0, "order {order}");
            assert_eq!(world.guest(0).mem_op(DECREASE, &[0x100], order, SELF).0, 0, "order {order}");
        }
    });
}

#[test]
fn only_ones_own_frames_are_given_back() {
    both(|world| {
        let before = world.snapshot();
        let theirs = world.guests[0].frames[DATA].0;
        let (shared, copy) = (world.guests[1].dom.shared_info.0, world.guests[1].dom.gdt_page.0);
        let free = world.host.alloc.lock().blocks().next().expect("free memory").0.0;
        let end = world.host.frames.len();
        for bad in [theirs, shared, copy, free, 0, 0xb8, 0xfee00, end, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(world.guest(1).mem_op(DECREASE, &[bad], 0, SELF).0, 0, "{bad:#x}");
            assert_eq!(world.guest(1).mem_op(DECREASE, &[bad], 2, SELF).0, 0, "{bad:#x}");
        }
        assert_eq!(world.snapshot(), before);
        // The list ends where it is bad.
        let own = world.guests[1].frames[DATA].0;
        let last = world.guests[1].frames[DATA + 1].0;
        assert_eq!(world.guest(1).mem_op(DECREASE, &[own, own, last], 0, SELF).0, 1, "not twice");
        let info = world.host.frames.info(Mfn(last)).expect("RAM");
        assert!(info.refs().is_allocated());
    });
}

#[test]
fn a_frame_in_use_stays_until_it_is_in_none() {
    both(|world| {
        let guest = world.guest(1);
        let (frame, free, pages) = (guest.frames[DATA], guest.free(), guest.pages());
        guest.dom.max_pages.store(pages, Relaxed);
        assert_eq!(guest.host.hw.guest_store(guest.va(DATA), 7, Mode::Kernel), Ok(()));
        assert_eq!(guest.mem_op(DECREASE, &[frame.0], 0, SELF).0, 1);
        assert_eq!((guest.free(), guest.pages()), (free, pages), "it is still mapped");
        assert_eq!(guest.host.hw.guest_load(guest.va(DATA), Mode::Kernel), Ok(7));
        assert_eq!(guest.mem_op(INCREASE, &[0], 0, SELF).0, 0, "and counts");
        world.check();
        let guest = world.guest(1);
        assert_eq!(guest.remap(DATA, 0, 2), OK);
        assert_eq!((guest.free(), guest.pages(), guest.host.hw.load64(frame.addr())), (free + 1, pages - 1, 0));
        assert_eq!(guest.mem_op(INCREASE, &[0], 0, SELF).0, 1);
    });
}

#[test]
fn a_pinned_table_is_unpinned_and_the_base_outlives_its_owner() {
    both(|world| {
        let guest = world.guest(1);
        let (spare, top) = (guest.frames[SPARE], guest.frames[TOP]);
        assert_eq!(guest.request(pin(spare, 1)), OK);
        assert_eq!(guest.mem_op(DECREASE, &[spare.0, top.0], 0, SELF).0, 2);
        // Both are mapped still; the top table is the base.
        assert_eq!(guest.type_of(spare), (FrameType::None, 0));
        assert_eq!(guest.type_of(top).1, 1);
        assert_eq!(guest.request(unpin(top)), error(Errno::EINVAL));
        world.check();
        let guest = world.guest(1);
        let second = guest.frames[SECOND_TOP];
        assert_eq!(guest.remap(TOP, 0, 2), OK);
        assert_eq!(guest.request(new_base(second)), OK);
        let refs = guest.host.frames.info(top).expect("RAM").refs();
        assert_eq!((refs.count(), guest.host.hw.load64(top.addr())), (0, 0), "with its last use it is gone");
    });
}

#[test]
fn the_limit_holds() {
    both(|world| {
        let guest = world.guest(0);
        let pages = guest.pages();
        guest.dom.max_pages.store(pages + 5, Relaxed);
        assert_eq!(guest.mem_op(INCREASE, &[0, 0], 2, SELF).0, 1);
        assert_eq!(guest.mem_op(INCREASE, &[0, 0], 0, SELF).0, 1);
        assert_eq!(guest.pages(), pages + 5);
        // And so does the machine's.
        guest.dom.max_pages.store(u32::MAX, Relaxed);
        while guest.mem_op(INCREASE, &[0; 16], 0, SELF).0 == 16 {}
        assert_eq!(guest.free(), 0);
        assert_eq!(guest.mem_op(INCREASE, &[0], 0, SELF).0, 0);
        // A limit that is below what a domain has takes nothing away.
        guest.dom.max_pages.store(3, Relaxed);
        assert_eq!(guest.mem_op(INCREASE, &[0], 0, SELF).0, 0);
    });
}

#[test]
fn other_domains_are_for_the_privileged() {
    both(|world| {
        let own = world.guests[1].frames[DATA].0;
        assert_eq!(world.guest(1).mem_op(DECREASE, &[own], 0, 1).0, error(Errno::EPERM), "even oneself by number");
        assert_eq!(world.guest(1).mem_op(INCREASE, &[0], 0, 0).0, error(Errno::EPERM));
        assert_eq!(world.guest(1).mem_op(7, &[0], 0, 0).0, error(Errno::EPERM));
        for id in [77, u64::from(DomId::IO.0), u64::from(DomId::XEN.0)] {
            assert_eq!(world.guest(0).mem_op(INCREASE, &[0], 0, id).0, error(Errno::ESRCH), "{id:#x}");
        }
        assert_eq!(world.guest(0).mem_op(2, &[0], 0, SELF).0, error(Errno::ENOSYS));
        let pages = world.guests[1].pages();
        let (done, list) = world.guest(0).mem_op(INCREASE, &[0], 2, 1);
        assert_eq!((done, world.guests[1].pages()), (1, pages + 4));
        assert_eq!(world.host.frames.info(Mfn(list[0])).expect("RAM").refs().owner(), DomId(1));
        world.check();
        assert_eq!(world.guest(0).mem_op(DECREASE, &list, 2, 0).0, 0, "not domain 0's own");
        assert_eq!(world.guest(0).mem_op(DECREASE, &list, 2, 1).0, 1);
        assert_eq!(world.guests[1].pages(), pages);
    });
}

#[test]
fn lists_that_cannot_be_had_end_the_request() {
    both(|world| {
        let guest = world.guest(1);
        let (free, pages) = (guest.free(), guest.pages());
        let (hypervisor, unmapped, read_only) = match world.guests[1].dom.arch {
            Arch::X86_32 => (0xfc00_0000, 0x1000, SPARE),
            Arch::X86_64 => (0xffff_8000_0000_0000, 0x1000, SPARE),
        };
        let read_only = world.guests[1].va(read_only);
        for op in [INCREASE, DECREASE] {
            for (at, count) in [(hypervisor, 1), (unmapped, 1), (hypervisor - 8, 99), (0x1000, u64::MAX), (0x1000, 0)] {
                let guest = world.guest(1);
                assert_eq!(guest.call(Hypercall::DomMemOp, [op, at, count, 0, SELF, 0]), 0, "{at:#x}");
                assert_eq!((guest.free(), guest.pages()), (free, pages), "no frame is lost");
            }
        }
        let guest = world.guest(1);
        assert_eq!(guest.call(Hypercall::DomMemOp, [INCREASE, read_only.0, 1, 0, SELF, 0]), 0, "nowhere to write");
        assert_eq!((guest.free(), guest.pages()), (free, pages), "no frame is lost");
        // The last slot of a page that is followed by none.
        assert_eq!(guest.remap(SPARE2, 0, 2), OK);
        let at = guest.va(SPARE2).0 - guest.width();
        assert_eq!(guest.remap(SPARE, guest.entry(SPARE, RW), 2), OK);
        assert_eq!(guest.call(Hypercall::DomMemOp, [INCREASE, at, 5, 0, SELF, 0]), 1);
        assert_eq!((guest.free(), guest.pages()), (free - 1, pages + 1), "one was written");
    });
}

/// What firmware and loader left in memory: as if RAM had never been cleared, but where somebody has it.
fn litter(host: &Host<SimHardware>) {
    for (first, order) in host.alloc.lock().blocks() {
        for mfn in first.0..first.0 + (1 << order) {
            host.hw.machine().fill_frame(Mfn(mfn), 0xa5);
        }
    }
}

#[test]
fn what_lay_in_memory_at_boot_is_seen_by_domain_0_alone() {
    let clean =
        |host: &Host<SimHardware>, frame: Mfn| host.hw.machine().frame_bytes(frame).iter().all(|&byte| byte == 0);
    for arch in [Arch::X86_32, Arch::X86_64] {
        // At its start: domain 0 is trusted, no other is, whatever its privileges.
        let host = host_with(0x100 + 512, 3, None);
        litter(&host);
        for (id, privileges) in [(0, PRIVILEGED), (1, PRIVILEGED), (2, PLAIN)] {
            let dom = domain(&host, DomId(id), arch, privileges, FRAMES);
            let seen = dom.frames.iter().filter(|&&frame| !clean(&host, frame)).count();
            assert_eq!(seen, if id == 0 { FRAMES } else { 0 }, "domain {id}");
            for own in [dom.dom.shared_info, dom.dom.gdt_page] {
                let bytes = host.hw.machine().frame_bytes(own);
                assert!(!bytes.contains(&0xa5), "domain {id}: what it shares with the hypervisor, or is walked for it");
            }
        }
        // Later, by extents; also what domain 0 had and wrote to, and what the hypervisor had.
        let mut world = World::new(&[(arch, PRIVILEGED), (arch, PRIVILEGED), (arch, PLAIN)]);
        litter(&world.host);
        let (done, first) = world.guest(0).mem_op(INCREASE, &[0; 8], 0, SELF);
        assert_eq!(done, 8);
        assert!(first.iter().all(|&mfn| !clean(&world.host, Mfn(mfn))), "the trusted gets what there is");
        assert_eq!(world.guest(0).mem_op(DECREASE, &first, 0, SELF).0, 8);
        for (who, order) in [(1, 0), (1, 4), (2, 0)] {
            let (done, list) = world.guest(who).mem_op(INCREASE, &[0; 12], order, SELF);
            assert_eq!(done, 12);
            let frames = list.iter().flat_map(|&first| (first..first + (1 << order)).map(Mfn));
            let dirty: Vec<Mfn> = frames.filter(|&frame| !clean(&world.host, frame)).collect();
            assert_eq!(dirty, [], "domain {who}, order {order}");
        }
        world.check();
    }
}
