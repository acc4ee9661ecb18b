//! Any calls at all, in any order: what a run queue promises whatever its policy.

use super::random::cases;
use super::random_atropos::reservation;
use super::*;
use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(Params),
    Remove(usize),
    Wake(usize),
    Sleep(usize),
    Pick,
    Yield,
    Adjust(usize, Params),
    Control(Global),
}

fn any_params() -> impl Strategy<Value = Params> {
    let length = || select(vec![0, 1, SHORTEST.0 - 1, SHORTEST.0, 100_000, MS, 100 * MS, 1 << 40, 1 << 63, u64::MAX]);
    let bvt =
        (1u32.., any::<bool>(), any::<i32>(), length(), length()).prop_map(|(weight, warps, warp, limit, pause)| {
            let params = warping(advance(weight), warp, Span(limit), Span(pause));
            BvtParams { warping: if warps { Warping::On } else { Warping::Off }, ..params }
        });
    let atropos = (length(), length(), length(), any::<bool>()).prop_map(|(period, slice, latency, extra)| {
        let extra = if extra { ExtraTime::Yes } else { ExtraTime::No };
        AtroposParams { period: Span(period), slice: Span(slice), latency: Span(latency), extra }
    });
    prop_oneof![
        4 => bvt.prop_map(Params::Bvt),
        4 => atropos.prop_map(Params::Atropos),
        2 => reservation().prop_map(Params::Atropos),
        1 => Just(Params::RoundRobin),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let length = select(vec![0, 1, SHORTEST.0, MS, u64::from(u32::MAX), 1 << 33, u64::MAX]).prop_map(Span);
    prop_oneof![
        3 => any_params().prop_map(Step::Insert),
        1 => (0usize..8).prop_map(Step::Remove),
        4 => (0usize..8).prop_map(Step::Wake),
        3 => (0usize..8).prop_map(Step::Sleep),
        4 => Just(Step::Pick),
        2 => Just(Step::Yield),
        2 => (0usize..8, any_params()).prop_map(|(slot, params)| Step::Adjust(slot, params)),
        1 => (length, any::<bool>()).prop_map(|(length, bvt)| {
            Step::Control(if bvt { Global::Bvt(length) } else { Global::RoundRobin(length) })
        }),
    ]
}

proptest! {
    #![proptest_config(cases(800))]

    /// Any calls, with any parameters, at any times: only the ready are picked, all of the time is somebody's, and
    /// what is refused changes nothing.
    #[test]
    fn any_calls_keep_the_books(
        id in select(vec![SchedulerId::Bvt, SchedulerId::RoundRobin, SchedulerId::Atropos]),
        steps in list((step(), select(vec![0, 1, 999, 100_000, MS, 30 * MS, 1 << 42])), 1..120),
    ) {
        let mut queue = RunQueue::new(Chosen::new(id));
        let mut known: Vec<(Slot, Params, bool)> = Vec::new();
        let (mut now, mut busy, mut gone, mut running, mut slept) = (Time(0), 0, 0, None, false);
        for (step, later) in steps {
            now = now + Span(later);
            busy += running.map_or(0, |_| later);
            let one = |n: usize| known.get(n).map(|&(slot, ..)| (n, slot));
            match step {
                Step::Insert(params) if known.len() < 8 => {
                    let (promised, global) = (queue.policy().promised(), queue.global());
                    match queue.insert(params, now) {
                        Ok(slot) => known.push((slot, params, false)),
                        Err(_) => prop_assert_eq!((queue.policy().promised(), queue.global()), (promised, global)),
                    }
                }
                Step::Remove(n) => if let Some((n, slot)) = one(n) {
                    queue.charge(now);
                    let ran = queue.ran(slot).unwrap().0;
                    let removed = queue.remove(slot);
                    prop_assert_eq!(removed.is_err(), running == Some(slot));
                    if removed.is_ok() {
                        gone += ran;
                        known.remove(n);
                    }
                },
                Step::Wake(n) => if let Some((n, slot)) = one(n) {
                    let repick = queue.wake(slot, now);
                    if let Repick::At(at) = repick {
                        prop_assert!(at > now);
                    }
                    known[n].2 = true;
                },
                Step::Sleep(n) => if let Some((n, slot)) = one(n) {
                    let repick = queue.sleep(slot, now);
                    prop_assert_eq!(repick == Repick::Now, known[n].2 && running == Some(slot));
                    known[n].2 = false;
                    slept |= running == Some(slot);
                },
                Step::Adjust(n, params) => if let Some((n, slot)) = one(n) {
                    let promised = queue.policy().promised();
                    match queue.adjust(slot, params, now) {
                        Ok(_) => known[n].1 = params,
                        Err(_) => prop_assert_eq!(queue.policy().promised(), promised),
                    }
                },
                Step::Control(global) => {
                    let before = queue.global();
                    let expected = if queue.control(global).is_ok() { global } else { before };
                    prop_assert_eq!(queue.global(), expected);
                }
                Step::Pick | Step::Yield => {
                    let pick = if matches!(step, Step::Pick) { queue.pick(now) } else { queue.pick_other(now) };
                    let ready = || known.iter().filter(|&&(_, _, ready)| ready);
                    match pick.next {
                        Some(next) => prop_assert!(ready().any(|&(slot, ..)| slot == next)),
                        None => for (_, params, _) in ready() {
                            // Only who takes no extra time can be ready and not run.
                            prop_assert!(
                                matches!(params, Params::Atropos(params) if params.extra == ExtraTime::No),
                                "{params:?} waits for nothing"
                            );
                        },
                    }
                    // Who has slept since has no turn to give up.
                    let gives_up = matches!(step, Step::Yield) && !core::mem::take(&mut slept);
                    if gives_up && ready().count() > 1 && !matches!(id, SchedulerId::Atropos) {
                        prop_assert!(running.is_none() || pick.next != running, "it yielded to itself");
                    }
                    prop_assert!(pick.until.is_none_or(|until| until > now));
                    (running, slept) = (pick.next, false);
                }
                Step::Insert(_) => {}
            }
            queue.charge(now);
            for &(slot, params, _) in &known {
                prop_assert_eq!(queue.params(slot), Ok(params));
            }
            let ran: u64 = known.iter().map(|&(slot, ..)| queue.ran(slot).unwrap().0).sum();
            prop_assert_eq!(ran + gone, busy);
        }
    }
}
