//! What the measuring loop stands on.

pub use crate::println;
pub use crate::start::option;

/// The time-stamp counter.
#[inline(always)]
pub fn read_tsc() -> u64 {
    // SAFETY: domain 0 may read the counter; reading it changes nothing.
    unsafe { core::arch::x86_64::_rdtsc() }
}
