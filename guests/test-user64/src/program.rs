//! What the applications execute: a page of code that refers to nothing by its address.

use core::arch::global_asm;
use proxenos_guest::abi::GuestVirt;

unsafe extern "C" {
    fn __program();
    /// Makes system calls for ever.
    pub fn calls();
    /// Loads from rdi into rax, then a system call.
    pub fn load();
    /// Stores rsi to rdi, then a system call.
    pub fn store();
    pub fn invalid();
    pub fn breakpoint();
    pub fn halt();
    pub fn disable();
    pub fn port();
    /// Loads the first words of fs and gs into rax and rbx, then a system call.
    pub fn segments();
    /// Waits until the word at rdi is not 0, then a system call.
    pub fn wait();
    /// Uses the FPU, then a system call; xmm0 is rdi's before and rax's after.
    pub fn set_fpu();
    pub fn get_fpu();
    /// Instructions to be stepped through, then a system call.
    pub fn steps();
    /// `syscall` of 32-bit code.
    pub fn compatible();
    /// `int n`, each with a system call behind it, four bytes a vector.
    pub fn interrupts();
    /// `int n; ret`, for the kernel itself, four bytes a vector.
    pub fn kernels_interrupts();
    /// `syscall` as the page's last instruction.
    pub fn last();
}

/// The page.
pub fn page() -> GuestVirt {
    GuestVirt(__program as *const () as u64)
}

global_asm!(
    r#"
    .text
    .balign 16
    .globl kernels_interrupts
    kernels_interrupts:
        .set .Lown_vector, 0
        .rept 256
        .byte   0xcd, .Lown_vector, 0xc3, 0x90
        .set .Lown_vector, .Lown_vector + 1
        .endr
    .balign 4096
    .globl __program, calls, load, store, invalid, breakpoint, halt, disable, port, segments, wait
    .globl set_fpu, get_fpu, steps, compatible, interrupts, last
    __program:
    calls:
        syscall
        jmp     calls
    load:
        mov     rax, [rdi]
        syscall
    store:
        mov     [rdi], rsi
        syscall
    invalid:
        ud2
        syscall
    breakpoint:
        int3
        syscall
    halt:
        hlt
        syscall
    disable:
        cli
        syscall
    port:
        in      al, 0x80
        syscall
    segments:
        mov     rax, fs:[0]
        mov     rbx, gs:[0]
        syscall
    wait:
        pause
        cmp     qword ptr [rdi], 0
        je      wait
        syscall
    set_fpu:
        movq    xmm0, rdi
        syscall
    get_fpu:
        movq    rax, xmm0
        syscall
    steps:
        nop
        nop
        syscall
    compatible:
        syscall
        nop
    .balign 16
    interrupts:
        .set .Lvector, 0
        .rept 256
        .byte   0xcd, .Lvector, 0x0f, 0x05
        .set .Lvector, .Lvector + 1
        .endr
    .org    __program + 4094, 0xcc
    last:
        syscall
    "#
);
