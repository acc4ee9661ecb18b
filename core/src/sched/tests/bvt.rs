//! Borrowed virtual time, rule by rule.

use super::super::bvt::{Bvt, DEFAULT_ALLOWANCE};
use super::*;

const ALLOWANCE: u64 = DEFAULT_ALLOWANCE.0 / MS;

#[test]
fn who_runs_may_lead_by_the_allowance() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(10)]);
    assert_eq!(queue.pick(Time(0)), Pick { next: Some(slots[0]), until: Some(ms(ALLOWANCE)) });
    // Now it leads by the allowance, which the other may spend beside its own.
    assert_eq!(queue.pick(ms(ALLOWANCE)), Pick { next: Some(slots[1]), until: Some(ms(3 * ALLOWANCE)) });
}

#[test]
fn a_lead_is_counted_in_the_runner_s_own_time() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(30), advance(10)]);
    queue.pick(Time(0));
    // 5 ms at 30 are 15 ms at 10.
    assert_eq!(queue.pick(ms(5)), Pick { next: Some(slots[1]), until: Some(ms(5 + 15 + 5)) });
}

#[test]
fn shares_are_the_inverse_of_the_advance() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(20), advance(40)]);
    let ran = run(&mut queue, &slots, ms(70_000));
    for (ran, share) in ran.iter().zip([40_000, 20_000, 10_000]) {
        assert!(ran.0.abs_diff(share * MS) < share * MS / 100, "{ran:?} of {share}");
    }
}

#[test]
fn any_advance_for_a_century_is_no_overflow() {
    let century = Time(100 * 365 * 24 * 3_600 * 1_000_000_000);
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(u32::MAX), advance(1)]);
    assert_eq!(queue.pick(Time(0)).next, Some(slots[0]));
    let pick = queue.pick(century);
    assert_eq!(pick.next, Some(slots[1]));
    assert!(pick.until.unwrap() > century);
    assert_eq!(queue.pick(Time(u64::MAX)).next, Some(slots[1]));
}

#[test]
fn sleep_earns_nothing() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(10)]);
    let _ = queue.sleep(slots[1], Time(0));
    queue.pick(Time(0));
    assert_eq!(queue.wake(slots[1], ms(60_000)), Repick::At(ms(60_000 + ALLOWANCE)), "as if both had just come");
    assert_eq!(queue.pick(ms(60_005)), Pick { next: Some(slots[1]), until: Some(ms(60_015)) });
}

#[test]
fn a_sleeper_keeps_its_lead() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(10)]);
    queue.pick(Time(0));
    let _ = queue.sleep(slots[0], ms(4));
    assert_eq!(queue.pick(ms(4)).next, Some(slots[1]));
    assert_eq!(queue.wake(slots[0], ms(5)), Repick::At(ms(5 + 3 + ALLOWANCE)), "4 ms against 1");
}

#[test]
fn who_wakes_behind_runs_at_once() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(10), advance(10)]);
    let _ = queue.sleep(slots[2], Time(0));
    queue.pick(Time(0));
    assert_eq!(queue.wake(slots[2], ms(2)), Repick::Now, "as far as the one that waits, behind the one that runs");
}

#[test]
fn a_new_one_begins_where_the_others_are() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10)]);
    queue.pick(Time(0));
    let new = queue.insert(advance(10), ms(1000)).unwrap();
    assert_eq!(queue.wake(new, ms(1000)), Repick::At(ms(1000 + ALLOWANCE)));
    assert_eq!(queue.running(), Some(slots[0]));
}

#[test]
fn who_yields_lets_another_run_whoever_is_least() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(1000)]);
    queue.pick(Time(0));
    queue.pick(ms(5));
    assert_eq!(queue.pick(ms(6)).next, Some(slots[0]), "the other is far ahead");
    assert_eq!(queue.pick_other(ms(7)).next, Some(slots[1]));
    assert_eq!(queue.pick_other(ms(8)).next, Some(slots[0]));
    let _ = queue.sleep(slots[1], ms(8));
    assert_eq!(queue.pick_other(ms(9)).next, Some(slots[0]), "there is no other");
}

#[test]
fn yielding_for_long_does_not_pile_up_a_claim() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(10)]);
    let mut now = Time(0);
    let mut pick = queue.pick(now);
    for _ in 0..1000 {
        now = if pick.next == Some(slots[0]) { now + Span::micros(1) } else { pick.until.unwrap() };
        pick = if pick.next == Some(slots[0]) { queue.pick_other(now) } else { queue.pick(now) };
    }
    while pick.next != Some(slots[0]) {
        pick = queue.pick(pick.until.unwrap());
        now = now.max(pick.until.unwrap());
    }
    assert!(pick.until.unwrap().since(now) <= Span::millis(2 * ALLOWANCE), "{pick:?} at {now:?}");
}

#[test]
fn who_warps_runs_first_and_pays_it_back() {
    let warper = warping(advance(10), 1000, Span::ZERO, Span::ZERO);
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), warper]);
    // 1000 units at an advance of 10 are 100 steps of 100 µs.
    assert_eq!(queue.pick(Time(0)), Pick { next: Some(slots[1]), until: Some(ms(10 + ALLOWANCE)) });
    let ran = run(&mut queue, &slots, ms(10_000));
    assert!(ran[0].0.abs_diff(ran[1].0) <= 20 * MS, "{ran:?}");
}

#[test]
fn a_negative_warp_holds_back() {
    let held = warping(advance(10), -1000, Span::ZERO, Span::ZERO);
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), held]);
    assert_eq!(queue.pick(Time(0)), Pick { next: Some(slots[0]), until: Some(ms(10 + ALLOWANCE)) });
}

#[test]
fn a_warp_ends_at_its_limit_and_comes_back_after_the_pause() {
    let warper = warping(advance(10), i32::MAX, Span::millis(3), Span::millis(50));
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), warper]);
    assert_eq!(queue.pick(Time(0)), Pick { next: Some(slots[1]), until: Some(ms(3)) });
    let mut pick = queue.pick(ms(3));
    assert_eq!(pick.next, Some(slots[0]), "it is ahead, and no longer warped");
    assert!(!queue.policy().is_warped(slots[1]));
    while let Some(until) = pick.until.filter(|&until| until < ms(53)) {
        pick = queue.pick(until);
    }
    assert_eq!(pick.until, Some(ms(53)));
    assert_eq!(queue.pick(ms(53)), Pick { next: Some(slots[1]), until: Some(ms(56)) });
}

#[test]
fn a_warp_limit_is_not_renewed_by_sleep() {
    let warper = warping(advance(10), i32::MAX, Span::millis(3), Span::millis(50));
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), warper]);
    for start in [0, 10, 20] {
        let _ = queue.wake(slots[1], ms(start));
        assert_eq!(queue.pick(ms(start)).next, Some(slots[1]));
        let _ = queue.sleep(slots[1], ms(start + 1));
        queue.pick(ms(start + 1));
    }
    assert!(!queue.policy().is_warped(slots[1]), "three times 1 ms");
    let _ = queue.wake(slots[1], ms(70));
    assert!(!queue.policy().is_warped(slots[1]), "its pause ends at 71 ms");
    let _ = queue.sleep(slots[1], ms(70));
    let _ = queue.wake(slots[1], ms(71));
    assert!(queue.policy().is_warped(slots[1]));
}

#[test]
fn without_a_pause_a_warp_ends_for_good() {
    let warper = warping(advance(10), i32::MAX, Span::millis(3), Span::ZERO);
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), warper]);
    queue.pick(Time(0));
    queue.pick(ms(3));
    let ran = run(&mut queue, &slots, ms(100_000));
    assert!(!queue.policy().is_warped(slots[1]));
    assert!(ran[0].0.abs_diff(ran[1].0) <= 20 * MS);
    assert_eq!(queue.adjust(slots[1], warper, ms(100_000)), Ok(Repick::Now));
    assert!(queue.policy().is_warped(slots[1]), "until it is set again");
}

#[test]
fn a_change_of_weight_counts_from_then_on() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), advance(10)]);
    let before = run(&mut queue, &slots, ms(10_000));
    assert_eq!(queue.adjust(slots[0], advance(30), ms(10_000)), Ok(Repick::Now));
    let mut pick = queue.pick(ms(10_000));
    while let Some(until) = pick.until.filter(|&until| until < ms(50_000)) {
        pick = queue.pick(until);
    }
    queue.charge(ms(50_000));
    let since = |n: usize| queue.ran(slots[n]).unwrap().0 - before[n].0;
    assert!((since(0) * 3).abs_diff(since(1)) < since(1) / 100, "{} {}", since(0), since(1));
}

#[test]
fn bad_parameters_are_refused_and_change_nothing() {
    let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10)]);
    let endless = warping(advance(20), 5, Span(u64::MAX), Span::ZERO);
    assert_eq!(queue.adjust(slots[0], endless, Time(0)), Err(SchedError::TooLong));
    assert_eq!(queue.insert(endless, Time(0)), Err(SchedError::TooLong));
    assert_eq!(queue.params(slots[0]), Ok(advance(10)));
    assert_eq!(queue.control(Span(SHORTEST.0 - 1)), Err(SchedError::TooShort));
    assert_eq!(queue.control(Span(1 << 32)), Err(SchedError::TooLong), "the interface has 32 bits");
    assert_eq!(queue.global(), DEFAULT_ALLOWANCE);
    assert_eq!(queue.control(Span::millis(1)), Ok(()));
    assert_eq!(queue.global(), Span::millis(1));
}
