//! What guests may try with grants: entries changed while they are in use, tables granted, granted frames made tables.

use super::*;
use crate::frame::FrameType;
use crate::paging::format::bits::RW;
use crate::sim_hw::Mode;
use proxenos_abi::Errno;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};

#[test]
fn a_changed_entry_grants_nothing_more_and_takes_nothing_back() {
    everywhere(|world| {
        let (frame, other) = (world.guests[GRANTOR].frames[DATA].0, world.guests[GRANTOR].frames[DATA + 1].0);
        let before = (world.counts(DATA), world.counts(DATA + 1));
        for (flags, to, named) in [
            (ACCESS | BOTH, MAPPER, other),
            (ACCESS, MAPPER, other),
            (ACCESS | BOTH, 0, frame),
            (GrantFlags::empty(), 0, 0),
            (GrantFlags::ACCEPT_TRANSFER, MAPPER, frame),
            (RO | BOTH, MAPPER, frame),
        ] {
            world.grant(0, ACCESS, DATA);
            let handle = world.mapped(0, HOST, FREE_PAGE);
            world.write_grant(GRANTOR, 0, flags, to, named);
            world.check();
            assert_eq!(world.map(0, HOST, FREE_PAGE + 1), GENERAL, "{flags:?} {to} {named:#x}");
            // Nor does a domain that it names now get at what the first one has.
            let mut op = mapping(GRANTOR, 0, HOST_RO, world.guests[0].va(FREE_PAGE).0);
            assert_eq!(world.guest(0).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
            assert_eq!({ op.handle }, GENERAL);
            let own = world.guests[MAPPER].frames[DATA + 3];
            assert_eq!(world.guest(MAPPER).remap(DATA + 3, 0, 2), OK);
            assert_eq!(world.give(own, GRANTOR, 0), error(Errno::EINVAL), "nor is it one that waits");
            world.check();
            world.guests[MAPPER].run();
            let at = world.guests[MAPPER].va(FREE_PAGE);
            assert_eq!(world.host.hw.guest_store(at, 0xabc, Mode::Kernel), Ok(()));
            assert_eq!(
                world.host.hw.load32(world.guests[GRANTOR].frames[DATA].addr()),
                0xabc,
                "the frame that was granted"
            );
            assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
            assert_eq!((world.counts(DATA), world.counts(DATA + 1)), before);
            assert_eq!(world.flags(0), flags.difference(BOTH));
        }
    });
}

#[test]
fn an_active_entry_is_one_domains() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        let handle = world.mapped(0, HOST_RO, FREE_PAGE);
        let frame = world.guests[GRANTOR].frames[DATA].0;
        world.write_grant(GRANTOR, 0, ACCESS | READING, 0, frame);
        let mut op = mapping(GRANTOR, 0, DEVICE, 0);
        assert_eq!(world.guest(0).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
        assert_eq!({ op.handle }, GENERAL);
        assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
        assert_eq!(world.guest(0).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
        assert!({ op.handle } >= 0);
    });
}

#[test]
fn a_page_table_is_granted_to_be_read() {
    everywhere(|world| {
        for table in [L1, TOP] {
            world.grant(0, ACCESS, table);
            world.map_refused(0, HOST, FREE_PAGE, GENERAL);
            world.map_refused(0, DEVICE, FREE_PAGE, GENERAL);
            let handle = world.mapped(0, HOST_RO | DEVICE, FREE_PAGE);
            world.map_refused(0, HOST, FREE_PAGE + 1, GENERAL);
            assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
            let bus = world.guests[GRANTOR].frames[table].addr().0;
            assert_eq!(world.unmap_by(0, bus, handle), OKAY);
        }
    });
}

#[test]
fn what_is_granted_to_be_written_is_no_table() {
    everywhere(|world| {
        world.grant(0, ACCESS, SPARE);
        let spare = world.guests[GRANTOR].frames[SPARE];
        for flags in [HOST, DEVICE] {
            let handle = world.mapped(0, flags, FREE_PAGE);
            for level in 1..=world.guests[GRANTOR].top_level() {
                assert_eq!(world.guest(GRANTOR).request(pin(spare, level)), error(Errno::EINVAL));
            }
            // Not even when the entry is gone, as long as a TLB may have it.
            assert_eq!(world.guest(MAPPER).remap(FREE_PAGE, 0, 0), OK);
            assert_eq!(world.guest(GRANTOR).request(pin(spare, 1)), error(Errno::EINVAL));
            let (at, bus) = if flags == HOST { (world.guests[MAPPER].va(FREE_PAGE).0, 0) } else { (0, spare.addr().0) };
            assert_eq!(world.unmap_by(at, bus, handle), OKAY);
            assert_eq!(world.guest(GRANTOR).request(pin(spare, 1)), OK);
            world.map_refused(0, flags, FREE_PAGE, GENERAL);
            assert_eq!(world.guests[GRANTOR].type_of(spare).0, FrameType::L1);
            assert_eq!(world.guest(GRANTOR).request(unpin(spare)), OK);
        }
    });
}

#[test]
fn what_another_granted_is_no_table_nor_to_be_given_away() {
    everywhere(|world| {
        world.grant(0, ACCESS, SPARE);
        let handle = world.mapped(0, HOST_RO, FREE_PAGE);
        let spare = world.guests[GRANTOR].frames[SPARE];
        let mapper = world.guest(MAPPER);
        assert_eq!(mapper.request(pin(spare, 1)), error(Errno::EINVAL));
        assert!(mapper.put_args(&[spare.0]));
        let at = mapper.va(ARGS).0;
        assert_eq!(mapper.call(Hypercall::SetGdt, [at, 512, 0, 0, 0, 0]), error(Errno::EINVAL));
        assert_eq!(mapper.call(Hypercall::DomMemOp, [1, at, 1, 0, DomId::SELF.0.into(), 0]), 0);
        // Nor is it granted on.
        world.write_grant(MAPPER, 0, ACCESS, 0, spare.0);
        let mut op = mapping(MAPPER, 0, HOST_RO, world.guests[0].va(FREE_PAGE).0);
        assert_eq!(world.guest(0).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
        assert_eq!({ op.handle }, GENERAL);
        assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
    });
}

#[test]
fn writable_page_tables_keep_what_was_granted() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        assert_eq!(world.guest(MAPPER).assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
        for cleared in [false, true] {
            let handle = world.mapped(0, HOST, FREE_PAGE);
            // The table is opened, and closed by the next request.
            for slot in FREE_PAGE + 1..FREE_PAGE + 9 {
                let entry = world.guests[MAPPER].entry(DATA, 0);
                let _ = world.guests[MAPPER].write(L1, slot, entry);
            }
            if cleared {
                let _ = world.guests[MAPPER].write(L1, FREE_PAGE, 0);
            }
            world.check();
            assert_eq!(world.flags(0), ACCESS | BOTH);
            assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
            assert_eq!(world.flags(0), ACCESS);
            for slot in FREE_PAGE + 1..FREE_PAGE + 9 {
                let _ = world.guests[MAPPER].write(L1, slot, 0);
            }
            assert_eq!(world.guest(MAPPER).request(extended(proxenos_abi::mmu::MmuExtCommand::TlbFlush, 0, 0)), OK);
            world.check();
        }
        // An entry copied to another slot by a store ends its domain, as any that is refused does.
        let handle = world.mapped(0, HOST, FREE_PAGE);
        let entry = world.guests[GRANTOR].frames[DATA].addr().0 | world.guests[MAPPER].flags(RW);
        let _ = world.guests[MAPPER].write(L1, FREE_PAGE + 1, entry);
        let _ = world.guest(MAPPER).remap(FREE_PAGE + 2, 0, 0);
        assert!(world.guests[MAPPER].dom.paging.lock().writable.refused.take().is_some());
        world.check();
        world.guests[MAPPER].dom.clear_state(crate::domain::RunState::CRASHED);
        assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
        assert_eq!(world.flags(0), ACCESS);
    });
}
