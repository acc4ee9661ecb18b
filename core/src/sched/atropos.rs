//! Atropos, the scheduler of Nemesis (Leslie et al., "The design and implementation of an operating system to support
//! distributed multimedia applications", IEEE JSAC 1996): reservations of a slice of every period, the earliest
//! deadline first.
//!
//! A virtual CPU with a reservation gets its slice in every period in which it has use for it. What nobody has
//! reserved or used is extra time: it goes round robin to all that take it, and for who has no reservation it is all
//! there is. Extra time does not count against a slice. Who wakes within a period goes on with what is left of its
//! slice, if it was no slower in using it than reserved; otherwise (Abeni and Buttazzo's constant bandwidth server,
//! RTSS 1998) a new period begins, the first of the length of its latency hint, each next one twice as long up to its
//! own, with slices in proportion. So a hint is when a waker gets its first part at the latest, and costs the others
//! nothing. Who yields has done with this period.
//!
//! Promises: all reservations are met as long as the CPU picks on time (if late, a slice that was too long is taken
//! off the next); reservations of no more than [`RESERVABLE`] of a CPU are accepted, so whoever takes extra time is
//! never starved. A change of parameters begins a new period, and can, like a removal, cost the others one slice,
//! once.
//!
//! What Xen 2.0 did otherwise (`sched_atropos.c`): it accepted any sum of reservations. Extra time was taken off the
//! slice, so who took it lost its guarantee. Runs were rounded up to 5 ms, whatever the slice. Who woke early had only
//! extra time until its next period. A hint that was no divisor of the period gave a larger part than was reserved. New
//! domains had 10 ms every 10 s; here, but for domain 0 ([`AtroposParams::DOMAIN0`]), they have no reservation.
//!
//! Its CPU's [`RunQueue`](super::RunQueue) owns it.

use super::heap::Heap;
use super::ring::Ring;
use super::{Pick, Policy, SHORTEST, SchedError, Share, Slot, Span, Time};
use alloc::vec::Vec;

/// How much of a CPU can be reserved: 19 parts in 20.
pub const RESERVABLE: Share = Share((1 << 32) / 20 * 19);

/// How long one runs in extra time before it is the next one's turn.
pub const EXTRA_TURN: Span = Span::millis(5);

/// The shortest slice that a latency hint may lead to.
const SHORTEST_FIRST_SLICE: Span = Span::micros(1);

/// Whether a virtual CPU takes time that nobody has reserved or used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtraTime {
    /// It does not.
    No,
    /// It does.
    Yes,
}

/// A virtual CPU's parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AtroposParams {
    /// Every so often it gets its slice.
    pub period: Span,
    /// Its slice; zero is no reservation.
    pub slice: Span,
    /// When it wants the first part of a slice after it wakes, at the latest. As long as the period: no wish.
    pub latency: Span,
    /// Whether it takes extra time.
    pub extra: ExtraTime,
}

impl AtroposParams {
    /// Domain 0's at first, as in 2.0: without them it could not be relied on to set any.
    pub const DOMAIN0: Self =
        Self { period: Span::millis(20), slice: Span::millis(15), latency: Span::millis(5), extra: ExtraTime::Yes };

    /// No reservation: a new domain's at first.
    pub const BEST_EFFORT: Self =
        Self { period: Span::seconds(10), slice: Span::ZERO, latency: Span::seconds(10), extra: ExtraTime::Yes };

    const fn has_reservation(&self) -> bool {
        self.slice.0 != 0
    }

    /// The part of the CPU that it reserves, rounded up.
    fn share(&self) -> Share {
        Share((u128::from(self.slice.0) << 32).div_ceil(u128::from(self.period.0)) as u64)
    }

    /// The slice of a period of another length, at the same rate.
    fn slice_of(&self, period: Span) -> Span {
        Span((u128::from(self.slice.0) * u128::from(period.0) / u128::from(self.period.0)) as u64)
    }

    fn check(&self) -> Result<(), SchedError> {
        if self.period.0 > i64::MAX as u64 {
            return Err(SchedError::TooLong);
        }
        if self.slice > self.period {
            return Err(SchedError::SliceAbovePeriod);
        }
        if self.latency > self.period {
            return Err(SchedError::LatencyAbovePeriod);
        }
        if self.latency < SHORTEST {
            return Err(SchedError::TooShort);
        }
        if !self.has_reservation() {
            return if self.extra == ExtraTime::Yes { Ok(()) } else { Err(SchedError::NeverRuns) };
        }
        if self.slice < SHORTEST || self.slice_of(self.latency) < SHORTEST_FIRST_SLICE {
            return Err(SchedError::TooShort);
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Entity {
    params: AtroposParams,
    /// The current period and slice: `params`' own, or shorter after waking.
    period: Span,
    slice: Span,
    /// The current period's end.
    deadline: Time,
    /// What is left of the slice, in nanoseconds; negative if more was used.
    left: i64,
}

impl Entity {
    const VACANT: Self =
        Self { params: AtroposParams::BEST_EFFORT, period: Span::ZERO, slice: Span::ZERO, deadline: Time(0), left: 0 };

    /// A period begins. What was used too much, but no more than a slice, is owed.
    fn begin(&mut self, start: Time, period: Span) {
        self.period = period;
        self.slice = if period == self.params.period { self.params.slice } else { self.params.slice_of(period) };
        self.deadline = start + period;
        let slice = self.slice.0 as i64;
        self.left = slice + self.left.clamp(-slice, 0);
    }

    /// Whether it has used its slice no faster than at its rate, so that a new period may begin in the midst of this
    /// one.
    fn is_slow(&self, now: Time) -> bool {
        let rest = self.deadline.since(now);
        self.left > 0
            && i128::from(self.left) * i128::from(self.period.0) >= i128::from(self.slice.0) * i128::from(rest.0)
    }
}

/// What the one that runs was picked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    Reserved,
    Extra,
}

/// Atropos on one CPU.
pub struct Atropos {
    entities: Vec<Entity>,
    /// Those that are ready and have something left of their slice, by deadline.
    due: Heap<Time>,
    /// Those that are ready and have not, by when their next period begins.
    waiting: Heap<Time>,
    /// All that are ready and take extra time.
    extra: Ring,
    /// Who has the first place in `extra`, and how long it keeps it.
    turn: Option<Slot>,
    turn_left: Span,
    reason: Reason,
    promised: Share,
}

impl Atropos {
    /// Nobody there.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entities: Vec::new(),
            due: Heap::new(),
            waiting: Heap::new(),
            extra: Ring::new(),
            turn: None,
            turn_left: EXTRA_TURN,
            reason: Reason::Extra,
            promised: Share(0),
        }
    }

    /// The end of a virtual CPU's current period.
    #[must_use]
    pub fn deadline(&self, slot: Slot) -> Time {
        self.entities[slot.index()].deadline
    }

    /// What would be promised with `params` in place of `old`.
    fn admit(&self, params: &AtroposParams, old: Share) -> Result<Share, SchedError> {
        params.check()?;
        let others = self.promised.0 - old.0;
        let promised = Share(others + params.share().0);
        // Who asks for no more than it has is never refused.
        if promised > RESERVABLE && promised > self.promised { Err(SchedError::Overcommitted) } else { Ok(promised) }
    }

    /// Puts one that is ready, and has a reservation, where its slice says.
    fn enqueue(&mut self, slot: Slot) {
        let entity = &self.entities[slot.index()];
        if entity.left > 0 { &mut self.due } else { &mut self.waiting }.insert(slot, entity.deadline);
    }

    /// The periods that are over end.
    #[inline]
    fn begin_periods(&mut self, now: Time) {
        while let Some((deadline, slot)) = self.waiting.first()
            && deadline <= now
        {
            self.waiting.remove(slot);
            let entity = &mut self.entities[slot.index()];
            let period = Span(entity.period.0.saturating_mul(2)).min(entity.params.period);
            // If nobody looked for so long, what was missed is gone.
            let start = if deadline + period <= now { now } else { deadline };
            entity.begin(start, period);
            self.enqueue(slot);
        }
    }

    fn end_turn(&mut self, slot: Slot) {
        if self.extra.first() == Some(slot) {
            self.extra.rotate();
            self.turn = None;
        }
    }
}

impl Default for Atropos {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Atropos {
    type Params = AtroposParams;
    type Global = ();

    fn reserve(&mut self, slots: usize) -> Result<(), SchedError> {
        let missing = slots.saturating_sub(self.entities.len());
        self.entities.try_reserve(missing).map_err(|_| SchedError::OutOfMemory)?;
        self.due.reserve(slots)?;
        self.waiting.reserve(slots)?;
        self.extra.reserve(slots)?;
        self.entities.resize(slots.max(self.entities.len()), Entity::VACANT);
        Ok(())
    }

    fn insert(&mut self, slot: Slot, params: AtroposParams, now: Time) -> Result<(), SchedError> {
        self.promised = self.admit(&params, Share(0))?;
        self.entities[slot.index()] = Entity { params, deadline: now, ..Entity::VACANT };
        Ok(())
    }

    fn remove(&mut self, slot: Slot) {
        self.promised.0 -= self.entities[slot.index()].params.share().0;
        self.entities[slot.index()] = Entity::VACANT;
    }

    fn wake(&mut self, slot: Slot, now: Time) {
        let entity = &mut self.entities[slot.index()];
        if entity.params.extra == ExtraTime::Yes {
            self.extra.push_last(slot);
        }
        if entity.params.has_reservation() {
            if entity.deadline <= now || entity.is_slow(now) {
                entity.begin(now, entity.params.latency);
            }
            self.enqueue(slot);
        }
    }

    fn sleep(&mut self, slot: Slot) {
        self.due.remove(slot);
        self.waiting.remove(slot);
        self.extra.remove(slot);
        if self.turn == Some(slot) {
            self.turn = None;
        }
    }

    #[inline]
    fn charge(&mut self, slot: Slot, ran: Span, _: Time) {
        match self.reason {
            Reason::Reserved => {
                let entity = &mut self.entities[slot.index()];
                entity.left = entity.left.saturating_sub_unsigned(ran.0);
                if entity.left <= 0 && self.due.contains(slot) {
                    self.due.remove(slot);
                    self.enqueue(slot);
                }
            }
            Reason::Extra if self.turn == Some(slot) => {
                self.turn_left = self.turn_left.less(ran);
                if self.turn_left == Span::ZERO {
                    self.end_turn(slot);
                }
            }
            Reason::Extra => {}
        }
    }

    #[inline]
    fn pick(&mut self, yields: Option<Slot>, now: Time) -> Pick {
        if let Some(slot) = yields {
            self.end_turn(slot);
            if self.due.contains(slot) {
                self.due.remove(slot);
                self.entities[slot.index()].left = 0;
                self.enqueue(slot);
            }
        }
        self.begin_periods(now);
        let next_period = self.waiting.first().map(|(begins, _)| begins);
        let no_later = |end: Time| Some(next_period.map_or(end, |begins| begins.min(end)));
        if let Some((_, next)) = self.due.first() {
            self.reason = Reason::Reserved;
            let left = Span(self.entities[next.index()].left.unsigned_abs());
            return Pick { next: Some(next), until: no_later(now + left) };
        }
        let Some(next) = self.extra.first() else { return Pick { next: None, until: next_period } };
        if self.turn != Some(next) {
            self.turn = Some(next);
            self.turn_left = EXTRA_TURN;
        }
        self.reason = Reason::Extra;
        let until = if self.extra.is_alone() { next_period } else { no_later(now + self.turn_left) };
        Pick { next: Some(next), until }
    }

    fn repick(&self, woken: Slot, running: Option<Slot>, now: Time) -> Option<Time> {
        let entity = &self.entities[woken.index()];
        let runs_reserved = self.reason == Reason::Reserved && running.is_some_and(|slot| self.due.contains(slot));
        if self.due.contains(woken) {
            let first = running.filter(|_| runs_reserved).map(|slot| self.entities[slot.index()].deadline);
            return if first.is_none_or(|first| entity.deadline < first) { Some(now) } else { None };
        }
        let period = self.waiting.contains(woken).then_some(entity.deadline);
        let turn = match running {
            _ if entity.params.extra == ExtraTime::No => None,
            None => Some(now),
            // Who had all extra time to itself has a turn from now on.
            Some(_) => (!runs_reserved).then(|| now + self.turn_left),
        };
        match (period, turn) {
            (Some(period), Some(turn)) => Some(period.min(turn)),
            (only, None) | (None, only) => only,
        }
    }

    fn adjust(&mut self, slot: Slot, params: AtroposParams, now: Time) -> Result<(), SchedError> {
        self.promised = self.admit(&params, self.entities[slot.index()].params.share())?;
        let is_ready = self.due.contains(slot) || self.waiting.contains(slot) || self.extra.contains(slot);
        self.sleep(slot);
        let entity = &mut self.entities[slot.index()];
        *entity = Entity { params, deadline: now, left: entity.left.min(0), ..Entity::VACANT };
        if is_ready {
            self.wake(slot, now);
        }
        Ok(())
    }

    fn params(&self, slot: Slot) -> AtroposParams {
        self.entities[slot.index()].params
    }

    fn control(&mut self, (): ()) -> Result<(), SchedError> {
        Ok(())
    }

    fn global(&self) {}

    fn promised(&self) -> Share {
        self.promised
    }
}
