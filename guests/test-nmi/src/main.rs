//! Non-maskable interrupts, which come all the time (`nmi` in this guest's manifest), whatever the guest is at: asleep,
//! computing, in the midst of calls and of exceptions. None may harm anything. What the PC's port 61h says of their
//! causes domain 0 is told by two virtual interrupts; `parity=` and `io=` on the command line say which to expect.
#![no_std]
#![no_main]

#[cfg(target_arch = "x86_64")]
mod applications;

use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::{GuestVirt, Port, Virq};
use proxenos_guest::memory::tables;
use proxenos_guest::pte::PteFlags;
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{StartInfo, boot, check, check_eq, events, hypercall, memory, probe, time};

proxenos_guest::test_guest!(main);

/// How long each section lasts, in nanoseconds.
const SECTION: u64 = 800_000_000;
/// The vector of system calls.
const SYSTEM_CALL: u8 = 0x80;
/// How often domain 0 is told of a cause at least: at each tick at the latest.
const TOLD: u32 = 20;

static PARITY: AtomicU32 = AtomicU32::new(0);
static IO: AtomicU32 = AtomicU32::new(0);
static EVENTS: AtomicU32 = AtomicU32::new(0);
static RAISED: AtomicU32 = AtomicU32::new(0);

fn add(to: &AtomicU32) {
    to.store(to.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, |_| ()).expect("the timer can be bound");
    events::handle_virq(Virq::ParityErr, |_| add(&PARITY)).expect("domain 0 may");
    events::handle_virq(Virq::IoErr, |_| add(&IO)).expect("domain 0 may");
    asleep();
    computing();
    calls();
    exceptions();
    #[cfg(target_arch = "x86_64")]
    applications::run();
    section("what was told of their causes");
    for (count, name) in [(&PARITY, "parity"), (&IO, "io")] {
        let count = count.load(Ordering::Relaxed);
        match boot::option(name) {
            Some(_) => check!(count >= TOLD, "{name}: told {count} times"),
            None => check_eq!(count, 0, "{name}"),
        };
    }
    check_eq!(events::unhandled_count(), 0, "events that nobody sent");
}

/// Whether a section goes on.
fn lasts(name: &'static str) -> impl Fn() -> bool {
    section(name);
    let until = time::system_time() + SECTION;
    move || time::system_time() < until
}

/// An NMI wakes nobody who has nothing to do, and a wait ends when it should.
fn asleep() {
    let goes_on = lasts("asleep");
    while goes_on() {
        let until = time::system_time() + 3_000_000;
        check_eq!(hypercall::set_timer_op(until), Ok(()));
        events::wait_until(|| time::system_time() >= until);
    }
}

fn computing() {
    let goes_on = lasts("computing");
    while goes_on() {
        let mut sums = [0_u64, 0x1111, 0x2222_2222, 0x3333_3333_3333];
        let before = sums;
        for step in 0..1000 {
            sums = black_box(sums.map(|sum| sum.wrapping_add(step)));
        }
        check_eq!(sums, before.map(|sum| sum + 499_500));
    }
}

fn calls() {
    let (sender, receiver) = events::bind_loopback().expect("two ports");
    events::set_handler(receiver, |_: Port| add(&EVENTS));
    events::unmask(receiver);
    let [page, table] = [0; 2].map(|_| memory::alloc_frame().expect("a frame"));
    // SAFETY: a frame that nothing refers to.
    unsafe { memory::remap(table, PteFlags::KERNEL_RO) }.expect("one's own frame may be read");
    let goes_on = lasts("in the midst of calls");
    let mut sent = 0;
    while goes_on() {
        check!(hypercall::xen_version().is_ok());
        check_eq!(events::send(sender), Ok(()));
        sent += 1;
        check_eq!(EVENTS.load(Ordering::Relaxed), sent, "events to itself");
        check_eq!(memory::pin(1, table.mfn()), Ok(()));
        check_eq!(memory::unpin(table.mfn()), Ok(()));
        for flags in [PteFlags::KERNEL_RO, PteFlags::KERNEL_RW] {
            // SAFETY: as above.
            check_eq!(unsafe { memory::remap(page, flags) }, Ok(()));
            check_eq!(probe::is_readable(page.virt()), true);
        }
        check_eq!(hypercall::sched_yield(), Ok(()));
        check_eq!(memory::flush_tlb(), Ok(()));
        let (at, entry) = tables::entry_of(page.virt()).expect("it is mapped");
        // SAFETY: the same entry that is there.
        check_eq!(unsafe { memory::write_entry(at, entry) }, Ok(()));
    }
}

fn exceptions() {
    for vector in [vector::BREAKPOINT, SYSTEM_CALL] {
        traps::set_handler(vector, |_| {
            add(&RAISED);
            Outcome::Handled
        });
    }
    check_eq!(traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(3)), Ok(()));
    let goes_on = lasts("in the midst of exceptions");
    let mut raised = 0;
    while goes_on() {
        let before = traps::count();
        check_eq!(probe::load(GuestVirt(0x10)), None, "nothing is mapped there");
        // SAFETY: it traps.
        check!(!unsafe { proxenos_guest::attempt!("hlt") });
        // SAFETY: both have handlers.
        unsafe { core::arch::asm!("int3", "int 0x80") };
        raised += 2;
        check_eq!(traps::count(), before + 4, "exceptions");
        check_eq!(RAISED.load(Ordering::Relaxed), raised);
    }
}
