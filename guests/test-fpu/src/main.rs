//! The floating-point unit: its state at the start, that it is kept, and the trap of `fpu_taskswitch`.
//!
//! What a test loads stays until the test looks: there are no floats here, and no 64-bit atomics, for which the
//! compiler would use the unit on x86_32.
//!
//! `after=MILLISECONDS` on the command line: so long it computes first, without the unit, while other domains use it.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::{Port, Virq};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{StartInfo, TrapFrame, attempt, boot, check, check_eq, events, hypercall, println, time};

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
    // Others are to use the unit first.
    if let Some(after) = boot::option("after").and_then(|text| text.parse::<u64>().ok()) {
        let until = time::system_time() + after * 1_000_000;
        while time::system_time() < until {
            core::hint::spin_loop();
        }
    }
    clean();
    initial();
    computes();
    kept();
    taskswitch();
    errors();
    alignment();
}

#[repr(align(16))]
struct Image([u32; 128]);

/// Nothing of whoever used the unit before, down to the last register.
fn clean() {
    section("clean at the start");
    let mut image = Image([0x5a5a_5a5a; 128]);
    // SAFETY: stores 512 bytes, aligned to 16.
    unsafe { asm!("fxsave [{}]", in(reg) &raw mut image) };
    let Image(words) = image;
    check_eq!(words[0], 0x037f, "control and status");
    check_eq!(words[1] & 0xff, 0, "all registers of the stack are empty");
    check_eq!(words[6], 0x1f80, "mxcsr");
    // Eight registers of 80 bits in 16 bytes each, and those of 128 bits.
    let (stack, vectors) = words[8..].split_at(8 * 4);
    let empty = |register: &[u32]| register[0] == 0 && register[1] == 0 && register[2] & 0xffff == 0;
    check!(stack.chunks(4).all(empty), "{stack:x?}");
    let vectors = &vectors[..if cfg!(target_arch = "x86_64") { 16 * 4 } else { 8 * 4 }];
    check!(vectors.iter().all(|&word| word == 0), "{vectors:x?}");
}

/// Errors are exceptions of their own: #MF with the next instruction that waits, #XM at once.
fn errors() {
    section("errors");
    let control = 0x037bu16;
    // SAFETY: divides by zero, with that error unmasked.
    unsafe { asm!("fninit", "fldcw [{}]", "fld1", "fldz", "fdivp", in(reg) &raw const control) };
    // SAFETY: raises what is pending.
    check!(!unsafe { attempt!("fwait") }, "#MF");
    check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (16, 0));
    check_eq!(status_word() & 0x84, 0x84, "division by zero, and a summary");
    // SAFETY: clears it.
    unsafe { asm!("fninit") };
    // SAFETY: nothing is pending.
    check!(unsafe { attempt!("fwait") }, "and then it is gone");

    let (unmasked, masked) = (0x1d80u32, 0x1f80u32);
    // SAFETY: 1 and 0 as floats, with division by zero unmasked.
    let divided = unsafe {
        asm!(
            "ldmxcsr [{0}]", "mov {1:e}, 0x3f800000", "movd xmm0, {1:e}", "xorps xmm1, xmm1",
            in(reg) &raw const unmasked, out(reg) _,
        );
        attempt!("divss xmm0, xmm1")
    };
    let flags = mxcsr();
    // SAFETY: as it was.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const masked) };
    check!(flags & 4 != 0, "the error is noted, {flags:#x}");
    if divided {
        println!("this CPU raises no #XM: an emulator");
    } else {
        check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (19, 0));
    }
}

/// Alignment is checked in ring 3 where the flag is set (CR0.AM): a kernel of x86_64.
fn alignment() {
    section("alignment");
    const CHECKED: usize = 1 << 18;
    let words = [0u32; 2];
    let at = words.as_ptr() as usize + 1;
    let flag = |on: bool| {
        // SAFETY: changes a flag that only makes accesses fault which no compiled code makes.
        unsafe {
            asm!("pushf", "pop {0}", "and {0}, {1}", "or {0}, {2}", "push {0}", "popf",
                out(reg) _, in(reg) !CHECKED, in(reg) if on { CHECKED } else { 0 });
        }
    };
    // SAFETY: reads within the array.
    check!(unsafe { attempt!("mov {0:e}, [{1}]", out(reg) _, in(reg) at) }, "unchecked");
    flag(true);
    // SAFETY: as above.
    let read = unsafe { attempt!("mov {0:e}, [{1}]", out(reg) _, in(reg) at) };
    flag(false);
    if cfg!(target_arch = "x86") {
        check!(read, "ring 1 is not checked");
    } else if read {
        println!("this CPU checks no alignment: an emulator");
    } else {
        check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (17, 0));
    }
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
