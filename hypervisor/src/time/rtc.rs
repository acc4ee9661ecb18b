//! The real-time clock (Motorola MC146818): what date it is.

use super::UnixNanos;
use super::tsc::{self, Hz};
use core::fmt;
use x86_64::instructions::port::Port;

/// Seconds of UTC since 1970-01-01T00:00:00.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnixSeconds(pub u64);

/// Registers.
const SECONDS: u8 = 0;
const STATUS_A: u8 = 10;
const STATUS_B: u8 = 11;
/// Status A: an update is in progress.
const UPDATING: u8 = 1 << 7;
/// Status B: 24 hours, and binary numbers.
const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
/// Hours in 12-hour mode: afternoon.
const AFTERNOON: u8 = 1 << 7;
/// Reads until an update, which takes 2 ms at most, must have ended.
const PATIENCE: u32 = 100_000;

fn register(index: u8) -> u8 {
    // SAFETY: the ports are the clock's or nobody's. Bit 7 of the index would hold off NMIs; it is clear in all indices
    // used.
    unsafe {
        Port::<u8>::new(0x70).write(index);
        Port::<u8>::new(0x71).read()
    }
}

/// Seconds, minutes, hours, day, month, year as the registers have them, and the century.
type Raw = [u8; 7];

/// Reads the date; `None` when there is no clock or it tells nonsense.
///
/// The clock is taken to run in UTC. `century` is the index of the register that has it, if there is one (FADT);
/// without, it is the 21st.
pub fn read(century: Option<u8>) -> Option<UnixSeconds> {
    let once = || -> Option<Raw> {
        (0..PATIENCE).find(|_| register(STATUS_A) & UPDATING == 0)?;
        let century = century.map_or(0x20, |index| register(index & 0x7f));
        Some([register(0), register(2), register(4), register(7), register(8), register(9), century])
    };
    // Two equal readings: no update came between.
    let raw = (0..10).find_map(|_| {
        let first = once()?;
        (first == once()?).then_some(first)
    })?;
    let status = register(STATUS_B);
    let number = |value: u8| if status & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) };
    let [second, minute, hour, day, month, year, century_raw] = raw;
    let afternoon = status & HOURS_24 == 0 && hour & AFTERNOON != 0;
    let mut hour = u64::from(number(hour & if status & HOURS_24 == 0 { !AFTERNOON } else { 0xff }));
    if status & HOURS_24 == 0 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let century = if century.is_some() { u64::from(number(century_raw)) } else { 20 };
    let (second, minute) = (u64::from(number(second)), u64::from(number(minute)));
    let (day, month, year) =
        (u64::from(number(day)), u64::from(number(month)), century * 100 + u64::from(number(year)));
    let sane = second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month);
    if !sane || !(1970..2400).contains(&year) {
        return None;
    }
    Some(UnixSeconds(((days_to(year, month, day) * 24 + hour) * 60 + minute) * 60 + second))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, not before that.
const fn days_to(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year / 4 - year / 100 + year / 400;
    // 719468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leaps + (153 * month + 2) / 5 + day - 1 - 719_468
}

const _: () = assert!(days_to(1970, 1, 1) == 0 && days_to(2000, 3, 1) == 11_017 && days_to(2024, 2, 29) == 19_782);

/// The TSC's rate, by waiting for the clock's seconds to change twice: the last resort, which takes up to two seconds.
pub fn measure_second() -> Option<Hz> {
    // A few seconds of port reads, whatever the CPU.
    const LONG: u32 = 10_000_000;
    let edge = || {
        let start = register(SECONDS);
        (0..LONG).find(|_| register(SECONDS) != start).map(|_| tsc::read())
    };
    let first = edge()?;
    let second = edge()?;
    Some(Hz(second.0.wrapping_sub(first.0)))
}

/// A moment for people: `2004-11-05 13:37:00`.
pub struct Date(pub UnixNanos);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.0 / 1_000_000_000;
        let (days, time) = (seconds / 86_400, seconds % 86_400);
        // Searched for, so that there is one formula for dates and not two.
        let year = (1970..).find(|&year| days_to(year + 1, 1, 1) > days).unwrap_or(1970);
        let month = (1..=12).rev().find(|&month| days_to(year, month, 1) <= days).unwrap_or(1);
        let day = days - days_to(year, month, 1) + 1;
        write!(f, "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
    }
}
