//! The hypervisor's part in the protocol of the shared_info page: an event is set pending, a domain goes to sleep, an
//! upcall is due.
//!
//! Promises: no lock is taken; an event that finds its port pending, masked or its selector bit set causes no upcall
//! (the edge is lost, as the comment in `shared_info_t` says); `upcall_pending` is set last, so whoever sees it set
//! finds the port's bits set too; and no wakeup is lost. A guest that unmasks a port and then looks, one that goes to
//! sleep, one that has just taken an upcall: each meets, or is met by, every event that is sent meanwhile on another
//! CPU.
//!
//! `core/event-model` compiles this file over a model checker's atomics and tries the orders out. That x86's locked
//! instructions order all that is before and behind them is relied upon, here and by guests.

use crate::addr::{MachineAddr, Mfn, PAGE_SHIFT};
use crate::machine::MachineMemory;
use crate::run_state::{RunState, RunWord};
use proxenos_abi::Port;
use proxenos_abi::shared_info::SharedInfo;

/// Address of the shared_info field at a byte offset.
#[inline]
const fn field(shared_info: Mfn, offset: usize) -> MachineAddr {
    MachineAddr((shared_info.0 << PAGE_SHIFT) + offset as u64)
}

/// Sets a port pending on a shared_info page, and calls `notify` if that is to cause an upcall: not if the port was
/// pending already, is masked, or others of its word await service. The port must be below 1024
/// (`NR_EVENT_CHANNELS`).
#[inline(always)]
pub fn signal<M: MachineMemory>(memory: &M, shared_info: Mfn, port: Port, notify: impl FnOnce()) {
    let (word, bit) = (port.0 / 32 % 32, 1 << (port.0 % 32));
    // Both from one address: that costs the least.
    let first = field(shared_info, 4 * word as usize);
    let pending = MachineAddr(first.0 + SharedInfo::EVTCHN_PENDING as u64);
    let mask = MachineAddr(first.0 + SharedInfo::EVTCHN_MASK as u64);
    let selector = field(shared_info, SharedInfo::EVTCHN_PENDING_SEL);
    // The order of these four is the interface: the guest clears in the opposite one.
    if memory.or32(pending, bit) & bit != 0
        || memory.load32(mask) >> (port.0 % 32) & 1 != 0
        || memory.or32(selector, 1 << word) & (1 << word) != 0
    {
        return;
    }
    // The flag is the first byte of its 32-bit word, so its bit 0 is the word's.
    memory.or32(field(shared_info, SharedInfo::EVTCHN_UPCALL_PENDING), 1);
    notify();
}

/// Whether the domain has masked a port. The port must be below 1024.
pub fn is_masked<M: MachineMemory>(memory: &M, shared_info: Mfn, port: Port) -> bool {
    let word = field(shared_info, SharedInfo::EVTCHN_MASK + 4 * (port.0 / 32 % 32) as usize);
    memory.load32(word) & 1 << (port.0 % 32) != 0
}

/// Whether an event waits for the guest, and it wants to hear of it.
#[inline]
pub fn upcall_is_due<M: MachineMemory>(memory: &M, shared_info: Mfn) -> bool {
    memory.load8(field(shared_info, SharedInfo::EVTCHN_UPCALL_PENDING)) != 0
        && memory.load8(field(shared_info, SharedInfo::EVTCHN_UPCALL_MASK)) == 0
}

/// The domain wants upcalls, and waits for one unless one is pending.
pub fn block<M: MachineMemory>(memory: &M, shared_info: Mfn, run: &RunWord) {
    memory.store8(field(shared_info, SharedInfo::EVTCHN_UPCALL_MASK), 0);
    run.set(RunState::BLOCKED);
    // An event that came before the line above does not wake: look once more, and do not wait for it.
    if memory.load8(field(shared_info, SharedInfo::EVTCHN_UPCALL_PENDING)) != 0 {
        run.clear(RunState::BLOCKED);
    }
}
