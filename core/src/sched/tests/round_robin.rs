//! Round robin, rule by rule.

use super::super::round_robin::{DEFAULT_SLICE, RoundRobin};
use super::*;

#[test]
fn all_have_their_turn_in_order() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), (), ()]);
    for round in 0..7 {
        let pick = queue.pick(ms(10 * round));
        assert_eq!(pick, Pick { next: Some(slots[round as usize % 3]), until: Some(ms(10 * round + 10)) });
    }
}

#[test]
fn a_turn_that_was_interrupted_goes_on() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), ()]);
    queue.pick(Time(0));
    assert_eq!(queue.pick(ms(4)), Pick { next: Some(slots[0]), until: Some(ms(10)) });
    assert_eq!(queue.pick(ms(10)).next, Some(slots[1]));
}

#[test]
fn who_wakes_goes_to_the_end() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), (), ()]);
    queue.pick(Time(0));
    let _ = queue.sleep(slots[1], ms(1));
    assert_eq!(queue.wake(slots[1], ms(2)), Repick::AsPlanned);
    assert_eq!(queue.pick(ms(10)).next, Some(slots[2]));
    assert_eq!(queue.pick(ms(20)).next, Some(slots[1]));
    assert_eq!(queue.pick(ms(30)).next, Some(slots[0]));
}

#[test]
fn two_that_wake_each_other_do_not_starve_a_third() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), (), ()]);
    let mut now = Time(0);
    let mut pick = queue.pick(now);
    let _ = queue.sleep(slots[1], now);
    for _ in 0..100 {
        now = now + Span::micros(50);
        match pick.next {
            Some(slot) if slot != slots[2] => {
                let _ = queue.wake(if slot == slots[0] { slots[1] } else { slots[0] }, now);
                let _ = queue.sleep(slot, now);
            }
            _ => now = now + DEFAULT_SLICE,
        }
        pick = queue.pick(now);
    }
    assert!(queue.ran(slots[2]).unwrap() > Span::millis(300));
}

#[test]
fn who_was_alone_for_a_slice_makes_way_for_who_wakes() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), ()]);
    let _ = queue.sleep(slots[1], Time(0));
    assert_eq!(queue.pick(Time(0)), Pick { next: Some(slots[0]), until: None }, "nobody to make way for");
    assert_eq!(queue.wake(slots[1], ms(4)), Repick::At(ms(10)), "the rest of its slice");
    let _ = queue.sleep(slots[1], ms(5));
    assert_eq!(queue.pick(ms(10)).next, Some(slots[0]));
    assert_eq!(queue.wake(slots[1], ms(100)), Repick::Now);
    assert_eq!(queue.pick(ms(100)).next, Some(slots[1]));
}

#[test]
fn who_yields_is_last_but_runs_on_if_there_is_no_other() {
    let (mut queue, slots) = queue_of(RoundRobin::new(), &[(), ()]);
    queue.pick(Time(0));
    assert_eq!(queue.pick_other(ms(1)).next, Some(slots[1]));
    assert_eq!(queue.pick_other(ms(2)), Pick { next: Some(slots[0]), until: Some(ms(12)) }, "a whole slice");
    let _ = queue.sleep(slots[1], ms(3));
    assert_eq!(queue.pick_other(ms(4)).next, Some(slots[0]));
}

#[test]
fn a_slice_is_of_some_length() {
    let (mut queue, _) = queue_of(RoundRobin::new(), &[(), ()]);
    assert_eq!(queue.control(Span::ZERO), Err(SchedError::TooShort));
    assert_eq!(queue.control(Span(SHORTEST.0 - 1)), Err(SchedError::TooShort));
    assert_eq!(queue.control(Span(u64::MAX)), Err(SchedError::TooLong));
    assert_eq!(queue.global(), DEFAULT_SLICE, "what was refused changed nothing");
    assert_eq!(queue.control(Span::seconds(5)), Ok(()), "2.0 kept 32 bits of it");
    assert_eq!(queue.pick(Time(0)).until, Some(ms(5000)));
}
