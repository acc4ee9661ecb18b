//! The loads that are drawn: one set a scheduler, each with something that its rules are about.

use std::num::NonZeroU32;

use proxenos_core::sched::atropos::{AtroposParams, ExtraTime};
use proxenos_core::sched::bvt::{BvtParams, Warping};

use proxenos_core::sched::sim::{Behaviour, Load};
use proxenos_core::sched::{Params, SchedulerId, Span, Time};

/// A load, and what it is called.
pub struct Named {
    pub name: &'static str,
    pub load: Load,
}

/// A scheduler, and what it has to deal with.
pub struct Scenario {
    pub title: &'static str,
    pub scheduler: SchedulerId,
    pub loads: Vec<Named>,
}

/// All of them.
pub fn scenarios() -> Vec<Scenario> {
    vec![borrowed_virtual_time(), round_robin(), atropos()]
}

fn spinning(name: &'static str, params: Params) -> Named {
    Named { name, load: Load::spinning(params) }
}

/// Serves requests: short runs, and sleeps from one to the next.
fn serving(name: &'static str, params: Params) -> Named {
    let behaviour =
        Behaviour::Bursts { run: (Span::micros(100), Span::micros(600)), sleep: (Span::millis(1), Span::millis(4)) };
    Named { name, load: Load { behaviour, ..Load::spinning(params) } }
}

fn between(from: u64, to: u64, named: Named) -> Named {
    let second = Span::seconds(1).0;
    let load = Load { arrives: Time(from * second), leaves: Some(Time(to * second)), ..named.load };
    Named { load, ..named }
}

fn weight(advance: u32) -> BvtParams {
    BvtParams { advance: NonZeroU32::new(advance).expect("not zero"), ..BvtParams::default() }
}

fn borrowed_virtual_time() -> Scenario {
    let warps = BvtParams { warping: Warping::On, warp: 5000, ..weight(10) };
    Scenario {
        title: "Borrowed virtual time: weights 4 : 2 : 1, two that serve requests, one of them with warp",
        scheduler: SchedulerId::Bvt,
        loads: vec![
            spinning("computes, weight 4", Params::Bvt(weight(10))),
            spinning("computes, weight 2", Params::Bvt(weight(20))),
            between(10, 20, spinning("computes from 10 to 20 s, weight 1", Params::Bvt(weight(40)))),
            serving("serves, weight 4", Params::Bvt(weight(10))),
            serving("serves, weight 4, may warp", Params::Bvt(warps)),
        ],
    }
}

fn round_robin() -> Scenario {
    Scenario {
        title: "Round robin: slices of 10 ms",
        scheduler: SchedulerId::RoundRobin,
        loads: vec![
            spinning("computes", Params::RoundRobin),
            spinning("computes too", Params::RoundRobin),
            between(10, 20, spinning("computes from 10 to 20 s", Params::RoundRobin)),
            serving("serves", Params::RoundRobin),
        ],
    }
}

fn atropos() -> Scenario {
    let reserve = |slice, period, latency, extra| {
        let (period, slice, latency) = (Span::millis(period), Span::millis(slice), Span::millis(latency));
        Params::Atropos(AtroposParams { period, slice, latency, extra })
    };
    Scenario {
        title: "Atropos: reservations, and extra time",
        scheduler: SchedulerId::Atropos,
        loads: vec![
            spinning("computes, 8 of 20 ms, no extra time", reserve(8, 20, 20, ExtraTime::No)),
            spinning("computes, 20 of 100 ms, takes extra time", reserve(20, 100, 100, ExtraTime::Yes)),
            between(
                10,
                20,
                spinning("computes from 10 to 20 s, no reservation", Params::Atropos(AtroposParams::BEST_EFFORT)),
            ),
            serving("serves, 20 of 100 ms, latency 2 ms", reserve(20, 100, 2, ExtraTime::No)),
        ],
    }
}
