//! A simulated machine for schedulers: loads that compute, block, wake, yield, come, go and are adjusted, on virtual
//! time.
//!
//! It calls the [`Schedulers`] as the hypervisor does and runs what they pick, from event to event, so a minute of
//! four CPUs takes some milliseconds. The same loads give the same runs. For tests and for plots.

use super::{Affinity, CpuId, Home, Params, Repick, SchedError, Schedulers, Span, Time};
use alloc::vec::Vec;
use proxenos_abi::sched_ctl::SchedulerId;

/// What a virtual CPU does with the time that it gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// Computes without end.
    Spins,
    /// Runs, then sleeps, each for a random length of these.
    Bursts {
        /// At least and at most.
        run: (Span, Span),
        /// At least and at most.
        sleep: (Span, Span),
    },
    /// Yields whenever it has run for so long.
    Yields(Span),
}

/// A virtual CPU, and its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Load {
    /// Its parameters at first.
    pub params: Params,
    /// Where it may run.
    pub affinity: Affinity,
    /// What it does.
    pub behaviour: Behaviour,
    /// When it is created and woken.
    pub arrives: Time,
    /// When it is destroyed.
    pub leaves: Option<Time>,
    /// Its parameters are changed, in this order.
    pub changes: Vec<(Time, Params)>,
    /// Of its random lengths.
    pub seed: u64,
}

impl Load {
    /// One that computes from the start to the end.
    #[must_use]
    pub const fn spinning(params: Params) -> Self {
        Self {
            params,
            affinity: Affinity::Any,
            behaviour: Behaviour::Spins,
            arrives: Time(0),
            leaves: None,
            changes: Vec::new(),
            seed: 1,
        }
    }
}

/// A load ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Which.
    pub load: usize,
    /// Where.
    pub cpu: CpuId,
    /// From when.
    pub from: Time,
    /// Until when.
    pub to: Time,
}

/// What became of a load.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Where it was placed.
    pub cpu: Option<CpuId>,
    /// Why it was not, or why a change of its parameters was refused.
    pub refused: Option<SchedError>,
    /// How long it ran.
    pub ran: Span,
    /// The longest time that it was ready and did not run.
    pub longest_wait: Span,
    /// From each wake to the first run after it.
    pub latencies: Vec<Span>,
}

/// The machine.
pub struct Machine {
    /// Which scheduler.
    pub scheduler: SchedulerId,
    /// How many CPUs.
    pub cpus: u16,
    /// How late a CPU's timer is.
    pub lateness: Span,
}

struct Actor<'a> {
    load: &'a Load,
    outcome: Outcome,
    state: State,
    home: Option<Home>,
    changed: usize,
    /// How long it runs until it sleeps or yields.
    burst: Option<Span>,
    waits_since: Option<Time>,
    has_just_woken: Wake,
    random: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wake {
    Seen,
    Fresh,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unborn,
    Asleep { wakes: Time },
    Ready,
    Gone,
}

#[derive(Clone, Copy, Default)]
struct Cpu {
    running: Option<usize>,
    since: Time,
    picks: Option<Time>,
}

impl Actor<'_> {
    fn random(&mut self, (least, most): (Span, Span)) -> Span {
        // Steele and others' SplitMix64.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        Span(least.0 + bits % (most.0 - least.0 + 1))
    }

    fn new_burst(&mut self) {
        self.burst = match self.load.behaviour {
            Behaviour::Spins => None,
            Behaviour::Bursts { run, .. } => Some(self.random(run)),
            Behaviour::Yields(after) => Some(after),
        };
    }

    /// When something happens to it that does not depend on its running.
    fn next_event(&self) -> Option<Time> {
        let own = match self.state {
            State::Unborn => return Some(self.load.arrives),
            State::Gone => return None,
            State::Asleep { wakes } => Some(wakes),
            State::Ready => None,
        };
        let change = self.load.changes.get(self.changed).map(|&(when, _)| when);
        [own, change, self.load.leaves].into_iter().flatten().min()
    }
}

struct Simulation<'a, F> {
    schedulers: Schedulers,
    actors: Vec<Actor<'a>>,
    cpus: Vec<Cpu>,
    now: Time,
    observe: F,
}

impl Machine {
    /// Lets the loads run until `end`, and shows each run to `observe`.
    ///
    /// # Panics
    /// If a scheduler breaks the rules of the calls: picks who is not ready, or for no time.
    pub fn run(&self, loads: &[Load], end: Time, observe: impl FnMut(Run)) -> Vec<Outcome> {
        let schedulers = Schedulers::new(self.scheduler, self.cpus).expect("CPUs");
        let actors = loads.iter().map(|load| Actor {
            load,
            outcome: Outcome::default(),
            state: State::Unborn,
            home: None,
            changed: 0,
            burst: None,
            waits_since: None,
            has_just_woken: Wake::Seen,
            random: load.seed,
        });
        let cpus = (0..self.cpus).map(|_| Cpu::default()).collect();
        let mut simulation = Simulation { schedulers, actors: actors.collect(), cpus, now: Time(0), observe };
        simulation.run(end, self.lateness);
        simulation.actors.into_iter().map(|actor| actor.outcome).collect()
    }
}

impl<F: FnMut(Run)> Simulation<'_, F> {
    fn run(&mut self, end: Time, lateness: Span) {
        loop {
            let event = |at: Option<Time>, what: Event| at.map(|at| (at, what));
            let actors = self.actors.iter().enumerate().map(|(n, actor)| event(actor.next_event(), Event::Actor(n)));
            let cpus = self.cpus.iter().enumerate().flat_map(|(n, cpu)| {
                let burst = cpu.running.and_then(|running| self.actors[running].burst);
                let burst_ends = event(burst.map(|burst| cpu.since + burst), Event::BurstEnds(n));
                [burst_ends, event(cpu.picks.map(|at| at + lateness), Event::Picks(n))]
            });
            let next = actors.chain(cpus).flatten().min_by_key(|&(at, _)| at);
            let Some((at, what)) = next.filter(|&(at, _)| at < end) else { break };
            self.now = self.now.max(at);
            match what {
                Event::Actor(actor) => self.actor_event(actor),
                Event::BurstEnds(cpu) => self.burst_ends(cpu),
                Event::Picks(cpu) => self.dispatch(cpu, Turn::Goes),
            }
        }
        self.now = end;
        for cpu in 0..self.cpus.len() {
            self.stop(cpu);
            for actor in &mut self.actors {
                if let Some(since) = actor.waits_since {
                    actor.outcome.longest_wait = actor.outcome.longest_wait.max(end.since(since));
                }
            }
        }
    }

    fn actor_event(&mut self, index: usize) {
        let (now, actor) = (self.now, &mut self.actors[index]);
        if actor.state == State::Unborn {
            match self.schedulers.place(actor.load.params, actor.load.affinity, now) {
                Ok(home) => {
                    actor.home = Some(home);
                    actor.outcome.cpu = Some(home.cpu);
                    actor.state = State::Asleep { wakes: now };
                }
                Err(error) => {
                    actor.outcome.refused = Some(error);
                    actor.state = State::Gone;
                }
            }
            return;
        }
        let Some(home) = actor.home else { return };
        if actor.load.leaves.is_some_and(|leaves| leaves <= now) {
            actor.state = State::Gone;
            actor.waits_since = None;
            let repick = self.queue(home).sleep(home.slot, now);
            self.obey(home, repick);
            self.queue(home).remove(home.slot).expect("asleep");
        } else if let Some(&(when, params)) = actor.load.changes.get(actor.changed)
            && when <= now
        {
            actor.changed += 1;
            let result = self.queue(home).adjust(home.slot, params, now);
            match result {
                Ok(repick) => self.obey(home, repick),
                Err(error) => self.actors[index].outcome.refused = Some(error),
            }
        } else {
            actor.state = State::Ready;
            actor.waits_since = Some(now);
            actor.has_just_woken = Wake::Fresh;
            actor.new_burst();
            let repick = self.queue(home).wake(home.slot, now);
            self.obey(home, repick);
        }
    }

    fn burst_ends(&mut self, cpu: usize) {
        let Some(running) = self.cpus[cpu].running else { return };
        self.stop(cpu);
        let (now, actor) = (self.now, &mut self.actors[running]);
        actor.new_burst();
        match actor.load.behaviour {
            Behaviour::Bursts { sleep, .. } => {
                let wakes = now + actor.random(sleep);
                actor.state = State::Asleep { wakes };
                actor.waits_since = None;
                if let Some(home) = actor.home {
                    let repick = self.queue(home).sleep(home.slot, now);
                    self.obey(home, repick);
                }
            }
            Behaviour::Yields(_) => self.dispatch(cpu, Turn::GivenUp),
            Behaviour::Spins => {}
        }
    }

    /// Whoever runs is accounted for, and waits.
    fn stop(&mut self, cpu: usize) {
        let now = self.now;
        let Some(running) = self.cpus[cpu].running.take() else { return };
        let from = self.cpus[cpu].since;
        let actor = &mut self.actors[running];
        let ran = now.since(from);
        actor.outcome.ran = actor.outcome.ran + ran;
        actor.burst = actor.burst.map(|burst| burst.less(ran));
        actor.waits_since = Some(now);
        if actor.state != State::Ready {
            actor.waits_since = None;
        }
        if ran > Span::ZERO {
            (self.observe)(Run { load: running, cpu: CpuId(cpu as u16), from, to: now });
        }
    }

    fn dispatch(&mut self, cpu: usize, turn: Turn) {
        self.stop(cpu);
        let (now, id) = (self.now, CpuId(cpu as u16));
        let mut queue = self.schedulers.queue(id).expect("a CPU");
        let pick = match turn {
            Turn::Goes => queue.pick(now),
            Turn::GivenUp => queue.pick_other(now),
        };
        drop(queue);
        assert!(pick.until.is_none_or(|until| until > now), "picked for no time");
        let running = pick.next.map(|slot| {
            let home = Some(Home { cpu: id, slot });
            let is_it = |actor: &Actor<'_>| actor.home == home && actor.state == State::Ready;
            self.actors.iter().position(is_it).expect("who was picked is ready")
        });
        self.cpus[cpu] = Cpu { running, since: now, picks: pick.until };
        if let Some(running) = running {
            let actor = &mut self.actors[running];
            if let Some(since) = actor.waits_since.take() {
                let waited = now.since(since);
                actor.outcome.longest_wait = actor.outcome.longest_wait.max(waited);
                if actor.has_just_woken == Wake::Fresh {
                    actor.outcome.latencies.push(waited);
                }
            }
            actor.has_just_woken = Wake::Seen;
        }
    }

    fn obey(&mut self, home: Home, repick: Repick) {
        let cpu = usize::from(home.cpu.0);
        match repick {
            Repick::Now => self.dispatch(cpu, Turn::Goes),
            Repick::At(at) => self.cpus[cpu].picks = Some(at),
            Repick::AsPlanned => {}
        }
    }

    fn queue(&self, home: Home) -> spin::MutexGuard<'_, super::RunQueue<super::Chosen>> {
        self.schedulers.queue(home.cpu).expect("a CPU")
    }
}

#[derive(Clone, Copy)]
enum Event {
    Actor(usize),
    BurstEnds(usize),
    Picks(usize),
}

#[derive(Clone, Copy)]
enum Turn {
    Goes,
    GivenUp,
}
