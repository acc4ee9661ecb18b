//! The floating-point unit: its state at the start, that it is kept, and the trap of `fpu_taskswitch`.
//!
//! What a test loads stays until the test looks: there are no floats here, and no 64-bit atomics, for which the compiler
//! would use the unit on x86_32.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::{Port, Virq};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{StartInfo, TrapFrame, check, check_eq, events, hypercall, time};

proxenos_guest::test_guest!(main);

static TRAPS: AtomicU32 = AtomicU32::new(0);
static TICKS: AtomicU32 = AtomicU32::new(0);

fn on_device_not_available(_: &mut TrapFrame) -> Outcome {
    TRAPS.fetch_add(1, Ordering::Relaxed);
    Outcome::Handled
}

fn on_tick(_: Port) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

fn traps_seen() -> u32 {
    TRAPS.load(Ordering::Relaxed)
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    traps::set_handler(vector::DEVICE_NOT_AVAILABLE, on_device_not_available);
    initial();
    computes();
    kept();
    taskswitch();
}

fn control_word() -> u16 {
    let mut word = 0u16;
    // SAFETY: stores two bytes.
    unsafe { asm!("fnstcw [{}]", in(reg) &raw mut word) };
    word
}

fn status_word() -> u16 {
    let mut word = 0u16;
    // SAFETY: stores two bytes.
    unsafe { asm!("fnstsw [{}]", in(reg) &raw mut word) };
    word
}

fn mxcsr() -> u32 {
    let mut word = 0u32;
    // SAFETY: stores four bytes.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word) };
    word
}

fn initial() {
    section("at the start");
    check_eq!(control_word(), 0x037f, "control word");
    check_eq!(status_word(), 0, "status word");
    check_eq!(mxcsr(), 0x1f80, "mxcsr");
    check_eq!(traps_seen(), 0, "the first use raises nothing");
}

/// Rounds the square root of an integer down.
fn square_root(value: u32) -> u32 {
    let (value, mut root) = (value, 0u32);
    let mut control = control_word();
    let truncating = control | 0x0c00;
    // SAFETY: leaves the stack of the unit as it was, and the control word too.
    unsafe {
        asm!(
            "fldcw [{truncating}]",
            "fild dword ptr [{value}]",
            "fsqrt",
            "fistp dword ptr [{root}]",
            "fldcw [{control}]",
            truncating = in(reg) &raw const truncating,
            value = in(reg) &raw const value,
            root = in(reg) &raw mut root,
            control = in(reg) &raw mut control,
        );
    }
    root
}

fn computes() {
    section("computes");
    for (value, root) in [(0, 0), (1, 1), (2, 1), (4, 2), (99, 9), (100, 10), (1_000_000, 1000), (2_000_000_000, 44721)]
    {
        check_eq!(square_root(value), root, "square root of {value}");
    }
}

/// Loads recognisable values, runs something, and tells whether the values are still there.
fn keeps(run: impl FnOnce()) -> bool {
    let loaded: [u32; 3] = [0x1234_5678, 0x0102_0304, 0x7fff_0001];
    let vectors: [u64; 2] = [0xfeed_face_cafe_beef, 0x0123_4567_89ab_cdef];
    // SAFETY: loads registers that no compiled code uses.
    unsafe {
        asm!(
            "fninit",
            "fild dword ptr [{0}]",
            "fild dword ptr [{0} + 4]",
            "fild dword ptr [{0} + 8]",
            "movups xmm0, [{1}]",
            "movups xmm7, [{1}]",
            in(reg) loaded.as_ptr(),
            in(reg) vectors.as_ptr(),
        );
    }
    run();
    let (mut stored, mut seen0, mut seen7) = ([0u32; 3], [0u64; 2], [0u64; 2]);
    // SAFETY: stores into the arrays, and leaves the unit as at the start.
    unsafe {
        asm!(
            "movups [{1}], xmm0",
            "movups [{2}], xmm7",
            "fistp dword ptr [{0} + 8]",
            "fistp dword ptr [{0} + 4]",
            "fistp dword ptr [{0}]",
            in(reg) stored.as_mut_ptr(),
            in(reg) seen0.as_mut_ptr(),
            in(reg) seen7.as_mut_ptr(),
        );
    }
    stored == loaded && seen0 == vectors && seen7 == vectors
}

fn kept() {
    section("kept");
    check!(keeps(|| ()), "with nothing in between");
    check!(keeps(|| assert!(hypercall::xen_version().is_ok())), "across a call");
    check!(keeps(|| assert!(hypercall::sched_yield().is_ok())), "across a yield");
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    let block = || {
        let (before, until) = (TICKS.load(Ordering::Relaxed), time::system_time() + 20_000_000);
        hypercall::set_timer_op(until).expect("the timer can be set");
        events::wait_until(|| TICKS.load(Ordering::Relaxed) > before && time::system_time() >= until);
    };
    check!(keeps(block), "across a wait");
    let spin = || {
        let until = time::system_time() + 50_000_000;
        while time::system_time() < until {
            core::hint::spin_loop();
        }
    };
    check!(keeps(spin), "across interrupts");
    events::mask(port);
    check_eq!(traps_seen(), 0, "and none of it raises #NM");
}

fn taskswitch() {
    section("fpu_taskswitch");
    let before = traps_seen();
    check_eq!(hypercall::fpu_taskswitch(), Ok(()));
    check_eq!(traps_seen(), before, "the call itself raises nothing");
    check_eq!(control_word(), 0x037f);
    check_eq!(traps_seen() - before, 1, "the next use raises #NM");
    check_eq!(control_word(), 0x037f);
    check_eq!(square_root(49), 7);
    check_eq!(traps_seen() - before, 1, "once");
    check!(keeps(|| assert!(hypercall::fpu_taskswitch().is_ok())), "the state is kept");
    check_eq!(traps_seen() - before, 2);
    check_eq!(hypercall::fpu_taskswitch(), Ok(()));
    check_eq!(hypercall::fpu_taskswitch(), Ok(()));
    check_eq!(mxcsr(), 0x1f80, "asked twice");
    check_eq!(mxcsr(), 0x1f80);
    check_eq!(traps_seen() - before, 3, "one trap");
}
