//! Arithmetic of the interface's time: cycles to nanoseconds, and what the time fields say at a given cycle.

/// A consistent copy of the shared page's time fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimeSnapshot {
    /// Cycles of the time-stamp counter per second.
    pub cpu_freq: u64,
    /// The counter when the other fields held, in cycles.
    pub tsc_timestamp: u64,
    /// System time then: nanoseconds since the machine booted.
    pub system_time: u64,
    /// Wall clock then: seconds since 1970-01-01 00:00:00 UTC.
    pub wc_sec: u32,
    /// Wall clock then: microseconds within the second.
    pub wc_usec: u32,
    /// Virtual time of the domain then: nanoseconds that it had run.
    pub domain_time: u64,
}

/// A moment of the wall clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WallClock {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub seconds: u32,
    /// Microseconds within the second.
    pub microseconds: u32,
}

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds that so many cycles take at a frequency (in Hz, below 18 GHz), rounded down.
///
/// Exact, and saturating: whole seconds are split off first, so that the product fits 64 bits.
#[must_use]
pub fn cycles_to_ns(cycles: u64, frequency: u64) -> u64 {
    if frequency == 0 {
        return 0;
    }
    let (seconds, rest) = (cycles / frequency, cycles % frequency);
    seconds.saturating_mul(NS_PER_SECOND).saturating_add(rest * NS_PER_SECOND / frequency)
}

impl TimeSnapshot {
    /// Nanoseconds from the snapshot to the moment the counter showed `tsc`; zero if that was before.
    #[must_use]
    pub fn ns_since(&self, tsc: u64) -> u64 {
        cycles_to_ns(tsc.saturating_sub(self.tsc_timestamp), self.cpu_freq)
    }

    /// System time, in nanoseconds, when the counter showed `tsc`.
    #[must_use]
    pub fn system_time_at(&self, tsc: u64) -> u64 {
        self.system_time.saturating_add(self.ns_since(tsc))
    }

    /// Virtual time, in nanoseconds, when the counter showed `tsc`, if the domain has run since the snapshot.
    #[must_use]
    pub fn domain_time_at(&self, tsc: u64) -> u64 {
        self.domain_time.saturating_add(self.ns_since(tsc))
    }

    /// Wall clock when the counter showed `tsc`.
    #[must_use]
    pub fn wall_clock_at(&self, tsc: u64) -> WallClock {
        let microseconds = u64::from(self.wc_usec) + self.ns_since(tsc) / 1000;
        WallClock {
            seconds: self.wc_sec.wrapping_add((microseconds / 1_000_000) as u32),
            microseconds: (microseconds % 1_000_000) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_convert_exactly() {
        assert_eq!(cycles_to_ns(0, 1), 0);
        assert_eq!(cycles_to_ns(3, 3_000_000_000), 1);
        assert_eq!(cycles_to_ns(2, 3_000_000_000), 0);
        for frequency in [1u64, 999_999_937, 2_400_000_001, 18_000_000_000] {
            for cycles in [1u64, 12_345, frequency - 1, frequency, 7 * frequency + frequency / 3, 1 << 60] {
                let exact = u128::from(cycles) * 1_000_000_000 / u128::from(frequency);
                assert_eq!(u128::from(cycles_to_ns(cycles, frequency)), exact.min(u128::from(u64::MAX)));
            }
        }
    }

    #[test]
    fn no_frequency_is_no_time() {
        assert_eq!(cycles_to_ns(100, 0), 0);
    }

    #[test]
    fn time_goes_on_from_the_snapshot() {
        let snapshot = TimeSnapshot {
            cpu_freq: 2_000_000_000,
            tsc_timestamp: 1_000,
            system_time: 50,
            wc_sec: 10,
            wc_usec: 999_999,
            domain_time: 20,
        };
        assert_eq!(snapshot.system_time_at(1_000), 50);
        assert_eq!(snapshot.system_time_at(3_000), 1_050);
        assert_eq!(snapshot.system_time_at(0), 50, "a counter from before the snapshot does not go back");
        assert_eq!(snapshot.domain_time_at(3_000), 1_020);
        assert_eq!(snapshot.wall_clock_at(1_000), WallClock { seconds: 10, microseconds: 999_999 });
        assert_eq!(snapshot.wall_clock_at(3_000), WallClock { seconds: 11, microseconds: 0 });
    }
}
