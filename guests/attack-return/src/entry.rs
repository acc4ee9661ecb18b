//! A trap entry that does not trust its stack beyond the frame: it notes what it finds and goes on where [`TrapPoint`]
//! says, with the stack from before.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::{GuestArch, Selector};
use proxenos_guest::arch::Word;
use proxenos_guest::{Arch, hypercall, traps};

/// Words that are noted: as many as the frame of an exception without error code has.
pub const WORDS: usize = if cfg!(target_arch = "x86") { 3 } else { 7 };
/// Index of the instruction pointer among them.
const IP: usize = if cfg!(target_arch = "x86") { 0 } else { 2 };

static FRAME: [AtomicUsize; WORDS] = [const { AtomicUsize::new(0) }; WORDS];
/// Stack pointer at entry, flags at entry, ss at entry.
static STATE: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
/// Stack pointer to go on with, and where.
pub static RESUME: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// What the entry found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Words of the frame, from the lowest.
    pub frame: [usize; WORDS],
    /// The stack pointer.
    pub sp: usize,
    /// The flags.
    pub flags: usize,
    /// The stack's selector.
    pub ss: usize,
}

impl Found {
    /// The interrupted instruction pointer.
    pub fn ip(&self) -> usize {
        self.frame[IP]
    }

    /// The interrupted code selector.
    pub fn cs(&self) -> usize {
        self.frame[IP + 1] & 0xffff
    }
}

/// What it found the last time.
pub fn found() -> Found {
    let frame = FRAME.each_ref().map(|word| word.load(Ordering::Relaxed));
    let [sp, flags, ss] = STATE.each_ref().map(|word| word.load(Ordering::Relaxed));
    Found { frame, sp, flags, ss: ss & 0xffff }
}

unsafe extern "C" {
    fn __attack_entry();
}

/// Address of the entry.
pub fn address() -> usize {
    __attack_entry as *const () as usize
}

/// Makes it the handler of a vector.
pub fn catch(vector: u8) {
    set(vector, Arch::FLAT_GUESTOS_CS, address());
}

/// Makes the SDK's entry the handler again.
pub fn release(vector: u8) {
    set(vector, Arch::FLAT_GUESTOS_CS, proxenos_guest::arch::trap_stub(vector).raw() as usize);
}

/// Sets a vector's handler.
pub fn set(vector: u8, cs: Selector, at: usize) {
    let flags = TrapFlags::from_dpl(if matches!(vector, 3 | 4) { 3 } else { 0 });
    // SAFETY: what it is good for is the test.
    unsafe { hypercall::set_trap_table(&[TrapInfo::new(vector, flags, cs, at as Word), traps::end_of_table()]) }
        .expect("a selector of our ring");
}

#[cfg(target_arch = "x86")]
global_asm!(
    r#"
    /* The stack may be in any segment; ours are reached by ds. */
    .text
    .globl __attack_entry
    __attack_entry:
        mov     eax, {ds}
        mov     ds, eax
        mov     es, eax
        mov     dword ptr [{state}], esp
        mov     eax, ss
        mov     dword ptr [{state} + 8], eax
        mov     eax, dword ptr ss:[esp]
        mov     dword ptr [{frame}], eax
        mov     eax, dword ptr ss:[esp + 4]
        mov     dword ptr [{frame} + 4], eax
        mov     eax, dword ptr ss:[esp + 8]
        mov     dword ptr [{frame} + 8], eax
        mov     eax, {ds}
        mov     ss, eax
        mov     esp, dword ptr [{resume}]
        pushfd
        pop     dword ptr [{state} + 4]
        cld
        jmp     dword ptr [{resume} + 4]
    "#,
    ds = const Arch::FLAT_GUESTOS_DS.raw(),
    state = sym STATE,
    frame = sym FRAME,
    resume = sym RESUME,
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    r#"
    .text
    .globl __attack_entry
    __attack_entry:
        mov     qword ptr [{state}], rsp
        mov     eax, ss
        mov     qword ptr [{state} + 16], rax
        xor     ecx, ecx
    2:  mov     rax, qword ptr [rsp + rcx * 8]
        mov     qword ptr [{frame} + rcx * 8], rax
        inc     ecx
        cmp     ecx, {words}
        jb      2b
        mov     rsp, qword ptr [{resume}]
        pushfq
        pop     qword ptr [{state} + 8]
        cld
        jmp     qword ptr [{resume} + 8]
    "#,
    words = const WORDS,
    state = sym STATE,
    frame = sym FRAME,
    resume = sym RESUME,
);
