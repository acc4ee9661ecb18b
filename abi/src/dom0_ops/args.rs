//! The arguments of `dom0_op` (`dom0_ops.h`), but for the schedulers' ([`sched_ctl`](crate::sched_ctl)).

use crate::arch::{GuestArch, Padded, X86_32, X86_64};
use crate::ids::DomId;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Lists the frames of a domain (`dom0_getmemlist_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct GetMemList<A: GuestArch> {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// `__pad1`.
    pub pad1: u32,
    /// In: words that `buffer` has room for.
    pub max_pfns: Padded<A>,
    /// In: virtual address of an array of words, which receive machine frame numbers.
    pub buffer: Padded<A>,
    /// Out: words written.
    pub num_pfns: Padded<A>,
}

layout!(GetMemList<X86_32>: 32 { domain: 0, pad0: 2, pad1: 4, max_pfns: 8, buffer: 16, num_pfns: 24 });
layout!(GetMemList<X86_64>: 32 { domain: 0, pad0: 2, pad1: 4, max_pfns: 8, buffer: 16, num_pfns: 24 });

/// Creates a domain (`dom0_createdomain_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct CreateDomain<A: GuestArch> {
    /// In: initial memory, in KiB.
    pub memory_kb: Padded<A>,
    /// In: CPU to run on; all ones for any.
    pub cpu: u32,
    /// `__pad0`.
    pub pad0: u32,
    /// In and out: the domain's number; 0 on input for any. On input with [`CREATE_OTHER_ARCH`], if the domain is to be
    /// of the other architecture than its creator.
    pub domain: DomId,
    /// `__pad1`.
    pub pad1: u16,
}

/// Bit of [`CreateDomain::domain`] on input: the domain is of the architecture that its creator is not of. The header
/// knows of no such thing; no number of a domain has this bit, and an answer never does.
pub const CREATE_OTHER_ARCH: u16 = 1 << 15;

layout!(CreateDomain<X86_32>: 20 { memory_kb: 0, cpu: 8, pad0: 12, domain: 16, pad1: 18 });
layout!(CreateDomain<X86_64>: 20 { memory_kb: 0, cpu: 8, pad0: 12, domain: 16, pad1: 18 });

/// Destroys a domain (`dom0_destroydomain_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct DestroyDomain {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
}

layout!(DestroyDomain: 4 { domain: 0, pad: 2 });

/// Pauses a domain (`dom0_pausedomain_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PauseDomain {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
}

layout!(PauseDomain: 4 { domain: 0, pad: 2 });

/// Lets a paused domain run (`dom0_unpausedomain_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct UnpauseDomain {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
}

layout!(UnpauseDomain: 4 { domain: 0, pad: 2 });

/// Describes the first domain whose number is not below the one asked for (`dom0_getdomaininfo_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct GetDomainInfo<A: GuestArch> {
    /// In and out: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
    /// Out: see [`DomainFlags`].
    pub flags: u32,
    /// In: virtual address that receives a [`FullExecutionContext`](crate::context::FullExecutionContext), or 0.
    pub ctxt: Padded<A>,
    /// Out: frames that the domain has.
    pub tot_pages: Padded<A>,
    /// Out: frames that it may have.
    pub max_pages: Padded<A>,
    /// Out: machine frame number of its shared page.
    pub shared_info_frame: Padded<A>,
    /// Out: nanoseconds it has run.
    pub cpu_time: u64,
}

layout!(GetDomainInfo<X86_32>: 48 {
    domain: 0, pad: 2, flags: 4, ctxt: 8, tot_pages: 16, max_pages: 24, shared_info_frame: 32, cpu_time: 40,
});
layout!(GetDomainInfo<X86_64>: 48 {
    domain: 0, pad: 2, flags: 4, ctxt: 8, tot_pages: 16, max_pages: 24, shared_info_frame: 32, cpu_time: 40,
});

bitflags! {
    /// `flags` of [`GetDomainInfo`] (`DOMFLAGS_*`): besides these bits, a CPU in bits 8 to 15 and the reason for a
    /// shutdown in bits 16 to 23.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DomainFlags: u32 {
        /// `DOMFLAGS_DYING`: being destroyed.
        const DYING = 1 << 0;
        /// `DOMFLAGS_CRASHED`: crashed, and kept as it is for inspection.
        const CRASHED = 1 << 1;
        /// `DOMFLAGS_SHUTDOWN`: has shut itself down.
        const SHUTDOWN = 1 << 2;
        /// `DOMFLAGS_PAUSED`: paused by the control software.
        const PAUSED = 1 << 3;
        /// `DOMFLAGS_BLOCKED`: waits for an event.
        const BLOCKED = 1 << 4;
        /// `DOMFLAGS_RUNNING`: runs at this moment.
        const RUNNING = 1 << 5;
        /// The CPU's bits: [`DOMFLAGS_CPUMASK`] at [`DOMFLAGS_CPUSHIFT`].
        const CPU = DOMFLAGS_CPUMASK << DOMFLAGS_CPUSHIFT;
        /// The reason's bits: [`DOMFLAGS_SHUTDOWNMASK`] at [`DOMFLAGS_SHUTDOWNSHIFT`].
        const SHUTDOWN_REASON = DOMFLAGS_SHUTDOWNMASK << DOMFLAGS_SHUTDOWNSHIFT;
    }
}

/// `DOMFLAGS_CPUMASK`: the CPU's bits, before the shift.
pub const DOMFLAGS_CPUMASK: u32 = 255;
/// `DOMFLAGS_CPUSHIFT`: where the CPU begins.
pub const DOMFLAGS_CPUSHIFT: u32 = 8;
/// `DOMFLAGS_SHUTDOWNMASK`: the reason's bits, before the shift.
pub const DOMFLAGS_SHUTDOWNMASK: u32 = 255;
/// `DOMFLAGS_SHUTDOWNSHIFT`: where the reason begins.
pub const DOMFLAGS_SHUTDOWNSHIFT: u32 = 16;

impl DomainFlags {
    /// These flags with a CPU.
    #[inline]
    pub const fn with_cpu(self, cpu: u8) -> Self {
        Self::from_bits_retain(self.bits() & !Self::CPU.bits() | (cpu as u32) << DOMFLAGS_CPUSHIFT)
    }

    /// The CPU the domain is bound to.
    #[inline]
    pub const fn cpu(self) -> u8 {
        (self.bits() >> DOMFLAGS_CPUSHIFT & DOMFLAGS_CPUMASK) as u8
    }

    /// These flags with a reason, and [`SHUTDOWN`](Self::SHUTDOWN) set.
    #[inline]
    pub const fn with_shutdown_reason(self, reason: u8) -> Self {
        let rest = self.bits() & !Self::SHUTDOWN_REASON.bits() | Self::SHUTDOWN.bits();
        Self::from_bits_retain(rest | (reason as u32) << DOMFLAGS_SHUTDOWNSHIFT)
    }

    /// The reason the guest gave; of meaning when [`SHUTDOWN`](Self::SHUTDOWN) is set.
    #[inline]
    pub const fn shutdown_reason(self) -> u8 {
        (self.bits() >> DOMFLAGS_SHUTDOWNSHIFT & DOMFLAGS_SHUTDOWNMASK) as u8
    }
}

/// Sets the state in which a domain begins (`dom0_builddomain_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct BuildDomain<A: GuestArch> {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// `__pad1`.
    pub pad1: u32,
    /// In: virtual address of a [`FullExecutionContext`](crate::context::FullExecutionContext).
    pub ctxt: Padded<A>,
}

layout!(BuildDomain<X86_32>: 16 { domain: 0, pad0: 2, pad1: 4, ctxt: 8 });
layout!(BuildDomain<X86_64>: 16 { domain: 0, pad0: 2, pad1: 4, ctxt: 8 });

/// Sets a domain's I/O privilege level (`dom0_iopl_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct Iopl {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
    /// In: the level, 0 to 3.
    pub iopl: u32,
}

layout!(Iopl: 8 { domain: 0, pad: 2, iopl: 4 });

/// Reads or writes a model-specific register (`dom0_msr_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct Msr {
    /// In: non-zero to write.
    pub write: u32,
    /// In: a bit a CPU.
    pub cpu_mask: u32,
    /// In: the register's number.
    pub msr: u32,
    /// In: low half of the value to write.
    pub in1: u32,
    /// In: high half of the value to write.
    pub in2: u32,
    /// Out: low half of the value read.
    pub out1: u32,
    /// Out: high half of the value read.
    pub out2: u32,
}

layout!(Msr: 28 { write: 0, cpu_mask: 4, msr: 8, in1: 12, in2: 16, out1: 20, out2: 24 });

/// A debugger's request (`dom0_debug_t`). What the arguments mean is not the interface's to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct DebugOp {
    /// In: the domain.
    pub domain: DomId,
    /// In: what to do.
    pub opcode: u8,
    /// `__pad`.
    pub pad: u8,
    /// In: argument.
    pub in1: u32,
    /// In: argument.
    pub in2: u32,
    /// In: argument.
    pub in3: u32,
    /// In: argument.
    pub in4: u32,
    /// Out: outcome.
    pub status: u32,
    /// Out: result.
    pub out1: u32,
    /// Out: result.
    pub out2: u32,
}

layout!(DebugOp: 32 { domain: 0, opcode: 2, pad: 3, in1: 4, in2: 8, in3: 12, in4: 16, status: 20, out1: 24, out2: 28 });

/// Sets the wall clock (`dom0_settime_t`): it shall read this time at that system time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SetTime {
    /// In: seconds since 1970-01-01 00:00:00 UTC.
    pub secs: u32,
    /// In: microseconds within the second.
    pub usecs: u32,
    /// In: system time, in nanoseconds.
    pub system_time: u64,
}

layout!(SetTime: 16 { secs: 0, usecs: 4, system_time: 8 });

/// Describes a frame (`dom0_getpageframeinfo_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct GetPageFrameInfo<A: GuestArch> {
    /// In: machine frame number.
    pub pfn: Padded<A>,
    /// In: the frame's owner.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
    /// `type`. Out: one of the types below ([`NOTAB`] to [`XTAB`]), with [`LPINTAB`] if pinned.
    pub frame_type: u32,
}

layout!(GetPageFrameInfo<X86_32>: 16 { pfn: 0, domain: 8, pad: 10, frame_type: 12 });
layout!(GetPageFrameInfo<X86_64>: 16 { pfn: 0, domain: 8, pad: 10, frame_type: 12 });

/// A frame that is no page table.
pub const NOTAB: u32 = 0;
/// A frame that is an L1 table.
pub const L1TAB: u32 = 1 << 28;
/// A frame that is an L2 table.
pub const L2TAB: u32 = 2 << 28;
/// A frame that is an L3 table.
pub const L3TAB: u32 = 3 << 28;
/// A frame that is an L4 table.
pub const L4TAB: u32 = 4 << 28;
/// The bit of a pinned table.
pub const LPINTAB: u32 = 1 << 31;
/// A frame that is not the domain's.
pub const XTAB: u32 = 0xf << 28;
/// The bits of the type and of [`LPINTAB`].
pub const LTAB_MASK: u32 = XTAB;
/// The bits of the type.
pub const LTABTYPE_MASK: u32 = 0x7 << 28;

/// Reads the hypervisor's console ring (`dom0_readconsole_t`). The call returns the number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ReadConsole<A: GuestArch> {
    /// `str`. In: virtual address that receives the text.
    pub text: Padded<A>,
    /// In: bytes there is room for.
    pub count: u32,
    /// In: [`CONSOLE_RING_CLEAR`] or 0.
    pub cmd: u32,
}

layout!(ReadConsole<X86_32>: 16 { text: 0, count: 8, cmd: 12 });
layout!(ReadConsole<X86_64>: 16 { text: 0, count: 8, cmd: 12 });

/// Bit of [`ReadConsole::cmd`]: empty the ring afterwards.
pub const CONSOLE_RING_CLEAR: u32 = 1;

/// Ties a domain to a CPU (`dom0_pincpudomain_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PinCpuDomain {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
    /// In: the CPU; -1 for any.
    pub cpu: i32,
}

layout!(PinCpuDomain: 8 { domain: 0, pad: 2, cpu: 4 });

/// Asks where the trace buffers are (`dom0_gettbufs_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct GetTbufs<A: GuestArch> {
    /// Out: machine address of the first.
    pub mach_addr: Padded<A>,
    /// Out: bytes of each.
    pub size: u32,
}

layout!(GetTbufs<X86_32>: 12 { mach_addr: 0, size: 8 });
layout!(GetTbufs<X86_64>: 12 { mach_addr: 0, size: 8 });

/// Describes the machine (`dom0_physinfo_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PhysInfo<A: GuestArch> {
    /// Out: threads a core.
    pub ht_per_core: u32,
    /// Out: cores.
    pub cores: u32,
    /// Out: frequency, in kHz.
    pub cpu_khz: u32,
    /// `__pad`.
    pub pad: u32,
    /// Out: frames there are.
    pub total_pages: Padded<A>,
    /// Out: frames that are free.
    pub free_pages: Padded<A>,
}

layout!(PhysInfo<X86_32>: 32 { ht_per_core: 0, cores: 4, cpu_khz: 8, pad: 12, total_pages: 16, free_pages: 24 });
layout!(PhysInfo<X86_64>: 32 { ht_per_core: 0, cores: 4, cpu_khz: 8, pad: 12, total_pages: 16, free_pages: 24 });

/// Gives a domain access to a PCI device, or takes it away (`dom0_pcidev_access_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PcidevAccess {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
    /// In: bus number.
    pub bus: u32,
    /// In: device number.
    pub dev: u32,
    /// In: function number.
    pub func: u32,
    /// In: non-zero to give.
    pub enable: u32,
}

layout!(PcidevAccess: 20 { domain: 0, pad: 2, bus: 4, dev: 8, func: 12, enable: 16 });

/// Asks which scheduler runs (`dom0_sched_id_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SchedId {
    /// Out: see [`SchedulerId`](crate::sched_ctl::SchedulerId).
    pub sched_id: u32,
}

layout!(SchedId: 4 { sched_id: 0 });

numbers! {
    /// What [`ShadowControl`] does (`DOM0_SHADOW_CONTROL_OP_*`).
    pub enum ShadowControlOp: u32 {
        /// `DOM0_SHADOW_CONTROL_OP_OFF`: no shadows any more.
        Off = 0,
        /// `DOM0_SHADOW_CONTROL_OP_ENABLE_TEST`: shadows, for their own sake.
        EnableTest = 1,
        /// `DOM0_SHADOW_CONTROL_OP_ENABLE_LOGDIRTY`: shadows that record which frames are written.
        EnableLogdirty = 2,
        /// `DOM0_SHADOW_CONTROL_OP_ENABLE_TRANSLATE`: shadows that translate frame numbers.
        EnableTranslate = 3,
        /// `DOM0_SHADOW_CONTROL_OP_FLUSH`: drop the shadows' contents.
        Flush = 10,
        /// `DOM0_SHADOW_CONTROL_OP_CLEAN`: read the record and begin a new one.
        Clean = 11,
        /// `DOM0_SHADOW_CONTROL_OP_PEEK`: read the record and keep it.
        Peek = 12,
    }
}

/// What shadowing has seen (`dom0_shadow_control_stats_t`, `struct dom0_shadow_control`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ShadowControlStats {
    /// Page faults.
    pub fault_count: u32,
    /// Frames written.
    pub dirty_count: u32,
    /// Frames written by network back ends.
    pub dirty_net_count: u32,
    /// Frames written by block back ends.
    pub dirty_block_count: u32,
}

layout!(ShadowControlStats: 16 { fault_count: 0, dirty_count: 4, dirty_net_count: 8, dirty_block_count: 12 });

/// Controls shadow page tables (`dom0_shadow_control_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ShadowControl<A: GuestArch> {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad`.
    pub pad: u16,
    /// In: see [`ShadowControlOp`].
    pub op: u32,
    /// In: virtual address of a bitmap, a bit a frame written, which must not fault.
    pub dirty_bitmap: Padded<A>,
    /// In and out: bits of the bitmap; how many have a meaning.
    pub pages: Padded<A>,
    /// Out: counts.
    pub stats: ShadowControlStats,
}

layout!(ShadowControl<X86_32>: 40 { domain: 0, pad: 2, op: 4, dirty_bitmap: 8, pages: 16, stats: 24 });
layout!(ShadowControl<X86_64>: 40 { domain: 0, pad: 2, op: 4, dirty_bitmap: 8, pages: 16, stats: 24 });

/// Sets the memory that a domain starts with (`dom0_setdomaininitialmem_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SetDomainInitialMem<A: GuestArch> {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// `__pad1`.
    pub pad1: u32,
    /// In: memory, in KiB.
    pub initial_memkb: Padded<A>,
}

layout!(SetDomainInitialMem<X86_32>: 16 { domain: 0, pad0: 2, pad1: 4, initial_memkb: 8 });
layout!(SetDomainInitialMem<X86_64>: 16 { domain: 0, pad0: 2, pad1: 4, initial_memkb: 8 });

/// Limits a domain's memory (`dom0_setdomainmaxmem_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SetDomainMaxMem<A: GuestArch> {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// `__pad1`.
    pub pad1: u32,
    /// In: memory, in KiB.
    pub max_memkb: Padded<A>,
}

layout!(SetDomainMaxMem<X86_32>: 16 { domain: 0, pad0: 2, pad1: 4, max_memkb: 8 });
layout!(SetDomainMaxMem<X86_64>: 16 { domain: 0, pad0: 2, pad1: 4, max_memkb: 8 });

/// Describes many frames (`dom0_getpageframeinfo2_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct GetPageFrameInfo2<A: GuestArch> {
    /// In: the frames' owner.
    pub domain: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// `__pad1`.
    pub pad1: u32,
    /// In: how many.
    pub num: Padded<A>,
    /// In: virtual address of an array of words: frame numbers, each replaced by the frame's type.
    pub array: Padded<A>,
}

layout!(GetPageFrameInfo2<X86_32>: 24 { domain: 0, pad0: 2, pad1: 4, num: 8, array: 16 });
layout!(GetPageFrameInfo2<X86_64>: 24 { domain: 0, pad0: 2, pad1: 4, num: 8, array: 16 });

/// Sets an assistance for another domain (`dom0_setdomainvmassist_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SetDomainVmAssist {
    /// In: the domain.
    pub domain: DomId,
    /// `__pad0`.
    pub pad0: u16,
    /// In: see [`VmAssistCommand`](crate::hypercall::VmAssistCommand).
    pub cmd: u32,
    /// `type`. In: see [`VmAssistType`](crate::hypercall::VmAssistType).
    pub assist: u32,
}

layout!(SetDomainVmAssist: 12 { domain: 0, pad0: 2, cmd: 4, assist: 8 });
