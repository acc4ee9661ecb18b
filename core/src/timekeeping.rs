//! The clock that guests read: the time fields of `shared_info_t`, and the arithmetic behind them.
//!
//! A guest takes the time from four fields that belong together (time-stamp counter, system time, wall clock, its own
//! virtual time) and adds what its counter has advanced since. They change under its eyes, so two version numbers
//! bracket them: `time_version1` is bumped before a change, `time_version2` after it, and what was read between equal
//! versions is consistent (xen.h, "Time").
//!
//! | module | what |
//! |---|---|
//! | [`clock`] | the machine's clock, and how its rate is found |
//! | [`timers`] | a domain's own time, its tick, and what it asked to be told |
//!
//! No lock: the CPU that runs the domain is the only writer.

pub mod clock;
pub mod timers;

use self::timers::Timeouts;
use crate::addr::{MachineAddr, Mfn};
use crate::control::DateAtZero;
use crate::machine::MachineMemory;
use proxenos_abi::shared_info::SharedInfo;

/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;

/// A factor in 64.64 fixed point: what turns ticks of one clock into ticks of another, such as cycles into nanoseconds.
///
/// What comes out is the exact product rounded down, or one more: the factor is too great by less than a part in 2^64.
/// So who adds to an earlier result the exact product of what has passed since, rounded down, is never ahead of a later
/// one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ratio {
    whole: u64,
    fraction: u64,
}

impl Ratio {
    /// `numerator / denominator`, the latter not 0: two rates in Hz.
    #[must_use]
    pub const fn new(numerator: u64, denominator: u64) -> Self {
        let fraction = ((numerator % denominator) as u128) << 64;
        Self { whole: numerator / denominator, fraction: fraction.div_ceil(denominator as u128) as u64 }
    }

    /// `ticks` times the factor, rounded down; wraps as the clock itself would.
    #[inline]
    #[must_use]
    pub const fn apply(self, ticks: u64) -> u64 {
        let fraction = (ticks as u128 * self.fraction as u128) >> 64;
        ticks.wrapping_mul(self.whole).wrapping_add(fraction as u64)
    }
}

/// A moment of the wall clock, as guests are told of it: since 1970-01-01 00:00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WallClock {
    /// Whole seconds.
    pub sec: u32,
    /// Microseconds since the last of them.
    pub usec: u32,
}

impl WallClock {
    const fn at(wall_ns: u64) -> Self {
        Self { sec: (wall_ns / NS_PER_SEC) as u32, usec: (wall_ns % NS_PER_SEC / 1000) as u32 }
    }
}

/// A second of the wall clock, remembered: moments within it cost no division.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    at_zero: DateAtZero,
    /// System time at its beginning. It may lie before the boot, so it wraps.
    began: u64,
    sec: u32,
}

impl Default for Second {
    fn default() -> Self {
        Self::new()
    }
}

impl Second {
    /// The first of 1970, if the machine had booted with it.
    #[must_use]
    pub const fn new() -> Self {
        Self { at_zero: DateAtZero(0), began: 0, sec: 0 }
    }

    /// The wall clock at a system time, which becomes the remembered second.
    #[inline]
    pub fn wall_clock(&mut self, at_zero: DateAtZero, system_ns: u64) -> WallClock {
        let into = system_ns.wrapping_sub(self.began);
        if at_zero == self.at_zero && into < NS_PER_SEC {
            return WallClock { sec: self.sec, usec: into as u32 / 1000 };
        }
        self.remember(at_zero, system_ns)
    }

    #[cold]
    #[inline(never)]
    fn remember(&mut self, at_zero: DateAtZero, system_ns: u64) -> WallClock {
        let wall = WallClock::at(system_ns.saturating_add_signed(at_zero.0));
        // Where the clock stands still, at the ends of its range, nothing can be derived from a beginning.
        if let Some(wall_ns) = system_ns.checked_add_signed(at_zero.0) {
            *self = Self { at_zero, began: system_ns.wrapping_sub(wall_ns % NS_PER_SEC), sec: wall.sec };
        }
        wall
    }
}

/// A moment, as guests are told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The time-stamp counter, in cycles.
    pub tsc: u64,
    /// How many of those there are in a second. Guests divide by it.
    pub hz: u64,
    /// System time: nanoseconds since the machine booted.
    pub system_ns: u64,
    /// Wall clock.
    pub wall: WallClock,
    /// Domain virtual time: nanoseconds that the domain has run.
    pub domain_ns: u64,
}

fn field(shared_info: Mfn, offset: usize) -> MachineAddr {
    MachineAddr(shared_info.addr().0 + offset as u64)
}

/// The timeouts that a guest has in its page. It may be changing them.
#[must_use]
pub fn read_timeouts(memory: &impl MachineMemory, shared_info: Mfn) -> Timeouts {
    Timeouts {
        system: memory.load64(field(shared_info, SharedInfo::WALL_TIMEOUT)),
        domain: memory.load64(field(shared_info, SharedInfo::DOMAIN_TIMEOUT)),
    }
}

/// Writes a moment, between the two versions. The guest may have scribbled on the page: the versions still end equal.
#[inline(always)]
pub fn write_moment(memory: &impl MachineMemory, shared_info: Mfn, moment: &Moment) {
    let (version1, version2) =
        (field(shared_info, SharedInfo::TIME_VERSION1), field(shared_info, SharedInfo::TIME_VERSION2));
    let next = memory.load32(version1).wrapping_add(1);
    memory.store32(version1, next);
    memory.store64(field(shared_info, SharedInfo::CPU_FREQ), moment.hz);
    memory.store64(field(shared_info, SharedInfo::TSC_TIMESTAMP), moment.tsc);
    memory.store64(field(shared_info, SharedInfo::SYSTEM_TIME), moment.system_ns);
    memory.store32(field(shared_info, SharedInfo::WC_SEC), moment.wall.sec);
    memory.store32(field(shared_info, SharedInfo::WC_USEC), moment.wall.usec);
    memory.store64(field(shared_info, SharedInfo::DOMAIN_TIME), moment.domain_ns);
    memory.store32(version2, next);
}

/// Writes another date over a moment that was written before. The page may say another system time than was written:
/// the date that it then gets is its guest's own affair.
pub fn write_date(memory: &impl MachineMemory, shared_info: Mfn, at_zero: DateAtZero) {
    let (version1, version2) =
        (field(shared_info, SharedInfo::TIME_VERSION1), field(shared_info, SharedInfo::TIME_VERSION2));
    let wall_ns = memory.load64(field(shared_info, SharedInfo::SYSTEM_TIME)).saturating_add_signed(at_zero.0);
    let wall = WallClock::at(wall_ns);
    let next = memory.load32(version1).wrapping_add(1);
    memory.store32(version1, next);
    memory.store32(field(shared_info, SharedInfo::WC_SEC), wall.sec);
    memory.store32(field(shared_info, SharedInfo::WC_USEC), wall.usec);
    memory.store32(version2, next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimMachine;
    use proptest::prelude::*;

    const PAGE: Mfn = Mfn(2);
    const NOON: Moment = Moment {
        tsc: 77,
        hz: 2_400_000_000,
        system_ns: 5_000_000_123,
        wall: WallClock::at(1_100_000_000_654_321_999),
        domain_ns: 42,
    };

    #[test]
    fn fields_are_where_the_header_has_them() {
        let machine = SimMachine::new(4);
        write_moment(&machine, PAGE, &NOON);
        let at = |offset| MachineAddr(PAGE.addr().0 + offset);
        assert_eq!(machine.load64(at(264)), 2_400_000_000);
        assert_eq!(machine.load64(at(280)), 77);
        assert_eq!(machine.load64(at(288)), 5_000_000_123);
        assert_eq!((machine.load32(at(296)), machine.load32(at(300))), (1_100_000_000, 654_321));
        assert_eq!(machine.load64(at(304)), 42);
        machine.store64(at(312), 1 << 40);
        machine.store64(at(320), 9);
        assert_eq!(read_timeouts(&machine, PAGE), Timeouts { system: 1 << 40, domain: 9 });
    }

    #[test]
    fn a_new_date_goes_with_the_time_that_is_there() {
        let machine = SimMachine::new(4);
        let at = |offset| MachineAddr(PAGE.addr().0 + offset);
        write_moment(&machine, PAGE, &NOON);
        write_date(&machine, PAGE, DateAtZero(1_000_000_000 * 60 + 7_999));
        assert_eq!((machine.load32(at(272)), machine.load32(at(276))), (2, 2));
        assert_eq!((machine.load32(at(296)), machine.load32(at(300))), (65, 8));
        assert_eq!((machine.load64(at(280)), machine.load64(at(288))), (77, 5_000_000_123));
        write_date(&machine, PAGE, DateAtZero(-1_000_000_000));
        assert_eq!((machine.load32(at(296)), machine.load32(at(300))), (4, 0));
        write_date(&machine, PAGE, DateAtZero(i64::MIN));
        assert_eq!((machine.load32(at(296)), machine.load32(at(300))), (0, 0));
    }

    #[test]
    fn versions_agree_after_a_change_and_differ_from_before() {
        let machine = SimMachine::new(4);
        let at = |offset| MachineAddr(PAGE.addr().0 + offset);
        machine.store32(at(272), u32::MAX);
        machine.store32(at(276), 5);
        write_moment(&machine, PAGE, &NOON);
        assert_eq!((machine.load32(at(272)), machine.load32(at(276))), (0, 0));
        write_moment(&machine, PAGE, &NOON);
        assert_eq!((machine.load32(at(272)), machine.load32(at(276))), (1, 1));
    }

    proptest! {
        /// Whatever was remembered, at whatever dates and times it is asked.
        #[test]
        fn a_remembered_second_says_what_a_division_says(
            asked in proptest::collection::vec(
                (prop_oneof![Just(0i64), Just(1_100_000_000_654_321_999), -3_000_000_000i64..3_000_000_000, any::<i64>()],
                 prop_oneof![0u64..4_000_000_000, any::<u64>()],
                 proptest::collection::vec(0u64..700_000_000, 1..5)),
                1..20,
            ),
        ) {
            let mut second = Second::new();
            for (at_zero, begin, steps) in asked {
                let mut now = begin;
                for step in steps {
                    let expected = WallClock::at(now.saturating_add_signed(at_zero));
                    prop_assert_eq!(second.wall_clock(DateAtZero(at_zero), now), expected, "{} at {}", at_zero, now);
                    now = now.saturating_add(step);
                }
            }
        }

        /// Against the exact product, for rates from 1 MHz to 10 GHz and up to a century.
        #[test]
        fn ratios_are_exact_to_a_nanosecond(hz in 1_000_000u64..10_000_000_000, ns in 0u64..3_200_000_000_000_000_000) {
            let exact = |n: u64, to: u64, from: u64| (u128::from(n) * u128::from(to) / u128::from(from)) as u64;
            let cycles = Ratio::new(hz, NS_PER_SEC).apply(ns);
            prop_assert!(cycles.wrapping_sub(exact(ns, hz, NS_PER_SEC)) <= 1);
            let ticks = ns / 10;
            let back = Ratio::new(NS_PER_SEC, hz).apply(ticks);
            prop_assert!(back.wrapping_sub(exact(ticks, NS_PER_SEC, hz)) <= 1);
        }

        /// A guest that carries the clock on by itself, exactly, never meets a later reading that shows less.
        #[test]
        fn ratios_keep_up_with_guests(hz in 1_000_000u64..10_000_000_000, ticks in 0u64..1 << 55, more in 0u64..1 << 40) {
            let ratio = Ratio::new(NS_PER_SEC, hz);
            let carried = u128::from(more) * u128::from(NS_PER_SEC) / u128::from(hz);
            prop_assert!(u128::from(ratio.apply(ticks + more)) >= u128::from(ratio.apply(ticks)) + carried);
        }

        /// A clock that is read later never shows less.
        #[test]
        fn ratios_are_monotonic(hz in 1_000_000u64..10_000_000_000, ticks in 0u64..1 << 60, more in 0u64..1 << 40) {
            let ratio = Ratio::new(NS_PER_SEC, hz);
            let (before, after) = (u128::from(ratio.apply(ticks)), u128::from(ratio.apply(ticks + more)));
            // Beyond 2^64 ns (584 years) it wraps.
            prop_assume!(u128::from(ticks + more) * u128::from(NS_PER_SEC) / u128::from(hz) < 1 << 64);
            prop_assert!(after >= before);
        }
    }
}
