//! What the control domain wants of the machine under it.

use crate::Link;
use alloc::vec::Vec;
use proxenos_abi::DomId;
use proxenos_abi::dom0_ops::args::DomainFlags;
use proxenos_rpc::{
    AddressSpace, Arch, ControlMemory, DomainSched, Failure, HostSched, Kib, Nanos, Scheduler, Stage, TraceCpu,
    TraceRecord,
};

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that run guests.
    pub cpus: u32,
    /// What each does, in kHz.
    pub cpu_khz: u64,
    /// Memory, all of it.
    pub memory: Kib,
    /// What of it is nobody's.
    pub memory_free: Kib,
    /// `xen_version`.
    pub interface: (u16, u16),
    /// The scheduler.
    pub scheduler: Scheduler,
}

/// A domain as the hypervisor describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its number.
    pub id: DomId,
    /// What it does.
    pub flags: DomainFlags,
    /// Its memory.
    pub memory: Kib,
    /// The memory that it may have.
    pub memory_limit: Kib,
    /// How long it has run.
    pub cpu_time: Nanos,
    /// Machine frame number of its shared page.
    pub shared_info_frame: u64,
}

/// A domain that is to be built.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// Its kernel, an ELF file.
    pub kernel: &'a [u8],
    /// Its ramdisk; empty for none.
    pub ramdisk: &'a [u8],
    /// Its memory.
    pub memory: Kib,
    /// The memory that it may have; not less than it has.
    pub memory_limit: Kib,
    /// The CPU that it stays on.
    pub cpu: Option<u32>,
    /// Its kernel's command line.
    pub command_line: &'a [u8],
}

/// A domain of which the building has begun.
pub struct Begun<B> {
    /// Its number.
    pub id: DomId,
    /// Its architecture.
    pub arch: Arch,
    /// What is to be gone on with.
    pub build: B,
}

/// What a piece of work on a new domain came to.
pub enum Step<L> {
    /// There is more to do.
    More {
        /// Where it is.
        stage: Stage,
        /// How much of that is done.
        done: u64,
        /// How much there is.
        total: u64,
    },
    /// It has been built.
    Built(L),
}

/// The machine, asked by whoever controls it. What fails has changed nothing.
pub trait Host {
    /// The way to a domain.
    type Link: Link;
    /// A domain that is being built. Whoever drops it ends the domain, unless it was built.
    type Build;

    /// The time since the host was started.
    fn now(&self) -> Nanos;

    /// What machine it is.
    ///
    /// # Errors
    /// When the hypervisor does not tell.
    fn machine(&self) -> Result<Machine, Failure>;

    /// The first domain whose number is not below this one.
    fn status_from(&self, first: DomId) -> Option<Status>;

    /// Begins to build a domain: it has its memory then, and nothing in it.
    ///
    /// # Errors
    /// When image, machine or hypervisor do not allow it; there is nothing left of it then.
    fn begin_build(&mut self, order: &Order<'_>) -> Result<Begun<Self::Build>, Failure>;

    /// Goes on with it, from the same order, for about as long as a turn may take. What is built does not run yet.
    ///
    /// # Errors
    /// When image or hypervisor do not allow it. The build is to be dropped then.
    fn go_on(&mut self, build: &mut Self::Build, order: &Order<'_>) -> Result<Step<Self::Link>, Failure>;

    /// Stops a domain where it is.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn pause(&mut self, id: DomId) -> Result<(), Failure>;

    /// Lets it go on.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn unpause(&mut self, id: DomId) -> Result<(), Failure>;

    /// Ends a domain. Whoever has its link drops that first.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn destroy(&mut self, id: DomId) -> Result<(), Failure>;

    /// Sets the memory that a domain may have.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn set_memory_limit(&mut self, id: DomId, limit: Kib) -> Result<(), Failure>;

    /// Keeps a domain on a CPU, or on none in particular.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn pin(&mut self, id: DomId, cpu: Option<u32>) -> Result<(), Failure>;

    /// The scheduler's parameters.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn host_sched(&self) -> Result<HostSched, Failure>;

    /// Sets them.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn set_host_sched(&mut self, sched: HostSched) -> Result<(), Failure>;

    /// A domain's parameters.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn domain_sched(&self, id: DomId) -> Result<DomainSched, Failure>;

    /// Sets them.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn set_domain_sched(&mut self, id: DomId, sched: DomainSched) -> Result<(), Failure>;

    /// What the hypervisor has logged since this was last asked.
    fn read_log(&mut self) -> Vec<u8>;

    /// The control domain's own memory.
    fn own_memory(&self) -> ControlMemory;

    /// What the control domain itself has logged since this was last asked.
    fn read_own_log(&mut self) -> Vec<u8>;

    /// Records of a CPU's trace from a number on, the number of the first of them, and how far every CPU is.
    ///
    /// # Errors
    /// When there is no trace, or no such CPU.
    fn trace(&mut self, cpu: u32, from: u64, most: usize) -> Result<(Vec<TraceCpu>, u64, Vec<TraceRecord>), Failure>;

    /// A domain's registers: `full_execution_context_t` in the layout of its architecture.
    ///
    /// # Errors
    /// As the hypervisor has them.
    fn context(&self, id: DomId, arch: Arch) -> Result<Vec<u8>, Failure>;

    /// Up to `len` bytes of a domain's memory.
    ///
    /// # Errors
    /// When there is nothing at the address.
    fn read_memory(
        &mut self,
        id: DomId,
        arch: Arch,
        space: AddressSpace,
        address: u64,
        len: usize,
    ) -> Result<Vec<u8>, Failure>;
}
