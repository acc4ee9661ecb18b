//! A small ordered set of address ranges: how the memory map is cleaned, and what the early allocator takes from.
//!
//! It holds at most [`CAPACITY`] ranges and no heap memory. Adding beyond that loses the smallest range: memory that
//! is not used, never memory that is used twice.

use arrayvec::ArrayVec;
use core::ops::Range;
use proxenos_abi::MachineAddr;

/// The number of ranges one set holds.
pub const CAPACITY: usize = 128;

/// Half-open, of machine addresses in bytes.
pub type MachineRange = Range<MachineAddr>;

/// Disjoint, non-empty, ascending ranges that do not touch.
#[derive(Clone, Debug, Default)]
pub struct RangeSet {
    ranges: ArrayVec<MachineRange, CAPACITY>,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: ArrayVec::new_const() }
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = MachineRange> + '_ {
        self.ranges.iter().cloned()
    }

    /// Bytes in all of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end.0 - range.start.0).sum()
    }

    /// Adds a range, merging it with what it overlaps or touches.
    pub fn insert(&mut self, range: MachineRange) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        self.ranges.retain(|old| {
            let apart = old.end < merged.start || old.start > merged.end;
            if !apart {
                merged = merged.start.min(old.start)..merged.end.max(old.end);
            }
            apart
        });
        self.place(merged);
    }

    /// Takes a range out; parts of it that are not in the set do not matter.
    pub fn remove(&mut self, range: MachineRange) {
        if range.is_empty() {
            return;
        }
        let mut upper = None;
        for old in &mut self.ranges {
            if old.end <= range.start || old.start >= range.end {
                continue;
            }
            if old.start < range.start && old.end > range.end {
                // The only range that overlaps, since they are disjoint: it falls in two.
                upper = Some(range.end..old.end);
                old.end = range.start;
            } else if old.start < range.start {
                old.end = range.start;
            } else if old.end > range.end {
                old.start = range.end;
            } else {
                old.end = old.start;
            }
        }
        self.ranges.retain(|old| !old.is_empty());
        if let Some(upper) = upper {
            self.place(upper);
        }
    }

    /// Shrinks every range to whole frames.
    pub fn align_inward(&mut self, frame: u64) {
        for range in &mut self.ranges {
            let start = range.start.0.checked_next_multiple_of(frame).unwrap_or(u64::MAX);
            *range = MachineAddr(start)..MachineAddr(range.end.0 / frame * frame);
        }
        self.ranges.retain(|range| !range.is_empty());
    }

    /// Puts in a range that touches no other.
    fn place(&mut self, range: MachineRange) {
        if self.ranges.is_full() {
            let size = |range: &MachineRange| range.end.0 - range.start.0;
            let smallest = (0..CAPACITY).min_by_key(|&index| size(&self.ranges[index])).unwrap_or(0);
            if size(&self.ranges[smallest]) >= size(&range) {
                return;
            }
            self.ranges.remove(smallest);
        }
        let index = self.ranges.partition_point(|old| old.start < range.start);
        self.ranges.insert(index, range);
    }
}
