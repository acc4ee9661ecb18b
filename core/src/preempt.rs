//! Long requests make way: how they find out that they should, and what is kept of them until they go on.
//!
//! Interrupts are off whenever the hypervisor runs. A request that can take long therefore counts its steps in a
//! [`Poll`], and every so many of them asks the CPU whether its timer is due. If it is, the request notes how far it
//! has come in [`Unfinished`], and the guest is sent back to the very instruction that made the call: what is due is
//! dealt with, events are delivered, and then the guest makes the call again, which goes on where it was. No register
//! of the guest's holds any of that: the interface promises x86_32 guests all but eax.
//!
//! What is kept is found again by the call's number, its arguments, and where it was made ([`Place`]): instruction
//! *and* stack pointer. A handler that runs in between has its frame below the interrupted call's, so that a call of
//! its own, were it the same one, is another; so are the calls of other threads. A few places are kept, and the oldest
//! is forgotten for a new one. To forget is safe: it holds no reference, only a count of what was done. A call that
//! lost its place begins anew, and if it finds work done twice (a table that is pinned already), it fails as it would
//! for anybody who asks twice.
//!
//! What a request leaves half done in memory is not here: it stands in the frames themselves
//! (`crate::paging::partial`), and anybody can go on with it or undo it.
//!
//! No lock: owned, with the virtual CPU, by whoever runs it.

use crate::addr::{DomId, Mfn};
use crate::machine::Preemption;
use crate::paging::Target;
use proxenos_abi::{Errno, Hypercall};

/// How much one thing costs, roughly, in tens of instructions.
pub mod cost {
    /// A look at an entry that is empty.
    pub const EMPTY: u32 = 1;
    /// A request or an entry that takes or drops a reference.
    pub const ENTRY: u32 = 16;
    /// A frame that is scrubbed.
    pub const FRAME: u32 = 128;
    /// A table of the lowest level: enough for a look at the clock, whatever is in it. It takes from 200 to 20,000, by
    /// how many entries are present and of which kind; to count those would cost what most tables have more than a look
    /// does.
    pub const TABLE: u32 = 512;
}

const _: () = assert!(cost::TABLE >= SLICE, "no second table without a look at the clock");

/// Between two looks at the clock. In tests few, so that a small table has many points at which it can be interrupted.
const SLICE: u32 = if cfg!(test) { cost::ENTRY } else { 512 };

/// Counts the steps of a request, and says when it should make way.
///
/// The count begins at zero with each entry from the guest, so that every entry gets something done.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    allowed: bool,
    hit: bool,
    steps: u32,
}

impl Poll {
    /// For work that must be done in one go.
    pub const NEVER: Self = Self { allowed: false, hit: false, steps: 0 };

    /// For a request that can be interrupted.
    #[must_use]
    pub const fn begin() -> Self {
        Self { allowed: true, hit: false, steps: 0 }
    }

    /// Something was done.
    #[inline]
    pub const fn step(&mut self, cost: u32) {
        self.steps = self.steps.saturating_add(cost);
    }

    /// How much was done since the last look at the clock.
    #[cfg(test)]
    pub(crate) const fn steps(&self) -> u32 {
        self.steps
    }

    /// Whether to make way now. Once it said so, it says so to the end.
    #[inline]
    pub fn is_due(&mut self, hw: &impl Preemption) -> bool {
        if self.steps >= SLICE && self.allowed {
            self.steps = 0;
            self.hit |= hw.preemption_wanted();
        }
        self.hit
    }

    /// Whether it has said so.
    #[must_use]
    pub const fn was_due(&self) -> bool {
        self.hit
    }
}

/// Why a call ended without a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It was refused.
    Error(Errno),
    /// It is to be made again, and will go on then.
    Preempted,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Error(errno)
    }
}

/// What a call came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is over; this is for the guest's eax or rax.
    Done(u64),
    /// The guest goes back to the instruction, with its registers as they were, and makes the call again.
    Again,
}

/// Where a call is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The guest's instruction pointer.
    pub ip: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Which call of a multicall's list it is, if it is one.
    pub entry: Option<u32>,
}

/// A call, as it is recognised. Arguments that it has no use for are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Its number.
    pub number: Hypercall,
    /// Its arguments.
    pub args: [u64; 5],
    /// Where it was made.
    pub place: Place,
}

/// How far a call has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// `mmu_update`.
    MmuUpdate {
        /// Requests done.
        completed: u32,
        /// The next one was refused: nothing is left but to clean up.
        refused: bool,
        /// Whose frames the next requests are about.
        target: Target,
        /// A refusal may still be another call's fault.
        unsettled: bool,
    },
    /// `dom_mem_op`: extents done.
    Reservation(u64),
    /// `grant_table_op`: operations done.
    Grants(u32),
    /// `DOM0_CREATEDOMAIN`: the domain, which has not got all of its memory yet.
    Create(DomId),
    /// `DOM0_GETMEMLIST`.
    MemList {
        /// The frame to be looked at next.
        next: Mfn,
        /// How many were found.
        count: u64,
    },
    /// `DOM0_GETPAGEFRAMEINFO2`: frames described.
    Described(u64),
    /// `multicall`: calls done.
    Multicall(u32),
}

/// How many unfinished calls a virtual CPU can have: the one it makes, that call's multicall, and so on for those that
/// were interrupted meanwhile.
const PLACES: usize = 8;

/// The calls that a virtual CPU has not finished.
#[derive(Debug)]
pub struct Unfinished {
    calls: [Option<(Call, Progress)>; PLACES],
    /// How many there are.
    count: usize,
}

impl Default for Unfinished {
    fn default() -> Self {
        Self::new()
    }
}

impl Unfinished {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { calls: [None; PLACES], count: 0 }
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps how far a call has come, for which the oldest is forgotten if need be.
    pub fn keep(&mut self, call: Call, progress: Progress) {
        let _: Option<Progress> = self.take(&call);
        if self.count == PLACES {
            self.remove(0);
        }
        self.calls[self.count] = Some((call, progress));
        self.count += 1;
    }

    /// How far a call has come that is being made again.
    pub fn take(&mut self, call: &Call) -> Option<Progress> {
        let found = self.calls[..self.count].iter().flatten().position(|(kept, _)| kept == call)?;
        Some(self.remove(found))
    }

    /// A domain is ended: whoever was creating it and comes back begins anew, since the number may be another's by
    /// then.
    pub fn forget_creation(&mut self, id: DomId) {
        let is_of_it = |kept: &(Call, Progress)| kept.1 == Progress::Create(id);
        while let Some(found) = self.calls[..self.count].iter().flatten().position(is_of_it) {
            let _: Progress = self.remove(found);
        }
    }

    fn remove(&mut self, index: usize) -> Progress {
        let (_, progress) = self.calls[index].take().expect("one of those that there are");
        self.calls[index..self.count].rotate_left(1);
        self.count -= 1;
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(sp: u64) -> Call {
        Call { number: Hypercall::Multicall, args: [1, 2, 0, 0, 0], place: Place { ip: 7, sp, entry: None } }
    }

    #[test]
    fn a_call_is_found_by_all_that_it_is() {
        let mut unfinished = Unfinished::new();
        unfinished.keep(call(100), Progress::Multicall(5));
        let other = |change: fn(&mut Call)| {
            let mut call = call(100);
            change(&mut call);
            call
        };
        for different in [
            other(|call| call.number = Hypercall::MmuUpdate),
            other(|call| call.args[1] = 3),
            other(|call| call.place.ip = 8),
            other(|call| call.place.sp = 96),
            other(|call| call.place.entry = Some(0)),
        ] {
            assert_eq!(unfinished.take(&different), None);
        }
        assert_eq!(unfinished.take(&call(100)), Some(Progress::Multicall(5)));
        assert_eq!(unfinished.take(&call(100)), None, "once");
        assert!(unfinished.is_empty());
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut unfinished = Unfinished::new();
        for sp in 0..PLACES as u64 + 3 {
            unfinished.keep(call(sp), Progress::Multicall(sp as u32));
        }
        for sp in 0..3 {
            assert_eq!(unfinished.take(&call(sp)), None);
        }
        // Kept again, it is the youngest.
        unfinished.keep(call(3), Progress::Multicall(33));
        unfinished.keep(call(50), Progress::Multicall(50));
        assert_eq!(unfinished.take(&call(4)), None);
        for (sp, done) in [(3, 33), (5, 5), (50, 50)] {
            assert_eq!(unfinished.take(&call(sp)), Some(Progress::Multicall(done)));
        }
    }

    struct Always;
    impl Preemption for Always {
        fn preemption_wanted(&self) -> bool {
            true
        }
    }

    #[test]
    fn every_entry_gets_something_done() {
        let mut poll = Poll::begin();
        assert!(!poll.is_due(&Always));
        poll.step(SLICE - 1);
        assert!(!poll.is_due(&Always));
        poll.step(1);
        assert!(poll.is_due(&Always) && poll.is_due(&Always) && poll.was_due());
        let mut never = Poll::NEVER;
        never.step(u32::MAX);
        assert!(!never.is_due(&Always));
    }
}
