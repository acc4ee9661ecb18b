//! Instructions that trap, each by itself. `guests/bench-xen` is compiled with this very file: both raise the same.

use core::arch::asm;

/// Bytes of the store that faults.
pub const STORE_BYTES: u64 = 3;
/// Bytes of `ud2`.
pub const UD2_BYTES: u64 = 2;

/// A store that faults, and is skipped.
#[inline(always)]
pub fn store(to: u64) -> bool {
    // SAFETY: `mov byte ptr [ecx], 0` (rcx in 64-bit code), of STORE_BYTES bytes, to a page of ours that cannot be
    // written: the handler skips it.
    unsafe { asm!(".byte 0xc6, 0x01, 0x00", in("ecx") to as usize) };
    true
}

/// A breakpoint.
#[inline(always)]
pub fn int3((): ()) -> bool {
    // SAFETY: the handler returns at once and changes no register.
    unsafe { asm!("int3") };
    true
}

/// A system call of old, from the kernel itself.
#[inline(always)]
pub fn int80((): ()) -> bool {
    // SAFETY: as above.
    unsafe { asm!("int 0x80") };
    true
}

/// A privileged instruction of one byte, which is skipped.
#[inline(always)]
pub fn hlt((): ()) -> bool {
    // SAFETY: the handler skips it.
    unsafe { asm!("hlt") };
    true
}

/// A use of the FPU that changes nothing of it.
#[inline(always)]
pub fn fnop((): ()) -> bool {
    // SAFETY: the handler returns at once, to the same instruction.
    unsafe { asm!("fnop") };
    true
}

/// An invalid opcode, which is skipped.
#[inline(always)]
pub fn ud2((): ()) -> bool {
    // SAFETY: the handler skips it.
    unsafe { asm!("ud2") };
    true
}
