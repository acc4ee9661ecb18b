//! The schedulers' parameters (`sched=` on both command lines): set and read while they run, and what comes of them.

use crate::subject::Subject;
use crate::{NOBODY, SUBJECT, ask, control};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::dom0_ops::args::{GetDomainInfo, SchedId};
use proxenos_guest::abi::payload::Payload;
use proxenos_guest::abi::sched_ctl::{
    AtroposAdjdom, BvtAdjdom, BvtCtl, RoundRobinCtl, SchedAdjdom, SchedCtl, SchedDirection, SchedulerId,
};
use proxenos_guest::abi::{DomId, Errno, Virq};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, check, check_eq, events, hypercall, time};

const MILLI: u64 = 1_000_000;
/// How long shares are looked at.
const LOOK: u64 = 400 * MILLI;

static TICKS: AtomicU32 = AtomicU32::new(0);

pub fn run(name: &str) {
    events::handle_virq(Virq::Timer, |_| TICKS.store(TICKS.load(Ordering::Relaxed) + 1, Ordering::Relaxed))
        .expect("the timer can be bound");
    let (id, part): (_, fn(&Subject)) = match name {
        "atropos" => (SchedulerId::Atropos, atropos),
        "bvt" => (SchedulerId::Bvt, borrowed_virtual_time),
        "rrobin" => (SchedulerId::RoundRobin, round_robin),
        _ => panic!("no such scheduler"),
    };
    check_eq!(ask(SchedId { sched_id: 99 }), (Ok(0), SchedId { sched_id: id.raw() }));
    let subject = Subject::meet();
    part(&subject);
    control::devices();
    subject.dismiss();
}

fn sleep(ns: u64) {
    let until = time::system_time() + ns;
    check_eq!(hypercall::set_timer_op(until), Ok(()));
    events::wait_until(|| time::system_time() >= until);
}

fn spin(ns: u64) {
    let until = time::system_time() + ns;
    while time::system_time() < until {
        core::hint::spin_loop();
    }
}

/// What part of the time the subject runs meanwhile, in thousandths.
fn share_of(pass_time: fn(u64)) -> u64 {
    let ran = || {
        let (result, info) = ask(GetDomainInfo::<Arch> { domain: SUBJECT, ..GetDomainInfo::<Arch>::default() });
        check_eq!(result, Ok(0));
        info.cpu_time
    };
    let (before, from) = (ran(), time::system_time());
    pass_time(LOOK);
    (ran() - before) * 1000 / (time::system_time() - from)
}

fn atropos(subject: &Subject) {
    section("Atropos: what can be set and read");
    let request = |direction: SchedDirection, sched_id: SchedulerId, domain: DomId, params: AtroposAdjdom| {
        let mut u = Payload::default();
        u.write(params);
        let (sched_id, direction) = (sched_id.raw(), direction.raw());
        let (result, answer) = ask(SchedAdjdom { sched_id, direction, domain, u, ..SchedAdjdom::default() });
        let u = answer.u;
        let read: AtroposAdjdom = u.read();
        (result, read)
    };
    let put = |params| request(SchedDirection::Put, SchedulerId::Atropos, SUBJECT, params).0;
    let get = |domain| request(SchedDirection::Get, SchedulerId::Atropos, domain, AtroposAdjdom::default());
    let first = AtroposAdjdom { nat_period: 20 * MILLI, nat_slice: 3 * MILLI, latency: 2 * MILLI, xtratime: 0 };
    check_eq!(put(first), Ok(0));
    check_eq!(get(SUBJECT), (Ok(0), first));
    let own = AtroposAdjdom { nat_period: 20 * MILLI, nat_slice: 15 * MILLI, latency: 5 * MILLI, xtratime: 1 };
    check_eq!(get(DomId::DOM0), (Ok(0), own), "domain 0's, as in 2.0");
    for (wrong, error, what) in [
        (AtroposAdjdom { nat_slice: 21 * MILLI, ..first }, Errno::EINVAL, "a slice above the period"),
        (AtroposAdjdom { latency: 21 * MILLI, ..first }, Errno::EINVAL, "a latency above the period"),
        (AtroposAdjdom { latency: 0, ..first }, Errno::EINVAL, "no latency"),
        (AtroposAdjdom { nat_slice: 0, ..first }, Errno::EINVAL, "neither a slice nor extra time"),
        (AtroposAdjdom { nat_period: 0, nat_slice: 0, latency: 0, xtratime: 1 }, Errno::EINVAL, "no period"),
        (AtroposAdjdom { nat_period: u64::MAX, ..first }, Errno::EINVAL, "a period without end"),
        (AtroposAdjdom { nat_slice: 5 * MILLI, ..first }, Errno::ENOSPC, "all that is left"),
    ] {
        check_eq!(put(wrong), Err(error), "{what}");
        check_eq!(get(SUBJECT), (Ok(0), first), "{what}");
    }
    check_eq!(
        request(SchedDirection::Put, SchedulerId::Bvt, SUBJECT, first).0,
        Err(Errno::EINVAL),
        "another scheduler"
    );
    check_eq!(get(NOBODY).0, Err(Errno::ESRCH));

    section("Atropos: slice, period, extra time");
    subject.keep_busy(true);
    for (params, rest, least, most) in [
        (first, "asleep", 130, 170),
        (first, "busy", 130, 170),
        (AtroposAdjdom { nat_period: 10 * MILLI, nat_slice: MILLI, ..first }, "asleep", 80, 120),
        (AtroposAdjdom { xtratime: 1, ..first }, "asleep", 950, 1000),
        // Of what nobody has reserved, a quarter, half is domain 0's.
        (AtroposAdjdom { nat_slice: 0, xtratime: 1, ..first }, "busy", 90, 160),
    ] {
        check_eq!(put(params), Ok(0));
        // From a period's beginning on.
        sleep(50 * MILLI);
        let got = share_of(if rest == "busy" { spin } else { sleep });
        check!((least..=most).contains(&got), "{params:?}, domain 0 {rest}: {got} thousandths");
    }
    subject.keep_busy(false);

    section("Atropos: latency");
    // Domain 0 has slept, and has a slice of its own now. The subject has slept too, and is first if its hint is the
    // shorter one.
    let slowest = |latency: u64| {
        check_eq!(put(AtroposAdjdom { nat_period: 40 * MILLI, latency, ..first }), Ok(0));
        let answers = (0..10).map(|_| {
            sleep(100 * MILLI);
            subject.answer_while_busy()
        });
        answers.max().unwrap_or(0)
    };
    let (eager, patient) = (slowest(2 * MILLI), slowest(40 * MILLI));
    check!(eager <= 2 * MILLI + MILLI / 2, "within its latency: {eager} ns");
    check!(patient > 3 * MILLI, "who has no wish waits for domain 0's slice: {patient} ns");
}

fn borrowed_virtual_time(subject: &Subject) {
    let put = |params: BvtAdjdom| {
        let mut u = Payload::default();
        u.write(params);
        let (sched_id, direction) = (SchedulerId::Bvt.raw(), SchedDirection::Put.raw());
        check_eq!(ask(SchedAdjdom { sched_id, direction, domain: SUBJECT, u, ..SchedAdjdom::default() }).0, Ok(0));
    };
    section("BVT: weights");
    subject.keep_busy(true);
    // Domain 0's advance is 10: so many parts of the subject's advance to so many of 10.
    for (mcu_adv, share) in [(10, 500), (30, 250), (90, 100), (5, 667)] {
        put(BvtAdjdom { mcu_adv, ..BvtAdjdom::default() });
        sleep(20 * MILLI);
        let got = share_of(spin);
        check!(got.abs_diff(share) <= 30, "an advance of {mcu_adv}: {got} thousandths, {share} expected");
    }
    put(BvtAdjdom { mcu_adv: 10, ..BvtAdjdom::default() });
    subject.keep_busy(false);

    section("BVT: allowance and warp");
    let allow = |ctx_allow: u32| {
        let mut u = Payload::default();
        u.write(BvtCtl { ctx_allow });
        check_eq!(ask(SchedCtl { sched_id: SchedulerId::Bvt.raw(), direction: SchedDirection::Put.raw(), u }).0, Ok(0));
    };
    let slowest = || (0..10).map(|_| (sleep(30 * MILLI), subject.answer_while_busy()).1).max().unwrap_or(0);
    allow(20 * MILLI as u32);
    let patient = slowest();
    allow(MILLI as u32);
    let brief = slowest();
    allow(20 * MILLI as u32);
    put(BvtAdjdom { mcu_adv: 10, warpback: 1, warpvalue: 1_000_000, ..BvtAdjdom::default() });
    let warped = slowest();
    check!((15 * MILLI..=25 * MILLI).contains(&patient), "by an allowance of 20 ms: {patient} ns");
    check!(brief <= 2 * MILLI, "by one of 1 ms: {brief} ns");
    check!(warped <= MILLI, "who may warp does not wait: {warped} ns");
}

fn round_robin(subject: &Subject) {
    section("round robin");
    let request = |direction: SchedDirection, slice: u64| {
        let mut u = Payload::default();
        u.write(RoundRobinCtl { slice });
        let (sched_id, direction) = (SchedulerId::RoundRobin.raw(), direction.raw());
        let (result, answer) = ask(SchedCtl { sched_id, direction, u });
        let u = answer.u;
        let read: RoundRobinCtl = u.read();
        (result, { read.slice })
    };
    let get = || request(SchedDirection::Get, 0);
    subject.keep_busy(true);
    for slice in [MILLI, MILLI / 10, 20 * MILLI] {
        check_eq!(request(SchedDirection::Put, slice).0, Ok(0));
        check_eq!(get(), (Ok(0), slice));
        check_eq!(request(SchedDirection::Put, 1).0, Err(Errno::EINVAL), "a slice of a nanosecond");
        check_eq!(get(), (Ok(0), slice));
        let got = share_of(spin);
        check!((450..=550).contains(&got), "slices of {slice} ns: {got} thousandths");
    }
    subject.keep_busy(false);
    let (sched_id, direction) = (SchedulerId::RoundRobin.raw(), SchedDirection::Put.raw());
    let adjusted = ask(SchedAdjdom { sched_id, direction, domain: SUBJECT, ..SchedAdjdom::default() }).0;
    check_eq!(adjusted, Ok(0), "a domain has no parameters");
}
