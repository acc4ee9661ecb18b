//! Where virtual CPUs go.

use super::*;

fn reserving(percent: u64) -> Params {
    Params::Atropos(reserve(percent, 100, ExtraTime::No))
}

#[test]
fn a_new_one_goes_where_the_fewest_are_or_where_it_is_pinned() {
    let schedulers = Schedulers::new(SchedulerId::RoundRobin, 3).unwrap();
    let place = |affinity| schedulers.place(Params::RoundRobin, affinity, Time(0)).map(|home| home.cpu);
    assert_eq!(place(Affinity::Any), Ok(CpuId(0)));
    assert_eq!(place(Affinity::Pinned(CpuId(1))), Ok(CpuId(1)));
    assert_eq!(place(Affinity::Pinned(CpuId(1))), Ok(CpuId(1)));
    assert_eq!(place(Affinity::Any), Ok(CpuId(2)));
    assert_eq!(place(Affinity::Any), Ok(CpuId(0)));
    assert_eq!(place(Affinity::Any), Ok(CpuId(2)));
    assert_eq!(place(Affinity::Pinned(CpuId(3))), Err(SchedError::NoSuchCpu));
    assert_eq!(Schedulers::new(SchedulerId::Bvt, 0).err(), Some(SchedError::NoSuchCpu));
}

#[test]
fn a_reservation_goes_where_the_least_is_reserved() {
    let schedulers = Schedulers::new(SchedulerId::Atropos, 2).unwrap();
    let place = |percent| schedulers.place(reserving(percent), Affinity::Any, Time(0)).map(|home| home.cpu);
    assert_eq!(place(60), Ok(CpuId(0)));
    assert_eq!(place(20), Ok(CpuId(1)));
    assert_eq!(place(30), Ok(CpuId(1)));
    assert_eq!(place(46), Err(SchedError::Overcommitted));
    assert_eq!(place(40), Ok(CpuId(1)));
}

#[test]
fn who_moves_keeps_its_state_its_parameters_and_what_it_has_run() {
    let schedulers = Schedulers::new(SchedulerId::Bvt, 2).unwrap();
    let params = Params::Bvt(advance(33));
    let home = schedulers.place(params, Affinity::Any, Time(0)).unwrap();
    let run = |home: super::super::Home, now| schedulers.queue(home.cpu).unwrap().pick(now);
    let _ = schedulers.queue(home.cpu).unwrap().wake(home.slot, Time(0));
    assert_eq!(run(home, Time(0)).next, Some(home.slot));
    assert_eq!(schedulers.move_to(home, CpuId(1), ms(1), |_| Ok(())), Err(SchedError::StillRuns));
    let _ = schedulers.queue(home.cpu).unwrap().sleep(home.slot, ms(2));
    run(home, ms(2));
    let _ = schedulers.queue(home.cpu).unwrap().wake(home.slot, ms(3));
    let (moved, repick) = schedulers.move_to(home, CpuId(1), ms(4), |_| Ok(())).unwrap();
    assert_eq!((moved.cpu, repick), (CpuId(1), Repick::Now), "it was ready, and that CPU idles");
    assert_eq!(schedulers.queue(CpuId(1)).unwrap().params(moved.slot), Ok(params));
    assert_eq!(schedulers.queue(CpuId(1)).unwrap().ran(moved.slot), Ok(Span::millis(2)));
    assert_eq!(schedulers.remove(home), Err(SchedError::NoSuchVcpu), "it is gone from there");
    assert_eq!(run(moved, ms(4)).next, Some(moved.slot));
    assert_eq!(schedulers.move_to(moved, CpuId(1), ms(4), |_| Ok(())), Ok((moved, Repick::AsPlanned)));
    assert_eq!(schedulers.move_to(moved, CpuId(2), ms(4), |_| Ok(())), Err(SchedError::NoSuchCpu));
}

#[test]
fn who_is_refused_elsewhere_stays_where_it_is() {
    let schedulers = Schedulers::new(SchedulerId::Atropos, 2).unwrap();
    let first = schedulers.place(reserving(50), Affinity::Any, Time(0)).unwrap();
    let second = schedulers.place(reserving(50), Affinity::Any, Time(0)).unwrap();
    assert_eq!(schedulers.move_to(second, CpuId(0), Time(0), |_| Ok(())), Err(SchedError::Overcommitted));
    assert_eq!(schedulers.move_to(first, CpuId(1), Time(0), |_| Ok(())), Err(SchedError::Overcommitted));
    assert_eq!(schedulers.queue(CpuId(1)).unwrap().params(second.slot), Ok(reserving(50)));
    schedulers.remove(first).unwrap();
    let (moved, repick) = schedulers.move_to(second, CpuId(0), Time(0), |_| Ok(())).unwrap();
    assert_eq!((moved.cpu, repick), (CpuId(0), Repick::AsPlanned), "it sleeps there too");
}

#[test]
fn the_scheduler_s_parameters_are_the_same_everywhere() {
    let schedulers = Schedulers::new(SchedulerId::RoundRobin, 4).unwrap();
    assert_eq!(schedulers.control(Global::RoundRobin(Span::ZERO)), Err(SchedError::TooShort));
    assert_eq!(schedulers.control(Global::RoundRobin(Span::millis(3))), Ok(()));
    assert_eq!(schedulers.global(), Global::RoundRobin(Span::millis(3)));
    for cpu in 0..4 {
        assert_eq!(schedulers.queue(CpuId(cpu)).unwrap().global(), Global::RoundRobin(Span::millis(3)));
    }
}
