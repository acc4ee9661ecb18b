//! Borrowed virtual time (Duda and Cheriton, "Borrowed-virtual-time (BVT) scheduling", SOSP 1999), the default.
//!
//! A virtual CPU's actual virtual time (AVT) is the time that it has run, times its advance, the inverse of its
//! weight. The one whose effective virtual time (EVT) is least runs, until it is ahead of the next by more than the
//! context switch allowance. EVT is AVT, less the warp value while it warps: so who must react quickly borrows time,
//! and pays it back, since AVT counts all the same. Who wakes is brought up to the scheduler's virtual time, the
//! least AVT of all that are ready: sleep earns nothing.
//!
//! Promises: those who are ready all along share as their weights do, warped or not. Nobody's AVT is ahead of the
//! scheduler's by more than the allowance times the greatest advance, its own warp, and how late the CPU picks: that
//! bounds every wait. It warps for no longer than its limit in all before it must not warp for as long as is required
//! (and may then again). Who yields lets another run, and gives up what it was behind that one.
//!
//! Virtual time is nanoseconds times advance, in 128 bits: 64 of time and 32 of advance leave 32 to spare, so it
//! never wraps and nothing is rounded.
//!
//! What Xen 2.0 did otherwise (`sched_bvt.c`): its virtual time had 32 bits, and when it was about to wrap, all had
//! the same amount taken off; one that had slept for long wrapped instead, and at the usual weight was not run for
//! three quarters of an hour. It counted time in steps of 100 µs, rounded up, so short runs were dear. The lead it
//! allowed was divided by the advance but not multiplied by the step: only the allowance was left of it. A warp limit
//! began anew with each run, so who blocked in time warped for ever. Limits were set in milliseconds and read in
//! nanoseconds; here both are milliseconds. A yield went to whoever had the least EVT, also the caller.
//!
//! Its CPU's [`RunQueue`](super::RunQueue) owns it.

use super::heap::Heap;
use super::{HandOver, Pick, Policy, SHORTEST, SchedError, Share, Slot, Span, Time};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::num::NonZeroU32;

/// The context switch allowance at first.
pub const DEFAULT_ALLOWANCE: Span = Span::millis(5);

/// The interface's unit of virtual time: what an advance of 1 makes of this time.
const UNIT: Span = Span::micros(100);

/// Whether a virtual CPU may warp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warping {
    /// It may not.
    Off,
    /// It may.
    On,
}

/// A virtual CPU's parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BvtParams {
    /// How fast its virtual time goes: the inverse of its weight.
    pub advance: NonZeroU32,
    /// Whether it may warp.
    pub warping: Warping,
    /// How far it warps, in units of virtual time: an advance of 1 makes that of 100 µs. If it is negative, it holds
    /// back.
    pub warp: i32,
    /// How long it may run warped; zero is no limit.
    pub limit: Span,
    /// How long it must then not warp; zero is for good, until its parameters are set again.
    pub pause: Span,
}

impl Default for BvtParams {
    /// Those of a new domain in 2.0.
    fn default() -> Self {
        const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();
        Self { advance: TEN, warping: Warping::Off, warp: 0, limit: Span::seconds(2), pause: Span::seconds(1) }
    }
}

/// A point in virtual time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Virtual(i128);

/// One that waits and does not warp: by its AVT, with its advance at hand.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    avt: Virtual,
    advance: NonZeroU32,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        self.avt.cmp(&other.avt)
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.avt == other.avt
    }
}

impl Eq for Waiting {}

/// Whether EVT differs from AVT at the moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Warp {
    Off,
    On,
    /// Not again before this time.
    Pausing(Time),
}

#[derive(Clone, Copy)]
struct Entity {
    params: BvtParams,
    avt: Virtual,
    warp: Warp,
    /// How much of the limit is left.
    warp_left: Span,
}

impl Entity {
    const NONE: NonZeroU32 = NonZeroU32::MIN;
    const VACANT: Self = Self {
        params: BvtParams { advance: Self::NONE, warping: Warping::Off, warp: 0, limit: Span::ZERO, pause: Span::ZERO },
        avt: Virtual(0),
        warp: Warp::Off,
        warp_left: Span::ZERO,
    };

    fn new(params: BvtParams, avt: Virtual) -> Self {
        let warp = match params.warping {
            Warping::Off => Warp::Off,
            Warping::On => Warp::On,
        };
        Self { params, avt, warp, warp_left: params.limit }
    }

    #[inline]
    fn waiting(&self) -> Waiting {
        Waiting { avt: self.avt, advance: self.params.advance }
    }

    #[inline]
    fn evt(&self) -> Virtual {
        match self.warp {
            Warp::On => Virtual(self.avt.0 - i128::from(self.params.warp) * i128::from(UNIT.0)),
            Warp::Off | Warp::Pausing(_) => self.avt,
        }
    }

    /// How long it runs until its EVT is at `to`. If that is very long, this is less; never more.
    #[inline]
    fn run_to(&self, to: Virtual) -> Span {
        let ahead = clamped((to.0 - self.evt().0).max(0));
        Span(ahead / u64::from(self.params.advance.get()))
    }

    const fn has_limit(&self) -> bool {
        matches!(self.warp, Warp::On) && self.params.limit.0 != 0
    }

    /// If its pause has passed it warps again.
    #[inline]
    fn end_pause(&mut self, now: Time) {
        if matches!(self.warp, Warp::Pausing(until) if until <= now) {
            self.warp = Warp::On;
        }
    }

    /// Its AVT when it has run for so long.
    #[inline(always)]
    fn avt_behind(&self, ran: Span) -> Virtual {
        // (Not above the greatest number of either kind.)
        Virtual(self.avt.0 + (u128::from(ran.0) * u128::from(self.params.advance.get())) as i128)
    }

    /// It has run for `ran` until now. Its warp may have ended in that time.
    #[inline]
    fn has_run(&mut self, ran: Span, now: Time) {
        self.avt = self.avt_behind(ran);
        if self.has_limit() {
            self.has_warped(ran, now);
        }
    }

    #[cold]
    fn has_warped(&mut self, ran: Span, now: Time) {
        if ran < self.warp_left {
            self.warp_left = self.warp_left.less(ran);
            return;
        }
        let late = ran.less(self.warp_left);
        let ended = Time(now.0.saturating_sub(late.0));
        self.warp_left = self.params.limit;
        self.warp = if self.params.pause == Span::ZERO { Warp::Off } else { Warp::Pausing(ended + self.params.pause) };
    }
}

/// Borrowed virtual time on one CPU.
///
/// Who was picked is in none of the heaps for as long as it is ready: its time changes all the while, and it mostly
/// goes on.
pub struct Bvt {
    entities: Vec<Entity>,
    /// Who was picked, if it is still ready.
    current: Option<Slot>,
    /// The others that are ready and do not warp.
    plain: Heap<Waiting>,
    /// The others that are ready and warp, by EVT.
    warped: Heap<Virtual>,
    /// The same, by AVT.
    warped_actual: Heap<Virtual>,
    /// Those of `plain` that will warp again, by when.
    pausing: Heap<Time>,
    /// None of those that are ready warps, or will: nobody is in the heaps above but `plain`.
    all_plain: bool,
    /// The least AVT of those that are ready, or were last.
    virtual_time: Virtual,
    allowance: Span,
}

impl Bvt {
    /// Nobody there.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entities: Vec::new(),
            current: None,
            plain: Heap::new(),
            warped: Heap::new(),
            warped_actual: Heap::new(),
            pausing: Heap::new(),
            all_plain: true,
            virtual_time: Virtual(0),
            allowance: DEFAULT_ALLOWANCE,
        }
    }

    /// Whether a virtual CPU is warped: may, and has not used up its limit.
    #[must_use]
    pub fn is_warped(&self, slot: Slot) -> bool {
        self.entities[slot.index()].warp == Warp::On
    }

    fn enqueue(&mut self, slot: Slot) {
        let entity = &self.entities[slot.index()];
        match entity.warp {
            Warp::On => {
                self.all_plain = false;
                self.warped.insert(slot, entity.evt());
                self.warped_actual.insert(slot, entity.avt);
                return;
            }
            Warp::Pausing(until) => {
                self.all_plain = false;
                self.pausing.insert(slot, until);
            }
            Warp::Off => {}
        }
        self.plain.insert(slot, entity.waiting());
    }

    fn dequeue(&mut self, slot: Slot) {
        self.plain.remove(slot);
        if self.all_plain {
            return;
        }
        self.warped.remove(slot);
        self.warped_actual.remove(slot);
        self.pausing.remove(slot);
    }

    #[inline]
    fn is_ready(&self, slot: Slot) -> bool {
        self.current == Some(slot) || self.plain.contains(slot) || self.warped.contains(slot)
    }

    #[inline]
    fn advance_virtual_time(&mut self) {
        let mut least = self.current.map(|slot| self.entities[slot.index()].avt);
        let plain = self.plain.first().map(|(waiting, _)| waiting.avt);
        for avt in [plain, self.warped_actual.first().map(|(avt, _)| avt)].into_iter().flatten() {
            if least.is_none_or(|least| avt < least) {
                least = Some(avt);
            }
        }
        if let Some(least) = least
            && least > self.virtual_time
        {
            self.virtual_time = least;
        }
    }

    /// Those whose pause has passed warp again.
    #[inline]
    fn end_pauses(&mut self, now: Time) {
        if let Some(slot) = self.current {
            self.entities[slot.index()].end_pause(now);
        }
        while let Some((until, slot)) = self.pausing.first()
            && until <= now
        {
            self.dequeue(slot);
            self.entities[slot.index()].end_pause(now);
            self.enqueue(slot);
        }
    }

    /// The least EVT of those that are ready, but for the current one's.
    #[inline]
    fn least(&self) -> Option<(Virtual, Slot)> {
        match (self.warped.first(), self.plain.first().map(|(waiting, slot)| (waiting.avt, slot))) {
            (Some(warped), Some(plain)) => Some(if plain.0 < warped.0 { plain } else { warped }),
            (only, None) | (None, only) => only,
        }
    }

    /// Makes another the current one, which is in a heap; the one that was goes there, if it is ready.
    #[inline]
    fn replace_current(&mut self, next: Slot) {
        let plain = |slot: Slot| self.entities[slot.index()].warp == Warp::Off;
        match self.current.replace(next) {
            // Mostly these two change places.
            Some(old) if plain(old) && plain(next) => {
                self.plain.replace(next, old, self.entities[old.index()].waiting());
            }
            old => {
                self.dequeue(next);
                if let Some(old) = old {
                    self.enqueue(old);
                }
            }
        }
    }

    /// To be called when anything has changed, but for who is current, that [`hand_over`](Policy::hand_over) asks for.
    #[inline]
    fn note_plain(&mut self) {
        let current = self.current.is_none_or(|slot| self.entities[slot.index()].warp == Warp::Off);
        self.all_plain = current && self.warped.is_empty() && self.pausing.is_empty();
    }

    /// Charges one that sleeps, or has slept and woken before anybody was picked, and so may be in a heap.
    #[cold]
    #[inline(never)]
    fn charge_another(&mut self, slot: Slot, ran: Span, now: Time) {
        let waits = self.is_ready(slot);
        self.dequeue(slot);
        self.entities[slot.index()].has_run(ran, now);
        if waits {
            self.enqueue(slot);
        }
    }

    /// When a virtual CPU that runs from now on has had its lead over another.
    #[inline]
    fn lead_ends(&self, slot: Slot, over: Virtual, now: Time) -> Time {
        let entity = &self.entities[slot.index()];
        let run = entity.run_to(over) + self.allowance;
        now + if entity.has_limit() { run.min(entity.warp_left) } else { run }
    }
}

/// A lead, which is not negative, or half the end of time if it is longer.
#[inline(always)]
fn clamped(lead: i128) -> u64 {
    #[cold]
    const fn longest() -> u64 {
        u64::MAX / 2
    }
    if lead >> 63 == 0 { lead as u64 } else { longest() }
}

impl Default for Bvt {
    fn default() -> Self {
        Self::new()
    }
}

fn check(params: &BvtParams) -> Result<(), SchedError> {
    if params.limit.0.max(params.pause.0) > i64::MAX as u64 { Err(SchedError::TooLong) } else { Ok(()) }
}

impl Policy for Bvt {
    type Params = BvtParams;
    type Global = Span;

    fn reserve(&mut self, slots: usize) -> Result<(), SchedError> {
        let missing = slots.saturating_sub(self.entities.len());
        self.entities.try_reserve(missing).map_err(|_| SchedError::OutOfMemory)?;
        self.plain.reserve(slots)?;
        self.warped.reserve(slots)?;
        self.warped_actual.reserve(slots)?;
        self.pausing.reserve(slots)?;
        self.entities.resize(slots.max(self.entities.len()), Entity::VACANT);
        Ok(())
    }

    fn insert(&mut self, slot: Slot, params: BvtParams, _: Time) -> Result<(), SchedError> {
        check(&params)?;
        self.advance_virtual_time();
        self.entities[slot.index()] = Entity::new(params, self.virtual_time);
        Ok(())
    }

    fn remove(&mut self, _: Slot) {}

    fn wake(&mut self, slot: Slot, now: Time) {
        self.advance_virtual_time();
        let entity = &mut self.entities[slot.index()];
        entity.avt = entity.avt.max(self.virtual_time);
        entity.end_pause(now);
        self.enqueue(slot);
        self.note_plain();
    }

    fn sleep(&mut self, slot: Slot) {
        self.advance_virtual_time();
        if self.current == Some(slot) {
            self.current = None;
        } else {
            self.dequeue(slot);
        }
        self.note_plain();
    }

    #[inline]
    fn charge(&mut self, slot: Slot, ran: Span, now: Time) {
        if self.current == Some(slot) {
            self.entities[slot.index()].has_run(ran, now);
        } else {
            self.charge_another(slot, ran, now);
        }
    }

    #[inline]
    fn pick(&mut self, yields: Option<Slot>, now: Time) -> Pick {
        self.end_pauses(now);
        let others = self.least();
        let next = match (self.current, others) {
            (current, None) => current,
            (None, Some((_, other))) => Some(other),
            (Some(current), Some((_, other))) if yields == Some(current) => {
                // It gives up what it was behind the other.
                let avt = self.entities[other.index()].avt;
                let entity = &mut self.entities[current.index()];
                entity.avt = entity.avt.max(avt);
                Some(other)
            }
            (Some(current), Some((evt, other))) => {
                Some(if evt < self.entities[current.index()].evt() { other } else { current })
            }
        };
        let Some(next) = next else { return Pick { next: None, until: None } };
        if self.current != Some(next) {
            self.replace_current(next);
        }
        self.note_plain();
        let Some((rival, _)) = self.least() else { return Pick { next: Some(next), until: None } };
        let until = self.lead_ends(next, rival, now);
        let until = self.pausing.first().map_or(until, |(ends, _)| ends.min(until));
        let until = if let Warp::Pausing(ends) = self.entities[next.index()].warp { ends.min(until) } else { until };
        Pick { next: Some(next), until: Some(until) }
    }

    /// Plain is where nobody warps, or will: then whoever waits is in one heap, by AVT, and its first comes next.
    #[inline(always)]
    fn hand_over(&mut self, ran: Span, now: Time) -> Option<HandOver> {
        let from = self.current.filter(|_| self.all_plain)?;
        let (next, to) = self.plain.first()?;
        let entity = self.entities.get_mut(from.index())?;
        entity.avt = entity.avt_behind(ran).max(next.avt);
        let waiting = entity.waiting();
        self.current = Some(to);
        self.plain.replace_first(from, waiting);
        // Whoever is first now is not before the one that was.
        let rival = self.plain.first()?.0.avt;
        let lead = clamped(rival.0 - next.avt.0) / u64::from(next.advance.get());
        Some(HandOver { from, to, until: now + Span(lead + self.allowance.0) })
    }

    fn repick(&self, woken: Slot, running: Option<Slot>, now: Time) -> Option<Time> {
        let Some(running) = running else { return Some(now) };
        let woken = &self.entities[woken.index()];
        let evt = woken.evt();
        if evt < self.entities[running.index()].evt() {
            return Some(now);
        }
        let at = self.lead_ends(running, evt, now);
        Some(if let Warp::Pausing(until) = woken.warp { at.min(until) } else { at })
    }

    fn adjust(&mut self, slot: Slot, params: BvtParams, _: Time) -> Result<(), SchedError> {
        check(&params)?;
        let waits = self.is_ready(slot) && self.current != Some(slot);
        self.dequeue(slot);
        let avt = self.entities[slot.index()].avt;
        self.entities[slot.index()] = Entity::new(params, avt);
        if waits {
            self.enqueue(slot);
        }
        self.note_plain();
        Ok(())
    }

    fn params(&self, slot: Slot) -> BvtParams {
        self.entities[slot.index()].params
    }

    fn control(&mut self, allowance: Span) -> Result<(), SchedError> {
        if allowance < SHORTEST {
            return Err(SchedError::TooShort);
        }
        if allowance.0 > u64::from(u32::MAX) {
            return Err(SchedError::TooLong);
        }
        self.allowance = allowance;
        Ok(())
    }

    fn global(&self) -> Span {
        self.allowance
    }

    fn promised(&self) -> Share {
        Share(0)
    }
}
