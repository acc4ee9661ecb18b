//! One physical CPU's virtual CPUs: the books that every policy needs, kept once.
//!
//! Promises, whatever the order of calls: the policy hears of each sleep and wake once; who runs is charged for all
//! the time from its pick to the next, and for no time twice; a slot that is vacant is refused, or ignored where
//! there is nothing to refuse. The owner of the queue serialises its use.

use super::{HandOver, MAX_VCPUS, Pick, Policy, Repick, SchedError, Share, Slot, Span, Time};
use alloc::vec::Vec;

/// The end of time.
const NEVER: Time = Time(u64::MAX);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Vacant,
    Asleep,
    Ready,
}

#[derive(Clone, Copy)]
struct Entry {
    state: State,
    ran: Span,
}

/// A physical CPU's run queue.
pub struct RunQueue<P> {
    policy: P,
    entries: Vec<Entry>,
    occupied: usize,
    ready: usize,
    running: Option<Slot>,
    /// Up to when the one that runs has been charged.
    since: Time,
    /// When the CPU picks again at the latest; [`NEVER`] if nothing but a change makes it.
    until: Time,
}

/// What a virtual CPU that was taken out of its queue takes along.
pub(super) struct Removed {
    pub is_ready: bool,
    pub ran: Span,
}

impl<P: Policy> RunQueue<P> {
    /// An empty queue.
    #[must_use]
    pub const fn new(policy: P) -> Self {
        Self { policy, entries: Vec::new(), occupied: 0, ready: 0, running: None, since: Time(0), until: NEVER }
    }

    /// The rules.
    #[must_use]
    pub const fn policy(&self) -> &P {
        &self.policy
    }

    /// Adds a virtual CPU, asleep. May allocate.
    ///
    /// # Errors
    /// Its parameters are refused, or there is no room.
    pub fn insert(&mut self, params: P::Params, now: Time) -> Result<Slot, SchedError> {
        self.charge(now);
        let index = match self.entries.iter().position(|entry| entry.state == State::Vacant) {
            Some(index) => index,
            None if self.entries.len() == MAX_VCPUS => return Err(SchedError::Full),
            None => {
                self.entries.try_reserve(1).map_err(|_| SchedError::OutOfMemory)?;
                self.policy.reserve(self.entries.len() + 1)?;
                self.entries.push(Entry { state: State::Vacant, ran: Span::ZERO });
                self.entries.len() - 1
            }
        };
        let slot = Slot(index as u16);
        self.policy.insert(slot, params, now)?;
        self.entries[index] = Entry { state: State::Asleep, ran: Span::ZERO };
        self.occupied += 1;
        Ok(slot)
    }

    /// Removes a virtual CPU.
    ///
    /// # Errors
    /// [`SchedError::StillRuns`] until another, or none, has been picked; [`SchedError::NoSuchVcpu`].
    pub fn remove(&mut self, slot: Slot) -> Result<(), SchedError> {
        self.take(slot).map(drop)
    }

    /// As [`remove`](Self::remove).
    pub(super) fn take(&mut self, slot: Slot) -> Result<Removed, SchedError> {
        let entry = self.entry(slot)?;
        if self.running == Some(slot) {
            return Err(SchedError::StillRuns);
        }
        if entry.state == State::Ready {
            self.policy.sleep(slot);
            self.ready -= 1;
        }
        self.policy.remove(slot);
        self.entries[slot.index()].state = State::Vacant;
        self.occupied -= 1;
        Ok(Removed { is_ready: entry.state == State::Ready, ran: entry.ran })
    }

    /// Counts what a virtual CPU ran elsewhere.
    pub(super) fn carry_over(&mut self, slot: Slot, ran: Span) {
        self.entries[slot.index()].ran = ran;
    }

    /// A virtual CPU can run.
    pub fn wake(&mut self, slot: Slot, now: Time) -> Repick {
        if self.state(slot) != State::Asleep {
            return Repick::AsPlanned;
        }
        self.charge(now);
        self.entries[slot.index()].state = State::Ready;
        self.ready += 1;
        self.policy.wake(slot, now);
        // Who runs may have gone to sleep, and be this one: then the pick that follows every such sleep is still to
        // come.
        if self.running.is_some_and(|running| running == slot || self.state(running) != State::Ready) {
            return Repick::Now;
        }
        let Some(at) = self.policy.repick(slot, self.running, now) else { return Repick::AsPlanned };
        if at <= now {
            return Repick::Now;
        }
        if self.until <= at {
            return Repick::AsPlanned;
        }
        self.until = at;
        Repick::At(at)
    }

    /// A virtual CPU can no longer run: it is blocked, paused, or at its end. If it runs, the CPU must pick.
    pub fn sleep(&mut self, slot: Slot, now: Time) -> Repick {
        if self.state(slot) != State::Ready {
            return Repick::AsPlanned;
        }
        self.charge(now);
        self.policy.sleep(slot);
        self.entries[slot.index()].state = State::Asleep;
        self.ready -= 1;
        if self.running == Some(slot) { Repick::Now } else { Repick::AsPlanned }
    }

    /// Who runs from now on, and until when at the latest.
    #[inline]
    pub fn pick(&mut self, now: Time) -> Pick {
        self.charge(now);
        self.set_running(None, now)
    }

    /// Who runs from now on, now that the one that runs gives up its turn.
    #[inline(always)]
    pub fn pick_other(&mut self, now: Time) -> Pick {
        self.charge(now);
        let yields = self.running.filter(|&running| self.state(running) == State::Ready);
        self.set_running(yields, now)
    }

    /// [`pick_other`](Self::pick_other) where that is plain: the one that runs is ready, and so is another. `None`, and
    /// nothing has changed, if it is not, or if the policy has to think about it.
    #[inline(always)]
    pub fn hand_over(&mut self, now: Time) -> Option<HandOver> {
        let ran = now.since(self.since);
        let turn = self.policy.hand_over(ran, now)?;
        debug_assert_eq!(self.running, Some(turn.from), "who is picked runs");
        // (Times that were before `now`, none of them twice: their sum is not above it.)
        self.entries[turn.from.index()].ran.0 += ran.0;
        self.since.0 += ran.0;
        self.running = Some(turn.to);
        self.until = turn.until;
        Some(turn)
    }

    #[inline]
    fn set_running(&mut self, yields: Option<Slot>, now: Time) -> Pick {
        let pick = self.policy.pick(yields, now);
        self.running = pick.next;
        self.since = now.max(self.since);
        self.until = pick.until.unwrap_or(NEVER);
        pick
    }

    /// Counts the time until now as used by the one that runs. Every call that needs it does so itself.
    #[inline]
    pub fn charge(&mut self, now: Time) {
        let ran = now.since(self.since);
        if ran == Span::ZERO {
            return;
        }
        self.since = now;
        if let Some(running) = self.running {
            let entry = &mut self.entries[running.index()];
            entry.ran = entry.ran + ran;
            self.policy.charge(running, ran, now);
        }
    }

    /// Changes a virtual CPU's parameters.
    ///
    /// # Errors
    /// They are refused, or [`SchedError::NoSuchVcpu`].
    pub fn adjust(&mut self, slot: Slot, params: P::Params, now: Time) -> Result<Repick, SchedError> {
        let entry = self.entry(slot)?;
        self.charge(now);
        self.policy.adjust(slot, params, now)?;
        Ok(if entry.state == State::Ready { Repick::Now } else { Repick::AsPlanned })
    }

    /// A virtual CPU's parameters.
    ///
    /// # Errors
    /// [`SchedError::NoSuchVcpu`].
    pub fn params(&self, slot: Slot) -> Result<P::Params, SchedError> {
        self.entry(slot)?;
        Ok(self.policy.params(slot))
    }

    /// Changes the scheduler's own parameters, from the next pick on.
    ///
    /// # Errors
    /// They are refused.
    pub fn control(&mut self, global: P::Global) -> Result<(), SchedError> {
        self.policy.control(global)
    }

    /// The scheduler's own parameters.
    #[must_use]
    pub fn global(&self) -> P::Global {
        self.policy.global()
    }

    /// How long a virtual CPU has run, as far as it has been charged.
    ///
    /// # Errors
    /// [`SchedError::NoSuchVcpu`].
    pub fn ran(&self, slot: Slot) -> Result<Span, SchedError> {
        Ok(self.entry(slot)?.ran)
    }

    /// Who runs.
    #[must_use]
    pub const fn running(&self) -> Option<Slot> {
        self.running
    }

    /// How many are ready, whoever runs among them.
    #[inline]
    #[must_use]
    pub const fn ready(&self) -> usize {
        self.ready
    }

    /// What is promised, then how many there are: the least is the least loaded.
    pub(super) fn load(&self) -> (Share, usize) {
        (self.policy.promised(), self.occupied)
    }

    fn entry(&self, slot: Slot) -> Result<Entry, SchedError> {
        self.entries
            .get(slot.index())
            .copied()
            .filter(|entry| entry.state != State::Vacant)
            .ok_or(SchedError::NoSuchVcpu)
    }

    #[inline]
    fn state(&self, slot: Slot) -> State {
        self.entries.get(slot.index()).map_or(State::Vacant, |entry| entry.state)
    }
}
