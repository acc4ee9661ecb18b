//! An application of an x86_64 kernel: a page of code that reads the time-stamp counter itself, on both sides of one
//! operation, and breaks with the difference in rsi. `guests/bench-xen` is compiled with this very file: its
//! application is the same.

use core::arch::global_asm;

/// Instructions that are counted besides the operation: a move, and the second look at the counter.
pub const OVERHEAD: u64 = 2;

unsafe extern "C" {
    /// The page.
    pub fn application_page();
    /// Its entries, each for one operation.
    pub fn application_syscall();
    pub fn application_int80();
    pub fn application_fault();
}

global_asm!(
    r#"
    .text
    .globl application_page, application_syscall, application_int80, application_fault
    .balign 4096
    application_page:
    application_syscall:
        rdtsc
        mov     ebx, eax
        syscall
        rdtsc
        sub     eax, ebx
        mov     esi, eax
        int3
    application_int80:
        rdtsc
        mov     ebx, eax
        int     0x80
        rdtsc
        sub     eax, ebx
        mov     esi, eax
        int3
    application_fault:
        rdtsc
        mov     ebx, eax
        .byte   0xc6, 0x01, 0x00            /* mov byte ptr [rcx], 0 */
        rdtsc
        sub     eax, ebx
        mov     esi, eax
        int3
    .balign 4096
    "#
);
