//! A domain's virtual CPU: what is the guest's own of a CPU's state, apart from the registers that it runs with.
//!
//! Owned by value by whoever runs it, so that the paths of every trap take no lock; others see it only while the domain
//! does not run.

use crate::addr::GuestVirt;
use crate::bounce::{Callback, Mode, TrapTable};
use crate::debugreg::DebugRegisters;
use crate::mmu::Course;
use crate::ports;
use crate::preempt::Unfinished;
use crate::segments::Segments;
use proxenos_abi::Selector;

/// What a domain's use of the FPU has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fpu {
    /// The guest has used it: it has values of its own.
    pub initialised: bool,
    /// Those are in this CPU's registers. Else the next use traps.
    pub loaded: bool,
    /// The guest wants to be told of the next use (`fpu_taskswitch`).
    pub guest_trap: bool,
}

impl Fpu {
    /// `fpu_taskswitch`: the next use is the guest's #NM.
    pub const fn trap_next_use(&mut self) {
        self.guest_trap = true;
    }
}

/// A virtual CPU.
pub struct Vcpu {
    /// Handlers of exceptions and software interrupts.
    pub traps: TrapTable,
    /// Where events are announced.
    pub event_callback: Option<Callback>,
    /// Where the guest goes when its own state could not be loaded.
    pub failsafe_callback: Option<Callback>,
    /// Where the `syscall` of an x86_64 guest's applications leads, in the flat code segment.
    pub system_call: Option<GuestVirt>,
    /// Whether an x86_64 guest's kernel or an application runs: the mode of its paging state, to be had without a lock.
    /// Changed by [`user_mode::switch`](crate::user_mode::switch). (An x86_32 guest's is its ring.)
    pub mode: Mode,
    /// The kernel's stack for entries from ring 3 (the virtual TSS). Changed by
    /// [`set_kernel_stack`](Self::set_kernel_stack).
    pub kernel_stack: (Selector, GuestVirt),
    /// Descriptor tables.
    pub segments: Segments,
    /// The FPU.
    pub fpu: Fpu,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// Which of its rings may use I/O ports (`DOM0_IOPL`).
    pub ports: ports::Rights,
    /// System time of the next timer event, in nanoseconds (`set_timer_op`).
    pub timer: Option<u64>,
    /// [`timer`](Self::timer) is not yet what the CPU's own timer is set to.
    pub timer_changed: bool,
    /// The domain gives up the CPU.
    pub reschedule: bool,
    /// Calls that made way and are to be made again.
    pub unfinished: Unfinished,
    /// What the short way of the call that is being made has done of it. Between calls, nothing.
    pub course: Course,
    /// The last call made way: it is the guest's next instruction, whatever the domain waits for otherwise.
    pub call_made_way: bool,
}

impl Default for Vcpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Vcpu {
    /// A virtual CPU as at the start of a day.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            traps: TrapTable::new(),
            event_callback: None,
            failsafe_callback: None,
            system_call: None,
            mode: Mode::Kernel,
            kernel_stack: (Selector::NULL, GuestVirt(0)),
            segments: Segments::new(),
            fpu: Fpu { initialised: false, loaded: false, guest_trap: false },
            debug: DebugRegisters::new(),
            ports: ports::Rights::NONE,
            timer: None,
            timer_changed: false,
            reschedule: false,
            unfinished: Unfinished::new(),
            course: Course::begin(),
            call_made_way: false,
        }
    }

    /// `set_timer_op`: a timer event at this system time, in nanoseconds; 0 cancels.
    pub const fn set_timer(&mut self, at: u64) {
        self.timer = if at == 0 { None } else { Some(at) };
        self.timer_changed = true;
    }

    /// `stack_switch`: where entries from ring 3 begin.
    #[inline]
    pub fn set_kernel_stack(&mut self, ss: Selector, sp: GuestVirt) {
        self.kernel_stack = (ss, sp);
        self.segments.set_kernel_stack(ss, sp);
    }
}
