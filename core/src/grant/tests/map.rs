//! GNTTABOP_map_grant_ref: what a mapping is, and each status.

use super::*;
use crate::sim_hw::Mode;
use proxenos_abi::Errno;

#[test]
fn a_granted_frame_is_seen_and_written_to() {
    everywhere(|world| {
        world.grant(3, ACCESS, DATA);
        let before = world.counts(DATA);
        let handle = world.mapped(3, HOST, FREE_PAGE);
        assert_eq!(world.flags(3), ACCESS | BOTH);
        assert_eq!(world.counts(DATA), (before.0 + 2, before.1 + 2), "the mapping's and the entry's");
        let at = world.guests[MAPPER].va(FREE_PAGE);
        world.guests[MAPPER].run();
        assert_eq!(world.host.hw.guest_store(at, 0xfeed, Mode::Kernel), Ok(()));
        assert_eq!(world.host.hw.load32(world.guests[GRANTOR].frames[DATA].addr()), 0xfeed);
        assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
        assert_eq!((world.flags(3), world.counts(DATA)), (ACCESS, before));
        world.guests[MAPPER].run();
        assert!(world.host.hw.guest_load(at, Mode::Kernel).is_err(), "not even by the TLB");
        assert_eq!(world.unmap(FREE_PAGE, handle), BAD_REF, "once");
    });
}

#[test]
fn read_only_is_read_only() {
    everywhere(|world| {
        world.grant(0, RO, DATA);
        world.map_refused(0, HOST, FREE_PAGE, GENERAL);
        world.map_refused(0, DEVICE, FREE_PAGE, GENERAL);
        let handle = world.mapped(0, HOST_RO, FREE_PAGE);
        assert_eq!(world.flags(0), RO | READING);
        let at = world.guests[MAPPER].va(FREE_PAGE);
        world.guests[MAPPER].run();
        assert!(world.host.hw.guest_load(at, Mode::Kernel).is_ok());
        assert!(world.host.hw.guest_store(at, 1, Mode::Kernel).is_err());
        // A second one that may write is refused as long as the grant says so.
        world.map_refused(0, DEVICE, FREE_PAGE, GENERAL);
        world.grant(0, ACCESS | READING, DATA);
        let writer = world.mapped(0, DEVICE, FREE_PAGE);
        assert_eq!(world.flags(0), ACCESS | BOTH);
        let bus = world.guests[GRANTOR].frames[DATA].addr().0;
        assert_eq!(world.unmap_by(0, bus, writer), OKAY);
        assert_eq!(world.flags(0), ACCESS | READING, "it is still read");
        assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
        assert_eq!(world.flags(0), ACCESS);
    });
}

#[test]
fn applications_have_what_is_mapped_for_them() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        let narrow = world.guests[MAPPER].dom.arch == Arch::X86_32;
        for (flags, theirs) in [(HOST, !narrow), (HOST | GrantMapFlags::APPLICATION_MAP, true)] {
            let handle = world.mapped(0, flags, FREE_PAGE);
            let at = world.guests[MAPPER].va(FREE_PAGE);
            world.guests[MAPPER].run();
            assert_eq!(world.host.hw.guest_load(at, Mode::User).is_ok(), theirs);
            assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
        }
    });
}

#[test]
fn devices_are_told_an_address() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        let bus = world.guests[GRANTOR].frames[DATA].addr().0;
        for flags in [DEVICE, DEVICE_RO, DEVICE | HOST, HOST] {
            let at = world.guests[MAPPER].va(FREE_PAGE).0;
            let mut op = mapping(GRANTOR, 0, flags, at);
            assert_eq!(world.guest(MAPPER).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
            assert_eq!(op.dev_bus_addr.to_u64(), bus);
            assert_eq!(world.flags(0), ACCESS | if flags == DEVICE_RO { READING } else { BOTH });
            world.check();
            // Half of it, then the other half.
            if flags.contains(DEVICE) {
                assert_eq!(world.unmap_by(0, bus, op.handle as u16), OKAY);
                assert_eq!(world.flags(0) == ACCESS, !flags.contains(HOST));
            }
            if flags.contains(HOST) {
                assert_eq!(world.unmap_by(at, 0, op.handle as u16), OKAY);
            }
            assert_eq!((world.flags(0), world.unmap_by(0, 0, op.handle as u16)), (ACCESS, BAD_REF));
        }
    });
}

#[test]
fn every_refusal_has_its_status_and_changes_nothing() {
    everywhere(|world| {
        assert_eq!(
            (world.map(0, HOST, FREE_PAGE), world.map(511, DEVICE, FREE_PAGE)),
            (GENERAL, GENERAL),
            "no table yet"
        );
        assert_eq!(world.map(512, HOST, FREE_PAGE), BAD_REF);
        world.map_refused(0, HOST, FREE_PAGE, GENERAL);
        world.grant(0, ACCESS, DATA);
        world.map_refused(0, GrantMapFlags::empty(), FREE_PAGE, BAD_REF);
        world.map_refused(0, GrantMapFlags::READONLY, FREE_PAGE, BAD_REF);
        world.map_refused(512, HOST, FREE_PAGE, BAD_REF);
        world.map_refused(u16::MAX, HOST, FREE_PAGE, BAD_REF);
        world.map_refused(1, HOST, FREE_PAGE, GENERAL);
        // No table for that address, an address that is no page's or not a guest's.
        world.map_refused(0, HOST, 5000, GENERAL);
        for at in [world.guests[MAPPER].va(FREE_PAGE).0 + 1, 0xfc00_0000, 0xffff_8000_0000_0000, !4095] {
            let before = world.snapshot();
            let mut op = mapping(GRANTOR, 0, HOST, at);
            assert_eq!(world.guest(MAPPER).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
            assert_eq!({ op.handle }, GENERAL, "{at:#x}");
            assert!(world.snapshot() == before && world.flags(0) == ACCESS);
        }
        for (dom, status) in [(MAPPER, BAD_DOMAIN), (77, BAD_DOMAIN), (0x7ff0, BAD_DOMAIN), (0x7ff2, BAD_DOMAIN)] {
            let mut op = mapping(dom, 0, HOST, world.guests[MAPPER].va(FREE_PAGE).0);
            assert_eq!(world.guest(MAPPER).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
            assert_eq!(({ op.handle }, { op.dev_bus_addr }.to_u64()), (status, 0));
        }
        // What is not the grantor's to grant.
        let foreign = world.guests[0].frames[DATA].0;
        for frame in [foreign, world.guests[MAPPER].frames[DATA].0, 0xb8, 0xfee00, 0xf_0000, 0xffff_ffff, 0] {
            world.write_grant(GRANTOR, 0, ACCESS, MAPPER, frame);
            world.map_refused(0, HOST, FREE_PAGE, GENERAL);
            world.map_refused(0, DEVICE_RO, FREE_PAGE, GENERAL);
        }
        let own = world.guests[GRANTOR].dom.gdt_page.0;
        world.write_grant(GRANTOR, 0, ACCESS, MAPPER, own);
        world.map_refused(0, HOST_RO, FREE_PAGE, GENERAL);
        // To another, or of another kind.
        let frame = world.guests[GRANTOR].frames[DATA].0;
        world.write_grant(GRANTOR, 0, ACCESS, 0, frame);
        world.map_refused(0, HOST, FREE_PAGE, GENERAL);
        for flags in [GrantFlags::ACCEPT_TRANSFER, GrantFlags::TYPE_MASK, GrantFlags::empty()] {
            world.write_grant(GRANTOR, 0, flags, MAPPER, frame);
            world.map_refused(0, HOST, FREE_PAGE, GENERAL);
        }
    });
}

#[test]
fn a_mapping_takes_the_place_of_another() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        world.grant(1, ACCESS, DATA + 1);
        let own = world.guests[MAPPER].frames[DATA];
        let refs = |world: &World| world.host.frames.info(own).expect("RAM").refs().count();
        let before = refs(world);
        let first = world.mapped(0, HOST, DATA);
        assert_eq!(refs(world), before - 1, "what was there is not mapped any more");
        let second = world.mapped(1, HOST, DATA);
        assert_eq!((world.flags(0), world.flags(1)), (ACCESS | BOTH, ACCESS | BOTH), "the first is still pinned");
        let third = world.mapped(1, HOST_RO, DATA);
        assert_eq!(world.unmap(DATA, first), OKAY);
        assert_eq!(world.flags(0), ACCESS);
        assert_eq!(world.unmap(DATA, second), OKAY);
        assert_eq!(world.flags(1), ACCESS | READING);
        world.guests[MAPPER].run();
        assert!(world.host.hw.guest_load(world.guests[MAPPER].va(DATA), Mode::Kernel).is_err(), "the place is cleared");
        assert_eq!(world.unmap(DATA, third), OKAY);
        assert_eq!(world.flags(1), ACCESS);
    });
}

#[test]
fn handles_are_used_up_and_used_again() {
    let mut world = World::new(&[(Arch::X86_64, PRIVILEGED), (Arch::X86_64, PLAIN), (Arch::X86_64, PLAIN)]);
    world.grant(0, ACCESS, DATA);
    let bus = world.guests[GRANTOR].frames[DATA].addr().0;
    for _ in 0..8 {
        let mut ops = [mapping(GRANTOR, 0, DEVICE, 0); 128];
        assert_eq!(world.guest(MAPPER).grants(GrantTableCommand::MapGrantRef, &mut ops), OK);
        assert!(ops.iter().all(|op| { op.handle } >= 0));
    }
    world.check();
    world.map_refused(0, DEVICE, FREE_PAGE, NO_SPACE);
    assert_eq!(world.unmap_by(0, bus, 500), OKAY);
    assert_eq!(world.mapped(0, DEVICE, FREE_PAGE), 500);
    world.map_refused(0, HOST, FREE_PAGE, NO_SPACE);
    for first in (0..1024).step_by(128) {
        let mut ops: Vec<_> = (first..first + 128).map(|handle| unmapping(0, bus, handle)).collect();
        assert_eq!(world.guest(MAPPER).grants(GrantTableCommand::UnmapGrantRef, &mut ops), OK);
        assert!(ops.iter().all(|op| { op.status } == OKAY));
    }
    assert_eq!((world.flags(0), world.check().checked[0] > 0), (ACCESS, true));
}

#[test]
fn long_lists_make_way() {
    everywhere(|world| {
        let count = 100;
        for grant in 0..count {
            world.grant(grant, ACCESS, DATA + usize::from(grant) % 8);
        }
        for every in [1, 3, 0] {
            world.host.hw.preempt_every(every);
            let at = |world: &World, grant: u16| world.guests[MAPPER].va(FREE_PAGE + usize::from(grant)).0;
            let mut ops: Vec<_> = (0..count).map(|grant| mapping(GRANTOR, grant, HOST, at(world, grant))).collect();
            assert_eq!(world.guest(MAPPER).grants(GrantTableCommand::MapGrantRef, &mut ops), OK);
            let handles: Vec<i16> = ops.iter().map(|op| op.handle).collect();
            assert!(handles.iter().all(|&handle| handle >= 0), "{handles:?}");
            world.check();
            let mut ops: Vec<_> =
                (0..count).map(|grant| unmapping(at(world, grant), 0, handles[usize::from(grant)] as u16)).collect();
            // One in the middle is wrong, and one comes twice within a group.
            ops[50].handle = 5000;
            ops[70] = ops[69];
            assert_eq!(world.guest(MAPPER).grants(GrantTableCommand::UnmapGrantRef, &mut ops), OK);
            for (index, op) in ops.iter().enumerate() {
                assert_eq!({ op.status }, if [50, 70].contains(&index) { BAD_REF } else { OKAY }, "{index}");
            }
            world.check();
            for left in [50, 70] {
                assert_eq!(world.unmap_by(at(world, left), 0, handles[usize::from(left)] as u16), OKAY);
            }
        }
        world.host.hw.preempt_every(0);
        assert!((0..count).all(|grant| world.flags(grant) == ACCESS));
    });
}

#[test]
fn a_mapping_over_its_own_request_is_undone() {
    everywhere(|world| {
        world.grant(0, RO, DATA);
        let before = world.counts(DATA);
        let mut op = mapping(GRANTOR, 0, HOST_RO, world.guests[MAPPER].va(ARGS).0);
        let result = world.guest(MAPPER).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op));
        assert_eq!(result, error(Errno::EFAULT));
        world.check();
        assert_eq!((world.flags(0), world.counts(DATA)), (RO, before));
        assert!(world.guest(MAPPER).rescue());
    });
}

#[test]
fn what_may_be_written_by_a_grant_is_recorded() {
    use crate::machine::CpuTables;
    use crate::paging::log_dirty::{Room, control};
    use proxenos_abi::dom0_ops::args::ShadowControlOp::{self, *};
    fn watch(world: &World, op: ShadowControlOp) -> Option<Vec<u64>> {
        let guest = &world.guests[GRANTOR];
        guest.run();
        let load = |root| world.host.hw.load_root(root);
        let report = control(&world.host, &guest.dom, DomId(77), op.raw(), Room(1 << 20), load).expect("allowed");
        world.check();
        report.and_then(|report| report.bitmap)
    }
    everywhere(|world| {
        let written = |world: &World| watch(world, Clean).expect("a record")[0] & 1 << DATA != 0;
        let bus = world.guests[GRANTOR].frames[DATA].addr().0;
        world.grant(0, ACCESS, DATA);
        assert_eq!(watch(world, EnableLogdirty), None);
        for (flags, recorded) in [(HOST, true), (DEVICE, true), (HOST_RO, false), (DEVICE_RO, false)] {
            let handle = world.mapped(0, flags, FREE_PAGE);
            assert_eq!(written(world), recorded, "{flags:?}");
            assert!(!written(world));
            let at = if flags.contains(HOST) { world.guests[MAPPER].va(FREE_PAGE).0 } else { 0 };
            assert_eq!(world.unmap_by(at, if at == 0 { bus } else { 0 }, handle), OKAY);
            assert_eq!(written(world), recorded, "until it ends");
        }
        // A frame that comes under a number is another one for who copies the domain.
        let frame = world.guests[MAPPER].frames[DATA];
        assert_eq!(world.guest(MAPPER).remap(DATA, 0, 2), OK);
        world.write_grant(GRANTOR, 0, GrantFlags::ACCEPT_TRANSFER, MAPPER, DATA as u64);
        assert!(!written(world));
        assert_eq!(world.give(frame, GRANTOR, 0), OK);
        assert!(written(world));
        assert_eq!(watch(world, Off), None);
    });
}
