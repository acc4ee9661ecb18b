//! Create, pause, unpause, destroy, and what is told of a domain meanwhile.

use super::*;
use crate::domain::{Privileges, RunState};
use crate::sim_hw::{domain, host};
use core::sync::atomic::Ordering::Relaxed;

#[test]
fn the_unprivileged_get_no_further() {
    for arch in ARCHES {
        let host = host(512, 4);
        for (id, privileges) in [(1, Privileges::empty()), (2, Privileges::DEVICES)] {
            let mut guest = domain(&host, DomId(id), arch, privileges, 4);
            let result = guest.hypercall(Hypercall::Dom0Op, [0; 6]);
            assert_eq!(result as u32, Errno::EPERM.to_result() as u32);
            assert!(!guest.vcpu.ports.allow(crate::ports::Mode::Kernel));
        }
        let mut guest = domain(&host, DomId(3), arch, Privileges::all(), 4);
        assert_eq!(guest.hypercall(Hypercall::Dom0Op, [0; 6]) as u32, Errno::EFAULT.to_result() as u32);
    }
}

#[test]
fn versions_and_commands_that_there_are_not() {
    let mut world = world(Arch::X86_64);
    for (cmd, version, errno) in [
        (10, 0xaaaa_0018, Errno::EACCES),
        (10, 0xaaaa_001b, Errno::EACCES),
        (0, 0xaaaa_0019, Errno::ENOSYS),
        (26, 0xaaaa_001a, Errno::ENOSYS),
        (31, 0xaaaa_0019, Errno::ENOSYS),
        (u32::MAX, 0xaaaa_0019, Errno::ENOSYS),
    ] {
        let op = Dom0Op { cmd, interface_version: version, ..Dom0Op::default() };
        assert_eq!(world.dom0_op(&op), (refused(errno), op), "{cmd} {version:#x}");
    }
}

#[test]
fn a_domain_lives() {
    for_both_callers!(lives);
}

fn lives<A: Control>(arch: Arch) {
    for subject in ARCHES {
        let mut world = world(arch);
        let before = world.usage();
        let id = world.create::<A>(subject, PAGES);
        assert_eq!(id, DomId(2), "0 and 1 are taken");
        let dom = world.find(id);
        assert_eq!(dom.arch, subject);
        let (result, info) = world.info::<A>(id);
        assert_eq!(result, OK);
        assert_eq!(DomainFlags::from_bits_retain(info.flags) & !DomainFlags::CPU, DomainFlags::PAUSED);
        assert_eq!(({ info.tot_pages }.to_u64(), { info.max_pages }.to_u64()), (PAGES, PAGES));
        assert_eq!({ info.shared_info_frame }.to_u64(), dom.shared_info.0);
        world.usage();
        // It cannot run before it is built.
        assert_eq!(world.tell(UnpauseDomain { domain: id, pad: 0 }), refused(Errno::EINVAL));
        assert_eq!(world.destroy(id), OK);
        assert_eq!(world.destroy(id), refused(Errno::ESRCH));
        assert_eq!(world.info::<A>(id).0, refused(Errno::ESRCH));
        drop(dom);
        assert_eq!(world.usage(), before);

        let (id, _) = world.built::<A>(subject);
        assert_eq!(id, DomId(3), "no number is given again soon");
        let dom = world.find(id);
        assert_eq!(dom.run_state(), RunState::PAUSED);
        assert_eq!(world.tell(UnpauseDomain { domain: id, pad: 0 }), OK);
        assert_eq!(dom.run_state(), RunState::empty());
        assert_eq!(world.tell(PauseDomain { domain: id, pad: 0 }), OK);
        assert_eq!(world.tell(PauseDomain { domain: id, pad: 0 }), OK);
        assert_eq!(dom.run_state(), RunState::PAUSED);
        assert_eq!(world.tell(UnpauseDomain { domain: id, pad: 0 }), OK);
        assert_eq!(dom.run_state(), RunState::empty());
        world.usage();
        assert_eq!(world.destroy(id), OK);
        drop(dom);
        assert_eq!(world.usage(), before);
        assert_eq!(world.host.hw.parked(), 0);
        assert_eq!(world.host.hw.descriptor_pages(id), []);
    }
}

#[test]
fn what_state_a_domain_is_in() {
    let mut world = world(Arch::X86_64);
    let (id, _) = world.built::<X86_64>(Arch::X86_32);
    let dom = world.find(id);
    let flags = |world: &mut World| DomainFlags::from_bits_retain(world.info::<X86_64>(id).1.flags);
    assert_eq!(world.tell(UnpauseDomain { domain: id, pad: 0 }), OK);
    let cpu = dom.home().expect("a place").cpu.0 as u8;
    let expect = |flags: DomainFlags| flags.with_cpu(cpu);
    assert_eq!(flags(&mut world), expect(DomainFlags::empty()));
    dom.set_state(RunState::BLOCKED);
    assert_eq!(flags(&mut world), expect(DomainFlags::BLOCKED));
    dom.shut_down(3);
    assert_eq!(flags(&mut world), expect(DomainFlags::BLOCKED).with_shutdown_reason(3));
    dom.set_state(RunState::CRASHED);
    let all = DomainFlags::BLOCKED | DomainFlags::CRASHED;
    assert_eq!(flags(&mut world), expect(all).with_shutdown_reason(3));
    // Domain 0 asks: it runs, whoever else does.
    let (_, own) = world.info::<X86_64>(DomId(0));
    assert_eq!(DomainFlags::from_bits_retain(own.flags), DomainFlags::RUNNING);
    // From the number asked for on, upwards.
    let found: Vec<_> = (0..5).map(|id| world.info::<X86_64>(DomId(id))).map(|(ok, i)| (ok, i.domain.0)).collect();
    assert_eq!(found[..3], [(OK, 0), (OK, 1), (OK, 2)]);
    assert_eq!(found[3].0, refused(Errno::ESRCH));
}

#[test]
fn what_is_refused() {
    for_both_callers!(refuses);
}

fn refuses<A: Control>(arch: Arch) {
    let mut world = world(arch);
    let before = world.usage();
    let ask = |world: &mut World, id: u16, cpu: u32, kib: u64| {
        world.tell(CreateDomain::<A> { memory_kb: word(kib), cpu, domain: DomId(id), ..CreateDomain::default() })
    };
    let any = u32::MAX;
    let free = world.host.alloc.lock().free_frames(crate::frame_alloc::Zone::Any);
    for (id, cpu, kib, errno) in [
        (1, any, 16, Errno::EINVAL),
        (1 | CREATE_OTHER_ARCH, any, 16, Errno::EINVAL),
        (0x7ff0, any, 16, Errno::EINVAL),
        (0x7fff, any, 16, Errno::EINVAL),
        (0xffff, any, 16, Errno::EINVAL),
        (0, 2, 16, Errno::EINVAL),
        (0, 0x10000, 16, Errno::EINVAL),
        (0, any, 1 << 20, Errno::ENOMEM),
        (0, any, 0xffff_ffff, Errno::ENOMEM),
        // More than is free, when what the hypervisor keeps is counted too late: it is begun, and taken back.
        (0, any, 4 * free, Errno::ENOMEM),
    ] {
        assert_eq!(ask(&mut world, id, cpu, kib), refused(errno), "{id:#x} {cpu:#x} {kib:#x}");
        assert_eq!(world.usage(), before);
    }
    // A number that is asked for; and a page that is not whole.
    assert_eq!(ask(&mut world, 77, 1, 5), OK);
    let dom = world.find(DomId(77));
    assert_eq!((dom.total_pages.load(Relaxed), dom.home().unwrap().cpu.0), (2, 1));
    assert_eq!(ask(&mut world, 77, any, 5), refused(Errno::EINVAL));
    // None is a domain too.
    assert_eq!(ask(&mut world, 78, any, 0), OK);
    drop(dom);
    assert_eq!((world.destroy(DomId(77)), world.destroy(DomId(78))), (OK, OK));
    assert_eq!(world.usage(), before);

    for id in [5, 0x7fef, 0x7ff0, 0x7ff1, 0x7ff2, 0xffff] {
        let domain = DomId(id);
        assert_eq!(world.tell(PauseDomain { domain, pad: 0 }), refused(Errno::ESRCH));
        assert_eq!(world.tell(UnpauseDomain { domain, pad: 0 }), refused(Errno::ESRCH));
        assert_eq!(world.destroy(domain), refused(Errno::ESRCH));
        assert_eq!(world.info::<A>(domain).0, refused(Errno::ESRCH));
    }
    assert_eq!(world.tell(PauseDomain { domain: DomId(0), pad: 0 }), refused(Errno::EINVAL));
    assert_eq!(world.destroy(DomId(0)), refused(Errno::EINVAL));
    // A request that cannot be answered is not carried out.
    let op = Dom0Op::new(CreateDomain::<A> { memory_kb: word(16), cpu: any, ..CreateDomain::default() });
    world.write_op(&op);
    let read_only = world.guests[0].entry(ARGS, 0);
    let (at, page) = (world.guests[0].va(ARGS), world.guests[0].va(ARGS).0 >> 12);
    assert_eq!(world.guest(0).call(Hypercall::UpdateVaMapping, [page, read_only, 2, 0, 0, 0]), OK);
    assert_eq!(world.guest(0).call(Hypercall::Dom0Op, [at.0, 0, 0, 0, 0, 0]), refused(Errno::EFAULT));
    assert_eq!(world.host.domains.count(), 2);
    assert_eq!(world.usage(), before);
}

#[test]
fn one_that_runs_elsewhere_is_waited_for() {
    let mut world = world(Arch::X86_64);
    let (id, frames) = world.built::<X86_64>(Arch::X86_64);
    let pause = Dom0Op::new(PauseDomain { domain: id, pad: 0 });
    world.host.hw.keep_running(id, 2);
    assert_eq!([0; 3].map(|_| world.try_once(&pause)), [Answer::Again, Answer::Again, Answer::Done(0)]);
    world.host.hw.keep_running(id, 1);
    let at = world.guests[0].va(DATA).0;
    let mut info = GetDomainInfo::<X86_64> { domain: id, ctxt: word(at), ..GetDomainInfo::default() };
    assert_eq!([0; 2].map(|_| world.try_once(&Dom0Op::new(info))), [Answer::Again, Answer::Done(0)]);
    info.ctxt = word(0);
    world.host.hw.keep_running(id, 1);
    assert_eq!(world.try_once(&Dom0Op::new(info)), Answer::Done(0), "without its context there is no need");
    let destroy = Dom0Op::new(DestroyDomain { domain: id, pad: 0 });
    assert_eq!([0; 2].map(|_| world.try_once(&destroy)), [Answer::Again, Answer::Done(0)]);
    assert_eq!(world.host.frames.info(frames[0]).unwrap().refs().count(), 0);
}

#[test]
fn the_privilege_level_of_another() {
    for_both_callers!(iopl);
}

fn iopl<A: Control>(arch: Arch) {
    use crate::others::VirtualCpus;
    use crate::ports::Mode::{Application, Kernel};
    for subject in ARCHES {
        let mut world = world(arch);
        let (id, frames) = world.prepare::<A>(subject);
        let dom = world.find(id);
        let rights = |world: &World| {
            let rights = world.host.hw.with_stopped(&dom, |stopped| stopped.vcpu.ports).expect("it is parked");
            (rights.allow(Kernel), rights.allow(Application))
        };
        let level = |domain, iopl| Iopl { domain, iopl, ..Iopl::default() };
        assert_eq!(world.tell(level(id, 1)), OK);
        assert_eq!(rights(&world), (true, false));
        // Before it is built as well as after.
        let context = world.context(subject, frames[0]);
        assert_eq!(world.build_with::<A>(id, Dom0Version::V19, &context), OK);
        assert_eq!(rights(&world), (true, false));
        world.host.hw.keep_running(id, 3);
        assert_eq!(world.tell(level(id, 7)), OK, "it is stopped for it");
        assert_eq!(rights(&world), (true, true));
        assert_eq!(world.tell(level(id, 4)), OK);
        assert_eq!(rights(&world), (false, false), "what was given is taken away");
        assert_eq!(world.guests[0].vcpu.ports, crate::ports::Rights::NONE, "the caller has got nothing");
        let shared = dom.shared_info;
        assert_eq!(world.map_foreign(id, shared), OK);
        assert_eq!(world.destroy(id), OK);
        for domain in [id, DomId(77), DomId::IO, DomId::XEN] {
            assert_eq!(world.tell(level(domain, 3)), refused(Errno::ESRCH), "{domain:?}");
        }
        world.unmap_foreign();
    }
}

/// A creation that made way, and whose domain was ended before it went on, begins anew: the number is another's by
/// then.
#[test]
fn a_creation_does_not_go_on_with_another_domain() {
    let mut world = world(Arch::X86_64);
    let create = |domain: u16, pages: u64| CreateDomain::<X86_64> {
        memory_kb: word(4 * pages),
        cpu: u32::MAX,
        domain: DomId(domain),
        ..CreateDomain::default()
    };
    let large = Dom0Op::new(create(0, 60));
    world.host.hw.preempt_every(1);
    assert_eq!(world.try_once(&large), Answer::Again);
    world.host.hw.preempt_every(0);
    let begun = world.host.domains.all().last().expect("it is begun").id;
    assert_eq!(world.destroy(begun), OK);
    assert_eq!(world.tell(create(begun.0, PAGES)), OK);
    let other = world.find(begun);
    let (result, made) = world.dom0_op(&large);
    let made: CreateDomain<X86_64> = made.argument();
    assert_eq!(result, OK);
    assert_ne!({ made.domain }, begun);
    assert_eq!(other.total_pages.load(Relaxed), PAGES as u32, "it was given nothing");
    assert_eq!(world.find(made.domain).total_pages.load(Relaxed), 60);
}
