//! Atropos on random loads: its promises.

use super::random::{Mix, affinity, bursts, cases, machine, on_each_cpu};
use super::*;
use proptest::collection::vec as list;
use proptest::prelude::*;

pub(super) fn reservation() -> impl Strategy<Value = AtroposParams> {
    (1u64..100, 1u64..=100, 1u64..150, any::<bool>()).prop_map(|(period, percent, latency, extra)| AtroposParams {
        period: Span::millis(period),
        slice: Span(period * MS * percent / 200).max(SHORTEST),
        latency: Span::millis(latency.min(period)),
        extra: if extra { ExtraTime::Yes } else { ExtraTime::No },
    })
}

/// Those that compute have a reservation, or take what is left.
fn atropos_mix() -> impl Strategy<Value = Mix> {
    (1u16..=3).prop_flat_map(|cpus| {
        let params =
            || prop_oneof![3 => reservation(), 1 => Just(AtroposParams::BEST_EFFORT)].prop_map(Params::Atropos);
        let spinning = (params(), affinity(cpus), 0u64..100).prop_map(|(params, affinity, from)| Load {
            affinity,
            arrives: Time(from * 777_777),
            ..Load::spinning(params)
        });
        let waking =
            (params(), affinity(cpus), bursts(), any::<u64>()).prop_map(|(params, affinity, behaviour, seed)| Load {
                affinity,
                behaviour,
                seed,
                ..Load::spinning(params)
            });
        (list(spinning, 2..=5), list(waking, 0..=4)).prop_map(move |(spinning, waking)| Mix {
            cpus,
            lateness: Span::ZERO,
            spinning: spinning.len(),
            loads: spinning.into_iter().chain(waking).collect(),
        })
    })
}

fn atropos_of(load: &Load) -> AtroposParams {
    match load.params {
        Params::Atropos(params) => params,
        _ => unreachable!("all are Atropos's"),
    }
}

/// The periods of one that never sleeps, and the slice of each: the first as its latency says, then doubling.
fn periods(load: &Load, end: Time) -> Vec<(Time, Time, Span)> {
    let params = atropos_of(load);
    let (mut begins, mut length) = (load.arrives, params.latency);
    let mut periods = Vec::new();
    while begins + length <= end {
        let slice = u128::from(params.slice.0) * u128::from(length.0) / u128::from(params.period.0);
        periods.push((begins, begins + length, Span(slice as u64)));
        begins = begins + length;
        length = Span(length.0 * 2).min(params.period);
    }
    periods
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn atropos_meets_every_reservation_in_every_period(mix in atropos_mix()) {
        let end = ms(3000);
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); mix.loads.len()];
        let outcomes = machine(SchedulerId::Atropos, &mix).run(&mix.loads, end, |run| runs[run.load].push(run));
        for (n, load) in mix.loads[..mix.spinning].iter().enumerate() {
            let params = atropos_of(load);
            if outcomes[n].refused.is_some() || params.slice == Span::ZERO {
                continue;
            }
            let mut got_extra = false;
            for (begins, ends, slice) in periods(load, end) {
                let first = runs[n].partition_point(|run| run.to <= begins);
                let within = runs[n][first..].iter().take_while(|run| run.from < ends);
                let got: u64 = within.map(|run| run.to.min(ends).since(run.from.max(begins)).0).sum();
                prop_assert!(got >= slice.0, "{got} of {slice:?} from {begins:?} to {ends:?}: {load:?}");
                got_extra |= got > slice.0;
            }
            prop_assert!(params.extra == ExtraTime::Yes || !got_extra, "more than its slice: {load:?}");
        }
        for cpu in on_each_cpu(&mix, &outcomes) {
            // At least a twentieth of every stretch is extra time, but for one slice of each; it goes round.
            let takers = cpu.iter().filter(|(load, ..)| atropos_of(load).extra == ExtraTime::Yes).count() as u64;
            let slices: u64 = cpu.iter().map(|(load, ..)| 2 * atropos_of(load).slice.0).sum();
            for (load, outcome, _) in &cpu {
                let params = atropos_of(load);
                if params.extra == ExtraTime::Yes {
                    let bound = 20 * (takers * 5 * MS + slices);
                    prop_assert!(outcome.longest_wait.0 <= bound, "{:?} of {bound}", outcome.longest_wait);
                }
                // With a reservation it waits from the beginning of a slice to the end of the next at most.
                if params.slice != Span::ZERO {
                    prop_assert!(outcome.longest_wait.0 <= 2 * params.period.0, "{:?}: {load:?}", outcome.longest_wait);
                }
            }
        }
    }

    /// One that sleeps for longer than its period is run within its latency.
    #[test]
    fn atropos_wakes_within_the_latency(mix in atropos_mix(), params in reservation(), seed: u64) {
        let sleep = (params.period, params.period + params.period);
        let first = Span(params.slice.0 / 20);
        let waking = Load {
            behaviour: Behaviour::Bursts { run: (Span(first.0 / 2), first), sleep },
            seed,
            ..Load::spinning(Params::Atropos(params))
        };
        let mut loads = mix.loads.clone();
        loads.insert(0, waking);
        let outcomes = machine(SchedulerId::Atropos, &mix).run(&loads, ms(3000), |_| {});
        let bound = params.latency;
        prop_assert!(!outcomes[0].latencies.is_empty());
        for latency in &outcomes[0].latencies {
            prop_assert!(*latency < bound, "{latency:?} of {bound:?}");
        }
    }

    /// Reservations that come, go and change: once each change is two periods past, all are met.
    #[test]
    fn atropos_meets_reservations_after_changes(
        reservations in list((reservation(), 0u64..1000, list((0u64..1000, reservation()), 0..3)), 1..6),
    ) {
        let loads: Vec<Load> = reservations.iter().map(|(params, from, changes)| {
            let mut changes: Vec<_> =
                changes.iter().map(|&(at, params)| (ms(at), Params::Atropos(params))).collect();
            changes.sort_by_key(|&(at, _)| at);
            Load { changes, arrives: ms(*from), ..Load::spinning(Params::Atropos(*params)) }
        }).collect();
        let schedulers = Machine { scheduler: SchedulerId::Atropos, cpus: 1, lateness: Span::ZERO };
        let mut ran = vec![0; loads.len()];
        // By then all periods have had their full length, and two more have passed.
        let (from, end) = (ms(2000), ms(8000));
        let outcomes = schedulers.run(&loads, end, |run| ran[run.load] += run.to.since(run.from.max(from)).0);
        for (n, (load, outcome)) in loads.iter().zip(&outcomes).enumerate() {
            let params = match load.changes.last() {
                // Which of its changes were refused, it does not say.
                Some(_) if outcome.refused.is_some() => continue,
                Some(&(_, Params::Atropos(params))) => params,
                _ => atropos_of(load),
            };
            if outcome.refused.is_none() {
                let whole = end.since(from).0 / params.period.0 - 1;
                prop_assert!(ran[n] >= whole * params.slice.0, "{} of {whole} * {params:?}", ran[n]);
            }
        }
    }
}
