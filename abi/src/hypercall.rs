//! The numbers of the calls, their commands, and the multicall entry (`xen.h`).

use crate::arch::{GuestArch, X86_32, X86_64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

numbers! {
    /// A call's number (`__HYPERVISOR_*`): in eax, with the arguments in ebx, ecx, edx, esi, edi; on x86_64 in rax,
    /// with the arguments in rdi, rsi, rdx, r10, r8, r9.
    pub enum Hypercall: u32 {
        /// `set_trap_table(table)`: installs handlers for exceptions and software interrupts.
        SetTrapTable = 0,
        /// `mmu_update(list, count, *done)`: checked changes to page tables, and what goes with them.
        MmuUpdate = 1,
        /// `set_gdt(frames, entries)`: installs a global descriptor table.
        SetGdt = 2,
        /// `stack_switch(ss, esp)`: sets the kernel's stack for entries from ring 3.
        StackSwitch = 3,
        /// `set_callbacks(event cs, event eip, failsafe cs, failsafe eip)`; on x86_64 a fifth argument is where the
        /// `syscall` of applications leads.
        SetCallbacks = 4,
        /// `fpu_taskswitch()`: the next use of the FPU raises #NM.
        FpuTaskswitch = 5,
        /// `sched_op(op)`: yields, blocks or shuts down; see [`SchedOp`].
        SchedOp = 6,
        /// `dom0_op(op)`: control of domains and of the machine; see `dom0_ops`.
        Dom0Op = 7,
        /// `set_debugreg(register, value)`.
        SetDebugreg = 8,
        /// `get_debugreg(register)`.
        GetDebugreg = 9,
        /// `update_descriptor(machine address, low, high)`: checked change of one segment descriptor.
        UpdateDescriptor = 10,
        /// `set_fast_trap(vector)`: one vector goes straight to the kernel; 0 disables it.
        SetFastTrap = 11,
        /// `dom_mem_op(op, extent list, count, order, domain)`: gives memory back or asks for more.
        DomMemOp = 12,
        /// `multicall(list, count)`: several calls at once; see [`MulticallEntry`].
        Multicall = 13,
        /// `update_va_mapping(virtual page number, value, flags)`: changes one L1 entry of the current address space.
        UpdateVaMapping = 14,
        /// `set_timer_op(high, low)`: system time, in nanoseconds, of the next timer event; 0 cancels.
        SetTimerOp = 15,
        /// `event_channel_op(op)`: see `event_channel`.
        EventChannelOp = 16,
        /// `xen_version(0)`: major number in bits 16 to 31, minor in 0 to 15.
        XenVersion = 17,
        /// `console_io(command, count, buffer)`: emergency console; see [`ConsoleIo`].
        ConsoleIo = 18,
        /// `physdev_op(op)`: PCI configuration and interrupts; see `physdev`.
        PhysdevOp = 19,
        /// `grant_table_op(command, array, count)`: see `grant_table`.
        GrantTableOp = 20,
        /// `vm_assist(command, type)`: see [`VmAssistCommand`] and [`VmAssistType`].
        VmAssist = 21,
        /// `update_va_mapping_otherdomain(virtual page number, value, flags, domain)`.
        UpdateVaMappingOtherdomain = 22,
        /// `switch_to_user()`, x86_64 only and not in the header: leaves the kernel by the frame on its stack
        /// ([`SwitchToUser`]).
        SwitchToUser = 23,
        /// `set_segment_base(which, base)`, x86_64 only and not in the header; see [`SegmentBase`].
        SetSegmentBase = 25,
    }
}

impl Hypercall {
    /// Whether only x86_64 guests have the call.
    #[inline]
    pub const fn is_x86_64_only(self) -> bool {
        matches!(self, Self::SwitchToUser | Self::SetSegmentBase)
    }
}

/// A call of Proxenos's own, which is there only while the hypervisor is told so (option `audit=calls`): it looks over
/// the whole machine's memory and returns 0, or does not return. The number is none of 2.0's.
pub const AUDIT_CALL: u32 = 31;

/// The version that `xen_version` returns: 2.0.
pub const XEN_VERSION: u32 = 0x0002_0000;

/// `ARGS_PER_MULTICALL_ENTRY`: words of a multicall entry, its call number among them.
pub const ARGS_PER_MULTICALL_ENTRY: usize = 8;

/// Index in [`MulticallEntry::args`] that receives the call's result.
pub const MULTICALL_RESULT_ARG: usize = 5;

/// One call of a multicall's list (`multicall_entry_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct MulticallEntry<A: GuestArch> {
    /// The call's number; see [`Hypercall`].
    pub op: A::Word,
    /// Its arguments; the result replaces [`MULTICALL_RESULT_ARG`].
    pub args: [A::Word; ARGS_PER_MULTICALL_ENTRY - 1],
}

layout!(MulticallEntry<X86_32>: 32 { op: 0, args: 4 });
layout!(MulticallEntry<X86_64>: 64 { op: 0, args: 8 });

numbers! {
    /// Command of `sched_op`, in bits 0 to 7 of its argument (`SCHEDOP_*`).
    pub enum SchedOp: u32 {
        /// `SCHEDOP_yield`: gives the CPU up; the domain stays runnable.
        Yield = 0,
        /// `SCHEDOP_block`: unmasks events and waits for one.
        Block = 1,
        /// `SCHEDOP_shutdown`: stops the domain, with a reason in bits 8 to 15; see [`ShutdownReason`].
        Shutdown = 2,
    }
}

/// `SCHEDOP_cmdmask`: the bits of `sched_op`'s argument that hold the command.
pub const SCHEDOP_CMDMASK: u32 = 255;
/// `SCHEDOP_reasonshift`: where in `sched_op`'s argument the reason begins.
pub const SCHEDOP_REASONSHIFT: u32 = 8;

numbers! {
    /// Why a domain shut down (`SHUTDOWN_*`, `io/domain_controller.h`). Advice for the control software; any other
    /// byte may be given too.
    pub enum ShutdownReason: u8 {
        /// `SHUTDOWN_poweroff`: done; clean up.
        Poweroff = 0,
        /// `SHUTDOWN_reboot`: clean up and start again.
        Reboot = 1,
        /// `SHUTDOWN_suspend`: clean up and keep the suspend record.
        Suspend = 2,
    }
}

impl ShutdownReason {
    /// The argument of `sched_op` that shuts down for this reason.
    #[inline]
    pub const fn sched_op_arg(self) -> u32 {
        SchedOp::Shutdown.raw() | (self.raw() as u32) << SCHEDOP_REASONSHIFT
    }
}

numbers! {
    /// Command of `console_io` (`CONSOLEIO_*`).
    pub enum ConsoleIo: u32 {
        /// `CONSOLEIO_write`: writes the buffer.
        Write = 0,
        /// `CONSOLEIO_read`: reads what has come in; returns the number of bytes.
        Read = 1,
    }
}

numbers! {
    /// Command of `dom_mem_op` (`MEMOP_*`).
    pub enum DomMemOp: u32 {
        /// `MEMOP_increase_reservation`: asks for memory.
        IncreaseReservation = 0,
        /// `MEMOP_decrease_reservation`: gives memory back.
        DecreaseReservation = 1,
    }
}

numbers! {
    /// Command of `vm_assist` (`VMASST_CMD_*`).
    pub enum VmAssistCommand: u32 {
        /// `VMASST_CMD_enable`.
        Enable = 0,
        /// `VMASST_CMD_disable`.
        Disable = 1,
    }
}

numbers! {
    /// What `vm_assist` turns on or off (`VMASST_TYPE_*`).
    pub enum VmAssistType: u32 {
        /// `VMASST_TYPE_4gb_segments`: accesses below segments that wrap around 4 GiB are emulated.
        Segments4Gb = 0,
        /// `VMASST_TYPE_4gb_segments_notify`: the guest is told of each such access by vector 15.
        Segments4GbNotify = 1,
        /// `VMASST_TYPE_writable_pagetables`: the guest may write to its page tables as if they were plain memory.
        WritablePagetables = 2,
    }
}

/// `MAX_VMASST_TYPE`: the greatest of [`VmAssistType`].
pub const MAX_VMASST_TYPE: u32 = 2;

numbers! {
    /// Which base `set_segment_base` sets (`SEGBASE_*`, x86_64 only).
    pub enum SegmentBase: u32 {
        /// Base of fs.
        Fs = 0,
        /// Base of gs while an application runs.
        GsUser = 1,
        /// Base of gs while the kernel runs.
        GsKernel = 2,
        /// The selector in gs while an application runs, and with it the base. (From the interface of later in 2005.)
        GsUserSelector = 3,
    }
}

/// The frame on the kernel's stack that `switch_to_user` leaves by (x86_64 only, lowest address first).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SwitchToUser {
    /// Register; lost when the flags say [`SWITCH_TO_USER_IN_SYSCALL`].
    pub r11: u64,
    /// Register; lost when the flags say [`SWITCH_TO_USER_IN_SYSCALL`].
    pub rcx: u64,
    /// How to return; see [`SWITCH_TO_USER_IN_SYSCALL`].
    pub flags: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Code selector; ignored when the flags say [`SWITCH_TO_USER_IN_SYSCALL`].
    pub cs: u64,
    /// Flags register.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector; ignored when the flags say [`SWITCH_TO_USER_IN_SYSCALL`].
    pub ss: u64,
}

layout!(SwitchToUser: 64 { r11: 0, rcx: 8, flags: 16, rip: 24, cs: 32, rflags: 40, rsp: 48, ss: 56 });

/// `ECF_IN_SYSCALL`, a bit of [`SwitchToUser::flags`]: the application came by `syscall`; only rip, rflags and rsp
/// are restored.
pub const SWITCH_TO_USER_IN_SYSCALL: u64 = 1 << 8;

/// A bit of [`SwitchToUser::flags`] that is Proxenos's own: the application's rax is in the word above the frame.
/// Without it, rax is what it was when the call was made, which is the call's number.
pub const SWITCH_TO_USER_RAX: u64 = 1 << 9;
