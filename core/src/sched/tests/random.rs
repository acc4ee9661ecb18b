//! Borrowed virtual time and round robin on random loads: shares, waits, warp.
//!
//! The bounds are worked out from the loads, not measured: each is said where it is checked.

use super::super::bvt::Bvt;
use super::*;
use proptest::collection::vec as list;
use proptest::prelude::*;

pub(super) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

pub(super) fn affinity(cpus: u16) -> impl Strategy<Value = Affinity> {
    prop_oneof![
        2 => Just(Affinity::Any),
        1 => (0..cpus).prop_map(|cpu| Affinity::Pinned(CpuId(cpu))),
    ]
}

/// Runs of up to 3 ms, sleeps of up to 20.
pub(super) fn bursts() -> impl Strategy<Value = Behaviour> {
    (1u64..3000, 1u64..20_000).prop_map(|(run, sleep)| Behaviour::Bursts {
        run: (Span::micros(1), Span::micros(run)),
        sleep: (Span::micros(1), Span::micros(sleep)),
    })
}

/// A load that comes and goes within so many milliseconds, and does not only compute.
fn passing(params: Params, cpus: u16, span: u64) -> impl Strategy<Value = Load> {
    let behaviour = prop_oneof![
        4 => bursts(),
        1 => (100u64..3000).prop_map(|after| Behaviour::Yields(Span::micros(after))),
        1 => Just(Behaviour::Spins),
    ];
    let life = (0..span, 1..span, any::<bool>());
    (behaviour, affinity(cpus), life, any::<u64>()).prop_map(
        move |(behaviour, affinity, (from, length, leaves), seed)| Load {
            behaviour,
            affinity,
            arrives: ms(from),
            leaves: leaves.then(|| ms(from + length)),
            seed,
            ..Load::spinning(params)
        },
    )
}

/// The first loads compute all the time, the others come and go.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    pub cpus: u16,
    pub lateness: Span,
    pub spinning: usize,
    pub loads: Vec<Load>,
}

pub(super) fn machine(scheduler: SchedulerId, mix: &Mix) -> Machine {
    Machine { scheduler, cpus: mix.cpus, lateness: mix.lateness }
}

/// Of the loads that were placed on each CPU.
pub(super) fn on_each_cpu<'a>(
    mix: &'a Mix,
    outcomes: &'a [Outcome],
) -> impl Iterator<Item = Vec<(&'a Load, &'a Outcome, bool)>> {
    (0..mix.cpus).map(move |cpu| {
        let all = mix.loads.iter().zip(outcomes).enumerate();
        all.filter(|(_, (_, outcome))| outcome.cpu == Some(CpuId(cpu)))
            .map(|(n, (load, outcome))| (load, outcome, n < mix.spinning))
            .collect()
    })
}

fn bvt_params() -> impl Strategy<Value = BvtParams> {
    let warp = (any::<bool>(), 0i32..500, 0u64..20, 0u64..100);
    (1u32..=20, warp).prop_map(|(weight, (warps, warp, limit, pause))| match warps {
        false => advance(weight),
        true => warping(advance(weight), warp, Span::millis(limit), Span::millis(pause)),
    })
}

fn bvt_of(load: &Load) -> BvtParams {
    match load.params {
        Params::Bvt(params) => params,
        _ => unreachable!("all are borrowed virtual time's"),
    }
}

fn bvt_mix() -> impl Strategy<Value = Mix> {
    (1u16..=4, 0u64..20).prop_flat_map(|(cpus, lateness)| {
        let spinning = (bvt_params(), affinity(cpus))
            .prop_map(|(params, affinity)| Load { affinity, ..Load::spinning(Params::Bvt(params)) });
        let passing = bvt_params().prop_flat_map(move |params| passing(Params::Bvt(params), cpus, 2000));
        (list(spinning, 2..=5), list(passing, 0..=3)).prop_map(move |(spinning, passing)| Mix {
            cpus,
            lateness: Span::micros(lateness),
            spinning: spinning.len(),
            loads: spinning.into_iter().chain(passing).collect(),
        })
    })
}

/// How far, in virtual time of an advance of 1, anyone can be ahead of the scheduler: the allowance and the lateness at
/// the greatest advance, twice if it had that lead from a yield, and the greatest warp.
fn greatest_lead(mix: &Mix) -> u64 {
    let params = || mix.loads.iter().map(bvt_of);
    let greatest = params().map(|params| u64::from(params.advance.get())).max().unwrap();
    let warp = params().map(|params| u64::from(params.warp.unsigned_abs())).max().unwrap();
    2 * greatest * (5 * MS + mix.lateness.0) + warp * 100_000
}

proptest! {
    #![proptest_config(cases(1000))]

    /// The error of a share is at most a lead; so those who have all run for a hundred times two leads are within 1 %.
    #[test]
    fn bvt_shares_follow_weights_and_nobody_starves(mix in bvt_mix()) {
        let lead = greatest_lead(&mix);
        let horizon: u64 = mix.loads.iter().map(|load| 220 * lead / u64::from(bvt_of(load).advance.get())).sum();
        let outcomes = machine(SchedulerId::Bvt, &mix).run(&mix.loads, Time(horizon), |_| {});
        for cpu in on_each_cpu(&mix, &outcomes) {
            let runs = |&(load, outcome, spins): &(&Load, &Outcome, bool)| {
                spins.then(|| u128::from(outcome.ran.0) * u128::from(bvt_of(load).advance.get()))
            };
            let virtual_times: Vec<u128> = cpu.iter().filter_map(runs).collect();
            if let (Some(least), Some(most)) = (virtual_times.iter().min(), virtual_times.iter().max()) {
                prop_assert!((most - least) * 100 <= *most, "{:?}", virtual_times);
            }
            // While one waits, each other uses up what it is behind, the allowance, and is stopped too late.
            for (load, outcome, _) in &cpu {
                let others = cpu.iter().filter(|(other, ..)| !core::ptr::eq(*other, *load));
                let bound: u64 = others
                    .map(|(other, ..)| 2 * lead / u64::from(bvt_of(other).advance.get()) + 5 * MS + mix.lateness.0)
                    .sum();
                prop_assert!(outcome.longest_wait.0 <= bound, "{:?} of {bound}: {:?}", outcome.longest_wait, load);
            }
        }
    }

    /// From the last change on.
    #[test]
    fn bvt_shares_follow_weights_that_change(
        weights in list((1u32..=20, list((1u64..3000, 1u32..=20), 0..4)), 2..5),
    ) {
        let loads: Vec<Load> = weights.iter().map(|(weight, changes)| {
            let mut changes: Vec<_> =
                changes.iter().map(|&(at, weight)| (ms(at), Params::Bvt(advance(weight)))).collect();
            changes.sort_by_key(|&(at, _)| at);
            Load { changes, ..Load::spinning(Params::Bvt(advance(*weight))) }
        }).collect();
        let last = |load: &Load| match load.changes.last().map_or(load.params, |&(_, params)| params) {
            Params::Bvt(params) => u64::from(params.advance.get()),
            _ => unreachable!(),
        };
        let lead = 20 * 5 * MS;
        let horizon: u64 = loads.iter().map(|load| 220 * lead / last(load)).sum();
        let mut ran = vec![0; loads.len()];
        let machine = Machine { scheduler: SchedulerId::Bvt, cpus: 1, lateness: Span::ZERO };
        machine.run(&loads, ms(3000) + Span(horizon), |run| {
            ran[run.load] += run.to.since(run.from.max(ms(3000))).0;
        });
        let virtual_times: Vec<u64> = loads.iter().zip(&ran).map(|(load, ran)| ran * last(load)).collect();
        let (least, most) = (virtual_times.iter().min().unwrap(), virtual_times.iter().max().unwrap());
        prop_assert!((most - least) * 100 <= *most, "{virtual_times:?}");
    }

    /// Warped time between two pauses is at most the limit, and the pause is kept, however it sleeps and wakes.
    #[test]
    fn bvt_warp_keeps_to_its_limits(
        limit in 1u64..20, pause in 1u64..50, warp in 0i32..10_000,
        steps in list((1u64..4000, 0u8..4), 1..400),
    ) {
        let (limit, pause) = (Span::millis(limit), Span::millis(pause));
        let params = warping(advance(10), warp, limit, pause);
        let (mut queue, slots) = queue_of(Bvt::new(), &[advance(10), params]);
        let warper = slots[1];
        let (mut now, mut used, mut ended) = (Time(0), Span::ZERO, None::<Time>);
        let mut pick = queue.pick(now);
        for (step, what) in steps {
            // Up to where the CPU would pick by itself; so it is never late.
            let before = queue.ran(warper).unwrap();
            let was_warped = queue.policy().is_warped(warper);
            now = pick.until.unwrap_or(Time(u64::MAX)).min(now + Span::micros(step));
            queue.charge(now);
            if was_warped {
                used = used + queue.ran(warper).unwrap().less(before);
            }
            match what {
                0 => drop(queue.sleep(warper, now)),
                1 => drop(queue.wake(warper, now)),
                _ => {}
            }
            pick = queue.pick(now);
            match (was_warped, queue.policy().is_warped(warper)) {
                (true, false) => {
                    prop_assert_eq!(used, limit);
                    ended = Some(now);
                }
                (true, true) => prop_assert!(used < limit),
                (false, true) => {
                    prop_assert!(ended.is_some_and(|ended| now.since(ended) >= pause));
                    used = Span::ZERO;
                }
                (false, false) => {}
            }
        }
    }

    /// A device's domain that has had its share waits less if it warps.
    #[test]
    fn bvt_warp_shortens_the_wait_of_who_wakes(spinning in 1usize..5, run in 200u64..2000, seed: u64) {
        let wakes = |params: BvtParams| {
            let mut loads = vec![Load::spinning(Params::Bvt(advance(10))); spinning];
            let sleep = run / 2;
            loads.push(Load {
                behaviour: Behaviour::Bursts {
                    run: (Span::micros(run / 2), Span::micros(run)),
                    sleep: (Span::micros(sleep / 2), Span::micros(sleep)),
                },
                seed,
                ..Load::spinning(Params::Bvt(params))
            });
            let machine = Machine { scheduler: SchedulerId::Bvt, cpus: 1, lateness: Span::ZERO };
            let mut outcomes = machine.run(&loads, ms(2000), |_| {});
            let latencies = outcomes.pop().unwrap().latencies;
            latencies.iter().map(|latency| latency.0).sum::<u64>() / latencies.len() as u64
        };
        let plain = wakes(advance(10));
        // It asks for more than its share, so it lags further and further behind: the loan must cover that.
        let warped = wakes(warping(advance(10), i32::MAX, Span::ZERO, Span::ZERO));
        prop_assert_eq!(warped, 0, "it runs whenever it wakes");
        prop_assert!(plain > 100_000, "{plain}");
    }

    /// Among n, a wait is n - 1 slices at most, each stopped too late; so shares differ by a slice or so.
    #[test]
    fn round_robin_is_fair(
        mix in (1u16..=4, 0u64..20).prop_flat_map(|(cpus, lateness)| {
            let spinning = affinity(cpus).prop_map(|affinity| Load { affinity, ..Load::spinning(Params::RoundRobin) });
            (list(spinning, 2..=6), list(passing(Params::RoundRobin, cpus, 2000), 0..=4)).prop_map(
                move |(spinning, passing)| Mix {
                    cpus,
                    lateness: Span::micros(lateness),
                    spinning: spinning.len(),
                    loads: spinning.into_iter().chain(passing).collect(),
                },
            )
        }),
    ) {
        let slice = 10 * MS + mix.lateness.0;
        let outcomes = machine(SchedulerId::RoundRobin, &mix).run(&mix.loads, Time(250 * slice * 10), |_| {});
        for cpu in on_each_cpu(&mix, &outcomes) {
            let spinning: Vec<u64> = cpu.iter().filter(|&&(.., spins)| spins).map(|(_, out, _)| out.ran.0).collect();
            if let (Some(least), Some(most)) = (spinning.iter().min(), spinning.iter().max()) {
                prop_assert!((most - least) * 100 <= *most, "{spinning:?}");
            }
            for (load, outcome, _) in &cpu {
                let bound = (cpu.len() as u64 - 1) * slice;
                prop_assert!(outcome.longest_wait.0 <= bound, "{:?} of {bound}: {load:?}", outcome.longest_wait);
            }
        }
    }
}
