//! The machine, as the hypervisor lets domain 0 have it: [`Host`] by hypercalls.

use crate::dom0::{op, op_with_memory, refused};
use crate::link::GuestLink;
use crate::{build, heap, inspect, log, trace};
use alloc::vec;
use alloc::vec::Vec;
use proxenos_control_core::{Begun, Host, Machine, Order, Status, Step};
use proxenos_guest::abi::dom0_ops::args::{
    CONSOLE_RING_CLEAR, DestroyDomain, DomainFlags, GetDomainInfo, PauseDomain, PhysInfo, PinCpuDomain, ReadConsole,
    SchedId, SetDomainMaxMem, UnpauseDomain,
};
use proxenos_guest::abi::payload::Payload;
use proxenos_guest::abi::sched_ctl::{
    AtroposAdjdom, BvtAdjdom, BvtCtl, RoundRobinCtl, SchedAdjdom, SchedCtl, SchedDirection, SchedulerId,
};
use proxenos_guest::abi::{DomId, Errno, Padded, X86_64};
use proxenos_guest::{hypercall, time};
use proxenos_rpc::{
    AddressSpace, Arch, Cause, ControlMemory, DomainSched, Failure, HostSched, Kib, Millis, Nanos, Scheduler, TraceCpu,
    TraceRecord,
};

/// KiB in a frame.
const FRAME_KIB: u64 = 4;
/// What the hypervisor's log ring holds at most.
const LOG: usize = 16 << 10;
/// The hypervisor.
pub struct Hypervisor {
    /// The frames of the domain that was looked into last.
    known: Option<inspect::Known>,
}

impl Hypervisor {
    /// The one that this domain runs on.
    pub fn new() -> Self {
        Self { known: None }
    }
}

fn scheduler() -> Result<Scheduler, Failure> {
    let id = op(SchedId::default()).map_err(|errno| refused("asking for the scheduler", errno))?.sched_id;
    match SchedulerId::from_raw(id) {
        Some(SchedulerId::Bvt) => Ok(Scheduler::Bvt),
        Some(SchedulerId::Atropos) => Ok(Scheduler::Atropos),
        Some(SchedulerId::RoundRobin) => Ok(Scheduler::RoundRobin),
        None => Err(Failure::new(Cause::Internal, "a scheduler that is not known runs")),
    }
}

const fn number(scheduler: Scheduler) -> u32 {
    match scheduler {
        Scheduler::Bvt => SchedulerId::Bvt.raw(),
        Scheduler::Atropos => SchedulerId::Atropos.raw(),
        Scheduler::RoundRobin => SchedulerId::RoundRobin.raw(),
    }
}

/// That parameters are for the scheduler that runs.
fn must_run(wanted: Scheduler) -> Result<(), Failure> {
    let runs = scheduler()?;
    if runs == wanted {
        return Ok(());
    }
    Err(Failure::new(Cause::OtherScheduler, &alloc::format!("these are for {wanted:?}, and {runs:?} runs")))
}

/// Does nothing with what was asked for but say that it is done.
fn done<T>(_: T) {}

impl Host for Hypervisor {
    type Link = GuestLink;
    type Build = build::Build;

    fn now(&self) -> Nanos {
        Nanos(time::system_time())
    }

    fn machine(&self) -> Result<Machine, Failure> {
        let info = op(PhysInfo::<X86_64>::default()).map_err(|errno| refused("describing the machine", errno))?;
        let version = hypercall::xen_version().map_err(|errno| refused("asking for the version", errno))?;
        Ok(Machine {
            cpus: info.cores * info.ht_per_core.max(1),
            cpu_khz: info.cpu_khz.into(),
            memory: Kib(info.total_pages.to_u64() * FRAME_KIB),
            memory_free: Kib(info.free_pages.to_u64() * FRAME_KIB),
            interface: ((version >> 16) as u16, version as u16),
            scheduler: scheduler()?,
        })
    }

    fn status_from(&self, first: DomId) -> Option<Status> {
        let info = op(GetDomainInfo::<X86_64> { domain: first, ..GetDomainInfo::default() }).ok()?;
        Some(Status {
            id: info.domain,
            flags: DomainFlags::from_bits_retain(info.flags),
            memory: Kib(info.tot_pages.to_u64() * FRAME_KIB),
            memory_limit: Kib(info.max_pages.to_u64() * FRAME_KIB),
            cpu_time: Nanos(info.cpu_time),
            shared_info_frame: info.shared_info_frame.to_u64(),
        })
    }

    fn begin_build(&mut self, order: &Order<'_>) -> Result<Begun<build::Build>, Failure> {
        build::begin(order)
    }

    fn go_on(&mut self, build: &mut build::Build, order: &Order<'_>) -> Result<Step<GuestLink>, Failure> {
        build::go_on(build, order)
    }

    fn pause(&mut self, id: DomId) -> Result<(), Failure> {
        op(PauseDomain { domain: id, pad: 0 }).map(done).map_err(|errno| refused("pausing the domain", errno))
    }

    fn unpause(&mut self, id: DomId) -> Result<(), Failure> {
        op(UnpauseDomain { domain: id, pad: 0 }).map(done).map_err(|errno| refused("letting the domain run", errno))
    }

    fn destroy(&mut self, id: DomId) -> Result<(), Failure> {
        self.known.take_if(|known| known.id == id);
        op(DestroyDomain { domain: id, pad: 0 }).map(done).map_err(|errno| refused("destroying the domain", errno))
    }

    fn set_memory_limit(&mut self, id: DomId, limit: Kib) -> Result<(), Failure> {
        let limit = SetDomainMaxMem::<X86_64> { domain: id, max_memkb: Padded::new(limit.0), ..Default::default() };
        op(limit).map(done).map_err(|errno| refused("setting the memory's limit", errno))
    }

    fn pin(&mut self, id: DomId, cpu: Option<u32>) -> Result<(), Failure> {
        let cpu =
            cpu.map_or(Ok(-1), i32::try_from).map_err(|_| Failure::new(Cause::Invalid, "there is no such CPU"))?;
        op(PinCpuDomain { domain: id, pad: 0, cpu }).map(done).map_err(|errno| refused("pinning the domain", errno))
    }

    fn host_sched(&self) -> Result<HostSched, Failure> {
        let runs = scheduler()?;
        if runs == Scheduler::Atropos {
            return Ok(HostSched::Atropos);
        }
        let ask = SchedCtl { sched_id: number(runs), direction: SchedDirection::Get.raw(), u: Payload::ZERO };
        let answer = op(ask).map_err(|errno| refused("asking for the scheduler's parameters", errno))?;
        Ok(match runs {
            Scheduler::Bvt => HostSched::Bvt { context_allowance: Nanos(answer.u.read::<BvtCtl>().ctx_allow.into()) },
            _ => HostSched::RoundRobin { slice: Nanos(answer.u.read::<RoundRobinCtl>().slice) },
        })
    }

    fn set_host_sched(&mut self, sched: HostSched) -> Result<(), Failure> {
        must_run(sched.scheduler())?;
        let u = match sched {
            HostSched::Bvt { context_allowance } => {
                let too_long = |_| Failure::new(Cause::Invalid, "the context switch allowance is beyond 4 seconds");
                Payload::of(BvtCtl { ctx_allow: u32::try_from(context_allowance.0).map_err(too_long)? })
            }
            HostSched::Atropos => return Ok(()),
            HostSched::RoundRobin { slice } => Payload::of(RoundRobinCtl { slice: slice.0 }),
        };
        let set = SchedCtl { sched_id: number(sched.scheduler()), direction: SchedDirection::Put.raw(), u };
        op(set).map(done).map_err(|errno| refused("setting the scheduler's parameters", errno))
    }

    fn domain_sched(&self, id: DomId) -> Result<DomainSched, Failure> {
        let runs = scheduler()?;
        if runs == Scheduler::RoundRobin {
            return Ok(DomainSched::RoundRobin);
        }
        let direction = SchedDirection::Get.raw();
        let ask = SchedAdjdom { sched_id: number(runs), direction, domain: id, ..SchedAdjdom::default() };
        let answer = op(ask).map_err(|errno| refused("asking for the domain's scheduling", errno))?;
        Ok(match runs {
            Scheduler::Bvt => {
                let bvt: BvtAdjdom = answer.u.read();
                let millis = |count: i64| Millis(u64::try_from(count).unwrap_or(0));
                DomainSched::Bvt {
                    advance: bvt.mcu_adv,
                    warping: bvt.warpback != 0,
                    warp: bvt.warpvalue,
                    warp_limit: millis(bvt.warpl),
                    unwarp: millis(bvt.warpu),
                }
            }
            _ => {
                let atropos: AtroposAdjdom = answer.u.read();
                DomainSched::Atropos {
                    period: Nanos(atropos.nat_period),
                    slice: Nanos(atropos.nat_slice),
                    latency: Nanos(atropos.latency),
                    extra: atropos.xtratime != 0,
                }
            }
        })
    }

    fn set_domain_sched(&mut self, id: DomId, sched: DomainSched) -> Result<(), Failure> {
        must_run(sched.scheduler())?;
        let u = match sched {
            DomainSched::Bvt { advance, warping, warp, warp_limit, unwarp } => {
                // The interface counts them in milliseconds too.
                let count = |millis: Millis| i64::try_from(millis.0).unwrap_or(i64::MAX);
                Payload::of(BvtAdjdom {
                    mcu_adv: advance,
                    warpback: warping.into(),
                    warpvalue: warp,
                    warpl: count(warp_limit),
                    warpu: count(unwarp),
                })
            }
            DomainSched::Atropos { period, slice, latency, extra } => Payload::of(AtroposAdjdom {
                nat_period: period.0,
                nat_slice: slice.0,
                latency: latency.0,
                xtratime: extra.into(),
            }),
            DomainSched::RoundRobin => return Ok(()),
        };
        let sched_id = number(sched.scheduler());
        let direction = SchedDirection::Put.raw();
        let set = SchedAdjdom { sched_id, direction, domain: id, u, ..SchedAdjdom::default() };
        op(set).map(done).map_err(|errno| match errno {
            Errno::ENOSPC => Failure::new(Cause::Invalid, "that is more of the CPU than can still be reserved"),
            other => refused("setting the domain's scheduling", other),
        })
    }

    fn read_log(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; LOG];
        let read = ReadConsole::<X86_64> {
            text: Padded::new(bytes.as_mut_ptr() as u64),
            count: LOG as u32,
            cmd: CONSOLE_RING_CLEAR,
        };
        // SAFETY: at most so many bytes are written to the vector.
        let len = unsafe { op_with_memory(read) }.map_or(0, |(len, _)| len);
        bytes.truncate(len.min(LOG));
        bytes
    }

    fn own_memory(&self) -> ControlMemory {
        heap::account()
    }

    fn read_own_log(&mut self) -> Vec<u8> {
        log::take().into_bytes()
    }

    fn trace(&mut self, cpu: u32, from: u64, most: usize) -> Result<(Vec<TraceCpu>, u64, Vec<TraceRecord>), Failure> {
        trace::read(cpu, from, most)
    }

    fn context(&self, id: DomId, arch: Arch) -> Result<Vec<u8>, Failure> {
        inspect::context(id, arch)
    }

    fn read_memory(
        &mut self,
        id: DomId,
        arch: Arch,
        space: AddressSpace,
        address: u64,
        len: usize,
    ) -> Result<Vec<u8>, Failure> {
        inspect::read_memory(&mut self.known, id, arch, space, address, len)
    }
}
