//! One frame and three CPUs, for the model checker (loom).
//!
//! The frame's record is `core`'s own code, compiled here over loom's atomics. What the record is there for is watched
//! by a [`Machine`] that no CPU of the model can see stale: what each CPU's TLB holds, who relies on the frame as what.
//! A mapping of the frame ends with a TLB entry left behind, as on a real CPU.
//!
//! The checker tries two orders only where it sees that they may differ, so whoever looks at the machine or changes it
//! announces that ([`Machine::truth`]) in a way that orders nothing else.

#[allow(dead_code, unused_imports)]
#[path = "../../src/addr.rs"]
mod addr;
#[allow(dead_code, unused_imports)]
#[path = "../../src/frame/mod.rs"]
pub mod frame;

/// The atomics that `frame` is compiled over.
mod atomics {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

pub use addr::DomId;

use frame::{Contents, FrameInfo, FrameType, TypeGrant};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

/// Whose the frame is at first.
pub const OWNER: DomId = DomId(1);
/// Whose it may become.
pub const OTHER: DomId = DomId(2);

/// What a CPU remembers of the frame.
#[derive(Default)]
pub struct CpuTlb {
    last_flush: AtomicU32,
    /// A translation to the frame: for writing, unless a model says that it is walked.
    pub cached: AtomicBool,
}

/// One frame, the TLBs of three CPUs and their clock.
pub struct Machine {
    /// The frame's record.
    pub frame: FrameInfo,
    looks: loom::sync::atomic::AtomicU32,
    truth: Truth,
}

/// What is so, whatever the frame's record says.
#[derive(Default)]
pub struct Truth {
    clock: AtomicU32,
    /// The TLBs of the three CPUs.
    pub tlbs: [CpuTlb; 3],
    /// Somebody relies on the frame as a table.
    pub is_table: AtomicBool,
    /// How often it was freed.
    pub freed: AtomicU32,
}

impl Truth {
    /// Whether any TLB holds a translation to the frame.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        self.tlbs.iter().any(|tlb| tlb.cached.load(SeqCst))
    }

    fn flush(&self, cpu: usize) {
        let now = self.clock.fetch_add(1, SeqCst) + 1;
        self.tlbs[cpu].cached.store(false, SeqCst);
        self.tlbs[cpu].last_flush.store(now, SeqCst);
    }
}

impl Default for Machine {
    fn default() -> Self {
        let frame = FrameInfo::reserved();
        frame.assign(OWNER);
        Self {
            frame,
            looks: loom::sync::atomic::AtomicU32::new(0),
            truth: Truth { clock: 1.into(), ..Truth::default() },
        }
    }
}

impl Machine {
    /// What is so at this moment. To be asked for anew each time.
    pub fn truth(&self) -> &Truth {
        self.looks.fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
        &self.truth
    }

    /// The TLB clock.
    #[must_use]
    pub fn stamp(&self) -> u32 {
        self.truth().clock.load(SeqCst)
    }

    /// A CPU flushes its TLB.
    pub fn flush(&self, cpu: usize) {
        self.truth().flush(cpu);
    }

    /// Flushes the TLB of every CPU that has not flushed since.
    pub fn flush_if_older(&self, stamp: u32) {
        let truth = self.truth();
        for (cpu, tlb) in truth.tlbs.iter().enumerate() {
            if tlb.last_flush.load(SeqCst).wrapping_sub(stamp) as i32 <= 0 {
                truth.flush(cpu);
            }
        }
    }

    /// Takes what a new mapping for writing takes, as `Pager::get_l1_target` does; then the CPU writes through it.
    /// False if it is refused.
    #[must_use]
    pub fn map(&self, cpu: usize) -> bool {
        if !self.get_writable() {
            return false;
        }
        let truth = self.truth();
        assert!(!truth.is_table.load(SeqCst), "a table is mapped writable");
        assert_eq!(truth.freed.load(SeqCst), 0, "a free frame is mapped");
        truth.tlbs[cpu].cached.store(true, SeqCst);
        true
    }

    /// What a new mapping for writing takes.
    #[must_use]
    pub fn get_writable(&self) -> bool {
        if self.frame.get_writable(OWNER) {
            return true;
        }
        if self.frame.get(OWNER).is_err() {
            return false;
        }
        let taken = self.frame.get_type(FrameType::Writable, |stamp| self.flush_if_older(stamp)).is_ok();
        if !taken {
            self.put();
        }
        taken
    }

    /// The mapping is gone; the CPU's translation is not.
    pub fn unmap(&self) {
        if self.frame.put_writable(self.stamp()) {
            self.free();
        }
    }

    /// Gives a reference back.
    pub fn put(&self) {
        if self.frame.put() {
            self.free();
        }
    }

    /// The owner gives up its own reference.
    pub fn give_up(&self) {
        if self.frame.put_allocation() == Some(true) {
            self.free();
        }
    }

    fn free(&self) {
        assert_eq!(self.truth().freed.fetch_add(1, SeqCst), 0, "freed twice");
        self.frame.set_unowned(Contents::Unknown);
    }

    /// Makes the frame a table, has it walked, and gives it up again. False if somebody else uses it as something.
    pub fn use_as_table(&self) -> bool {
        let frame = &self.frame;
        if frame.get(OWNER).is_err() {
            return false;
        }
        let taken = frame.get_type(FrameType::L1, |stamp| self.flush_if_older(stamp));
        let is_ours = taken == Ok(TypeGrant::MustValidate);
        if is_ours {
            let truth = self.truth();
            truth.is_table.store(true, SeqCst);
            assert!(!truth.is_cached(), "a table can be written to");
            frame.set_validated();
            let word = frame.type_word();
            assert!(word.kind() == FrameType::L1 && word.is_validated() && word.count() > 0);
            self.truth().is_table.store(false, SeqCst);
            frame.put_type(|| self.stamp());
        }
        self.put();
        is_ours
    }
}
