//! Debug registers: what a guest may set, what its breakpoints and single steps tell it, and that they reach nobody
//! else.
#![no_std]
#![no_main]

mod attacks;
mod breakpoints;
mod registers;

use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{StartInfo, TrapFrame, boot, hypercall};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    if boot::option("death").is_some() {
        attacks::spiral();
    }
    registers::run();
    traps::set_handler(vector::DEBUG, note);
    breakpoints::run();
    attacks::run();
}

/// Flags: single step, and "no instruction breakpoint at the next one".
const TF: usize = 1 << 8;
const RF: usize = 1 << 16;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LAST_IP: AtomicUsize = AtomicUsize::new(0);
static LAST_STATUS: AtomicUsize = AtomicUsize::new(0);

/// The handler of #DB: counts it, notes where it was and what DR6 says, and goes on.
fn note(frame: &mut TrapFrame) -> Outcome {
    COUNT.store(COUNT.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    LAST_IP.store(frame.ip().raw() as usize, Ordering::Relaxed);
    LAST_STATUS.store(hypercall::get_debugreg(6), Ordering::Relaxed);
    hypercall::set_debugreg(6, 0).expect("DR6 can be cleared");
    frame.set_flags(frame.flags() & !TF | RF);
    Outcome::Handled
}

/// What the #DBs since the last call were: how many, where the last one, and what DR6 said.
pub fn seen() -> (usize, usize, usize) {
    let values = [&COUNT, &LAST_IP, &LAST_STATUS].map(|value| value.swap(0, Ordering::Relaxed));
    (values[0], values[1], values[2])
}

/// Sets a breakpoint: its number, its condition and length as DR7 has them in four bits, and its address.
pub fn arm(number: usize, condition_and_length: usize, at: usize) {
    hypercall::set_debugreg(number, at).expect("an address of ours");
    let control = hypercall::get_debugreg(7) & !(0xf << (16 + 4 * number));
    let control = control | 1 << (2 * number) | condition_and_length << (16 + 4 * number);
    hypercall::set_debugreg(7, control).expect("a breakpoint that may be");
}

/// Turns all breakpoints off.
pub fn disarm() {
    hypercall::set_debugreg(7, 0).expect("breakpoints can be turned off");
}

/// On execution.
pub const EXECUTE: usize = 0;
/// On writes to one byte.
pub const WRITE_1: usize = 0b0001;
/// On writes to two bytes.
pub const WRITE_2: usize = 0b0101;
/// On writes to four bytes.
pub const WRITE_4: usize = 0b1101;
/// On any access to four bytes.
pub const ACCESS_4: usize = 0b1111;
