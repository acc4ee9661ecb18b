//! Virtual CPUs of simulated domains that do not run: those that the control interface makes, and those that a test
//! parks.

use super::SimHardware;
use crate::addr::DomId;
use crate::control::NotMoved;
use crate::domain::{Arch, Domain};
use crate::others::{MachineState, Stopped, Unreached, VirtualCpus};
use crate::sched::{Affinity, CpuId, Home, Params, SchedError, Schedulers, Span, Time};
use crate::segments::Segments;
use crate::sync::Mutex;
use crate::vcpu::Vcpu;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use proxenos_abi::arch::NR_RESERVED_GDT_ENTRIES;
use proxenos_abi::sched_ctl::SchedulerId;

/// What stands in the reserved entries of a domain's GDT copy.
pub(super) const PATTERN_DESCRIPTOR: u64 = 0x0000_5245_5356_0000;

/// CPUs that the run queues are of.
pub(super) const CPUS: u16 = 2;

/// A virtual CPU that does not run.
struct Parked {
    vcpu: Box<Vcpu>,
    state: MachineState,
    home: Home,
}

/// All that do not run, and the run queues they are in.
pub(super) struct Others {
    schedulers: Schedulers,
    parked: Mutex<BTreeMap<u16, Parked>>,
    /// Those that go on for so many attempts to stop them.
    busy: Mutex<BTreeMap<u16, usize>>,
}

impl Others {
    pub(super) fn new() -> Self {
        let schedulers = Schedulers::new(SchedulerId::Bvt, CPUS).expect("memory");
        Self { schedulers, parked: Mutex::new(BTreeMap::new()), busy: Mutex::new(BTreeMap::new()) }
    }

    pub(super) const fn schedulers(&self) -> &Schedulers {
        &self.schedulers
    }

    pub(super) fn migrate(&self, dom: &Domain, to: CpuId) -> Result<(), NotMoved> {
        let mut all = self.parked.lock();
        let parked = all.get_mut(&dom.id.0).ok_or(NotMoved::Running)?;
        let (home, _) = self.schedulers.move_to(parked.home, to, Time(0), |_| Ok(())).map_err(NotMoved::Refused)?;
        parked.home = home;
        dom.set_home(home, |_, _| ());
        Ok(())
    }
}

impl SimHardware {
    /// Parks a virtual CPU that a test has run until now.
    ///
    /// # Panics
    /// When there is no room in the run queues.
    pub fn park(&self, dom: &Domain, vcpu: Vcpu) {
        let params = Params::of_new_domain(SchedulerId::Bvt, dom.id);
        let home = self.others.schedulers.place(params, Affinity::Any, Time(0)).expect("room");
        dom.set_home(home, |_, _| ());
        self.others.parked.lock().insert(dom.id.0, Parked { vcpu: Box::new(vcpu), state: MachineState::ZERO, home });
    }

    /// From now on so many attempts to reach a domain find that it runs.
    pub fn keep_running(&self, id: DomId, attempts: usize) {
        self.others.busy.lock().insert(id.0, attempts);
    }

    /// How many virtual CPUs are parked.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.others.parked.lock().len()
    }

    /// Calls `work` with the descriptor tables of all that are parked.
    pub fn with_parked_segments<R>(&self, work: impl FnOnce(&[(DomId, &Segments)]) -> R) -> R {
        let parked = self.others.parked.lock();
        let segments: Vec<_> = parked.iter().map(|(&id, parked)| (DomId(id), &parked.vcpu.segments)).collect();
        work(&segments)
    }

    fn is_busy(&self, dom: &Domain) -> bool {
        let mut busy = self.others.busy.lock();
        let Some(left) = busy.get_mut(&dom.id.0).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }
}

impl VirtualCpus for SimHardware {
    fn with_stopped<R>(&self, dom: &Domain, work: impl FnOnce(Stopped<'_>) -> R) -> Result<R, Unreached> {
        if self.is_busy(dom) {
            return Err(Unreached::Running);
        }
        let mut all = self.others.parked.lock();
        let parked = all.get_mut(&dom.id.0).ok_or(Unreached::None)?;
        Ok(work(Stopped { vcpu: &mut parked.vcpu, state: &mut parked.state }))
    }

    fn caller_state(&self, _: &Vcpu) -> MachineState {
        MachineState::ZERO
    }

    fn is_running(&self, dom: &Domain) -> bool {
        !self.others.parked.lock().contains_key(&dom.id.0)
    }

    fn cpu_time(&self, dom: &Domain) -> Span {
        let ran = |home: Home| self.others.schedulers.queue(home.cpu).ok()?.ran(home.slot).ok();
        dom.home().and_then(ran).unwrap_or(Span::ZERO)
    }

    fn admit(&self, dom: &Arc<Domain>, affinity: Affinity) -> Result<(), SchedError> {
        let home = self.others.schedulers.place(Params::of_new_domain(SchedulerId::Bvt, dom.id), affinity, Time(0))?;
        dom.set_home(home, |_, _| ());
        let parked = Parked { vcpu: Box::new(Vcpu::new()), state: MachineState::ZERO, home };
        self.others.parked.lock().insert(dom.id.0, parked);
        Ok(())
    }

    fn dismiss(&self, dom: &Domain) -> Result<Box<Vcpu>, Unreached> {
        if self.is_busy(dom) {
            return Err(Unreached::Running);
        }
        let parked = self.others.parked.lock().remove(&dom.id.0).ok_or(Unreached::None)?;
        self.others.schedulers.remove(parked.home).expect("its place");
        dom.leave_home();
        Ok(parked.vcpu)
    }

    fn reserved_descriptors(&self, _: Arch) -> [u64; NR_RESERVED_GDT_ENTRIES as usize] {
        core::array::from_fn(|index| PATTERN_DESCRIPTOR | (256 + index as u64))
    }
}
