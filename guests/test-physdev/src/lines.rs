//! Interrupts of devices, as events.

use crate::config;
use crate::edu::{Edu, VERSION};
use crate::{call, request};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::event_channel::{BindPirqFlags, Channel, EvtchnBindPirq};
use proxenos_guest::abi::physdev::{IrqStatusFlags, IrqStatusQuery, PhysdevOp};
use proxenos_guest::abi::{Errno, Pirq, Port};
use proxenos_guest::hypercall::event_channel_op;
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, events, hypercall, memory, println, shared_info};

/// Interrupts seen.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// The interrupt of the PC's interval timer: by edges, eighteen times a second as firmware leaves it.
const INTERVAL_TIMER: u32 = 0;

fn bind(line: u32, flags: BindPirqFlags) -> Result<Port, Errno> {
    event_channel_op(EvtchnBindPirq { pirq: Pirq(line), flags: flags.bits(), port: Port(0) }).map(|bound| bound.port)
}

fn handle(line: u32, flags: BindPirqFlags) -> Port {
    let port = bind(line, flags).expect("a line that is free");
    events::set_handler(port, |_| _ = COUNT.fetch_add(1, Ordering::Relaxed));
    events::unmask(port);
    port
}

/// Interrupts since the last call.
fn seen() -> u32 {
    events::enter_hypervisor();
    COUNT.swap(0, Ordering::Relaxed)
}

/// Tells the hypervisor that interrupts have been dealt with.
fn notify() {
    check_eq!(call(&mut PhysdevOp::irq_unmask_notify()), Ok(()));
}

fn status(irq: u32) -> (Result<(), Errno>, u32) {
    let (result, answer) = request(IrqStatusQuery { irq, flags: 0x5555_5555 });
    (result, answer.flags)
}

pub fn run(devices: &[Edu; 2]) {
    refusals(devices[0].line);
    for edu in devices {
        check_eq!(edu.version(), VERSION, "{:?} answers at its base address", edu.place);
        of_one(edu);
    }
    by_edge();
}

/// All that is about one device and its line.
pub fn of_one(edu: &Edu) {
    by_level(edu);
    storm(edu);
    closed_in_flight(edu);
    while_waiting(edu);
}

/// Interrupts by a line that another domain's device has too, while that interrupts all the time: each is told of all
/// of them, answers each, and misses none of its own.
pub fn shared(edu: &Edu) {
    const OWN: u32 = 300;
    section("a line that others have too");
    let port = handle(edu.line, BindPirqFlags::WILL_SHARE);
    let (mut own, mut others) = (0, 0);
    let mut answer = || {
        COUNT.store(0, Ordering::Relaxed);
        let whose = if edu.acknowledge() { &mut own } else { &mut others };
        *whose += 1;
        notify();
    };
    for _ in 0..OWN {
        // The other's turn: what comes in it is the other's.
        check_eq!(hypercall::sched_yield(), Ok(()));
        while seen_any() {
            answer();
        }
        edu.raise();
        events::wait_until(seen_any);
        answer();
    }
    check_eq!(own, OWN, "of its own, each once");
    println!("{own} of its own, {others} of the other's");
    check!(others > 0, "it is told of the other's");
    // What it does not answer any more keeps the line from nobody.
    check_eq!(events::close(port), Ok(()));
}

fn seen_any() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// Binds a line that is not to be shared; what came of it.
pub fn bind_alone(line: u32) -> Result<(), Errno> {
    bind(line, BindPirqFlags::empty()).map(drop)
}

fn refusals(line: u32) {
    section("lines that are none");
    for irq in [128, 207, 208, 0x8000_0000, u32::MAX] {
        check_eq!(bind(irq, BindPirqFlags::WILL_SHARE), Err(Errno::EINVAL), "line {irq}");
        let none = (Ok(()), IrqStatusFlags::NEEDS_UNMASK_NOTIFY.bits());
        check_eq!(status(irq), if irq < 208 { none } else { (Err(Errno::EINVAL), 0x5555_5555) }, "line {irq}");
    }
    check_eq!(bind(127, BindPirqFlags::empty()), Err(Errno::EINVAL), "no I/O APIC has it");
    check_eq!(status(127), (Ok(()), IrqStatusFlags::NEEDS_UNMASK_NOTIFY.bits()));
    check_eq!(bind(2, BindPirqFlags::empty()), Err(Errno::EINVAL), "the one that the two 8259s were joined by");
    check_eq!(bind(4, BindPirqFlags::WILL_SHARE), Err(Errno::EBUSY), "the console's");
    check_eq!(status(line), (Ok(()), IrqStatusFlags::NEEDS_UNMASK_NOTIFY.bits()), "level");
    check_eq!(status(INTERVAL_TIMER), (Ok(()), 0), "edge");
}

fn by_level(edu: &Edu) {
    section("interrupts by level");
    let port = handle(edu.line, BindPirqFlags::WILL_SHARE);
    check_eq!(events::status(port), Ok(Channel::Pirq(Pirq(edu.line))));
    check_eq!(bind(edu.line, BindPirqFlags::empty()), Ok(port), "bound already: the port it has");
    check_eq!(seen(), 0, "none yet");
    edu.raise();
    check_eq!(seen(), 1, "raised");
    check_eq!(seen(), 0, "once, though it is still asserted");
    check!(edu.acknowledge(), "it was this device");
    edu.raise();
    check_eq!(seen(), 0, "not before the first is answered");
    notify();
    check_eq!(seen(), 1, "but then");
    // Answered while it is asserted: it comes again.
    notify();
    check_eq!(seen(), 1, "still asserted");
    // Masked, it counts as not yet dealt with.
    events::mask(port);
    notify();
    events::unmask(port);
    check_eq!(seen(), 0, "the port was masked");
    check!(edu.acknowledge());
    notify();
    check_eq!(seen(), 0, "quiet");
    notify();
    check_eq!(events::send(port), Err(Errno::EINVAL), "no guest raises it by a call");
    check_eq!(events::close(port), Ok(()));
    edu.raise();
    check_eq!(seen(), 0, "nobody has it");
    check_eq!(shared_info::pending_word(0).load(Ordering::Relaxed) & 1 << port.raw(), 0, "not even pending");
    check!(edu.acknowledge());
}

/// A device that is never quietened: it interrupts as often as it is answered, and the guest gets on in between.
fn storm(edu: &Edu) {
    section("a storm");
    let port = handle(edu.line, BindPirqFlags::empty());
    edu.raise();
    let mut count = seen();
    for _ in 0..1000 {
        notify();
        count += seen();
    }
    check_eq!(count, 1001);
    // Nobody answers, and the machine goes on all the same.
    for _ in 0..1000 {
        check!(hypercall::sched_yield().is_ok());
    }
    check_eq!(seen(), 0);
    check!(edu.acknowledge());
    notify();
    check_eq!(events::close(port), Ok(()));
}

fn closed_in_flight(edu: &Edu) {
    section("a line given up before its answer");
    let port = handle(edu.line, BindPirqFlags::empty());
    edu.raise();
    check_eq!(seen(), 1);
    check_eq!(events::close(port), Ok(()));
    notify();
    let port = handle(edu.line, BindPirqFlags::empty());
    check_eq!(seen(), 1, "whoever has it next is told: it is still asserted");
    check!(edu.acknowledge());
    notify();
    check_eq!(seen(), 0);
    check_eq!(events::close(port), Ok(()));
}

/// The device interrupts while the guest waits for it.
fn while_waiting(edu: &Edu) {
    section("an interrupt that is waited for");
    let port = handle(edu.line, BindPirqFlags::empty());
    let page = memory::alloc_frame().expect("padding");
    edu.start_dma(page.mfn().addr());
    events::wait_until(|| COUNT.load(Ordering::Relaxed) > 0);
    check_eq!(seen(), 1);
    check!(edu.acknowledge());
    notify();
    check_eq!(events::close(port), Ok(()));
    check_eq!(config::read(edu.place, config::INTERRUPT_LINE, 1), (Ok(()), edu.line));
}

fn by_edge() {
    section("interrupts by edge");
    let port = handle(INTERVAL_TIMER, BindPirqFlags::empty());
    events::wait_until(|| COUNT.load(Ordering::Relaxed) >= 3);
    check!(seen() >= 3, "they need no answer");
    check_eq!(events::close(port), Ok(()));
    let now = proxenos_guest::time::system_time();
    while proxenos_guest::time::system_time() < now + 120_000_000 {
        core::hint::spin_loop();
    }
    check_eq!(seen(), 0, "no more of them");
}
