//! How far apart the time stamp counters of two CPUs are, from messages between them.
//!
//! One CPU reads its counter, asks the other for its own, and reads again: what the other read lies between, so each
//! round bounds the difference from both sides. The bounds of all rounds hold together, so a round that something long
//! came between does no harm, and of many the shortest decides. No lock.

/// What rounds of questions have shown: bounds on the other's counter less ours, in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    least: i64,
    most: i64,
}

/// What may be concluded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nobody who passes messages between the two can see time go back: there is no sign of a difference.
    Alike,
    /// The other is ahead by so many ticks, or behind if negative, as nearly as can be told.
    Apart(i64),
    /// The difference changed meanwhile: the two do not run at one rate.
    Adrift,
}

impl Difference {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { least: i64::MIN, most: i64::MAX };

    /// A round: we read `before`, then the other `theirs`, then we `after`.
    pub fn add(&mut self, before: u64, theirs: u64, after: u64) {
        self.least = self.least.max(theirs.wrapping_sub(after) as i64);
        self.most = self.most.min(theirs.wrapping_sub(before) as i64);
    }

    /// What follows from the rounds so far.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        if self.least > self.most {
            Verdict::Adrift
        } else if self.least <= 0 && self.most >= 0 {
            Verdict::Alike
        } else {
            Verdict::Apart(self.least + (self.most - self.least) / 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds as they come out when the other's counter is `ahead` and each way of a message takes so long.
    fn rounds(ahead: i64, ways: &[(u64, u64)]) -> Verdict {
        let mut difference = Difference::UNKNOWN;
        let mut now = 1_000_000;
        for &(there, back) in ways {
            let before = now;
            now += there;
            let theirs = now.wrapping_add_signed(ahead);
            now += back;
            difference.add(before, theirs, now);
        }
        difference.verdict()
    }

    #[test]
    fn equal_counters_are_alike_however_long_messages_take() {
        for ways in [[(10, 10), (10, 10)], [(5_000, 1), (1, 9_999)], [(0, 0), (70, 90)]] {
            assert_eq!(rounds(0, &ways), Verdict::Alike);
        }
    }

    #[test]
    fn a_difference_is_seen_as_soon_as_it_could_be_observed() {
        assert_eq!(rounds(50, &[(100, 100)]), Verdict::Alike, "no message is fast enough to tell");
        assert_eq!(rounds(150, &[(900, 900), (100, 100)]), Verdict::Apart(150));
        assert_eq!(rounds(-150, &[(100, 100), (4_000, 10)]), Verdict::Apart(-105), "within what the rounds leave open");
        let hour = 3_600 * 3_000_000_000;
        assert_eq!(rounds(-hour, &[(70, 70)]), Verdict::Apart(-hour));
        assert_eq!(rounds(hour, &[(70, 70)]), Verdict::Apart(hour));
    }

    #[test]
    fn a_difference_that_changes_is_adrift() {
        let mut difference = Difference::UNKNOWN;
        difference.add(1_000, 1_310, 1_020);
        difference.add(2_000, 2_390, 2_020);
        assert_eq!(difference.verdict(), Verdict::Adrift);
    }

    #[test]
    fn counters_may_wrap_between() {
        let mut difference = Difference::UNKNOWN;
        difference.add(u64::MAX - 20, u64::MAX - 10, 5);
        assert_eq!(difference.verdict(), Verdict::Alike);
    }
}
