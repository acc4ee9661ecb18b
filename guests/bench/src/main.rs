//! What operations cost a guest: a line `bench NAME N` for each, N in cycles of the time-stamp counter.
//!
//! Where a run counts instructions (`icount`), a cycle is an instruction, the guest's own included: the figures repeat
//! to the digit. Elsewhere they are the CPU's cycles, and vary.
//!
//! A second domain of the same image is the one that turns and events go to.
//!
//! Command line: `only=NAME` measures that one, `rounds=N` so many times (default 8); `only=memory` looks at nothing but when it began
//! and what memory there is for domains. With `profile=yes` it says `bench waits` and waits for a key before it measures, and what is done many times
//! over is not divided.
#![no_std]
#![no_main]

mod calls;
mod control;
mod domains;
mod entries;
mod events;
mod others;
mod paging;
mod pins;
#[cfg(target_arch = "x86")]
mod ring3;
mod traps;
#[cfg(target_arch = "x86_64")]
mod user64;
mod wake;
mod writable;

use core::hint::black_box;
use proxenos_guest::arch::read_tsc;
use proxenos_guest::{StartInfo, boot, hypercall, println};

proxenos_guest::entry!(main);

/// Rounds that every operation gets unless the command line says otherwise.
const ROUNDS: usize = 8;

fn main(_: &StartInfo) {
    let began = read_tsc();
    proxenos_guest::init();
    if !boot::is_initial_domain() {
        others::partner();
    }
    let bench = Bench::new();
    if boot::option("only") == Some("memory") {
        println!("bench boot {began}");
        println!("memory {}", control::free() + control::of_domains());
        println!("bench done");
        return;
    }
    if bench.profile {
        wait_for_key();
    }
    calls::run(&bench);
    paging::run(&bench);
    pins::run(&bench);
    writable::run(&bench);
    domains::run(&bench);
    events::run(&bench);
    traps::run(&bench);
    others::run(&bench);
    println!("bench done");
}

/// Lets who watches prepare for what comes.
fn wait_for_key() {
    println!("bench waits");
    while hypercall::console_read(&mut [0]) != Ok(1) {
        let _ = hypercall::sched_yield();
    }
}

/// What all measurements have in common.
pub struct Bench {
    only: Option<&'static str>,
    rounds: usize,
    /// Whether somebody watches each instruction.
    profile: bool,
    /// Cycles that a measurement of nothing takes.
    overhead: u64,
}

impl Bench {
    fn new() -> Self {
        let rounds = boot::option("rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS).max(1);
        let nothing = Self { only: None, rounds: ROUNDS, profile: false, overhead: 0 };
        let overhead = nothing.least("overhead", |_| (), |()| true);
        println!("bench overhead {overhead}");
        Self { only: boot::option("only"), rounds, profile: boot::option("profile").is_some(), overhead }
    }

    /// Whether an operation is to be measured.
    pub fn measures(&self, name: &str) -> bool {
        self.only.is_none_or(|only| only == name)
    }

    /// Measures an operation and prints what one of it costs.
    pub fn measure<T>(&self, name: &str, prepare: impl FnMut(usize) -> T, operation: impl FnMut(T) -> bool) {
        self.measure_many(name, 1, prepare, operation);
    }

    /// Measures what does the same `count` times over, and prints what one of them costs.
    ///
    /// `prepare` is given the round's number and makes the operation's argument; it is not measured. `operation` says
    /// whether it did what it should: figures of failures are worth nothing.
    pub fn measure_many<T>(
        &self,
        name: &str,
        count: u64,
        prepare: impl FnMut(usize) -> T,
        operation: impl FnMut(T) -> bool,
    ) {
        if self.measures(name) {
            let cycles = self.least(name, prepare, operation).saturating_sub(self.overhead);
            let count = if self.profile { 1 } else { count };
            self.report(name, (cycles + count / 2) / count);
        }
    }

    /// Prints what was found of an operation.
    pub fn report(&self, name: &str, value: u64) {
        if self.measures(name) {
            println!("bench {name} {value}");
        }
    }

    /// The least that a round took: the others had a timer interrupt in them, or met cold translations.
    #[inline(never)]
    fn least<T>(&self, name: &str, mut prepare: impl FnMut(usize) -> T, mut operation: impl FnMut(T) -> bool) -> u64 {
        let mut least = u64::MAX;
        for round in 0..self.rounds {
            let argument = black_box(prepare(round));
            let before = read_tsc();
            let held = operation(argument);
            let after = read_tsc();
            assert!(held, "{name} failed in round {round}");
            least = least.min(after - before);
        }
        least
    }
}
