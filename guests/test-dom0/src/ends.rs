//! How domains end, and what they cost: suspended, connected to the one that ends them, in the midst of a list of
//! calls, slowly.

use crate::builder::{Context, PAGES, Subject, build_larger};
use crate::program::Program;
use crate::request::*;
use crate::{eventually, started};
#[cfg(target_arch = "x86")]
use core::arch::x86::_rdtsc;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use proxenos_guest::abi::dom0_ops::Dom0Op;
use proxenos_guest::abi::dom0_ops::Dom0Version;
use proxenos_guest::abi::dom0_ops::args::*;
use proxenos_guest::abi::event_channel::Channel;
use proxenos_guest::abi::hypercall::MulticallEntry;
use proxenos_guest::abi::{DomId, Errno, Hypercall, Port, Virq};
use proxenos_guest::arch::{Arch, Word};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, events, hypercall, time};

/// The reason of a domain that is to be saved (`SHUTDOWN_suspend`).
const SUSPEND: u8 = 2;
/// Domains whose cost is looked at.
const IDLE: usize = 16;
/// Frames that the hypervisor may spend on an idle domain, and those of a two-level one's shadows.
const LIMIT: u64 = 8;
const SHADOWS: u64 = 10;
/// KiB of a domain that takes long.
const LARGE: u64 = 24 << 10;
/// Time between two events, in nanoseconds.
const EVERY_NS: u64 = 200_000;
/// Instructions from a creation to the first instruction of who was created.
const MOST_INSTRUCTIONS: u64 = 5_000_000;

/// A domain that asks to be saved stands still behind its call; nobody takes that for a crash, and it goes on for no
/// one.
pub fn suspends(subject: Subject, window: Window, context: Context) {
    section("a domain that is suspended");
    let built = started(subject, Program::ShutDown(SUSPEND), window, context);
    check!(eventually(|| flags(built.id).contains(DomainFlags::SHUTDOWN)));
    check!(eventually(|| !flags(built.id).contains(DomainFlags::RUNNING)));
    let seen = flags(built.id);
    check_eq!(seen.shutdown_reason(), SUSPEND);
    check!(!seen.intersects(DomainFlags::CRASHED | DomainFlags::DYING));
    // All that is needed to build it anew is there: where it stands, its tables, its frames, its page.
    let told = context.of(built.id, subject, Dom0Version::V19).expect("it is there");
    check_eq!((told.ip, told.base), (subject.entry() + 12, built.frames[0].addr().raw()));
    let mut list = [0 as Word; PAGES];
    check_eq!(frames(built.id, &mut list), Ok(PAGES));
    check_eq!(unpause(built.id), Ok(()));
    check!(flags(built.id).contains(DomainFlags::SHUTDOWN), "that changes nothing");
    check_eq!(context.of(built.id, subject, Dom0Version::V19), Ok(told));
    check_eq!(destroy(built.id), Ok(()));
}

/// Channels to it are nobody's from then on, and what is sent through them is refused.
pub fn connected(subject: Subject, window: Window, context: Context) {
    section("a domain with channels");
    let built = started(subject, Program::Count, window, context);
    let ports = [(); 3].map(|()| events::bind_interdomain(DomId::SELF, built.id).expect("domain 0 may").0);
    for port in ports {
        check_eq!(events::send(port), Ok(()));
        check!(matches!(events::status(port), Ok(Channel::Interdomain(..))));
    }
    check_eq!(destroy(built.id), Ok(()));
    check_eq!(info(built.id).map(drop), Err(Errno::ESRCH), "no channel keeps it");
    for port in ports {
        check!(matches!(events::status(port), Ok(Channel::Unbound(_))), "{:?}", events::status(port));
        check_eq!(events::send(port), Err(Errno::EINVAL));
        check_eq!(events::close(port), Ok(()));
    }
    check_eq!(hypercall::audit(), Ok(()));
}

/// A list of calls that ends a domain: those behind it are carried out, and see that it is gone.
pub fn in_a_multicall(subject: Subject, window: Window, context: Context) {
    section("a domain that is ended by a list of calls");
    let built = started(subject, Program::Count, window, context);
    check!(eventually(|| !flags(built.id).contains(DomainFlags::PAUSED)));
    let mut end = Dom0Op::new(DestroyDomain { domain: built.id, pad: 0 });
    let mut look = Dom0Op::new(GetDomainInfo::<Arch> { domain: built.id, ..GetDomainInfo::default() });
    let call = |number: Hypercall, argument: usize| {
        let mut args = [0 as Word; 7];
        args[0] = argument as Word;
        MulticallEntry::<Arch> { op: number.raw() as Word, args }
    };
    let at = |op: &mut Dom0Op| core::ptr::from_mut(op) as usize;
    let (end, look) = (at(&mut end), at(&mut look));
    let mut calls = [
        call(Hypercall::Dom0Op, look),
        call(Hypercall::Dom0Op, end),
        call(Hypercall::XenVersion, 0),
        call(Hypercall::Dom0Op, look),
        call(Hypercall::Dom0Op, end),
    ];
    // SAFETY: the requests live until the call is over, and say nothing of our memory.
    check_eq!(unsafe { hypercall::multicall(&mut calls) }, Ok(()));
    let result = |call: &MulticallEntry<Arch>| hypercall::check({ call.args }[5] as usize);
    let results = calls.each_ref().map(result);
    let gone = Err(Errno::ESRCH);
    check_eq!(results, [Ok(0), Ok(0), Ok(0x2_0000), gone, gone], "it ends, the list goes on, it is gone");
    check_eq!(info(built.id).map(drop), Err(Errno::ESRCH));
    check_eq!(hypercall::audit(), Ok(()));
}

fn free_pages() -> u64 {
    { ask(PhysInfo::<Arch>::default()).expect("domain 0 may").free_pages }.to_u64()
}

/// What the hypervisor spends on domains that wait, apart from their own memory.
pub fn idle(subject: Subject, window: Window, context: Context) {
    section("domains that wait");
    let waits = |id: DomId| flags(id).contains(DomainFlags::BLOCKED);
    let mut ids = [DomId(0); IDLE];
    // What its heap takes once it keeps: the second time counts.
    for round in 0..2 {
        let before = free_pages();
        for id in &mut ids {
            *id = started(subject, Program::Block, window, context).id;
            check!(eventually(|| waits(*id)));
        }
        let each = (before - free_pages()).div_ceil(IDLE as u64) - PAGES as u64;
        let limit = LIMIT + if subject == Subject::Narrow { SHADOWS } else { 0 };
        check!(round == 0 || each <= limit, "{each} frames a domain, and its own");
        for id in ids {
            check_eq!(destroy(id), Ok(()));
        }
    }
}

static MEANWHILE: AtomicU32 = AtomicU32::new(0);
static COUNTS: AtomicBool = AtomicBool::new(false);

/// Fires again soon.
fn on_timer(_: Port) {
    if COUNTS.load(Ordering::Relaxed) {
        MEANWHILE.fetch_add(1, Ordering::Relaxed);
        let _ = time::set_timer_in(EVERY_NS);
    }
}

/// How many timer events came while something was done.
fn events_meanwhile<R>(work: impl FnOnce() -> R) -> (R, u32) {
    MEANWHILE.store(0, Ordering::SeqCst);
    COUNTS.store(true, Ordering::SeqCst);
    check_eq!(time::set_timer_in(EVERY_NS), Ok(()));
    let result = work();
    let events = MEANWHILE.load(Ordering::SeqCst);
    COUNTS.store(false, Ordering::SeqCst);
    check_eq!(time::cancel_timer(), Ok(()));
    (result, events)
}

/// To create and to end a large domain takes long, and events are delivered meanwhile.
pub fn slowly(subject: Subject) {
    section("a large domain");
    // Bound once, for good.
    static BOUND: AtomicBool = AtomicBool::new(false);
    if !BOUND.swap(true, Ordering::SeqCst) {
        check!(events::handle_virq(Virq::Timer, on_timer).is_ok());
    }
    // One may come before the call is made, and one when it is over. Were they held back meanwhile, that would be all.
    let (made, events) = events_meanwhile(|| create(subject, LARGE));
    check!(events > 2, "{events} events while it was created");
    let id = made.expect("there is memory");
    let (ended, events) = events_meanwhile(|| destroy(id));
    check_eq!(ended, Ok(()));
    check!(events > 2, "{events} events while it ended");
    check_eq!(info(id).map(drop), Err(Errno::ESRCH));
    check_eq!(hypercall::audit(), Ok(()));
}

/// From its creation to its first instruction, where the TSC counts instructions.
pub fn cost(window: Window, context: Context) {
    for subject in crate::BOTH {
        section("what a domain of 4 MiB costs until it runs");
        // SAFETY: every CPU has a TSC.
        let start = unsafe { _rdtsc() };
        let built = build_larger(subject, Program::Stamp, window, context).expect("it can be built");
        check_eq!(unpause(built.id), Ok(()));
        check_eq!(window.show(built.id, built.counter()), Ok(()));
        check!(eventually(|| window.number(0) >> 32 != 0 || window.number(0) != 0));
        let spent = window.number(0).wrapping_sub(start);
        proxenos_guest::println!("{subject:?}: {spent} instructions from its creation to its first");
        check!(spent < MOST_INSTRUCTIONS, "{spent} instructions");
        window.close();
        check_eq!(destroy(built.id), Ok(()));
    }
}
