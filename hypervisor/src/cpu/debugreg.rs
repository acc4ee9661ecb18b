//! The CPU's debug registers, which are the running guest's.
//!
//! They stay armed while the hypervisor runs: no breakpoint lies in its range ([`proxenos_core::debugreg`]), so all it
//! can run into is one on the guest's memory, while it copies from or to that. Such a hit is dropped, as in Xen 2.0
//! ([`clear_status`]); so is one that the guest had held off by `mov ss` until its entry into the hypervisor
//! (CVE-2018-8897). #DB has a stack of its own, and nothing that runs on it touches memory of a guest's, so it never
//! nests.
//!
//! DR6 is idle but between a #DB and its handler: what a guest reads is its virtual CPU's. No lock.

use core::arch::asm;
use proxenos_core::debugreg::DebugRegisters;

/// DR6 with nothing to report: bits 4 to 11 and 16 to 31 are always set (Intel SDM vol. 3 §17.2.3).
const IDLE: u64 = 0xffff_0ff0;

/// Makes a guest's breakpoints this CPU's.
pub fn load_breakpoints(registers: &DebugRegisters) {
    let [first, second, third, fourth] = registers.addresses().map(|at| at.0);
    // SAFETY: the values are such as disturb nobody but the guest (see above), and general detection is off, so none of
    // these traps. Off while they change: the old conditions must not meet the new addresses.
    unsafe {
        asm!(
            "mov dr7, {off}",
            "mov dr0, {first}", "mov dr1, {second}", "mov dr2, {third}", "mov dr3, {fourth}",
            "mov dr7, {control}",
            off = in(reg) 0u64,
            first = in(reg) first,
            second = in(reg) second,
            third = in(reg) third,
            fourth = in(reg) fourth,
            control = in(reg) registers.control(),
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// What DR6 has collected, which is then forgotten.
#[must_use]
pub fn take_status() -> u64 {
    let status: u64;
    // SAFETY: reads a register that nothing of ours depends on.
    unsafe { asm!("mov {}, dr6", out(reg) status, options(nomem, nostack, preserves_flags)) }
    clear_status();
    status
}

/// Forgets what DR6 has collected.
pub fn clear_status() {
    // SAFETY: writing the status register of debug exceptions changes no control flow.
    unsafe { asm!("mov dr6, {}", in(reg) IDLE, options(nomem, nostack, preserves_flags)) }
}
