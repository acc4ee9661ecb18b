//! Leaving: power off, reboot, QEMU's debug exit, halt.

use crate::acpi;
use crate::boot;
use crate::cpu::ipi;
use crate::options::{IoPort, OnFatal};
use core::sync::atomic::{AtomicU16, Ordering};
use x86_64::instructions::{hlt, interrupts, port::Port};
use x86_64::structures::DescriptorTablePointer;

/// The port of QEMU's isa-debug-exit device, or 0.
static DEBUG_EXIT: AtomicU16 = AtomicU16::new(0);

/// An exit code for QEMU's isa-debug-exit device, which makes QEMU end with status `2 * code + 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitCode(pub u8);

impl ExitCode {
    /// What a fatal error of the hypervisor ends with.
    pub const FATAL: Self = Self(0x7f);
}

/// Remembers where the debug-exit device is.
pub fn init_debug_exit(port: Option<IoPort>) {
    DEBUG_EXIT.store(port.map_or(0, |port| port.0), Ordering::Relaxed);
}

/// Where the debug-exit device is, if there is one.
pub fn debug_exit_port() -> Option<IoPort> {
    let port = DEBUG_EXIT.load(Ordering::Relaxed);
    (port != 0).then_some(IoPort(port))
}

/// Ends QEMU with `code`, if there is a debug-exit device. Returns if there is none.
pub fn debug_exit(code: ExitCode) {
    let port = DEBUG_EXIT.load(Ordering::Relaxed);
    if port != 0 {
        // SAFETY: the user says that at this port is a device which ends the machine.
        unsafe { Port::new(port).write(code.0) }
    }
}

/// Turns the machine off (ACPI state S5); if it has no ACPI or does not obey, halts.
pub fn power_off() -> ! {
    ipi::stop_others();
    acpi::enter_s5();
    log::error!("this machine cannot be turned off by ACPI: halted");
    halt()
}

/// Starts the machine anew: by ACPI's reset register, the PC's reset control register, the keyboard controller, and a
/// triple fault, whichever works first.
pub fn reboot() -> ! {
    interrupts::disable();
    ipi::stop_others();
    acpi::reset();
    // SAFETY: these ports reset the machine or do nothing; nothing of its state is needed any more.
    unsafe {
        // Reset control register of Intel's chip sets: prepare, then hard reset.
        Port::<u8>::new(0xcf9).write(0x02);
        Port::<u8>::new(0xcf9).write(0x06);
        spin_for_a_while();
        // Keyboard controller: pulse the CPU's reset line.
        Port::<u8>::new(0x64).write(0xfe);
        spin_for_a_while();
        // Without a usable interrupt descriptor table any exception is a triple fault, which resets a PC.
        x86_64::instructions::tables::lidt(&DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() });
        core::arch::asm!("ud2", options(noreturn));
    }
}

/// Gives the machine time to obey.
fn spin_for_a_while() {
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
}

/// Stops the machine for good.
pub fn halt() -> ! {
    ipi::stop_others();
    halt_this_cpu()
}

/// Stops this CPU for good.
pub fn halt_this_cpu() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

/// Starts the machine anew, or halts it if the options say so (`noreboot`).
pub fn restart() -> ! {
    match boot::options().on_fatal {
        OnFatal::Halt => halt(),
        OnFatal::Reboot => reboot(),
    }
}

/// The end after a fatal error: by the debug-exit device if there is one, else as the options say.
pub fn stop_fatally() -> ! {
    debug_exit(ExitCode::FATAL);
    restart()
}
