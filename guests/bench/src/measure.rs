//! What all measurements have in common: the loop, and how it tells. `guests/bench-xen` is compiled with this very
//! file, so that both count alike; what it stands on is each guest's own `platform`.
#![allow(dead_code, reason = "not every guest uses all of it")]

use crate::platform::{option, println, read_tsc};
use core::hint::black_box;

/// Rounds that every operation gets unless the command line says otherwise.
const ROUNDS: usize = 8;

/// What all measurements have in common.
pub struct Bench {
    only: Option<&'static str>,
    rounds: usize,
    /// Whether somebody watches each instruction.
    pub profile: bool,
    /// Cycles that a measurement of nothing takes.
    overhead: u64,
}

impl Bench {
    /// Reads the command line, and measures nothing.
    pub fn begin() -> Self {
        let rounds = option("rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS).max(1);
        let nothing = Self { only: None, rounds: ROUNDS, profile: false, overhead: 0 };
        let overhead = nothing.least("overhead", |_| (), |()| true);
        println!("bench overhead {overhead}");
        Self { only: option("only"), rounds, profile: option("profile").is_some(), overhead }
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
            let cycles = self.without_overhead(self.least(name, prepare, operation));
            let count = if self.profile { 1 } else { count };
            self.report(name, (cycles + count / 2) / count);
        }
    }

    /// What remains of what was measured by itself.
    pub fn without_overhead(&self, cycles: u64) -> u64 {
        cycles.saturating_sub(self.overhead)
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
