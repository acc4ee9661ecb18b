//! Errands: what one CPU has another do, and waits for.
//!
//! Another CPU does it when an interrupt finds it in a guest or asleep, or, if it is itself waiting to send one
//! somewhere, while it waits; so two that ask each other both get their answer. Whoever waits serves flushes too
//! ([`proxenos_core::sync`]), and stands still where that is asked. The caller holds no lock: the other CPU may need it
//! to get where it can be interrupted.
//!
//! [`ASKER`] is whether somebody has an errand to send; [`ASKED`] is whom, plus one, until it is done.

use super::ipi;
use super::percpu::{Cpu, CpuId};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use proxenos_core::sync::{self, Mutex};

/// What is to be done, and what comes of it.
type Work = fn([u64; 2]) -> Option<u64>;

static ASKER: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicU32 = AtomicU32::new(0);
/// The errand, then its result.
static ERRAND: Mutex<Errand> = Mutex::new(Errand { work: nothing, arguments: [0; 2], result: None });

struct Errand {
    work: Work,
    arguments: [u64; 2],
    result: Option<u64>,
}

fn nothing(_: [u64; 2]) -> Option<u64> {
    None
}

/// Has a CPU that runs do something, which takes no lock and not long, and returns what comes of it.
pub fn send(to: CpuId, work: Work, arguments: [u64; 2]) -> Option<u64> {
    if to == Cpu::current().id {
        return work(arguments);
    }
    while ASKER.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        serve();
        ipi::stand_still();
        sync::wait_a_little();
    }
    *ERRAND.lock() = Errand { work, arguments, result: None };
    ASKED.store(to.0 + 1, Ordering::Release);
    ipi::kick(to);
    while ASKED.load(Ordering::Acquire) != 0 {
        // Who has all others stand still waits for this one, too.
        ipi::stand_still();
        sync::wait_a_little();
    }
    let result = ERRAND.lock().result;
    ASKER.store(false, Ordering::Release);
    result
}

/// Does what this CPU is asked to, if it is.
pub fn serve() {
    if ASKED.load(Ordering::Acquire) == Cpu::current().id.0 + 1 {
        let mut errand = ERRAND.lock();
        errand.result = (errand.work)(errand.arguments);
        drop(errand);
        ASKED.store(0, Ordering::Release);
    }
}
