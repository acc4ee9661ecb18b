//! The simulated machine as a domain in control sees it: what it is told stays to be looked at.

use super::SimHardware;
use crate::addr::MachineAddr;
use crate::control::{
    DateAtZero, LogPosition, MachineControl, MsrNumber, MsrRefused, NotMoved, Processors, TracePlace,
};
use crate::domain::{Arch, Domain};
use crate::pirq::{LineControl, Pirqs, Trigger};
use crate::sched::{CpuId, Schedulers};
use crate::sync::Mutex;
use crate::trace::Event;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use proxenos_abi::Pirq;

/// A register that CPUs have, from the start; others come when a test makes them.
pub const KNOWN_MSR: MsrNumber = MsrNumber(0x1234);

/// What the machine was told.
#[derive(Default)]
pub struct Controlled {
    /// The date.
    pub date: Mutex<Option<DateAtZero>>,
    /// The log, and what of it is forgotten.
    pub log: Mutex<(Vec<u8>, u64)>,
    /// Registers of CPUs, by CPU and number.
    pub msrs: Mutex<BTreeMap<(u16, u32), u64>>,
    /// CPUs that were made to choose again.
    pub chose: Mutex<Vec<CpuId>>,
    /// What was recorded, if that is wanted.
    pub events: Mutex<Option<Vec<Event>>>,
    /// Whose the trace buffers are, if there are any.
    pub trace_reader: Mutex<Option<Arch>>,
}

impl Controlled {
    pub(super) fn new() -> Self {
        let controlled = Self::default();
        controlled.msrs.lock().extend((0..super::others::CPUS).map(|cpu| ((cpu, KNOWN_MSR.0), u64::from(cpu))));
        controlled
    }
}

/// Lines that lead nowhere.
struct NoLines;

impl LineControl for NoLines {
    fn trigger(&self, _: Pirq) -> Option<Trigger> {
        None
    }

    fn open(&self, _: Pirq) {}

    fn close(&self, _: Pirq) {}
}

static LINES: Pirqs = Pirqs::new(&NoLines);

impl MachineControl for SimHardware {
    fn processors(&self) -> Processors {
        Processors { count: super::others::CPUS.into(), threads_per_core: 1, khz: 2_400_000 }
    }

    fn this_cpu(&self) -> CpuId {
        CpuId(1)
    }

    fn set_date(&self, at_zero: DateAtZero) {
        *self.controlled.date.lock() = Some(at_zero);
    }

    fn log_kept(&self) -> Range<LogPosition> {
        let log = self.controlled.log.lock();
        LogPosition(log.1)..LogPosition(log.0.len() as u64)
    }

    fn read_log(&self, from: LogPosition, into: &mut [u8]) -> (usize, LogPosition) {
        let log = self.controlled.log.lock();
        let rest = &log.0[from.0 as usize..];
        let copied = rest.len().min(into.len());
        into[..copied].copy_from_slice(&rest[..copied]);
        (copied, LogPosition(from.0 + copied as u64))
    }

    fn forget_log(&self, until: LogPosition) {
        self.controlled.log.lock().1 = until.0;
    }

    fn read_msr(&self, cpu: CpuId, register: MsrNumber) -> Result<u64, MsrRefused> {
        self.controlled.msrs.lock().get(&(cpu.0, register.0)).copied().ok_or(MsrRefused)
    }

    fn write_msr(&self, cpu: CpuId, register: MsrNumber, value: u64) -> Result<(), MsrRefused> {
        self.controlled.msrs.lock().get_mut(&(cpu.0, register.0)).map(|old| *old = value).ok_or(MsrRefused)
    }

    fn schedulers(&self) -> &Schedulers {
        self.others.schedulers()
    }

    fn choose_again(&self, cpu: CpuId) {
        self.controlled.chose.lock().push(cpu);
    }

    fn migrate(&self, dom: &Domain, to: CpuId) -> Result<(), NotMoved> {
        self.others.migrate(dom, to)
    }

    fn trace_buffers(&self) -> Option<TracePlace> {
        let reader = (*self.controlled.trace_reader.lock())?;
        Some(TracePlace { address: MachineAddr(0x12_3000), bytes_each: 0xa000, reader })
    }

    fn trace(&self, event: impl FnOnce() -> Event) {
        if let Some(events) = &mut *self.controlled.events.lock() {
            events.push(event());
        }
    }

    fn interrupt_lines(&self) -> &'static Pirqs {
        &LINES
    }
}
