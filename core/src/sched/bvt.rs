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
use super::{Pick, Policy, SHORTEST, SchedError, Share, Slot, Span, Time};
use alloc::vec::Vec;
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
    fn evt(&self) -> Virtual {
        match self.warp {
            Warp::On => Virtual(self.avt.0 - i128::from(self.params.warp) * i128::from(UNIT.0)),
            Warp::Off | Warp::Pausing(_) => self.avt,
        }
    }

    /// How long it runs until its EVT is at `to`. If that is very long, this is less; never more.
    #[inline]
    fn run_to(&self, to: Virtual) -> Span {
        let ahead = u64::try_from((to.0 - self.evt().0).max(0)).unwrap_or(u64::MAX);
        Span(ahead / u64::from(self.params.advance.get()))
    }

    const fn has_limit(&self) -> bool {
        matches!(self.warp, Warp::On) && self.params.limit.0 != 0
    }

    /// It has run for `ran` until now. Returns whether its warp ended in that time.
    #[inline]
    fn has_run(&mut self, ran: Span, now: Time) -> bool {
        self.avt.0 += i128::from(ran.0) * i128::from(self.params.advance.get());
        if !self.has_limit() {
            return false;
        }
        if ran < self.warp_left {
            self.warp_left = self.warp_left.less(ran);
            return false;
        }
        let late = ran.less(self.warp_left);
        let ended = Time(now.0.saturating_sub(late.0));
        self.warp_left = self.params.limit;
        self.warp = if self.params.pause == Span::ZERO { Warp::Off } else { Warp::Pausing(ended + self.params.pause) };
        true
    }
}

/// Borrowed virtual time on one CPU.
pub struct Bvt {
    entities: Vec<Entity>,
    /// Those that are ready and do not warp, by AVT.
    plain: Heap<Virtual>,
    /// Those that are ready and warp, by EVT.
    warped: Heap<Virtual>,
    /// The same, by AVT.
    warped_actual: Heap<Virtual>,
    /// Those of `plain` that will warp again, by when.
    pausing: Heap<Time>,
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
            plain: Heap::new(),
            warped: Heap::new(),
            warped_actual: Heap::new(),
            pausing: Heap::new(),
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
                self.warped.insert(slot, entity.evt());
                self.warped_actual.insert(slot, entity.avt);
                return;
            }
            Warp::Pausing(until) => self.pausing.insert(slot, until),
            Warp::Off => {}
        }
        self.plain.insert(slot, entity.avt);
    }

    fn dequeue(&mut self, slot: Slot) {
        self.plain.remove(slot);
        self.warped.remove(slot);
        self.warped_actual.remove(slot);
        self.pausing.remove(slot);
    }

    #[inline]
    fn is_ready(&self, slot: Slot) -> bool {
        self.plain.contains(slot) || self.warped.contains(slot)
    }

    #[inline]
    fn advance_virtual_time(&mut self) {
        let least = match (self.plain.first(), self.warped_actual.first()) {
            (Some((plain, _)), Some((warped, _))) => plain.min(warped),
            (Some((only, _)), None) | (None, Some((only, _))) => only,
            (None, None) => return,
        };
        self.virtual_time = self.virtual_time.max(least);
    }

    /// Those whose pause has passed warp again.
    #[inline]
    fn end_pauses(&mut self, now: Time) {
        while let Some((until, slot)) = self.pausing.first()
            && until <= now
        {
            self.dequeue(slot);
            self.entities[slot.index()].warp = Warp::On;
            self.enqueue(slot);
        }
    }

    /// The least EVT.
    #[inline]
    fn least(&self) -> Option<(Virtual, Slot)> {
        least_of(self.warped.first(), self.plain.first())
    }

    /// The least EVT but for `slot`.
    #[inline]
    fn least_except(&self, slot: Slot) -> Option<(Virtual, Slot)> {
        least_of(self.warped.first_except(slot), self.plain.first_except(slot))
    }

    /// When a virtual CPU that runs from now on has had its lead over another.
    #[inline]
    fn lead_ends(&self, slot: Slot, over: Virtual, now: Time) -> Time {
        let entity = &self.entities[slot.index()];
        let run = entity.run_to(over) + self.allowance;
        now + if entity.has_limit() { run.min(entity.warp_left) } else { run }
    }
}

#[inline]
fn least_of(warped: Option<(Virtual, Slot)>, plain: Option<(Virtual, Slot)>) -> Option<(Virtual, Slot)> {
    match (warped, plain) {
        (Some(warped), Some(plain)) => Some(if plain.0 < warped.0 { plain } else { warped }),
        (only, None) | (None, only) => only,
    }
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
        if matches!(entity.warp, Warp::Pausing(until) if until <= now) {
            entity.warp = Warp::On;
        }
        self.enqueue(slot);
    }

    fn sleep(&mut self, slot: Slot) {
        self.advance_virtual_time();
        self.dequeue(slot);
    }

    #[inline]
    fn charge(&mut self, slot: Slot, ran: Span, now: Time) {
        let entity = &mut self.entities[slot.index()];
        let warp_ended = entity.has_run(ran, now);
        if !warp_ended && entity.warp != Warp::On {
            self.plain.update(slot, entity.avt);
        } else if !warp_ended {
            self.warped.update(slot, entity.evt());
            self.warped_actual.update(slot, entity.avt);
        } else if self.is_ready(slot) {
            self.dequeue(slot);
            self.enqueue(slot);
        }
    }

    #[inline]
    fn pick(&mut self, yields: Option<Slot>, now: Time) -> Pick {
        self.end_pauses(now);
        let next = match yields {
            None => self.least(),
            Some(slot) => self.least_except(slot).or_else(|| self.least()),
        };
        let Some((_, next)) = next else { return Pick { next: None, until: None } };
        if let Some(slot) = yields {
            let avt = self.entities[next.index()].avt;
            let entity = &mut self.entities[slot.index()];
            if entity.avt < avt {
                entity.avt = avt;
                let (evt, is_warped) = (entity.evt(), entity.warp == Warp::On);
                if is_warped {
                    self.warped.update(slot, evt);
                    self.warped_actual.update(slot, avt);
                } else {
                    self.plain.update(slot, avt);
                }
            }
        }
        let Some((rival, _)) = self.least_except(next) else { return Pick { next: Some(next), until: None } };
        let until = self.lead_ends(next, rival, now);
        let until = self.pausing.first().map_or(until, |(ends, _)| ends.min(until));
        Pick { next: Some(next), until: Some(until) }
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
        let is_ready = self.is_ready(slot);
        self.dequeue(slot);
        let avt = self.entities[slot.index()].avt;
        self.entities[slot.index()] = Entity::new(params, avt);
        if is_ready {
            self.enqueue(slot);
        }
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
