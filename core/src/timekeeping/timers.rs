//! A domain's own time, its tick, and the three ways it can ask for a timer event.
//!
//! Virtual time is the time that the domain has run: it begins at 0 with its first turn, and stands still between
//! turns. While it runs, a tick is due every [`TICK_NS`]. Asked for by call (`set_timer_op`) or in the shared page
//! (`wall_timeout`, in system time; `domain_timeout`, in virtual time; xen.h, "Timeout values"), an event is due when
//! that time has come, and at once if it has passed. 0 asks for nothing. All times are unsigned: the last is 2^64 - 1,
//! 584 years from the start, and is reached by nobody.
//!
//! The timeouts in the page are read and never written, since a 32-bit guest changes them in halves: what is seen in
//! between may fire early, which an event that also says "look at the clock" may, but nothing the guest writes is lost.
//! So each is remembered once it has fired, and fires again when it has been seen to be something else.
//!
//! Promises: nothing is due before its time; what is due is reported once; whoever looks at [`Timers::next`]'s time
//! misses nothing. No arithmetic wraps. No lock: a domain's timers belong to the CPU that runs it, as its virtual CPU
//! does.

/// Time between two ticks of a domain that runs, in nanoseconds.
pub const TICK_NS: u64 = 10_000_000;

/// The timeouts of the shared page, as the guest has them now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timeouts {
    /// `wall_timeout`: system time, in nanoseconds; 0 for none.
    pub system: u64,
    /// `domain_timeout`: virtual time of the domain, in nanoseconds; 0 for none.
    pub domain: u64,
}

/// Whether a timer event is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// It is.
    Now,
    /// Not yet.
    Later,
}

/// A timeout of the page, and whether it has fired.
#[derive(Clone, Copy, Debug)]
struct Timeout {
    /// The value that has fired; 0 when none of those seen since has.
    fired: u64,
}

impl Timeout {
    /// What is still waited for.
    const fn pending(self, asked: u64) -> Option<u64> {
        if asked == 0 || asked == self.fired { None } else { Some(asked) }
    }

    /// Looks at what the guest asks for: fires if its time has come, and has not fired yet.
    const fn fire(&mut self, asked: u64, now: u64) -> bool {
        if asked != self.fired {
            self.fired = 0;
        }
        let fires = asked != 0 && asked != self.fired && asked <= now;
        if fires {
            self.fired = asked;
        }
        fires
    }
}

/// No turn has begun then: the end of time.
const NEVER: u64 = u64::MAX;

/// A turn of a domain that asks for nothing but ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlainTurn {
    /// When its first tick is due, in system time.
    pub next_tick: u64,
    /// Its virtual time at the beginning.
    pub domain_ns: u64,
}

/// A domain's timers.
#[derive(Clone, Debug)]
pub struct Timers {
    /// When its turn on a CPU began, in system time; [`NEVER`] if it does not run.
    since: u64,
    /// When its next tick is due; [`NEVER`] if it does not run.
    next_tick: u64,
    /// What it had run before, in nanoseconds.
    ran_before: u64,
    system: Timeout,
    domain: Timeout,
}

impl Default for Timers {
    fn default() -> Self {
        Self::new()
    }
}

impl Timers {
    /// Those of a domain that has not run yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            since: NEVER,
            next_tick: NEVER,
            ran_before: 0,
            system: Timeout { fired: 0 },
            domain: Timeout { fired: 0 },
        }
    }

    /// The domain begins to run, unless it does already.
    #[inline]
    pub fn resume(&mut self, now: u64) {
        if !self.runs() {
            (self.since, self.next_tick) = (now, now.saturating_add(TICK_NS));
        }
    }

    #[inline]
    const fn runs(&self) -> bool {
        self.since != NEVER
    }

    /// The domain begins to run, and did not, if it asks for nothing but ticks: [`resume`](Self::resume),
    /// [`take_due`](Self::take_due), of which nothing comes, and when to look [next](Self::next). `None`, and nothing
    /// has changed, if it asks for more.
    #[inline(always)]
    pub fn begin_plain_turn(&mut self, now: u64, timer: Option<u64>, timeouts: Timeouts) -> Option<PlainTurn> {
        if !self.asks_for_nothing(timer, timeouts) {
            return None;
        }
        debug_assert!(!self.runs(), "it is paused");
        let next_tick = now.saturating_add(TICK_NS);
        (self.since, self.next_tick) = (now, next_tick);
        Some(PlainTurn { next_tick, domain_ns: self.ran_before })
    }

    /// It ceases to run, if it does.
    #[inline]
    pub fn pause(&mut self, now: u64) {
        self.ran_before = self.domain_time(now);
        (self.since, self.next_tick) = (NEVER, NEVER);
    }

    /// Its virtual time: what it has run, in nanoseconds.
    #[inline]
    #[must_use]
    pub fn domain_time(&self, now: u64) -> u64 {
        // (All its turns are behind one another, so this is not above the time of the last.)
        self.ran_before.wrapping_add(now.saturating_sub(self.since))
    }

    /// Whether a timer event is due, for whatever reason; they count as served then. `timer` is what was asked for by
    /// call.
    #[inline]
    pub fn take_due(&mut self, now: u64, timer: &mut Option<u64>, timeouts: Timeouts) -> Due {
        if self.asks_for_nothing(*timer, timeouts) {
            return if self.take_tick(now) { Due::Now } else { Due::Later };
        }
        self.take_any_due(now, timer, timeouts)
    }

    /// Whether there is nothing to look at but the tick, as mostly.
    #[inline]
    const fn asks_for_nothing(&self, timer: Option<u64>, timeouts: Timeouts) -> bool {
        timer.is_none() && timeouts.system | timeouts.domain | self.system.fired | self.domain.fired == 0
    }

    fn take_any_due(&mut self, now: u64, timer: &mut Option<u64>, timeouts: Timeouts) -> Due {
        let domain_time = self.domain_time(now);
        let asked = timer.take_if(|at| *at <= now).is_some();
        let by_system = self.system.fire(timeouts.system, now);
        let by_domain = self.domain.fire(timeouts.domain, domain_time);
        let tick = self.take_tick(now);
        if asked || by_system || by_domain || tick { Due::Now } else { Due::Later }
    }

    /// Ticks keep their rhythm; those that were missed are not made up for.
    #[inline]
    fn take_tick(&mut self, now: u64) -> bool {
        if !self.runs() || self.next_tick > now {
            return false;
        }
        let missed = (now - self.next_tick) / TICK_NS;
        self.next_tick = self.next_tick.saturating_add(missed.saturating_add(1).saturating_mul(TICK_NS));
        true
    }

    /// When to look again, in system time, if things stay as they are; `None`: never.
    #[inline]
    #[must_use]
    pub fn next(&self, timer: Option<u64>, timeouts: Timeouts) -> Option<u64> {
        if self.asks_for_nothing(timer, timeouts) {
            return self.runs().then_some(self.next_tick);
        }
        self.next_of_any(timer, timeouts)
    }

    fn next_of_any(&self, timer: Option<u64>, timeouts: Timeouts) -> Option<u64> {
        let alarm = self.next_alarm(timer, timeouts);
        if !self.runs() {
            return alarm;
        }
        let domain = self.domain.pending(timeouts.domain);
        // Virtual time advances with system time.
        let domain = domain.map(|at| self.since.saturating_add(at.saturating_sub(self.ran_before)));
        [Some(self.next_tick), alarm, domain].into_iter().flatten().min()
    }

    /// The same for a domain that does not run, or is about to cease to: it has no ticks, and its virtual time stands
    /// still.
    #[must_use]
    pub fn next_alarm(&self, timer: Option<u64>, timeouts: Timeouts) -> Option<u64> {
        timer.into_iter().chain(self.system.pending(timeouts.system)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;

    const NONE: Timeouts = Timeouts { system: 0, domain: 0 };

    #[test]
    fn virtual_time_is_what_it_has_run() {
        let mut timers = Timers::new();
        assert_eq!(timers.domain_time(500), 0, "it has not begun");
        timers.resume(1000);
        assert_eq!(timers.domain_time(1700), 700);
        timers.pause(2000);
        timers.pause(2500);
        assert_eq!(timers.domain_time(9000), 1000, "it waits");
        timers.resume(10_000);
        timers.resume(10_400);
        assert_eq!(timers.domain_time(10_500), 1500, "the turn began when it began");
        assert_eq!(timers.domain_time(9_999), 1000, "a clock that lags takes nothing away");
    }

    #[test]
    fn ticks_are_the_running_domains_only() {
        let mut timers = Timers::new();
        assert_eq!(timers.next(None, NONE), None, "an idle machine is quiet");
        timers.resume(5);
        assert_eq!(timers.next(None, NONE), Some(5 + TICK_NS));
        assert_eq!(timers.take_due(4 + TICK_NS, &mut None, NONE), Due::Later);
        assert_eq!(timers.take_due(5 + TICK_NS, &mut None, NONE), Due::Now);
        assert_eq!(timers.take_due(6 + TICK_NS, &mut None, NONE), Due::Later);
        // Three are missed; the fourth comes when it would have.
        assert_eq!(timers.take_due(7 + 4 * TICK_NS, &mut None, NONE), Due::Now);
        assert_eq!(timers.next(None, NONE), Some(5 + 5 * TICK_NS));
        timers.pause(7 + 4 * TICK_NS);
        assert_eq!(timers.next(None, NONE), None);
        assert_eq!(timers.take_due(u64::MAX, &mut None, NONE), Due::Later);
    }

    #[test]
    fn a_timeout_fires_once_until_it_is_another() {
        let mut timers = Timers::new();
        let mut due = |now, system| timers.take_due(now, &mut None, Timeouts { system, domain: 0 });
        assert_eq!(due(99, 100), Due::Later);
        assert_eq!(due(100, 100), Due::Now);
        assert_eq!(due(101, 100), Due::Later, "once");
        assert_eq!(due(102, 50), Due::Now, "another, and it has passed");
        assert_eq!(due(103, 100), Due::Now, "the first again");
        assert_eq!(due(104, 0), Due::Later);
        assert_eq!(due(105, 100), Due::Now, "taken back and asked for anew");
        assert_eq!(due(u64::MAX - 1, u64::MAX), Due::Later);
        assert_eq!(due(u64::MAX, u64::MAX), Due::Now, "the end of time");
    }

    #[test]
    fn a_domains_timeout_waits_while_it_waits() {
        let mut timers = Timers::new();
        let asked = Timeouts { system: 0, domain: 1_000 };
        timers.resume(0);
        assert_eq!(timers.next(None, asked), Some(1_000));
        timers.pause(600);
        assert_eq!(timers.next(None, asked), None);
        assert_eq!(timers.take_due(5_000, &mut None, asked), Due::Later);
        timers.resume(7_000);
        assert_eq!(timers.next(None, asked), Some(7_400));
        assert_eq!(timers.take_due(7_399, &mut None, asked), Due::Later);
        assert_eq!(timers.take_due(7_400, &mut None, asked), Due::Now);
        assert_eq!(timers.next(None, asked), Some(7_000 + TICK_NS));
    }

    #[test]
    fn at_the_end_of_time_nothing_wraps() {
        let mut timers = Timers::new();
        let asked = Timeouts { system: u64::MAX, domain: u64::MAX };
        timers.resume(u64::MAX - 5);
        assert_eq!(timers.next(Some(u64::MAX), asked), Some(u64::MAX));
        assert_eq!(timers.take_due(u64::MAX - 1, &mut Some(u64::MAX), asked), Due::Later);
        let mut timer = Some(u64::MAX);
        assert_eq!(timers.take_due(u64::MAX, &mut timer, asked), Due::Now);
        assert_eq!(timer, None);
        assert_eq!(timers.domain_time(u64::MAX), 5);
    }

    /// What a guest or the machine does next.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Resume,
        Pause,
        Timer(u64),
        System(u64),
        Domain(u64),
        Pass(u64),
    }

    /// Times near, at both ends, and anywhere.
    fn time() -> impl Strategy<Value = u64> {
        prop_oneof![0..60_000_000u64, Just(0), Just(1), (u64::MAX - 3)..=u64::MAX, any::<u64>()]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Resume),
            Just(Step::Pause),
            time().prop_map(Step::Timer),
            time().prop_map(Step::System),
            time().prop_map(Step::Domain),
            (0..30_000_000u64).prop_map(Step::Pass),
            time().prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Whatever happens, who looks exactly when it is told to reports each event at its time, not before, and once.
        #[test]
        fn events_come_on_time(steps in proptest::collection::vec(step(), 1..60), start in time()) {
            let mut timers = Timers::new();
            let (mut now, mut timer, mut asked) = (start, None, NONE);
            // The model: how long it has run, since when, and what is still to fire.
            let (mut ran, mut since) = (0u64, None);
            let (mut system, mut domain) = (0u64, 0u64);
            for step in steps {
                match step {
                    Step::Resume => {
                        // Either way.
                        let mut plain = timers.clone();
                        plain.pause(now);
                        let (mut long, before, mut left) = (plain.clone(), plain.clone(), timer);
                        long.resume(now);
                        let due = long.take_due(now, &mut left, asked);
                        match plain.begin_plain_turn(now, timer, asked) {
                            // At the very end a tick comes at once.
                            Some(turn) if now < u64::MAX => {
                                prop_assert_eq!((due, left), (Due::Later, timer));
                                prop_assert_eq!(Some(turn.next_tick), long.next(left, asked));
                                prop_assert_eq!(turn.domain_ns, long.domain_time(now));
                                prop_assert_eq!(format!("{plain:?}"), format!("{long:?}"));
                            }
                            Some(_) => {}
                            None => {
                                prop_assert!(timer.is_some() || asked != NONE || before.system.fired | before.domain.fired != 0);
                                prop_assert_eq!(format!("{plain:?}"), format!("{before:?}"));
                            }
                        }
                        timers.resume(now);
                        since.get_or_insert(now);
                    }
                    Step::Pause => {
                        timers.pause(now);
                        ran += since.take().map_or(0, |since| now - since);
                    }
                    Step::Timer(at) => timer = (at != 0).then_some(at),
                    Step::System(at) => {
                        (asked.system, system) = (at, if at == asked.system { system } else { at });
                    }
                    Step::Domain(at) => {
                        (asked.domain, domain) = (at, if at == asked.domain { domain } else { at });
                    }
                    Step::Pass(time) => {
                        // To the next moment that it asks for, or past all that.
                        let end = now.saturating_add(time);
                        let next = timers.next(timer, asked).filter(|&at| at <= end);
                        now = next.map_or(end, |at| at.max(now));
                    }
                }
                let virtual_time = ran + since.map_or(0, |since| now - since);
                prop_assert_eq!(timers.domain_time(now), virtual_time);
                let expected = timer.is_some_and(|at| at <= now)
                    || (system != 0 && system <= now)
                    || (domain != 0 && domain <= virtual_time);
                let tick = timers.runs() && timers.next_tick <= now;
                let due = timers.take_due(now, &mut timer, asked);
                prop_assert_eq!(due == Due::Now, expected || tick, "at {}", now);
                if system <= now {
                    system = 0;
                }
                if domain <= virtual_time {
                    domain = 0;
                }
                prop_assert!(timer.is_none_or(|at| at > now));
                // At the very end a tick has nowhere to go.
                let next = timers.next(timer, asked);
                prop_assert!(next.is_none_or(|at| at > now || now == u64::MAX), "{:?} at {}", next, now);
                // Nobody who asked is forgotten.
                for at in [timer, (system != 0).then_some(system)].into_iter().flatten() {
                    prop_assert!(next.is_some_and(|next| next <= at));
                }
            }
        }
    }
}
