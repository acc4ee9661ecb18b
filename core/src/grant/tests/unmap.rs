//! GNTTABOP_unmap_grant_ref: what must match, and what a domain may have done to its page tables meanwhile.

use super::*;
use crate::machine::Tlb;
use crate::paging::format::bits::RW;
use crate::sim_hw::Mode;
use proxenos_abi::Errno;

#[test]
fn nothing_is_unmapped_that_does_not_match() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        world.grant(1, ACCESS, DATA + 1);
        let (first, second) = (world.mapped(0, HOST | DEVICE, FREE_PAGE), world.mapped(1, HOST, FREE_PAGE + 1));
        let va = |world: &World, page: usize| world.guests[MAPPER].va(FREE_PAGE + page).0;
        let bus = |world: &World, pfn: usize| world.guests[GRANTOR].frames[DATA + pfn].addr().0;
        let before = world.snapshot();
        for (at, device, handle, status) in [
            (va(world, 1), 0, first, GENERAL),
            (va(world, 0), 0, second, GENERAL),
            (va(world, 2), 0, first, GENERAL),
            (va(world, 0) + 1, 0, first, GENERAL),
            (va(world, 0), bus(world, 1), first, GENERAL),
            (va(world, 1), bus(world, 0), first, GENERAL),
            (va(world, 1), bus(world, 1), second, GENERAL),
            (0, bus(world, 1), second, GENERAL),
            (0, bus(world, 0) >> 12, first, GENERAL),
            (0xfc00_0000, 0, first, GENERAL),
            (va(world, 0), 0, 2, BAD_REF),
            (va(world, 0), 0, 32767, BAD_REF),
            (va(world, 0), 0, 65535, BAD_REF),
            // Neither address: nothing to do.
            (0, 0, first, OKAY),
            (0, 0, second, OKAY),
        ] {
            assert_eq!(world.unmap_by(at, device, handle), status, "{at:#x} {device:#x} {handle}");
            assert!(world.snapshot() == before && world.flags(0) == ACCESS | BOTH && world.flags(1) == ACCESS | BOTH);
        }
        // Another domain has handles of its own.
        let mut op = unmapping(va(world, 0), 0, first);
        assert_eq!(world.guest(0).grants(GrantTableCommand::UnmapGrantRef, core::slice::from_mut(&mut op)), OK);
        assert_eq!({ op.status }, BAD_REF);
        assert_eq!(world.unmap_by(va(world, 0), bus(world, 0), first), OKAY);
        assert_eq!(world.unmap_by(va(world, 1), 0, second), OKAY);
        assert_eq!((world.flags(0), world.flags(1)), (ACCESS, ACCESS));
    });
}

#[test]
fn an_entry_that_its_domain_overwrote_is_not_missed() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        let before = world.counts(DATA);
        let own = world.guests[MAPPER].entry(DATA, RW);
        for entry in [0, own] {
            let handle = world.mapped(0, HOST, FREE_PAGE);
            assert_eq!(world.guest(MAPPER).remap(FREE_PAGE, entry, 0), OK);
            world.check();
            assert_eq!(world.counts(DATA), (before.0 + 1, before.1 + 1), "the entry's references are gone, no other");
            assert_eq!(world.flags(0), ACCESS | BOTH, "and its owner is told nothing: a TLB may have it");
            assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
            assert_eq!((world.flags(0), world.counts(DATA)), (ACCESS, before));
            let guest = world.guest(MAPPER);
            guest.run();
            let there = guest.host.hw.guest_store(guest.va(FREE_PAGE), 1, Mode::Kernel).is_ok();
            assert_eq!(there, entry != 0, "what its domain put there stays");
            assert_eq!(guest.remap(FREE_PAGE, 0, 2), OK);
        }
    });
}

#[test]
fn an_entry_cannot_be_given_more_than_it_had() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        let handle = world.mapped(0, HOST_RO, FREE_PAGE);
        let (theirs, guest) = (world.guests[GRANTOR].frames[DATA].addr().0, &world.guests[MAPPER]);
        let (l1, flags) = (guest.frames[L1], guest.flags(0));
        for (slot, rw) in [(FREE_PAGE, RW), (FREE_PAGE + 1, 0), (FREE_PAGE + 1, RW)] {
            let before = world.snapshot();
            let entry = theirs | flags | rw;
            assert_eq!(world.guest(MAPPER).remap(slot, entry, 2), error(Errno::EINVAL));
            let request = world.guests[MAPPER].set(l1, slot, entry);
            assert_eq!(world.guest(MAPPER).request(request), error(Errno::EINVAL));
            assert!(world.snapshot() == before);
        }
        // What differs harmlessly is its domain's to choose.
        assert_eq!(world.guest(MAPPER).remap(FREE_PAGE, theirs | flags | 1 << 9, 2), OK);
        world.check();
        assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
        assert_eq!(world.flags(0), ACCESS);
    });
}

#[test]
fn a_table_that_moved_is_found() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        // A second L1 table, in the next slot above.
        let guest = world.guest(MAPPER);
        let narrow = guest.dom.arch == Arch::X86_32;
        let (upper, slot) = if narrow { (guest.frames[TOP], 0x301) } else { (guest.frames[4], 1) };
        let page = if narrow { 1024 } else { 512 };
        let link = guest.entry(SPARE, RW) | 4;
        let (hang, other) = (guest.set(upper, slot, link), guest.set(upper, slot + 1, link));
        let (unhang, unhang_other) = (guest.set(upper, slot, 0), guest.set(upper, slot + 1, 0));
        assert_eq!(guest.request(hang), OK);
        let handle = world.mapped(0, HOST, page + 7);
        let moved = 2 * page + 7;
        // It is hung in elsewhere, and nowhere where it was.
        assert_eq!(world.guest(MAPPER).mmu_update(&[other, unhang]).result, OK);
        world.guests[MAPPER].run();
        world.host.hw.flush_all();
        assert_eq!(world.host.hw.guest_store(world.guests[MAPPER].va(moved), 1, Mode::Kernel), Ok(()));
        assert_eq!(world.unmap(moved, handle), GENERAL, "it was not mapped here");
        assert_eq!(world.unmap(page + 7, handle), OKAY);
        assert_eq!(world.flags(0), ACCESS);
        world.guests[MAPPER].run();
        assert!(world.host.hw.guest_load(world.guests[MAPPER].va(moved), Mode::Kernel).is_err(), "nor seen anywhere");
        // The table is none any more; then there is nothing to clear.
        let handle = world.mapped(0, HOST, moved);
        assert_eq!(world.guest(MAPPER).request(unhang_other), OK);
        world.check();
        assert_eq!(world.flags(0), ACCESS | BOTH);
        // What is left of it grants nothing: it cannot be a table again with that entry in it.
        assert_eq!(world.guest(MAPPER).request(other), error(Errno::EINVAL));
        assert_eq!(world.unmap(moved, handle), OKAY);
        assert_eq!(world.flags(0), ACCESS);
    });
}

#[test]
fn memory_that_was_given_up_goes_when_it_is_unmapped() {
    everywhere(|world| {
        world.grant(0, ACCESS, DATA);
        let frame = world.guests[GRANTOR].frames[DATA];
        let handle = world.mapped(0, HOST, FREE_PAGE);
        let grantor = world.guest(GRANTOR);
        assert_eq!(grantor.remap(DATA, 0, 2), OK);
        assert!(grantor.put_args(&[frame.0]));
        let at = grantor.va(ARGS).0;
        assert_eq!(grantor.call(Hypercall::DomMemOp, [1, at, 1, 0, DomId::SELF.0.into(), 0]), 1);
        world.check();
        assert_eq!(world.counts(DATA), (2, 2));
        assert_eq!(world.host.frames.info(frame).expect("RAM").refs().owner(), DomId(GRANTOR as u16));
        assert_eq!(world.unmap(FREE_PAGE, handle), OKAY);
        assert_eq!(world.counts(DATA).0, 0, "free");
    });
}
