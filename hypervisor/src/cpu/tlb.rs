//! This CPU's TLB and page-table base, and those of the others through [`proxenos_core::shootdown`].
//!
//! What is here keeps the books for that: whoever empties this CPU's TLB or loads CR3 does it here, once there are
//! other CPUs. A CPU that is to run a guest says so first ([`begin_to_walk`]), and goes back to the hypervisor's own
//! tables when it has none to run ([`rest`]), so that nobody interrupts it for the sake of what it cannot have. No
//! lock.

use super::ipi::{self, Message};
use super::percpu::{Cpu, CpuId};
use super::smp;
use crate::mm::paging;
use core::arch::asm;
use core::sync::atomic::AtomicU64;
use proxenos_core::addr::Mfn;
use proxenos_core::shootdown::{self, CpuTlb, Cpus, FlushClock};
use proxenos_core::sync;

/// The flush clock of the machine.
pub static CLOCK: FlushClock = FlushClock(AtomicU64::new(1));

/// Drops every translation of this CPU's.
#[inline]
pub fn flush_all() {
    let time = CLOCK.begin();
    // No translation is global, so reloading CR3 drops them all.
    // SAFETY: the tables stay the ones that are loaded.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) }
    Cpu::current().tlb.flushed(time);
}

/// This CPU is about to load a guest's tables in place of the hypervisor's own: from now on it takes part in flushes.
pub fn begin_to_walk() {
    Cpu::current().tlb.begin_to_walk();
}

/// Makes a guest's table this CPU's, whose translations are dropped. The CPU has said that it walks such
/// ([`begin_to_walk`]).
///
/// # Safety
/// The upper slots of the table are the hypervisor's; whatever it leads to is validated.
#[inline]
pub unsafe fn load_root(l4: Mfn) {
    // SAFETY: as the caller promises.
    unsafe { load_root_of(Cpu::current(), l4) }
}

/// As [`load_root`], of this CPU (`cpu`).
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn load_root_of(cpu: &Cpu, l4: Mfn) {
    debug_assert!(cpu.tlb.walks(), "a CPU that rests loads a guest's tables");
    let time = CLOCK.begin();
    // SAFETY: as the caller promises.
    unsafe { asm!("mov cr3, {}", in(reg) l4.addr().0, options(nostack, preserves_flags)) }
    cpu.tlb.flushed(time);
}

/// The same without moving the clock, which all CPUs share: the flush counts as older than it is,
/// which may cost another.
///
/// # Safety
/// As there.
#[inline]
pub unsafe fn load_root_without_a_tick(cpu: &Cpu, l4: Mfn) {
    let time = CLOCK.now();
    // SAFETY: as the caller promises.
    unsafe { asm!("mov cr3, {}", in(reg) l4.addr().0, options(nostack, preserves_flags)) }
    cpu.tlb.flushed(time);
}

/// Makes the hypervisor's own tables this CPU's: it holds nothing of a guest's any more, and is not asked to flush.
pub fn rest() {
    let time = CLOCK.begin();
    paging::load();
    let tlb = &Cpu::current().tlb;
    tlb.flushed(time);
    tlb.rest();
}

/// Flushes every TLB of the machine that was last flushed before `stamp` was taken, and returns when all have.
#[inline]
pub fn flush_if_older(stamp: u32) {
    if smp::is_alone() {
        if !Cpu::current().tlb.has_flushed_alone_since(stamp) {
            flush_all();
        }
    } else {
        flush_all_older(stamp);
    }
}

#[cold]
#[inline(never)]
fn flush_all_older(stamp: u32) {
    shootdown::flush_older(&Machine { here: Cpu::current() }, stamp);
}

/// Does what other CPUs want of this one's TLB.
pub fn serve() {
    Cpu::current().tlb.serve(flush_all);
}

/// The CPUs, seen from one of them.
struct Machine {
    here: &'static Cpu,
}

impl Cpus for Machine {
    fn clock(&self) -> &FlushClock {
        &CLOCK
    }

    fn tlbs(&self) -> impl Iterator<Item = &CpuTlb> {
        smp::cpus().map(|cpu| &cpu.tlb)
    }

    fn here(&self) -> usize {
        self.here.id.0 as usize
    }

    fn flush_here(&self) {
        flush_all();
    }

    fn interrupt(&self, cpu: usize) {
        ipi::send(CpuId(cpu as u32), Message::Flush);
    }

    fn wait(&self) {
        sync::wait_a_little();
    }
}
