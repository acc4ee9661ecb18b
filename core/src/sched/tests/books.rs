//! The books of a run queue, its heap and its ring.

use super::super::MAX_VCPUS;
use super::super::bvt::Bvt;
use super::super::heap::Heap;
use super::super::ring::Ring;
use super::super::round_robin::RoundRobin;
use super::*;
use alloc::collections::{BTreeMap, VecDeque};
use proptest::prelude::*;

#[test]
fn a_slot_is_vacant_until_it_is_inserted_and_after_it_is_removed() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), ()]);
    assert_eq!(queue.pick(Time(0)).next, Some(slots[0]));
    assert_eq!(queue.remove(slots[0]), Err(SchedError::StillRuns));
    assert_eq!(queue.remove(slots[1]), Ok(()));
    assert_eq!(queue.remove(slots[1]), Err(SchedError::NoSuchVcpu));
    assert_eq!(queue.params(slots[1]), Err(SchedError::NoSuchVcpu));
    assert_eq!(queue.adjust(slots[1], (), Time(0)), Err(SchedError::NoSuchVcpu));
    assert_eq!(queue.wake(slots[1], Time(0)), Repick::AsPlanned);
    assert_eq!(queue.sleep(slots[1], Time(0)), Repick::AsPlanned);
    assert_eq!(queue.insert((), Time(0)), Ok(slots[1]), "the place is free again");
}

#[test]
fn who_goes_to_sleep_while_it_runs_is_replaced_by_the_pick_that_follows() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(10)]);
    assert_eq!(queue.pick(Time(0)).next, Some(slots[0]));
    assert_eq!(queue.sleep(slots[0], ms(1)), Repick::Now);
    assert_eq!(queue.sleep(slots[0], ms(1)), Repick::AsPlanned, "it sleeps already");
    assert_eq!(queue.wake(slots[0], ms(1)), Repick::Now, "the pick is still to come");
    assert_eq!(queue.wake(slots[0], ms(1)), Repick::AsPlanned, "it is ready already");
    assert_eq!(queue.sleep(slots[0], ms(1)), Repick::Now);
    assert_eq!(queue.pick(ms(1)), Pick { next: Some(slots[1]), until: None });
    assert_eq!(queue.sleep(slots[1], ms(3)), Repick::Now);
    assert_eq!(queue.pick(ms(3)), Pick { next: None, until: None });
    assert_eq!((queue.ran(slots[0]), queue.ran(slots[1])), (Ok(Span::millis(1)), Ok(Span::millis(2))));
    assert_eq!(queue.wake(slots[1], ms(9)), Repick::Now);
    assert_eq!(queue.ran(slots[1]), Ok(Span::millis(2)), "an idle CPU charges nobody");
}

#[test]
fn time_that_goes_back_stands_still() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), ()]);
    queue.pick(ms(5));
    queue.charge(ms(7));
    queue.charge(ms(6));
    queue.charge(ms(7));
    queue.charge(ms(8));
    assert_eq!(queue.ran(slots[0]), Ok(Span::millis(3)));
}

#[test]
fn a_cpu_has_so_many_and_no_more() {
    let mut queue = RunQueue::new(RoundRobin::new());
    for _ in 0..MAX_VCPUS {
        queue.insert((), Time(0)).unwrap();
    }
    assert_eq!(queue.insert((), Time(0)), Err(SchedError::Full));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a map, ordered by hand.
    #[test]
    fn a_heap_is_ordered(steps in proptest::collection::vec((0u16..12, 0u8..3, 0u32..20), 1..80)) {
        let mut heap = Heap::new();
        heap.reserve(12).unwrap();
        let mut model = BTreeMap::new();
        for (index, what, key) in steps {
            let slot = Slot(index);
            match what {
                0 if !heap.contains(slot) => {
                    heap.insert(slot, key);
                    model.insert(slot, key);
                }
                // Out with one of those that are there, whichever.
                1 if !heap.contains(slot) && !model.is_empty() => {
                    let out = *model.keys().nth(key as usize % model.len()).unwrap();
                    heap.replace(out, slot, key);
                    model.remove(&out);
                    model.insert(slot, key);
                }
                _ => {
                    heap.remove(slot);
                    model.remove(&slot);
                }
            }
            prop_assert_eq!(heap.contains(slot), model.contains_key(&slot));
            prop_assert_eq!(heap.first().map(|(key, _)| key), model.values().min().copied());
            prop_assert!(heap.first().is_none_or(|(key, slot)| model.get(&slot) == Some(&key)));
        }
    }

    #[test]
    fn a_ring_is_a_queue_whose_first_can_become_its_last(steps in proptest::collection::vec((0u16..6, 0u8..4), 1..60)) {
        let mut ring = Ring::new();
        ring.reserve(6).unwrap();
        let mut model = VecDeque::new();
        for (index, what) in steps {
            let slot = Slot(index);
            match what {
                0 | 1 if !ring.contains(slot) => {
                    ring.push_last(slot);
                    model.push_back(slot);
                }
                2 => {
                    ring.rotate();
                    if !model.is_empty() {
                        model.rotate_left(1);
                    }
                }
                _ => {
                    ring.remove(slot);
                    model.retain(|&other| other != slot);
                }
            }
            prop_assert_eq!(ring.first(), model.front().copied());
            prop_assert_eq!(ring.contains(slot), model.contains(&slot));
            prop_assert_eq!(ring.is_alone(), model.len() < 2);
        }
    }
}
