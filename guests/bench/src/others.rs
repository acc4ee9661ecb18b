//! Another domain's turn and back, and an event there and back. Last, since from then on the other domain can always
//! run.

use crate::Bench;
use crate::wake;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use proxenos_guest::abi::{DomId, Port};
use proxenos_guest::arch::read_tsc;
use proxenos_guest::{events, hypercall};

/// The other domain's ports: it answers events on the first, one on the second makes it yield for ever, and one on the
/// third makes it note when it wakes.
const ANSWERED: Port = Port(1);
const YIELDS: Port = Port(2);
const NOTES: Port = Port(3);
/// Rounds of what it notes.
const ROUNDS: usize = 8;

static ANSWERS: AtomicU32 = AtomicU32::new(0);
static YIELDING: AtomicBool = AtomicBool::new(false);

fn answers() -> u32 {
    ANSWERS.load(Ordering::Relaxed)
}

pub fn run(bench: &Bench) {
    let other = DomId(1);
    let Ok((port, ANSWERED)) = events::bind_interdomain(DomId::SELF, other) else { return };
    let Ok((start, YIELDS)) = events::bind_interdomain(DomId::SELF, other) else { return };
    let Ok((note, NOTES)) = events::bind_interdomain(DomId::SELF, other) else { return };
    events::set_handler(port, |_| ANSWERS.store(answers() + 1, Ordering::Relaxed));
    events::unmask(port);
    // Until the other is up, and waits.
    exchange(port);
    bench.measure("event-other-and-back", |_| port, exchange);
    if bench.measures("block-and-wake") && events::send(note).is_ok() {
        // The first answer comes from one that notes already.
        exchange(port);
        wakes(bench, port, other);
    }
    if events::send(start).is_ok() {
        bench.measure("yield-other-and-back", |_| (), |()| hypercall::sched_yield().is_ok());
    }
}

/// From the send to the first instruction of the other's callback, both having waited.
fn wakes(bench: &Bench, port: Port, other: DomId) {
    let Some(note) = wake::note_of(other) else { return };
    let latency = |_| {
        let before = read_tsc();
        exchange(port);
        note.number(0) - before
    };
    let least = (0..ROUNDS).map(latency).min().unwrap_or(0);
    note.close();
    bench.report("block-and-wake", least - wake::BEFORE);
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
    events::set_handler(NOTES, |_| wake::note_upcalls());
    events::unmask(NOTES);
    events::unmask(ANSWERED);
    events::unmask(YIELDS);
    events::wait_until(|| YIELDING.load(Ordering::Relaxed));
    loop {
        let _ = hypercall::sched_yield();
    }
}
