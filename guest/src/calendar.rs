//! Seconds since 1970 as a date and a time of day, UTC, in the Gregorian calendar.

use core::fmt;

/// A date and a time of day, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DateTime {
    /// Year, as it is written.
    pub year: u32,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// The date and time so many seconds after 1970-01-01 00:00:00 UTC.
    ///
    /// Years are counted from March, so that the leap day is the last of its year and the lengths of the months follow
    /// a pattern of 153 days in five months.
    #[must_use]
    pub fn from_unix(seconds: u32) -> Self {
        const DAYS_PER_ERA: u32 = 146_097;
        const DAYS_0000_03_01_TO_1970: u32 = 719_468;
        let (days, rest) = (seconds / 86_400 + DAYS_0000_03_01_TO_1970, seconds % 86_400);
        let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let months_since_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
        let month = if months_since_march < 10 { months_since_march + 3 } else { months_since_march - 9 };
        Self {
            year: era * 400 + year_of_era + u32::from(month <= 2),
            month: month as u8,
            day: day as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use super::DateTime;

    fn shown(seconds: u32) -> String {
        DateTime::from_unix(seconds).to_string()
    }

    #[test]
    fn known_moments() {
        assert_eq!(shown(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(shown(68_255_999), "1972-02-29 23:59:59 UTC");
        assert_eq!(shown(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(shown(1_099_613_696), "2004-11-05 00:14:56 UTC");
        assert_eq!(shown(u32::MAX), "2106-02-07 06:28:15 UTC");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = DateTime::from_unix(0);
        for day in 1..=(u32::MAX / 86_400) {
            let this = DateTime::from_unix(day * 86_400);
            let leap = last.year % 4 == 0 && (last.year % 100 != 0 || last.year % 400 == 0);
            let length = match last.month {
                2 => 28 + u8::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = if last.day < length {
                (last.year, last.month, last.day + 1)
            } else if last.month < 12 {
                (last.year, last.month + 1, 1)
            } else {
                (last.year + 1, 1, 1)
            };
            assert_eq!((this.year, this.month, this.day), expected);
            last = this;
        }
    }
}
