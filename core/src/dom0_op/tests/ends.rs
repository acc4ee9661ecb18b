//! Domains end completely, whoever has what of them; and ten thousand of them.

use super::*;
use crate::domain::RunState;
use crate::event::{Channel, End, alloc_unbound, bind_interdomain};
use crate::life::{self, Ending, Hungry};
use crate::preempt::Poll;
use crate::teardown::Teardown;
use crate::vcpu::Vcpu;
use alloc::boxed::Box;
use core::sync::atomic::Ordering::Relaxed;
use proxenos_abi::Port;
use proxenos_abi::grant_table::{GrantFlags, GrantMapFlags};

#[test]
fn what_others_map_stays_and_so_does_the_number() {
    for_both_callers!(mapped);
}

fn mapped<A: Control>(arch: Arch) {
    for subject in ARCHES {
        let mut world = world(arch);
        let before = world.usage();
        let (id, frames) = world.built::<A>(subject);
        // A frame of its own, and the page that it shares with the hypervisor.
        for frame in [frames[6], world.find(id).shared_info] {
            assert_eq!(world.map_foreign(id, frame), OK);
            let own = frame == frames[6];
            if own {
                assert_eq!(world.destroy(id), OK);
                let (_, info) = world.info::<A>(id);
                assert_eq!((info.domain, { info.tot_pages }.to_u64()), (id, 1));
                assert!(DomainFlags::from_bits_retain(info.flags).contains(DomainFlags::DYING));
                // It is at its end, and nothing changes that.
                assert_eq!(world.tell(UnpauseDomain { domain: id, pad: 0 }), OK);
                assert_eq!(world.tell(PauseDomain { domain: id, pad: 0 }), OK);
                assert_eq!(world.destroy(id), OK);
                let max = SetDomainMaxMem::<A> { domain: id, max_memkb: word(40), ..SetDomainMaxMem::default() };
                assert_eq!(world.tell(max), refused(Errno::ESRCH));
                let list = [0x4000, world.guests[0].va(DATA).0, 1, 0, id.0.into(), 0];
                assert_eq!(world.guest(0).call(Hypercall::DomMemOp, list) as i64, Errno::ENOSYS.to_result());
                let list = [0, world.guests[0].va(DATA).0, 1, 0, id.0.into(), 0];
                assert_eq!(world.guest(0).call(Hypercall::DomMemOp, list), 0, "it gets nothing more");
                // A frame that is forced upon it is refused too.
                let given = world.guests[0].frames[DATA + 3];
                assert_eq!(world.guest(0).remap(DATA + 3, 0, 2), OK);
                assert_ne!(world.foreign_update(id, &[reassign(given)]).result, OK);
                let restored = world.guests[0].entry(DATA + 3, bits::RW | bits::D);
                assert_eq!(world.guest(0).remap(DATA + 3, restored, 2), OK);
                // Its context is that of nobody.
                let at = world.guests[0].va(DATA).0;
                let asked = GetDomainInfo::<A> { domain: id, ctxt: word(at), ..GetDomainInfo::default() };
                assert_eq!(world.tell(asked), OK);
                world.check();
                let taken = CreateDomain::<A> { cpu: u32::MAX, domain: id, ..CreateDomain::default() };
                assert_eq!(world.tell(taken), refused(Errno::EINVAL), "its number is not free");
                world.unmap_foreign();
                assert_eq!(world.info::<A>(id).0, refused(Errno::ESRCH));
                assert_eq!(world.usage(), before);
                break;
            }
        }
        let (id, _) = world.built::<A>(subject);
        let shared = world.find(id).shared_info;
        assert_eq!(world.map_foreign(id, shared), OK);
        assert_eq!(world.destroy(id), OK);
        let (result, info) = world.info::<A>(id);
        assert_eq!((result, info.domain, { info.tot_pages }.to_u64()), (OK, id, 0));
        world.check();
        world.unmap_foreign();
        assert_eq!(world.info::<A>(id).0, refused(Errno::ESRCH));
        assert_eq!(world.usage(), before);
    }
}

#[test]
fn channels_go_with_it() {
    let mut world = world(Arch::X86_64);
    let before = world.usage();
    let (id, _) = world.built::<X86_64>(Arch::X86_64);
    let dom = world.find(id);
    let theirs = alloc_unbound(&*dom, DomId(0)).unwrap();
    let zero = world.guests[0].dom.clone();
    let end = |domain, port| End { domain, port };
    let (own, other) =
        bind_interdomain(&*zero, &world.host.domains, end(DomId::SELF, None), end(id, Some(theirs))).unwrap();
    assert_eq!(other, theirs);
    // A creator may open ports for both, before the domain is built: the control channel.
    let third = bind_interdomain(&*zero, &world.host.domains, end(DomId(1), None), end(id, None)).unwrap();
    assert_eq!(world.destroy(id), OK);
    let unbound = Channel::Unbound { remote: id };
    assert_eq!(zero.channels.channel(own), Ok(unbound));
    assert_eq!(world.guests[1].dom.channels.channel(third.0), Ok(unbound));
    assert_eq!(dom.channels.channel(theirs), Ok(Channel::Closed));
    assert!(alloc_unbound(&*dom, DomId(0)).is_err() && dom.channels.channel(Port(0)).is_ok());
    drop(dom);
    assert_eq!(world.usage(), before);
}

/// Whoever gives memory to a domain on one CPU while its end begins on another has asked whether it may before that:
/// what gives it the memory finds out.
#[test]
fn nothing_comes_once_the_end_has_begun() {
    let mut world = world(Arch::X86_64);
    let id = world.create::<X86_64>(Arch::X86_64, 4);
    let dom = world.find(id);
    dom.max_pages.store(100, Relaxed);
    *dom.ending.lock() = Ending::Going { vcpu: Box::new(Vcpu::new()), open: None, teardown: Teardown::Begun };
    assert!(!dom.run_state().contains(RunState::DYING), "or the test proves nothing");
    assert_eq!(life::feed(&world.host, &dom, 8, &mut Poll::begin()), Err(Hungry::NoMemory));
    let list = [0, world.guests[0].va(DATA).0, 1, 0, id.0.into(), 0];
    assert_eq!(world.guest(0).call(Hypercall::DomMemOp, list), 0, "extents that it got");
    let given = world.guests[0].frames[DATA + 3];
    assert_eq!(world.guest(0).remap(DATA + 3, 0, 2), OK);
    assert_ne!(world.foreign_update(id, &[reassign(given)]).result, OK);
    assert_eq!(dom.total_pages.load(Relaxed), 4);
    *dom.ending.lock() = Ending::NotYet;
    assert_eq!(world.foreign_update(id, &[reassign(given)]).result, OK);
    assert_eq!(dom.total_pages.load(Relaxed), 5);
}

/// Whichever side of a mapped grant is destroyed first.
#[test]
fn grants_go_with_either_side() {
    for order in [[1, 2], [2, 1]] {
        let mut world = World::new(&[(Arch::X86_64, PRIVILEGED), (Arch::X86_32, PLAIN), (Arch::X86_64, PLAIN)]);
        // The second grants, the first maps.
        world.grant(0, GrantFlags::PERMIT_ACCESS, DATA);
        world.mapped(0, GrantMapFlags::HOST_MAP, FRAMES + 4);
        for (left, id) in [(1, order[0]), (0, order[1])] {
            let at = world.guests.iter().position(|guest| guest.dom.id == DomId(id)).expect("it is there");
            let mut guest = world.guests.remove(at);
            guest.run();
            world.host.hw.leave();
            world.host.hw.park(&guest.0.dom, core::mem::take(&mut guest.0.vcpu));
            drop(guest);
            assert_eq!(world.destroy(DomId(id)), OK);
            world.check();
            // Whoever asks sees who is left.
            let _ = world.info::<X86_64>(DomId(1));
            let zombie = id == 2 && left == 1;
            assert_eq!(world.host.domains.count(), 1 + left + usize::from(zombie));
        }
    }
}

/// A domain that runs all the time changes its tables while ten thousand others come and go: not a frame is missing.
#[test]
fn ten_thousand_domains_come_and_go() {
    const DOMAINS: usize = 10_000;
    // The audit looks at all of memory, the tests of single steps at each step.
    const AUDITS: usize = 250;
    let mut world = world(Arch::X86_64);
    let before = world.usage();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut alive: Vec<DomId> = Vec::new();
    for made in 0..DOMAINS {
        let arch = ARCHES[(next() % 2) as usize];
        let id = match next() % 8 {
            0 => world.built::<X86_64>(arch).0,
            1 => world.prepare::<X86_64>(arch).0,
            pages => world.create::<X86_64>(arch, pages),
        };
        assert!(!alive.contains(&id) && id != DomId(1));
        assert_eq!(world.tell(UnpauseDomain { domain: id, pad: 0 }) == OK, !is_unbuilt(&world, id));
        alive.push(id);
        // The one beside them maps, unmaps, and pins.
        let page = DATA + (next() % 8) as usize;
        let entry = world.guests[1].entry(page, bits::RW | bits::D);
        assert_eq!(world.guest(1).remap(page, if next().is_multiple_of(2) { entry } else { 0 }, 0), OK);
        let top = world.guests[1].frames[SECOND_TOP];
        let _ = world.guest(1).request(if next().is_multiple_of(2) { pin(top, 4) } else { unpin(top) });
        while alive.len() > 5 || made + 1 == DOMAINS && !alive.is_empty() {
            let id = alive.swap_remove((next() % alive.len() as u64) as usize);
            assert_eq!(world.destroy(id), OK);
        }
        if made % (DOMAINS / AUDITS) == 0 {
            world.check();
        }
    }
    // What the busy one has of its own is what it had.
    for page in DATA..DATA + 8 {
        let entry = world.guests[1].entry(page, bits::RW | bits::D);
        assert_eq!(world.guest(1).remap(page, entry, 0), OK);
    }
    let top = world.guests[1].frames[SECOND_TOP];
    let _ = world.guest(1).request(unpin(top));
    assert_eq!(world.usage(), before);
    assert_eq!((world.host.domains.count(), world.host.hw.parked()), (2, 0));
    assert_eq!(world.guests[1].dom.total_pages.load(Relaxed) as usize, FRAMES);
}

fn is_unbuilt(world: &World, id: DomId) -> bool {
    world.find(id).run_state().contains(RunState::UNBUILT)
}

/// Closing a thousand ports makes way, and none is opened meanwhile.
#[test]
fn many_channels_go_in_their_time() {
    let mut world = world(Arch::X86_64);
    let before = world.usage();
    let (id, _) = world.built::<X86_64>(Arch::X86_32);
    let dom = world.find(id);
    let mut count = 0;
    while alloc_unbound(&*dom, DomId(1)).is_ok() {
        count += 1;
    }
    assert!(count > 1000, "{count}");
    world.host.hw.preempt_every(1);
    let destroy = Dom0Op::new(DestroyDomain { domain: id, pad: 0 });
    let mut goes = 1;
    while world.try_once(&destroy) == Answer::Again {
        assert!(alloc_unbound(&*dom, DomId(1)).is_err(), "none is opened any more");
        goes += 1;
        if goes % 100 == 0 {
            world.check();
        }
    }
    assert!(goes > 900, "{goes}");
    world.host.hw.preempt_every(0);
    drop(dom);
    assert_eq!(world.usage(), before);
}
