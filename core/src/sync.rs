//! The lock of everything that several CPUs may want at once.
//!
//! Interrupts are off wherever the hypervisor runs, so a CPU that waits for a lock answers no interrupt; but whoever
//! has the lock may be waiting for that very CPU to flush its TLB ([`crate::shootdown`]). So a wait serves what others
//! ask of this CPU, through the function that the hypervisor names at boot ([`serve_while_waiting`]). It must take no
//! lock, and may be called wherever a lock may be waited for.

use spin::Once;
use spin::relax::RelaxStrategy;

pub use spin::MutexGuard;

/// A spin lock whose waiters serve other CPUs' requests.
pub type Mutex<T> = spin::mutex::Mutex<T, Serve>;

static SERVICE: Once<fn()> = Once::new();

/// Says what a CPU does for others while it waits. The first call counts.
pub fn serve_while_waiting(service: fn()) {
    SERVICE.call_once(|| service);
}

/// One turn of a wait with interrupts off: for a lock, or for another CPU's answer. (Out of line: within every lock it
/// would cost those that are free some registers.)
#[cold]
#[inline(never)]
pub fn wait_a_little() {
    if let Some(service) = SERVICE.get() {
        service();
    }
    core::hint::spin_loop();
}

/// How a [`Mutex`] waits.
#[derive(Clone, Copy, Debug)]
pub struct Serve;

impl RelaxStrategy for Serve {
    fn relax() {
        wait_a_little();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// Without the service this would never end: the lock is given back when the waiter has served.
    #[test]
    fn whoever_waits_for_a_lock_serves() {
        static SERVED: AtomicU32 = AtomicU32::new(0);
        static LOCK: Mutex<()> = Mutex::new(());
        static TAKEN: AtomicBool = AtomicBool::new(false);
        serve_while_waiting(|| {
            SERVED.fetch_add(1, Ordering::Relaxed);
        });
        std::thread::scope(|scope| {
            let guard = LOCK.lock();
            let before = SERVED.load(Ordering::Relaxed);
            scope.spawn(|| {
                drop(LOCK.lock());
                TAKEN.store(true, Ordering::Relaxed);
            });
            while SERVED.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            assert!(!TAKEN.load(Ordering::Relaxed));
            drop(guard);
        });
        assert!(TAKEN.load(Ordering::Relaxed));
    }
}
