//! Round robin: whoever is ready runs for a slice, one after the other.
//!
//! Promise: among n that are ready, one waits for at most n - 1 slices. The one parameter is the slice, the same for
//! all; those of a single virtual CPU are none.
//!
//! What Xen 2.0 did otherwise (`sched_rrobin.c`): there whoever wakes goes to the front of the queue, so two domains
//! that wake each other in turn keep a third from ever running; here it goes to the end. There any slice is taken,
//! also 0.
//!
//! Its CPU's [`RunQueue`](super::RunQueue) owns it.

use super::ring::Ring;
use super::{Pick, Policy, SHORTEST, SchedError, Share, Slot, Span, Time};

/// The slice at first.
pub const DEFAULT_SLICE: Span = Span::millis(10);

/// Round robin on one CPU.
pub struct RoundRobin {
    /// Who is ready; the first has its turn.
    ring: Ring,
    slice: Span,
    /// Whose turn it was at the last pick, and what is left of it.
    turn: Option<Slot>,
    left: Span,
}

impl RoundRobin {
    /// Nobody there.
    #[must_use]
    pub const fn new() -> Self {
        Self { ring: Ring::new(), slice: DEFAULT_SLICE, turn: None, left: DEFAULT_SLICE }
    }

    fn end_turn(&mut self, slot: Slot) {
        if self.ring.first() == Some(slot) {
            self.ring.rotate();
            self.turn = None;
        }
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

/// A slice that may be asked for.
pub(super) fn check_slice(slice: Span) -> Result<(), SchedError> {
    if slice < SHORTEST {
        return Err(SchedError::TooShort);
    }
    if slice.0 > i64::MAX as u64 { Err(SchedError::TooLong) } else { Ok(()) }
}

impl Policy for RoundRobin {
    type Params = ();
    type Global = Span;

    fn reserve(&mut self, slots: usize) -> Result<(), SchedError> {
        self.ring.reserve(slots)
    }

    fn insert(&mut self, _: Slot, (): (), _: Time) -> Result<(), SchedError> {
        Ok(())
    }

    fn remove(&mut self, _: Slot) {}

    fn wake(&mut self, slot: Slot, _: Time) {
        self.ring.push_last(slot);
        // Who was alone went on when its turn was over.
        if let Some(slot) = self.turn.filter(|_| self.left == Span::ZERO) {
            self.end_turn(slot);
        }
    }

    fn sleep(&mut self, slot: Slot) {
        self.ring.remove(slot);
        if self.turn == Some(slot) {
            self.turn = None;
        }
    }

    #[inline]
    fn charge(&mut self, slot: Slot, ran: Span, _: Time) {
        if self.turn == Some(slot) {
            self.left = self.left.less(ran);
            if self.left == Span::ZERO && !self.ring.is_alone() {
                self.end_turn(slot);
            }
        }
    }

    #[inline]
    fn pick(&mut self, yields: Option<Slot>, now: Time) -> Pick {
        if let Some(slot) = yields {
            self.end_turn(slot);
        }
        let next = self.ring.first();
        if self.turn != next || next.is_none() {
            self.turn = next;
            self.left = self.slice;
        }
        Pick { next, until: (!self.ring.is_alone()).then(|| now + self.left) }
    }

    fn repick(&self, _: Slot, running: Option<Slot>, now: Time) -> Option<Time> {
        Some(if running.is_some() && running == self.turn { now + self.left } else { now })
    }

    fn adjust(&mut self, _: Slot, (): (), _: Time) -> Result<(), SchedError> {
        Ok(())
    }

    fn params(&self, _: Slot) {}

    fn control(&mut self, slice: Span) -> Result<(), SchedError> {
        check_slice(slice)?;
        self.slice = slice;
        Ok(())
    }

    fn global(&self) -> Span {
        self.slice
    }

    fn promised(&self) -> Share {
        Share(0)
    }
}
