//! Whom a CPU is to wake: noted by any CPU, also from interrupts, and acted upon by the one whose run queue it is.
//!
//! Promise: who is noted before, or while, the set is taken is found by that or the next look; so a CPU that looks
//! after it was told misses nobody. The same holds for being asked to choose anew who runs, whoever that is by then. No
//! lock: a bit a slot, one for each word of them, and one for that.

use super::{MAX_VCPUS, Slot};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = MAX_VCPUS / WORD_BITS;
/// The bit of the summary that says that the CPU is to choose anew.
const CHOOSE: u32 = 1 << 31;
const _: () = assert!(WORDS < 31 && MAX_VCPUS.is_multiple_of(WORD_BITS));

/// The set.
#[derive(Debug)]
pub struct WakeSet {
    /// Which words may have bits; and [`CHOOSE`].
    summary: AtomicU32,
    words: [AtomicU64; WORDS],
}

impl Default for WakeSet {
    fn default() -> Self {
        Self::new()
    }
}

impl WakeSet {
    /// Nobody.
    #[must_use]
    pub const fn new() -> Self {
        Self { summary: AtomicU32::new(0), words: [const { AtomicU64::new(0) }; WORDS] }
    }

    /// Notes one. Its CPU is then to be told, unless it is this one and looks anyway.
    pub fn add(&self, slot: Slot) {
        let (word, bit) = (slot.index() / WORD_BITS, slot.index() % WORD_BITS);
        // The word before the summary: who finds the summary's bit finds this one too.
        self.words[word].fetch_or(1 << bit, Ordering::AcqRel);
        self.summary.fetch_or(1 << word, Ordering::AcqRel);
    }

    /// The CPU is to choose anew who runs. It is then to be told, as for [`add`](Self::add).
    pub fn ask(&self) {
        self.summary.fetch_or(CHOOSE, Ordering::AcqRel);
    }

    /// Whether there may be anybody, or the CPU was asked.
    #[inline]
    #[must_use]
    pub fn may_have_any(&self) -> bool {
        self.summary.load(Ordering::Acquire) != 0
    }

    /// Takes all that are noted, in order; and says whether the CPU was asked to choose anew.
    pub fn take(&self, mut each: impl FnMut(Slot)) -> bool {
        let all = self.summary.swap(0, Ordering::AcqRel);
        let mut summary = all & !CHOOSE;
        while summary != 0 {
            let word = summary.trailing_zeros() as usize;
            summary &= summary - 1;
            let mut bits = self.words[word].swap(0, Ordering::AcqRel);
            while bits != 0 {
                each(Slot((word * WORD_BITS) as u16 + bits.trailing_zeros() as u16));
                bits &= bits - 1;
            }
        }
        all & CHOOSE != 0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn taken(set: &WakeSet) -> Vec<u16> {
        let mut all = Vec::new();
        assert!(!set.take(|slot| all.push(slot.0)), "nobody asked");
        all
    }

    #[test]
    fn who_is_asked_is_told_once_beside_all_that_are_noted() {
        let set = WakeSet::new();
        set.ask();
        assert!(set.may_have_any());
        set.add(Slot(3));
        let mut all = Vec::new();
        assert!(set.take(|slot| all.push(slot.0)));
        assert_eq!(all, [3]);
        assert!(!set.may_have_any() && taken(&set).is_empty());
    }

    proptest! {
        #[test]
        fn all_that_are_noted_are_taken_once(slots in proptest::collection::vec(0..MAX_VCPUS as u16, 0..50)) {
            let set = WakeSet::new();
            slots.iter().for_each(|&slot| set.add(Slot(slot)));
            prop_assert_eq!(set.may_have_any(), !slots.is_empty());
            let expected: BTreeSet<u16> = slots.into_iter().collect();
            prop_assert_eq!(taken(&set), expected.into_iter().collect::<Vec<_>>());
            prop_assert!(taken(&set).is_empty() && !set.may_have_any());
        }
    }

    #[test]
    fn nobody_is_lost_between_two_cpus() {
        const ROUNDS: usize = 20_000;
        let set = WakeSet::new();
        let seen = core::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    // Only when it was seen is the same noted again, as a domain is that sleeps again.
                    while seen.load(Ordering::Acquire) != round {
                        core::hint::spin_loop();
                    }
                    set.add(Slot((round * 67 % MAX_VCPUS) as u16));
                }
            });
            let mut last = 0;
            while last < ROUNDS {
                let asked = set.take(|slot| {
                    assert_eq!(slot.index(), last * 67 % MAX_VCPUS);
                    last += 1;
                });
                assert!(!asked);
                seen.store(last, Ordering::Release);
            }
        });
        assert!(taken(&set).is_empty());
    }
}
