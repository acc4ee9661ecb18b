//! Control of domains and of the machine (`dom0_ops.h`): the request, its commands and its versions.
//!
//! `dom0_op` takes a pointer to a [`Dom0Op`]: a command, a version and a union of arguments, into which results are
//! written back. The arguments are in [`args`].

pub mod args;

use crate::arch::{GuestArch, Pod};
use crate::errno::UnknownValue;
use crate::payload::Payload;
use crate::sched_ctl::{SchedAdjdom, SchedCtl};
use args::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `DOM0_INTERFACE_VERSION`: the version of Xen 2.0's release.
pub const DOM0_INTERFACE_VERSION: u32 = Dom0Version::V19.raw();

numbers! {
    /// A version of the control interface that requests may carry.
    pub enum Dom0Version: u32 {
        /// 2.0's release.
        V19 = 0xaaaa_0019,
        /// Three days later. An x86_32 CPU's registers lie in another order: see
        /// [`ExecutionContextV1A`](crate::x86_32::ExecutionContextV1A).
        V1A = 0xaaaa_001a,
    }
}

numbers! {
    /// Command of `dom0_op` (`DOM0_*`).
    pub enum Dom0Command: u32 {
        /// `DOM0_GETMEMLIST`: see [`GetMemList`].
        GetMemList = 2,
        /// `DOM0_SCHEDCTL`: see [`SchedCtl`].
        SchedCtl = 6,
        /// `DOM0_ADJUSTDOM`: see [`SchedAdjdom`].
        AdjustDom = 7,
        /// `DOM0_CREATEDOMAIN`: see [`CreateDomain`].
        CreateDomain = 8,
        /// `DOM0_DESTROYDOMAIN`: see [`DestroyDomain`].
        DestroyDomain = 9,
        /// `DOM0_PAUSEDOMAIN`: see [`PauseDomain`].
        PauseDomain = 10,
        /// `DOM0_UNPAUSEDOMAIN`: see [`UnpauseDomain`].
        UnpauseDomain = 11,
        /// `DOM0_GETDOMAININFO`: see [`GetDomainInfo`].
        GetDomainInfo = 12,
        /// `DOM0_BUILDDOMAIN`: see [`BuildDomain`].
        BuildDomain = 13,
        /// `DOM0_IOPL`: see [`Iopl`].
        Iopl = 14,
        /// `DOM0_MSR`: see [`Msr`].
        Msr = 15,
        /// `DOM0_DEBUG`: see [`DebugOp`].
        Debug = 16,
        /// `DOM0_SETTIME`: see [`SetTime`].
        SetTime = 17,
        /// `DOM0_GETPAGEFRAMEINFO`: see [`GetPageFrameInfo`].
        GetPageFrameInfo = 18,
        /// `DOM0_READCONSOLE`: see [`ReadConsole`].
        ReadConsole = 19,
        /// `DOM0_PINCPUDOMAIN`: see [`PinCpuDomain`].
        PinCpuDomain = 20,
        /// `DOM0_GETTBUFS`: see [`GetTbufs`].
        GetTbufs = 21,
        /// `DOM0_PHYSINFO`: see [`PhysInfo`].
        PhysInfo = 22,
        /// `DOM0_PCIDEV_ACCESS`: see [`PcidevAccess`].
        PcidevAccess = 23,
        /// `DOM0_SCHED_ID`: see [`SchedId`].
        SchedId = 24,
        /// `DOM0_SHADOW_CONTROL`: see [`ShadowControl`].
        ShadowControl = 25,
        /// `DOM0_SETDOMAININITIALMEM`: see [`SetDomainInitialMem`].
        SetDomainInitialMem = 27,
        /// `DOM0_SETDOMAINMAXMEM`: see [`SetDomainMaxMem`].
        SetDomainMaxMem = 28,
        /// `DOM0_GETPAGEFRAMEINFO2`: see [`GetPageFrameInfo2`].
        GetPageFrameInfo2 = 29,
        /// `DOM0_SETDOMAINVMASSIST`: see [`SetDomainVmAssist`].
        SetDomainVmAssist = 30,
    }
}

/// An argument of `dom0_op`: a member of [`Dom0Op`]'s union.
pub trait Dom0Argument: Pod {
    /// The command the argument goes with.
    const COMMAND: Dom0Command;
}

/// What `dom0_op` points to (`dom0_op_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct Dom0Op {
    /// See [`Dom0Command`].
    pub cmd: u32,
    /// See [`Dom0Version`].
    pub interface_version: u32,
    /// The command's argument; a [`Dom0Argument`].
    pub u: Payload<72>,
}

layout!(Dom0Op: 80 { cmd: 0, interface_version: 4, u: 8 });

impl Dom0Op {
    /// A request with this argument, in the release's version.
    #[inline]
    pub fn new<T: Dom0Argument>(argument: T) -> Self {
        Self { cmd: T::COMMAND.raw(), interface_version: DOM0_INTERFACE_VERSION, u: Payload::of(argument) }
    }

    /// The command.
    #[inline]
    pub fn command(&self) -> Result<Dom0Command, UnknownValue> {
        Dom0Command::try_from(self.cmd)
    }

    /// The version.
    #[inline]
    pub fn version(&self) -> Result<Dom0Version, UnknownValue> {
        Dom0Version::try_from(self.interface_version)
    }

    /// The argument, read as this command's. Whether it is this command's is the caller's to know.
    #[inline]
    pub fn argument<T: Dom0Argument>(&self) -> T {
        self.u.read()
    }

    /// The request with its argument, by command, as a guest of this architecture lays it out.
    pub fn decode<A: GuestArch>(&self) -> Result<Dom0Request<A>, UnknownValue> {
        self.command().map(|command| Dom0Request::read(command, &self.u))
    }
}

/// Ties arguments to their commands, both ways.
macro_rules! requests {
    (
        plain { $($(#[$pmeta:meta])* $plain:ident($parg:ident)),+ $(,)? }
        arch { $($(#[$ameta:meta])* $arch:ident),+ $(,)? }
    ) => {
        /// A decoded [`Dom0Op`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Dom0Request<A: GuestArch> {
            $($(#[$pmeta])* $plain($parg),)+
            $($(#[$ameta])* $arch($arch<A>),)+
        }

        impl<A: GuestArch> Dom0Request<A> {
            fn read(command: Dom0Command, u: &Payload<72>) -> Self {
                match command {
                    $(Dom0Command::$plain => Self::$plain(u.read()),)+
                    $(Dom0Command::$arch => Self::$arch(u.read()),)+
                }
            }

            /// The command the request goes with.
            pub fn command(&self) -> Dom0Command {
                match self {
                    $(Self::$plain(_) => Dom0Command::$plain,)+
                    $(Self::$arch(_) => Dom0Command::$arch,)+
                }
            }
        }

        $(impl Dom0Argument for $parg {
            const COMMAND: Dom0Command = Dom0Command::$plain;
        })+
        $(impl<A: GuestArch> Dom0Argument for $arch<A> {
            const COMMAND: Dom0Command = Dom0Command::$arch;
        })+
    };
}

requests! {
    plain {
        /// Set or read a scheduler's parameters.
        SchedCtl(SchedCtl),
        /// Set or read a domain's scheduling.
        AdjustDom(SchedAdjdom),
        /// Destroy a domain.
        DestroyDomain(DestroyDomain),
        /// Pause a domain.
        PauseDomain(PauseDomain),
        /// Let a paused domain run.
        UnpauseDomain(UnpauseDomain),
        /// Set a domain's I/O privilege level.
        Iopl(Iopl),
        /// Read or write model-specific registers.
        Msr(Msr),
        /// Debugger's requests.
        Debug(DebugOp),
        /// Set the wall clock.
        SetTime(SetTime),
        /// Tie a domain to a CPU.
        PinCpuDomain(PinCpuDomain),
        /// Give a domain a PCI device, or take it away.
        PcidevAccess(PcidevAccess),
        /// Ask for the scheduler.
        SchedId(SchedId),
        /// Set a domain's `vm_assist`.
        SetDomainVmAssist(SetDomainVmAssist),
    }
    arch {
        /// List a domain's frames.
        GetMemList,
        /// Create a domain.
        CreateDomain,
        /// Describe a domain.
        GetDomainInfo,
        /// Set a domain's first state.
        BuildDomain,
        /// Describe a frame.
        GetPageFrameInfo,
        /// Read the hypervisor's console.
        ReadConsole,
        /// Ask for the trace buffers.
        GetTbufs,
        /// Describe the machine.
        PhysInfo,
        /// Control shadow page tables.
        ShadowControl,
        /// Set the memory a domain starts with.
        SetDomainInitialMem,
        /// Limit a domain's memory.
        SetDomainMaxMem,
        /// Describe many frames.
        GetPageFrameInfo2,
    }
}
