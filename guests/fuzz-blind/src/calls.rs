//! Hypercalls of every number, with arguments of every kind.
//!
//! What is left out: shutdowns, a real sleep without a timer, and what domain 0 is trusted not to do to the machine:
//! I/O privilege (`DOM0_IOPL`) and writes to the configuration of PCI devices.

use fastrand::Rng;
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::dom0_ops::DOM0_INTERFACE_VERSION;
use proxenos_guest::abi::hypercall::AUDIT_CALL;
use proxenos_guest::abi::{GuestArch, GuestVirt, Virq};
use proxenos_guest::arch::{Word, hypercall5};
use proxenos_guest::{Arch, events, hypercall, shared_info, time, traps};

use crate::{lists, point, words};

/// Arguments that a call can have in registers.
const ARGUMENTS: usize = 5;
/// Where in the page of lists a call's own argument lies, behind the longest list of calls.
const OWN: usize = 512;
/// Bytes of an argument that is a structure.
const STRUCTURE: usize = 72;

const SCHED_OP: usize = 6;
const MULTICALL: usize = 13;

/// Puts back what exceptions, events and entries from ring 3 need.
pub fn repair() {
    let entry = |vector| {
        let flags = TrapFlags::from_dpl(if matches!(vector, 3 | 4) { 3 } else { 0 });
        TrapInfo::<Arch>::new(vector, flags, Arch::FLAT_GUESTOS_CS, point::entry() as Word)
    };
    let mut table = [traps::end_of_table(); 33];
    for (vector, slot) in (0..32).zip(&mut table) {
        *slot = entry(vector);
    }
    let callback = (Arch::FLAT_GUESTOS_CS, proxenos_guest::arch::event_callback());
    let failsafe = (Arch::FLAT_GUESTOS_CS, GuestVirt(point::entry() as u64));
    // SAFETY: the entry is fit for every vector and for the failsafe callback.
    let _ = unsafe { hypercall::set_trap_table(&table) };
    // SAFETY: as above.
    let _ = unsafe { hypercall::set_callbacks(callback, failsafe) };
    // SAFETY: the stack is for nothing else.
    let _ = unsafe { hypercall::stack_switch(Arch::FLAT_GUESTOS_DS, point::kernel_stack()) };
    shared_info::upcall_mask().store(0, core::sync::atomic::Ordering::SeqCst);
}

/// One call, whatever it does.
fn call(number: usize, arguments: [usize; ARGUMENTS]) {
    let [a, b, c, d, e] = arguments;
    // SAFETY: nothing that Rust relies on is in what the arguments point to, but for what may be the guest's end.
    let _ = unsafe { hypercall5(number, a, b, c, d, e) };
}

/// Sleeps, with something to wake up for.
fn block(rng: &mut Rng) {
    if rng.bool() {
        shared_info::upcall_pending().store(1, core::sync::atomic::Ordering::SeqCst);
    } else {
        events::mask_upcalls();
        for index in 0..32 {
            shared_info::pending_word(index).store(0, core::sync::atomic::Ordering::SeqCst);
            shared_info::mask_word(index).store(0, core::sync::atomic::Ordering::SeqCst);
        }
        // Bound already, most of the time.
        let _ = events::bind_virq(Virq::Timer);
        if time::set_timer_in(100_000).is_err() {
            return;
        }
    }
    let _ = hypercall::sched_block();
}

/// A call's number.
fn number(rng: &mut Rng) -> usize {
    let number = if rng.u8(..16) == 0 { words::any(rng) } else { rng.usize(..28) };
    // The audit is as long as the machine is large: it has its own times.
    if number as u32 == AUDIT_CALL { number + 1 } else { number }
}

/// A structure of 32-bit words, of which the first is a command.
fn structure(rng: &mut Rng, commands: u32) -> usize {
    let base = OWN * size_of::<usize>();
    for offset in (0..STRUCTURE).step_by(4) {
        lists::set_u32(base + offset, words::any(rng) as u32);
    }
    lists::set_u32(base, rng.u32(..commands));
    lists::at(OWN)
}

/// Arguments for a number that lead beyond its first checks, half of the time.
fn arguments(rng: &mut Rng, number: usize) -> [usize; ARGUMENTS] {
    let mut arguments = [(); ARGUMENTS].map(|()| words::any(rng));
    let sensible = rng.bool();
    match number {
        0 if sensible => arguments[0] = table(rng),
        0 | 1 => arguments[0] = words::nowhere(rng),
        2 if sensible => {
            for index in 0..16 {
                lists::set(OWN + index, words::frame(rng));
            }
            arguments[0] = lists::at(OWN);
            arguments[1] = rng.usize(..8192);
        }
        4 if sensible => {
            let good = [usize::from(Arch::FLAT_GUESTOS_CS.raw()), point::entry()];
            (arguments[0], arguments[1], arguments[2], arguments[3]) = (good[0], good[1], good[0], good[1]);
        }
        SCHED_OP if arguments[0] & 0xff == 2 => arguments[0] &= !0xff,
        7 => {
            arguments[0] = if sensible { structure(rng, 64) } else { words::nowhere(rng) };
            let base = OWN * size_of::<usize>();
            // DOM0_IOPL.
            if lists::get_u32(base) == 14 {
                lists::set_u32(base, 15);
            }
            lists::set_u32(base + 4, DOM0_INTERFACE_VERSION);
        }
        8 | 9 => arguments[0] = rng.usize(..9),
        10 => arguments[0] = words::entry_address(rng),
        12 if sensible => {
            for index in 0..16 {
                lists::set(OWN + index, words::frame(rng));
            }
            (arguments[0], arguments[1], arguments[2]) = (rng.usize(..2), lists::at(OWN), rng.usize(..17));
            (arguments[3], arguments[4]) = (rng.usize(..3), 0x7ff0);
        }
        MULTICALL => arguments[0] = words::nowhere(rng),
        14 | 22 => {
            let at = if rng.u8(..8) == 0 { words::nowhere(rng) } else { words::page(rng) };
            (arguments[0], arguments[1], arguments[2]) = (at >> 12, words::entry(rng), rng.usize(..5));
        }
        16 if sensible => {
            arguments[0] = structure(rng, 8);
            for offset in [4, 8, 12, 16] {
                let small = if rng.bool() { 0x7ff0 } else { rng.u32(..16) };
                lists::set_u32(OWN * size_of::<usize>() + offset, small);
            }
        }
        // Not so much that nothing else is seen at the console.
        18 => {
            arguments[1] &= 63;
            arguments[2] = if sensible { words::address(rng) } else { words::nowhere(rng) };
        }
        19 => {
            arguments[0] = if sensible { structure(rng, 8) } else { words::nowhere(rng) };
            let base = OWN * size_of::<usize>();
            // PHYSDEVOP_PCI_CFGREG_WRITE.
            if lists::get_u32(base) == 1 {
                lists::set_u32(base, 0);
            }
        }
        20 | 21 => arguments[0] = rng.usize(..8),
        _ => {}
    }
    arguments
}

/// A trap table of a few vectors, exceptions rarely among them.
fn table(rng: &mut Rng) -> usize {
    let size = size_of::<TrapInfo<Arch>>();
    for index in 0..rng.usize(1..8) {
        let base = OWN * size_of::<usize>() + index * size;
        for offset in (0..size).step_by(4) {
            lists::set_u32(base + offset, words::any(rng) as u32 | 1);
        }
        let vector = if rng.u8(..32) == 0 { rng.u32(..32) } else { rng.u32(32..256) };
        let flags = rng.u32(..8) << 8;
        let selector = words::selector(rng) as u32;
        lists::set_u32(base, vector | flags | selector << 16);
        // The end, unless another follows.
        for offset in (0..size).step_by(4) {
            lists::set_u32(base + size + offset, 0);
        }
    }
    lists::at(OWN)
}

/// A call of any number.
pub fn any(rng: &mut Rng) {
    let number = number(rng);
    let arguments = arguments(rng, number);
    if number == SCHED_OP && arguments[0] & 0xff == 1 {
        return block(rng);
    }
    call(number, arguments);
}

/// One request of `mmu_update`.
fn request(rng: &mut Rng) -> (usize, usize) {
    match rng.u8(..8) {
        0..4 => (words::entry_address(rng) & !3, words::entry(rng)),
        4 => (words::frame(rng) << 12 | 2, words::any(rng)),
        5 | 6 => {
            let command = match rng.usize(..16) {
                // A new base is mostly the end.
                5 if rng.u8(..32) != 0 => 6,
                command => command,
            };
            let argument = if command == 9 { words::page(rng) } else { words::frame(rng) << 12 };
            (argument & !3 | 3, command | words::any(rng) << 8)
        }
        _ => (words::any(rng), words::any(rng) & !0xff | 6),
    }
}

/// A list of requests.
pub fn mmu_update(rng: &mut Rng) {
    let count = rng.usize(1..32);
    for index in 0..count {
        let (ptr, value) = request(rng);
        lists::set(2 * index, ptr);
        lists::set(2 * index + 1, value);
    }
    let done = match rng.u8(..4) {
        0 => 0,
        1 => words::nowhere(rng),
        _ => words::address(rng),
    };
    let domain = if rng.bool() { 0x7ff0 } else { words::any(rng) };
    call(1, [lists::at(0), count, done, domain, 0]);
}

/// A list of calls. Those that take lists themselves share one, in its last state.
pub fn multicall(rng: &mut Rng) {
    let count = rng.usize(1..24);
    for index in 0..count {
        let number = number(rng);
        let mut arguments = arguments(rng, number);
        if number == SCHED_OP {
            // Nothing may sleep here: what came before in the list may have taken away what it would wake up for.
            arguments[0] = 0;
        }
        lists::set(8 * index, number);
        for (at, argument) in arguments.into_iter().enumerate() {
            lists::set(8 * index + 1 + at, argument);
        }
        lists::set(8 * index + 6, words::any(rng));
        lists::set(8 * index + 7, words::any(rng));
    }
    let at = if rng.u8(..16) == 0 { words::nowhere(rng) } else { lists::at(0) };
    call(MULTICALL, [at, count, 0, 0, 0]);
}
