//! The TLBs of several CPUs: when each was last emptied, and how one CPU has the others empty theirs (invariant I5).
//!
//! A clock counts the flushes of the whole machine ([`FlushClock`]). Who lets go of a frame stamps it with the clock;
//! who takes it for something else has every CPU flush whose last flush is not younger than the stamp
//! ([`flush_older`]), and waits for all of them. There are no acknowledgements to count: a CPU says when it has last
//! flushed ([`CpuTlb`]), for whatever reason it did, and that is what is waited for.
//!
//! **What makes it right** (`core/tlb-model` tries it out with a model checker). Two CPUs each write one thing and then
//! read another, and at least one has to see what the other wrote:
//!
//! - *who unmaps* clears the entry and reads the clock; *who flushes* moves the clock, empties its TLB, and only then
//!   walks tables again. Either the stamp is as young as the flush, or the walk meets the cleared entry.
//! - *who takes* a frame reads whether a CPU walks guests' tables at all; a CPU says that it does and then walks.
//!   Either it is seen and asked, or its walk meets the cleared entry.
//!
//! Each needs a full barrier between write and read: a locked instruction or a fence on one side, and on the other the
//! load of CR3, which serialises (Intel SDM vol. 3 §8.3).
//!
//! **No deadlock.** Who waits has interrupts off and may hold any lock. Those it waits for are in a guest or asleep,
//! and are interrupted; or in the hypervisor with interrupts off, and then either get on until they leave it, or wait
//! themselves: for a lock ([`crate::sync`]) or in here. Every such wait serves ([`CpuTlb::serve`]), which needs no
//! lock.
//!
//! A CPU whose tables are the hypervisor's own holds nothing of a guest's and is left in peace: so an idle machine
//! stays quiet.
//!
//! No lock: all is atomic. A stamp has 32 bits and the clock 64, so that a CPU that has not flushed for long is never
//! taken for one that just has.

use crate::atomics::{AtomicU32, AtomicU64, Ordering, fence};

/// A moment on the clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FlushTime(u64);

/// Counts the flushes of all CPUs, from 1 on. (It shows what it is made of, so that it can be a variable of the
/// hypervisor's: a model checker's atomics have no constants.)
pub struct FlushClock(pub AtomicU64);

impl FlushClock {
    /// A flush begins: to be called before the TLB is emptied, so that a stamp taken in between counts as younger than
    /// the flush.
    #[inline]
    pub fn begin(&self) -> FlushTime {
        FlushTime(self.0.fetch_add(1, Ordering::AcqRel).wrapping_add(1))
    }

    /// The moment of a flush that is about to begin and does not move the clock. A stamp of the same moment counts as
    /// younger than it, whichever was first; an older one was taken before somebody else moved the clock to where it is
    /// seen here. To be called before the TLB is emptied, as [`begin`](Self::begin).
    #[inline]
    pub fn now(&self) -> FlushTime {
        FlushTime(self.0.load(Ordering::Acquire))
    }

    /// A stamp for what has just been unmapped, by whatever access.
    #[inline]
    pub fn stamp(&self) -> u32 {
        fence(Ordering::SeqCst);
        self.stamp_behind_exchange()
    }

    /// [`stamp`](Self::stamp) for a caller whose last access to memory was an atomic exchange, which is a full barrier
    /// on this architecture: it has unmapped all there is before that, or by it.
    #[inline]
    pub fn stamp_behind_exchange(&self) -> u32 {
        self.0.load(Ordering::Acquire) as u32
    }

    /// When a stamp was taken, or later: of all moments with its 32 bits the last.
    fn date(&self, stamp: u32) -> FlushTime {
        let now = self.0.load(Ordering::Acquire);
        FlushTime(now - u64::from((now as u32).wrapping_sub(stamp)))
    }
}

/// What is known of a CPU's TLB. Its own CPU writes all but `wanted`.
#[derive(Default)]
pub struct CpuTlb {
    /// The clock at its last flush.
    last: AtomicU64,
    /// It is asked to flush if its last flush was not later than this.
    wanted: AtomicU64,
    /// Not zero: it walks tables of guests, or may do so from now on.
    walks: AtomicU32,
}

impl CpuTlb {
    /// This CPU has flushed. `time` is of before it did.
    #[inline]
    pub fn flushed(&self, time: FlushTime) {
        self.last.store(time.0, Ordering::Release);
    }

    /// Whether the only CPU of a machine has flushed since a stamp was taken. The difference is signed, so that the
    /// clock may wrap; and since every flush is its own, its last one is never long past.
    #[inline]
    pub fn has_flushed_alone_since(&self, stamp: u32) -> bool {
        (self.last.load(Ordering::Relaxed) as u32).wrapping_sub(stamp) as i32 > 0
    }

    /// To be called when a table of a guest's is about to be loaded in place of the hypervisor's own. That load is the
    /// barrier between this and the first walk.
    pub fn begin_to_walk(&self) {
        self.walks.store(1, Ordering::Release);
    }

    /// To be called when the hypervisor's own tables have been loaded, which has emptied the TLB.
    pub fn rest(&self) {
        self.walks.store(0, Ordering::Release);
    }

    /// Whether it may walk tables of guests.
    pub fn walks(&self) -> bool {
        self.walks.load(Ordering::Acquire) != 0
    }

    /// Does what others want of this CPU: `flush` flushes, and says so by [`flushed`](Self::flushed).
    #[inline]
    pub fn serve(&self, flush: impl FnOnce()) {
        if self.wanted.load(Ordering::Acquire) >= self.last.load(Ordering::Relaxed) {
            flush();
        }
    }

    fn has_flushed_since(&self, time: FlushTime) -> bool {
        self.last.load(Ordering::Acquire) > time.0
    }

    fn may_hold(&self, time: FlushTime) -> bool {
        self.walks() && !self.has_flushed_since(time)
    }
}

/// The CPUs, as one of them sees them.
pub trait Cpus {
    /// The clock of all.
    fn clock(&self) -> &FlushClock;
    /// Those that have been started, this one included, by their numbers from 0 on.
    fn tlbs(&self) -> impl Iterator<Item = &CpuTlb>;
    /// This CPU's number.
    fn here(&self) -> usize;
    /// Empties this CPU's TLB, and says so.
    fn flush_here(&self);
    /// Has another CPU [serve](CpuTlb::serve).
    fn interrupt(&self, cpu: usize);
    /// One turn of a wait: serves what others want of this CPU.
    fn wait(&self);
}

/// Has every CPU flush that may hold what was unmapped before `stamp` was taken, and waits until all have.
pub fn flush_older(cpus: &impl Cpus, stamp: u32) {
    let time = cpus.clock().date(stamp);
    // Between whatever the caller did to get here (an exchange, mostly, which is one already) and the look at who
    // walks.
    fence(Ordering::SeqCst);
    let here = cpus.here();
    for (number, tlb) in cpus.tlbs().enumerate() {
        if number == here {
            if !tlb.has_flushed_since(time) {
                cpus.flush_here();
            }
        } else if tlb.may_hold(time) {
            tlb.wanted.fetch_max(time.0, Ordering::AcqRel);
            cpus.interrupt(number);
        }
    }
    // One that only now began to walk was not asked; it is about to load its first table, which is a flush.
    for (number, tlb) in cpus.tlbs().enumerate() {
        while number != here && tlb.may_hold(time) {
            cpus.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::cell::RefCell;
    use std::vec::Vec;

    /// CPU 0 of some. Another serves as soon as it is interrupted.
    struct Machine {
        clock: FlushClock,
        tlbs: Vec<CpuTlb>,
        interrupted: RefCell<Vec<usize>>,
    }

    impl Machine {
        fn new(cpus: usize, now: u64) -> Self {
            let machine = Self {
                clock: FlushClock(AtomicU64::new(now)),
                tlbs: (0..cpus).map(|_| CpuTlb::default()).collect(),
                interrupted: RefCell::default(),
            };
            for tlb in &machine.tlbs {
                tlb.begin_to_walk();
                tlb.flushed(machine.clock.begin());
            }
            machine
        }

        fn flush(&self, cpu: usize) {
            self.tlbs[cpu].flushed(self.clock.begin());
        }

        /// Who flushed for a stamp.
        fn asked(&self, stamp: u32) -> Vec<usize> {
            let before: Vec<u64> = self.tlbs.iter().map(|tlb| tlb.last.load(Ordering::Relaxed)).collect();
            flush_older(self, stamp);
            let flushed = |&cpu: &usize| self.tlbs[cpu].last.load(Ordering::Relaxed) != before[cpu];
            (0..self.tlbs.len()).filter(flushed).collect()
        }
    }

    impl Cpus for Machine {
        fn clock(&self) -> &FlushClock {
            &self.clock
        }
        fn tlbs(&self) -> impl Iterator<Item = &CpuTlb> {
            self.tlbs.iter()
        }
        fn here(&self) -> usize {
            0
        }
        fn flush_here(&self) {
            self.flush(0);
        }
        fn interrupt(&self, cpu: usize) {
            self.interrupted.borrow_mut().push(cpu);
            self.tlbs[cpu].serve(|| self.flush(cpu));
        }
        fn wait(&self) {
            panic!("all have answered");
        }
    }

    #[test]
    fn all_whose_last_flush_is_not_younger_flush_once() {
        let machine = Machine::new(4, 1);
        let stamp = machine.clock.stamp();
        machine.flush(2);
        assert_eq!(machine.asked(stamp), [0, 1, 3]);
        assert_eq!(*machine.interrupted.borrow(), [1, 3]);
        assert_eq!(machine.asked(stamp), [] as [usize; 0], "all have flushed since");
        assert_eq!(machine.asked(machine.clock.stamp()), [0, 1, 2, 3]);
    }

    #[test]
    fn a_cpu_that_rests_is_left_in_peace() {
        let machine = Machine::new(3, 1);
        machine.tlbs[1].rest();
        assert_eq!(machine.asked(machine.clock.stamp()), [0, 2]);
        machine.tlbs[1].begin_to_walk();
        assert_eq!(machine.asked(machine.clock.stamp()), [0, 1, 2]);
    }

    #[test]
    fn a_served_request_is_served_once() {
        let machine = Machine::new(2, 1);
        let mut flushes = 0;
        machine.tlbs[1].serve(|| flushes += 1);
        assert_eq!(flushes, 0, "nobody has asked");
        machine.tlbs[1].wanted.store(machine.clock.0.load(Ordering::Relaxed), Ordering::Relaxed);
        for _ in 0..2 {
            machine.tlbs[1].serve(|| {
                flushes += 1;
                machine.flush(1);
            });
        }
        assert_eq!(flushes, 1);
    }

    /// CPU 1 does nothing while the others flush, for longer than a stamp counts.
    #[test]
    fn a_cpu_that_has_not_flushed_for_long_is_not_taken_for_one_that_has() {
        for behind in [1_u64 << 31, (1 << 31) + 7, 1 << 32, (1 << 32) + 7, 3 << 33] {
            let machine = Machine::new(2, 1);
            machine.clock.0.fetch_add(behind, Ordering::Relaxed);
            machine.flush(0);
            let stamp = machine.clock.stamp();
            machine.flush(0);
            assert_eq!(machine.asked(stamp), [1], "{behind:#x} flushes behind");
        }
    }

    /// A frame that nobody took for long: its stamp looks young, which costs a flush.
    #[test]
    fn an_old_stamp_is_taken_for_a_younger_one_but_never_for_an_older() {
        for ago in [1_u64 << 31, 1 << 32, (1 << 32) + 1, 5 << 32] {
            let machine = Machine::new(2, 1);
            let stamp = machine.clock.stamp();
            machine.clock.0.fetch_add(ago, Ordering::Relaxed);
            let date = machine.clock.date(stamp);
            assert!(date.0 >= u64::from(stamp) && date.0 as u32 == stamp);
            assert_eq!(machine.asked(stamp), [0, 1]);
        }
    }

    #[test]
    fn the_only_cpu_compares_32_bits() {
        for now in [1, u64::from(u32::MAX) - 1, 1 << 40] {
            let machine = Machine::new(1, now);
            let stamp = machine.clock.stamp();
            assert!(!machine.tlbs[0].has_flushed_alone_since(stamp));
            machine.flush(0);
            assert!(machine.tlbs[0].has_flushed_alone_since(stamp));
        }
    }
}
