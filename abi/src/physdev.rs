//! Access to PCI devices and their interrupts (`physdev.h`).
//!
//! `physdev_op` takes a pointer to a [`PhysdevOp`]: a command and a union of arguments, into which results are written
//! back. The layout is the same for both architectures.

use crate::arch::Pod;
use crate::errno::UnknownValue;
use crate::payload::Payload;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

numbers! {
    /// Command of `physdev_op` (`PHYSDEVOP_*`).
    pub enum PhysdevCommand: u32 {
        /// `PHYSDEVOP_PCI_CFGREG_READ`: see [`PciCfgregRead`].
        PciCfgregRead = 0,
        /// `PHYSDEVOP_PCI_CFGREG_WRITE`: see [`PciCfgregWrite`].
        PciCfgregWrite = 1,
        /// `PHYSDEVOP_PCI_INITIALISE_DEVICE`: see [`PciInitialiseDevice`].
        PciInitialiseDevice = 2,
        /// `PHYSDEVOP_PCI_PROBE_ROOT_BUSES`: see [`PciProbeRootBuses`].
        PciProbeRootBuses = 3,
        /// `PHYSDEVOP_IRQ_UNMASK_NOTIFY`: interrupts whose channels are unmasked may come again. No argument.
        IrqUnmaskNotify = 4,
        /// `PHYSDEVOP_IRQ_STATUS_QUERY`: see [`IrqStatusQuery`].
        IrqStatusQuery = 5,
    }
}

/// An argument of `physdev_op`: a member of [`PhysdevOp`]'s union.
pub trait PhysdevArgument: Pod {
    /// The command the argument goes with.
    const COMMAND: PhysdevCommand;
}

/// Reads from a device's configuration space (`physdevop_pci_cfgreg_read_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PciCfgregRead {
    /// In: bus number.
    pub bus: u32,
    /// In: device number.
    pub dev: u32,
    /// In: function number.
    pub func: u32,
    /// In: byte offset.
    pub reg: u32,
    /// In: bytes: 1, 2 or 4.
    pub len: u32,
    /// Out: the value.
    pub value: u32,
}

layout!(PciCfgregRead: 24 { bus: 0, dev: 4, func: 8, reg: 12, len: 16, value: 20 });

/// Writes to a device's configuration space (`physdevop_pci_cfgreg_write_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PciCfgregWrite {
    /// In: bus number.
    pub bus: u32,
    /// In: device number.
    pub dev: u32,
    /// In: function number.
    pub func: u32,
    /// In: byte offset.
    pub reg: u32,
    /// In: bytes: 1, 2 or 4.
    pub len: u32,
    /// In: the value.
    pub value: u32,
}

layout!(PciCfgregWrite: 24 { bus: 0, dev: 4, func: 8, reg: 12, len: 16, value: 20 });

/// Makes a device ready for use; its interrupt is routed now (`physdevop_pci_initialise_device_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PciInitialiseDevice {
    /// In: bus number.
    pub bus: u32,
    /// In: device number.
    pub dev: u32,
    /// In: function number.
    pub func: u32,
}

layout!(PciInitialiseDevice: 12 { bus: 0, dev: 4, func: 8 });

/// Finds the buses at which to begin a search (`physdevop_pci_probe_root_buses_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PciProbeRootBuses {
    /// Out: a bit a bus.
    pub busmask: [u32; 8],
}

layout!(PciProbeRootBuses: 32 { busmask: 0 });

/// Asks how an interrupt has to be handled (`physdevop_irq_status_query_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct IrqStatusQuery {
    /// In: the interrupt.
    pub irq: u32,
    /// Out: see [`IrqStatusFlags`].
    pub flags: u32,
}

layout!(IrqStatusQuery: 8 { irq: 0, flags: 4 });

bitflags! {
    /// `flags` of [`IrqStatusQuery`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqStatusFlags: u32 {
        /// `PHYSDEVOP_IRQ_NEEDS_UNMASK_NOTIFY`: after each interrupt, [`PhysdevCommand::IrqUnmaskNotify`] is due.
        const NEEDS_UNMASK_NOTIFY = 1 << 0;
    }
}

/// What `physdev_op` points to (`physdev_op_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct PhysdevOp {
    /// See [`PhysdevCommand`].
    pub cmd: u32,
    /// `__pad`.
    pub pad: u32,
    /// The command's argument; a [`PhysdevArgument`].
    pub u: Payload<32>,
}

layout!(PhysdevOp: 40 { cmd: 0, pad: 4, u: 8 });

impl PhysdevOp {
    /// A request with this argument.
    #[inline]
    pub fn new<T: PhysdevArgument>(argument: T) -> Self {
        Self { cmd: T::COMMAND.raw(), pad: 0, u: Payload::of(argument) }
    }

    /// `PHYSDEVOP_IRQ_UNMASK_NOTIFY`, which has no argument.
    #[inline]
    pub fn irq_unmask_notify() -> Self {
        Self { cmd: PhysdevCommand::IrqUnmaskNotify.raw(), pad: 0, u: Payload::ZERO }
    }

    /// The command.
    #[inline]
    pub fn command(&self) -> Result<PhysdevCommand, UnknownValue> {
        PhysdevCommand::try_from(self.cmd)
    }

    /// The argument, read as this command's. Whether it is this command's is the caller's to know.
    #[inline]
    pub fn argument<T: PhysdevArgument>(&self) -> T {
        self.u.read()
    }

    /// The request with its argument, by command.
    pub fn decode(&self) -> Result<PhysdevRequest, UnknownValue> {
        Ok(match self.command()? {
            PhysdevCommand::PciCfgregRead => PhysdevRequest::PciCfgregRead(self.argument()),
            PhysdevCommand::PciCfgregWrite => PhysdevRequest::PciCfgregWrite(self.argument()),
            PhysdevCommand::PciInitialiseDevice => PhysdevRequest::PciInitialiseDevice(self.argument()),
            PhysdevCommand::PciProbeRootBuses => PhysdevRequest::PciProbeRootBuses(self.argument()),
            PhysdevCommand::IrqUnmaskNotify => PhysdevRequest::IrqUnmaskNotify,
            PhysdevCommand::IrqStatusQuery => PhysdevRequest::IrqStatusQuery(self.argument()),
        })
    }
}

/// A decoded [`PhysdevOp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhysdevRequest {
    /// Read configuration space.
    PciCfgregRead(PciCfgregRead),
    /// Write configuration space.
    PciCfgregWrite(PciCfgregWrite),
    /// Make a device ready.
    PciInitialiseDevice(PciInitialiseDevice),
    /// Find the root buses.
    PciProbeRootBuses(PciProbeRootBuses),
    /// Interrupts may come again.
    IrqUnmaskNotify,
    /// Ask how an interrupt has to be handled.
    IrqStatusQuery(IrqStatusQuery),
}

macro_rules! arguments {
    ($($argument:ident),+ $(,)?) => {
        $(impl PhysdevArgument for $argument {
            const COMMAND: PhysdevCommand = PhysdevCommand::$argument;
        })+
    };
}

arguments!(PciCfgregRead, PciCfgregWrite, PciInitialiseDevice, PciProbeRootBuses, IrqStatusQuery);
