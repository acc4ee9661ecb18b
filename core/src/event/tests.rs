//! Each rule of `event_channel.h` by example, and random requests against the invariants.

use super::*;
use crate::addr::MachineAddr;
use crate::machine::MachineMemory;
use crate::sim::SimMachine;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::AtomicU32;
use proptest::prelude::*;
use proxenos_abi::event_channel::{
    EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnBindPirq, EvtchnBindVirq, EvtchnClose, EvtchnOp, EvtchnSend,
    EvtchnStatus,
};
use proxenos_abi::shared_info::SharedInfo;

#[derive(Debug)]
struct TestDomain {
    id: DomId,
    privileged: bool,
    events: EventChannels,
    notified: AtomicU32,
    routed: Mutex<Vec<Pirq>>,
}

impl EventDomain for TestDomain {
    fn id(&self) -> DomId {
        self.id
    }
    fn is_privileged(&self) -> bool {
        self.privileged
    }
    fn events(&self) -> &EventChannels {
        &self.events
    }
    fn shared_info(&self) -> Mfn {
        Mfn(u64::from(self.id.0) + 1)
    }
    fn notify(&self) {
        self.notified.fetch_add(1, Ordering::SeqCst);
    }
    fn route_pirq(&self, pirq: Pirq, sharing: PirqSharing) -> Result<(), EventError> {
        if !self.privileged {
            return Err(EventError::NotPermitted);
        }
        if pirq == Pirq(7) && sharing == PirqSharing::Exclusive {
            return Err(EventError::InterruptBusy);
        }
        self.routed.lock().push(pirq);
        Ok(())
    }
    fn unroute_pirq(&self, pirq: Pirq) {
        self.routed.lock().retain(|routed| *routed != pirq);
    }
}

struct World {
    machine: SimMachine,
    domains: Mutex<Vec<Arc<TestDomain>>>,
}

impl EventDomains for World {
    type Domain = TestDomain;
    type Ref = Arc<TestDomain>;
    fn find(&self, id: DomId) -> Option<Arc<TestDomain>> {
        self.domains.lock().iter().find(|domain| domain.id == id).cloned()
    }
}

/// Domain 0 is privileged; 1, 2 and 3 are not.
fn world() -> World {
    let domain = |id| {
        Arc::new(TestDomain {
            id: DomId(id),
            privileged: id == 0,
            events: EventChannels::new(),
            notified: AtomicU32::new(0),
            routed: Mutex::new(vec![]),
        })
    };
    World { machine: SimMachine::new(8), domains: Mutex::new((0..4).map(domain).collect()) }
}

impl World {
    fn dom(&self, id: u16) -> Arc<TestDomain> {
        self.find(DomId(id)).unwrap()
    }
    fn bind(&self, caller: u16, one: (DomId, u32), two: (DomId, u32)) -> Result<(u32, u32), EventError> {
        let end = |(domain, port)| End { domain, port: (port != 0).then_some(Port(port)) };
        bind_interdomain(&*self.dom(caller), self, end(one), end(two)).map(|(one, two)| (one.0, two.0))
    }
    fn send(&self, caller: u16, port: u32) -> Result<(), EventError> {
        send(&*self.dom(caller), self, &self.machine, Port(port))
    }
    fn close(&self, caller: u16, id: DomId, port: u32) -> Result<(), EventError> {
        close(&*self.dom(caller), self, id, Port(port))
    }
    fn channel(&self, id: u16, port: u32) -> Channel {
        self.dom(id).events.channel(Port(port)).unwrap()
    }
    fn word(&self, id: u16, offset: usize) -> u32 {
        self.machine.load32(MachineAddr((u64::from(id) + 1) * 4096 + offset as u64))
    }
    fn store(&self, id: u16, offset: usize, value: u32) {
        self.machine.store32(MachineAddr((u64::from(id) + 1) * 4096 + offset as u64), value);
    }
    fn notified(&self, id: u16) -> u32 {
        self.dom(id).notified.load(Ordering::SeqCst)
    }
    fn alloc(&self, caller: u16, remote: DomId) -> u32 {
        alloc_unbound(&*self.dom(caller), remote).unwrap().0
    }
    fn connected(&self, id: u16, port: u32) -> Option<(u16, u32)> {
        match self.channel(id, port) {
            Channel::Interdomain { remote, port, .. } => Some((remote.0, port.0)),
            _ => None,
        }
    }

    /// What must hold at every moment.
    fn check(&self) {
        let domains = self.domains.lock().clone();
        for domain in &domains {
            let ports = domain.events.ports.lock().channels.clone();
            for (index, channel) in ports.iter().enumerate() {
                let port = Port(index as u32);
                match *channel {
                    Channel::Interdomain { remote, port: peer, shared_info } => {
                        assert_eq!(shared_info, Mfn(u64::from(remote.0) + 1));
                        let other = domains.iter().find(|domain| domain.id == remote).expect("the peer lives");
                        let back = other.events.channel(peer).unwrap();
                        assert!(
                            matches!(back, Channel::Interdomain { remote, port: end, .. }
                                if remote == domain.id && end == port),
                            "{:?} port {port} is bound to {remote} port {peer}, which is {back:?}",
                            domain.id
                        );
                    }
                    Channel::Virq(virq) => assert_eq!(domain.events.virq_port(virq), port),
                    Channel::Pirq(pirq) => {
                        assert_eq!(domain.events.pirq_port(pirq), Some(port));
                        assert!(domain.routed.lock().contains(&pirq));
                    }
                    Channel::Closed | Channel::Unbound { .. } => {}
                }
            }
            for &virq in Virq::ALL {
                let bound = domain.events.virq_port(virq);
                assert!(bound == Port(0) || domain.events.channel(bound) == Ok(Channel::Virq(virq)));
            }
            for pirq in (0..PIRQS as u32).map(Pirq) {
                let bound = domain.events.pirq_port(pirq);
                assert!(bound.is_none_or(|port| domain.events.channel(port) == Ok(Channel::Pirq(pirq))));
                assert_eq!(domain.routed.lock().contains(&pirq), bound.is_some());
            }
        }
    }
}

const SELF: DomId = DomId::SELF;
const D0: DomId = DomId(0);
const D1: DomId = DomId(1);
const D2: DomId = DomId(2);

#[test]
fn ports_start_closed_but_port_0() {
    let world = world();
    assert_eq!(world.channel(1, 0), Channel::Virq(Virq::Misdirect));
    assert_eq!(world.channel(1, 1), Channel::Closed);
    assert_eq!(world.channel(1, 1023), Channel::Closed);
    assert_eq!(world.dom(1).events.channel(Port(1024)), Err(EventError::PortOutOfRange));
    assert_eq!(world.alloc(1, D0), 1, "the first free port is 1");
}

#[test]
fn a_pair_is_offered_and_bound() {
    let world = world();
    let offered = world.alloc(1, D2);
    assert_eq!(world.channel(1, offered), Channel::Unbound { remote: D2 });
    // Note 3: domain 2 may bind to it without privilege because it is awaited.
    assert_eq!(world.bind(2, (SELF, 0), (D1, offered)), Ok((1, offered)));
    assert_eq!(world.connected(1, offered), Some((2, 1)));
    assert_eq!(world.connected(2, 1), Some((1, offered)));
    // Note 1: fully bound already, so the existing port comes back, either way round.
    assert_eq!(world.bind(2, (SELF, 0), (D1, offered)), Ok((1, offered)));
    assert_eq!(world.bind(2, (SELF, 1), (D1, 0)), Ok((1, offered)));
    assert_eq!(world.channel(2, 2), Channel::Closed);
    // Note 4: bound elsewhere.
    assert_eq!(world.bind(2, (SELF, 2), (D1, offered)), Err(EventError::PortState));
    assert_eq!(world.bind(0, (D0, 0), (D1, offered)), Err(EventError::PortState));
    world.check();
}

#[test]
fn privilege_is_asked_for() {
    let world = world();
    // Note 2.
    assert_eq!(world.bind(1, (D1, 0), (SELF, 0)), Err(EventError::NotPermitted));
    assert_eq!(world.bind(1, (D2, 0), (SELF, 0)), Err(EventError::NotPermitted));
    // Note 3.
    assert_eq!(world.bind(1, (SELF, 0), (D2, 0)), Err(EventError::NotPermitted));
    assert_eq!(world.bind(1, (SELF, 0), (D2, 9)), Err(EventError::NotPermitted));
    assert_eq!(world.channel(1, 1), Channel::Closed, "a refused request takes no port");
    assert_eq!(world.bind(1, (SELF, 0), (SELF, 0)), Ok((1, 2)));
    assert_eq!(world.bind(0, (D1, 0), (D2, 0)), Ok((3, 1)));
    assert_eq!(world.close(1, D2, 1), Err(EventError::NotPermitted));
    assert_eq!(world.close(1, D1, 1), Err(EventError::NotPermitted));
    assert_eq!(status(&*world.dom(1), &world, D2, Port(1)), Err(EventError::NotPermitted));
    assert_eq!(world.close(0, D2, 1), Ok(()));
    assert_eq!(world.close(0, DomId(9), 1), Err(EventError::NoSuchDomain));
    assert_eq!(world.bind(0, (D1, 0), (DomId(9), 0)), Err(EventError::NoSuchDomain));
    assert_eq!(world.bind(0, (DomId::IO, 0), (D1, 0)), Err(EventError::NoSuchDomain));
    world.check();
}

#[test]
fn an_unbound_port_takes_only_whom_it_awaits() {
    let world = world();
    let offered = world.alloc(1, D2);
    assert_eq!(world.bind(3, (SELF, 0), (D1, offered)), Err(EventError::PortState));
    assert_eq!(world.bind(0, (D0, 0), (D1, offered)), Err(EventError::PortState));
    assert_eq!(world.bind(0, (D1, offered), (D0, 0)), Err(EventError::PortState));
    // A privileged third party may connect the two.
    assert_eq!(world.bind(0, (D1, offered), (D2, 0)), Ok((offered, 1)));
    // Both ends waiting for each other.
    let (one, two) = (world.alloc(1, D2), world.alloc(2, D1));
    assert_eq!(world.bind(1, (SELF, one), (D2, two)), Ok((one, two)));
    world.check();
}

#[test]
fn loopback_within_one_domain() {
    let world = world();
    let offered = world.alloc(1, SELF);
    assert_eq!(world.channel(1, offered), Channel::Unbound { remote: D1 });
    assert_eq!(world.bind(1, (SELF, 0), (SELF, offered)), Ok((2, 1)));
    // The wildcard never takes the port that the other end names.
    assert_eq!(world.bind(1, (SELF, 0), (SELF, 3)), Ok((4, 3)));
    assert_eq!(world.bind(1, (SELF, 5), (SELF, 0)), Ok((5, 6)));
    // A port may be bound to itself.
    assert_eq!(world.bind(1, (SELF, 7), (SELF, 7)), Ok((7, 7)));
    world.check();
    assert_eq!(world.send(1, 7), Ok(()));
    assert_eq!(world.word(1, SharedInfo::EVTCHN_PENDING), 1 << 7);
    assert_eq!(world.close(1, SELF, 7), Ok(()));
    assert_eq!(world.channel(1, 7), Channel::Closed);
    assert_eq!(world.close(1, SELF, 5), Ok(()));
    assert_eq!(world.channel(1, 6), Channel::Unbound { remote: D1 });
    world.check();
}

#[test]
fn closing_leaves_the_other_end_waiting() {
    let world = world();
    assert_eq!(world.bind(0, (D1, 0), (D2, 0)), Ok((1, 1)));
    assert_eq!(world.close(2, SELF, 1), Ok(()));
    assert_eq!(world.channel(2, 1), Channel::Closed);
    assert_eq!(world.channel(1, 1), Channel::Unbound { remote: D2 });
    assert_eq!(world.send(1, 1), Err(EventError::PortState));
    assert_eq!(world.close(2, SELF, 1), Err(EventError::PortState));
    assert_eq!(world.close(2, SELF, 0), Err(EventError::PortReserved));
    assert_eq!(world.close(2, SELF, 1024), Err(EventError::PortOutOfRange));
    assert_eq!(world.bind(2, (SELF, 0), (D1, 1)), Ok((1, 1)), "it waited for this domain");
}

#[test]
fn virtual_interrupts() {
    let world = world();
    let domain = world.dom(1);
    let raise = |virq| raise_virq(&*domain, &world.machine, virq);
    raise(Virq::Timer);
    assert_eq!(world.word(1, SharedInfo::EVTCHN_PENDING), 1, "unbound: arrives at port 0");
    assert_eq!(bind_virq(&*domain, Virq::Timer), Ok(Port(1)));
    assert_eq!(bind_virq(&*domain, Virq::Timer), Ok(Port(1)), "at most one port");
    assert_eq!(bind_virq(&*domain, Virq::Misdirect), Ok(Port(0)));
    raise(Virq::Timer);
    assert_eq!(world.word(1, SharedInfo::EVTCHN_PENDING), 0b11);
    assert_eq!(world.close(1, SELF, 1), Ok(()));
    assert_eq!(domain.events.virq_port(Virq::Timer), Port(0));
    assert_eq!(world.send(1, 0), Err(EventError::PortState));
    assert_eq!(world.bind(1, (SELF, 0), (SELF, 0)), Ok((1, 2)), "the port is free again");
    world.check();
}

#[test]
fn physical_interrupts() {
    let world = world();
    let (zero, one) = (world.dom(0), world.dom(1));
    assert_eq!(bind_pirq(&*one, Pirq(3), PirqSharing::Shared), Err(EventError::NotPermitted));
    assert_eq!(bind_pirq(&*zero, Pirq(7), PirqSharing::Exclusive), Err(EventError::InterruptBusy));
    assert_eq!(bind_pirq(&*zero, Pirq(128), PirqSharing::Shared), Err(EventError::NoSuchInterrupt));
    assert_eq!(one.events.pirq_port(Pirq(3)), None, "a refused bind leaves nothing");
    raise_pirq(&*zero, &world.machine, Pirq(3));
    assert_eq!(world.word(0, SharedInfo::EVTCHN_PENDING), 0);
    assert_eq!(bind_pirq(&*zero, Pirq(3), PirqSharing::Exclusive), Ok(Port(1)));
    assert_eq!(bind_pirq(&*zero, Pirq(3), PirqSharing::Exclusive), Ok(Port(1)));
    raise_pirq(&*zero, &world.machine, Pirq(3));
    assert_eq!(world.word(0, SharedInfo::EVTCHN_PENDING), 2);
    world.check();
    assert_eq!(world.close(0, SELF, 1), Ok(()));
    world.check();
}

#[test]
fn pending_travels_only_on_fresh_edges() {
    let world = world();
    assert_eq!(world.bind(0, (D1, 0), (D2, 40)), Ok((1, 40)));
    let pending = |world: &World| {
        [SharedInfo::EVTCHN_PENDING + 4, SharedInfo::EVTCHN_PENDING_SEL, SharedInfo::EVTCHN_UPCALL_PENDING]
            .map(|offset| world.word(2, offset))
    };
    // The upcall's mask, byte 1 of its word, holds back the upcall only, and stays.
    world.store(2, SharedInfo::EVTCHN_UPCALL_PENDING, 0x100);
    assert_eq!(world.send(1, 1), Ok(()));
    assert_eq!((pending(&world), world.notified(2)), ([1 << 8, 2, 0x101], 1));
    // Pending already: nothing is repeated, though the guest has cleared the flag.
    world.store(2, SharedInfo::EVTCHN_UPCALL_PENDING, 0);
    assert_eq!(world.send(1, 1), Ok(()));
    assert_eq!((pending(&world), world.notified(2)), ([1 << 8, 2, 0], 1));
    // Masked: the bit is set, the edge is lost.
    world.store(2, SharedInfo::EVTCHN_PENDING + 4, 0);
    world.store(2, SharedInfo::EVTCHN_PENDING_SEL, 0);
    world.store(2, SharedInfo::EVTCHN_MASK + 4, 1 << 8);
    assert_eq!(world.send(1, 1), Ok(()));
    assert_eq!((pending(&world), world.notified(2)), ([1 << 8, 0, 0], 1));
    // The selector's bit is set: others of this word await service already.
    world.store(2, SharedInfo::EVTCHN_PENDING + 4, 0);
    world.store(2, SharedInfo::EVTCHN_PENDING_SEL, 2);
    world.store(2, SharedInfo::EVTCHN_MASK + 4, 0);
    assert_eq!(world.send(1, 1), Ok(()));
    assert_eq!((pending(&world), world.notified(2)), ([1 << 8, 2, 0], 1));
    assert_eq!(world.notified(1), 0);
}

#[test]
fn all_ports_can_be_taken_and_no_more() {
    let world = world();
    for port in 1..1024 {
        assert_eq!(world.alloc(1, D0), port);
    }
    assert_eq!(alloc_unbound(&*world.dom(1), D0), Err(EventError::NoFreePort));
    assert_eq!(bind_virq(&*world.dom(1), Virq::Timer), Err(EventError::NoFreePort));
    assert_eq!(world.bind(0, (D2, 0), (D1, 0)), Err(EventError::NoFreePort));
    assert_eq!(world.channel(2, 1), Channel::Closed, "the half that could be had was not taken");
    assert_eq!(world.close(1, SELF, 700), Ok(()));
    assert_eq!(world.alloc(1, D0), 700);
}

#[test]
fn a_dying_domain_takes_its_channels_along() {
    let world = world();
    let dying = world.dom(1);
    assert_eq!(world.bind(0, (D1, 0), (D2, 0)), Ok((1, 1)));
    assert_eq!(world.bind(0, (D1, 100), (D0, 0)), Ok((100, 1)));
    assert_eq!(world.bind(1, (SELF, 0), (SELF, 0)), Ok((2, 3)));
    assert_eq!(bind_virq(&*dying, Virq::Debug), Ok(Port(4)));
    close_all(&*dying, &world);
    for port in 1..1024 {
        assert_eq!(world.channel(1, port), Channel::Closed);
    }
    assert_eq!(world.channel(2, 1), Channel::Unbound { remote: D1 });
    assert_eq!(world.channel(0, 1), Channel::Unbound { remote: D1 });
    assert_eq!(world.bind(2, (SELF, 1), (D1, 0)), Err(EventError::NoSuchDomain));
    assert_eq!(alloc_unbound(&*dying, D0), Err(EventError::NoSuchDomain));
    assert_eq!(bind_virq(&*dying, Virq::Timer), Err(EventError::NoSuchDomain));
    assert_eq!(bind_pirq(&*dying, Pirq(1), PirqSharing::Shared), Err(EventError::NoSuchDomain));
    world.domains.lock().retain(|domain| domain.id != D1);
    world.check();
}

#[test]
fn requests_cross_the_interface() {
    let world = world();
    let call = |caller: u16, op: &mut EvtchnOp| event_channel_op(&*world.dom(caller), &world, &world.machine, op);

    let mut op = EvtchnOp::new(EvtchnAllocUnbound { dom: D2, pad: 0xabcd, port: Port(99) });
    assert_eq!(call(1, &mut op), Ok(Reply::CopyBack));
    assert_eq!(op, EvtchnOp::new(EvtchnAllocUnbound { dom: D2, pad: 0xabcd, port: Port(1) }));

    let mut op = EvtchnOp::new(EvtchnBindInterdomain { dom1: SELF, dom2: D1, port1: Port(0), port2: Port(1) });
    assert_eq!(call(2, &mut op), Ok(Reply::CopyBack));
    let bound = EvtchnBindInterdomain { dom1: SELF, dom2: D1, port1: Port(1), port2: Port(1) };
    assert_eq!(op.argument::<EvtchnBindInterdomain>(), bound);

    let mut op = EvtchnOp::new(EvtchnStatus { dom: SELF, port: Port(1), ..EvtchnStatus::default() });
    assert_eq!(call(1, &mut op), Ok(Reply::CopyBack));
    let status = op.argument::<EvtchnStatus>();
    assert_eq!(status.channel(), Ok(proxenos_abi::event_channel::Channel::Interdomain(D2, Port(1))));

    let mut op = EvtchnOp::new(EvtchnSend { local_port: Port(1) });
    let before = op;
    assert_eq!(call(2, &mut op), Ok(Reply::Nothing));
    assert_eq!((op, world.notified(1)), (before, 1));
    let mut op = EvtchnOp::new(EvtchnClose { dom: SELF, pad: 0, port: Port(1) });
    assert_eq!(call(2, &mut op), Ok(Reply::Nothing));
    let mut op = EvtchnOp::new(EvtchnBindVirq { virq: 2, port: Port(0) });
    assert_eq!(call(2, &mut op), Ok(Reply::CopyBack));
    assert_eq!({ op.argument::<EvtchnBindVirq>().port }, Port(1));
    let mut op = EvtchnOp::new(EvtchnBindPirq { pirq: Pirq(7), flags: 1, port: Port(0) });
    assert_eq!(call(0, &mut op), Ok(Reply::CopyBack));
    assert_eq!({ op.argument::<EvtchnBindPirq>().port }, Port(1));

    for (caller, op, errno) in [
        (1, EvtchnOp::new(EvtchnBindVirq { virq: 7, port: Port(0) }), Errno::EINVAL),
        (1, EvtchnOp::new(EvtchnBindPirq { pirq: Pirq(1), flags: 0, port: Port(0) }), Errno::EPERM),
        (1, EvtchnOp::new(EvtchnSend { local_port: Port(u32::MAX) }), Errno::EINVAL),
        (0, EvtchnOp::new(EvtchnClose { dom: DomId(77), pad: 0, port: Port(1) }), Errno::ESRCH),
        (0, EvtchnOp { cmd: 7, ..EvtchnOp::default() }, Errno::ENOSYS),
    ] {
        let mut request = op;
        assert_eq!(call(caller, &mut request).map_err(Errno::from), Err(errno));
        assert_eq!(request, op, "a refused request is left as it was");
    }
}

/// A request with small numbers, so that requests meet.
fn request() -> impl Strategy<Value = (u16, u8, u16, u16, u32, u32)> {
    let domain = || prop_oneof![0u16..4, Just(DomId::SELF.0)];
    let port = || prop_oneof![9 => 0u32..6, 1 => 1020u32..1030];
    (0u16..4, 0u8..9, domain(), domain(), port(), port())
}

proptest! {
    #[test]
    fn random_requests_keep_the_invariants(requests in prop::collection::vec(request(), 1..60)) {
        let world = world();
        for (caller, what, one, two, port1, port2) in requests {
            let (domain, one, two) = (world.dom(caller), DomId(one), DomId(two));
            match what {
                0 => drop(alloc_unbound(&*domain, one)),
                1 | 2 => drop(world.bind(caller, (one, port1), (two, port2))),
                3 => drop(world.close(caller, one, port1)),
                4 => {
                    let connected = port1 < 1024 && world.connected(caller, port1).is_some();
                    prop_assert_eq!(world.send(caller, port1).is_ok(), connected);
                }
                5 => drop(bind_virq(&*domain, Virq::ALL[port1 as usize % NR_VIRQS])),
                6 => drop(bind_pirq(&*domain, Pirq(port1 + 4), PirqSharing::Exclusive)),
                7 => drop(status(&*domain, &world, one, Port(port1))),
                _ if port2 == 1020 => close_all(&*domain, &world),
                _ => {}
            }
            world.check();
        }
    }
}

/// Two domains close and rebind the two ends of one channel at once, and send, from two threads.
#[test]
fn both_ends_at_once() {
    extern crate std;
    let world = world();
    let offered = world.alloc(1, D2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                let _ = world.close(2, SELF, 1);
                let _ = world.bind(2, (SELF, 1), (D1, offered));
                let _ = world.send(2, 1);
            }
        });
        scope.spawn(|| {
            for _ in 0..2000 {
                let _ = world.close(1, SELF, offered);
                let _ = world.alloc(1, D2);
                let _ = world.send(1, offered);
            }
        });
    });
    world.check();
}
