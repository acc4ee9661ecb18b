//! What sending does to the bits in the shared page, and when an upcall comes.
//!
//! A send goes 0→1 in a chain: the port's pending bit; then, if the port is not masked, its word's bit in the selector;
//! then the pending flag. A link that is 1 already ends the chain. The upcall comes when the hypervisor is left with
//! the flag set and upcalls not masked.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::event_channel::EvtchnAllocUnbound;
use proxenos_guest::abi::{DomId, GuestArch, GuestVirt, Port};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{Arch, TrapFrame, arch, attempt, check, check_eq, events, hypercall, probe, shared_info};

static HANDLED: AtomicU32 = AtomicU32::new(0);
static MASK_IN_HANDLER: AtomicU32 = AtomicU32::new(0);
static PENDING_IN_HANDLER: AtomicU32 = AtomicU32::new(0);

fn on_event(port: Port) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    MASK_IN_HANDLER.store(shared_info::upcall_mask().load(Ordering::Relaxed).into(), Ordering::Relaxed);
    PENDING_IN_HANDLER.store(shared_info::is_pending(port).into(), Ordering::Relaxed);
}

fn handled() -> u32 {
    HANDLED.load(Ordering::Relaxed)
}

/// Pending bit, selector bit and pending flag of a port.
fn chain(port: Port) -> (bool, bool, bool) {
    let (word, _) = shared_info::bit_of(port);
    (
        shared_info::is_pending(port),
        shared_info::pending_selector().load(Ordering::SeqCst) & 1 << word != 0,
        shared_info::upcall_pending().load(Ordering::SeqCst) != 0,
    )
}

/// Clears the chain. Upcalls must be masked.
fn reset(port: Port) {
    let (word, _) = shared_info::bit_of(port);
    events::clear(port);
    shared_info::pending_selector().fetch_and(!(1 << word), Ordering::SeqCst);
    shared_info::upcall_pending().store(0, Ordering::SeqCst);
}

pub fn run() {
    deliver_between(events::bind_loopback().expect("a pair"));
    section("the same in another word of the bit fields");
    let request = EvtchnAllocUnbound { dom: DomId::SELF, pad: 0, port: Port(0) };
    let between: [Port; 70] =
        core::array::from_fn(|_| hypercall::event_channel_op(request).expect("there are ports enough").port);
    let pair = events::bind_loopback().expect("a pair");
    check!(pair.0.raw() > 64 && pair.1.raw() > 64, "{pair:?}");
    deliver_between(pair);
    for port in between {
        check_eq!(events::close(port), Ok(()));
    }
    check_eq!(events::unhandled_count(), 0, "events nobody handles");
    check_eq!(arch::failsafe_count(), 0, "failsafe callbacks");
}

fn deliver_between((from, to): (Port, Port)) {
    events::set_handler(to, on_event);
    upcall(from, to);
    both_ways(from, to);
    masked_upcalls(from, to);
    masked_port(from, to);
    the_chain(from, to);
    unmasking_in_memory(from, to);
    with_an_exception(from, to);
    registers_survive(from, to);
    callback_into_nothing(from);
    check_eq!(events::close(from), Ok(()));
    check_eq!(events::close(to), Ok(()));
    events::clear(to);
}

fn upcall(from: Port, to: Port) {
    section("an upcall");
    events::unmask(to);
    let (before, upcalls) = (handled(), events::upcall_count());
    check_eq!(events::send(from), Ok(()));
    check_eq!(handled() - before, 1, "the handler has run when the call returns");
    check_eq!(events::upcall_count().wrapping_sub(upcalls), 1);
    check_eq!(MASK_IN_HANDLER.load(Ordering::Relaxed), 1, "upcalls are masked in the handler");
    check_eq!(PENDING_IN_HANDLER.load(Ordering::Relaxed), 0);
    check_eq!(shared_info::upcall_mask().load(Ordering::Relaxed), 0, "and not afterwards");
    check_eq!(chain(to), (false, false, false));
    for _ in 0..1000 {
        check_eq!(events::send(from), Ok(()));
    }
    check_eq!(handled() - before, 1001, "a thousand more");
}

fn both_ways(from: Port, to: Port) {
    section("the other way");
    events::set_handler(from, on_event);
    events::unmask(from);
    let before = handled();
    check_eq!(events::send(to), Ok(()));
    check_eq!(handled() - before, 1);
    events::mask(from);
}

fn masked_upcalls(from: Port, to: Port) {
    section("with upcalls masked");
    events::mask_upcalls();
    let before = handled();
    check_eq!(events::send(from), Ok(()));
    check_eq!(chain(to), (true, true, true), "pending, and due");
    check_eq!(events::send(from), Ok(()), "once more");
    events::enter_hypervisor();
    check_eq!(handled(), before, "but not delivered");
    events::unmask_upcalls();
    check_eq!(handled() - before, 1, "delivered once, when upcalls are unmasked");
    check_eq!(chain(to), (false, false, false));
}

fn masked_port(from: Port, to: Port) {
    section("with the port masked");
    events::mask(to);
    let (before, upcalls) = (handled(), events::upcall_count());
    check_eq!(events::send(from), Ok(()));
    check_eq!(chain(to), (true, false, false), "pending, but not due");
    check_eq!(handled(), before);
    check_eq!(events::upcall_count(), upcalls, "no upcall for a masked port");
    events::unmask(to);
    check_eq!(handled() - before, 1, "delivered when the kernel makes it due");
}

/// Each link is looked at only when the one before went from 0 to 1.
fn the_chain(from: Port, to: Port) {
    section("the chain from bit to upcall");
    let (word, bit) = shared_info::bit_of(to);
    events::mask_upcalls();
    reset(to);

    shared_info::pending_word(word).fetch_or(bit, Ordering::SeqCst);
    check_eq!(events::send(from), Ok(()));
    check_eq!(chain(to), (true, false, false), "pending already: nothing follows");
    reset(to);

    shared_info::pending_selector().fetch_or(1 << word, Ordering::SeqCst);
    check_eq!(events::send(from), Ok(()));
    check_eq!(chain(to), (true, true, false), "selector set already: nothing follows");
    reset(to);

    events::mask(to);
    check_eq!(events::send(from), Ok(()));
    check_eq!(chain(to), (true, false, false), "masked: nothing follows");
    events::clear(to);
    events::unmask(to);
    reset(to);

    check_eq!(events::send(from), Ok(()));
    check_eq!(chain(to), (true, true, true), "all links were 0");
    reset(to);
    events::unmask_upcalls();
}

/// The guest unmasks in memory; the hypervisor looks when it is next entered.
fn unmasking_in_memory(from: Port, to: Port) {
    section("unmasking in memory");
    events::mask_upcalls();
    let before = handled();
    check_eq!(events::send(from), Ok(()));
    shared_info::upcall_mask().store(0, Ordering::SeqCst);
    check_eq!(hypercall::xen_version(), Ok(0x0002_0000), "any call delivers");
    check_eq!(handled() - before, 1);
    check_eq!(chain(to), (false, false, false));
}

/// An exception is an entry like others: the upcall comes on top of it, and both are done once.
fn with_an_exception(from: Port, to: Port) {
    section("an upcall on top of an exception");
    traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(3)).expect("the entry is accepted");
    traps::set_handler(SYSTEM_CALL, on_system_call);
    for (what, raise) in EXCEPTIONS {
        events::mask_upcalls();
        let (before, traps) = (handled(), traps::count());
        check_eq!(events::send(from), Ok(()));
        raise();
        check_eq!((handled() - before, traps::count().wrapping_sub(traps)), (0, 1), "{what}, with upcalls masked");
        shared_info::upcall_mask().store(0, Ordering::SeqCst);
        raise();
        check_eq!((handled() - before, traps::count().wrapping_sub(traps)), (1, 2), "{what}, with an upcall due");
        check_eq!(chain(to), (false, false, false), "{what}");
        check_eq!(shared_info::upcall_mask().load(Ordering::SeqCst), 0, "{what}: unmasked again");
    }
}

/// The vector of system calls.
const SYSTEM_CALL: u8 = 0x80;

fn on_system_call(_: &mut TrapFrame) -> Outcome {
    Outcome::Handled
}

/// Exceptions, and how they are raised.
const EXCEPTIONS: [(&str, fn()); 3] =
    [("ud2", invalid_opcode), ("a page fault", page_fault), ("int 0x80", system_call)];

fn invalid_opcode() {
    // SAFETY: raises #UD, which is recovered.
    check!(!unsafe { attempt!("ud2") });
}

fn page_fault() {
    check_eq!(probe::load(GuestVirt(0x10)), None);
}

fn system_call() {
    // SAFETY: the handler returns at once.
    unsafe { asm!("int 0x80") };
}

/// A call that is followed by an upcall still returns its result, and the registers with it.
fn registers_survive(from: Port, to: Port) {
    section("a call's result across an upcall");
    let before = handled();
    for round in 0..100 {
        // The event is made due by hand, so that the upcall comes at the end of a call with a result of its own.
        events::mask_upcalls();
        check_eq!(events::send(from), Ok(()));
        shared_info::upcall_mask().store(0, Ordering::SeqCst);
        if !check_eq!(hypercall::xen_version(), Ok(0x0002_0000)) {
            break;
        }
        check_eq!(handled() - before, round + 1);
    }
    check!(!shared_info::is_pending(to));
}

/// The callback is where nothing is mapped: the frame is pushed all the same, and entering it is the kernel's own
/// fault, which its handler may mend.
fn callback_into_nothing(from: Port) {
    // An x86_32 kernel may name what is the hypervisor's, where there is nothing for it either.
    const PLACES: &[u64] = if cfg!(target_arch = "x86") { &[0x20, 0xfd00_0000, 0xffff_fff0] } else { &[0x20] };
    section("a callback where nothing is");
    fn mend(frame: &mut TrapFrame) -> Outcome {
        if !PLACES.contains(&frame.ip().raw()) {
            return Outcome::NotMine;
        }
        frame.set_ip(arch::event_callback());
        Outcome::Handled
    }
    traps::set_handler(vector::PAGE_FAULT, mend);
    let failsafe = (Arch::FLAT_GUESTOS_CS, arch::failsafe_callback());
    for at in PLACES.iter().cycle().take(12).map(|&at| GuestVirt(at)) {
        // SAFETY: nothing is there, which the handler knows.
        check_eq!(unsafe { hypercall::set_callbacks((Arch::FLAT_GUESTOS_CS, at), failsafe) }, Ok(()));
        let (before, traps) = (handled(), traps::count());
        check_eq!(events::send(from), Ok(()));
        check_eq!((handled() - before, traps::count().wrapping_sub(traps)), (1, 1), "a fault, then the event");
        check_eq!((traps::last_trap().ip, traps::last_trap().fault_address), (at, at), "its address");
        check_eq!(shared_info::upcall_mask().load(Ordering::SeqCst), 0, "unmasked again");
    }
    traps::clear_handler(vector::PAGE_FAULT);
    events::install().expect("the callbacks");
}
