//! Where every trap leads: the stack is taken anew, debug registers are disarmed, and the next operation begins.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::GuestVirt;
use proxenos_guest::println;
use proxenos_guest::shutdown::{self, Reason};

const STACK_SIZE: usize = 32 << 10;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: only the stack pointer refers to them.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));
/// For entries from ring 3.
static KERNEL_STACK: Stack = Stack(UnsafeCell::new([0; STACK_SIZE]));

/// Traps since the last operation began: a guest that broke its own next step must not trap for ever.
static TRAPS: AtomicUsize = AtomicUsize::new(0);
const PATIENCE: usize = 1000;

unsafe extern "C" {
    fn __blind_entry();
    fn __blind_begin() -> !;
}

/// The entry for every vector and callback: it looks at no frame.
pub fn entry() -> usize {
    __blind_entry as *const () as usize
}

/// The stack pointer for entries from ring 3.
pub fn kernel_stack() -> GuestVirt {
    GuestVirt((KERNEL_STACK.0.get() as usize + STACK_SIZE) as u64)
}

/// Begins the operations. The stack so far is forgotten.
pub fn begin() -> ! {
    // SAFETY: nothing on this stack is needed again.
    unsafe { __blind_begin() }
}

/// An operation has begun, so the guest gets on.
pub fn alive() {
    TRAPS.store(0, Ordering::Relaxed);
}

extern "C" fn stuck() -> ! {
    println!("blind: traps without end");
    shutdown::shutdown(Reason(126))
}

#[cfg(target_arch = "x86")]
global_asm!(
    r#"
    .text
    .globl __blind_entry
    __blind_entry:
        mov     eax, {ds}
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, offset {stack} + {size}
        push    2
        popfd
        /* set_debugreg(7, 0) */
        mov     eax, 8
        mov     ebx, 7
        xor     ecx, ecx
        int     0x82
        inc     dword ptr [{traps}]
        cmp     dword ptr [{traps}], {patience}
        jbe     __blind_begin
        call    {stuck}
    .globl __blind_begin
    __blind_begin:
        mov     esp, offset {stack} + {size}
        push    2
        popfd
        call    {step}
        jmp     __blind_begin
    "#,
    ds = const <proxenos_guest::Arch as proxenos_guest::abi::GuestArch>::FLAT_GUESTOS_DS.raw(),
    stack = sym STACK,
    size = const STACK_SIZE,
    traps = sym TRAPS,
    patience = const PATIENCE,
    stuck = sym stuck,
    step = sym crate::step,
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    r#"
    .text
    .globl __blind_entry
    __blind_entry:
        lea     rsp, [{stack} + {size}]
        push    2
        popfq
        /* set_debugreg(7, 0) */
        mov     eax, 8
        mov     edi, 7
        xor     esi, esi
        syscall
        inc     qword ptr [{traps}]
        cmp     qword ptr [{traps}], {patience}
        jbe     __blind_begin
        call    {stuck}
    .globl __blind_begin
    __blind_begin:
        lea     rsp, [{stack} + {size}]
        push    2
        popfq
        call    {step}
        jmp     __blind_begin
    "#,
    stack = sym STACK,
    size = const STACK_SIZE,
    traps = sym TRAPS,
    patience = const PATIENCE,
    stuck = sym stuck,
    step = sym crate::step,
);
