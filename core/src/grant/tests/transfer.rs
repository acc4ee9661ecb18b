//! MMUEXT_TRANSFER_PAGE: a frame goes where a grant accepts it, with all that is in it, and nowhere else.

use super::*;
use crate::host::NO_PFN_WIDE;
use crate::paging::format::bits::RW;
use crate::sim_hw::Mode;
use core::sync::atomic::Ordering::Relaxed;
use proxenos_abi::Errno;
use proxenos_abi::mmu::{MmuExtCommand, MmuUpdate};

const ACCEPT: GrantFlags = GrantFlags::ACCEPT_TRANSFER;
const DONE: GrantFlags =
    GrantFlags::ACCEPT_TRANSFER.union(GrantFlags::TRANSFER_COMMITTED).union(GrantFlags::TRANSFER_COMPLETED);

impl World {
    /// The mapper gives a frame to a grant: the result.
    pub fn give(&mut self, frame: Mfn, to: usize, grant: u16) -> u64 {
        let request =
            MmuUpdate::<X86_64>::transfer_page(frame.addr(), DomId(to as u16), GrantRef(grant)).expect("fits");
        self.guest(MAPPER).request((request.ptr, request.val))
    }

    /// As [`give`](Self::give), where it is refused: nothing may change.
    #[track_caller]
    fn give_refused(&mut self, frame: Mfn, to: usize, grant: u16) {
        let (flags, before) = (self.flags(grant % 512), self.snapshot());
        assert_eq!(self.give(frame, to, grant), error(Errno::EINVAL));
        assert!(self.snapshot() == before && self.flags(grant % 512) == flags);
        self.check();
    }

    fn pages(&self) -> [u32; 2] {
        [MAPPER, GRANTOR].map(|who| self.guests[who].dom.total_pages.load(Relaxed))
    }

    fn pfn(&self, frame: Mfn) -> u64 {
        let table = self.host.m2p.wide().expect("there is one").addr().0;
        self.host.hw.load64(MachineAddr(table + 8 * frame.0))
    }
}

#[test]
fn a_frame_goes_with_its_contents() {
    everywhere(|world| {
        for (grant, place, pfn) in [(3, 0, NO_PFN_WIDE), (511, 40, 40)] {
            let own = DATA + usize::from(grant == 511);
            let frame = world.guests[MAPPER].frames[own];
            world.guests[MAPPER].run();
            let at = world.guests[MAPPER].va(own);
            assert_eq!(world.host.hw.guest_store(at, 0x5ec2e7, Mode::Kernel), Ok(()));
            // Not flushed: the TLB still has it when it goes.
            assert_eq!(world.guest(MAPPER).remap(own, 0, 0), OK);
            world.write_grant(GRANTOR, grant, ACCEPT, MAPPER, place);
            let [mapper, grantor] = world.pages();
            assert_eq!(world.give(frame, GRANTOR, grant), OK);
            world.check();
            assert_eq!(world.flags(grant), DONE);
            let table = world.table(GRANTOR).addr().0;
            assert_eq!(u64::from(world.host.hw.load32(MachineAddr(table + 8 * u64::from(grant) + 4))), frame.0);
            assert_eq!(world.pages(), [mapper - 1, grantor + 1]);
            assert_eq!(world.pfn(frame), pfn);
            assert_eq!(world.host.hw.load32(frame.addr()), 0x5ec2e7);
            world.guests[MAPPER].run();
            assert!(world.host.hw.guest_load(at, Mode::Kernel).is_err());
            // The receiver has it, once.
            let grantor = world.guest(GRANTOR);
            assert_eq!(grantor.remap(FREE_PAGE, frame.addr().0 | grantor.flags(RW), 2), OK);
            assert_eq!(grantor.remap(FREE_PAGE, 0, 2), OK);
            world.give_refused(frame, GRANTOR, grant);
        }
    });
}

#[test]
fn a_frame_goes_nowhere_else() {
    everywhere(|world| {
        let frame = world.guests[MAPPER].frames[DATA];
        assert_eq!(world.guest(MAPPER).remap(DATA, 0, 2), OK);
        // No table, no grant, a grant of another kind, to another domain, or in use.
        assert_eq!(world.give(frame, 0, 0), error(Errno::EINVAL));
        assert_eq!(world.give(frame, 0, 600), error(Errno::EINVAL));
        world.give_refused(frame, GRANTOR, 0);
        for flags in
            [ACCESS, DONE, ACCEPT | GrantFlags::TRANSFER_COMMITTED, GrantFlags::TYPE_MASK, ACCEPT | GrantFlags::WRITING]
        {
            world.write_grant(GRANTOR, 0, flags, MAPPER, 0);
            world.give_refused(frame, GRANTOR, 0);
        }
        world.write_grant(GRANTOR, 0, ACCEPT, 0, 0);
        world.give_refused(frame, GRANTOR, 0);
        world.write_grant(GRANTOR, 0, ACCEPT, MAPPER, 0);
        for to in [77, MAPPER, 0x7ff0, 0x7ff2] {
            world.give_refused(frame, to, 0);
        }
        world.give_refused(frame, GRANTOR, 1);
        world.give_refused(frame, GRANTOR, 512);
        // What is not the giver's to give.
        let guest = &world.guests[MAPPER];
        let mut bad = alloc::vec![guest.frames[DATA + 1], guest.frames[L1], guest.dom.shared_info, guest.dom.gdt_page];
        bad.extend([world.guests[GRANTOR].frames[DATA], Mfn(0xb8), Mfn(0xf_0000), Mfn(0xfee00)]);
        for frame in bad {
            world.give_refused(frame, GRANTOR, 0);
        }
        // No more than the receiver may have.
        let limit = &world.guests[GRANTOR].dom.max_pages;
        limit.store(world.pages()[1], Relaxed);
        world.give_refused(frame, GRANTOR, 0);
        world.guests[GRANTOR].dom.max_pages.store(world.pages()[1] + 1, Relaxed);
        assert_eq!(world.give(frame, GRANTOR, 0), OK);
    });
}

#[test]
fn the_foreign_domain_has_nothing_to_do_with_it() {
    everywhere(|world| {
        let frame = world.guests[0].frames[DATA];
        assert_eq!(world.guest(0).remap(DATA, 0, 2), OK);
        world.write_grant(GRANTOR, 0, ACCEPT, 0, 0);
        let arg = (GRANTOR as u64) << 8;
        let give = extended(MmuExtCommand::TransferPage, frame.addr().0, arg);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(MAPPER as u16)), give]), Done { result: OK, count: 2 });
        assert_eq!(world.flags(0), DONE);
    });
}

#[test]
fn a_granted_frame_is_not_given_away() {
    everywhere(|world| {
        // The mapper has a frame of its own granted to domain 0, which maps it for devices.
        let frame = world.guests[MAPPER].frames[DATA];
        assert_eq!(world.guest(MAPPER).remap(DATA, 0, 2), OK);
        world.write_grant(MAPPER, 0, ACCESS, 0, frame.0);
        let mut op = mapping(MAPPER, 0, DEVICE_RO, 0);
        assert_eq!(world.guest(0).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
        world.write_grant(GRANTOR, 0, ACCEPT, MAPPER, 0);
        world.give_refused(frame, GRANTOR, 0);
        let mut op = unmapping(0, frame.addr().0, op.handle as u16);
        assert_eq!(world.guest(0).grants(GrantTableCommand::UnmapGrantRef, core::slice::from_mut(&mut op)), OK);
        assert_eq!(({ op.status }, world.give(frame, GRANTOR, 0)), (OKAY, OK));
    });
}
