//! `int 0x82`: number in eax, arguments in ebx, ecx, edx, esi, edi, result in eax. Every other register is preserved.
//!
//! The compiler keeps esi for itself (inline assembly may not name it), so the fourth argument is exchanged into it.

use core::arch::asm;

/// Calls the hypervisor with no argument.
///
/// # Safety
/// As the interface describes the call: arguments that point to memory point to memory the call may read or write, and
/// changes to mappings leave every Rust reference valid.
#[inline(always)]
pub unsafe fn hypercall0(number: usize) -> usize {
    let result;
    // SAFETY: the call preserves every register but eax; the rest is the caller's promise.
    unsafe { asm!("int 0x82", inlateout("eax") number => result) };
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
    unsafe { asm!("int 0x82", inlateout("eax") number => result, in("ebx") a) };
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
    unsafe { asm!("int 0x82", inlateout("eax") number => result, in("ebx") a, in("ecx") b) };
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
    unsafe { asm!("int 0x82", inlateout("eax") number => result, in("ebx") a, in("ecx") b, in("edx") c) };
    result
}

/// Calls the hypervisor with four arguments.
///
/// # Safety
/// See [`hypercall0`].
#[inline(always)]
pub unsafe fn hypercall4(number: usize, a: usize, b: usize, c: usize, d: usize) -> usize {
    let result;
    // SAFETY: as in `hypercall0`; the exchanges leave esi as the compiler had it.
    unsafe {
        asm!(
            "xchg esi, edi",
            "int 0x82",
            "xchg esi, edi",
            inlateout("eax") number => result,
            in("ebx") a,
            in("ecx") b,
            in("edx") c,
            in("edi") d,
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
    // Every register that assembly may name is taken, so number and fourth argument come through memory.
    let rest = [number, d];
    let result;
    // SAFETY: as in `hypercall0`; esi is restored from the stack.
    unsafe {
        asm!(
            "push esi",
            "mov esi, dword ptr [eax + 4]",
            "mov eax, dword ptr [eax]",
            "int 0x82",
            "pop esi",
            inlateout("eax") rest.as_ptr() => result,
            in("ebx") a,
            in("ecx") b,
            in("edx") c,
            in("edi") e,
        );
    }
    result
}
