//! A blind guest: from a seed, hypercalls, traps and register loads without a plan. The host must outlive it.
//!
//! Each operation is a function of the seed and its own number, so what went before changes the world and never the
//! dice. Every trap and many events lead to [`point`], which forgets the operation and goes on with the next. The guest
//! may die of what it does; it neither shuts down before its end nor sleeps without something that wakes it.
//!
//! `seed=N operations=N end=REASON` on the command line; a line every thousand operations says that it lives.
#![no_std]
#![no_main]

mod calls;
mod instructions;
mod lists;
mod point;
mod words;

use core::sync::atomic::{AtomicUsize, Ordering};
use fastrand::Rng;
use proxenos_guest::shutdown::{self, Reason};
use proxenos_guest::{StartInfo, boot, hypercall, println};

/// Operations between two signs of life, each with an audit of the machine where the hypervisor has the call.
const HEARTBEAT: usize = 1000;
/// Operations between two repairs of what traps and events need.
const REPAIR: usize = 8;

static SEED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static OPERATIONS: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

proxenos_guest::entry!(main);

fn number(key: &str, default: u64) -> u64 {
    boot::option(key).map_or(default, |text| text.parse().expect("a number"))
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    let seed = number("seed", 0);
    SEED[0].store(seed as u32 as usize, Ordering::Relaxed);
    SEED[1].store((seed >> 32) as usize, Ordering::Relaxed);
    OPERATIONS.store(number("operations", 20_000) as usize, Ordering::Relaxed);
    END.store(number("end", 0) as u8 as usize, Ordering::Relaxed);
    println!("blind: seed {seed}");
    words::prepare();
    calls::repair();
    point::begin()
}

/// The dice of an operation.
fn dice(operation: usize) -> Rng {
    let seed = SEED[0].load(Ordering::Relaxed) as u64 | (SEED[1].load(Ordering::Relaxed) as u64) << 32;
    Rng::with_seed(seed ^ (operation as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The next operation. Called again and again, on an empty stack; what traps in it is forgotten.
extern "C" fn step() {
    let operation = NEXT.fetch_add(1, Ordering::Relaxed);
    point::alive();
    if operation >= OPERATIONS.load(Ordering::Relaxed) {
        println!("blind: done");
        shutdown::shutdown(Reason(END.load(Ordering::Relaxed) as u8));
    }
    if operation.is_multiple_of(HEARTBEAT) {
        println!("blind: {operation}");
        let _ = hypercall::audit();
    }
    if operation.is_multiple_of(REPAIR) {
        calls::repair();
    }
    let rng = &mut dice(operation);
    match rng.u8(..100) {
        0..40 => calls::any(rng),
        40..56 => calls::mmu_update(rng),
        56..66 => calls::multicall(rng),
        66..72 => instructions::software_interrupt(rng),
        72..78 => instructions::privileged(rng),
        78..84 => instructions::segments(rng),
        84..88 => instructions::ports(rng),
        88..96 => instructions::store(rng),
        96..98 => words::scribble(rng),
        _ => instructions::returns(rng),
    }
}
