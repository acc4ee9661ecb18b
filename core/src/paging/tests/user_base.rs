//! The tables of applications: held, given up, walked by nobody else, and never mixed with those of their kernel.

use super::world::*;
use crate::addr::{GuestVirt, Mfn};
use crate::bounce;
use crate::domain::{Arch, Privileges};
use crate::frame::FrameType;
use crate::paging::Pager;
use crate::paging::format::FourLevel;
use crate::paging::format::bits::{D, RW};
use crate::paging::log_dirty::{Room, control};
use crate::sim_hw::Mode;
use crate::user_mode::{Application, set_segment_base};
use proxenos_abi::dom0_ops::args::ShadowControlOp;
use proxenos_abi::hypercall::{SegmentBase, VmAssistCommand, VmAssistType};
use proxenos_abi::{Errno, Hypercall, X86_32, X86_64};

/// The slot of an L4 table that the region is in.
const REGION: usize = 0x111;
/// One that leads to the same tables for applications.
const LOWER: usize = 2;

/// A world whose domain 1 has applications that see the region, at [`LOWER`] only.
fn world() -> World {
    let mut world = World::of(Arch::X86_64);
    let guest = world.guest(1);
    let (table, region) = (guest.frames[SECOND_TOP], guest.entry(3, RW));
    assert_eq!(guest.request(guest.set(table, REGION, 0)), OK);
    assert_eq!(guest.request(guest.set(table, LOWER, region)), OK);
    assert_eq!(guest.request(new_user_base(table)), OK);
    world.check();
    world
}

/// Address of a page of the region to applications.
fn user(page: usize) -> GuestVirt {
    GuestVirt((LOWER as u64) << 39 | (page as u64) << 12)
}

fn load(world: &mut World, at: GuestVirt) -> bool {
    world.guest(1).run();
    let done = world.host.hw.guest_load(at, Mode::User).is_ok();
    world.check();
    done
}

fn enter(world: &mut World, to: bounce::Mode) {
    assert!(world.guest(1).enter(to));
    world.check();
}

#[test]
fn a_base_is_one_reference_as_a_top_level_table() {
    let mut world = world();
    let guest = world.guest(1);
    let top = guest.frames[SECOND_TOP];
    assert_eq!(guest.type_of(top), (FrameType::L4, 1));
    assert_eq!(guest.request(new_user_base(top)), OK, "once more");
    assert_eq!(guest.type_of(top), (FrameType::L4, 1));
    let kernels = guest.frames[TOP];
    let (_, before) = guest.type_of(kernels);
    assert_eq!(guest.request(new_user_base(kernels)), OK, "the kernel's own");
    assert_eq!(guest.type_of(kernels), (FrameType::L4, before + 1));
    assert_eq!(guest.type_of(top), (FrameType::None, 0));
    assert_eq!(guest.request(new_user_base(Mfn(0))), OK);
    assert_eq!(guest.request(new_user_base(Mfn(0))), OK, "there is none");
    assert_eq!(guest.type_of(kernels), (FrameType::L4, before));
    world.check();
}

#[test]
fn what_cannot_be_a_base_is_refused_and_the_old_one_stays() {
    let mut world = world();
    for page in [DATA, L1, 3, 4] {
        world.refused(|guest| new_user_base(guest.frames[page]));
    }
    world.refused(|guest| new_user_base(guest.dom.shared_info));
    world.refused(|guest| new_user_base(guest.dom.gdt_page));
    for frame in [0xb8, 0xf_0000, 0xfee00, 1 << 30] {
        world.refused(|_| new_user_base(Mfn(frame)));
    }
    let others = world.guest(0).frames[TOP];
    world.refused(|_| new_user_base(others));
    let guest = &world.guests[1];
    assert_eq!(guest.dom.paging.lock().user.base, Some(guest.frames[SECOND_TOP]));
    let mut narrow = World::of(Arch::X86_32);
    narrow.refused(|guest| new_user_base(guest.frames[SECOND_TOP]));
    narrow.refused(|_| new_user_base(Mfn(0)));
}

#[test]
fn each_mode_walks_its_own_tables_and_remembers_nothing_of_the_others() {
    let mut world = world();
    let kernel = world.guest(1).va(DATA);
    for _ in 0..2 {
        assert!(load(&mut world, kernel) && !load(&mut world, user(DATA)));
        enter(&mut world, bounce::Mode::User);
        assert!(!load(&mut world, kernel) && load(&mut world, user(DATA)));
        enter(&mut world, bounce::Mode::Kernel);
    }
    // What the kernel takes away is gone for its applications, though it flushes nothing.
    enter(&mut world, bounce::Mode::User);
    assert!(load(&mut world, user(DATA)));
    enter(&mut world, bounce::Mode::Kernel);
    assert_eq!(world.guest(1).remap(DATA, 0, 0), OK);
    enter(&mut world, bounce::Mode::User);
    assert!(!load(&mut world, user(DATA)));
    // Where nothing is to be had, nothing changes.
    enter(&mut world, bounce::Mode::Kernel);
    assert_eq!(world.guest(1).request(new_user_base(Mfn(0))), OK);
    assert!(!world.guest(1).enter(bounce::Mode::User));
    assert_eq!(world.guest(1).vcpu.mode, bounce::Mode::Kernel);
    let kernel = world.guest(1).va(DATA + 1);
    assert!(load(&mut world, kernel));
}

#[test]
fn a_base_given_up_may_become_anything() {
    let mut world = world();
    enter(&mut world, bounce::Mode::User);
    assert!(load(&mut world, user(DATA)));
    enter(&mut world, bounce::Mode::Kernel);
    let guest = world.guest(1);
    let writable = guest.entry(SECOND_TOP, RW | D);
    assert_eq!(guest.remap(SECOND_TOP, writable, 0), error(Errno::EINVAL), "while it is one");
    assert_eq!(guest.request(new_user_base(Mfn(0))), OK);
    assert_eq!(guest.remap(SECOND_TOP, writable, 0), OK);
    world.check();
}

#[test]
fn the_end_of_a_domain_gives_up_both() {
    use crate::preempt::Poll;
    use crate::teardown::Teardown;
    for mode in [bounce::Mode::Kernel, bounce::Mode::User] {
        let mut world = world();
        if mode == bounce::Mode::User {
            enter(&mut world, mode);
        }
        world.host.hw.leave();
        let (host, guest) = (world.host.clone(), world.guest(1));
        let dom = guest.dom.clone();
        let mut teardown = Teardown::Begun;
        while teardown != Teardown::Done {
            teardown.go_on(&host, &dom, &mut guest.vcpu.segments, &mut Poll::begin());
        }
        assert!(dom.paging.lock().bases().next().is_none());
        let frames = world.guests[1].frames.clone();
        assert!(frames.iter().all(|&frame| host.frames.info(frame).expect("RAM").refs().owner() != dom.id));
    }
}

#[test]
fn a_base_of_any_size_is_validated_in_goes() {
    let mut world = world();
    assert_eq!(world.guest(1).request(new_user_base(Mfn(0))), OK);
    world.host.hw.preempt_every(1);
    let table = world.guests[1].frames[SECOND_TOP];
    for _ in 0..3 {
        assert_eq!(world.guest(1).request(new_user_base(table)), OK);
        world.check();
        assert_eq!(world.guest(1).request(new_user_base(Mfn(0))), OK);
        world.check();
    }
}

#[test]
fn applications_are_watched_too() {
    let mut world = world();
    let control = |world: &World, op: ShadowControlOp| {
        let guest = &world.guests[1];
        guest.run();
        let load = |root| crate::machine::CpuTables::load_root(&world.host.hw, root);
        let report = control(&world.host, &guest.dom, world.guests[0].dom.id, op.raw(), Room(1 << 20), load);
        world.check();
        report.expect("it may").and_then(|report| report.bitmap).map_or(0, |bits| bits[0])
    };
    control(&world, ShadowControlOp::EnableLogdirty);
    for page in [DATA, DATA + 1] {
        enter(&mut world, bounce::Mode::User);
        assert!(world.host.hw.guest_store(user(page), 7, Mode::User).is_ok());
        world.check();
        let kernel = world.guest(1).va(page);
        assert!(!load(&mut world, kernel));
        assert_eq!(control(&world, ShadowControlOp::Clean) & (1 << DATA | 2 << DATA), 1 << page);
        enter(&mut world, bounce::Mode::Kernel);
        assert!(load(&mut world, kernel));
    }
    // Whoever runs when it ends, and bases that come and go meanwhile.
    let (first, second) = (world.guests[1].frames[TOP], world.guests[1].frames[SECOND_TOP]);
    for base in [first, second, Mfn(0), second] {
        assert_eq!(world.guest(1).request(new_user_base(base)), OK);
        world.check();
    }
    control(&world, ShadowControlOp::Flush);
    enter(&mut world, bounce::Mode::User);
    assert!(load(&mut world, user(DATA)));
    control(&world, ShadowControlOp::Flush);
    assert!(load(&mut world, user(DATA)));
    control(&world, ShadowControlOp::Off);
    assert!(load(&mut world, user(DATA)));
    control(&world, ShadowControlOp::EnableTest);
    assert!(load(&mut world, user(DATA)));
    enter(&mut world, bounce::Mode::Kernel);
}

#[test]
fn no_table_is_open_while_applications_run_and_they_open_none() {
    let mut world = world();
    let guest = world.guest(1);
    assert_eq!(guest.assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
    let spare = guest.entry(SPARE, RW);
    assert_eq!(guest.request(guest.set(guest.frames[4], 1, spare)), OK);
    for slot in 0..8 {
        assert_eq!(guest.write(SPARE, slot, 0), Ok(()));
    }
    assert_eq!(guest.open_tables(), 1);
    enter(&mut world, bounce::Mode::User);
    assert_eq!(world.guest(1).open_tables(), 0);
    for slot in 0..8 {
        let at = user(SPARE).offset(8 * slot);
        assert!(world.host.hw.guest_store(at, 0, Mode::User).is_err(), "it is a page table");
    }
    assert_eq!(world.guest(1).open_tables(), 0);
    world.check();
}

#[test]
fn frames_are_read_by_the_kernels_tables_and_only_where_it_may() {
    let mut world = world();
    let guest = world.guest(1);
    let words: [u64; 9] = [11, 22, 1 << 9, 33, 0x823, 0, 44, 0x833, 55];
    assert!(guest.put_args(&words));
    let at = guest.va(ARGS);
    let found = Application::at_stack(&guest.host, at).expect("readable");
    assert_eq!((found.context.r11, found.context.rcx, found.context.ip, found.rax), (11, 22, 33, Some(55)));
    let edges =
        [GuestVirt(0xffff_8000_0000_0000), GuestVirt(u64::MAX - 62), GuestVirt((1 << 47) - 63), guest.va(FRAMES + 1)];
    for at in edges {
        assert_eq!(Application::at_stack(&guest.host, at), Err(Errno::EFAULT), "{at:?}");
    }
    // In a multicall, or from a guest that has no such call.
    assert_eq!(guest.call(Hypercall::SwitchToUser, [0; 6]), error(Errno::EINVAL));
    let mut narrow = World::of(Arch::X86_32);
    assert_eq!(narrow.guest(1).call(Hypercall::SwitchToUser, [0; 6]), error(Errno::ENOSYS));
    assert_eq!(narrow.guest(1).call(Hypercall::SetSegmentBase, [0; 6]), error(Errno::ENOSYS));
}

#[test]
fn segment_bases_are_canonical_and_selectors_ring_3s() {
    let mut world = World::new(&[(Arch::X86_64, Privileges::empty())]);
    let guest = world.guest(0);
    let mut set = |which: u32, value: u64| {
        let (host, dom) = (guest.host.clone(), guest.dom.clone());
        set_segment_base::<X86_64, _>(&host, &dom, &mut guest.vcpu, which, value)
    };
    for which in 0..3 {
        for good in [0, 1, (1 << 47) - 1, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(set(which, good), Ok(0));
        }
        for bad in [1 << 47, u64::MAX >> 1, 1 << 63, 0xffff_7fff_ffff_ffff] {
            assert_eq!(set(which, bad), Err(Errno::EINVAL));
        }
    }
    assert_eq!((set(3, 0), set(3, 0x830), set(3, 0x808)), (Ok(0), Ok(0), Err(Errno::EINVAL)));
    assert_eq!((set(4, 0), set(u32::MAX, 0)), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
    assert_eq!(world.host.hw.segment_base(SegmentBase::GsKernel), Some(u64::MAX));
    assert_eq!(world.host.hw.segment_base(SegmentBase::GsUser), Some(0), "the selector's");
    let mut narrow = World::new(&[(Arch::X86_32, Privileges::empty())]);
    let guest = narrow.guest(0);
    let (host, dom) = (guest.host.clone(), guest.dom.clone());
    assert_eq!(set_segment_base::<X86_32, _>(&host, &dom, &mut guest.vcpu, 0, 0), Err(Errno::ENOSYS));
}

/// An address space can be walked only by who has one.
#[test]
fn the_kernel_changes_its_own_mappings_whoever_ran_last() {
    let mut world = world();
    enter(&mut world, bounce::Mode::User);
    enter(&mut world, bounce::Mode::Kernel);
    let guest = world.guest(1);
    let page = guest.va(DATA + 1).0 >> 12;
    assert_eq!(guest.call(Hypercall::UpdateVaMapping, [page, 0, 0, 0, 0, 0]), OK);
    let theirs = user(DATA).0 >> 12;
    assert_eq!(guest.call(Hypercall::UpdateVaMapping, [theirs, 0, 0, 0, 0, 0]), error(Errno::EINVAL));
    let pager = Pager::new(&*guest.host, &guest.dom);
    assert!(pager.walk::<FourLevel>(&pager.lock(), user(DATA)).is_none());
}
