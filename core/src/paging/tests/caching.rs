//! Frames mapped past the caches: what is judged is what the CPU will see (`frame::caching`).

use super::world::*;
use crate::addr::{DomId, GuestVirt};
use crate::domain::Arch;
use crate::frame::FrameType;
use crate::paging::format::bits::{P, PCD, PWT, RW, UNCACHED, US};
use crate::sim_hw::Mode;
use alloc::vec;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_abi::{Errno, Hypercall};

fn both(test: impl Fn(&mut World)) {
    for arch in [Arch::X86_32, Arch::X86_64] {
        test(&mut World::of(arch));
    }
}

/// The plain domain makes a request; a refusal must change nothing.
#[track_caller]
fn ask(world: &mut World, request: impl Fn(&Guest) -> Request) -> u64 {
    let request = request(&world.guests[1]);
    assert!(world.guests[1].put_args(&[request.0, request.1]));
    world.judge(1, |guest| guest.mmu_update_in_place(1).result).expect("nothing is wrong")
}

/// The plain domain writes a word into its data page, past the caches, and gives the mapping up.
fn write_past_caches(world: &mut World, flags: u64, word: u64) {
    let guest = world.guest(1);
    let entry = guest.entry(DATA, RW) | flags;
    assert_eq!(guest.remap(DATA, entry, 2), OK);
    let at = guest.va(DATA).offset(8 * 5);
    world.host.hw.guest_store(at, word, Mode::Kernel).expect("writable");
    assert_eq!(world.host.hw.guest_load(at, Mode::Kernel), Ok(word), "the guest sees what it wrote");
    world.check();
    let guest = world.guest(1);
    // Mapped again as usual, which drops nothing from the caches.
    let gone = guest.entry(DATA, 0);
    assert_eq!(guest.remap(DATA, gone, 0), OK);
    world.check();
}

#[test]
fn an_entry_written_past_the_caches_is_the_one_that_is_checked() {
    both(|world| {
        for flags in [PCD, PWT, UNCACHED] {
            let foreign = world.guests[0].frames[DATA].addr().0 | world.guests[1].flags(RW);
            write_past_caches(world, flags, foreign);
            assert_eq!(ask(world, |guest| pin(guest.frames[DATA], 1)), error(Errno::EINVAL));
            let own = world.guests[1].entry(SPARE, 0);
            write_past_caches(world, flags, own);
            assert_eq!(ask(world, |guest| pin(guest.frames[DATA], 1)), OK);
            assert_eq!(world.guests[1].type_of(world.guests[1].frames[DATA]), (FrameType::L1, 1));
            assert_eq!(ask(world, |guest| unpin(guest.frames[DATA])), OK);
        }
    });
}

#[test]
fn so_is_a_descriptor() {
    both(|world| {
        // A gate to where it pleases.
        write_past_caches(world, PCD, 0x0000_ee00_0008_0000);
        let frame = world.guests[1].frames[DATA].0;
        assert!(world.guests[1].put_args(&[frame]));
        let result = world.judge(1, |guest| guest.call(Hypercall::SetGdt, [guest.va(ARGS).0, 512, 0, 0, 0, 0]));
        assert_eq!(result, Ok(error(Errno::EINVAL)));
    });
}

#[test]
fn a_frame_that_is_given_away_takes_nothing_along() {
    both(|world| {
        let host = world.host.clone();
        let guest = world.guest(0);
        let entry = guest.entry(DATA, RW) | PCD;
        assert_eq!(guest.remap(DATA, entry, 2), OK);
        host.hw.guest_store(guest.va(DATA), 7, Mode::Kernel).expect("writable");
        assert_eq!(guest.remap(DATA, 0, 2), OK);
        let requests = [foreign(DomId(1)), reassign(guest.frames[DATA])];
        assert_eq!(guest.mmu_update(&requests), Done { result: OK, count: 2 });
        world.check();
        // Nor one that is given back.
        write_past_caches(world, PCD, 9);
        let frame = world.guests[1].frames[DATA];
        assert_eq!(world.guest(1).remap(DATA, 0, 2), OK);
        assert!(world.guest(1).put_args(&[frame.0]));
        let args = [1, world.guests[1].va(ARGS).0, 1, 0, DomId::SELF.0.into(), 0];
        assert_eq!(world.guest(1).call(Hypercall::DomMemOp, args), 1);
        assert!(!world.host.frames.info(frame).expect("RAM").is_uncached());
        assert_eq!(world.host.hw.machine().frame_bytes(frame), vec![0; 4096]);
        world.check();
    });
}

#[test]
fn what_is_harmless_elsewhere_is_looked_at_here() {
    both(|world| {
        let marked = |world: &World| world.host.frames.info(world.guests[1].frames[DATA]).expect("RAM").is_uncached();
        // By a change of nothing else, in each way.
        let entry = world.guests[1].entry(DATA, RW);
        assert_eq!(ask(world, |guest| guest.set(guest.frames[L1], DATA, entry)), OK);
        assert!(!marked(world));
        assert_eq!(ask(world, |guest| guest.set(guest.frames[L1], DATA, entry | PWT)), OK);
        assert!(marked(world));
        world.check();
    });
}

#[test]
fn a_table_is_not_opened_past_the_caches() {
    both(|world| {
        let guest = world.guest(1);
        assert_eq!(guest.assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
        let spare = guest.entry(SPARE, 0) | PCD;
        assert_eq!(guest.remap(SPARE, spare, 2), OK);
        let frame = guest.frames[SPARE];
        assert_eq!(guest.request(pin(frame, 1)), OK);
        let entry = guest.entry(DATA, 0);
        for slot in 0..8 {
            guest.write(SPARE, slot, entry).expect("carried out");
        }
        assert_eq!(world.guests[1].open_tables(), 0);
        world.check();
    });
}

#[test]
fn entries_above_the_lowest_level_say_nothing_of_caches_where_they_are_walked() {
    both(|world| {
        let refused = world.guests[1].dom.arch == Arch::X86_64;
        for flags in [PCD, PWT] {
            let result = ask(world, |guest| {
                let (top, below) = (guest.frames[TOP], if guest.top_level() == 2 { L1 } else { 3 });
                guest.set(top, 2, guest.entry(below, RW) | US | P | flags)
            });
            assert_eq!(result, if refused { error(Errno::EINVAL) } else { OK });
        }
        assert!(world.host.hw.guest_load(GuestVirt(world.guests[1].base()), Mode::Kernel).is_ok());
    });
}
