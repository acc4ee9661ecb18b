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
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    pub ebp: u32,
    pub esp: u32,
    pub eflags: u32,
    pub cs: u32,
    pub ss: u32,
    pub ds: u32,
    pub es: u32,
    pub fs: u32,
    pub gs: u32,
}

static BOOT: Racy<BootRegisters> = Racy::new(BootRegisters {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
    esi: 0,
    edi: 0,
    ebp: 0,
    esp: 0,
    eflags: 0,
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
        mov     dword ptr [{boot} + 0], eax
        mov     dword ptr [{boot} + 4], ebx
        mov     dword ptr [{boot} + 8], ecx
        mov     dword ptr [{boot} + 12], edx
        mov     dword ptr [{boot} + 16], esi
        mov     dword ptr [{boot} + 20], edi
        mov     dword ptr [{boot} + 24], ebp
        mov     dword ptr [{boot} + 28], esp
        pushfd
        pop     dword ptr [{boot} + 32]
        xor     eax, eax
        mov     ax, cs
        mov     dword ptr [{boot} + 36], eax
        mov     ax, ss
        mov     dword ptr [{boot} + 40], eax
        mov     ax, ds
        mov     dword ptr [{boot} + 44], eax
        mov     ax, es
        mov     dword ptr [{boot} + 48], eax
        mov     ax, fs
        mov     dword ptr [{boot} + 52], eax
        mov     ax, gs
        mov     dword ptr [{boot} + 56], eax
        mov     esp, offset {stack} + {stack_size}
        cld
        xor     ebp, ebp
        /* The stack is aligned to 16 at the call, as the C ABI asks. */
        sub     esp, 12
        push    esi
        call    {start}
        ud2
    .text
    "#,
    boot = sym BOOT,
    stack = sym STACK,
    stack_size = const STACK_SIZE,
    start = sym crate::boot::start,
);
