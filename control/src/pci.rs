//! PCI configuration space, by `physdev_op`: the control domain has all devices but bridges.

use alloc::vec::Vec;
use proxenos_guest::abi::physdev::{
    PciCfgregRead, PciCfgregWrite, PciInitialiseDevice, PciProbeRootBuses, PhysdevArgument, PhysdevOp,
};
use proxenos_guest::abi::{Errno, Pirq};
use proxenos_guest::hypercall;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

/// What a read of nothing gives.
const NOTHING: u32 = u32::MAX;
/// The register with the device's interrupt line in its lowest byte.
const INTERRUPT: u8 = 0x3c;

/// The buses, as this domain may use them.
pub struct Bus;

/// Carries a request out, and answers it as it was filled in.
fn request<T: PhysdevArgument>(argument: T) -> Result<T, Errno> {
    let mut op = PhysdevOp::new(argument);
    // SAFETY: reads and writes configuration registers only; base addresses cannot be moved.
    unsafe { hypercall::physdev_op(&mut op) }?;
    Ok(op.argument())
}

fn place(at: DeviceFunction) -> (u32, u32, u32) {
    (at.bus.into(), at.device.into(), at.function.into())
}

impl ConfigurationAccess for Bus {
    fn read_word(&self, at: DeviceFunction, register: u8) -> u32 {
        let (bus, dev, func) = place(at);
        let read = PciCfgregRead { bus, dev, func, reg: register.into(), len: 4, value: NOTHING };
        request(read).map_or(NOTHING, |read| read.value)
    }

    fn write_word(&mut self, at: DeviceFunction, register: u8, value: u32) {
        let (bus, dev, func) = place(at);
        let write = PciCfgregWrite { bus, dev, func, reg: register.into(), len: 4, value };
        // A register that cannot be written reads as it did; whoever cares looks.
        let _ = request(write);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// All functions of devices that are there, in the order of their addresses.
pub fn functions() -> Vec<DeviceFunction> {
    let buses = request(PciProbeRootBuses { busmask: [0; 8] }).map_or([0; 8], |answer| answer.busmask);
    let buses = (0..=u8::MAX).filter(|&bus| buses[usize::from(bus) / 32] >> (bus % 32) & 1 != 0);
    let all = buses.flat_map(|bus| {
        (0..32).flat_map(move |device| (0..8).map(move |function| DeviceFunction { bus, device, function }))
    });
    all.filter(|&at| Bus.read_word(at, 0) as u16 != u16::MAX).collect()
}

/// Makes a device ready for use, and tells its interrupt's line.
///
/// # Errors
/// As `physdev_op` has them.
pub fn initialise(at: DeviceFunction) -> Result<Pirq, Errno> {
    let (bus, dev, func) = place(at);
    request(PciInitialiseDevice { bus, dev, func })?;
    Ok(Pirq(Bus.read_word(at, INTERRUPT) & 0xff))
}

/// Says that interrupts have been dealt with.
pub fn interrupts_handled() {
    // SAFETY: lets interrupts come again, which are events.
    let _ = unsafe { hypercall::physdev_op(&mut PhysdevOp::irq_unmask_notify()) };
}
