//! The parameters as the interface has them.

use super::super::control::{adjust_domain, schedule_control, scheduler_named};
use super::super::round_robin::DEFAULT_SLICE;
use super::*;
use proxenos_abi::payload::Payload;
use proxenos_abi::sched_ctl::{AtroposAdjdom, BvtAdjdom, BvtCtl, RoundRobinCtl, SchedAdjdom, SchedCtl, SchedDirection};
use proxenos_abi::{DomId, Errno};

const ALL: [SchedulerId; 3] = [SchedulerId::Bvt, SchedulerId::RoundRobin, SchedulerId::Atropos];
const PUT: u32 = SchedDirection::Put.raw();
const GET: u32 = SchedDirection::Get.raw();

fn machine(id: SchedulerId) -> (Schedulers, super::super::Home) {
    let schedulers = Schedulers::new(id, 2).unwrap();
    let home = schedulers.place(Params::of_new_domain(id, DomId::new(3)), Affinity::Any, Time(0)).unwrap();
    (schedulers, home)
}

fn ctl(id: SchedulerId, direction: u32, u: Payload<8>) -> SchedCtl {
    SchedCtl { sched_id: id.raw(), direction, u }
}

fn adjust(id: SchedulerId, direction: u32, u: Payload<28>) -> SchedAdjdom {
    SchedAdjdom { sched_id: id.raw(), direction, domain: DomId::new(3), pad0: 0, pad1: 0, u }
}

#[test]
fn schedulers_have_the_names_of_2_0() {
    assert_eq!(scheduler_named("bvt"), Ok(SchedulerId::Bvt));
    assert_eq!(scheduler_named("rrobin"), Ok(SchedulerId::RoundRobin));
    assert_eq!(scheduler_named("atropos"), Ok(SchedulerId::Atropos));
    for name in ["", "BVT", "bvt ", "credit"] {
        assert_eq!(scheduler_named(name), Err(SchedError::UnknownScheduler));
    }
}

#[test]
fn only_the_scheduler_that_runs_is_controlled() {
    for id in ALL {
        let (schedulers, home) = machine(id);
        assert_eq!(schedulers.id(), id);
        for other in [0, 1, 2, 3, 4, u32::MAX] {
            let expected = match SchedulerId::from_raw(other) {
                None => Err(SchedError::UnknownScheduler),
                Some(other) if other != id => Err(SchedError::OtherScheduler),
                Some(_) => Ok(()),
            };
            let mut request = SchedCtl { sched_id: other, direction: GET, u: Payload::ZERO };
            assert_eq!(schedule_control(&schedulers, &mut request), expected);
            let mut request = SchedAdjdom { sched_id: other, ..adjust(id, GET, Payload::ZERO) };
            assert_eq!(adjust_domain(&schedulers, home, &mut request, Time(0)).map(drop), expected);
        }
        let mut request = ctl(id, 2, Payload::ZERO);
        assert_eq!(schedule_control(&schedulers, &mut request), Err(SchedError::UnknownDirection));
        let mut request = adjust(id, 2, Payload::ZERO);
        assert_eq!(adjust_domain(&schedulers, home, &mut request, Time(0)), Err(SchedError::UnknownDirection));
    }
}

#[test]
fn what_was_set_can_be_read_on_every_cpu() {
    let (schedulers, _) = machine(SchedulerId::Bvt);
    let mut put = ctl(SchedulerId::Bvt, PUT, Payload::of(BvtCtl { ctx_allow: 1_000_000 }));
    assert_eq!(schedule_control(&schedulers, &mut put), Ok(()));
    let mut get = ctl(SchedulerId::Bvt, GET, Payload::ZERO);
    assert_eq!(schedule_control(&schedulers, &mut get), Ok(()));
    assert_eq!(get.u.read::<BvtCtl>(), BvtCtl { ctx_allow: 1_000_000 });
    assert_eq!(schedulers.queue(CpuId(1)).unwrap().global(), Global::Bvt(Span::millis(1)));

    let (schedulers, _) = machine(SchedulerId::RoundRobin);
    let mut put = ctl(SchedulerId::RoundRobin, PUT, Payload::of(RoundRobinCtl { slice: 7_000_000 }));
    assert_eq!(schedule_control(&schedulers, &mut put), Ok(()));
    put.u.write(RoundRobinCtl { slice: 0 });
    assert_eq!(schedule_control(&schedulers, &mut put), Err(SchedError::TooShort));
    let mut get = ctl(SchedulerId::RoundRobin, GET, Payload::ZERO);
    assert_eq!(schedule_control(&schedulers, &mut get), Ok(()));
    assert_eq!(get.u.read::<RoundRobinCtl>(), RoundRobinCtl { slice: 7_000_000 });
    assert_ne!(Span(7_000_000), DEFAULT_SLICE);

    let (schedulers, _) = machine(SchedulerId::Atropos);
    assert_eq!(schedule_control(&schedulers, &mut ctl(SchedulerId::Atropos, PUT, Payload::ZERO)), Ok(()));
}

#[test]
fn a_domain_under_borrowed_virtual_time() {
    let (schedulers, home) = machine(SchedulerId::Bvt);
    let mut get = adjust(SchedulerId::Bvt, GET, Payload::ZERO);
    assert_eq!(adjust_domain(&schedulers, home, &mut get, Time(0)), Ok(Repick::AsPlanned));
    let default = BvtAdjdom { mcu_adv: 10, warpback: 0, warpvalue: 0, warpl: 2000, warpu: 1000 };
    assert_eq!(get.u.read::<BvtAdjdom>(), default, "2.0's, in milliseconds");

    let raw = BvtAdjdom { mcu_adv: 25, warpback: 7, warpvalue: -3, warpl: 40, warpu: 0 };
    let mut put = adjust(SchedulerId::Bvt, PUT, Payload::of(raw));
    assert_eq!(adjust_domain(&schedulers, home, &mut put, Time(0)), Ok(Repick::AsPlanned));
    for (bad, error) in [
        (BvtAdjdom { mcu_adv: 0, ..raw }, SchedError::ZeroAdvance),
        (BvtAdjdom { warpl: -1, ..raw }, SchedError::Negative),
        (BvtAdjdom { warpu: -1, ..raw }, SchedError::Negative),
        (BvtAdjdom { warpl: i64::MAX, ..raw }, SchedError::TooLong),
        (BvtAdjdom { warpu: i64::MAX / 1_000_000 + 1, ..raw }, SchedError::TooLong),
    ] {
        let mut put = adjust(SchedulerId::Bvt, PUT, Payload::of(bad));
        assert_eq!(adjust_domain(&schedulers, home, &mut put, Time(0)), Err(error));
        assert_eq!(Errno::from(error), Errno::EINVAL);
    }
    assert_eq!(adjust_domain(&schedulers, home, &mut get, Time(0)), Ok(Repick::AsPlanned));
    assert_eq!(get.u.read::<BvtAdjdom>(), BvtAdjdom { warpback: 1, ..raw });
}

#[test]
fn a_domain_under_atropos() {
    let (schedulers, home) = machine(SchedulerId::Atropos);
    let mut get = adjust(SchedulerId::Atropos, GET, Payload::ZERO);
    assert_eq!(adjust_domain(&schedulers, home, &mut get, Time(0)), Ok(Repick::AsPlanned));
    assert_eq!({ get.u.read::<AtroposAdjdom>().nat_slice }, 0, "no reservation");

    let raw = AtroposAdjdom { nat_period: 20_000_000, nat_slice: 4_000_000, latency: 5_000_000, xtratime: 9 };
    let mut put = adjust(SchedulerId::Atropos, PUT, Payload::of(raw));
    assert_eq!(adjust_domain(&schedulers, home, &mut put, Time(0)), Ok(Repick::AsPlanned));
    let mut put = adjust(SchedulerId::Atropos, PUT, Payload::of(AtroposAdjdom { nat_slice: 20_000_001, ..raw }));
    assert_eq!(adjust_domain(&schedulers, home, &mut put, Time(0)), Err(SchedError::SliceAbovePeriod));
    let mut put = adjust(SchedulerId::Atropos, PUT, Payload::of(AtroposAdjdom { nat_slice: 19_500_000, ..raw }));
    assert_eq!(adjust_domain(&schedulers, home, &mut put, Time(0)), Err(SchedError::Overcommitted));
    assert_eq!(Errno::from(SchedError::Overcommitted), Errno::ENOSPC);
    assert_eq!(adjust_domain(&schedulers, home, &mut get, Time(0)), Ok(Repick::AsPlanned));
    assert_eq!(get.u.read::<AtroposAdjdom>(), AtroposAdjdom { xtratime: 1, ..raw });
}

#[test]
fn parameters_of_another_scheduler_are_refused() {
    for id in ALL {
        let (schedulers, home) = machine(id);
        let mut queue = schedulers.queue(home.cpu).unwrap();
        for other in ALL.into_iter().filter(|&other| other != id) {
            let params = Params::of_new_domain(other, DomId::DOM0);
            assert_eq!(queue.insert(params, Time(0)), Err(SchedError::OtherScheduler));
            assert_eq!(queue.adjust(home.slot, params, Time(0)), Err(SchedError::OtherScheduler));
            assert_eq!(queue.control(Chosen::new(other).global()), Err(SchedError::OtherScheduler));
        }
        assert_eq!(queue.params(home.slot), Ok(Params::of_new_domain(id, DomId::new(3))));
    }
}
