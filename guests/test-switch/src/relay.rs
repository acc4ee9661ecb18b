//! Events between domains, each of which waits for the next: no turn and no wakeup is lost.

use crate::ends;
use crate::number;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::{DomId, Port};
use proxenos_guest::test::section;
use proxenos_guest::{check_eq, events};

/// Rounds that are made.
const ROUNDS: u32 = 500;

static RECEIVED: AtomicU32 = AtomicU32::new(0);

fn count(_: Port) {
    RECEIVED.store(received() + 1, Ordering::Relaxed);
}

/// Events that have been counted.
pub fn received() -> u32 {
    RECEIVED.load(Ordering::Relaxed)
}

/// A port of ours, connected to a domain's, whose events are counted.
pub fn counted(domain: DomId, expected: Port) -> Port {
    let (own, others) = events::bind_interdomain(DomId::SELF, domain).expect("domain 0 may");
    check_eq!(others, expected, "the first free port of domain {}", domain.0);
    events::set_handler(own, count);
    events::unmask(own);
    own
}

/// One event there and back, `rounds` times.
pub fn exchange(send_to: Port, rounds: u32) {
    for round in 1..=rounds {
        let before = received();
        if events::send(send_to).is_err() {
            check_eq!(events::send(send_to), Ok(()), "round {round}");
        }
        events::wait_until(|| received() != before);
        if received() != before + 1 {
            check_eq!(received(), before + 1, "events after round {round}");
        }
    }
}

/// Domain 0, with each of two domains in turn.
pub fn ping_pong() {
    proxenos_guest::init();
    for domain in [1, 2].map(DomId) {
        section("there and back");
        let port = counted(domain, Port(1));
        exchange(port, ROUNDS);
        check_eq!(received(), u32::from(domain.0) * ROUNDS);
    }
    ends::dismiss(&[1, 2]);
}

/// Domain 0, through both others.
pub fn round() {
    proxenos_guest::init();
    section("through two others");
    let [first, _] = [1, 2].map(|domain| counted(DomId(domain), Port(1)));
    check_eq!(events::bind_interdomain(DomId(1), DomId(2)), Ok((Port(2), Port(2))));
    exchange(first, ROUNDS);
    check_eq!(received(), ROUNDS);
    ends::dismiss(&[2, 1]);
}

/// Another domain: sends an event on for each that it receives.
pub fn relay() {
    proxenos_guest::init();
    let [from, to] = ["in", "out"].map(|key| Port(number(key)));
    events::set_handler(from, count);
    events::unmask(from);
    for sent in 0..number("count") {
        events::wait_until(|| received() > sent);
        check_eq!(events::send(to), Ok(()), "event {sent}");
    }
    ends::take_leave();
}
