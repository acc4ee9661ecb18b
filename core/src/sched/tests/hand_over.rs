//! The short way of a yield is the long one: a queue that takes it where it can, beside one that never does.

use super::random::cases;
use super::*;
use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Clone, Copy, Debug)]
enum Step {
    Wake(usize),
    Sleep(usize),
    Adjust(usize, BvtParams),
    Pick,
    Yield,
}

/// Mostly of those who do not warp; some do for a while, some hold back.
fn params() -> impl Strategy<Value = BvtParams> {
    let weight = prop_oneof![4 => 1u32..=20, 1 => select(vec![1000, u32::MAX])];
    let warp = (-50i32..500, 0u64..20, 0u64..20);
    (weight, 0..8, warp).prop_map(|(weight, kind, (warp, limit, pause))| match kind {
        0 => warping(advance(weight), warp, Span::millis(limit), Span::millis(pause)),
        _ => advance(weight),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..6).prop_map(Step::Wake),
        1 => (0usize..6).prop_map(Step::Sleep),
        1 => (0usize..6, params()).prop_map(|(slot, params)| Step::Adjust(slot, params)),
        2 => Just(Step::Pick),
        8 => Just(Step::Yield),
    ]
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn a_turn_that_is_handed_over_is_one_that_is_picked(
        all in list(params(), 1..6),
        steps in list((step(), select(vec![0, 1, 450, 100_000, MS, 30 * MS, 1 << 42])), 1..150),
    ) {
        let wrapped: Vec<Params> = all.iter().map(|&of| Params::Bvt(of)).collect();
        let (mut short, slots) = queue_of(Chosen::new(SchedulerId::Bvt), &wrapped);
        let (mut long, _) = queue_of(Chosen::new(SchedulerId::Bvt), &wrapped);
        let mut ready = vec![true; all.len()];
        let mut warps: Vec<bool> = all.iter().map(|of| of.warping == Warping::On).collect();
        let (mut now, mut slept) = (Time(0), false);
        for (step, later) in steps {
            now = now + Span(later);
            match step {
                Step::Wake(n) => if let Some(&slot) = slots.get(n) {
                    prop_assert_eq!(short.wake(slot, now), long.wake(slot, now));
                    ready[n] = true;
                },
                Step::Sleep(n) => if let Some(&slot) = slots.get(n) {
                    prop_assert_eq!(short.sleep(slot, now), long.sleep(slot, now));
                    ready[n] = false;
                    slept |= long.running() == Some(slot);
                },
                Step::Adjust(n, params) => if let Some(&slot) = slots.get(n) {
                    let params = Params::Bvt(params);
                    prop_assert_eq!(short.adjust(slot, params, now), long.adjust(slot, params, now));
                    warps[n] = matches!(params, Params::Bvt(of) if of.warping == Warping::On);
                },
                Step::Pick => {
                    prop_assert_eq!(short.pick(now), long.pick(now));
                    slept = false;
                }
                Step::Yield => {
                    let running = long.running().and_then(|slot| slots.iter().position(|&one| one == slot));
                    let handed = short.hand_over(now);
                    let picked = long.pick_other(now);
                    match handed {
                        Some(HandOver { to, until, .. }) => {
                            prop_assert_eq!(Pick { next: Some(to), until: Some(until) }, picked);
                        }
                        None => prop_assert_eq!(short.pick_other(now), picked),
                    }
                    // Nothing else is in the way of it.
                    let is_plain = !core::mem::take(&mut slept)
                        && running.is_some_and(|n| ready[n])
                        && ready.iter().filter(|&&ready| ready).count() > 1
                        && !warps.iter().any(|&warps| warps);
                    prop_assert!(handed.is_some() || !is_plain, "there is a short way");
                }
            }
            prop_assert_eq!(short.running(), long.running());
            prop_assert_eq!(short.ready(), long.ready());
            for &slot in &slots {
                prop_assert_eq!(short.ran(slot), long.ran(slot));
            }
        }
    }
}
