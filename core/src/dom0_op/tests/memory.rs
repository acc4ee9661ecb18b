//! What frames a domain has, what they are, and how many it may have.

use super::*;
use core::sync::atomic::Ordering::Relaxed;
use proxenos_abi::hypercall::{DomMemOp, VmAssistCommand, VmAssistType};

#[test]
fn frames_are_listed_and_described() {
    for_both_callers!(described);
}

fn described<A: Control>(arch: Arch) {
    for subject in ARCHES {
        let mut world = world(arch);
        let (id, frames) = world.prepare::<A>(subject);
        let dom = world.find(id);
        // In whose name else could they be?
        for (pfn, &frame) in (0..).zip(&frames) {
            assert_eq!(world.host.m2p.get(&world.host.hw, frame).map(|pfn| pfn.0), Some(pfn));
            assert_eq!(world.host.frames.info(frame).unwrap().refs().owner(), id);
        }
        let (result, some) = world.mem_list::<A>(id, 3);
        assert_eq!((result, &some[..]), (OK, &frames[..3]));
        assert_eq!(world.mem_list::<A>(id, 0), (OK, Vec::new()));
        let types: &[u32] = match subject {
            Arch::X86_32 => &[L2TAB, L1TAB],
            Arch::X86_64 => &[L4TAB, L1TAB, L2TAB, L3TAB],
        };
        for (index, &frame) in frames.iter().enumerate() {
            let expected = types.get(index).copied().unwrap_or(NOTAB);
            let (result, told) =
                world.ask(GetPageFrameInfo::<A> { pfn: word(frame.0), domain: id, ..GetPageFrameInfo::default() });
            assert_eq!((result, { told.frame_type }), (OK, expected), "{index}");
        }
        // The batch: with what is not its, and a pin.
        let shared = dom.shared_info.0;
        let asked: Vec<u64> =
            frames.iter().map(|frame| frame.0).chain([shared, 0x100, 0x0fff_ffff, 0, 1 << 27]).collect();
        let at = world.guests[0].va(DATA);
        let bytes: Vec<u8> =
            asked.iter().flat_map(|&value| A::Word::from_u64_truncating(value).as_bytes().to_vec()).collect();
        world.guests[0].run();
        world.host.hw.copy_to_guest(at, &bytes).expect("mapped");
        let batch = |count: u64, at: u64, domain: DomId| GetPageFrameInfo2::<A> {
            domain,
            num: word(count),
            array: word(at),
            ..GetPageFrameInfo2::default()
        };
        assert_eq!(world.tell(batch(asked.len() as u64, at.0, id)), OK);
        let mut answers = alloc::vec![0; bytes.len()];
        world.host.hw.copy_from_guest(at, &mut answers).expect("mapped");
        for (index, answer) in answers.chunks(A::Word::BYTES).enumerate() {
            let answer = answer.iter().rev().fold(0_u64, |all, &byte| all << 8 | u64::from(byte));
            let bits = match index {
                0 => types[0] | LPINTAB,
                _ if index < types.len() => types[index],
                _ if index <= frames.len() => NOTAB,
                _ => XTAB,
            };
            assert_eq!(answer, asked[index] | u64::from(bits), "{index}");
        }
        for (request, errno) in [
            (batch(1025, at.0, id), Errno::E2BIG),
            (batch(1, at.0, DomId(9)), Errno::ESRCH),
            (batch(1, 0, id), Errno::EINVAL),
            (batch(1, 0xfc00_0000, id), Errno::EINVAL),
        ] {
            assert_eq!(world.tell(request), refused(errno));
        }
        assert_eq!(world.tell(batch(0, 0, id)), OK);
        for (frame, domain) in [(frames[0].0, DomId(1)), (frames[0].0, DomId(9)), (1 << 27, id), (0xb8, id)] {
            let request = GetPageFrameInfo::<A> { pfn: word(frame), domain, ..GetPageFrameInfo::default() };
            assert_eq!(world.tell(request), refused(Errno::EINVAL));
        }
        for (domain, buffer, errno) in [(DomId(9), at.0, Errno::EINVAL), (id, 0, Errno::EFAULT)] {
            let list = GetMemList::<A> { domain, max_pfns: word(9), buffer: word(buffer), ..GetMemList::default() };
            assert_eq!(world.tell(list), refused(errno));
        }
        world.usage();
    }
}

/// Interrupted wherever it can be, a batch is described once: a word that has its type is no frame's number any more.
#[test]
fn a_batch_makes_way() {
    for arch in ARCHES {
        let mut world = world(arch);
        let (id, frames) = match arch {
            Arch::X86_32 => world.prepare::<X86_32>(arch),
            Arch::X86_64 => world.prepare::<X86_64>(arch),
        };
        let bytes = if arch == Arch::X86_32 { 4 } else { 8 };
        let count = 4096 / bytes;
        let at = world.guests[0].va(DATA);
        let numbers: Vec<u8> =
            frames.iter().cycle().take(count).flat_map(|frame| frame.0.to_le_bytes()[..bytes].to_vec()).collect();
        world.guests[0].run();
        world.host.hw.copy_to_guest(at, &numbers).expect("mapped");
        let (num, array) = (count as u64, at.0);
        let op = match arch {
            Arch::X86_32 => Dom0Op::new(GetPageFrameInfo2::<X86_32> {
                domain: id,
                num: word(num),
                array: word(array),
                ..GetPageFrameInfo2::default()
            }),
            Arch::X86_64 => Dom0Op::new(GetPageFrameInfo2::<X86_64> {
                domain: id,
                num: word(num),
                array: word(array),
                ..GetPageFrameInfo2::default()
            }),
        };
        world.host.hw.preempt_every(1);
        let goes = 1 + (0..).take_while(|_| world.try_once(&op) == Answer::Again).count();
        world.host.hw.preempt_every(0);
        assert!(goes >= 8, "{goes}");
        let mut answers = alloc::vec![0; numbers.len()];
        world.guests[0].run();
        world.host.hw.copy_from_guest(at, &mut answers).expect("mapped");
        let types: &[u32] =
            if arch == Arch::X86_32 { &[L2TAB | LPINTAB, L1TAB] } else { &[L4TAB | LPINTAB, L1TAB, L2TAB, L3TAB] };
        for (index, answer) in answers.chunks(bytes).enumerate() {
            let answer = answer.iter().rev().fold(0_u64, |all, &byte| all << 8 | u64::from(byte));
            let table = types.get(index % frames.len()).copied().unwrap_or(NOTAB);
            assert_eq!(answer, frames[index % frames.len()].0 | u64::from(table), "{index}");
        }
    }
}

#[test]
fn how_much_a_domain_may_have() {
    for_both_callers!(limits);
}

fn limits<A: Control>(arch: Arch) {
    for subject in ARCHES {
        let mut world = world(arch);
        let before = world.usage();
        let id = world.create::<A>(subject, PAGES);
        let dom = world.find(id);
        let pages = || (dom.total_pages.load(Relaxed), dom.max_pages.load(Relaxed));
        let initial = |kib: u64| SetDomainInitialMem::<A> {
            domain: id,
            initial_memkb: word(kib),
            ..SetDomainInitialMem::default()
        };
        let max = |domain: DomId, kib: u64| SetDomainMaxMem::<A> {
            domain,
            max_memkb: word(kib),
            ..SetDomainMaxMem::default()
        };
        assert_eq!(world.tell(initial(45)), OK);
        assert_eq!(pages(), (12, 12), "what it has, up to the next page");
        assert_eq!(world.tell(initial(8)), OK);
        assert_eq!(pages(), (12, 2), "nothing is taken away");
        assert_eq!(world.tell(initial(1 << 20)), refused(Errno::ENOMEM));
        assert_eq!(pages(), (12, 2));
        assert_eq!(world.tell(max(id, 53)), OK);
        assert_eq!(pages(), (12, 14), "KiB");
        // What `dom_mem_op` then gives is what was said.
        let at = world.guests[0].va(DATA).0;
        let op = DomMemOp::IncreaseReservation.raw().into();
        assert_eq!(world.guest(0).call(Hypercall::DomMemOp, [op, at, 5, 0, id.0.into(), 0]), 2);
        assert_eq!(pages(), (14, 14));
        assert_eq!(world.tell(max(id, u64::from(u32::MAX))), OK);
        assert_eq!(pages(), (14, 1 << 30));
        for domain in [DomId(9), DomId::SELF] {
            assert_eq!(world.tell(max(domain, 4)), refused(Errno::ESRCH));
        }
        let built = SetDomainInitialMem::<A> { domain: DomId(1), ..initial(4) };
        assert_eq!(world.tell(built), refused(Errno::EINVAL));
        assert_eq!(world.tell(SetDomainInitialMem::<A> { domain: DomId(9), ..initial(4) }), refused(Errno::ESRCH));
        assert_eq!(world.mem_list::<A>(id, 100).1.len(), 14);
        drop(dom);
        assert_eq!(world.destroy(id), OK);
        assert_eq!(world.usage(), before);
    }
}

#[test]
fn assistance_for_another() {
    let mut world = world(Arch::X86_64);
    let id = world.create::<X86_64>(Arch::X86_32, PAGES);
    let dom = world.find(id);
    let kind = VmAssistType::WritablePagetables;
    let ask = |domain: DomId, cmd: u32, assist: u32| SetDomainVmAssist { domain, pad0: 0, cmd, assist };
    let (enable, disable) = (VmAssistCommand::Enable.raw(), VmAssistCommand::Disable.raw());
    assert_eq!(world.tell(ask(id, enable, kind.raw())), OK);
    assert!(dom.is_assisted(kind) && !world.guests[0].dom.is_assisted(kind));
    assert_eq!(world.tell(ask(id, disable, kind.raw())), OK);
    assert!(!dom.is_assisted(kind));
    assert_eq!(world.tell(ask(DomId(0), enable, kind.raw())), OK);
    assert!(world.guests[0].dom.is_assisted(kind));
    for (domain, cmd, assist, errno) in
        [(id, 7, 0, Errno::ENOSYS), (id, enable, 3, Errno::EINVAL), (DomId(9), enable, 0, Errno::ESRCH)]
    {
        assert_eq!(world.tell(ask(domain, cmd, assist)), refused(errno));
    }
}

#[test]
fn long_requests_make_way() {
    for arch in ARCHES {
        let mut world = world(arch);
        let before = world.usage();
        world.host.hw.preempt_every(1);
        let made = match arch {
            Arch::X86_32 => {
                Dom0Op::new(CreateDomain::<X86_32> { memory_kb: word(400), cpu: u32::MAX, ..CreateDomain::default() })
            }
            Arch::X86_64 => {
                Dom0Op::new(CreateDomain::<X86_64> { memory_kb: word(400), cpu: u32::MAX, ..CreateDomain::default() })
            }
        };
        let mut goes = 1;
        while world.try_once(&made) == Answer::Again {
            assert_eq!(world.host.domains.count(), 3, "one domain, however often it is asked");
            goes += 1;
            if goes % 10 == 0 {
                world.check();
            }
        }
        assert!(goes > 90, "{goes}");
        let (_, frames) = match arch {
            Arch::X86_32 => world.mem_list::<X86_32>(DomId(2), 200),
            Arch::X86_64 => world.mem_list::<X86_64>(DomId(2), 200),
        };
        assert_eq!(frames.len(), 100);
        let destroy = Dom0Op::new(DestroyDomain { domain: DomId(2), pad: 0 });
        let mut goes = 1;
        while world.try_once(&destroy) == Answer::Again {
            goes += 1;
            if goes % 10 == 0 {
                world.check();
            }
        }
        assert!(goes > 90, "{goes}");
        world.host.hw.preempt_every(0);
        assert_eq!(world.usage(), before);
    }
}
