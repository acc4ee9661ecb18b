//! Lines by example, and random ones against the promise.

use super::*;
use crate::addr::{MachineAddr, Mfn};
use crate::event::{EventChannels, bind_pirq, close};
use crate::machine::MachineMemory;
use crate::sim::SimMachine;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use proptest::prelude::*;
use proxenos_abi::Port;
use proxenos_abi::shared_info::SharedInfo;

/// Lines up to 15 are there, the odd ones level-triggered.
struct Control {
    open: [AtomicBool; PIRQS],
}

impl LineControl for Control {
    fn trigger(&self, line: Pirq) -> Option<Trigger> {
        let trigger = if line.0 % 2 == 1 { Trigger::Level } else { Trigger::Edge };
        (line.0 < 16).then_some(trigger)
    }
    fn open(&self, line: Pirq) {
        self.open[line.0 as usize].store(true, SeqCst);
    }
    fn close(&self, line: Pirq) {
        self.open[line.0 as usize].store(false, SeqCst);
    }
}

struct TestDomain {
    id: DomId,
    events: EventChannels,
    pirqs: &'static Pirqs,
}

impl EventDomain for TestDomain {
    fn id(&self) -> DomId {
        self.id
    }
    fn is_privileged(&self) -> bool {
        false
    }
    fn events(&self) -> &EventChannels {
        &self.events
    }
    fn shared_info(&self) -> Mfn {
        Mfn(u64::from(self.id.0))
    }
    fn notify(&self) {}
    fn route_pirq(&self, pirq: Pirq, sharing: PirqSharing) -> Result<(), EventError> {
        self.pirqs.bind(self.id, pirq, sharing)
    }
    fn unroute_pirq(&self, pirq: Pirq) {
        self.pirqs.unbind(self.id, pirq);
    }
}

struct World {
    memory: SimMachine,
    control: &'static Control,
    pirqs: &'static Pirqs,
    domains: Vec<Arc<TestDomain>>,
}

impl EventDomains for World {
    type Domain = TestDomain;
    type Ref = Arc<TestDomain>;
    fn find(&self, id: DomId) -> Option<Arc<TestDomain>> {
        self.domains.iter().find(|domain| domain.id == id).cloned()
    }
}

const LEVEL: Pirq = Pirq(11);
const EDGE: Pirq = Pirq(8);

impl World {
    fn new(domains: u16) -> Self {
        let control: &Control = alloc::boxed::Box::leak(alloc::boxed::Box::new(Control {
            open: [const { AtomicBool::new(false) }; PIRQS],
        }));
        let pirqs: &Pirqs = alloc::boxed::Box::leak(alloc::boxed::Box::new(Pirqs::new(control)));
        let domain = |id| Arc::new(TestDomain { id: DomId(id), events: EventChannels::new(), pirqs });
        let memory = SimMachine::new(usize::from(domains));
        Self { memory, control, pirqs, domains: (0..domains).map(domain).collect() }
    }
    fn bind(&self, domain: usize, pirq: Pirq, sharing: PirqSharing) -> Result<Port, EventError> {
        bind_pirq(&*self.domains[domain], pirq, sharing)
    }
    fn close(&self, domain: usize, port: Port) {
        close(&*self.domains[domain], self, DomId::SELF, port).expect("an open port");
    }
    fn notify(&self, domain: usize) {
        self.pirqs.unmask_notify(&*self.domains[domain], &self.memory);
    }
    fn is_open(&self, pirq: Pirq) -> bool {
        self.control.open[pirq.0 as usize].load(SeqCst)
    }
    /// The interrupt controller delivers an interrupt, which it does for open lines only.
    fn interrupt(&self, pirq: Pirq) {
        if self.is_open(pirq) {
            self.pirqs.interrupt(self, &self.memory, pirq);
        }
    }
    fn at(&self, domain: usize, offset: usize) -> MachineAddr {
        MachineAddr(domain as u64 * 4096 + offset as u64)
    }
    /// Which ports of the first 32 are pending; they are not, afterwards.
    fn take_pending(&self, domain: usize) -> u32 {
        let at = self.at(domain, SharedInfo::EVTCHN_PENDING);
        let pending = self.memory.load32(at);
        self.memory.store32(at, 0);
        pending
    }
    fn mask(&self, domain: usize, ports: u32) {
        self.memory.store32(self.at(domain, SharedInfo::EVTCHN_MASK), ports);
    }
    /// The promise.
    fn check(&self) {
        for number in 0..16 {
            let pirq = Pirq(number);
            let line = self.pirqs.lines[number as usize].lock();
            let outstanding = line.sharers.iter().any(|sharer| sharer.in_flight);
            let waits = outstanding && self.control.trigger(pirq) == Some(Trigger::Level);
            assert_eq!(self.is_open(pirq), !line.sharers.is_empty() && !waits, "line {number}: {line:?}");
            for domain in &self.domains {
                let has = line.sharers.iter().filter(|sharer| sharer.domain == domain.id).count();
                assert_eq!(usize::from(domain.events.pirq_port(pirq).is_some()), has);
            }
        }
    }
}

#[test]
fn a_level_waits_for_its_answer() {
    let world = World::new(1);
    assert!(!world.is_open(LEVEL));
    let port = world.bind(0, LEVEL, PirqSharing::Exclusive).unwrap();
    assert!(world.is_open(LEVEL));
    world.interrupt(LEVEL);
    assert_eq!(world.take_pending(0), 1 << port.0);
    assert!(!world.is_open(LEVEL), "closed until it is answered");
    world.interrupt(LEVEL);
    assert_eq!(world.take_pending(0), 0);
    world.mask(0, 1 << port.0);
    world.notify(0);
    assert!(!world.is_open(LEVEL), "its port is masked");
    world.mask(0, 0);
    world.notify(0);
    assert!(world.is_open(LEVEL));
    world.notify(0);
    assert!(world.is_open(LEVEL), "an answer that nobody waits for");
    world.check();
}

#[test]
fn an_edge_does_not_wait() {
    let world = World::new(1);
    let port = world.bind(0, EDGE, PirqSharing::Exclusive).unwrap();
    for _ in 0..3 {
        world.interrupt(EDGE);
        assert_eq!(world.take_pending(0), 1 << port.0);
    }
    world.close(0, port);
    assert!(!world.is_open(EDGE));
    world.check();
}

#[test]
fn lines_are_shared_by_those_who_will() {
    let world = World::new(9);
    let port = world.bind(0, LEVEL, PirqSharing::Exclusive).unwrap();
    assert_eq!(world.bind(1, LEVEL, PirqSharing::Shared), Err(EventError::InterruptBusy));
    world.close(0, port);
    for domain in 0..MAX_SHARERS {
        assert_eq!(world.bind(domain, LEVEL, PirqSharing::Shared), Ok(Port(1)));
        assert_eq!(world.bind(8, LEVEL, PirqSharing::Exclusive), Err(EventError::InterruptBusy));
    }
    assert_eq!(world.bind(7, LEVEL, PirqSharing::Shared), Err(EventError::InterruptBusy), "seven at most");
    world.check();
    world.interrupt(LEVEL);
    for domain in 0..MAX_SHARERS {
        assert_eq!(world.take_pending(domain), 2);
        assert!(!world.is_open(LEVEL), "domain {domain} has not answered");
        // The last one gives it up instead.
        if domain == MAX_SHARERS - 1 {
            world.close(domain, Port(1))
        } else {
            world.notify(domain)
        }
        world.check();
    }
    assert!(world.is_open(LEVEL));
}

#[test]
fn lines_that_are_not() {
    let world = World::new(1);
    for number in [16, 127, 128, u32::MAX] {
        assert_eq!(world.bind(0, Pirq(number), PirqSharing::Shared), Err(EventError::NoSuchInterrupt));
        assert_eq!(world.pirqs.trigger(Pirq(number)), None);
        world.pirqs.interrupt(&world, &world.memory, Pirq(number));
    }
    assert_eq!(world.take_pending(0), 0);
}

#[test]
fn an_interrupt_that_was_under_way() {
    let world = World::new(1);
    let port = world.bind(0, LEVEL, PirqSharing::Exclusive).unwrap();
    world.close(0, port);
    world.pirqs.interrupt(&world, &world.memory, LEVEL);
    world.check();
    assert_eq!(world.take_pending(0), 0);
    world.bind(0, LEVEL, PirqSharing::Exclusive).unwrap();
    world.check();
}

#[derive(Clone, Debug)]
enum Step {
    Bind(usize, u32, bool),
    Close(usize, u32),
    Interrupt(u32),
    Mask(usize, u32),
    Notify(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3usize, 0..18u32, any::<bool>()).prop_map(|(domain, line, shared)| Step::Bind(domain, line, shared)),
        (0..3usize, 1..8u32).prop_map(|(domain, port)| Step::Close(domain, port)),
        (0..18u32).prop_map(Step::Interrupt),
        (0..3usize, any::<u32>()).prop_map(|(domain, ports)| Step::Mask(domain, ports)),
        (0..3usize).prop_map(Step::Notify),
    ]
}

proptest! {
    #[test]
    fn open_exactly_if_wanted_and_answered(steps in prop::collection::vec(step(), 0..100)) {
        let world = World::new(3);
        for step in steps {
            match step {
                Step::Bind(domain, line, shared) => {
                    let sharing = if shared { PirqSharing::Shared } else { PirqSharing::Exclusive };
                    let _ = world.bind(domain, Pirq(line), sharing);
                }
                Step::Close(domain, port) => {
                    let _ = close(&*world.domains[domain], &world, DomId::SELF, Port(port));
                }
                Step::Interrupt(line) => world.pirqs.interrupt(&world, &world.memory, Pirq(line)),
                Step::Mask(domain, ports) => world.mask(domain, ports),
                Step::Notify(domain) => world.notify(domain),
            }
            world.check();
        }
    }
}
