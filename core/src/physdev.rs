//! `physdev_op`: a domain's devices on the PCI bus, and the answers to their interrupts.
//!
//! A domain with the right to devices ([`Privileges::DEVICES`](crate::domain::Privileges)) has every device but
//! bridges, which look as if they were not its own; another has those that it was given ([`granted`]). It reads and
//! writes their configuration, but for where their memory and ports lie: base addresses are the firmware's, and a
//! domain that moved one could lay a device over memory that is another's. Finding out how large they are, which goes
//! by writing all ones, is carried out on the guest's behalf and remembered ([`Sizing`]); writing back what was there
//! is accepted, anything else is not. (So Xen 2.0 has it.)
//!
//! The interrupt of a device is the one that its `INTERRUPT_LINE` register names: the firmware's routing, which
//! `PCI_INITIALISE_DEVICE` confirms.
//!
//! Locks: what a domain finds out about sizes is in its [`Sizing`], behind a mutex. Behind that, innermost, is [`BUS`]:
//! whoever accesses a device's registers holds it, so that nobody meets one that somebody, whichever domain, is just
//! sizing.

mod granted;

pub use granted::{Granted, give, retire};

use crate::addr::GuestVirt;
use crate::domain::{Domain, Privileges};
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::pci::{PciAddress, PciConfig, Width};
use crate::personality::Personality;
use crate::pirq::Trigger;
use crate::sync::{Mutex, MutexGuard};
use alloc::collections::BTreeMap;
use proxenos_abi::payload::Payload;
use proxenos_abi::physdev::{
    IrqStatusFlags, IrqStatusQuery, PciCfgregRead, PciCfgregWrite, PciInitialiseDevice, PciProbeRootBuses, PhysdevOp,
    PhysdevRequest,
};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};
use proxenos_abi::{Errno, Pirq};

/// Registers of every device's configuration (PCI Local Bus Specification 2.3, §6.1).
const VENDOR: u8 = 0x00;
const COMMAND: u8 = 0x04;
const HEADER_TYPE: u8 = 0x0e;
const BASE_ADDRESSES: core::ops::Range<u8> = 0x10..0x28;
const ROM_ADDRESS: u8 = 0x30;
/// Of bridges: the bus behind it.
const SECONDARY_BUS: u8 = 0x19;
/// Vendor of a device that is not there.
const NO_VENDOR: u32 = 0xffff;
/// Header type: there are more functions than the first.
const MULTIFUNCTION: u32 = 0x80;
/// Header types without that bit: devices that are no bridges, and bridges to another bus.
const PLAIN: u32 = 0;
const BRIDGE: u32 = 1;
/// Command: answers to ports and to memory.
const DECODES: u32 = 3;
/// Base address: of ports, of which there are 2^16.
const IS_PORTS: u32 = 1;
/// Lines that can be asked about, those that nobody can have included: 2.0's `NR_IRQS`, a vector each from 30h on.
const NR_IRQS: u32 = 256 - 0x30;
/// What a read of nothing gives.
const NOTHING: u32 = u32::MAX;

/// Base addresses that a domain is finding the sizes of: what they read as meanwhile.
#[derive(Debug, Default)]
pub struct Sizing(Mutex<BTreeMap<(PciAddress, u8), u32>>);

impl Sizing {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

/// Accesses to registers of devices, of which a sizing takes several. Two domains that have the same device, or one
/// that has it and the one that gives it, would else take the other's probe for the address, and write that back.
static BUS: Mutex<()> = Mutex::new(());

/// The bus, as one domain may use it.
struct Bus<'a, H> {
    hw: &'a H,
    dom: &'a Domain,
    sizing: MutexGuard<'a, BTreeMap<(PciAddress, u8), u32>>,
}

impl<'a, H: PciConfig> Bus<'a, H> {
    fn new(hw: &'a H, dom: &'a Domain) -> Self {
        Self { hw, dom, sizing: dom.sizing.0.lock() }
    }

    fn has_right(&self) -> bool {
        self.dom.privileges.contains(Privileges::DEVICES)
    }

    /// Whether the domain has a function that is no bridge.
    fn has(&self, at: PciAddress) -> bool {
        self.has_right() || self.dom.granted.has(at)
    }

    /// The header type of a function that is there.
    fn header_type(&self, at: PciAddress) -> Option<u32> {
        let header_type = |at: PciAddress| {
            let is_there = self.hw.pci_read(at, VENDOR, Width::Two) != NO_VENDOR;
            is_there.then(|| self.hw.pci_read(at, HEADER_TYPE, Width::One))
        };
        // A device of one function may answer for all.
        if at.function() != 0 && header_type(at.first_function())? & MULTIFUNCTION == 0 {
            return None;
        }
        header_type(at)
    }

    /// The device that a request names, if there is one and the domain has it.
    fn device(&self, bus: u32, device: u32, function: u32) -> Result<PciAddress, Errno> {
        if !self.dom.drives_devices() {
            return Err(Errno::EPERM);
        }
        let at = PciAddress::new(bus, device, function).ok_or(Errno::EINVAL)?;
        match self.header_type(at).ok_or(Errno::ENODEV)? & !MULTIFUNCTION {
            PLAIN if self.has(at) => Ok(at),
            _ => Err(Errno::EPERM),
        }
    }

    fn read(&self, request: &PciCfgregRead) -> Result<u32, Errno> {
        let at = self.device(request.bus, request.dev, request.func)?;
        let (register, width) = register(request.reg, request.len)?;
        let _bus = BUS.lock();
        if is_base_address(register)
            && width == Width::Four
            && let Some(size) = self.sizing.get(&(at, register))
        {
            return Ok(*size);
        }
        Ok(self.hw.pci_read(at, register, width))
    }

    fn write(&mut self, request: &PciCfgregWrite) -> Result<(), Errno> {
        let at = self.device(request.bus, request.dev, request.func)?;
        let (register, width) = register(request.reg, request.len)?;
        let _bus = BUS.lock();
        if is_base_address(register & !3) {
            // A part of one cannot be sized, and must not change.
            return if width == Width::Four {
                self.write_base_address(at, register, request.value)
            } else {
                Err(Errno::EPERM)
            };
        }
        self.hw.pci_write(at, register, width, request.value);
        Ok(())
    }

    fn write_base_address(&mut self, at: PciAddress, register: u8, value: u32) -> Result<(), Errno> {
        let now = self.hw.pci_read(at, register, Width::Four);
        let is_probe = match register {
            ROM_ADDRESS => value | 1 == u32::MAX,
            _ => value == u32::MAX || now & IS_PORTS != 0 && value == 0xffff,
        };
        if is_probe {
            let size = self.size(at, register, value);
            self.sizing.insert((at, register), size);
            return Ok(());
        }
        self.sizing.remove(&(at, register));
        // A ROM may be turned off, for all the guest knows.
        if value == now || register == ROM_ADDRESS && value == 0 { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// What a base address reads as after a write, without its having an effect: the device answers at no address
    /// meanwhile. [`BUS`] is held.
    fn size(&self, at: PciAddress, register: u8, value: u32) -> u32 {
        let hw = self.hw;
        let (command, now) = (hw.pci_read(at, COMMAND, Width::Two), hw.pci_read(at, register, Width::Four));
        hw.pci_write(at, COMMAND, Width::Two, command & !DECODES);
        // A ROM that was off stays so.
        let probe = if register == ROM_ADDRESS { value & !1 } else { value };
        hw.pci_write(at, register, Width::Four, probe);
        let size = hw.pci_read(at, register, Width::Four);
        hw.pci_write(at, register, Width::Four, now);
        hw.pci_write(at, COMMAND, Width::Two, command);
        size
    }

    /// A bit for each bus that has a device of the domain's. Buses are found from bus 0 on, through bridges.
    fn root_buses(&self) -> [u32; 8] {
        let mut has_device = [0; 8];
        if !self.dom.drives_devices() {
            return has_device;
        }
        let bit = |bus: u32| (bus as usize / 32, 1 << (bus % 32));
        let (mut known, mut looked_at) = ([0_u32; 8], [0_u32; 8]);
        known[0] = 1;
        // Every bus once, however the bridges are set.
        while let Some(bus) = (0..256).find(|&bus| known[bit(bus).0] & !looked_at[bit(bus).0] & bit(bus).1 != 0) {
            let (word, mask) = bit(bus);
            looked_at[word] |= mask;
            for slot in 0..32 * 8 {
                let Some(at) = PciAddress::new(bus, slot / 8, slot % 8) else { continue };
                match self.header_type(at).map(|header_type| header_type & !MULTIFUNCTION) {
                    Some(PLAIN) if self.has(at) => has_device[word] |= mask,
                    Some(BRIDGE) => {
                        let (word, mask) = bit(self.hw.pci_read(at, SECONDARY_BUS, Width::One));
                        known[word] |= mask;
                    }
                    _ => {}
                }
            }
        }
        has_device
    }
}

/// Whether a register is a base address, or the ROM's.
fn is_base_address(register: u8) -> bool {
    register.is_multiple_of(4) && (BASE_ADDRESSES.contains(&register) || register == ROM_ADDRESS)
}

/// A register and width as a request has them. One that is not aligned is as the bus has it: its lower bits do not
/// count.
fn register(register: u32, length: u32) -> Result<(u8, Width), Errno> {
    let register = u8::try_from(register).map_err(|_| Errno::EINVAL)?;
    match length {
        1 => Ok((register, Width::One)),
        2 => Ok((register & !1, Width::Two)),
        4 => Ok((register & !3, Width::Four)),
        _ => Err(Errno::EINVAL),
    }
}

impl<H: Hardware> Caller<'_, H> {
    /// `physdev_op(op)`. The operation is copied back whatever becomes of it, as in Xen 2.0.
    // Out of line, as whatever is rare: a multicall holds every call's code.
    #[cold]
    #[inline(never)]
    pub(crate) fn physdev_op<P: Personality>(&mut self, at: GuestVirt) -> Result<u64, Errno> {
        let mut op = PhysdevOp::new_zeroed();
        self.copy_from_guest::<P>(at, op.as_mut_bytes())?;
        let result = self.carry_out_physdev_op(&mut op);
        let copied = self.copy_to_guest::<P>(at, op.as_bytes());
        result.and(copied).map(|()| 0)
    }

    fn carry_out_physdev_op(&self, op: &mut PhysdevOp) -> Result<(), Errno> {
        let (hw, dom) = (&self.host.hw, self.dom);
        match op.decode().map_err(|_| Errno::EINVAL)? {
            PhysdevRequest::PciCfgregRead(request) => {
                let result = Bus::new(hw, dom).read(&request);
                write(&mut op.u, PciCfgregRead { value: result.unwrap_or(NOTHING), ..request });
                result.map(drop)
            }
            PhysdevRequest::PciCfgregWrite(request) => Bus::new(hw, dom).write(&request),
            PhysdevRequest::PciInitialiseDevice(PciInitialiseDevice { bus, dev, func }) => {
                Bus::new(hw, dom).device(bus, dev, func).map(drop)
            }
            PhysdevRequest::PciProbeRootBuses(_) => {
                write(&mut op.u, PciProbeRootBuses { busmask: Bus::new(hw, dom).root_buses() });
                Ok(())
            }
            PhysdevRequest::IrqUnmaskNotify => {
                if let Some(pirqs) = dom.pirqs.get() {
                    pirqs.unmask_notify(dom, hw);
                }
                Ok(())
            }
            PhysdevRequest::IrqStatusQuery(request) => {
                if request.irq >= NR_IRQS {
                    return Err(Errno::EINVAL);
                }
                let trigger = dom.pirqs.get().and_then(|pirqs| pirqs.trigger(Pirq(request.irq)));
                let flags = match trigger {
                    Some(Trigger::Edge) => IrqStatusFlags::empty(),
                    // A line that is not there counts as level-triggered, as in 2.0.
                    Some(Trigger::Level) | None => IrqStatusFlags::NEEDS_UNMASK_NOTIFY,
                };
                write(&mut op.u, IrqStatusQuery { flags: flags.bits(), ..request });
                Ok(())
            }
        }
    }
}

/// Writes results over the operation's argument.
fn write<T: proxenos_abi::Pod>(union: &mut Payload<32>, argument: T) {
    let mut payload = *union;
    payload.write(argument);
    *union = payload;
}

#[cfg(test)]
mod tests;
