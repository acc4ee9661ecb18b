//! PCI configuration space, by the PC's two ports (PCI Local Bus Specification 2.3, §3.2.2.3.2).
//!
//! A machine without a bus answers with all ones. The lock [`PORTS`] makes an access one: address, then data.

use proxenos_core::pci::{PciAddress, Width};
use proxenos_core::sync::Mutex;
use x86_64::instructions::port::Port;

/// The address goes to the first, the data through four from the second on.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// Address: an access to configuration space is meant.
const ENABLE: u32 = 1 << 31;

static PORTS: Mutex<()> = Mutex::new(());

/// Selects a register, and tells through which port it is accessed.
fn select(at: PciAddress, register: u8) -> u16 {
    // SAFETY: the ports are the bus's or nobody's, and only this module uses them, under its lock.
    unsafe { Port::new(ADDRESS).write(ENABLE | u32::from(at.raw()) << 8 | u32::from(register & !3)) }
    DATA + u16::from(register & 3)
}

/// Reads a register, aligned to its width.
pub fn read(at: PciAddress, register: u8, width: Width) -> u32 {
    let _guard = PORTS.lock();
    let port = select(at, register);
    // SAFETY: reads what was selected. A domain that may use devices has asked for it, and what it does to them is its
    // own affair.
    unsafe {
        match width {
            Width::One => Port::<u8>::new(port).read().into(),
            Width::Two => Port::<u16>::new(port).read().into(),
            Width::Four => Port::<u32>::new(port).read(),
        }
    }
}

/// Writes a register, aligned to its width.
pub fn write(at: PciAddress, register: u8, width: Width, value: u32) {
    let _guard = PORTS.lock();
    let port = select(at, register);
    // SAFETY: as for `read`; where a device lies is not changed (`proxenos_core::physdev`), and what it does to memory
    // by itself is a matter of trust in who may use devices (SPECIFICATION.md).
    unsafe {
        match width {
            Width::One => Port::<u8>::new(port).write(value as u8),
            Width::Two => Port::<u16>::new(port).write(value as u16),
            Width::Four => Port::<u32>::new(port).write(value),
        }
    }
}
