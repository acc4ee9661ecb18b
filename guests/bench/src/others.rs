//! Another domain's turn and back, and an event there and back. Last, since from then on the other domain can always run.

use crate::Bench;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use proxenos_guest::abi::{DomId, Port};
use proxenos_guest::{events, hypercall};

/// The other domain's ports: it answers events on the first, and one on the second makes it yield for ever.
const ANSWERED: Port = Port(1);
const YIELDS: Port = Port(2);

static ANSWERS: AtomicU32 = AtomicU32::new(0);
static YIELDING: AtomicBool = AtomicBool::new(false);

fn answers() -> u32 {
    ANSWERS.load(Ordering::Relaxed)
}

pub fn run(bench: &Bench) {
    let other = DomId(1);
    let Ok((port, ANSWERED)) = events::bind_interdomain(DomId::SELF, other) else { return };
    let Ok((start, YIELDS)) = events::bind_interdomain(DomId::SELF, other) else { return };
    events::set_handler(port, |_| ANSWERS.store(answers() + 1, Ordering::Relaxed));
    events::unmask(port);
    // Until the other is up, and waits.
    exchange(port);
    bench.measure("event-other-and-back", |_| port, exchange);
    if events::send(start).is_ok() {
        bench.measure("yield-other-and-back", |_| (), |()| hypercall::sched_yield().is_ok());
    }
}

fn exchange(port: Port) -> bool {
    let before = answers();
    let sent = events::send(port).is_ok();
    events::wait_until(|| answers() != before);
    sent
}

/// The other domain.
pub fn partner() -> ! {
    events::set_handler(ANSWERED, |port| assert_eq!(events::send(port), Ok(())));
    events::set_handler(YIELDS, |_| YIELDING.store(true, Ordering::Relaxed));
    events::unmask(ANSWERED);
    events::unmask(YIELDS);
    events::wait_until(|| YIELDING.load(Ordering::Relaxed));
    loop {
        let _ = hypercall::sched_yield();
    }
}
