//! The first instructions: keep what the registers held, take a stack of our own, go on in Rust.
//!
//! The boot stack is one page; the SDK's has [`STACK_SIZE`] bytes and lies in the image.

use crate::racy::Racy;
use core::arch::global_asm;

/// Bytes of the kernel's stack.
const STACK_SIZE: usize = 64 << 10;

#[repr(C, align(4096))]
struct Stack([u8; STACK_SIZE]);

static STACK: Racy<Stack> = Racy::new(Stack([0; STACK_SIZE]));

/// What the registers held when the guest's first instruction ran.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct BootRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rflags: u64,
    pub cs: u64,
    pub ss: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

static BOOT: Racy<BootRegisters> = Racy::new(BootRegisters {
    rax: 0,
    rbx: 0,
    rcx: 0,
    rdx: 0,
    rsi: 0,
    rdi: 0,
    rbp: 0,
    rsp: 0,
    r8: 0,
    r9: 0,
    r10: 0,
    r11: 0,
    r12: 0,
    r13: 0,
    r14: 0,
    r15: 0,
    rflags: 0,
    cs: 0,
    ss: 0,
    ds: 0,
    es: 0,
    fs: 0,
    gs: 0,
});

/// What the registers held when the guest's first instruction ran.
pub fn boot_registers() -> BootRegisters {
    // SAFETY: written once, by the first instructions, before any Rust code ran.
    unsafe { *BOOT.get() }
}

global_asm!(
    r#"
    .section .text.entry, "ax", @progbits
    .globl _start
    _start:
        mov     qword ptr [{boot} + 0], rax
        mov     qword ptr [{boot} + 8], rbx
        mov     qword ptr [{boot} + 16], rcx
        mov     qword ptr [{boot} + 24], rdx
        mov     qword ptr [{boot} + 32], rsi
        mov     qword ptr [{boot} + 40], rdi
        mov     qword ptr [{boot} + 48], rbp
        mov     qword ptr [{boot} + 56], rsp
        mov     qword ptr [{boot} + 64], r8
        mov     qword ptr [{boot} + 72], r9
        mov     qword ptr [{boot} + 80], r10
        mov     qword ptr [{boot} + 88], r11
        mov     qword ptr [{boot} + 96], r12
        mov     qword ptr [{boot} + 104], r13
        mov     qword ptr [{boot} + 112], r14
        mov     qword ptr [{boot} + 120], r15
        pushfq
        pop     qword ptr [{boot} + 128]
        xor     eax, eax
        mov     ax, cs
        mov     qword ptr [{boot} + 136], rax
        mov     ax, ss
        mov     qword ptr [{boot} + 144], rax
        mov     ax, ds
        mov     qword ptr [{boot} + 152], rax
        mov     ax, es
        mov     qword ptr [{boot} + 160], rax
        mov     ax, fs
        mov     qword ptr [{boot} + 168], rax
        mov     ax, gs
        mov     qword ptr [{boot} + 176], rax
        lea     rsp, [{stack} + {stack_size}]
        cld
        xor     ebp, ebp
        mov     rdi, rsi
        call    {start}
        ud2
    .text
    "#,
    boot = sym BOOT,
    stack = sym STACK,
    stack_size = const STACK_SIZE,
    start = sym crate::boot::start,
);
