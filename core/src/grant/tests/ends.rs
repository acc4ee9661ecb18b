//! A domain ends that others map from, or that maps from others: nothing of it stays, but what others still have.

use super::*;
use crate::preempt::Poll;
use crate::teardown::Teardown;
use core::sync::atomic::Ordering::Relaxed;
use proxenos_abi::Errno;

impl World {
    /// Takes a domain down, which is interrupted every so often, and looks at each such point.
    fn take_down(&mut self, who: usize, every: usize) {
        self.guests[who].run();
        self.host.hw.leave();
        self.host.hw.preempt_every(every);
        let mut teardown = Teardown::Begun;
        while teardown != Teardown::Done {
            let guest = self.guest(who);
            let (host, dom) = (guest.host.clone(), guest.dom.clone());
            teardown.go_on(&host, &dom, &mut guest.vcpu.segments, &mut Poll::begin());
            self.check();
        }
        self.host.hw.preempt_every(0);
    }

    fn frames_of(&self, who: usize) -> usize {
        let id = DomId(who as u16);
        let records = (0..self.host.frames.len()).filter_map(|mfn| self.host.frames.info(Mfn(mfn)));
        records.filter(|info| info.refs().owner() == id && info.refs().count() > 0).count()
    }
}

#[test]
fn the_mapping_domain_ends() {
    everywhere(|world| {
        for grant in 0..40 {
            world.grant(grant, ACCESS, DATA + usize::from(grant) % 8);
        }
        let before: Vec<_> = (DATA..FRAMES).map(|pfn| world.counts(pfn)).collect();
        for grant in 0..40 {
            let flags = [HOST, HOST_RO | DEVICE, DEVICE, DEVICE_RO][usize::from(grant) % 4];
            world.mapped(grant, flags, FREE_PAGE + usize::from(grant));
        }
        // One whose entry is gone already.
        assert_eq!(world.guest(MAPPER).remap(FREE_PAGE, 0, 0), OK);
        world.take_down(MAPPER, 3);
        assert!((0..40).all(|grant| world.flags(grant) == ACCESS));
        assert_eq!((DATA..FRAMES).map(|pfn| world.counts(pfn)).collect::<Vec<_>>(), before);
    });
}

#[test]
fn the_granting_domain_ends() {
    for every in [0, 2] {
        everywhere(|world| {
            world.grant(0, ACCESS, DATA);
            world.grant(1, ACCESS, DATA + 1);
            world.write_grant(GRANTOR, 2, GrantFlags::ACCEPT_TRANSFER, MAPPER, 0);
            let frame = world.guests[GRANTOR].frames[DATA];
            let table = world.table(GRANTOR);
            let first = world.mapped(0, HOST, FREE_PAGE);
            let second = world.mapped(1, DEVICE_RO, FREE_PAGE);
            world.take_down(GRANTOR, every);
            let pages = |world: &World| world.guests[GRANTOR].dom.total_pages.load(Relaxed);
            assert_eq!(pages(world), 2, "what another domain has mapped");
            assert_eq!(world.host.frames.info(table).expect("RAM").refs().count(), 0, "its table is free");
            // Nothing more is to be had of it, by anybody.
            for (grant, flags) in [(0, HOST), (1, DEVICE), (3, HOST_RO)] {
                assert_eq!(world.map(grant, flags, FREE_PAGE + 3), BAD_DOMAIN);
            }
            let own = world.guests[MAPPER].frames[DATA];
            assert_eq!(world.guest(MAPPER).remap(DATA, 0, 2), OK);
            assert_eq!(world.give(own, GRANTOR, 2), error(Errno::EINVAL));
            let mut op = setup(DomId(GRANTOR as u16), 1, world.guests[0].va(ARGS).offset(64).0);
            assert_eq!(world.guest(0).grants(GrantTableCommand::SetupTable, core::slice::from_mut(&mut op)), OK);
            assert_eq!({ op.status }, BAD_DOMAIN);
            world.check();
            // What is mapped goes when it is unmapped. The table's frame may be anybody's by then.
            world.host.hw.store64(table.addr(), 0x1234_5678);
            assert_eq!(world.unmap(FREE_PAGE, first), OKAY);
            assert_eq!((pages(world), world.host.frames.info(frame).expect("RAM").refs().count()), (1, 0));
            let bus = world.guests[GRANTOR].frames[DATA + 1].addr().0;
            assert_eq!(world.unmap_by(0, bus, second), OKAY);
            assert_eq!((pages(world), world.host.hw.load64(table.addr())), (0, 0x1234_5678));
            world.host.hw.store64(table.addr(), 0);
            assert_eq!(world.frames_of(GRANTOR), 1, "shared_info, which goes with the domain itself");
        });
    }
}

#[test]
fn both_end() {
    for first in [MAPPER, GRANTOR] {
        everywhere(|world| {
            // Each has something of the other's.
            world.grant(0, ACCESS, DATA);
            world.mapped(0, HOST, FREE_PAGE);
            let frame = world.guests[MAPPER].frames[DATA].0;
            world.write_grant(MAPPER, 5, RO, GRANTOR, frame);
            let at = world.guests[GRANTOR].va(FREE_PAGE).0;
            let mut op = mapping(MAPPER, 5, HOST_RO, at);
            assert_eq!(world.guest(GRANTOR).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
            assert!({ op.handle } >= 0);
            let free = |world: &World| world.host.alloc.lock().free_frames(crate::frame_alloc::Zone::Any);
            for who in [first, MAPPER + GRANTOR - first] {
                world.take_down(who, 3);
            }
            assert_eq!((world.frames_of(MAPPER), world.frames_of(GRANTOR)), (1, 1));
            let doms = [MAPPER, GRANTOR].map(|who| alloc::sync::Arc::strong_count(&world.guests[who].dom));
            assert_eq!(doms, [2, 2], "nobody keeps them but the list and this test");
            assert!(free(world) > 0);
        });
    }
}

#[test]
fn a_table_that_is_mapped_goes_last() {
    everywhere(|world| {
        let table = world.table(GRANTOR);
        // Its own domain maps it, and so does domain 0, to write to it.
        let grantor = world.guest(GRANTOR);
        assert_eq!(grantor.remap(FREE_PAGE, table.addr().0 | grantor.flags(2), 2), OK);
        let theirs = table.addr().0 | world.guests[0].flags(2);
        let page = world.guests[0].va(FREE_PAGE).0 >> 12;
        let id = GRANTOR as u64;
        assert_eq!(world.guest(0).call(Hypercall::UpdateVaMappingOtherdomain, [page, theirs, 2, id, 0, 0]), OK);
        world.check();
        world.take_down(GRANTOR, 0);
        assert_eq!(world.host.frames.info(table).expect("RAM").refs().count(), 1);
        assert_eq!(world.guest(0).remap(FREE_PAGE, 0, 2), OK);
        assert_eq!(world.host.frames.info(table).expect("RAM").refs().count(), 0);
        assert_eq!(world.guests[GRANTOR].dom.total_pages.load(Relaxed), 0, "it never was of its reservation");
    });
}
