//! A test for each request and each refusal that concerns descriptor tables, for both architectures.

use super::commands::{INVALID, both};
use super::world::*;
use crate::addr::{DomId, MachineAddr};
use crate::domain::Arch;
use crate::frame::FrameType;
use crate::machine::MachineMemory;
use crate::paging::format::bits::{self, RW, US};
use proxenos_abi::Hypercall;
use proxenos_abi::mmu::MmuExtCommand;

/// `set_gdt` by the plain domain.
pub fn set_gdt(world: &mut World, frames: &[usize], entries: u64) -> Result<(), u64> {
    let words: alloc::vec::Vec<u64> = frames.iter().map(|&pfn| world.guests[1].frames[pfn].0).collect();
    assert!(world.guest(1).put_args(&words));
    let args = [world.guest(1).va(ARGS).0, entries, 0, 0, 0, 0];
    match world.judge(1, |guest| guest.call(Hypercall::SetGdt, args)).expect("nothing is wrong") {
        OK => Ok(()),
        refusal => Err(refusal),
    }
}

#[test]
fn gdt_pages_are_tables_as_long_as_they_are_in_use() {
    both(|world| {
        assert_eq!(set_gdt(world, &[SPARE], 295), Err(INVALID));
        assert_eq!(set_gdt(world, &[SPARE; 17], 8193), Err(INVALID));
        assert_eq!(set_gdt(world, &[DATA], 512), Err(INVALID), "mapped writable");
        assert_eq!(set_gdt(world, &[SPARE, L1], 1024), Err(INVALID), "a page table");
        assert_eq!(set_gdt(world, &[SPARE, SPARE2], 1024), Ok(()));
        for pfn in [SPARE, SPARE2] {
            world.refused(|guest| pin(guest.frames[pfn], 1));
            assert_eq!(world.remap(pfn, |guest| guest.entry(pfn, RW)), INVALID);
            assert_eq!(world.remap(pfn, |guest| guest.entry(pfn, 0)), OK, "reading is fine");
        }
        assert_eq!(set_gdt(world, &[SPARE; 16], 8192), Ok(()));
        assert_eq!(world.type_of(SPARE), (FrameType::Descriptor, 16));
        world.done(|guest| pin(guest.frames[SPARE2], 1));
    });
}

#[test]
fn what_lies_in_reserved_slots_of_the_first_page_is_cleared() {
    both(|world| {
        let call_gate_to_ring_0 = 0x0000_ec00_0008_0000_u64;
        let put = |world: &mut World, pfn: usize, slot: usize| {
            let at = MachineAddr(world.guest(1).frames[pfn].addr().0 + 8 * slot as u64);
            world.host.hw.store64(at, call_gate_to_ring_0);
        };
        let read = |world: &World, slot: u64| {
            world.host.hw.load64(MachineAddr(world.guests[1].frames[SPARE].addr().0 + 8 * slot))
        };
        for slot in [256, 270, 295] {
            put(world, SPARE, slot);
        }
        put(world, SPARE, 300);
        assert_eq!(set_gdt(world, &[SPARE], 512), Err(INVALID), "another slot is bad");
        assert_eq!(read(world, 256), call_gate_to_ring_0, "then nothing changes");
        world.host.hw.store64(MachineAddr(world.guests[1].frames[SPARE].addr().0 + 8 * 300), 0);
        put(world, SPARE2, 256);
        assert_eq!(set_gdt(world, &[SPARE, SPARE2], 1024), Err(INVALID), "of the first page only");
        assert_eq!(set_gdt(world, &[SPARE], 512), Ok(()));
        assert!((256..296).all(|slot| read(world, slot) == 0));
    });
}

#[test]
fn bad_descriptors_are_refused_wherever_they_come_from() {
    both(|world| {
        let call_gate_to_ring_0 = 0x0000_ec00_0008_0000_u64;
        // 64-bit code for a kernel in ring 1; for all others, a gate out of the sandbox.
        let bad = if world.guest(1).dom.arch == Arch::X86_32 { 0x00af_bb00_0000_ffff } else { call_gate_to_ring_0 };
        let update = |guest: &mut Guest, at: u64, value: u64| {
            guest.call(Hypercall::UpdateDescriptor, [at, value & 0xffff_ffff, value >> 32, 0, 0, 0])
        };
        let data = 0x00cf_f300_0000_ffff;
        let at = world.guest(1).frames[SPARE].addr().0 + 8 * 511;
        // Put in by a plain store, it makes the page no descriptor table, and the page stays as it is.
        world.done(|guest| {
            guest.set(guest.frames[SPARE], if guest.width() == 4 { 1023 } else { 511 }, bad >> (64 - 8 * guest.width()))
        });
        assert_eq!(set_gdt(world, &[SPARE], 512), Err(INVALID));
        assert_eq!(world.judge(1, |guest| update(guest, at, data)), Ok(OK), "to plain memory");
        assert_eq!(set_gdt(world, &[SPARE], 512), Ok(()));
        assert_eq!(world.judge(1, |guest| update(guest, at, bad)), Ok(INVALID));
        assert_eq!(world.judge(1, |guest| update(guest, at + 4, data)), Ok(INVALID), "not aligned");
        assert_eq!(world.judge(1, |guest| update(guest, at - 8 * 511 + 8 * 256, data)), Ok(INVALID), "reserved");
        assert_eq!(world.judge(1, |guest| update(guest, at - 8, data)), Ok(OK));
        let copy = MachineAddr(world.guest(1).dom.gdt_page.addr().0 + 8 * 510);
        assert_eq!(world.host.hw.load64(copy), world.host.hw.load64(MachineAddr(at - 8)), "the CPU's copy follows");
        let l1 = world.guest(1).frames[L1].addr().0;
        let other = world.guest(0).frames[DATA].addr().0;
        for at in [l1, other, 0xb8000, 0xf000_0000, world.guest(1).dom.gdt_page.addr().0] {
            assert_eq!(world.judge(1, |guest| update(guest, at, data)), Ok(INVALID), "{at:#x}");
        }
    });
}

/// The CPU looks into the plain domain's LDT.
fn ldt_fault(world: &mut World, offset: u64) -> bool {
    let found = world.guest(1).ldt_fault(offset);
    world.check();
    found
}

#[test]
fn ldt_pages_come_when_they_are_needed_and_go_with_the_address_space() {
    both(|world| {
        let at = |guest: &Guest, page: usize| guest.va(page).0;
        world.refused(|guest| extended(MmuExtCommand::SetLdt, at(guest, SPARE) + 8, 1));
        world.refused(|guest| extended(MmuExtCommand::SetLdt, at(guest, SPARE), 8193));
        let hypervisor = if world.guest(1).dom.arch == Arch::X86_32 { 0xfc00_0000 } else { 0xffff_8000_0000_0000 };
        world.refused(|_| extended(MmuExtCommand::SetLdt, hypervisor, 1));
        world.refused(|_| extended(MmuExtCommand::SetLdt, hypervisor - 0x1000, 513));
        // Pages 6, 7 and 8: two of zeroes, and one that is writable.
        world.done(|guest| extended(MmuExtCommand::SetLdt, at(guest, SPARE), 1100));
        let kind = |world: &World, pfn| world.guests[1].type_of(world.guests[1].frames[pfn]);
        assert_eq!(kind(world, SPARE), (FrameType::Descriptor, 1), "the first at once");
        assert!(!ldt_fault(world, 16), "it is there: another fault is the guest's own");
        assert_eq!(kind(world, SPARE2), (FrameType::None, 0), "the others not before they are used");
        assert!(ldt_fault(world, 4096));
        assert!(!ldt_fault(world, 8192), "writable memory");
        assert!(!ldt_fault(world, 1100 * 8), "behind the end");
        assert!(!ldt_fault(world, u64::MAX));
        world.refused(|guest| pin(guest.frames[SPARE], 1));
        world.done(|guest| extended(MmuExtCommand::SetLdt, at(guest, SPARE), 1100));
        assert_eq!(kind(world, SPARE2), (FrameType::Descriptor, 1), "the same table set once more is nothing new");
        world.done(|guest| new_base(guest.frames[SECOND_TOP]));
        assert_eq!((kind(world, SPARE).0, kind(world, SPARE2).0), (FrameType::Descriptor, FrameType::None));
        assert!(ldt_fault(world, 4096));
        world.done(|guest| extended(MmuExtCommand::SetLdt, at(guest, SPARE), 0));
        assert_eq!((kind(world, SPARE).0, kind(world, SPARE2).0), (FrameType::None, FrameType::None));
        assert!(!ldt_fault(world, 0));
    });
}

#[test]
fn an_ldt_page_that_is_unmapped_is_free_to_become_something_else() {
    both(|world| {
        let kind = |world: &World, pfn| world.guests[1].type_of(world.guests[1].frames[pfn]);
        let set = |guest: &Guest| extended(MmuExtCommand::SetLdt, guest.va(SPARE).0, 1024);
        world.done(set);
        assert!(ldt_fault(world, 4096));
        // Made writable where it lies, it is refused: it is a descriptor page at that moment.
        assert_eq!(world.remap(SPARE, |guest| guest.entry(SPARE, RW)), INVALID);
        // Unmapped, by itself; the other page goes too, and comes back when it is needed.
        assert_eq!(world.remap(SPARE, |_| 0), OK);
        assert_eq!((kind(world, SPARE), kind(world, SPARE2)), ((FrameType::None, 0), (FrameType::None, 0)));
        assert!(!ldt_fault(world, 0), "not mapped");
        assert!(ldt_fault(world, 4096));
        assert_eq!(world.remap(SPARE, |guest| guest.entry(SPARE, RW)), OK);
        assert_eq!(kind(world, SPARE), (FrameType::Writable, 1));
        assert_eq!(world.remap(SPARE, |guest| guest.entry(SPARE, 0)), OK);
        // A harmless change is no change; another page in the first's place is the LDT's at once.
        let harmless = [US | bits::AVL, 0].map(|flags| world.remap(SPARE2, |guest| guest.entry(SPARE2, 0) | flags));
        assert_eq!((harmless, kind(world, SPARE2).0), ([OK, OK], FrameType::Descriptor));
        assert!(ldt_fault(world, 0));
        assert_eq!(world.remap(SPARE, |guest| guest.entry(SPARE2, 0)), OK);
        assert_eq!((kind(world, SPARE), kind(world, SPARE2)), ((FrameType::None, 0), (FrameType::Descriptor, 1)));
        assert_eq!(world.remap(SPARE, |guest| guest.entry(SPARE, 0)), OK);
        // In one list: unmapped, then writable elsewhere.
        world.done(|guest| extended(MmuExtCommand::SetLdt, guest.va(SPARE).0, 512));
        assert_eq!(kind(world, SPARE), (FrameType::Descriptor, 1));
        let guest = world.guest(1);
        let list =
            [guest.set(guest.frames[L1], SPARE, 0), guest.set(guest.frames[L1], FRAMES + 1, guest.entry(SPARE, RW))];
        assert_eq!(guest.mmu_update(&list), Done { result: OK, count: 2 });
        assert_eq!(kind(world, SPARE), (FrameType::Writable, 1));
        assert_eq!(world.remap(FRAMES + 1, |_| 0), OK);
        // A second mapping that goes drops it as well; the first page is back by the call's end.
        assert_eq!(world.remap(SPARE, |guest| guest.entry(SPARE, 0)), OK);
        world.done(|guest| extended(MmuExtCommand::SetLdt, guest.va(SPARE).0, 1024));
        assert!(ldt_fault(world, 4096));
        assert_eq!(world.remap(FRAMES + 1, |guest| guest.entry(SPARE2, 0)), OK);
        assert_eq!(world.remap(FRAMES + 1, |_| 0), OK);
        assert_eq!((kind(world, SPARE).0, kind(world, SPARE2).0), (FrameType::Descriptor, FrameType::None));
        // So does one in a table that goes, and one of another domain's; a table that is refused drops nothing.
        assert!(ldt_fault(world, 4096));
        world.refused(|guest| pin(guest.frames[ARGS], 1));
        let frame = world.guests[1].frames[SPARE2];
        let (l1, entry) = (world.guests[0].frames[L1], frame.addr().0 | world.guests[0].flags(0));
        for value in [entry, 0] {
            let request = world.guests[0].set(l1, FRAMES + 1, value);
            assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), request]).result, OK);
            world.check();
        }
        assert_eq!(kind(world, SPARE2).0, FrameType::Descriptor, "until its owner does something");
        world.done(|_| extended(MmuExtCommand::TlbFlush, 0, 0));
        assert_eq!(kind(world, SPARE2).0, FrameType::None);
    });
}

#[test]
fn a_table_that_is_refused_leaves_the_ldt_alone() {
    both(|world| {
        let kind = |world: &World, pfn| world.guests[1].type_of(world.guests[1].frames[pfn]).0;
        // It maps a page of the LDT's that would not come back by itself, and then something that it must not.
        world.done(|guest| extended(MmuExtCommand::SetLdt, guest.va(SPARE).0 - 4096, 1024));
        assert!(ldt_fault(world, 4096));
        world.done(|guest| guest.set(guest.frames[SPARE2], 3, guest.entry(SPARE, 0)));
        world.done(|guest| guest.set(guest.frames[SPARE2], 4, guest.entry(TOP, RW)));
        world.refused(|guest| pin(guest.frames[SPARE2], 1));
        world.done(|_| extended(MmuExtCommand::TlbFlush, 0, 0));
        assert_eq!(kind(world, SPARE), FrameType::Descriptor, "neither at once nor later");
        world.done(|guest| extended(MmuExtCommand::SetLdt, guest.va(SPARE).0, 512));
        // Good, it is one more mapping, which goes with the table.
        world.done(|guest| guest.set(guest.frames[SPARE2], 4, 0));
        world.done(|guest| pin(guest.frames[SPARE2], 1));
        world.done(|guest| guest.set(guest.frames[L1], SPARE, 0));
        assert_eq!(kind(world, SPARE), FrameType::None);
        world.done(|guest| guest.set(guest.frames[L1], SPARE, guest.entry(SPARE, 0)));
        world.done(|guest| extended(MmuExtCommand::SetLdt, guest.va(SPARE).0, 513));
        assert_eq!(kind(world, SPARE), FrameType::Descriptor);
        let unpinned = world.guests[1].set(world.guests[1].frames[L1], SPARE, 0);
        let unpin_it = unpin(world.guests[1].frames[SPARE2]);
        let writable = world.guests[1].set(world.guests[1].frames[L1], SPARE, world.guests[1].entry(SPARE, RW));
        assert_eq!(world.guest(1).mmu_update(&[unpinned, unpin_it, writable]), Done { result: OK, count: 3 });
        assert_eq!(kind(world, SPARE), FrameType::Writable);
    });
}

/// What is remembered of a stack segment is forgotten with every change of its table.
#[test]
fn a_flat_stack_is_remembered_until_the_table_changes() {
    use crate::sim_hw::SimDomain;
    use proxenos_abi::{Selector, X86_32, X86_64};
    fn look(guest: &mut Guest, ss: Selector) -> (Option<u64>, bool) {
        let host = guest.host.clone();
        let SimDomain { dom, vcpu, .. } = &mut guest.0;
        let segments = &mut vcpu.segments;
        match dom.arch {
            Arch::X86_32 => (segments.stack_base::<X86_32, _>(&host, dom, ss), segments.is_flat_stack::<X86_32>(ss)),
            Arch::X86_64 => (segments.stack_base::<X86_64, _>(&host, dom, ss), segments.is_flat_stack::<X86_64>(ss)),
        }
    }
    both(|world| {
        let (flat, elsewhere) = (0x00cf_f300_0000_ffff_u64, 0x00cf_f300_1000_ffff_u64);
        let ss = Selector(8 * 100 + 3);
        let update = |world: &mut World, slot: u64, value: u64| {
            let at = world.guest(1).frames[SPARE].addr().0 + 8 * slot;
            let args = [at, value & 0xffff_ffff, value >> 32, 0, 0, 0];
            assert_eq!(world.judge(1, |guest| guest.call(Hypercall::UpdateDescriptor, args)), Ok(OK));
        };
        assert_eq!(set_gdt(world, &[SPARE], 512), Ok(()));
        assert_eq!(look(world.guest(1), ss), (None, false), "no descriptor yet");
        update(world, 100, flat);
        assert_eq!(look(world.guest(1), ss), (Some(0), true));
        let remembered = |world: &mut World| {
            let guest = world.guest(1);
            let segments = &guest.vcpu.segments;
            segments.is_flat_stack::<X86_32>(ss) || segments.is_flat_stack::<X86_64>(ss)
        };
        update(world, 101, flat);
        assert!(remembered(world), "another descriptor is another's business");
        update(world, 100, flat);
        assert!(!remembered(world), "any change of its own will do");
        assert_eq!(look(world.guest(1), ss), (Some(0), true));
        update(world, 100, elsewhere);
        assert!(!remembered(world));
        assert_eq!(look(world.guest(1), ss), (Some(0x1000), false));
        update(world, 100, flat);
        assert_eq!(look(world.guest(1), ss), (Some(0), true));
        assert_eq!(set_gdt(world, &[SPARE2], 512), Ok(()));
        assert!(!remembered(world), "another table");
        assert_eq!(look(world.guest(1), ss), (None, false));
    });
}
