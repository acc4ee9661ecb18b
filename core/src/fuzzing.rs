//! Bytes in, a verdict out: several domains of both architectures do what the bytes say, and after every step the whole
//! simulated machine is audited, its TLBs too.
//!
//! For fuzzers (feature `fuzzing`; `fuzz/` has the target) and for this crate's own tests, which play the corpus that
//! is committed with it and traces of a generator: so the target cannot rot. The same bytes always do the same.

extern crate std;

use crate::paging::tests::random::trace::Trace;
use alloc::string::String;
use alloc::vec::Vec;

/// Plays the trace that these bytes are.
///
/// # Errors
/// Which step broke what.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    Trace::of(bytes).play()
}

/// What these bytes mean, a line a step.
#[must_use]
pub fn explain(bytes: &[u8]) -> String {
    Trace::of(bytes).list()
}

/// The bytes of a trace that nobody thought of, always the same for a seed.
#[must_use]
pub fn random_bytes(seed: u64) -> Vec<u8> {
    // Steele, Lea and Flood's SplitMix64.
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    };
    let words = 8 + next() % 56;
    (0..words).flat_map(|_| next().to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Seeds that are tried.
    const SEEDS: u64 = 150;

    fn corpus() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/trace")
    }

    #[test]
    fn the_corpus_breaks_nothing() {
        let files: Vec<PathBuf> =
            std::fs::read_dir(corpus()).expect("the corpus").map(|entry| entry.expect("a file").path()).collect();
        assert!(files.len() >= 20, "the corpus is there");
        for file in files {
            let bytes = std::fs::read(&file).expect("readable");
            run(&bytes).unwrap_or_else(|error| panic!("{}: {error}\n{}", file.display(), explain(&bytes)));
        }
    }

    #[test]
    fn random_bytes_break_nothing() {
        for seed in 0..SEEDS {
            let bytes = random_bytes(seed);
            run(&bytes).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", explain(&bytes)));
        }
    }
}
