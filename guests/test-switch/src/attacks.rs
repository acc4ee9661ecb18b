//! Domains that use their turns against others: none of them may have more than its turns, nor take anybody else with
//! it.

use crate::ends;
use crate::relay;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::event_channel::{EvtchnOp, EvtchnSend};
use proxenos_guest::abi::hypercall::{MulticallEntry, SchedOp, VmAssistCommand, VmAssistType};
use proxenos_guest::abi::mmu::MmuExtCommand;
use proxenos_guest::abi::{DomId, GuestArch, GuestVirt, Hypercall, Port, Virq};
use proxenos_guest::memory::{self, Range, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check, check_eq, events, hypercall, shared_info, time};

/// The first port that domain 0 binds in another.
const STORM: Port = Port(1);
/// Why [`shut`] shuts down.
const REASON: Word = 7;

static CALLBACKS: AtomicU32 = AtomicU32::new(0);

/// A callback for events that never returns: all that ever runs here is it, and more events come meanwhile.
pub fn stuck() -> ! {
    proxenos_guest::init();
    let (sender, receiver) = events::bind_loopback().expect("two ports");
    events::set_handler(receiver, |_| ());
    events::unmask(receiver);
    STORM_TO.store(sender.0, Ordering::Relaxed);
    events::handle_virq(Virq::Timer, |_| never_return()).expect("the timer can be bound");
    loop {
        core::hint::spin_loop();
    }
}

/// Where [`never_return`] sends to.
static STORM_TO: AtomicU32 = AtomicU32::new(0);

fn never_return() {
    CALLBACKS.fetch_add(1, Ordering::Relaxed);
    loop {
        // It is pending for ever: upcalls are masked here.
        let _ = events::send(Port(STORM_TO.load(Ordering::Relaxed)));
        let _ = hypercall::set_timer_op(time::system_time());
    }
}

/// Sends to domain 0 without end, as soon as that has bound a port.
pub fn storm() -> ! {
    proxenos_guest::init();
    loop {
        let _ = events::send(STORM);
    }
}

/// A callback at an address where nothing is mapped, and no handler for the fault that comes of it.
pub fn callback_unmapped() {
    shared_info::map().expect("the shared page can be mapped");
    while !shared_info::is_pending(ends::LEAVE) {
        core::hint::spin_loop();
    }
    let nowhere = (Arch::FLAT_GUESTOS_CS, GuestVirt(0x10));
    // SAFETY: it leads nowhere: the domain is at its end.
    let _ = unsafe { hypercall::set_callbacks(nowhere, nowhere) };
    shared_info::upcall_mask().store(0, Ordering::SeqCst);
    shared_info::upcall_pending().store(1, Ordering::SeqCst);
    let _ = hypercall::sched_yield();
}

/// Shuts down in the midst of a multicall: what follows in the list is not done.
pub fn shut() {
    proxenos_guest::init();
    let mut sent = false;
    while !sent {
        sent = events::send(STORM).is_ok();
    }
    ends::take_leave();
    let request = EvtchnOp::new(EvtchnSend { local_port: STORM });
    let call = |number: Hypercall, [first, second]: [Word; 2]| MulticallEntry::<Arch> {
        op: number.raw() as Word,
        args: [first, second, 0, 0, 0, 0, 0],
    };
    let send = || call(Hypercall::EventChannelOp, [&raw const request as usize as Word, 0]);
    let shutdown = SchedOp::Shutdown.raw() as Word | REASON << 8;
    let mut list = [send(), call(Hypercall::SchedOp, [shutdown, 0]), send(), send()];
    // SAFETY: calls that change no memory but the list's.
    let _ = unsafe { hypercall::multicall(&mut list) };
}

/// A page table is found bad by a call in the midst of a multicall: what follows in the list is not done.
pub fn bad_list() {
    proxenos_guest::init();
    check_eq!(hypercall::vm_assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), Ok(()));
    let range = Range::new(1);
    let page = memory::alloc_frame().expect("a frame");
    while events::send(STORM).is_err() {}
    ends::take_leave();
    let request = EvtchnOp::new(EvtchnSend { local_port: STORM });
    let flush = memory::extended(MmuExtCommand::TlbFlush, 0, 0);
    let call = |number: Hypercall, [first, second]: [Word; 2]| MulticallEntry::<Arch> {
        op: number.raw() as Word,
        args: [first, second, 0, 0, 0, 0, 0],
    };
    let send = || call(Hypercall::EventChannelOp, [&raw const request as usize as Word, 0]);
    let closes = call(Hypercall::MmuUpdate, [&raw const flush as usize as Word, 1]);
    let mut list = [send(), closes, send(), send()];
    // Enough to have it opened, and a writable mapping of the top-level table.
    for index in 0..12 {
        range.write(index, Pte::new(page.mfn(), PteFlags::KERNEL_RW));
    }
    range.write(12, Pte::new(tables::root(), PteFlags::KERNEL_RW));
    // SAFETY: calls that change no memory but the list's.
    let _ = unsafe { hypercall::multicall(&mut list) };
}

/// Domain 0, beside [`shut`], [`callback_unmapped`] and [`bad_list`].
pub fn run() {
    proxenos_guest::init();
    section("a shutdown within a list");
    let port = relay::counted(DomId(1), STORM);
    events::wait_until(|| relay::received() == 1);
    ends::dismiss(&[1]);
    check_eq!(relay::received(), 2, "what stood before the shutdown was sent, and nothing behind it");
    check!(events::send(port).is_ok(), "its channel stays");
    section("a callback where nothing is");
    ends::dismiss_next(2, 1);
    section("a page table found bad within a list");
    let before = relay::received();
    relay::counted(DomId(3), STORM);
    events::wait_until(|| relay::received() == before + 1);
    ends::dismiss_next(3, 2);
    check_eq!(relay::received() - before, 2, "what stood before it was sent, and nothing behind it");
}
