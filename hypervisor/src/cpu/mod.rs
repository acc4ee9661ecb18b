//! The processor: descriptor tables, trap entry, per-CPU data, features.

pub mod entry;
pub mod extable;
pub mod features;
pub mod gdt;
pub mod idt;
pub mod percpu;

/// The one place where the hypervisor lets itself be interrupted: sleeps until an interrupt has come, unless something
/// is pending already. What is pending then is for [`percpu::Cpu::take_pending`]; it may be nothing.
///
/// The caller holds no lock that an interrupt's handler takes (the console's).
pub fn wait_for_interrupt() {
    if !percpu::Cpu::current().is_pending() {
        // SAFETY: every gate is in place. `sti` takes effect behind the next instruction, so no interrupt slips in
        // before `hlt`.
        unsafe { core::arch::asm!("sti", "hlt", "cli", options(nostack)) }
    }
}
