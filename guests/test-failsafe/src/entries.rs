//! Our failsafe callback: it notes what it finds, repairs the code selector, and goes on with what could not be
//! entered.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::{GuestArch, GuestVirt, Selector};
use proxenos_guest::{Arch, arch, hypercall};

/// Words of the frame that are noted, from the lowest.
pub const NOTED: usize = 16;

static WORDS: [AtomicUsize; NOTED] = [const { AtomicUsize::new(0) }; NOTED];
/// Stack pointer at entry, flags, ds, es, fs, gs.
static STATE: [AtomicUsize; 6] = [const { AtomicUsize::new(0) }; 6];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Where the callback goes on instead of where its frame says, unless 0.
pub static RESUME: AtomicUsize = AtomicUsize::new(0);

/// What the callback found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Words on the stack, from the lowest.
    pub words: [usize; NOTED],
    /// The stack pointer.
    pub sp: usize,
    /// The flags.
    pub flags: usize,
    /// ds, es, fs, gs.
    pub data: [usize; 4],
}

/// How often the callback has run.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// What it found the last time.
pub fn found() -> Found {
    let words = WORDS.each_ref().map(|word| word.load(Ordering::Relaxed));
    let [sp, flags, ds, es, fs, gs] = STATE.each_ref().map(|word| word.load(Ordering::Relaxed));
    Found { words, sp, flags, data: [ds, es, fs, gs] }
}

unsafe extern "C" {
    fn __test_failsafe();
}

/// Address of the callback.
pub fn address() -> GuestVirt {
    GuestVirt(__test_failsafe as *const () as usize as u64)
}

/// Installs it beside the SDK's event callback, both in the flat code segment.
pub fn install_failsafe() {
    install(Arch::FLAT_GUESTOS_CS, Arch::FLAT_GUESTOS_CS);
}

/// Installs the callbacks in these code segments.
pub fn install(event_cs: Selector, failsafe_cs: Selector) {
    // SAFETY: both are entry points made for it.
    unsafe { hypercall::set_callbacks((event_cs, arch::event_callback()), (failsafe_cs, address())) }
        .expect("selectors of our ring");
}

#[cfg(target_arch = "x86")]
global_asm!(
    r#"
    /* From low to high: ds, es, fs, gs, eip, cs, eflags. Only ss can be relied on. */
    .text
    .globl __test_failsafe
    __test_failsafe:
        pushad
        xor     ecx, ecx
    2:  mov     eax, dword ptr [esp + ecx * 4 + 32]
        mov     dword ptr ss:[{words} + ecx * 4], eax
        inc     ecx
        cmp     ecx, {noted}
        jb      2b
        lea     eax, [esp + 32]
        mov     dword ptr ss:[{state}], eax
        pushfd
        pop     eax
        mov     dword ptr ss:[{state} + 4], eax
        mov     eax, ds
        mov     dword ptr ss:[{state} + 8], eax
        mov     eax, es
        mov     dword ptr ss:[{state} + 12], eax
        mov     eax, fs
        mov     dword ptr ss:[{state} + 16], eax
        mov     eax, gs
        mov     dword ptr ss:[{state} + 20], eax
        inc     dword ptr ss:[{count}]
        mov     dword ptr [esp + 32 + 5 * 4], {cs}
        mov     eax, dword ptr ss:[{resume}]
        test    eax, eax
        jz      3f
        mov     dword ptr [esp + 32 + 4 * 4], eax
    3:  mov     eax, {ds}
        mov     ds, eax
        mov     es, eax
        popad
        add     esp, 16
        iretd
    "#,
    words = sym WORDS,
    state = sym STATE,
    count = sym COUNT,
    resume = sym RESUME,
    noted = const NOTED,
    cs = const Arch::FLAT_GUESTOS_CS.raw(),
    ds = const Arch::FLAT_GUESTOS_DS.raw(),
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    r#"
    /* From low to high: rcx, r11, ds, es, fs, gs, rip, cs, rflags, rsp, ss. */
    .text
    .globl __test_failsafe
    __test_failsafe:
        push    rcx
        push    rax
        xor     ecx, ecx
    2:  mov     rax, qword ptr [rsp + rcx * 8 + 16]
        mov     qword ptr [{words} + rcx * 8], rax
        inc     ecx
        cmp     ecx, {noted}
        jb      2b
        lea     rax, [rsp + 16]
        mov     qword ptr [{state}], rax
        pushfq
        pop     rax
        mov     qword ptr [{state} + 8], rax
        mov     eax, ds
        mov     qword ptr [{state} + 16], rax
        mov     eax, es
        mov     qword ptr [{state} + 24], rax
        mov     eax, fs
        mov     qword ptr [{state} + 32], rax
        mov     eax, gs
        mov     qword ptr [{state} + 40], rax
        inc     qword ptr [{count}]
        mov     qword ptr [rsp + 16 + 7 * 8], {cs}
        mov     rax, qword ptr [{resume}]
        test    rax, rax
        jz      3f
        mov     qword ptr [rsp + 16 + 6 * 8], rax
    3:  pop     rax
        pop     rcx
        pop     rcx
        pop     r11
        add     rsp, 32
        iretq
    "#,
    words = sym WORDS,
    state = sym STATE,
    count = sym COUNT,
    resume = sym RESUME,
    noted = const NOTED,
    cs = const Arch::FLAT_GUESTOS_CS.raw(),
);
