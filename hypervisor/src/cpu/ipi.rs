//! What CPUs tell one another: to look again, to flush, to stand still for a while, to stop for good.
//!
//! The first three are interrupts, so they reach a CPU in a guest or in the idle loop, where it holds no lock; until it
//! comes there, one that waits with interrupts off serves flushes ([`proxenos_core::sync`]). The last is an NMI, which
//! reaches it anywhere.
//!
//! [`HOLDER`] is the one CPU that may have the others stand still. [`STOPPER`] is the one that has stopped them.

use super::idt::Vector;
use super::percpu::{Cpu, CpuId, Pending};
use super::{errand, smp, tlb};
use crate::power;
use crate::time::apic::{self, Signal};
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use proxenos_core::sync;

/// What is told by an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Something has changed for this CPU: what its domain is told, or which it runs.
    Look,
    /// Flush the TLB, if others wait for that.
    Flush,
    /// Stand still while another CPU looks at the machine.
    Hold,
}

impl Message {
    const fn vector(self) -> Vector {
        match self {
            Self::Look => Vector::LOOK,
            Self::Flush => Vector::FLUSH,
            Self::Hold => Vector::HOLD,
        }
    }
}

/// Sends a message to a CPU.
pub fn send(to: CpuId, message: Message) {
    apic::send(Cpu::of(to).apic_id(), Signal::Interrupt(message.vector()));
}

/// Has a CPU look again at what it is to do: one in a guest leaves it and comes back to it, one that sleeps wakes up,
/// and one in the hypervisor does so as soon as it leaves it. What it is to see must have been written before. (Nothing
/// is sent to the CPU this runs on, which will look anyway.)
pub fn kick(cpu: CpuId) {
    if cpu != Cpu::current().id {
        send(cpu, Message::Look);
    }
}

/// A message has come by its interrupt. True if nothing is left to do.
pub fn received(vector: Vector) -> bool {
    match vector {
        Vector::LOOK => {
            errand::serve();
            Cpu::current().set_pending(Pending::SCHEDULE);
            return false;
        }
        Vector::FLUSH => tlb::serve(),
        Vector::HOLD => stand_still(),
        _ => return false,
    }
    true
}

/// The CPU that has the others stand still, plus one; or 0.
static HOLDER: AtomicU32 = AtomicU32::new(0);
/// The others are to stand still.
static HOLD: AtomicBool = AtomicBool::new(false);
/// How many do.
static HELD: AtomicU32 = AtomicU32::new(0);

/// Does something while all other CPUs stand still, none with a lock. The caller holds none either: one of the others
/// may wait for it.
pub fn while_others_stand_still<R>(action: impl FnOnce() -> R) -> R {
    if smp::is_alone() {
        return action();
    }
    let here = Cpu::current().id;
    while HOLDER.compare_exchange(0, here.0 + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        // Whoever has the others stand still waits for this CPU, too.
        stand_still();
        sync::wait_a_little();
    }
    HOLD.store(true, Ordering::Release);
    let others = others().inspect(|&cpu| send(cpu, Message::Hold)).count();
    while HELD.load(Ordering::Acquire) as usize != others {
        sync::wait_a_little();
    }
    let result = action();
    HOLD.store(false, Ordering::Release);
    while HELD.load(Ordering::Acquire) != 0 {
        sync::wait_a_little();
    }
    HOLDER.store(0, Ordering::Release);
    result
}

/// Stands still for as long as another CPU wants it. This one holds no lock, and if a domain runs here, whoever has a
/// reference to that does nothing with it meanwhile.
pub fn stand_still() {
    if HOLD.load(Ordering::Acquire) {
        HELD.fetch_add(1, Ordering::AcqRel);
        while HOLD.load(Ordering::Acquire) {
            sync::wait_a_little();
        }
        HELD.fetch_sub(1, Ordering::AcqRel);
    }
}

fn others() -> impl Iterator<Item = CpuId> {
    let here = Cpu::current().id;
    smp::cpus().map(|cpu| cpu.id).filter(move |&id| id != here)
}

/// The CPU that has stopped the others, plus one; or 0.
static STOPPER: AtomicU32 = AtomicU32::new(0);
/// How many have stopped.
static STOPPED: AtomicU32 = AtomicU32::new(0);
/// How long they are waited for, in ticks of the TSC: a second or so. A CPU may be beyond hearing, and what the caller
/// has to say matters more.
const PATIENCE: u64 = 1 << 31;

/// Stops all other CPUs for good, wherever they are. Of several CPUs that call this at once one gets on.
pub fn stop_others() {
    let Some(cpu) = Cpu::try_current() else { return };
    match STOPPER.compare_exchange(0, cpu.id.0 + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(first) if first == cpu.id.0 + 1 => return,
        Err(_) => stop(),
    }
    let others = others().inspect(|&id| apic::send(Cpu::of(id).apic_id(), Signal::Nmi)).count();
    // SAFETY: reads the TSC, which every CPU has.
    let now = || unsafe { _rdtsc() };
    let start = now();
    while (STOPPED.load(Ordering::Acquire) as usize) < others && now().wrapping_sub(start) < PATIENCE {
        core::hint::spin_loop();
    }
}

/// How many CPUs this one has stopped.
pub fn stopped() -> u32 {
    STOPPED.load(Ordering::Acquire)
}

/// An NMI has come: if it is to stop this CPU, it does not return.
pub fn stop_if_told() {
    let stopper = STOPPER.load(Ordering::Acquire);
    if stopper != 0 && Cpu::try_current().is_some_and(|cpu| cpu.id.0 + 1 != stopper) {
        stop();
    }
}

fn stop() -> ! {
    // The NMI may come when this CPU has already stopped by itself.
    if !Cpu::current().stopped.swap(true, Ordering::Relaxed) {
        STOPPED.fetch_add(1, Ordering::AcqRel);
    }
    power::halt_this_cpu()
}
