//! The hypercalls on memory, as guests of both architectures make them, on the simulated machine.
//!
//! [`world`] has the machine and its domains, [`commands`] a test for each request and refusal, [`attacks`] one for
//! each known way out of paravirtualised paging, [`caching`] what concerns frames mapped uncached, [`linear`]
//! directories that are read as L1 tables, [`writable`] what guests write to their tables themselves, [`stale`] what
//! CPUs still remember of tables, [`segments`] descriptor tables, [`reservation`] `dom_mem_op`, [`preempted`] requests
//! that make way, [`latency`] how soon they do, [`quick`] and [`iopl`] the short ways beside those at length,
//! [`log_dirty`] what is recorded of a domain's writes, [`user_base`] the tables of applications, [`pool`] what becomes
//! of shadows for which there is no room, and [`random`] sequences of requests that nobody thought of. All judge by the
//! audit, the simulated TLBs, and, for what is refused, by nothing having changed.

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod caching;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod flat_stacks;
#[cfg(test)]
mod iopl;
#[cfg(test)]
mod latency;
#[cfg(test)]
mod linear;
#[cfg(test)]
mod log_dirty;
#[cfg(test)]
mod pool;
#[cfg(test)]
mod preempted;
#[cfg(test)]
mod quick;
pub(crate) mod random;
#[cfg(test)]
mod reservation;
#[cfg(test)]
mod segments;
#[cfg(test)]
mod stale;
#[cfg(test)]
mod user_base;
#[cfg_attr(not(test), expect(dead_code, reason = "a fuzzer needs only some of it"))]
pub(crate) mod world;
#[cfg(test)]
mod writable;
