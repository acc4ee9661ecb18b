//! The shootdown of TLBs under several CPUs, for the model checker (loom): `core`'s own code over loom's atomics, and
//! around it one page-table entry that maps one frame, and CPUs that may keep it in their TLBs.
//!
//! A store to a page table is as weak as a plain one of the processor's, which later loads pass; a walk of the tables
//! is a plain load. What is a full barrier on the processor is one here: locked instructions, and the load of CR3.

#[allow(dead_code)]
#[path = "../../src/shootdown.rs"]
mod shootdown;

/// The atomics that the shootdown is compiled over.
mod atomics {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use shootdown::{CpuTlb, Cpus, FlushClock, flush_older};

/// How the entry is cleared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clearing {
    /// By a plain store, as in a shadow.
    Store,
    /// By an atomic exchange, as in a table that the CPU walks.
    Exchange,
}

/// The machine.
pub struct Machine {
    clock: FlushClock,
    tlbs: Vec<CpuTlb>,
    /// The entry: 1 if it maps the frame.
    entry: AtomicU32,
    /// What each CPU's TLB has of it. Only its own CPU has this.
    held: Vec<AtomicU32>,
    /// References to the frame as what it is, and the stamp of the last that went.
    uses: AtomicU32,
    stamp: AtomicU32,
    /// The frame is something else now.
    taken: AtomicU32,
    /// A lock of the hypervisor's.
    lock: AtomicU32,
    /// CPUs that will ask nothing of others any more.
    done: AtomicU32,
}

/// A locked instruction: nothing passes it, in either direction.
fn locked<R>(change: impl FnOnce() -> R) -> R {
    fence(SeqCst);
    let result = change();
    fence(SeqCst);
    result
}

impl Machine {
    /// One with so many CPUs, all of which rest, and the frame mapped.
    pub fn new(cpus: usize) -> Self {
        Self {
            clock: FlushClock(AtomicU64::new(1)),
            tlbs: (0..cpus).map(|_| CpuTlb::default()).collect(),
            entry: AtomicU32::new(1),
            held: (0..cpus).map(|_| AtomicU32::new(0)).collect(),
            uses: AtomicU32::new(1),
            stamp: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            lock: AtomicU32::new(0),
            done: AtomicU32::new(0),
        }
    }

    /// A CPU leaves the hypervisor's own tables for those with the entry.
    pub fn begin_to_walk(&self, cpu: usize) {
        self.tlbs[cpu].begin_to_walk();
        self.flush(cpu);
    }

    /// A CPU goes back to the hypervisor's own tables.
    pub fn rest(&self, cpu: usize) {
        let time = locked(|| self.clock.begin());
        self.empty(cpu);
        self.tlbs[cpu].flushed(time);
        self.tlbs[cpu].rest();
    }

    /// A CPU loads CR3, for whatever reason.
    pub fn flush(&self, cpu: usize) {
        let time = locked(|| self.clock.begin());
        self.empty(cpu);
        self.walk(cpu);
        self.tlbs[cpu].flushed(time);
    }

    /// What a load of CR3 does to a TLB. From then on the CPU may walk the tables, whatever it executes.
    fn empty(&self, cpu: usize) {
        locked(|| self.held[cpu].store(0, Relaxed));
    }

    /// A CPU loads CR3 without moving the clock, as it does between a guest's kernel and its applications. That load is
    /// a full barrier; so is nothing before it.
    pub fn flush_without_a_tick(&self, cpu: usize) {
        let time = self.clock.now();
        self.empty(cpu);
        self.walk(cpu);
        self.tlbs[cpu].flushed(time);
    }

    /// A CPU walks the tables if its TLB has nothing, and keeps what it finds.
    pub fn walk(&self, cpu: usize) {
        if self.held[cpu].load(Relaxed) == 0 {
            self.held[cpu].store(self.entry.load(Relaxed), Relaxed);
        }
    }

    /// A guest uses what its CPU's TLB has of the entry.
    pub fn access(&self, cpu: usize) {
        if self.held[cpu].load(Relaxed) != 0 {
            assert!(self.taken.load(Acquire) == 0, "CPU {cpu} reaches a frame that is something else now");
        }
    }

    /// A CPU serves, as its interrupt has it do and every wait.
    pub fn serve(&self, cpu: usize) {
        self.tlbs[cpu].serve(|| self.flush(cpu));
    }

    /// Clears the entry, and gives up the reference that it was.
    pub fn unmap(&self, clearing: Clearing) {
        let stamp = match clearing {
            Clearing::Store => {
                self.entry.store(0, Release);
                self.clock.stamp()
            }
            Clearing::Exchange => {
                locked(|| self.entry.swap(0, AcqRel));
                self.clock.stamp_behind_exchange()
            }
        };
        self.stamp.store(stamp, Release);
        locked(|| self.uses.fetch_sub(1, AcqRel));
    }

    /// A CPU takes the frame for something else, if it is free for that.
    pub fn take(&self, cpu: usize) {
        if locked(|| self.uses.compare_exchange(0, 2, AcqRel, Acquire)).is_ok() {
            flush_older(&View { machine: self, cpu }, self.stamp.load(Acquire));
            self.taken.store(1, Release);
        }
    }

    /// A CPU has all flush, as they are now.
    pub fn flush_everywhere(&self, cpu: usize) {
        flush_older(&View { machine: self, cpu }, self.clock.stamp());
    }

    /// A CPU does something with the lock held.
    pub fn with_lock(&self, cpu: usize, action: impl FnOnce()) {
        while self.lock.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
            View { machine: self, cpu }.wait();
        }
        action();
        self.lock.store(0, Release);
    }

    /// A CPU will ask nothing of others any more.
    pub fn finish(&self) {
        self.done.fetch_add(1, Release);
    }

    /// A CPU is interrupted whenever others want something, until so many have finished.
    pub fn serve_until(&self, cpu: usize, finished: u32) {
        while self.done.load(Acquire) < finished {
            View { machine: self, cpu }.wait();
        }
    }
}

/// The machine, as one of its CPUs sees it.
struct View<'a> {
    machine: &'a Machine,
    cpu: usize,
}

impl Cpus for View<'_> {
    fn clock(&self) -> &FlushClock {
        &self.machine.clock
    }

    fn tlbs(&self) -> impl Iterator<Item = &CpuTlb> {
        self.machine.tlbs.iter()
    }

    fn here(&self) -> usize {
        self.cpu
    }

    fn flush_here(&self) {
        self.machine.flush(self.cpu);
    }

    /// Whoever is interrupted looks for itself.
    fn interrupt(&self, _: usize) {}

    fn wait(&self) {
        self.machine.serve(self.cpu);
        loom::thread::yield_now();
    }
}
