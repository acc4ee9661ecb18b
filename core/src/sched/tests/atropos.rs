//! Atropos, rule by rule.

use super::super::Share;
use super::super::atropos::{Atropos, EXTRA_TURN};
use super::*;

const NONE: AtroposParams = AtroposParams::BEST_EFFORT;

#[test]
fn the_earliest_deadline_runs_first_for_its_slice() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(10, 50, ExtraTime::No), reserve(5, 20, ExtraTime::No)]);
    assert_eq!(queue.pick(Time(0)), Pick { next: Some(slots[1]), until: Some(ms(5)) });
    assert_eq!(queue.pick(ms(5)), Pick { next: Some(slots[0]), until: Some(ms(15)) });
    assert_eq!(queue.pick(ms(15)), Pick { next: None, until: Some(ms(20)) }, "neither takes extra time");
    assert_eq!(queue.pick(ms(20)), Pick { next: Some(slots[1]), until: Some(ms(25)) });
    assert_eq!(queue.pick(ms(25)).until, Some(ms(40)));
}

#[test]
fn extra_time_goes_round_and_costs_no_slice() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(5, 20, ExtraTime::Yes), NONE]);
    let ran = run(&mut queue, &slots, ms(20_000));
    // 5 of 20 are reserved; the other 15 are shared.
    assert!(ran[0].0.abs_diff(12_500 * MS) < 125 * MS, "{ran:?}");
    assert!(ran[1].0.abs_diff(7_500 * MS) < 75 * MS, "{ran:?}");
}

#[test]
fn a_turn_of_extra_time_that_was_interrupted_goes_on() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(5, 8, ExtraTime::No), NONE, NONE]);
    assert_eq!(queue.pick(ms(0)).until, Some(ms(5)));
    assert_eq!(queue.pick(ms(5)), Pick { next: Some(slots[1]), until: Some(ms(8)) });
    assert_eq!(queue.pick(ms(8)).next, Some(slots[0]));
    assert_eq!(
        queue.pick(ms(13)),
        Pick { next: Some(slots[1]), until: Some(ms(13) + EXTRA_TURN.less(Span::millis(3))) }
    );
    assert_eq!(queue.pick(ms(15)), Pick { next: Some(slots[2]), until: Some(ms(16)) });
}

#[test]
fn a_period_begins_at_the_end_of_the_last_however_late_the_cpu_looks() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(5, 20, ExtraTime::No)]);
    queue.pick(Time(0));
    queue.pick(ms(5));
    assert_eq!(queue.pick(ms(22)), Pick { next: Some(slots[0]), until: Some(ms(27)) });
    assert_eq!(queue.policy().deadline(slots[0]), ms(40));
    queue.pick(ms(27));
    // Whole periods that nobody looked at are gone.
    assert_eq!(queue.pick(ms(1003)), Pick { next: Some(slots[0]), until: Some(ms(1008)) });
    assert_eq!(queue.policy().deadline(slots[0]), ms(1023));
}

#[test]
fn a_slice_that_was_too_long_is_taken_off_the_next() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(5, 20, ExtraTime::No)]);
    queue.pick(Time(0));
    assert_eq!(queue.pick(ms(7)).next, None);
    assert_eq!(queue.pick(ms(20)), Pick { next: Some(slots[0]), until: Some(ms(23)) });
    queue.pick(ms(40 - 1));
    assert_eq!(queue.pick(ms(40)), Pick { next: None, until: Some(ms(60)) }, "it had 16 ms too many");
    assert_eq!(queue.pick(ms(60)).until, Some(ms(65)), "but owes no more than one slice");
}

#[test]
fn who_wakes_in_a_later_period_begins_with_its_latency() {
    let params = AtroposParams { latency: Span::millis(10), ..reserve(10, 40, ExtraTime::No) };
    let (mut queue, slots) = queue_of(Atropos::new(), &[params, reserve(50, 100, ExtraTime::No)]);
    let _ = queue.sleep(slots[0], Time(0));
    assert_eq!(queue.pick(Time(0)).next, Some(slots[1]));
    assert_eq!(queue.wake(slots[0], ms(45)), Repick::Now, "its deadline is in 10 ms");
    assert_eq!(queue.pick(ms(45)), Pick { next: Some(slots[0]), until: Some(Time(47_500_000)) }, "a quarter of both");
    queue.pick(Time(47_500_000));
    assert_eq!(queue.pick(ms(55)), Pick { next: Some(slots[0]), until: Some(ms(60)) }, "then half");
    assert_eq!(queue.policy().deadline(slots[0]), ms(75));
    queue.pick(ms(60));
    assert_eq!(queue.pick(ms(75)).until, Some(ms(85)), "then all");
    assert_eq!(queue.policy().deadline(slots[0]), ms(115));
}

#[test]
fn who_wakes_early_keeps_what_is_left_if_it_was_fast() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(10, 40, ExtraTime::No)]);
    queue.pick(Time(0));
    let _ = queue.sleep(slots[0], ms(8));
    queue.pick(ms(8));
    let _ = queue.wake(slots[0], ms(10));
    assert_eq!(queue.pick(ms(10)), Pick { next: Some(slots[0]), until: Some(ms(12)) });
    assert_eq!(queue.pick(ms(12)), Pick { next: None, until: Some(ms(40)) });
}

#[test]
fn who_wakes_early_begins_anew_if_it_was_slow() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(10, 40, ExtraTime::No)]);
    queue.pick(Time(0));
    let _ = queue.sleep(slots[0], ms(2));
    queue.pick(ms(2));
    let _ = queue.wake(slots[0], ms(30));
    assert_eq!(queue.pick(ms(30)), Pick { next: Some(slots[0]), until: Some(ms(40)) }, "a whole slice");
    assert_eq!(queue.policy().deadline(slots[0]), ms(70));
}

#[test]
fn waking_often_earns_no_more_than_the_reservation() {
    let params = AtroposParams { latency: Span::millis(2), ..reserve(10, 40, ExtraTime::No) };
    let (mut queue, slots) = queue_of(Atropos::new(), &[params, NONE]);
    let mut now = Time(0);
    while now < ms(10_000) {
        let pick = queue.pick(now);
        let end = now + Span::micros(200);
        if pick.next == Some(slots[0]) {
            let _ = queue.sleep(slots[0], end);
            let _ = queue.wake(slots[0], end);
        }
        now = end;
    }
    let ran = queue.ran(slots[0]).unwrap();
    assert!(ran <= Span::millis(2_510), "{ran:?} of 2500 ms");
}

#[test]
fn who_yields_has_done_with_its_period() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(10, 40, ExtraTime::Yes), NONE]);
    queue.pick(Time(0));
    assert_eq!(queue.pick_other(ms(1)).next, Some(slots[1]));
    assert_eq!(queue.pick_other(ms(2)).next, Some(slots[0]), "in extra time");
    assert_eq!(queue.pick_other(ms(3)).next, Some(slots[1]));
    assert_eq!(queue.pick(ms(40)), Pick { next: Some(slots[0]), until: Some(ms(50)) });
}

#[test]
fn a_waker_with_no_right_to_the_cpu_changes_no_plan() {
    let (mut queue, slots) =
        queue_of(Atropos::new(), &[reserve(30, 40, ExtraTime::No), reserve(5, 50, ExtraTime::No), NONE]);
    let _ = queue.sleep(slots[1], Time(0));
    let _ = queue.sleep(slots[2], Time(0));
    queue.pick(Time(0));
    assert_eq!(queue.wake(slots[1], ms(1)), Repick::AsPlanned, "its deadline is later");
    assert_eq!(queue.wake(slots[2], ms(1)), Repick::AsPlanned, "there is no extra time");
    assert_eq!(queue.pick(ms(30)).next, Some(slots[1]));
    assert_eq!(queue.pick(ms(35)).next, Some(slots[2]));
}

#[test]
fn who_has_extra_time_to_itself_makes_way() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[NONE, NONE, reserve(5, 100, ExtraTime::No)]);
    let _ = queue.sleep(slots[1], Time(0));
    let _ = queue.sleep(slots[2], Time(0));
    assert_eq!(queue.pick(Time(0)), Pick { next: Some(slots[0]), until: None });
    assert_eq!(queue.wake(slots[1], ms(2)), Repick::At(ms(5)));
    assert_eq!(queue.wake(slots[2], ms(3)), Repick::Now, "it has a reservation");
}

#[test]
fn no_more_is_reserved_than_there_is() {
    let mut queue = RunQueue::new(Atropos::new());
    let first = queue.insert(reserve(50, 100, ExtraTime::No), Time(0)).unwrap();
    assert_eq!(queue.insert(reserve(46, 100, ExtraTime::Yes), Time(0)), Err(SchedError::Overcommitted));
    let second = queue.insert(reserve(44, 100, ExtraTime::Yes), Time(0)).unwrap();
    assert_eq!(queue.adjust(first, reserve(52, 100, ExtraTime::No), Time(0)), Err(SchedError::Overcommitted));
    assert_eq!(queue.params(first), Ok(reserve(50, 100, ExtraTime::No)), "what was refused changed nothing");
    assert_eq!(queue.adjust(first, reserve(10, 100, ExtraTime::No), Time(0)), Ok(Repick::AsPlanned));
    assert_eq!(queue.adjust(second, reserve(84, 100, ExtraTime::No), Time(0)), Ok(Repick::AsPlanned));
    queue.remove(second).unwrap();
    queue.remove(first).unwrap();
    assert_eq!(queue.policy().promised(), Share(0));
    assert!(queue.insert(AtroposParams::DOMAIN0, Time(0)).is_ok());
    assert!(queue.insert(AtroposParams::BEST_EFFORT, Time(0)).is_ok());
}

#[test]
fn bad_parameters_are_refused() {
    let good = reserve(10, 100, ExtraTime::No);
    let mut queue = RunQueue::new(Atropos::new());
    let mut refused = |params: AtroposParams| queue.insert(params, Time(0)).unwrap_err();
    assert_eq!(refused(AtroposParams { slice: Span::millis(101), ..good }), SchedError::SliceAbovePeriod);
    assert_eq!(refused(AtroposParams { slice: Span::ZERO, ..good }), SchedError::NeverRuns);
    assert_eq!(refused(AtroposParams { slice: Span(SHORTEST.0 - 1), ..good }), SchedError::TooShort);
    assert_eq!(refused(AtroposParams { latency: Span::ZERO, ..good }), SchedError::TooShort);
    let nothing = AtroposParams { period: Span::ZERO, slice: Span::ZERO, latency: Span::ZERO, ..good };
    assert_eq!(refused(nothing), SchedError::TooShort);
    assert_eq!(refused(AtroposParams { period: Span(u64::MAX), ..good }), SchedError::TooLong);
    assert_eq!(refused(AtroposParams { latency: Span(u64::MAX), ..good }), SchedError::LatencyAbovePeriod);
    let thin = AtroposParams { period: Span::seconds(1000), latency: SHORTEST, ..good };
    assert_eq!(refused(thin), SchedError::TooShort, "10 µs of a hundred-thousandth");
    assert!(queue.insert(good, Time(0)).is_ok());
}

#[test]
fn a_change_begins_a_new_period() {
    let (mut queue, slots) = queue_of(Atropos::new(), &[reserve(10, 10_000, ExtraTime::No), NONE]);
    queue.pick(Time(0));
    queue.pick(ms(10));
    assert_eq!(queue.adjust(slots[0], reserve(5, 20, ExtraTime::No), ms(30)), Ok(Repick::Now));
    assert_eq!(queue.pick(ms(30)), Pick { next: Some(slots[0]), until: Some(ms(35)) });
    assert_eq!(queue.adjust(slots[0], NONE, ms(32)), Ok(Repick::Now));
    assert_eq!(queue.policy().promised(), Share(0));
    assert_eq!(queue.pick(ms(32)).next, Some(slots[1]));
}
