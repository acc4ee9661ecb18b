//! `syscall`: number in rax, arguments in rdi, rsi, rdx, r10, r8, result in rax. rcx and r11 are lost, the rest is
//! preserved.

use core::arch::asm;

/// Calls the hypervisor with no argument.
///
/// # Safety
/// As the interface describes the call: arguments that point to memory point to memory the call may read or write, and
/// changes to mappings leave every Rust reference valid.
#[inline(always)]
pub unsafe fn hypercall0(number: usize) -> usize {
    let result;
    // SAFETY: the call preserves every register but those named; the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Calls the hypervisor with one argument.
///
/// # Safety
/// See [`hypercall0`].
#[inline(always)]
pub unsafe fn hypercall1(number: usize, a: usize) -> usize {
    let result;
    // SAFETY: as in `hypercall0`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Calls the hypervisor with two arguments.
///
/// # Safety
/// See [`hypercall0`].
#[inline(always)]
pub unsafe fn hypercall2(number: usize, a: usize, b: usize) -> usize {
    let result;
    // SAFETY: as in `hypercall0`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Calls the hypervisor with three arguments.
///
/// # Safety
/// See [`hypercall0`].
#[inline(always)]
pub unsafe fn hypercall3(number: usize, a: usize, b: usize, c: usize) -> usize {
    let result;
    // SAFETY: as in `hypercall0`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Calls the hypervisor with four arguments.
///
/// # Safety
/// See [`hypercall0`].
#[inline(always)]
pub unsafe fn hypercall4(number: usize, a: usize, b: usize, c: usize, d: usize) -> usize {
    let result;
    // SAFETY: as in `hypercall0`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Calls the hypervisor with five arguments.
///
/// # Safety
/// See [`hypercall0`].
#[inline(always)]
pub unsafe fn hypercall5(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> usize {
    let result;
    // SAFETY: as in `hypercall0`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
