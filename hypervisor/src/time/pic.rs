//! The old interrupt controllers: the two 8259s and the I/O APICs, all masked.
//!
//! Devices belong to guests, and no guest has been given an interrupt line yet. A masked 8259 can still deliver a
//! spurious interrupt, so the two are moved to vectors of the hypervisor's; the sixteen from 0x20 on are fast traps of
//! guests.

use crate::acpi;
use crate::cpu::idt::Vector;
use crate::mm::ioremap::{self, Access};
use proxenos_abi::MachineAddr;
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;

/// Masks everything.
pub fn silence() {
    silence_8259s();
    for &at in &acpi::machine().io_apics {
        silence_io_apic(at);
    }
}

/// Initialises both 8259s, at [`Vector::PIC`] and eight above, and masks them (Intel 8259A data sheet, ICW1 to ICW4).
fn silence_8259s() {
    const MASTER: u16 = 0x20;
    const SLAVE: u16 = 0xa0;
    let initialise = |base: u16, vector: u8, cascade: u8| {
        let words = [(base, 0x11), (base + 1, vector), (base + 1, cascade), (base + 1, 0x01), (base + 1, 0xff)];
        for (port, value) in words {
            // SAFETY: these ports are the 8259s' or nobody's; no interrupt is expected from them.
            unsafe { Port::<u8>::new(port).write(value) };
        }
    };
    initialise(MASTER, Vector::PIC.0, 1 << 2);
    initialise(SLAVE, Vector::PIC.0 + 8, 2);
}

/// Masks all inputs of an I/O APIC (Intel 82093AA data sheet, section 3.2). It stays mapped, which keeps its frame from
/// guests ([`ioremap::device_frames`]).
fn silence_io_apic(at: MachineAddr) {
    const VERSION: u32 = 1;
    const REDIRECTION: u32 = 0x10;
    const MASKED: u32 = 1 << 16;
    const SIZE: u64 = 0x20;
    let Ok(base) = ioremap::map(at, SIZE, Access::Device) else {
        log::warn!("no room to map the I/O APIC at {at:#x}");
        return;
    };
    let select: *mut u32 = base.as_mut_ptr();
    let window: *mut u32 = VirtAddr::as_mut_ptr(base + 0x10u64);
    // SAFETY: the MADT says that an I/O APIC's registers are here: an index at 0, the register it selects at 0x10.
    // Nobody else uses them.
    unsafe {
        select.write_volatile(VERSION);
        let last = window.read_volatile() >> 16 & 0xff;
        for input in 0..=last {
            select.write_volatile(REDIRECTION + 2 * input);
            window.write_volatile(MASKED);
            select.write_volatile(REDIRECTION + 2 * input + 1);
            window.write_volatile(0);
        }
        log::debug!("I/O APIC at {at:#x}: {} inputs, masked", last + 1);
    }
}
