//! What a domain in control asks of the machine itself (`dom0_op`), apart from its domains ([`crate::others`]):
//! processors and their registers, the clock's date, the log, the schedulers' queues, traces, interrupt lines.
//!
//! The hypervisor implements this over what it has of each; host tests over a few variables. Nothing of it is called
//! with a lock held.

use crate::addr::MachineAddr;
use crate::domain::{Arch, Domain};
use crate::pirq::Pirqs;
use crate::preempt::Stop;
use crate::sched::{CpuId, SchedError, Schedulers};
use crate::trace::Event;
use core::ops::Range;
use proxenos_abi::Errno;

/// The machine's processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processors {
    /// How many CPUs run domains: threads, each counted. A multiple of the next.
    pub count: u32,
    /// How many of them a core has.
    pub threads_per_core: u32,
    /// Their frequency, in kHz.
    pub khz: u32,
}

/// UTC when system time was 0, in nanoseconds since 1970. It may lie before that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DateAtZero(pub i64);

/// A place in the log: the number of bytes written before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LogPosition(pub u64);

/// A set of CPUs: a bit for each of the first 32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuMask(pub u32);

impl CpuMask {
    /// Whether a CPU is in it.
    #[must_use]
    pub const fn contains(self, cpu: CpuId) -> bool {
        cpu.0 < u32::BITS as u16 && self.0 & 1 << cpu.0 != 0
    }
}

/// The number of a model-specific register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MsrNumber(pub u32);

/// A CPU refused an access to a model-specific register (#GP).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsrRefused;

/// Where the trace buffers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TracePlace {
    /// The first one's machine address.
    pub address: MachineAddr,
    /// Bytes of each.
    pub bytes_each: u32,
    /// Whose layout their heads have.
    pub reader: Arch,
}

/// Why a domain was not moved to another CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotMoved {
    /// It runs, and has not been stopped yet. The request makes way, and is made again.
    Running,
    /// It has no place in a run queue (any more).
    Nowhere,
    /// There is no such CPU, or that one's scheduler does not take it.
    Refused(SchedError),
}

impl From<NotMoved> for Stop {
    fn from(why: NotMoved) -> Self {
        match why {
            NotMoved::Running => Self::Preempted,
            NotMoved::Nowhere => Self::Error(Errno::ESRCH),
            NotMoved::Refused(error) => Self::Error(error.into()),
        }
    }
}

/// The machine, as a domain in control sees it.
pub trait MachineControl {
    /// Its processors.
    fn processors(&self) -> Processors;

    /// The CPU this runs on.
    fn this_cpu(&self) -> CpuId;

    /// Sets the date. Every clock that is written to a guest's page from now on has it.
    fn set_date(&self, at_zero: DateAtZero);

    /// What there is of the log: from the oldest byte that is kept and was not forgotten, to the end.
    fn log_kept(&self) -> Range<LogPosition>;

    /// Copies from the log, as far as it is there: how much, and where to go on.
    fn read_log(&self, from: LogPosition, into: &mut [u8]) -> (usize, LogPosition);

    /// What lies before this is not read any more.
    fn forget_log(&self, until: LogPosition);

    /// Reads a register of a CPU, which exists.
    ///
    /// # Errors
    /// The CPU refuses.
    fn read_msr(&self, cpu: CpuId, register: MsrNumber) -> Result<u64, MsrRefused>;

    /// Writes a register of a CPU, which exists.
    ///
    /// # Errors
    /// The CPU refuses; the register is what it was.
    fn write_msr(&self, cpu: CpuId, register: MsrNumber, value: u64) -> Result<(), MsrRefused>;

    /// The run queues.
    fn schedulers(&self) -> &Schedulers;

    /// Parameters of somebody in a CPU's run queue have changed: it chooses anew who runs.
    fn choose_again(&self, cpu: CpuId);

    /// Moves a domain, which is not the caller's, to another CPU. If it runs, it is stopped meanwhile.
    ///
    /// # Errors
    /// See [`NotMoved`]. It stays where it was.
    fn migrate(&self, dom: &Domain, to: CpuId) -> Result<(), NotMoved>;

    /// The trace buffers, if there are any.
    fn trace_buffers(&self) -> Option<TracePlace>;

    /// Records an event on this CPU, if anything is recorded.
    fn trace(&self, event: impl FnOnce() -> Event);

    /// The interrupt lines of devices.
    fn interrupt_lines(&self) -> &'static Pirqs;
}
