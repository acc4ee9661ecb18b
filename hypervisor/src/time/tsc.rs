//! The time stamp counter: the hypervisor's clock.
//!
//! Its rate is taken from CPUID where that tells it. Else it is measured at boot for [`WINDOW_NS`], which is short
//! because the boot is, against the best reference there is: known to some parts in ten thousand at worst. The
//! measurement then goes on ([`refine`]): a second later it is a hundred times as good, and the clock bends to it
//! ([`Line`]). Nobody is woken for that: it is done when a timer fires anyway.
//!
//! Lines are published once each and never change; who reads the clock takes no lock.
//!
//! The boot CPU's is the machine's: the others' show the same time, or the CPU is not used ([`crate::cpu::smp`]).

use super::{Ratio, apic, reference::Reference, rtc};
use crate::boot;
use crate::cpu::features;
use crate::options::{Kept, Skew};
use core::arch::asm;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use proxenos_core::timekeeping::clock::{Calibration, Line, Reading};
use spin::{Mutex, Once};
use x86_64::registers::model_specific::Msr;

/// A value of the counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tsc(pub u64);

/// A rate in ticks a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hz(pub u64);

/// For how long clocks are compared at boot: 5 ms.
const WINDOW_NS: u64 = 5_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// A reading of a clock pair counts only if nothing long came between; of so many the shortest is taken.
const SAMPLES: u32 = 5;
/// When the rate is first looked at again, after the boot; then after four times as long, and so on.
const FIRST_REFINEMENT_NS: u64 = NS_PER_SECOND;
/// Lines that the clock may have: each is four times as good as the last, which is as good as any oscillator then.
const LINES: usize = 8;

/// The clock, by pieces. Those up to [`CURRENT`] are there.
static CLOCK: [Once<Line>; LINES] = [const { Once::new() }; LINES];
/// The last of them.
static CURRENT: AtomicUsize = AtomicUsize::new(0);
/// The same line itself, for who reads the clock.
static NEWEST: AtomicPtr<Line> = AtomicPtr::new(core::ptr::null_mut());

/// What the rate is measured against.
struct Refinement {
    reference: Reference,
    calibration: Calibration,
}

static REFINEMENT: Mutex<Option<Refinement>> = Mutex::new(None);
/// When the rate is to be looked at again, in nanoseconds of the clock.
static NEXT_REFINEMENT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Reads the counter, after all earlier loads.
#[inline(always)]
#[must_use]
pub fn read() -> Tsc {
    let (low, high): (u32, u32);
    // (The compiler's own name for the fence is a call here: it counts as SSE2, which the hypervisor is built without.)
    // SAFETY: every 64-bit CPU has both instructions, and CR4.TSD does not bind ring 0.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) }
    Tsc(u64::from(high) << 32 | u64::from(low))
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

/// A moment, from one reading of the counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// The counter.
    pub tsc: Tsc,
    /// The clock then, in nanoseconds ([`now_ns`]).
    pub ns: u64,
    /// The counter's rate, as far as it was known.
    pub rate: Hz,
}

/// The moment.
///
/// # Panics
/// Before the clock is measured.
#[inline]
#[must_use]
pub fn now() -> Now {
    let tsc = read();
    let line = line_of(tsc);
    Now { tsc, ns: line.ns_at(tsc.0), rate: Hz(line.hz()) }
}

/// The newest line.
#[inline]
fn clock() -> &'static Line {
    CLOCK[CURRENT.load(Ordering::Acquire)].get().expect("the clock is measured")
}

/// What [`now_ns`] was when the counter had this value.
#[inline]
#[must_use]
pub fn to_ns(at: Tsc) -> u64 {
    line_of(at).ns_at(at.0)
}

/// The line that a value of the counter is on.
#[inline]
fn line_of(at: Tsc) -> &'static Line {
    // SAFETY: null until there is a line, or one that is published: such a line never changes or moves.
    let newest = unsafe { NEWEST.load(Ordering::Acquire).as_ref() };
    let line = newest.expect("the clock is measured");
    // A value that was read before the last line began is on the one before.
    if line.covers(at.0) { line } else { line_before(line) }
}

/// The line before the newest. (There is none before the first: then the value is from before the first instruction.)
#[cold]
#[inline(never)]
fn line_before(newest: &'static Line) -> &'static Line {
    let lines = CLOCK.iter().filter_map(Once::get);
    lines.take_while(|line| !core::ptr::eq(*line, newest)).last().unwrap_or(newest)
}

/// Makes a line the one that the clock is read by.
fn use_line(line: &'static Line) {
    NEWEST.store(core::ptr::from_ref(line).cast_mut(), Ordering::Release);
}

/// What the counter will be when [`now_ns`] is `ns`.
#[inline]
#[must_use]
pub fn from_ns(ns: u64) -> Tsc {
    Tsc(clock().tsc_at(ns))
}

/// Reads another clock and the TSC at the same time, as nearly as that is possible.
fn sample(other: impl Fn() -> u64) -> Reading {
    let attempts = (0..SAMPLES).map(|_| {
        let before = read().0;
        let ticks = other();
        Reading { before, ticks, after: read().0 }
    });
    attempts.min_by_key(Reading::took).expect("there are some")
}

/// Measures the clock, and the local APIC's timer with it where that is needed.
///
/// # Panics
/// When there is no clock to measure against: no guest could be given the time.
pub fn init() {
    if let Some(hz) = features::get().tsc_hz {
        publish_first(Hz(hz), "CPUID");
        if apic::needs_measuring() {
            let window = Ratio::new(hz, NS_PER_SECOND).apply(WINDOW_NS);
            let first = sample(apic::count);
            while read().0.wrapping_sub(first.before) < window {
                core::hint::spin_loop();
            }
            apic_rate(first, sample(apic::count), Hz(hz));
        }
        return;
    }
    let Some(reference) = Reference::find() else {
        let hz = rtc::measure_second().expect("a clock to measure the TSC against");
        publish_first(hz, "real-time clock");
        let first = sample(apic::count);
        while read().0.wrapping_sub(first.before) < hz.0 / 200 {
            core::hint::spin_loop();
        }
        apic_rate(first, sample(apic::count), hz);
        return;
    };
    let window = Ratio::new(reference.clock().hz, NS_PER_SECOND).apply(WINDOW_NS);
    let apic_first = sample(apic::count);
    let first = sample(|| reference.read());
    while reference.elapsed(first.ticks, reference.read()) < window {
        core::hint::spin_loop();
    }
    let last = sample(|| reference.read());
    let apic_last = sample(apic::count);
    let calibration = Calibration::begin(reference.clock(), first, last).expect("a reference that runs");
    let hz = Hz(calibration.best().hz);
    publish_first(hz, reference.name());
    apic_rate(apic_first, apic_last, hz);
    if boot::options().tsc_skew.is_some_and(|skew| skew.kept == Kept::Always) {
        return;
    }
    *REFINEMENT.lock() = Some(Refinement { reference, calibration });
    NEXT_REFINEMENT.store(now_ns() + FIRST_REFINEMENT_NS, Ordering::Relaxed);
}

/// Tells the APIC its timer's rate, from two readings of its counter, which counts down.
fn apic_rate(first: Reading, last: Reading, tsc: Hz) {
    if apic::needs_measuring() {
        let ticks = u128::from(first.ticks.wrapping_sub(last.ticks) as u32);
        let hz = ticks * u128::from(tsc.0) / u128::from(last.before.wrapping_sub(first.before).max(1));
        apic::set_rate(Hz(hz as u64));
    }
}

/// The rate as the option has it, for tests: wrong on purpose.
fn skewed(hz: Hz) -> Hz {
    match boot::options().tsc_skew {
        Some(Skew { ppm, .. }) => Hz(hz.0 + hz.0 / 1_000_000 * u64::from(ppm)),
        None => hz,
    }
}

fn publish_first(hz: Hz, source: &str) {
    let plausible = (10_000_000..100_000_000_000).contains(&hz.0);
    assert!(plausible, "the TSC cannot run at {} Hz, which is what the {source} says", hz.0);
    use_line(CLOCK[0].call_once(|| Line::new(boot::first_tsc(), skewed(hz).0)));
    let (mhz, rest) = (hz.0 / 1_000_000, hz.0 % 1_000_000 / 1000);
    log::info!("TSC: {mhz}.{rest:03} MHz by the {source}");
}

/// Measures the rate again, if it is time to, and bends the clock to what is found. A microsecond or two when it does,
/// a load when not.
#[inline]
pub fn refine(now: u64) {
    if now >= NEXT_REFINEMENT.load(Ordering::Relaxed) {
        measure_again(now);
    }
}

#[cold]
fn measure_again(now: u64) {
    // Another CPU is at it: once is enough.
    let Some(mut refinement) = REFINEMENT.try_lock() else { return };
    let Some(Refinement { reference, calibration }) = refinement.as_mut() else { return };
    NEXT_REFINEMENT.store(now.saturating_mul(4), Ordering::Relaxed);
    let Some(found) = calibration.refine(sample(|| reference.read())) else { return };
    let newest = CURRENT.load(Ordering::Acquire);
    let line = clock().bend(read().0, found.hz);
    let line = CLOCK[newest + 1].call_once(|| line);
    CURRENT.store(newest + 1, Ordering::Release);
    use_line(line);
    log::debug!("TSC: {} Hz, give or take {}", found.hz, found.error);
    if newest + 2 == LINES {
        *refinement = None;
        NEXT_REFINEMENT.store(u64::MAX, Ordering::Relaxed);
    }
}
