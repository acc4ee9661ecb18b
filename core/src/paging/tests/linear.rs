//! Directories read as L1 tables: what a guest sees there, what it may not, and how they go.

extern crate std;

use super::world::*;
use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use crate::domain::Arch;
use crate::frame::{FrameInfo, FrameType};
use crate::frame_alloc::Zone;
use crate::machine::MachineMemory;
use crate::paging::Pager;
use crate::paging::format::TwoLevel;
use crate::paging::format::bits::{self, A, D, P, RW, US};
use crate::paging::pool::ShadowFrames;
use crate::paging::shadow::Access;
use crate::sim_hw::{Mode, SimHardware, domain, host_with};
use alloc::vec::Vec;
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, Hypercall};

const INVALID: u64 = error(Errno::EINVAL);
/// Slot of the directory where it is read itself, and of the region.
const SELF: usize = 1;
const REGION: usize = 0x300;

fn world() -> World {
    World::of(Arch::X86_32)
}

/// The plain domain makes a request; a refusal must change nothing.
#[track_caller]
fn ask(world: &mut World, request: impl Fn(&Guest) -> Request) -> u64 {
    let request = request(&world.guests[1]);
    assert!(world.guests[1].put_args(&[request.0, request.1]));
    world.judge(1, |guest| guest.mmu_update_in_place(1).result).expect("nothing is wrong")
}

/// Hangs a frame of the plain domain's into a slot of a directory of its.
#[track_caller]
fn hang(world: &mut World, directory: usize, slot: usize, pfn: usize, rw: u64) -> u64 {
    ask(world, |guest| guest.set(guest.frames[directory], slot, guest.entry(pfn, rw)))
}

/// Where entry `entry` of the table in slot `table` is read, by way of the linear entry in slot `linear`.
fn window(linear: usize, table: usize, entry: usize) -> GuestVirt {
    GuestVirt(((linear << 22) + (table << 12) + 4 * entry) as u64)
}

/// What the plain domain's kernel reads there.
fn read(world: &World, at: GuestVirt) -> Option<u32> {
    world.guests[1].run();
    let word = world.host.hw.guest_load(GuestVirt(at.0 & !7), Mode::Kernel).ok()?;
    Some(if at.0 & 4 == 0 { word as u32 } else { (word >> 32) as u32 })
}

fn writes(world: &World, at: GuestVirt, mode: Mode) -> bool {
    world.guests[1].run();
    world.host.hw.guest_store(GuestVirt(at.0 & !7), 0, mode).is_ok()
}

fn type_of(world: &World, pfn: usize) -> (FrameType, u32) {
    world.guests[1].type_of(world.guests[1].frames[pfn])
}

fn shadows(world: &World) -> u64 {
    world.check().shadows
}

#[test]
fn a_guest_reads_its_tables_through_its_own_directory() {
    let mut world = world();
    let (before, frames) = (type_of(&world, TOP), shadows(&world));
    assert_eq!(hang(&mut world, TOP, SELF, TOP, 0), OK);
    assert_eq!(type_of(&world, TOP), before, "it does not hold itself");
    assert_eq!(shadows(&world), frames + 2);
    let data = world.guest(1).entry(DATA, RW | D) as u32;
    assert_eq!(read(&world, window(SELF, REGION, DATA)), Some(data));
    // The window shows its own directory where it lies itself.
    let region = world.guest(1).entry(L1, RW) | US;
    assert_eq!(read(&world, window(SELF, SELF, REGION)), Some(region as u32));
    let own = world.guest(1).entry(TOP, 0);
    assert_eq!(read(&world, window(SELF, SELF, SELF)), Some(own as u32));
    // Slots without a table, and the hypervisor's, show nothing.
    for slot in [0, 2, REGION + 1, 1007, 1008, 1009, 1010, 1023] {
        assert_eq!(read(&world, window(SELF, slot, 0)), None, "slot {slot:#x}");
    }
    world.check();
}

#[test]
fn changes_of_entries_are_seen_there_and_those_of_tables_after_invlpg() {
    let mut world = world();
    assert_eq!(hang(&mut world, TOP, SELF, TOP, 0), OK);
    let page = FRAMES + 1;
    for value in [world.guest(1).entry(DATA, 0), 0, 0xdead_b000 & !P] {
        assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[L1], page, value)), OK);
        assert_eq!(read(&world, window(SELF, REGION, page)), Some(value as u32));
    }
    // A table comes, another takes its place, it goes.
    assert_eq!(hang(&mut world, TOP, 5, SPARE, RW), OK);
    assert_eq!(read(&world, window(SELF, 5, 9)), Some(0));
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE2], 9, 0xe00)), OK);
    assert_eq!(hang(&mut world, TOP, 5, SPARE2, RW | US), OK);
    let flush = |world: &mut World| {
        let at = window(SELF, 5, 0).0;
        assert_eq!(ask(world, |_| extended(MmuExtCommand::Invlpg, at, 0)), OK);
    };
    flush(&mut world);
    assert_eq!(read(&world, window(SELF, 5, 9)), Some(0xe00));
    assert_eq!(hang(&mut world, TOP, 5, SPARE2, US), OK, "less rights, same table");
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[TOP], 5, 0)), OK);
    flush(&mut world);
    assert_eq!(read(&world, window(SELF, 5, 9)), None);
    assert_eq!(type_of(&world, SPARE2).0, FrameType::None);
}

#[test]
fn nothing_is_ever_written_there_and_applications_need_the_user_bit_twice() {
    let mut world = world();
    for us in [0, US] {
        assert_eq!(hang(&mut world, TOP, SELF, TOP, us), OK);
        assert_eq!(ask(&mut world, |_| extended(MmuExtCommand::TlbFlush, 0, 0)), OK);
        let users = |world: &World, at| {
            world.guests[1].run();
            world.host.hw.guest_load(at, Mode::User).is_ok()
        };
        // The entry of the region's table has the bit, the linear one may have it.
        assert_eq!(users(&world, window(SELF, REGION, 0)), us != 0);
        assert_eq!(users(&world, window(SELF, SELF, 0)), us != 0);
        for at in [window(SELF, REGION, DATA), window(SELF, SELF, REGION), window(SELF, SELF, SELF)] {
            assert!(read(&world, at).is_some());
            assert!(!writes(&world, at, Mode::Kernel) && !writes(&world, at, Mode::User));
        }
    }
    assert_eq!(hang(&mut world, TOP, 5, SPARE, RW), OK);
    world.guests[1].run();
    assert!(world.host.hw.guest_load(window(SELF, 5, 0), Mode::User).is_err());
    assert!(read(&world, window(SELF, 5, 0)).is_some());
}

#[test]
fn accessed_and_dirty_bits_of_a_directory_stay_the_guests() {
    let mut world = world();
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[TOP], SELF, guest.entry(TOP, 0) & !A)), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[TOP], 5, (guest.entry(SPARE, RW) & !A) | D)), OK);
    let entries = |world: &World| {
        [SELF, 5].map(|slot| world.host.hw.load32(MachineAddr(world.guests[1].frames[TOP].addr().0 + 4 * slot as u64)))
    };
    let before = entries(&world);
    assert!(read(&world, window(SELF, 5, 0)).is_some() && read(&world, window(SELF, SELF, 0)).is_some());
    assert!(!writes(&world, window(SELF, 5, 0), Mode::Kernel));
    // Nor by a fault that is a stale translation's, after which reading is tried again.
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    for write in [false, true] {
        let mut state = world.guests[1].dom.paging.lock();
        let access = Access { write, user: false };
        let again = pager.resolve_shadow_fault::<TwoLevel>(&mut state, window(SELF, 5, 0), access);
        assert_eq!(again, !write);
    }
    assert_eq!(entries(&world), before);
    world.check();
}

#[test]
fn a_linear_entry_is_for_reading_only() {
    let mut world = world();
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SECOND_TOP], 2)), OK);
    for pfn in [TOP, SECOND_TOP] {
        for rw in [RW, RW | US, RW | D] {
            assert_eq!(hang(&mut world, TOP, SELF, pfn, rw), INVALID, "outright");
            assert_eq!(hang(&mut world, TOP, SELF, pfn, 0), OK);
            assert_eq!(hang(&mut world, TOP, SELF, pfn, rw), INVALID, "by the bit alone");
            assert_eq!(hang(&mut world, TOP, SELF, pfn, rw & !P), INVALID);
        }
        for bad in [bits::G, bits::PAT_OR_PS] {
            assert_eq!(hang(&mut world, TOP, SELF, pfn, bad), INVALID);
        }
        for good in [US, D, bits::PCD | bits::PWT, bits::AVL, 0] {
            assert_eq!(hang(&mut world, TOP, SELF, pfn, good), OK);
        }
        // In a table that is a directory only later.
        assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 3, guest.entry(pfn, RW))), OK);
        assert_eq!(ask(&mut world, |guest| pin(guest.frames[SPARE], 2)), INVALID);
        assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 3, 0)), OK);
    }
    // Nor do the hypervisor's slots take one.
    for slot in 1008..1024 {
        assert_eq!(hang(&mut world, TOP, slot, TOP, 0), INVALID);
    }
}

#[test]
fn only_what_is_a_directory_already_is_taken_as_one() {
    let mut world = world();
    // A frame that nobody uses becomes an ordinary L1 table, as ever; one with a directory's entries can't.
    assert_eq!(hang(&mut world, TOP, SELF, SPARE, 0), OK);
    assert_eq!(type_of(&world, SPARE), (FrameType::L1, 1));
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[TOP], SELF, 0)), OK);
    assert_eq!(hang(&mut world, TOP, SELF, SECOND_TOP, 0), INVALID);
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SECOND_TOP], 2)), OK);
    assert_eq!(hang(&mut world, TOP, SELF, SECOND_TOP, 0), OK);
    assert_eq!(type_of(&world, SECOND_TOP), (FrameType::L2, 2));
    // Another domain's directory is another domain's.
    let theirs = world.guest(0).frames[TOP];
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[TOP], 5, theirs.addr().0 | guest.flags(0))), INVALID);
    // A privileged domain builds one for another, whose own frames count.
    let (frame, mine) = (world.guest(1).frames[SPARE], world.guest(0).frames[TOP]);
    for (target, expected) in [(frame, OK), (mine, INVALID)] {
        let entry = target.addr().0 | world.guest(1).flags(0);
        assert_eq!(ask(&mut world, |guest| guest.set(frame, 4, entry)), OK);
        let request = pin(frame, 2);
        assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), request]).result, expected);
        world.check();
        if expected == OK {
            assert_eq!(world.guest(0).mmu_update(&[foreign(DomId(1)), unpin(frame)]).result, OK);
        }
    }
}

#[test]
fn a_directory_may_name_itself_before_it_is_one_and_dies_nevertheless() {
    let mut world = world();
    let before = world.check();
    for slot in [0, 7, 1007] {
        assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], slot, guest.entry(SPARE, 0))), OK);
    }
    // What stands in the hypervisor's slots is looked at by nobody.
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 1010, guest.entry(DATA, RW))), OK);
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SPARE], 2)), OK);
    assert_eq!(type_of(&world, SPARE), (FrameType::L2, 1));
    assert_eq!(shadows(&world), before.shadows + 6);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 0, 0)), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 7, 0)), OK);
    assert_eq!(shadows(&world), before.shadows + 6, "one entry is left that needs the view");
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 1007, 0)), OK);
    assert_eq!(shadows(&world), before.shadows + 4);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 1007, guest.entry(SPARE, 0))), OK);
    assert_eq!(ask(&mut world, |guest| unpin(guest.frames[SPARE])), OK);
    assert_eq!(type_of(&world, SPARE).0, FrameType::None);
    assert_eq!(world.check(), before);
    // One that is refused for what stands behind its own entry gives back what it took before.
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SECOND_TOP], 2)), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 8, guest.entry(SECOND_TOP, 0))), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 1006, guest.entry(TOP, 0))), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 1007, guest.entry(DATA, 0))), OK);
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SPARE], 2)), INVALID);
}

#[test]
fn a_directory_that_another_shows_stays_one() {
    let mut world = world();
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SECOND_TOP], 2)), OK);
    assert_eq!(hang(&mut world, TOP, SELF, SECOND_TOP, 0), OK);
    assert_eq!(ask(&mut world, |guest| unpin(guest.frames[SECOND_TOP])), OK);
    assert_eq!(type_of(&world, SECOND_TOP), (FrameType::L2, 1));
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[L1], SECOND_TOP, guest.entry(SECOND_TOP, RW))), INVALID);
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SECOND_TOP], 1)), INVALID);
    assert!(read(&world, window(SELF, REGION, DATA)).is_some());
    // It changes, and is seen to, though it is not the base.
    assert_eq!(hang(&mut world, SECOND_TOP, 3, SPARE, RW), OK);
    assert_eq!(read(&world, window(SELF, 3, 0)), Some(0));
    // It becomes the base, where it shows the other in turn.
    assert_eq!(ask(&mut world, |guest| new_base(guest.frames[SECOND_TOP])), OK);
    assert_eq!(read(&world, window(SELF, REGION, DATA)), None);
    assert_eq!(hang(&mut world, SECOND_TOP, 2, TOP, 0), OK);
    let shown = world.guest(1).entry(SECOND_TOP, 0);
    let region = world.guest(1).entry(L1, RW) | US;
    assert_eq!(
        read(&world, window(2, SELF, REGION)),
        Some(region as u32),
        "a directory that a directory shows, as a page"
    );
    assert_eq!(hang(&mut world, SECOND_TOP, 4, SECOND_TOP, 0), OK);
    assert_eq!(read(&world, window(4, 2, SELF)), Some(shown as u32));
    assert_eq!(ask(&mut world, |guest| new_base(guest.frames[TOP])), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[TOP], SELF, 0)), OK);
    assert_eq!(type_of(&world, SECOND_TOP).0, FrameType::None);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[L1], SECOND_TOP, guest.entry(SECOND_TOP, RW))), OK);
}

#[test]
fn directories_that_show_each_other_go_when_one_lets_go() {
    let mut world = world();
    let before = world.check();
    for pfn in [SPARE, SPARE2] {
        assert_eq!(ask(&mut world, |guest| pin(guest.frames[pfn], 2)), OK);
    }
    assert_eq!(hang(&mut world, SPARE, 3, SPARE2, 0), OK);
    assert_eq!(hang(&mut world, SPARE2, 4, SPARE, 0), OK);
    assert_eq!(hang(&mut world, SPARE2, 5, SPARE2, 0), OK);
    for pfn in [SPARE, SPARE2] {
        assert_eq!(ask(&mut world, |guest| unpin(guest.frames[pfn])), OK);
        assert_eq!(type_of(&world, pfn), (FrameType::L2, 1), "the other has it");
    }
    // Neither is anything else's to become, and both can still be changed: the way out.
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[L1], SPARE, guest.entry(SPARE, RW))), INVALID);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 3, 0)), OK);
    for pfn in [SPARE, SPARE2] {
        assert_eq!(type_of(&world, pfn).0, FrameType::None);
    }
    assert_eq!(world.check(), before);
}

#[test]
fn a_window_is_no_way_to_change_a_directory() {
    let mut world = world();
    assert_eq!(hang(&mut world, TOP, SELF, TOP, 0), OK);
    for slot in [0, SELF, REGION, 1007, 1008, 1023] {
        let page = window(SELF, slot, 0).0 >> 12;
        // Another page, another table, the entry that is there, none.
        let entries = [DATA, L1, TOP].map(|pfn| world.guests[1].entry(pfn, 0)).into_iter().chain([0, 0x800]);
        for entry in entries.collect::<Vec<_>>() {
            let result = world.judge(1, |guest| guest.call(Hypercall::UpdateVaMapping, [page, entry, 2, 0, 0, 0]));
            assert_eq!(result, Ok(INVALID));
        }
    }
    // What stands in the hypervisor's slots, which nobody has looked at, leads nowhere either.
    let junk = MachineAddr(world.guests[1].frames[TOP].addr().0 + 4 * 1010);
    world.host.hw.store32(junk, world.guests[1].entry(DATA, RW) as u32);
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    let found = pager.walk::<TwoLevel>(&world.guests[1].dom.paging.lock(), window(SELF, 1010, 0));
    assert_eq!(found, None);
    assert_eq!(read(&world, window(SELF, 1010, 0)), None);
    // Nor are pages of a window segment descriptors.
    assert_eq!(ask(&mut world, |_| extended(MmuExtCommand::SetLdt, window(SELF, REGION, 0).0, 512)), OK);
    let guest = world.guest(1);
    let (host, dom) = (guest.host.clone(), guest.dom.clone());
    assert!(!guest.vcpu.segments.ldt_fault::<proxenos_abi::X86_32, _>(&host, &dom, 0));
    world.check();
}

#[test]
fn what_a_window_showed_may_be_given_away() {
    let mut world = world();
    assert_eq!(hang(&mut world, TOP, SELF, TOP, 0), OK);
    assert_eq!(hang(&mut world, TOP, 5, SPARE, RW), OK);
    assert!(read(&world, window(SELF, 5, 0)).is_some(), "it is in the TLB now");
    let frame = world.guests[1].frames[SPARE];
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[TOP], 5, 0)), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[L1], SPARE, 0)), OK);
    assert!(read(&world, window(SELF, 5, 0)).is_some(), "not flushed");
    let info = world.host.frames.get(frame, DomId(1)).expect("its own");
    assert_eq!(info.put_allocation(), Some(false));
    world.host.put_frame(frame, info);
    // Whoever gets it next is not seen any more.
    let mut taken = Vec::new();
    while taken.last() != Some(&frame) {
        let next = world.host.alloc.lock().alloc_hypervisor(0, Zone::Any, &world.host.hw);
        taken.push(next.expect("the frame is free, so it must come"));
    }
    assert_eq!(read(&world, window(SELF, 5, 0)), None);
    for frame in taken {
        world.host.free_hypervisor(frame, 0);
    }
    // The directory's own page goes the same way: shown in its window, then no table any more.
    assert_eq!(ask(&mut world, |guest| new_base(guest.frames[SECOND_TOP])), OK);
    assert_eq!(ask(&mut world, |guest| unpin(guest.frames[TOP])), OK);
    assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[L1], TOP, guest.entry(TOP, RW))), OK);
    world.check();
}

#[test]
fn without_memory_for_a_view_it_is_made_when_it_is_read() {
    let mut world = world();
    let mut taken = Vec::new();
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SECOND_TOP], 2)), OK);
    while let Some(frame) = world.host.alloc.lock().alloc_hypervisor(0, Zone::Any, &world.host.hw) {
        taken.push(frame);
    }
    for pfn in [TOP, SECOND_TOP] {
        assert_eq!(hang(&mut world, TOP, SELF, pfn, 0), OK);
        assert_eq!(world.linear_total(), 1);
    }
    assert_eq!(hang(&mut world, TOP, SELF, TOP, 0), OK);
    world.check();
    for frame in taken {
        world.host.free_hypervisor(frame, 0);
    }
    let own = world.guest(1).entry(TOP, 0);
    assert_eq!(read(&world, window(SELF, SELF, SELF)), Some(own as u32));
    world.check();
}

#[test]
fn four_level_guests_have_no_linear_tables() {
    let mut world = World::of(Arch::X86_64);
    // Every table into every table, itself or one above, by one entry more or in a table to be validated.
    let tables = [TOP, SECOND_TOP, 3, 4, L1];
    assert_eq!(ask(&mut world, |guest| pin(guest.frames[SECOND_TOP], 4)), OK);
    for (table, level) in [(TOP, 4u8), (3, 3), (4, 2)] {
        let below: &[usize] = match level {
            4 => &[3],
            3 => &[4],
            _ => &[L1],
        };
        for pfn in tables.into_iter().filter(|pfn| !below.contains(pfn)) {
            for rw in [0, RW] {
                assert_eq!(hang(&mut world, table, 9, pfn, rw), INVALID, "frame {pfn} in L{level}");
            }
        }
        assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 9, guest.entry(SPARE, 0))), OK);
        assert_eq!(ask(&mut world, |guest| pin(guest.frames[SPARE], level)), INVALID);
        assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[SPARE], 9, 0)), OK);
    }
}

/// What happens to a domain's frames when it ends.
fn end(world: &World, who: usize) {
    let guest = &world.guests[who];
    let (host, dom) = (&*world.host, &guest.dom);
    let (pager, mut state) = (Pager::new(host, dom), dom.paging.lock());
    guest.run();
    pager.clear_base::<TwoLevel>(&mut state);
    let records = || (0..host.frames.len()).map(Mfn).filter_map(|mfn| Some((mfn, host.frames.info(mfn)?)));
    let own = |info: &FrameInfo| info.refs().owner() == dom.id && !info.refs().is_shared();
    for (mfn, info) in records().filter(|(_, info)| own(info)) {
        pager.unlink_directory::<TwoLevel>(&mut state, mfn);
        if own(info) && info.type_word().is_pinned() {
            pager.unpin::<TwoLevel>(&mut state, mfn).expect("it is pinned");
        }
    }
    for (mfn, info) in records().filter(|(_, info)| own(info)) {
        if info.put_allocation() == Some(true) {
            panic!("{mfn:?} is freed by nobody");
        }
    }
}

#[test]
fn a_domain_that_ends_leaves_no_cycle_behind() {
    let mut world = world();
    // Rings of two and of three, one not pinned any more; one within itself; all of them in the base, and the base in
    // one.
    let rings: [&[usize]; 2] = [&[SPARE, SPARE2], &[SECOND_TOP, DATA, DATA + 1]];
    for pfn in [DATA, DATA + 1] {
        assert_eq!(ask(&mut world, |guest| guest.set(guest.frames[L1], pfn, guest.entry(pfn, 0))), OK);
    }
    for ring in rings {
        for &pfn in ring {
            assert_eq!(ask(&mut world, |guest| pin(guest.frames[pfn], 2)), OK);
        }
        for (index, &pfn) in ring.iter().enumerate() {
            assert_eq!(hang(&mut world, pfn, 20, ring[(index + 1) % ring.len()], 0), OK);
            assert_eq!(hang(&mut world, pfn, 21, pfn, 0), OK);
        }
        assert_eq!(hang(&mut world, TOP, ring[0], ring[0], 0), OK);
    }
    for pfn in [SECOND_TOP, DATA, DATA + 1] {
        assert_eq!(ask(&mut world, |guest| unpin(guest.frames[pfn])), OK);
    }
    assert_eq!(hang(&mut world, SPARE2, 22, TOP, 0), OK);
    let (free, shadows) = (world.check().free, world.check().shadows);
    end_and_free(&world, 1);
    let after = world.check();
    // Its tables were a base with an L1, and five directories, each with a view.
    assert_eq!(after.domains, FRAMES as u64 + 2, "the other domain's, and both shared pages");
    assert_eq!(after.free - free, FRAMES as u64 + (shadows - after.shadows));
    assert_eq!(shadows - after.shadows, 2 + 6 * 6);
}

/// As [`end`], the frames themselves too.
fn end_and_free(world: &World, who: usize) {
    let guest = &world.guests[who];
    // So that nothing but a cycle can keep a frame, each has one reference more while the tables go.
    for &frame in &guest.frames {
        world.host.frames.get(frame, guest.dom.id).expect("its own");
    }
    end(world, who);
    for &frame in &guest.frames {
        let info = world.host.frames.info(frame).expect("RAM");
        assert_eq!((info.refs().count(), info.type_word().count()), (1, 0), "{frame:?}");
        world.host.put_frame(frame, info);
    }
}

/// Directories as the links of a chain, each held by the one before only: more of them than this stack would bear.
#[test]
fn a_chain_of_directories_is_taken_down_link_by_link() {
    let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(take_down_a_chain);
    thread.expect("a thread").join().expect("no panic");
}

fn take_down_a_chain() {
    const LINKS: usize = 1500;
    let host = host_with(0x100 + 8 * LINKS, 1, None);
    let guest = domain(&host, DomId(0), Arch::X86_32, PLAIN, LINKS);
    let free = |host: &crate::host::Host<SimHardware>| host.alloc.lock().free_frames(Zone::Any);
    let before = free(&host);
    let (pager, mut state) = (Pager::new(&*host, &guest.dom), guest.dom.paging.lock());
    let chain = &guest.frames;
    pager.set_shadow_limit::<TwoLevel>(&mut state, ShadowFrames(7 * LINKS as u32)).expect("enough");
    for index in (0..LINKS).rev() {
        if let Some(next) = chain.get(index + 1) {
            host.hw.store32(chain[index].addr(), (next.addr().0 | P) as u32);
        }
        host.hw.store32(MachineAddr(chain[index].addr().0 + 4), (chain[index].addr().0 | P) as u32);
        pager.pin::<TwoLevel>(&mut state, chain[index], 2).expect("the next link is a directory");
        if let Some(&next) = chain.get(index + 1) {
            pager.unpin::<TwoLevel>(&mut state, next).expect("pinned");
        }
    }
    assert_eq!(free(&host), before - 6 * LINKS as u64);
    pager.unpin::<TwoLevel>(&mut state, chain[0]).expect("pinned");
    assert!(!state.has_condemned());
    for &link in chain {
        let info = host.frames.info(link).expect("RAM");
        assert_eq!((info.refs().count(), info.type_word().count()), (1, 0));
    }
    assert_eq!(free(&host), before);
}
