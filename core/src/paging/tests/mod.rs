//! The hypercalls on memory, as guests of both architectures make them, on the simulated machine.
//!
//! [`world`] has the machine and its domains, [`commands`] a test for each request and refusal, [`attacks`] one for each
//! known way out of paravirtualised paging, [`linear`] what concerns directories that are read as L1 tables, [`writable`] what
//! guests write to their tables themselves, [`stale`] what CPUs still remember of tables, [`segments`] what concerns descriptor tables, [`reservation`] those for
//! `dom_mem_op`, [`preempted`] those for requests that make way, and [`random`] sequences of requests that nobody thought
//! of. All judge by the audit, the simulated TLBs, and, for what is refused, by nothing having changed.

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod linear;
#[cfg(test)]
mod preempted;
pub(crate) mod random;
#[cfg(test)]
mod reservation;
#[cfg(test)]
mod segments;
#[cfg(test)]
mod stale;
#[cfg_attr(not(test), expect(dead_code, reason = "a fuzzer needs only some of it"))]
pub(crate) mod world;
#[cfg(test)]
mod writable;
