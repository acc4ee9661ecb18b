//! Shadows for which there is no room: dropped, made again when they are needed, and nobody sees it.

use super::random::{LENGTH, Score, config, story};
use super::world::*;
use crate::addr::{GuestVirt, MachineAddr, Mfn};
use crate::domain::{Arch, Privileges};
use crate::frame_alloc::Zone;
use crate::machine::MachineMemory;
use crate::paging::Pager;
use crate::paging::format::TwoLevel;
use crate::paging::format::bits::{A, D, P, RW, US};
use crate::paging::pool::{LimitTooLow, MINIMUM, ShadowFrames};
use crate::sim_hw::Mode;
use alloc::vec::Vec;
use proptest::prelude::*;

/// Frames of the plain domain's shadows.
fn used(world: &World) -> u32 {
    world.guests[1].dom.paging.lock().pool.used().0
}

/// Bounds a domain's shadows.
fn bound(world: &World, who: usize, frames: u32) -> Result<(), LimitTooLow> {
    let dom = &world.guests[who].dom;
    let pager = Pager::new(&*world.host, dom);
    pager.set_shadow_limit::<TwoLevel>(&mut pager.lock(), ShadowFrames(frames))
}

/// The plain domain makes a request that is carried out.
#[track_caller]
fn done(world: &mut World, request: impl Fn(&Guest) -> Request) {
    let request = request(&world.guests[1]);
    assert_eq!(world.guests[1].request(request), OK);
    world.check();
}

/// Where the tables of [`many_tables`] begin.
const FIRST: usize = 9;
/// How many there are.
const TABLES: usize = 10;

/// Gives the plain domain ten more L1 tables, in the slots from 8 on, each of which maps the data page at its slot.
fn many_tables(world: &mut World) {
    for table in FIRST..FIRST + TABLES {
        let entry = world.guests[1].entry(table, 0);
        assert_eq!(world.guests[1].remap(table, entry, 2), OK);
        let data = world.guests[1].entry(DATA, RW) & !A;
        let (at, _) = world.guests[1].set(world.guests[1].frames[table], table, data);
        world.host.hw.store32(MachineAddr(at), data as u32);
        done(world, |guest| guest.set(guest.frames[TOP], table, guest.entry(table, RW) | US));
    }
}

/// An address that a table of [`many_tables`] maps.
fn at(table: usize) -> GuestVirt {
    GuestVirt((table << 22 | table << 12) as u64)
}

#[test]
fn a_limit_is_kept_and_nothing_is_lost() {
    let mut world = World::of(Arch::X86_32);
    assert_eq!(bound(&world, 1, MINIMUM.0 - 1), Err(LimitTooLow));
    many_tables(&mut world);
    let plenty = used(&world);
    // The upper two, a directory, the region's table and ten more, two frames each.
    assert_eq!(plenty, 2 + 4 + 2 + 2 * TABLES as u32);
    assert!(!world.was_short());
    bound(&world, 1, MINIMUM.0).expect("it is enough");
    world.check();
    for round in 0..3 {
        for table in FIRST..FIRST + TABLES {
            world.guests[1].run();
            let value = (round << 8 | table) as u64;
            assert_eq!(world.host.hw.guest_store(at(table), value, Mode::Kernel), Ok(()), "{table}");
            assert_eq!(world.host.hw.guest_load(world.guests[1].va(DATA), Mode::Kernel), Ok(value));
            assert!(used(&world) <= MINIMUM.0);
            world.check();
        }
    }
    let entries = |table: usize| {
        let (at, _) = world.guests[1].set(world.guests[1].frames[table], table, 0);
        u64::from(world.host.hw.load32(MachineAddr(at))) & (P | A | D)
    };
    assert!(
        (FIRST..FIRST + TABLES).all(|table| entries(table) == P | A | D),
        "accessed and dirty bits are the guest's"
    );
}

#[test]
fn what_is_changed_while_its_shadow_is_absent_counts() {
    let mut world = World::of(Arch::X86_32);
    many_tables(&mut world);
    bound(&world, 1, MINIMUM.0).expect("it is enough");
    for table in FIRST..FIRST + TABLES {
        // Wherever the shadow is now.
        done(&mut world, |guest| guest.set(guest.frames[table], table, guest.entry(DATA, 0)));
        done(&mut world, |guest| guest.set(guest.frames[table], table + 1, guest.entry(DATA, RW)));
    }
    for table in FIRST..FIRST + TABLES {
        world.guests[1].run();
        assert!(world.host.hw.guest_store(at(table), 1, Mode::Kernel).is_err());
        assert!(world.host.hw.guest_load(at(table), Mode::Kernel).is_ok());
        assert!(world.host.hw.guest_store(at(table).offset(4096), 1, Mode::Kernel).is_ok());
        world.check();
    }
}

#[test]
fn directories_that_are_not_in_use_go_first() {
    let mut world = World::of(Arch::X86_32);
    done(&mut world, |guest| pin(guest.frames[SECOND_TOP], 2));
    let shadow = |world: &World, pfn: usize| world.host.frames.info(world.guests[1].frames[pfn]).expect("RAM").shadow();
    bound(&world, 1, MINIMUM.0).expect("it is enough");
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    pager.reclaim::<TwoLevel>(&mut pager.lock());
    assert_eq!(shadow(&world, SECOND_TOP), None);
    assert!(shadow(&world, TOP).is_some() && shadow(&world, L1).is_some());
    pager.reclaim_all::<TwoLevel>(&mut pager.lock());
    assert!(shadow(&world, TOP).is_some() && shadow(&world, L1).is_none(), "the base's own stays");
    world.check();
    // A base gets its shadow back, and what is below follows by faults.
    done(&mut world, |guest| new_base(guest.frames[SECOND_TOP]));
    assert!(shadow(&world, SECOND_TOP).is_some());
    assert!(world.host.hw.guest_load(world.guests[1].va(DATA), Mode::Kernel).is_ok());
    world.check();
}

#[test]
fn of_what_is_in_use_the_oldest_goes_first_and_what_is_not_before_it() {
    let mut world = World::of(Arch::X86_32);
    many_tables(&mut world);
    // A table that is one by its pin alone.
    let idle = FIRST + 4;
    done(&mut world, |guest| pin(guest.frames[idle], 1));
    done(&mut world, |guest| guest.set(guest.frames[TOP], idle, 0));
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    pager.reclaim_all::<TwoLevel>(&mut pager.lock());
    world.guests[1].run();
    let others = || (FIRST..FIRST + TABLES).rev().filter(|&table| table != idle);
    for table in others() {
        assert!(world.host.hw.guest_load(at(table), Mode::Kernel).is_ok());
    }
    // Its shadow is the youngest of all.
    done(&mut world, |guest| unpin(guest.frames[idle]));
    done(&mut world, |guest| pin(guest.frames[idle], 1));
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    let shadow = |pfn: usize| world.host.frames.info(world.guests[1].frames[pfn]).expect("RAM").shadow();
    let mut expected: Vec<usize> = core::iter::once(idle).chain(others()).collect();
    while expected.len() > 2 {
        assert!(expected.iter().all(|&table| shadow(table).is_some()), "{expected:?}");
        pager.reclaim::<TwoLevel>(&mut pager.lock());
        for table in expected.drain(..2) {
            assert!(shadow(table).is_none(), "{table}");
        }
    }
    world.check();
}

#[test]
fn little_is_looked_at_that_does_not_go() {
    use crate::preempt::{Poll, cost};
    let mut world = World::of(Arch::X86_32);
    many_tables(&mut world);
    done(&mut world, |guest| pin(guest.frames[SECOND_TOP], 2));
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    let mut state = pager.lock();
    state.poll = Poll::begin();
    assert_eq!(pager.reclaim::<TwoLevel>(&mut state), 4);
    // Two directories, one of them the base, and none of the other tables.
    assert_eq!(state.poll.steps(), 2 * cost::EMPTY + cost::ENTRY);
    state.poll = Poll::NEVER;
    drop(state);
    world.check();
}

#[test]
fn a_domain_for_which_there_is_no_memory_at_all_ends() {
    use crate::domain::RunState;
    let mut world = World::of(Arch::X86_32);
    many_tables(&mut world);
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    pager.reclaim_all::<TwoLevel>(&mut pager.lock());
    let mut taken: Vec<Mfn> = Vec::new();
    while let Some(frame) = world.host.alloc.lock().alloc_hypervisor(0, Zone::Any, &world.host.hw) {
        taken.push(frame);
    }
    let access = crate::paging::shadow::Access { write: false, user: false };
    let at = world.guests[1].va(DATA);
    assert!(!pager.resolve_shadow_fault::<TwoLevel>(&mut world.guests[1].dom.paging.lock(), at, access));
    assert!(world.guests[1].dom.run_state().contains(RunState::CRASHED));
    for frame in taken {
        world.host.free_hypervisor(frame, 0);
    }
    world.check();
}

#[test]
fn what_one_instruction_needs_is_there_at_once_when_memory_is_short() {
    let mut world = World::of(Arch::X86_32);
    many_tables(&mut world);
    let pager = Pager::new(&*world.host, &world.guests[1].dom);
    pager.reclaim_all::<TwoLevel>(&mut pager.lock());
    let before = used(&world);
    // Nothing is left but the reserve.
    world.host.alloc.lock().set_reserve(1 << 40);
    world.guests[1].run();
    for table in FIRST..FIRST + 3 {
        assert!(world.host.hw.guest_load(at(table), Mode::Kernel).is_ok());
    }
    let shadow = |pfn: usize| world.host.frames.info(world.guests[1].frames[pfn]).expect("RAM").shadow();
    assert!((FIRST..FIRST + 3).all(|table| shadow(table).is_some()), "none was dropped for another");
    assert_eq!(used(&world), before + 3 * 2);
    world.check();
}

/// Domains of both kinds, those of two levels with as few shadows as may be.
fn cramped_world(frames: usize, arch: Arch) -> World {
    let domains = [(Arch::X86_32, PRIVILEGED), (arch, Privileges::DEVICES), (Arch::X86_32, PLAIN)];
    let world = World::with_memory(frames, &domains, None);
    for who in (0..3).filter(|&who| world.guests[who].dom.arch == Arch::X86_32) {
        bound(&world, who, MINIMUM.0).expect("it is enough");
    }
    world
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_requests_keep_every_invariant_with_few_shadows(
        frames in prop_oneof![Just(0x100 + 384), Just(0x100 + 160)],
        arch in prop_oneof![Just(Arch::X86_32), Just(Arch::X86_64)],
        ops in story(1..LENGTH),
    ) {
        let mut world = cramped_world(frames, arch);
        for ops in ops.chunks(4) {
            world.play(ops, &mut Score::default()).map_err(TestCaseError::fail)?;
            for guest in world.guests.iter().filter(|guest| guest.dom.arch == Arch::X86_32) {
                let pager = Pager::new(&*world.host, &guest.dom);
                pager.reclaim_all::<TwoLevel>(&mut pager.lock());
            }
        }
    }
}
