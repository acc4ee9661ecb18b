//! Virtual CPUs that the caller does not own: those of other domains, wherever they are.
//!
//! A domain's virtual CPU belongs to whoever runs it. When it does not run it is parked, whole, in memory; there a
//! control domain's requests reach it, through [`VirtualCpus`], which the hypervisor implements over its run queues.
//! One that runs elsewhere is stopped for the moment first; if that CPU does not come round in the time there is, the
//! request makes way and is made again ([`Unreached::Running`] becomes [`Stop::Preempted`]). So no CPU waits for
//! another without end, and nothing stays held that nobody will let go.
//!
//! Lock: the parked virtual CPU's own, while it is worked with. The work may take the domain's locks (nobody who has
//! one of those waits for a parked virtual CPU), and is short.

use crate::bounce::DataSegments;
use crate::domain::{Arch, Domain};
use crate::preempt::Stop;
use crate::sched::{Affinity, SchedError, Span};
use crate::vcpu::Vcpu;
use alloc::boxed::Box;
use alloc::sync::Arc;
use proxenos_abi::arch::NR_RESERVED_GDT_ENTRIES;
use proxenos_abi::{Errno, Selector};

/// A guest's registers, as wide as the CPU's. An x86_32 guest's are the low halves of those it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, and r8 to r15, in this order. (The stack pointer is [`sp`](Self::sp).)
    pub general: [u64; 15],
    /// rip.
    pub ip: u64,
    /// rsp.
    pub sp: u64,
    /// rflags.
    pub flags: u64,
    /// cs.
    pub code: Selector,
    /// ss.
    pub stack: Selector,
    /// ds, es, fs and gs.
    pub data: DataSegments,
    /// Bases of fs, of gs, and of gs in the other mode; x86_64 guests'.
    pub bases: [u64; 3],
}

/// What FXSAVE stores in long mode (Intel SDM vol. 1 §10.5.1).
pub type FpuImage = [u8; 512];

/// What of a guest lies in a CPU while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineState {
    /// Its registers.
    pub registers: Registers,
    /// Its FPU's, if [`Fpu::initialised`](crate::vcpu::Fpu::initialised) says that it has any.
    pub fpu: FpuImage,
}

impl MachineState {
    /// Nothing but zero.
    pub const ZERO: Self = Self {
        registers: Registers {
            general: [0; 15],
            ip: 0,
            sp: 0,
            flags: 0,
            code: Selector::NULL,
            stack: Selector::NULL,
            data: DataSegments { ds: Selector::NULL, es: Selector::NULL, fs: Selector::NULL, gs: Selector::NULL },
            bases: [0; 3],
        },
        fpu: [0; 512],
    };
}

/// A virtual CPU that does not run.
pub struct Stopped<'a> {
    /// The virtual CPU.
    pub vcpu: &'a mut Vcpu,
    /// Where it stands. What is changed here is what the guest goes on with, so it must be what a guest may have.
    pub state: &'a mut MachineState,
}

/// Why a virtual CPU could not be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreached {
    /// It runs on another CPU, which has not stopped it yet. The request makes way, and is made again.
    Running,
    /// There is none (any more).
    None,
}

impl From<Unreached> for Stop {
    fn from(unreached: Unreached) -> Self {
        match unreached {
            Unreached::Running => Self::Preempted,
            Unreached::None => Self::Error(Errno::ESRCH),
        }
    }
}

/// All virtual CPUs of the machine, but the caller's.
pub trait VirtualCpus {
    /// Does something with a domain's virtual CPU while it does not run. If it runs elsewhere, it is stopped meanwhile.
    ///
    /// The domain is not the caller's; see [`caller_state`](Self::caller_state). No lock is held.
    ///
    /// # Errors
    /// See [`Unreached`]. Nothing has been done then.
    fn with_stopped<R>(&self, dom: &Domain, work: impl FnOnce(Stopped<'_>) -> R) -> Result<R, Unreached>;

    /// What the calling domain itself stands at, behind the call that it makes, as far as a call tells: without the
    /// registers that compiled code preserves, bases of segments and the FPU's. `vcpu` is its virtual CPU.
    fn caller_state(&self, vcpu: &Vcpu) -> MachineState;

    /// Waits until a domain that must not run (its run state says so, and it was told) does not.
    ///
    /// # Errors
    /// See [`Unreached`].
    fn await_stop(&self, dom: &Domain) -> Result<(), Unreached> {
        self.with_stopped(dom, |_| ())
    }

    /// Whether the domain runs on some CPU at this moment.
    fn is_running(&self, dom: &Domain) -> bool;

    /// How long a domain has run.
    fn cpu_time(&self, dom: &Domain) -> Span;

    /// Gives a new domain a virtual CPU, with registers of zero, and a place in a run queue with the usual parameters.
    /// It does not run before its run state is empty.
    ///
    /// # Errors
    /// There is no such CPU, or no room. Nothing has been done then.
    fn admit(&self, dom: &Arc<Domain>, affinity: Affinity) -> Result<(), SchedError>;

    /// Takes a domain out of its run queue for good, with its timers: the caller gets its virtual CPU. Its run state
    /// keeps it from running.
    ///
    /// # Errors
    /// See [`Unreached`]. It is still in its queue then, if it was.
    fn dismiss(&self, dom: &Domain) -> Result<Box<Vcpu>, Unreached>;

    /// The hypervisor's own descriptors in the first page of the GDT of every guest of an architecture.
    fn reserved_descriptors(&self, arch: Arch) -> [u64; NR_RESERVED_GDT_ENTRIES as usize];
}
