//! GNTTABOP_setup_table, and what is wrong with a call as such.

use super::*;
use crate::frame::FrameType;
use crate::grant::table::MAX_TABLE_FRAMES;
use proxenos_abi::Errno;

/// Sets up: result, status and the list's first words.
fn set_up(world: &mut World, who: usize, dom: DomId, frames: u16) -> (u64, i16, Vec<u64>) {
    let list = world.guests[who].va(ARGS).offset(64);
    world.guests[who].run();
    world.host.hw.copy_to_guest(list, &[0xee; 8 * 6]).expect("mapped");
    let mut op = setup(dom, frames, list.0);
    let result = world.guest(who).grants(GrantTableCommand::SetupTable, core::slice::from_mut(&mut op));
    let width = world.guests[who].width() as usize;
    let word = |index: usize| {
        let mut bytes = [0; 8];
        world.host.hw.copy_from_guest(list.offset((index * width) as u64), &mut bytes[..width]).expect("mapped");
        u64::from_le_bytes(bytes)
    };
    (result, op.status, (0..6).map(word).collect())
}

#[test]
fn a_table_is_shared_zeroed_and_grows() {
    everywhere(|world| {
        let untouched = if world.guests[MAPPER].width() == 4 { 0xeeee_eeee } else { 0xeeee_eeee_eeee_eeee };
        let (result, status, none) = set_up(world, MAPPER, DomId::SELF, 0);
        assert_eq!((result, status, none[0]), (OK, OKAY, untouched), "of no frames, none is told");
        let (_, status, one) = set_up(world, MAPPER, DomId::SELF, 1);
        assert_eq!((status, one[1]), (OKAY, untouched));
        let (_, status, four) = set_up(world, MAPPER, DomId::SELF, MAX_TABLE_FRAMES as u16);
        assert_eq!((status, four[0], four[4]), (OKAY, one[0], untouched), "what there was stays");
        let (_, status, again) = set_up(world, MAPPER, DomId::SELF, 2);
        assert_eq!((status, &again[..2], again[2]), (OKAY, &four[..2], untouched));
        for &frame in &four[..MAX_TABLE_FRAMES] {
            let info = world.host.frames.info(Mfn(frame)).expect("RAM");
            assert_eq!((info.refs().owner(), info.refs().is_shared()), (DomId(MAPPER as u16), true));
            assert_eq!(world.host.hw.load64(Mfn(frame).addr()), 0);
            // Its domain maps it and writes to it.
            let guest = world.guest(MAPPER);
            assert_eq!(guest.remap(FREE_PAGE, Mfn(frame).addr().0 | guest.flags(2), 2), OK);
            assert_eq!(world.guests[MAPPER].type_of(Mfn(frame)), (FrameType::Writable, 2));
        }
    });
}

#[test]
fn only_the_privileged_set_up_for_others() {
    everywhere(|world| {
        let own = DomId(MAPPER as u16);
        let before = world.snapshot();
        for (who, dom, frames, expected) in [
            (MAPPER, own, 1, GrantStatus::PermissionDenied),
            (MAPPER, DomId(GRANTOR as u16), 1, GrantStatus::PermissionDenied),
            (MAPPER, DomId(77), 1, GrantStatus::PermissionDenied),
            (MAPPER, DomId::SELF, MAX_TABLE_FRAMES as u16 + 1, GrantStatus::GeneralError),
            (MAPPER, DomId::SELF, u16::MAX, GrantStatus::GeneralError),
            (0, DomId(77), 1, GrantStatus::BadDomain),
            (0, DomId::XEN, 1, GrantStatus::BadDomain),
        ] {
            let (result, status, _) = set_up(world, who, dom, frames);
            assert_eq!((result, status), (OK, expected.raw()), "{dom:?} {frames}");
        }
        assert!(world.snapshot() == before);
        let (_, status, list) = set_up(world, 0, DomId(GRANTOR as u16), 1);
        assert_eq!((status, list[0]), (OKAY, world.table(GRANTOR).0));
    });
}

#[test]
fn what_is_wrong_with_a_call() {
    everywhere(|world| {
        let guest = world.guest(MAPPER);
        let (at, hole) = (guest.va(ARGS).0, guest.va(FREE_PAGE).0);
        let mut call = |command: u64, list, count| guest.call(Hypercall::GrantTableOp, [command, list, count, 0, 0, 0]);
        for command in 0..4 {
            assert_eq!(call(command, at, 513), error(Errno::EINVAL));
        }
        assert_eq!(call(3, at, 1), error(Errno::ENOSYS));
        assert_eq!(call(u32::MAX.into(), at, 1), error(Errno::ENOSYS));
        for count in [0, 2] {
            assert_eq!(call(2, at, count), error(Errno::EINVAL), "one table at a time");
        }
        for command in 0..3 {
            for bad in [hole, hole - 1, 0xfc00_0000, 0xffff_ffff, 0xffff_8000_0000_0000] {
                assert_eq!(call(command, bad, 1), error(Errno::EFAULT), "{command} {bad:#x}");
            }
        }
        assert_eq!((call(0, at, 0), call(1, at, 0)), (OK, OK), "nothing to do");
    });
}

#[test]
fn a_list_of_frames_that_cannot_be_written_is_a_bad_pointer() {
    everywhere(|world| {
        let before = world.snapshot();
        for page in [FREE_PAGE, SPARE, L1] {
            let mut op = setup(DomId::SELF, 1, world.guests[MAPPER].va(page).0);
            let result = world.guest(MAPPER).grants(GrantTableCommand::SetupTable, core::slice::from_mut(&mut op));
            assert_eq!((result, { op.status }), (error(Errno::EFAULT), 77));
        }
        assert!(world.snapshot() == before, "no table was made");
    });
}

#[test]
fn without_memory_there_is_no_table() {
    everywhere(|world| {
        let mut taken = Vec::new();
        let mut alloc = world.host.alloc.lock();
        while let Some(frame) = alloc.alloc_for_guest(0, &world.host.hw) {
            taken.push(frame);
        }
        drop(alloc);
        let before = world.snapshot();
        let (result, status, _) = set_up(world, MAPPER, DomId::SELF, 1);
        // In this machine nothing is kept in reserve but what is asked to be.
        if status != OKAY {
            assert_eq!((result, status), (OK, GENERAL));
            assert!(world.snapshot() == before);
        }
        taken.into_iter().for_each(|frame| world.host.free_hypervisor(frame, 0));
    });
}
