//! Another domain's turn and back, and an event there and back.

use crate::hypercall::{self, send};
use crate::measure::Bench;
use crate::memory;
use crate::partner::{BEFORE_NOTE, Kind, Partner, Window};
use crate::platform::read_tsc;
use crate::traps::{self, address};
use crate::{abi::shared_info, events};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Rounds, of which the least counts.
const ROUNDS: usize = 8;

static ANSWERS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn counting_upcall();
}

global_asm!(
    r#"
    .text
    .globl counting_upcall
    counting_upcall:
        inc     qword ptr [{answers}]
        mov     qword ptr [{shared} + {pending}], 0
        mov     qword ptr [{shared} + {selector}], 0
        mov     byte ptr [{shared} + {due}], 0
        mov     byte ptr [{shared} + {mask}], 0
        pop     rcx
        pop     r11
        or      byte ptr [rsp + 8], 3
        iretq
    "#,
    answers = sym ANSWERS,
    shared = sym memory::SHARED,
    pending = const shared_info::PENDING,
    selector = const shared_info::PENDING_SEL,
    due = const shared_info::UPCALL_PENDING,
    mask = const shared_info::UPCALL_MASK,
);

pub fn run(bench: &Bench, window: Window) {
    // SAFETY: both are entry points made for it; there are no applications any more.
    assert!(unsafe { hypercall::set_callbacks(address(counting_upcall), traps::failsafe(), 0) }, "callbacks of ours");
    if bench.measures("event-other-and-back") {
        let (other, port) = connected(Kind::Answering, window);
        bench.measure("event-other-and-back", |_| port, exchange);
        end(other);
    }
    if bench.measures("block-and-wake") {
        let (other, port) = connected(Kind::NotingEvents, window);
        other.show_notes(window);
        let latency = |_| {
            let before = read_tsc();
            assert!(exchange(port), "it answers");
            window.number() - before
        };
        let least = (0..ROUNDS).map(latency).min().unwrap_or(0);
        bench.report("block-and-wake", least - BEFORE_NOTE);
        window.close();
        end(other);
    }
    if bench.measures("yield-other-and-back") {
        yields(bench, window);
    }
}

/// One that runs and waits, and the channel to it.
fn connected(kind: Kind, window: Window) -> (Partner, u32) {
    let other = Partner::build(kind, window).expect("there is memory for it");
    let port = other.connect(window).expect("it has ports");
    events::reset();
    memory::masked().store(!(1 << port), Ordering::SeqCst);
    assert!(other.start() && exchange(port), "it answers");
    (other, port)
}

fn end(other: Partner) {
    memory::upcall_mask().store(1, Ordering::SeqCst);
    assert!(other.destroy(), "it can be destroyed");
}

/// An event there, and its answer, for which we wait.
fn exchange(port: u32) -> bool {
    let before = ANSWERS.load(Ordering::Relaxed);
    let sent = send(port);
    loop {
        // Masked between the look and the call, lest the event slip in between; blocking unmasks.
        memory::upcall_mask().store(1, Ordering::SeqCst);
        if ANSWERS.load(Ordering::Relaxed) != before {
            memory::upcall_mask().store(0, Ordering::SeqCst);
            return sent;
        }
        hypercall::block();
    }
}

/// The least of those yields after which the other had had one turn.
fn yields(bench: &Bench, window: Window) {
    let other = Partner::build(Kind::Yielding, window).expect("there is memory for it");
    other.show_notes(window);
    assert!(other.start(), "it can run");
    while window.number() < 2 {
        hypercall::sched_yield();
    }
    let once = |_| {
        let turns = window.number();
        let before = read_tsc();
        hypercall::sched_yield();
        let taken = read_tsc() - before;
        (window.number() == turns + 1).then_some(taken)
    };
    let least = (0..ROUNDS).filter_map(once).min().expect("it gets turns");
    bench.report("yield-other-and-back", bench.without_overhead(least));
    window.close();
    assert!(other.destroy(), "it can be destroyed");
}
