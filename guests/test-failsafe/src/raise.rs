//! Raising #UD with known registers, and checking what became of it.

use crate::entries::{self, Found};
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::{GuestArch, GuestWord, Selector};
use proxenos_guest::arch::{Word, trap_stub};
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{Arch, TrapFrame, check, check_eq, hypercall};

/// What the registers held when it was raised.
#[derive(Clone, Copy, Debug)]
pub struct Raised {
    /// Stack pointer.
    pub sp: usize,
    /// Flags.
    pub flags: usize,
    /// Address of the instruction.
    pub ip: usize,
}

/// What rcx and r11 hold on x86_64 when it is raised.
pub const MARKS: [usize; 2] = if cfg!(target_arch = "x86") { [0, 0] } else { [0x1234_5678, 0x4321_8765] };

static HANDLER_CS: AtomicUsize = AtomicUsize::new(0);

/// Notes in which code segment the handler runs, and leaves the rest to the recovery.
fn note(_: &mut TrapFrame) -> Outcome {
    let cs: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {:e}, cs", out(reg) cs) };
    HANDLER_CS.store(cs, Ordering::Relaxed);
    Outcome::NotMine
}

/// Makes the SDK's entry for a vector the handler, in this code segment.
pub fn set_handler(vector: u8, cs: Selector, flags: TrapFlags) {
    let at = Word::from_u64_truncating(trap_stub(vector).raw());
    // SAFETY: the entry point is made for its vector. Whether it can be entered in that segment is the test.
    unsafe { hypercall::set_trap_table(&[TrapInfo::new(vector, flags, cs, at), traps::end_of_table()]) }
        .expect("a selector of our ring");
}

/// Puts the handler of #UD back into the flat segment.
pub fn reset_handler() {
    set_handler(vector::INVALID_OPCODE, Arch::FLAT_GUESTOS_CS, TrapFlags::empty());
    traps::clear_handler(vector::INVALID_OPCODE);
}

/// Raises #UD with these data selectors. They are flat again at the end.
#[cfg(target_arch = "x86")]
#[inline(never)]
pub fn raise([ds, es, fs, gs]: [Selector; 4]) -> Raised {
    static STATE: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    // SAFETY: the instruction traps and is listed; ss stays flat, and the data registers are put back.
    unsafe {
        asm!(
            "mov ds, {ds:e}",
            "mov es, {es:e}",
            "mov fs, {fs:e}",
            "mov gs, {gs:e}",
            "pushfd",
            "pop dword ptr ss:[{state} + 4]",
            "mov dword ptr ss:[{state}], esp",
            "lea eax, [2f]",
            "mov dword ptr ss:[{state} + 8], eax",
            "2: ud2",
            "3: mov eax, {flat}",
            "mov ds, eax",
            "mov es, eax",
            "xor eax, eax",
            "mov fs, eax",
            "mov gs, eax",
            proxenos_guest::__fixup!(),
            ds = in(reg) u32::from(ds.raw()),
            es = in(reg) u32::from(es.raw()),
            fs = in(reg) u32::from(fs.raw()),
            gs = in(reg) u32::from(gs.raw()),
            state = sym STATE,
            flat = const Arch::FLAT_GUESTOS_DS.raw(),
            out("eax") _,
        );
    }
    let [sp, flags, ip] = STATE.each_ref().map(|word| word.load(Ordering::Relaxed));
    Raised { sp, flags, ip }
}

/// Raises #UD with these data selectors. They are flat again at the end.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
pub fn raise([ds, es, fs, gs]: [Selector; 4]) -> Raised {
    let (sp, flags, ip): (usize, usize, usize);
    // SAFETY: the instruction traps and is listed; 64-bit code does not depend on the data registers.
    unsafe {
        asm!(
            "mov ds, {ds:e}",
            "mov es, {es:e}",
            "mov fs, {fs:e}",
            "mov gs, {gs:e}",
            "pushfq",
            "pop {flags}",
            "mov {sp}, rsp",
            "lea {ip}, [rip + 2f]",
            "2: ud2",
            "3: mov {ds:e}, {flat}",
            "mov ds, {ds:e}",
            "mov es, {ds:e}",
            "xor {ds:e}, {ds:e}",
            "mov fs, {ds:e}",
            "mov gs, {ds:e}",
            proxenos_guest::__fixup!(),
            ds = inout(reg) u64::from(ds.raw()) => _,
            es = in(reg) u64::from(es.raw()),
            fs = in(reg) u64::from(fs.raw()),
            gs = in(reg) u64::from(gs.raw()),
            sp = out(reg) sp,
            flags = out(reg) flags,
            ip = out(reg) ip,
            flat = const Arch::FLAT_GUESTOS_DS.raw(),
            inout("rcx") MARKS[0] => _,
            inout("r11") MARKS[1] => _,
        );
    }
    Raised { sp, flags, ip }
}

/// TF, NT, RF and VM: clear in whatever the hypervisor enters.
const CLEARED: usize = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17;
/// Flags that a frame may show and a `pushf` before does not: RF, which a fault sets.
const RF: usize = 1 << 16;

/// #UD in a code segment that cannot be entered: the failsafe callback finds the frame, and what it repairs goes on.
#[track_caller]
pub fn expect_failsafe(what: &str, cs: Selector, data: [Selector; 4]) {
    set_handler(vector::INVALID_OPCODE, cs, TrapFlags::empty());
    traps::set_handler(vector::INVALID_OPCODE, note);
    let (failsafes, count) = (entries::count(), traps::count());
    let raised = raise(data);
    reset_handler();
    check_eq!(entries::count() - failsafes, 1, "{what}: failsafe callbacks");
    check_eq!(traps::count() - count, 1, "{what}: and the handler ran all the same");
    check_eq!(traps::last_trap().vector, vector::INVALID_OPCODE, "{what}");
    check_eq!(traps::last_trap().ip.raw() as usize, raised.ip, "{what}");
    check_frame(what, &entries::found(), &raised, cs, data);
}

/// #UD in a code segment that can be entered: its handler runs, in that segment, and the failsafe callback does not.
#[track_caller]
pub fn expect_direct(what: &str, cs: Selector, data: [Selector; 4]) {
    set_handler(vector::INVALID_OPCODE, cs, TrapFlags::empty());
    traps::set_handler(vector::INVALID_OPCODE, note);
    let (failsafes, count) = (entries::count(), traps::count());
    raise(data);
    reset_handler();
    check_eq!(entries::count() - failsafes, 0, "{what}: failsafe callbacks");
    check_eq!(traps::count() - count, 1, "{what}: the handler ran");
    check_eq!(HANDLER_CS.load(Ordering::Relaxed), usize::from(cs.raw()), "{what}: in its segment");
}

/// Words of the failsafe frame below the interrupted registers, and words of those and of #UD's frame.
#[cfg(target_arch = "x86")]
const LAYOUT: (usize, usize, usize) = (4, 3, 3);
#[cfg(target_arch = "x86_64")]
const LAYOUT: (usize, usize, usize) = (6, 5, 7);

/// Where a frame of so many words lies that is pushed at a stack pointer: x86_64 aligns it first.
pub fn frame_at(sp: usize, words: usize) -> usize {
    let aligned = if cfg!(target_arch = "x86_64") { sp & !15 } else { sp };
    aligned - words * size_of::<usize>()
}

#[track_caller]
fn check_frame(what: &str, found: &Found, raised: &Raised, cs: Selector, data: [Selector; 4]) {
    let (below, registers, exception_words) = LAYOUT;
    let handler_sp = frame_at(raised.sp, exception_words);
    check_eq!(found.sp, frame_at(handler_sp, below + registers), "{what}: where the frame lies");
    let (selectors, rest) = if cfg!(target_arch = "x86") {
        found.words.split_at(4)
    } else {
        check_eq!(&found.words[..2], &MARKS[..], "{what}: rcx and r11");
        found.words[2..].split_at(4)
    };
    let low = |word: usize| word & 0xffff;
    check_eq!([0, 1, 2, 3].map(|i: usize| selectors[i]), data.map(|s| usize::from(s.raw())), "{what}: ds, es, fs, gs");
    check_eq!(rest[0], trap_stub(vector::INVALID_OPCODE).raw() as usize, "{what}: ip");
    check_eq!(low(rest[1]), usize::from(cs.raw()), "{what}: cs");
    check_eq!(rest[2], raised.flags & !CLEARED, "{what}: flags");
    #[cfg(target_arch = "x86_64")]
    {
        check_eq!(rest[3], handler_sp, "{what}: rsp");
        check_eq!(low(rest[4]), usize::from(Arch::FLAT_GUESTOS_DS.raw()), "{what}: ss");
    }
    check_eq!(found.flags & CLEARED, 0, "{what}: flags in the callback");
    check!(found.flags & 1 << 9 != 0, "{what}: interrupts in the callback: {:#x}", found.flags);
    check_eq!(found.data, [0; 4], "{what}: ds, es, fs, gs in the callback");
    // Above it lies the exception's own frame, unharmed. On x86_64 both are a whole number of words apart.
    let gap = (handler_sp - found.sp) / size_of::<usize>();
    if let Some(frame) = found.words.get(gap..gap + 3).filter(|_| cfg!(target_arch = "x86")) {
        check_eq!(frame[0], raised.ip, "{what}: ip in the exception's frame");
        check_eq!(low(frame[1]), usize::from(Arch::FLAT_GUESTOS_CS.raw()), "{what}: cs in it");
        check_eq!(frame[2] & !RF, raised.flags & !RF, "{what}: flags in it");
    }
}
