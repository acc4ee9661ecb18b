//! The time stamp counter: the hypervisor's clock.
//!
//! Its rate is taken from CPUID where that tells it, and else measured for [`WINDOW_NS`] against the best reference
//! there is. The window is short because the boot is; the error is what two readings of the reference take, some parts
//! in ten thousand at worst. The boot CPU's is the machine's: the others' show the same time, or the CPU is not used
//! ([`crate::cpu::smp`]).

use super::{Ratio, apic, reference::Reference, rtc};
use crate::boot;
use crate::cpu::features;
use core::arch::x86_64::{_mm_lfence, _rdtsc};
use spin::Once;
use x86_64::registers::model_specific::Msr;

/// A value of the counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tsc(pub u64);

/// A rate in ticks a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hz(pub u64);

/// For how long clocks are compared: 5 ms.
const WINDOW_NS: u64 = 5_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// A reading of a clock pair counts only if nothing long came between; of so many the shortest is taken.
const SAMPLES: u32 = 5;

struct Clock {
    zero: Tsc,
    hz: Hz,
    to_ns: Ratio,
    from_ns: Ratio,
}

static CLOCK: Once<Clock> = Once::new();

/// Reads the counter, after all earlier loads.
#[inline(always)]
#[must_use]
pub fn read() -> Tsc {
    // SAFETY: every 64-bit CPU has both instructions, and CR4.TSD does not bind ring 0.
    unsafe {
        _mm_lfence();
        Tsc(_rdtsc())
    }
}

const IA32_TSC_ADJUST: u32 = 0x3b;

/// By how much this CPU's counter has been moved, where it can be.
#[must_use]
pub fn adjustment() -> Option<u64> {
    // SAFETY: CPUID says that the register is there; reading it changes nothing.
    features::get().tsc_adjust.is_there().then(|| unsafe { Msr::new(IA32_TSC_ADJUST).read() })
}

/// Moves this CPU's counter: for a CPU that nobody uses yet.
pub fn set_adjustment(value: u64) {
    if adjustment().is_some_and(|old| old != value) {
        // SAFETY: the register is there. The counter jumps, and nobody has read it on this CPU.
        unsafe { Msr::new(IA32_TSC_ADJUST).write(value) }
    }
}

/// Nanoseconds since the hypervisor's first instructions.
///
/// # Panics
/// Before the clock is measured.
#[inline]
#[must_use]
pub fn now_ns() -> u64 {
    to_ns(read())
}

#[inline]
fn clock() -> &'static Clock {
    CLOCK.get().expect("the clock is measured")
}

/// What [`now_ns`] was when the counter had this value.
#[inline]
#[must_use]
pub fn to_ns(at: Tsc) -> u64 {
    let clock = clock();
    clock.to_ns.apply(at.0.wrapping_sub(clock.zero.0))
}

/// What the counter will be when [`now_ns`] is `ns`.
#[inline]
#[must_use]
pub fn from_ns(ns: u64) -> Tsc {
    let clock = clock();
    Tsc(clock.zero.0.wrapping_add(clock.from_ns.apply(ns)))
}

/// The counter's rate.
#[must_use]
pub fn rate() -> Hz {
    clock().hz
}

/// A moment, on two clocks.
#[derive(Clone, Copy)]
struct Sample {
    tsc: Tsc,
    other: u64,
}

/// Reads another clock and the TSC at the same time, as nearly as that is possible.
fn sample(other: impl Fn() -> u64) -> Sample {
    let attempts = (0..SAMPLES).map(|_| {
        let before = read();
        let value = other();
        let after = read();
        let took = after.0.wrapping_sub(before.0);
        (took, Sample { tsc: Tsc(before.0.wrapping_add(took / 2)), other: value })
    });
    attempts.min_by_key(|&(took, _)| took).map(|(_, sample)| sample).expect("there are some")
}

/// Measures the clock, and the local APIC's timer with it where that is needed.
///
/// # Panics
/// When there is no clock to measure against: no guest could be given the time.
pub fn init() {
    if let Some(hz) = features::get().tsc_hz {
        publish(Hz(hz), "CPUID");
        if apic::needs_measuring() {
            let window = Ratio::new(hz, NS_PER_SECOND).apply(WINDOW_NS);
            let first = sample(apic::count);
            while read().0.wrapping_sub(first.tsc.0) < window {
                core::hint::spin_loop();
            }
            apic_rate(first, sample(apic::count), Hz(hz));
        }
        return;
    }
    let Some(reference) = Reference::find() else {
        let hz = rtc::measure_second().expect("a clock to measure the TSC against");
        publish(hz, "real-time clock");
        let first = sample(apic::count);
        while read().0.wrapping_sub(first.tsc.0) < hz.0 / 200 {
            core::hint::spin_loop();
        }
        apic_rate(first, sample(apic::count), hz);
        return;
    };
    let window = Ratio::new(reference.hz(), NS_PER_SECOND).apply(WINDOW_NS);
    let apic_first = sample(apic::count);
    let first = sample(|| reference.read());
    while reference.elapsed(first.other, reference.read()) < window {
        core::hint::spin_loop();
    }
    let last = sample(|| reference.read());
    let apic_last = sample(apic::count);
    let ticks = u128::from(reference.elapsed(first.other, last.other));
    let hz = u128::from(last.tsc.0.wrapping_sub(first.tsc.0)) * u128::from(reference.hz()) / ticks;
    let hz = Hz(hz as u64);
    publish(hz, reference.name());
    apic_rate(apic_first, apic_last, hz);
}

/// Tells the APIC its timer's rate, from two readings of its counter, which counts down.
fn apic_rate(first: Sample, last: Sample, tsc: Hz) {
    if apic::needs_measuring() {
        let ticks = u128::from(first.other.wrapping_sub(last.other) as u32);
        let hz = ticks * u128::from(tsc.0) / u128::from(last.tsc.0.wrapping_sub(first.tsc.0).max(1));
        apic::set_rate(Hz(hz as u64));
    }
}

fn publish(hz: Hz, source: &str) {
    let plausible = (10_000_000..100_000_000_000).contains(&hz.0);
    assert!(plausible, "the TSC cannot run at {} Hz, which is what the {source} says", hz.0);
    CLOCK.call_once(|| Clock {
        zero: Tsc(boot::first_tsc()),
        hz,
        to_ns: Ratio::new(NS_PER_SECOND, hz.0),
        from_ns: Ratio::new(hz.0, NS_PER_SECOND),
    });
    let (mhz, rest) = (hz.0 / 1_000_000, hz.0 % 1_000_000 / 1000);
    log::info!("TSC: {mhz}.{rest:03} MHz by the {source}");
}
