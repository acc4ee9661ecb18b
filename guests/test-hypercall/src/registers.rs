//! Which registers a call leaves alone: on x86_32 all but eax, on x86_64 all but rax, rcx and r11.

use core::arch::global_asm;
use proxenos_guest::test::section;
use proxenos_guest::{Word, check_eq};

/// A call that succeeds, one that does not exist, and one whose pointer is bad.
const NUMBERS: [Word; 3] = [17, 63, 16];

/// Registers in the order of [`NAMES`], then the flags.
const COUNT: usize = NAMES.len() + 1;

#[cfg(target_arch = "x86")]
const NAMES: [&str; 7] = ["eax", "ebx", "ecx", "edx", "esi", "edi", "ebp"];
#[cfg(target_arch = "x86_64")]
const NAMES: [&str; 14] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r12", "r13", "r14", "r15"];

/// What a call changes.
#[cfg(target_arch = "x86")]
const LOST: [&str; 1] = ["eax"];
#[cfg(target_arch = "x86_64")]
const LOST: [&str; 2] = ["rax", "rcx"];

unsafe extern "C" {
    /// Loads the registers from `before`, calls, and stores them to `after`; the last of `before` takes the flags.
    fn __call_with_registers(before: *mut Word, after: *mut Word);
}

pub fn preserved() {
    section("registers across a call");
    for number in NUMBERS {
        let mut before: [Word; COUNT] = core::array::from_fn(|index| 0x5a5a_0000 + index as Word);
        let mut after: [Word; COUNT] = [0; COUNT];
        before[0] = number;
        // ebx (rdi) is an address nothing is mapped at, for the call that takes one.
        // SAFETY: the routine keeps the C ABI; the call changes nothing.
        unsafe { __call_with_registers(before.as_mut_ptr(), after.as_mut_ptr()) };
        for (index, name) in NAMES.into_iter().enumerate() {
            if !LOST.contains(&name) {
                check_eq!(after[index], before[index], "{name} across call {number}");
            }
        }
        check_eq!(after[COUNT - 1], before[COUNT - 1], "flags across call {number}");
    }
}

#[cfg(target_arch = "x86")]
global_asm!(
    r#"
    .text
    .globl __call_with_registers
    __call_with_registers:
        push    ebp
        push    ebx
        push    esi
        push    edi
        mov     ebp, dword ptr [esp + 20]
        std
        stc
        pushfd
        pop     dword ptr [ebp + 28]
        mov     eax, dword ptr [ebp]
        mov     ebx, dword ptr [ebp + 4]
        mov     ecx, dword ptr [ebp + 8]
        mov     edx, dword ptr [ebp + 12]
        mov     esi, dword ptr [ebp + 16]
        mov     edi, dword ptr [ebp + 20]
        mov     ebp, dword ptr [ebp + 24]
        int     0x82
        pushfd
        push    eax
        mov     eax, dword ptr [esp + 32]
        pop     dword ptr [eax]
        pop     dword ptr [eax + 28]
        cld
        mov     dword ptr [eax + 4], ebx
        mov     dword ptr [eax + 8], ecx
        mov     dword ptr [eax + 12], edx
        mov     dword ptr [eax + 16], esi
        mov     dword ptr [eax + 20], edi
        mov     dword ptr [eax + 24], ebp
        pop     edi
        pop     esi
        pop     ebx
        pop     ebp
        ret
    "#
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    r#"
    .text
    .globl __call_with_registers
    __call_with_registers:
        push    rbp
        push    rbx
        push    r12
        push    r13
        push    r14
        push    r15
        push    rsi
        mov     rax, rdi
        std
        stc
        pushfq
        pop     qword ptr [rax + 112]
        mov     rbx, qword ptr [rax + 8]
        mov     rcx, qword ptr [rax + 16]
        mov     rdx, qword ptr [rax + 24]
        mov     rsi, qword ptr [rax + 32]
        mov     rdi, qword ptr [rax + 40]
        mov     rbp, qword ptr [rax + 48]
        mov     r8, qword ptr [rax + 56]
        mov     r9, qword ptr [rax + 64]
        mov     r10, qword ptr [rax + 72]
        mov     r12, qword ptr [rax + 80]
        mov     r13, qword ptr [rax + 88]
        mov     r14, qword ptr [rax + 96]
        mov     r15, qword ptr [rax + 104]
        mov     rax, qword ptr [rax]
        syscall
        pushfq
        mov     r11, qword ptr [rsp + 8]
        pop     qword ptr [r11 + 112]
        cld
        mov     qword ptr [r11], rax
        mov     qword ptr [r11 + 8], rbx
        mov     qword ptr [r11 + 16], rcx
        mov     qword ptr [r11 + 24], rdx
        mov     qword ptr [r11 + 32], rsi
        mov     qword ptr [r11 + 40], rdi
        mov     qword ptr [r11 + 48], rbp
        mov     qword ptr [r11 + 56], r8
        mov     qword ptr [r11 + 64], r9
        mov     qword ptr [r11 + 72], r10
        mov     qword ptr [r11 + 80], r12
        mov     qword ptr [r11 + 88], r13
        mov     qword ptr [r11 + 96], r14
        mov     qword ptr [r11 + 104], r15
        pop     rsi
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbx
        pop     rbp
        ret
    "#
);
