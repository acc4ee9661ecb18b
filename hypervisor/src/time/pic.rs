//! The old interrupt controllers, two 8259s: masked for good.
//!
//! Devices interrupt through the I/O APICs ([`crate::irq`]). A masked 8259 can still deliver a spurious interrupt, so
//! the two are moved to vectors of the hypervisor's; the sixteen from 0x20 on are fast traps of guests.

use crate::cpu::idt::Vector;
use x86_64::instructions::port::Port;

/// Initialises both 8259s, at [`Vector::PIC`] and eight above, and masks them (Intel 8259A data sheet, ICW1 to ICW4).
pub fn silence() {
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
