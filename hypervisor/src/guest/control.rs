//! The machine as a domain in control sees it: [`MachineControl`] over the CPUs, the clock, the console, the run queues
//! and the trace buffers.

use super::hw::Hw;
use super::{sched, trace};
use crate::cpu::percpu::{self, Cpu};
use crate::cpu::{msr, smp};
use crate::{console, irq, time};
use console::Position;
use core::ops::Range;
use proxenos_core::control::{
    DateAtZero, LogPosition, MachineControl, MsrNumber, MsrRefused, NotMoved, Processors, TracePlace,
};
use proxenos_core::domain::Domain;
use proxenos_core::pirq::Pirqs;
use proxenos_core::sched::{CpuId, Schedulers};
use proxenos_core::trace::Event;
use raw_cpuid::TopologyType;

impl MachineControl for Hw {
    fn processors(&self) -> Processors {
        let count = smp::count();
        let threads = threads_per_core();
        // Where some threads of a core are not used, each CPU counts as a core.
        let threads_per_core = if threads > 0 && count.is_multiple_of(threads) { threads } else { 1 };
        Processors { count, threads_per_core, khz: u32::try_from(time::now().rate.0 / 1000).unwrap_or(u32::MAX) }
    }

    fn this_cpu(&self) -> CpuId {
        CpuId(Cpu::current().id.0 as u16)
    }

    fn set_date(&self, at_zero: DateAtZero) {
        time::set_date(at_zero);
    }

    fn log_kept(&self) -> Range<LogPosition> {
        let kept = console::kept();
        LogPosition(kept.start.0)..LogPosition(kept.end.0)
    }

    fn read_log(&self, from: LogPosition, into: &mut [u8]) -> (usize, LogPosition) {
        let reading = console::read_since(Position(from.0), into);
        (reading.copied, LogPosition(reading.next.0))
    }

    fn forget_log(&self, until: LogPosition) {
        console::forget(Position(until.0));
    }

    fn read_msr(&self, cpu: CpuId, register: MsrNumber) -> Result<u64, MsrRefused> {
        msr::read(percpu::CpuId(cpu.0.into()), register)
    }

    fn write_msr(&self, cpu: CpuId, register: MsrNumber, value: u64) -> Result<(), MsrRefused> {
        msr::write(percpu::CpuId(cpu.0.into()), register, value)
    }

    fn schedulers(&self) -> &Schedulers {
        sched::schedulers()
    }

    fn choose_again(&self, cpu: CpuId) {
        sched::choose_again(cpu);
    }

    fn migrate(&self, dom: &Domain, to: CpuId) -> Result<(), NotMoved> {
        sched::migrate(dom, to)
    }

    fn trace_buffers(&self) -> Option<TracePlace> {
        let buffers = trace::buffers()?;
        Some(TracePlace { address: buffers.address(), bytes_each: buffers.bytes_each(), reader: buffers.reader() })
    }

    fn trace(&self, event: impl FnOnce() -> Event) {
        trace::event(event);
    }

    fn interrupt_lines(&self) -> &'static Pirqs {
        irq::lines()
    }
}

/// How many threads a core has, as this CPU says (CPUID leaf 0xB); 1 where it does not.
fn threads_per_core() -> u32 {
    let levels = raw_cpuid::CpuId::new().get_extended_topology_info();
    let threads = levels.into_iter().flatten().find(|level| level.level_type() == TopologyType::SMT);
    threads.map_or(1, |level| u32::from(level.processors()).max(1))
}
