//! The FPU, which belongs to the guest: the hypervisor is built without it and never touches a register of it, but to
//! give a new guest a clean one.
//!
//! CR0.TS is set when a guest starts. Its first use of the FPU traps, which is when the registers are initialised; from
//! then on they are its own, and TS is set again only because it asks for that (`fpu_taskswitch`).

use core::arch::asm;
use proxenos_core::vcpu::Fpu;
use x86_64::registers::control::{Cr0, Cr0Flags};

/// What becomes of a #NM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceNotAvailable {
    /// The hypervisor's own doing: the guest tries again and notices nothing.
    Resolved,
    /// The guest asked for it.
    ForGuest,
}

/// Makes the next use of the FPU trap.
pub fn trap_next_use() {
    // SAFETY: TS affects FPU instructions only, and the hypervisor has none outside this module.
    unsafe { Cr0::write(Cr0::read() | Cr0Flags::TASK_SWITCHED) }
}

/// The guest used the FPU while TS was set. TS is clear when this returns.
pub fn device_not_available(fpu: &mut Fpu) -> DeviceNotAvailable {
    // SAFETY: clears TS, nothing else.
    unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) }
    if !core::mem::replace(&mut fpu.initialised, true) {
        initialise();
    }
    match core::mem::take(&mut fpu.guest_trap) {
        true => DeviceNotAvailable::ForGuest,
        false => DeviceNotAvailable::Resolved,
    }
}

/// An image for FXRSTOR (Intel SDM vol. 1 §10.5): every register zero, control words as FNINIT and a reset leave them.
#[repr(C, align(16))]
struct FxImage([u8; 512]);

static CLEAN: FxImage = {
    let mut image = [0; 512];
    // FCW: all exceptions masked, 64-bit precision.
    image[0] = 0x7f;
    image[1] = 0x03;
    // MXCSR 0x1f80: all exceptions masked, round to nearest.
    image[24] = 0x80;
    image[25] = 0x1f;
    FxImage(image)
};

/// Loads the state that a new guest begins with, over whatever firmware or another guest left.
fn initialise() {
    // SAFETY: TS is clear and CR4.OSFXSR set; the image is valid, aligned and constant.
    unsafe { asm!("fxrstor [{}]", in(reg) &raw const CLEAN, options(nostack, preserves_flags)) }
}
