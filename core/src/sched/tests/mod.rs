//! The rules of the schedulers, one by one; and their promises, on random loads (`random*`).

mod atropos;
mod books;
mod bvt;
mod control;
mod hand_over;
mod placement;
mod random;
mod random_atropos;
mod random_calls;
mod round_robin;

use super::atropos::{AtroposParams, ExtraTime};
use super::bvt::{BvtParams, Warping};
use super::sim::{Behaviour, Load, Machine, Outcome, Run};
use super::{
    Affinity, Chosen, CpuId, Global, HandOver, Params, Pick, Policy, Repick, RunQueue, SHORTEST, SchedError,
    Schedulers, Slot, Span, Time,
};
use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use proxenos_abi::sched_ctl::SchedulerId;

const MS: u64 = 1_000_000;

fn ms(count: u64) -> Time {
    Time(count * MS)
}

fn advance(advance: u32) -> BvtParams {
    BvtParams { advance: NonZeroU32::new(advance).unwrap(), ..BvtParams::default() }
}

fn warping(params: BvtParams, warp: i32, limit: Span, pause: Span) -> BvtParams {
    BvtParams { warping: Warping::On, warp, limit, pause, ..params }
}

/// A reservation of milliseconds, without wishes for latency.
fn reserve(slice: u64, period: u64, extra: ExtraTime) -> AtroposParams {
    let period = Span::millis(period);
    AtroposParams { period, slice: Span::millis(slice), latency: period, extra }
}

/// A queue with these, all ready since time 0.
fn queue_of<P: Policy>(policy: P, params: &[P::Params]) -> (RunQueue<P>, Vec<Slot>) {
    let mut queue = RunQueue::new(policy);
    let slots: Vec<Slot> = params.iter().map(|&params| queue.insert(params, Time(0)).unwrap()).collect();
    for &slot in &slots {
        assert_eq!(queue.wake(slot, Time(0)), Repick::Now, "the CPU idles");
    }
    (queue, slots)
}

/// Runs what is picked until `end`, and returns how long each ran.
fn run<P: Policy>(queue: &mut RunQueue<P>, slots: &[Slot], end: Time) -> Vec<Span> {
    let mut pick = queue.pick(Time(0));
    while let Some(until) = pick.until.filter(|&until| until < end) {
        pick = queue.pick(until);
    }
    queue.charge(end);
    slots.iter().map(|&slot| queue.ran(slot).unwrap()).collect()
}
