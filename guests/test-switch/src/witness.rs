//! A domain that looks again and again whether everything is still its own, while others do what they can to their CPU.

use crate::ends;
use crate::state::{self, Floating, Ldt, WATCHED};
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::dom0_ops::Dom0Op;
use proxenos_guest::abi::dom0_ops::args::{DomainFlags, GetDomainInfo};
use proxenos_guest::abi::{DomId, GuestVirt, Port, Virq};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, boot, check, check_eq, events, hypercall, probe, time, traps};

/// How often everything is looked at.
const ROUNDS: u32 = 60;
/// How far registers count down: for longer than a turn.
const COUNT: u32 = 400_000;
/// Words of memory that are looked after.
const WORDS: usize = 16 << 10;

static MEMORY: [AtomicU32; WORDS] = [const { AtomicU32::new(0) }; WORDS];
static SEGMENTS: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
static EVENTS: AtomicU32 = AtomicU32::new(0);
static STORM: AtomicU32 = AtomicU32::new(0);
static TICKS: AtomicU32 = AtomicU32::new(0);

fn on_event(_: Port) {
    EVENTS.store(EVENTS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn on_tick(_: Port) {
    TICKS.store(TICKS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Whether a domain has come to its end, whichever.
fn has_ended(domain: u16) -> bool {
    let mut op = Dom0Op::new(GetDomainInfo::<Arch> { domain: DomId(domain), ..GetDomainInfo::default() });
    // SAFETY: only the request is written to.
    let asked = unsafe { hypercall::dom0_op(&mut op) };
    check!(asked.is_ok(), "what domain {domain} does: {asked:?}");
    let flags = DomainFlags::from_bits_retain(op.argument::<GetDomainInfo<Arch>>().flags);
    asked.is_err() || flags.intersects(DomainFlags::SHUTDOWN | DomainFlags::CRASHED | DomainFlags::DYING)
}

/// Lets others run: by computing, by yielding, or by waiting.
fn pass_time(round: u32) {
    match round % 3 {
        0 => {
            for count in 0..COUNT / 4 {
                black_box(count);
            }
        }
        1 => {
            for _ in 0..20 {
                check_eq!(hypercall::sched_yield(), Ok(()));
            }
        }
        _ => {
            let until = time::system_time() + 300_000;
            hypercall::set_timer_op(until).expect("a time to come");
            events::wait_until(|| time::system_time() >= until);
        }
    }
}

pub fn run() {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    let (sender, receiver) = events::bind_loopback().expect("two ports");
    events::set_handler(receiver, on_event);
    events::unmask(receiver);
    state::count_debug_exceptions();
    // One that sends to this domain without end, if there is one.
    let storm = boot::option("storm").map(|domain| {
        let domain = domain.parse().map(DomId).expect("a domain's number");
        let (own, _) = events::bind_interdomain(DomId::SELF, domain).expect("domain 0 may");
        events::set_handler(own, |_| STORM.store(STORM.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
        events::unmask(own);
    });
    let seed = if boot::is_initial_domain() { 0x1234_5678 } else { 0x0bad_cafe };
    let word = |index: usize| (index as u32).wrapping_mul(seed | 1).rotate_left(7);
    MEMORY.iter().enumerate().for_each(|(index, cell)| cell.store(word(index), Ordering::Relaxed));
    SEGMENTS.iter().enumerate().for_each(|(index, cell)| cell.store(seed ^ index as u32, Ordering::Relaxed));
    let ldt = Ldt::install([SEGMENTS[0].as_ptr(), SEGMENTS[1].as_ptr()]);

    section("everything is still there");
    let begin = time::snapshot();
    let mut last = begin.system_time;
    // Those that have an end of their own, if there are any, are to come to it before this is over.
    let until_end = boot::option("until-end").map_or(0, |last| last.parse().expect("the last domain's number"));
    let mut round = 0;
    while round < ROUNDS || (2..=until_end).any(|domain| !has_ended(domain)) {
        round += 1;
        check!(state::registers_are_kept(COUNT), "round {round}: general registers");

        let floating = Floating::of(seed ^ round);
        floating.load();
        pass_time(round);
        check_eq!(Floating::store(), floating, "round {round}: the floating-point unit");

        ldt.load();
        pass_time(round + 1);
        check_eq!(ldt.read(), Some([seed, seed ^ 1]), "round {round}: segments of the LDT");

        state::watch(WATCHED.as_ptr());
        state::debug_exceptions();
        pass_time(round + 2);
        check_eq!(state::debug_exceptions(), 0, "round {round}: breakpoints of others");
        WATCHED.store(round, Ordering::SeqCst);
        check_eq!(state::debug_exceptions(), 1, "round {round}: an own breakpoint");
        check_eq!(hypercall::set_debugreg(7, 0), Ok(()));

        let events_before = EVENTS.load(Ordering::Relaxed);
        check_eq!(events::send(sender), Ok(()));
        check_eq!(EVENTS.load(Ordering::Relaxed), events_before + 1, "round {round}: an event to itself");

        let traps_before = traps::count();
        check_eq!(probe::load(GuestVirt(0x10)), None, "round {round}: nothing is mapped there");
        check_eq!(traps::count(), traps_before + 1, "round {round}: traps");

        let now = time::system_time();
        check!(now >= last, "round {round}: time goes on from {last} to {now}");
        last = now;
        let wrong =
            MEMORY.iter().enumerate().filter(|(index, cell)| cell.load(Ordering::Relaxed) != word(*index)).count();
        check_eq!(wrong, 0, "round {round}: words of memory that have changed");
    }
    let end = time::snapshot();
    let (ran, passed) = (end.domain_time - begin.domain_time, end.system_time - begin.system_time);
    check!(ran < passed / 10 * 9, "others ran too: of {passed} ns this domain had {ran}");
    check!(TICKS.load(Ordering::Relaxed) > ROUNDS, "a tick whenever it is switched to");
    check_eq!(events::unhandled_count(), 0, "events that nobody sent");
    check_eq!(storm.is_some(), STORM.load(Ordering::Relaxed) > ROUNDS, "a storm, where there was one");
    if boot::is_initial_domain() {
        ends::dismiss(&[1]);
    } else {
        ends::take_leave();
    }
}
