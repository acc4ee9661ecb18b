//! Turns that end in the midst of a multicall: whatever its calls do to their caller, all of them are carried out, in
//! order.

use crate::relay;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::event_channel::EvtchnOp;
use proxenos_guest::abi::event_channel::EvtchnSend;
use proxenos_guest::abi::hypercall::{MulticallEntry, SchedOp};
use proxenos_guest::abi::{DomId, Hypercall, Port, Virq};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check, check_eq, events, hypercall, time};

/// Calls of the list: the long one lasts for many turns.
const CALLS: usize = 20_000;

static TICKS: AtomicU32 = AtomicU32::new(0);

struct List([MulticallEntry<Arch>; CALLS]);

/// Only `main` uses it.
struct OnlyMain(core::cell::UnsafeCell<List>);
// SAFETY: there is one thread, and handlers do not touch it.
unsafe impl Sync for OnlyMain {}
static LIST: OnlyMain =
    OnlyMain(core::cell::UnsafeCell::new(List([MulticallEntry { op: UNSET, args: [0; 7] }; CALLS])));

/// No result is this.
const UNSET: Word = 0x5a5a_5a5a;

/// Makes a list of calls, all of which return `result`.
fn make(what: &str, calls: usize, result: Word, mut call: impl FnMut(usize) -> (Hypercall, [Word; 2])) {
    // SAFETY: the one reference.
    let list: &mut List = unsafe { &mut *LIST.0.get() };
    let list = &mut list.0[..calls];
    for (index, entry) in list.iter_mut().enumerate() {
        let (number, [first, second]) = call(index);
        *entry = MulticallEntry { op: number.raw() as Word, args: [first, second, 0, 0, 0, UNSET, 0] };
    }
    // SAFETY: calls that change no memory but the list's.
    let made = unsafe { hypercall::multicall(list) };
    check_eq!(made, Ok(()), "{what}");
    let wrong = list.iter().position(|entry| { entry.args[5] } != result);
    check_eq!(wrong, None, "{what}: the first call with another result");
}

pub fn run() {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, |_| TICKS.store(TICKS.load(Ordering::Relaxed) + 1, Ordering::Relaxed))
        .expect("the timer can be bound");
    let port = relay::counted(DomId(1), Port(1));
    let ticks = || TICKS.load(Ordering::Relaxed);

    section("a turn ends within a list");
    let (before, began) = (ticks(), time::snapshot());
    make("questions", CALLS, 0x0002_0000, |_| (Hypercall::XenVersion, [0, 0]));
    let _ = hypercall::sched_yield();
    check!(ticks() > before, "ticks: {before}, then {}", ticks());
    check!(time::system_time() > began.system_time);

    section("yields within a list");
    make("yields", 300, 0, |_| (Hypercall::SchedOp, [SchedOp::Yield.raw() as Word, 0]));

    section("a list that waits");
    // What follows a call that waits is done first; and then it waits.
    for at in [0, 1, 150, 298, 299] {
        let until = time::system_time() + 2_000_000;
        check_eq!(hypercall::set_timer_op(until), Ok(()));
        let before = ticks();
        let block = |index: usize| if index == at { SchedOp::Block } else { SchedOp::Yield };
        make("a wait", 300, 0, |index| (Hypercall::SchedOp, [block(index).raw() as Word, 0]));
        events::wait_until(|| time::system_time() >= until);
        check!(ticks() > before, "it has been woken");
    }

    section("a list that wakes others");
    let send = EvtchnOp::new(EvtchnSend { local_port: port });
    let others = |index: usize| match index % 3 {
        0 => (Hypercall::EventChannelOp, [&raw const send as usize as Word, 0]),
        1 => (Hypercall::SchedOp, [SchedOp::Yield.raw() as Word, 0]),
        _ => (Hypercall::SchedOp, [SchedOp::Block.raw() as Word, 0]),
    };
    for _ in 0..100 {
        check_eq!(time::set_timer_in(1_000_000), Ok(()));
        make("sends, yields and waits", 12, 0, others);
    }
    relay::exchange(port, 1);
}
