//! Non-maskable interrupts: counted, and asked for their reason.
//!
//! The handler may have interrupted anybody, the holder of any lock too: it takes none, and only notes what there is
//! for domain 0 to know. A guest that it interrupts goes on at once: domain 0 is told at the next tick at the latest.
//! Those of devices come to the boot CPU; another CPU sends one to have this one stop ([`ipi`]).

use super::ipi;
use super::percpu::{Cpu, Pending};
use core::sync::atomic::Ordering;
use proxenos_core::virq::HardwareErrors;
use x86_64::instructions::port::Port;

/// The PC/AT's port that tells what hardware reported an error.
const STATUS: u16 = 0x61;

/// An NMI.
pub fn handle() {
    ipi::stop_if_told();
    let Some(cpu) = Cpu::try_current() else { return };
    cpu.nmi_count.fetch_add(1, Ordering::Relaxed);
    let mut port = Port::<u8>::new(STATUS);
    // SAFETY: the port is the PC/AT's or nobody's. What is written turns off who has reported an error; the other bits,
    // the speaker's, stay. (Somebody who was just changing those is the hypervisor's early boot, before there is an NMI
    // to be had.)
    let errors = unsafe {
        let (errors, control) = HardwareErrors::of_port(port.read());
        if let Some(control) = control {
            port.write(control);
        }
        errors
    };
    let mut pending = Pending::empty();
    pending.set(Pending::PARITY_ERROR, errors.parity);
    pending.set(Pending::IO_ERROR, errors.io);
    cpu.set_pending(pending);
}
