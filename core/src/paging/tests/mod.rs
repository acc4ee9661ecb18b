//! The hypercalls on memory, as guests of both architectures make them, on the simulated machine.
//!
//! [`world`] has the machine and its domains, [`commands`] and [`segments`] a test for each request and refusal, [`attacks`] one for each
//! known way out of paravirtualised paging, and [`random`] sequences of requests ([`ops`]) that nobody thought of. All judge by the
//! audit, the simulated TLBs, and, for what is refused, by nothing having changed.

mod attacks;
mod commands;
mod ops;
mod random;
mod segments;
pub(crate) mod world;
