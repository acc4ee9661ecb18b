//! Proxenos, the hypervisor: the part of it that needs the machine.
//!
//! [`boot`] leads from the first instruction to [`kmain`], where everything the hypervisor itself needs works: its
//! address space ([`mm`]), traps ([`cpu`]), the console, time, interrupts, power. From there [`guest`] takes over.
//!
//! Rules that hold everywhere:
//!
//! - Interrupts are disabled whenever the hypervisor runs, except at the one `hlt` of the idle loop. So nothing here is
//!   ever interrupted by itself, but by NMI, machine check and its own faults, and a spin lock is all a lock needs to
//!   be.
//! - Who waits with interrupts off, for a lock or for another CPU, serves what others want of it meanwhile: all locks
//!   are [`proxenos_core::sync::Mutex`], but those that nobody waits for with anything else to do.
//! - A CPU has one stack; what is per CPU lies at its top ([`cpu::percpu`]).
//! - A fault in the hypervisor is the end, except at the instructions of [`cpu::extable`]; it is reported ([`fault`]).
#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod boot;
mod console;
mod cpu;
mod domain_options;
mod fault;
mod guest;
mod irq;
mod memory_shares;
mod mm;
mod options;
mod pci;
mod power;
mod provoke;
mod symbols;
mod time;

use cpu::smp;
use options::CpuCheck;

/// Runs on the boot CPU's own stack, with address space, heap and traps in order: brings up the rest and leaves for the
/// guests.
extern "C" fn kmain() -> ! {
    acpi::init();
    time::init();
    cpu::speculation::report();
    smp::start();
    irq::open_console();
    if boot::options().cpu_check == CpuCheck::Run {
        smp::check();
    }
    if let Some(what) = boot::options().provoke.filter(|&what| provoke::is_due_at_boot(what)) {
        provoke::provoke(what);
    }
    guest::start()
}
