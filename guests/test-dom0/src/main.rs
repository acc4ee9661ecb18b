//! The life of domains, as domain 0 sees it: it builds small ones of both architectures by hand, lets them run, stops
//! them, looks at them, and takes them down, whatever they do.
#![no_std]
#![no_main]

mod builder;
mod ends;
mod program;
mod request;

use builder::{BOTH, Built, Context, Subject, build};
use core::sync::atomic::{AtomicU32, Ordering};
use program::Program;
use proxenos_guest::abi::dom0_ops::Dom0Version;
use proxenos_guest::abi::dom0_ops::args::*;
use proxenos_guest::abi::{DomId, Errno, Port, Virq};
use proxenos_guest::arch::Arch;
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, boot, check, check_eq, events, hypercall};
use request::*;

proxenos_guest::test_guest!(main);

/// Numbers that are in use, one after the other, and more.
const NUMBERS: u32 = 110;
/// Domains that are made and ended to see what is left.
const MANY: u32 = 200;

static TOLD: AtomicU32 = AtomicU32::new(0);

fn on_end(_: Port) {
    TOLD.fetch_add(1, Ordering::SeqCst);
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    check!(events::handle_virq(Virq::DomExc, on_end).is_ok());
    let (window, context) = (window(), Context::new());
    // What of the hypervisor's tables a number needs when it is given for the first time stays.
    for _ in 0..NUMBERS {
        check_eq!(create(Subject::Narrow, 0).and_then(destroy), Ok(()));
    }
    if boot::option("only") == Some("cost") {
        return ends::cost(window, context);
    }
    let free = most();
    for subject in BOTH {
        for version in [Dom0Version::V19, Dom0Version::V1A] {
            runs(subject, version, window, context);
        }
        ends(subject, window, context);
        for program in [Program::Crash, Program::CrashTwice, Program::BadTable] {
            crashes(subject, program, window, context);
        }
        waits(subject, window, context);
        mapped(subject, window, context);
        ends::suspends(subject, window, context);
        ends::connected(subject, window, context);
        ends::in_a_multicall(subject, window, context);
        ends::idle(subject, window, context);
        ends::slowly(subject);
    }
    refused();
    section("two hundred domains");
    many(window, context, MANY);
    check_eq!(most(), free, "frames that can be had");
    check_eq!(hypercall::audit(), Ok(()));
}

/// Something happens soon, while others run.
fn eventually(mut what: impl FnMut() -> bool) -> bool {
    const ATTEMPTS: u32 = 2_000_000;
    (0..ATTEMPTS).any(|_| {
        let _ = hypercall::sched_yield();
        what()
    })
}

/// The most KiB that a domain can be created with, to the page.
fn most() -> u64 {
    section("how much there is");
    let (mut can, mut cannot) = (0, 256 << 10);
    while cannot - can > 4 {
        let kib = (can + cannot) / 8 * 4;
        match create(Subject::Narrow, kib) {
            Ok(id) => {
                check_eq!(destroy(id), Ok(()));
                can = kib;
            }
            Err(errno) => {
                check_eq!(errno, Errno::ENOMEM);
                cannot = kib;
            }
        }
    }
    can
}

fn runs(subject: Subject, version: Dom0Version, window: Window, context: Context) {
    section("a domain that runs");
    let built = build(subject, Program::Count, version, window, context).expect("it can be built");
    let id = built.id;
    let before = context.of(id, subject, version).expect("it is there");
    check_eq!((before.ip, before.base), (subject.entry(), built.frames[0].addr().raw()));
    check_eq!(before.flags, if subject.is_ours() { 0 } else { 2 });
    if subject == Subject::Narrow {
        check_eq!((before.cs, before.ds), (0x819, 0x821));
    }
    check_eq!(flags(id) & (DomainFlags::PAUSED | DomainFlags::RUNNING), DomainFlags::PAUSED);
    check_eq!(window.show(id, built.counter()), Ok(()));
    check_eq!(window.word(0), 0);
    check_eq!(unpause(id), Ok(()));
    check!(eventually(|| window.word(0) > 1000), "it runs");
    check!(!flags(id).contains(DomainFlags::PAUSED));
    // It is looked at while it runs, and goes on.
    let looked = context.of(id, subject, version).expect("it is there");
    check!((subject.entry()..subject.entry() + 8).contains(&looked.ip), "{:#x}", looked.ip);
    let seen = window.word(0);
    check!(eventually(|| window.word(0) != seen), "it goes on");
    for _ in 0..20 {
        check_eq!(pause(id), Ok(()));
        let seen = window.word(0);
        check!((0..1000).all(|_| window.word(0) == seen), "it is stopped when the call returns");
        check!(!flags(id).contains(DomainFlags::RUNNING));
        check_eq!(unpause(id), Ok(()));
        check!(eventually(|| window.word(0) != seen), "it goes on");
    }
    let told = info(id).expect("it is there");
    check!({ told.cpu_time } > 0);
    check_eq!({ told.tot_pages }.to_u64(), builder::PAGES as u64);
    window.close();
    // Straight from its midst.
    check_eq!(destroy(id), Ok(()));
    check_eq!(info(id).map(drop), Err(Errno::ESRCH));
    check_eq!(hypercall::audit(), Ok(()));
}

/// Builds a domain and lets it run.
fn started(subject: Subject, program: Program, window: Window, context: Context) -> Built {
    let built = build(subject, program, Dom0Version::V19, window, context).expect("it can be built");
    check_eq!(unpause(built.id), Ok(()));
    built
}

fn ends(subject: Subject, window: Window, context: Context) {
    section("a domain that shuts down");
    let told = TOLD.load(Ordering::SeqCst);
    let built = started(subject, Program::ShutDown(0x5a), window, context);
    check!(eventually(|| TOLD.load(Ordering::SeqCst) != told), "domain 0 is told");
    let flags = flags(built.id);
    check!(flags.contains(DomainFlags::SHUTDOWN) && !flags.contains(DomainFlags::CRASHED));
    check_eq!(flags.shutdown_reason(), 0x5a);
    check_eq!(destroy(built.id), Ok(()));
}

fn crashes(subject: Subject, program: Program, window: Window, context: Context) {
    proxenos_guest::println!("-- a domain that crashes: {program:?}");
    let told = TOLD.load(Ordering::SeqCst);
    let built = started(subject, program, window, context);
    // A table that is open is looked at when its domain's turn ends.
    let stopped = || {
        if program == Program::BadTable {
            check_eq!((pause(built.id), unpause(built.id)), (Ok(()), Ok(())));
        }
        TOLD.load(Ordering::SeqCst) != told
    };
    check!(eventually(stopped), "domain 0 is told");
    check!(eventually(|| !flags(built.id).contains(DomainFlags::RUNNING)));
    let seen = flags(built.id);
    check!(seen.contains(DomainFlags::CRASHED) && !seen.contains(DomainFlags::SHUTDOWN));
    check_eq!(seen.shutdown_reason(), 0, "it gave none");
    // It is as it was, whatever is done about it.
    check_eq!((pause(built.id), unpause(built.id)), (Ok(()), Ok(())));
    let context = context.of(built.id, subject, Dom0Version::V19).expect("it is there");
    let stands = subject.entry() + program.crashes_at(subject);
    check_eq!((context.ip, context.base), (stands, built.frames[0].addr().raw()));
    let (bx, sp) = program.leaves(subject);
    check_eq!((context.bx, context.sp), (bx.unwrap_or(context.bx), sp.unwrap_or(context.sp)));
    check_eq!(destroy(built.id), Ok(()));
}

fn waits(subject: Subject, window: Window, context: Context) {
    section("a domain that waits");
    let built = started(subject, Program::Block, window, context);
    let idle = |id: DomId| flags(id) & (DomainFlags::BLOCKED | DomainFlags::RUNNING) == DomainFlags::BLOCKED;
    check!(eventually(|| idle(built.id)));
    check_eq!(pause(built.id), Ok(()));
    check!(flags(built.id).contains(DomainFlags::BLOCKED | DomainFlags::PAUSED));
    check_eq!(unpause(built.id), Ok(()));
    check!(eventually(|| idle(built.id)));
    check_eq!(destroy(built.id), Ok(()));
}

/// What is mapped of a domain stays until it is unmapped, and so does the domain.
fn mapped(subject: Subject, window: Window, context: Context) {
    section("a domain that ends while a frame of it is mapped");
    let built = started(subject, Program::Count, window, context);
    check_eq!(window.show(built.id, built.counter()), Ok(()));
    check!(eventually(|| window.word(0) > 0));
    check_eq!(destroy(built.id), Ok(()));
    let seen = window.word(0);
    check!((0..1000).all(|_| window.word(0) == seen));
    let told = info(built.id).expect("it is there");
    check_eq!(({ told.tot_pages }.get(), told.domain), (1, built.id));
    check!(flags(built.id).contains(DomainFlags::DYING));
    check_eq!(hypercall::audit(), Ok(()));
    window.close();
    check_eq!(info(built.id).map(drop), Err(Errno::ESRCH));
}

fn refused() {
    section("what is refused");
    check_eq!(destroy(DomId(0)), Err(Errno::EINVAL));
    check_eq!(pause(DomId(0)), Err(Errno::EINVAL));
    for id in [DomId(77), DomId::SELF, DomId::IO, DomId::XEN] {
        check_eq!(destroy(id), Err(Errno::ESRCH));
        check_eq!(pause(id), Err(Errno::ESRCH));
        check_eq!(unpause(id), Err(Errno::ESRCH));
        check_eq!(info(id).map(drop), Err(Errno::ESRCH));
    }
    let id = create(Subject::Wide, 16).expect("a domain");
    check_eq!(unpause(id), Err(Errno::EINVAL), "it is not built");
    let taken = CreateDomain::<Arch> { cpu: u32::MAX, domain: id, ..CreateDomain::default() };
    check_eq!(ask(taken).map(drop), Err(Errno::EINVAL));
    check_eq!(destroy(id), Ok(()));
    let nowhere = CreateDomain::<Arch> { cpu: 99, ..CreateDomain::default() };
    check_eq!(ask(nowhere).map(drop), Err(Errno::EINVAL));
    check_eq!(create(Subject::Narrow, 4 << 20), Err(Errno::ENOMEM));
}

/// Domains come and go, some of them in the midst of their work.
fn many(window: Window, context: Context, count: u32) {
    let programs = [Program::Count, Program::Block, Program::ShutDown(1), Program::Crash];
    for index in 0..count {
        let subject = BOTH[index as usize % 2];
        let built = started(subject, programs[index as usize / 2 % 4], window, context);
        for _ in 0..index % 5 {
            let _ = hypercall::sched_yield();
        }
        check_eq!(destroy(built.id), Ok(()));
    }
}
