//! Time as the shared page tells it, carried on by the time-stamp counter.
//!
//! The hypervisor increments `time_version1`, changes the fields, and then increments `time_version2`. Reading the
//! second before the fields and the first after them, equal versions prove that nothing changed in between.

use crate::arch::read_tsc;
use crate::clock::{TimeSnapshot, WallClock};
use crate::{hypercall, shared_info};
use core::sync::atomic::{Ordering, fence};
use proxenos_abi::Errno;
use proxenos_abi::shared_info::SharedInfo;

/// A consistent copy of the time fields.
pub fn snapshot() -> TimeSnapshot {
    let word = |offset| shared_info::word(offset).load(Ordering::Relaxed);
    loop {
        let before = word(SharedInfo::TIME_VERSION2);
        fence(Ordering::Acquire);
        let snapshot = TimeSnapshot {
            cpu_freq: shared_info::double_word(SharedInfo::CPU_FREQ),
            tsc_timestamp: shared_info::double_word(SharedInfo::TSC_TIMESTAMP),
            system_time: shared_info::double_word(SharedInfo::SYSTEM_TIME),
            wc_sec: word(SharedInfo::WC_SEC),
            wc_usec: word(SharedInfo::WC_USEC),
            domain_time: shared_info::double_word(SharedInfo::DOMAIN_TIME),
        };
        fence(Ordering::Acquire);
        if word(SharedInfo::TIME_VERSION1) == before {
            return snapshot;
        }
    }
}

/// Nanoseconds since the machine booted.
pub fn system_time() -> u64 {
    snapshot().system_time_at(read_tsc())
}

/// Nanoseconds that this domain has run.
pub fn domain_time() -> u64 {
    snapshot().domain_time_at(read_tsc())
}

/// A timeout of the shared page: a time at which this domain wants a timer event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// `wall_timeout`, in system time.
    System,
    /// `domain_timeout`, in the domain's virtual time.
    Domain,
}

/// Sets a timeout of the shared page, in nanoseconds; 0 asks for nothing. The hypervisor notices when it looks next: at
/// the next tick, or when the domain waits.
pub fn set_timeout(which: Timeout, ns: u64) {
    let offset = match which {
        Timeout::System => SharedInfo::WALL_TIMEOUT,
        Timeout::Domain => SharedInfo::DOMAIN_TIMEOUT,
    };
    for (offset, half) in [(offset, ns as u32), (offset + 4, (ns >> 32) as u32)] {
        shared_info::word(offset).store(half, Ordering::Relaxed);
    }
}

/// The wall clock.
pub fn wall_clock() -> WallClock {
    snapshot().wall_clock_at(read_tsc())
}

/// Asks for a timer event (`VIRQ_TIMER`) in so many nanoseconds.
pub fn set_timer_in(ns: u64) -> Result<(), Errno> {
    hypercall::set_timer_op(system_time().saturating_add(ns).max(1))
}

/// Asks for no timer event any more.
pub fn cancel_timer() -> Result<(), Errno> {
    hypercall::set_timer_op(0)
}
