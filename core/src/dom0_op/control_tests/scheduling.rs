//! SCHED_ID, SCHEDCTL, ADJUSTDOM, PINCPUDOMAIN.

use super::*;
use crate::sched::CpuId;
use proxenos_abi::dom0_ops::args::PinCpuDomain;
use proxenos_abi::payload::Payload;
use proxenos_abi::sched_ctl::{BvtAdjdom, BvtCtl, SchedAdjdom, SchedCtl, SchedDirection, SchedulerId};

const BVT: u32 = SchedulerId::Bvt.raw();
const PUT: u32 = SchedDirection::Put.raw();
const GET: u32 = SchedDirection::Get.raw();

#[test]
fn the_scheduler_says_who_it_is() {
    everywhere(|world| {
        assert_eq!(world.control_op(sched_id()), (OK, proxenos_abi::dom0_ops::args::SchedId { sched_id: BVT }))
    });
}

#[test]
fn its_parameters_are_set_and_read() {
    everywhere(|world| {
        let request = |sched_id, direction, allowance: u32| {
            let mut u = Payload::default();
            u.write(BvtCtl { ctx_allow: allowance });
            SchedCtl { sched_id, direction, u }
        };
        assert_eq!(world.control_op(request(BVT, PUT, 7_000_000)).0, OK);
        let (result, answer) = world.control_op(request(BVT, GET, 0));
        assert_eq!((result, { { answer.u }.read::<BvtCtl>().ctx_allow }), (OK, 7_000_000));
        for bad in [request(1, PUT, 1), request(99, GET, 1), request(BVT, 2, 1), request(BVT, PUT, 0)] {
            assert_eq!(world.control_op(bad).0, error(Errno::EINVAL), "{bad:?}");
        }
        let (_, answer) = world.control_op(request(BVT, GET, 0));
        assert_eq!({ { answer.u }.read::<BvtCtl>().ctx_allow }, 7_000_000, "what is refused changes nothing");
    });
}

#[test]
fn a_domains_parameters_are_set_and_read() {
    everywhere(|world| {
        let request = |sched_id, direction, domain, mcu_adv| {
            let mut u = Payload::default();
            u.write(BvtAdjdom { mcu_adv, warpback: 1, warpvalue: 3, warpl: 20, warpu: 40 });
            SchedAdjdom { sched_id, direction, domain, u, ..SchedAdjdom::default() }
        };
        assert_eq!(world.control_op(request(BVT, PUT, SUBJECT, 77)).0, OK);
        let (result, answer) = world.control_op(request(BVT, GET, SUBJECT, 1));
        let expected = BvtAdjdom { mcu_adv: 77, warpback: 1, warpvalue: 3, warpl: 20, warpu: 40 };
        assert_eq!((result, { answer.u }.read::<BvtAdjdom>()), (OK, expected));
        // What it asks for is looked at before whom it names.
        assert_eq!(world.control_op(request(BVT, GET, NOBODY, 1)).0, error(Errno::ESRCH));
        assert_eq!(world.control_op(request(1, GET, NOBODY, 1)).0, error(Errno::EINVAL));
        assert_eq!(world.control_op(request(BVT, 7, NOBODY, 1)).0, error(Errno::EINVAL));
        assert_eq!(world.control_op(request(BVT, PUT, SUBJECT, 0)).0, error(Errno::EINVAL));
        let (_, answer) = world.control_op(request(BVT, GET, SUBJECT, 1));
        assert_eq!({ answer.u }.read::<BvtAdjdom>(), expected);
    });
}

#[test]
fn a_domain_goes_where_it_is_pinned() {
    everywhere(|world| {
        let pin = |domain, cpu| PinCpuDomain { domain, pad: 0, cpu };
        let home = |world: &World| world.guests[1].dom.home().expect("parked").cpu;
        let first = home(world);
        for cpu in [1, 0, 0, 1] {
            assert_eq!(world.control_op(pin(SUBJECT, cpu)).0, OK);
            assert_eq!(home(world), CpuId(cpu as u16));
        }
        assert_eq!(world.control_op(pin(SUBJECT, i32::from(first.0))).0, OK);
        for (argument, errno) in [
            (pin(SUBJECT, 2), Errno::EINVAL),
            (pin(SUBJECT, -2), Errno::EINVAL),
            (pin(SUBJECT, 0x1_0000), Errno::EINVAL),
            (pin(SUBJECT, i32::MIN), Errno::EINVAL),
            (pin(NOBODY, 0), Errno::ESRCH),
            (pin(NOBODY, -1), Errno::ESRCH),
            (pin(ONESELF, 0), Errno::EINVAL),
        ] {
            assert_eq!(world.control_op(argument).0, error(errno), "{argument:?}");
        }
        assert_eq!(world.control_op(pin(SUBJECT, -1)).0, OK);
        assert_eq!(home(world), first, "who is not pinned stays, too");
    });
}
