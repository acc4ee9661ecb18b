//! The range set behind the memory map and the early allocator.

#[path = "../../src/mm/ranges.rs"]
mod ranges;

use proptest::prelude::*;
use proxenos_abi::MachineAddr;
use ranges::{CAPACITY, MachineRange, RangeSet};

const SPACE: u64 = 200;

fn range(start: u64, end: u64) -> MachineRange {
    MachineAddr(start)..MachineAddr(end)
}

/// Compares a set with one flag an address, and checks what a set promises of its ranges.
fn check(set: &RangeSet, model: &[bool]) {
    let ranges: Vec<MachineRange> = set.iter().collect();
    assert!(ranges.iter().all(|range| !range.is_empty()), "{ranges:?}");
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
    for (at, &inside) in model.iter().enumerate() {
        let found = ranges.iter().any(|range| range.contains(&MachineAddr(at as u64)));
        assert_eq!(found, inside, "address {at} in {ranges:?}");
    }
    assert_eq!(set.bytes(), model.iter().filter(|&&inside| inside).count() as u64);
}

proptest! {
    #[test]
    fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0..SPACE, 0..=SPACE), 0..60)) {
        let mut set = RangeSet::new();
        let mut model = [false; SPACE as usize];
        for (insert, start, end) in steps {
            if insert { set.insert(range(start, end)) } else { set.remove(range(start, end)) }
            model.iter_mut().take(end as usize).skip(start as usize).for_each(|inside| *inside = insert);
            check(&set, &model);
        }
    }
}

#[test]
fn whole_frames_lie_inside() {
    let mut set = RangeSet::new();
    set.insert(range(1, 4095));
    set.insert(range(5000, 12288));
    set.insert(range(20480, u64::MAX));
    set.align_inward(4096);
    assert_eq!(set.iter().collect::<Vec<_>>(), [range(8192, 12288), range(20480, u64::MAX / 4096 * 4096)]);
}

#[test]
fn a_full_set_loses_the_smallest_range_and_never_makes_one_up() {
    let mut set = RangeSet::new();
    for index in 0..2 * CAPACITY as u64 {
        set.insert(range(index * 1000, index * 1000 + 1 + index));
    }
    let ranges: Vec<MachineRange> = set.iter().collect();
    assert_eq!(ranges.len(), CAPACITY);
    for (kept, index) in ranges.iter().zip(CAPACITY as u64..) {
        assert_eq!(*kept, range(index * 1000, index * 1000 + 1 + index));
    }
}
