//! The life of domains: what it takes to create one, to bring it to its first instruction, and to destroy it; and what
//! memory it takes besides its own.

use crate::hypercall;
use crate::measure::Bench;
use crate::memory::PAGE;
use crate::partner::{self, Kind, Partner, Window};
use crate::platform::read_tsc;
use core::cell::Cell;

/// Rounds of what takes long.
const ROUNDS: usize = 3;
/// How many there are at once where their memory is measured, and what one has, in bytes.
const MANY: usize = 4;
const MEMORY: u64 = 4 << 20;

pub fn run(bench: &Bench, window: Window) {
    if bench.measures("domain-create") {
        let last = Cell::new(None::<Partner>);
        let end_of_last = |_| assert!(last.take().is_none_or(Partner::destroy), "it can be destroyed");
        bench.measure("domain-create", end_of_last, |()| {
            last.set(partner::create());
            last.get().is_some()
        });
        end_of_last(0);
    }
    if bench.measures("domain-create-to-first") {
        let least = (0..ROUNDS).map(|_| to_first_instruction(window)).min();
        bench.report("domain-create-to-first", least.unwrap_or(0));
    }
    if bench.measures("domain-destroy") {
        bench.measure("domain-destroy", |_| started(window), Partner::destroy);
    }
    if bench.measures("memory-per-domain") {
        many(window, || ());
        let before = free();
        let taken = many(window, || before - free());
        bench.report("memory-per-domain", taken / MANY as u64 - MEMORY);
    }
}

/// Bytes of memory that nobody has, when all is given back that is about to be.
fn free() -> u64 {
    // What is left of domains goes when the CPU has nothing else to do, or is asked for its own.
    (0..8).for_each(|_| assert!(hypercall::sched_yield()));
    hypercall::free_pages() * PAGE as u64
}

/// Does something while there are many.
fn many<T>(window: Window, meanwhile: impl FnOnce() -> T) -> T {
    let domains = [(); MANY].map(|()| started(window));
    let value = meanwhile();
    domains.into_iter().for_each(|domain| assert!(domain.destroy(), "it can be destroyed"));
    value
}

/// A domain that waits.
fn started(window: Window) -> Partner {
    let domain = Partner::build(Kind::Noting, window).expect("there is memory for it");
    assert!(domain.start(), "it is built");
    first_instruction(domain, window);
    domain
}

/// Instructions from before a domain is created until it runs.
fn to_first_instruction(window: Window) -> u64 {
    let before = read_tsc();
    let domain = Partner::build(Kind::Noting, window).expect("there is memory for it");
    assert!(domain.start(), "it is built");
    let first = first_instruction(domain, window);
    assert!(domain.destroy(), "it can be destroyed");
    first - before
}

/// When it executed its first instruction.
fn first_instruction(domain: Partner, window: Window) -> u64 {
    domain.show_notes(window);
    while window.number() == 0 {
        hypercall::sched_yield();
    }
    let first = window.number();
    window.close();
    first
}
