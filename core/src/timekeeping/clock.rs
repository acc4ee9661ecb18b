//! The machine's clock as a function of the time-stamp counter, and how its rate is found.
//!
//! The clock is a chain of straight lines ([`Line`]). The first comes of a short measurement at boot; later ones of
//! longer measurements against the same reference, each much better than the one before ([`Calibration`]). A line
//! begins where the one before it is, or a few microseconds above: as far as keeps it from ever lying below what
//! somebody who still uses the old line reads for [`GRACE_NS`]. So the clock never goes back, not even for a guest that
//! has not been told of the new rate yet.
//!
//! Every measurement knows how wrong it can be. A reading of the reference lies between the two readings of the counter
//! around it, so a disturbed one is not wrong, but says less.
//!
//! No lock: the caller has one, or publishes lines that never change.

use super::{NS_PER_SEC, Ratio};

/// For how long an old line may still be in use once there is a new one: two ticks of a domain that runs.
pub const GRACE_NS: u64 = 20_000_000;
/// How much better a new rate must be known than the old.
const BETTER: u64 = 4;

/// A straight piece of the clock: nanoseconds by the counter, from some value of it on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    tsc: u64,
    ns: u64,
    hz: u64,
    to_ns: Ratio,
    from_ns: Ratio,
}

impl Line {
    /// The clock's first: 0 at this value of the counter, which has this rate in Hz, not 0.
    #[must_use]
    pub const fn new(tsc: u64, hz: u64) -> Self {
        Self { tsc, ns: 0, hz, to_ns: Ratio::new(NS_PER_SEC, hz), from_ns: Ratio::new(hz, NS_PER_SEC) }
    }

    /// The counter's rate, in Hz.
    #[must_use]
    pub const fn hz(&self) -> u64 {
        self.hz
    }

    /// Whether this value of the counter is on this line, and not on one before it.
    #[inline]
    #[must_use]
    pub const fn covers(&self, tsc: u64) -> bool {
        // The counter may wrap, as it does on machines that firmware has started at nearly 2^64.
        tsc.wrapping_sub(self.tsc) as i64 >= 0
    }

    /// The clock at a value of the counter that this line covers.
    #[inline]
    #[must_use]
    pub const fn ns_at(&self, tsc: u64) -> u64 {
        self.ns.wrapping_add(self.to_ns.apply(tsc.wrapping_sub(self.tsc)))
    }

    /// The counter when the clock shows `ns`, or where the line begins if that was before.
    #[inline]
    #[must_use]
    pub const fn tsc_at(&self, ns: u64) -> u64 {
        self.tsc.wrapping_add(self.from_ns.apply(ns.saturating_sub(self.ns)))
    }

    /// The line that goes on from here at another rate, in Hz: never below this one for [`GRACE_NS`].
    #[must_use]
    pub fn bend(&self, tsc: u64, hz: u64) -> Self {
        let from_here = Self { tsc, ns: self.ns_at(tsc), ..Self::new(tsc, hz) };
        let end = tsc.wrapping_add(from_here.from_ns.apply(GRACE_NS));
        // One more, since either may be rounded down.
        let behind = self.ns_at(end).saturating_sub(from_here.ns_at(end)) + 1;
        Self { ns: from_here.ns + behind, ..from_here }
    }
}

/// A clock of known rate, as a counter that wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReferenceClock {
    /// Ticks a second.
    pub hz: u64,
    /// The greatest value, one less than a power of two.
    pub mask: u64,
}

/// A reading of the reference, with the time-stamp counter right before and right after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The counter before.
    pub before: u64,
    /// The reference.
    pub ticks: u64,
    /// The counter after.
    pub after: u64,
}

impl Reading {
    /// Cycles that it took: the less, the more it says.
    #[must_use]
    pub const fn took(&self) -> u64 {
        self.after.wrapping_sub(self.before)
    }
}

/// A rate, and how far off it can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Estimate {
    /// The rate in Hz.
    pub hz: u64,
    /// The real one differs by at most so many Hz.
    pub error: u64,
}

/// A measurement that goes on: from one reading on, how fast the counter runs.
#[derive(Clone, Copy, Debug)]
pub struct Calibration {
    reference: ReferenceClock,
    first: Reading,
    best: Estimate,
}

impl Calibration {
    /// Begins with a pair of readings, less than a turn of the reference apart. `None` if the reference has not moved.
    #[must_use]
    pub fn begin(reference: ReferenceClock, first: Reading, second: Reading) -> Option<Self> {
        let ticks = second.ticks.wrapping_sub(first.ticks) & reference.mask;
        let best = estimate(reference, first, second, ticks)?;
        Some(Self { reference, first, best })
    }

    /// What is known so far.
    #[must_use]
    pub const fn best(&self) -> Estimate {
        self.best
    }

    /// Takes another reading, however late; the new rate if it is much better known by it than before.
    pub fn refine(&mut self, reading: Reading) -> Option<Estimate> {
        let turn = u128::from(self.reference.mask) + 1;
        let cycles = u128::from(reading.before.wrapping_sub(self.first.before));
        // How often the reference has wrapped is known if what is uncertain is well below a turn of it.
        let about = cycles * u128::from(self.reference.hz) / u128::from(self.best.hz);
        let uncertain = about * u128::from(self.best.error + 1) / u128::from(self.best.hz)
            + u128::from(reading.took() + self.first.took()) * u128::from(self.reference.hz) / u128::from(self.best.hz);
        if uncertain >= turn / 4 {
            return None;
        }
        let raw = u128::from(reading.ticks.wrapping_sub(self.first.ticks) & self.reference.mask);
        // The number with these low bits that is next to what is expected.
        let turns = (about + turn / 2).saturating_sub(raw) / turn;
        let ticks = u64::try_from(raw + turns * turn).ok()?;
        let found = estimate(self.reference, self.first, reading, ticks)?;
        if found.error.max(1).checked_mul(BETTER)? > self.best.error {
            return None;
        }
        self.best = found;
        Some(found)
    }
}

/// The rate by two readings, `ticks` of the reference apart. Each tick count may be short by less than one.
fn estimate(reference: ReferenceClock, first: Reading, second: Reading, ticks: u64) -> Option<Estimate> {
    let least = second.before.wrapping_sub(first.after);
    let most = second.after.wrapping_sub(first.before);
    if ticks < 2 || least > most {
        return None;
    }
    let rate = |cycles: u64, ticks: u64| u128::from(cycles) * u128::from(reference.hz) / u128::from(ticks);
    let low = u64::try_from(rate(least, ticks + 1)).ok()?;
    let high = u64::try_from(rate(most, ticks - 1) + 1).ok()?;
    let hz = low + (high - low) / 2;
    (hz > 0).then_some(Estimate { hz, error: (high - low).div_ceil(2) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PM_TIMER: ReferenceClock = ReferenceClock { hz: 3_579_545, mask: 0xff_ffff };

    /// The reading that begins at a time, in ns, and takes `took` ns, in the middle of which the reference is read.
    fn reading(reference: ReferenceClock, tsc_hz: u64, at: u64, took: u64) -> Reading {
        let count = |hz: u64, ns: u64| (u128::from(hz) * u128::from(ns) / u128::from(NS_PER_SEC)) as u64;
        Reading {
            before: count(tsc_hz, at),
            ticks: count(reference.hz, at + took / 2) & reference.mask,
            after: count(tsc_hz, at + took) + 1,
        }
    }

    #[test]
    fn a_long_measurement_is_a_good_one() {
        let hz = 2_399_987_654;
        let at = |ns, took| reading(PM_TIMER, hz, ns, took);
        let mut calibration = Calibration::begin(PM_TIMER, at(1_000, 900), at(5_000_000, 1_100)).expect("it moves");
        let first = calibration.best();
        assert!(first.hz.abs_diff(hz) <= first.error && first.error > hz / 10_000, "{first:?}");
        // Hours later: the timer, of 4.7 seconds, has wrapped thousands of times.
        for ns in [NS_PER_SEC, 30 * NS_PER_SEC, 1000 * NS_PER_SEC, 20_000 * NS_PER_SEC] {
            let better = calibration.refine(at(ns, 1_000)).expect("better");
            assert!(better.hz.abs_diff(hz) <= better.error, "{better:?} after {ns} ns");
        }
        assert!(calibration.best().error < hz / 10_000_000);
        // A reading that was disturbed says less, and changes nothing.
        assert_eq!(calibration.refine(at(20_001 * NS_PER_SEC, 50_000_000)), None);
    }

    #[test]
    fn a_reference_that_stands_still_is_none() {
        let stuck = Reading { before: 0, ticks: 7, after: 10 };
        assert!(Calibration::begin(PM_TIMER, stuck, Reading { before: 1_000, after: 1_010, ..stuck }).is_none());
    }

    proptest! {
        /// However long the readings take and wherever in them the reference was read: the truth is within what is
        /// claimed.
        #[test]
        fn estimates_hold_what_they_claim(
            tsc_hz in 500_000_000u64..6_000_000_000,
            which in 0..3usize,
            gaps in proptest::collection::vec((1_000_000u64..400_000_000_000, 0u64..100_000, 0u64..=100), 1..8),
        ) {
            let reference = [PM_TIMER, ReferenceClock { hz: 100_000_000, mask: u32::MAX.into() },
                ReferenceClock { hz: 1_193_182, mask: 0xffff }][which];
            let count = |hz: u64, ns: u64| (u128::from(hz) * u128::from(ns) / u128::from(NS_PER_SEC)) as u64;
            let at = |ns: u64, took: u64, part: u64| Reading {
                before: count(tsc_hz, ns),
                ticks: count(reference.hz, ns + took * part / 100) & reference.mask,
                after: count(tsc_hz, ns + took) + 1,
            };
            let Some(mut calibration) = Calibration::begin(reference, at(777, 900, 50), at(5_000_777, 900, 30)) else {
                return Ok(());
            };
            let mut now = 5_000_777;
            let holds = |found: Estimate| found.hz.abs_diff(tsc_hz) <= found.error + 1;
            prop_assert!(holds(calibration.best()));
            for (gap, took, part) in gaps {
                now += gap;
                let before = calibration.best();
                if let Some(found) = calibration.refine(at(now, took, part)) {
                    prop_assert!(holds(found), "{:?} for {}", found, tsc_hz);
                    prop_assert!(found.error * BETTER <= before.error);
                }
            }
        }

        /// A new line is continuous but for a few microseconds, and nobody who still uses the old one is ever ahead of
        /// it in time.
        #[test]
        fn the_clock_never_goes_back(
            start in any::<u64>(),
            hz in 500_000_000u64..6_000_000_000,
            ppm in proptest::collection::vec(-500i64..500, 1..6),
            gap in 1u64..100_000_000_000,
            after in 0u64..GRACE_NS,
        ) {
            let mut line = Line::new(start, hz);
            let mut tsc = start;
            for ppm in ppm {
                tsc = tsc.wrapping_add(gap);
                let next = line.bend(tsc, (hz as i64 + hz as i64 / 1_000_000 * ppm) as u64);
                let jump = next.ns_at(tsc) - line.ns_at(tsc);
                // A thousand parts in a million, of 20 ms.
                prop_assert!(jump <= 1 + GRACE_NS / 1_000 + 1, "{} ns", jump);
                let later = tsc.wrapping_add(after * hz / NS_PER_SEC);
                prop_assert!(next.ns_at(later) >= line.ns_at(later), "at {} ns", after);
                prop_assert!(next.covers(tsc) && !next.covers(tsc.wrapping_sub(1)));
                line = next;
            }
            // Both ways.
            let ns = line.ns_at(tsc.wrapping_add(12_345));
            prop_assert!(line.ns_at(line.tsc_at(ns)).abs_diff(ns) <= 3);
        }
    }
}
