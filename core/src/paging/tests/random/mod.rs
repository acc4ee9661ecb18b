//! Random sequences of requests from several domains, judged after every step.
//!
//! [`ops`] says what the guests do, [`strategies`] and [`stories`] make sequences of it, and [`play`] carries them out.
//! A failing sequence, which proptest shrinks, reads as a list of requests. [`trace`] makes sequences of bytes, which a
//! fuzzer invents.

mod ops;
mod play;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod strategies;
#[cfg(test)]
mod tests;
pub mod trace;

#[cfg(test)]
pub(crate) use {
    ops::Op,
    play::Score,
    stories::story,
    tests::{LENGTH, config},
};
