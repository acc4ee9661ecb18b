//! Time: the TSC as clock, the local APIC's timer as alarm, the real-time clock for the date.
//!
//! [`now_ns`] counts nanoseconds from the hypervisor's first instructions. It is one multiplication away from the TSC,
//! whose rate is measured once, at boot, against a clock of known rate.

pub mod apic;
pub mod pic;
mod reference;
mod rtc;
pub mod tsc;

pub use apic::{cancel_deadline, set_deadline};
pub use tsc::{Now, now, now_ns};

use crate::cpu::percpu::Cpu;
use core::sync::atomic::{AtomicI64, Ordering};
use proxenos_core::control::DateAtZero;
pub use proxenos_core::timekeeping::Ratio;

/// Nanoseconds of UTC since 1970-01-01T00:00:00.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UnixNanos(pub u64);

/// Whether the time that this CPU's timer was last armed for has come: its interrupt waits, or will in a moment.
#[inline]
#[must_use]
pub fn deadline_has_passed() -> bool {
    now_ns() >= Cpu::current().deadline()
}

/// UTC when [`now_ns`] was 0; 1970 as long as nobody has said.
static DATE_AT_ZERO: AtomicI64 = AtomicI64::new(0);

/// The date when the clock began: what the real-time clock said at boot, to the second, or who set the date since.
#[inline]
#[must_use]
pub fn date_at_zero() -> DateAtZero {
    DateAtZero(DATE_AT_ZERO.load(Ordering::Relaxed))
}

/// Sets the date.
pub fn set_date(at_zero: DateAtZero) {
    DATE_AT_ZERO.store(at_zero.0, Ordering::Relaxed);
}

/// Silences the old interrupt controllers, measures the clocks, sets up the local APIC.
pub fn init() {
    pic::silence();
    crate::irq::init();
    apic::init();
    tsc::init();
    apic::init_timer();
    match rtc::read(crate::acpi::machine().century_register) {
        Some(seconds) => {
            let now = seconds.0 * 1_000_000_000;
            let zero = now.saturating_sub(now_ns());
            set_date(DateAtZero(zero as i64));
            log::info!("UTC is {}", rtc::Date(UnixNanos(zero)));
        }
        None => log::warn!("no real-time clock: the date is unknown"),
    }
}
