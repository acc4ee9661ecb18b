//! The FPU, which belongs to the guest: the hypervisor is built without it and never touches a register of it, but to
//! give it to another guest.
//!
//! CR0.TS is set whenever what is in the registers is not the running guest's. Its first use of the FPU then traps,
//! which is when its state is loaded, or made; from then on the registers are its own, and TS is set again only because
//! it asks for that (`fpu_taskswitch`), or is switched from. A domain that has not used the FPU in its turn costs
//! nothing.
//!
//! On CPUs that let registers be read by speculation in spite of TS (LazyFP) they are loaded with the CPU instead
//! ([`enter`]).
//!
//! FXSAVE's state is all there is: CR4.OSXSAVE is off, so no guest can make or read any other (AVX is #UD), and XCR0
//! stays as reset left it.

use crate::cpu::speculation;
use alloc::boxed::Box;
use core::arch::asm;
use proxenos_core::others::FpuImage;
use proxenos_core::speculation::{ErrorPointers, FpuSwitch};
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

/// A guest's registers, while it does not run.
#[derive(Clone, Debug)]
pub struct State(Box<FxImage>);

impl State {
    /// Of one that has none yet.
    pub fn new() -> Self {
        Self(Box::new(CLEAN))
    }

    /// As FXSAVE stored them.
    pub fn image(&self) -> &FpuImage {
        &self.0.0
    }

    /// As FXRSTOR is to find them: what is written must be what it takes.
    pub fn image_mut(&mut self) -> &mut FpuImage {
        &mut self.0.0
    }
}

/// The guest no longer runs: its registers, if they are in this CPU, are kept, and the next use traps.
pub fn save(fpu: &mut Fpu, state: &mut State) {
    if !fpu.loaded {
        return;
    }
    fpu.loaded = false;
    // SAFETY: TS is clear and CR4.OSFXSR set; the image is ours, aligned, and as long as FXSAVE writes.
    unsafe { asm!("clts", "fxsave64 [{}]", in(reg) &raw mut *state.0, options(nostack, preserves_flags)) }
    trap_next_use();
}

/// The guest gets the CPU, in which another's registers may be.
pub fn enter(fpu: &mut Fpu, state: &State) {
    if speculation::policy().fpu == FpuSwitch::Eager {
        load(fpu, state);
        // If it wants to be told of the next use, TS is needed for that.
        if fpu.guest_trap {
            trap_next_use();
        }
    }
}

/// Loads a guest's registers, or a clean state if it has none yet. TS is clear when this returns.
fn load(fpu: &mut Fpu, state: &State) {
    let image = if core::mem::replace(&mut fpu.initialised, true) { &*state.0 } else { &CLEAN };
    fpu.loaded = true;
    // SAFETY: clears TS, and CR4.OSFXSR is set. An error that is pending is another guest's, and is dropped; what is
    // loaded for that is a constant, and replaced at once. The image is aligned, and what FXSAVE wrote or a valid
    // constant.
    unsafe {
        asm!("clts", options(nomem, nostack, preserves_flags));
        if speculation::policy().error_pointers == ErrorPointers::Overwrite {
            asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) &raw const CLEAN_WORD, options(nostack, preserves_flags));
        }
        asm!("fxrstor64 [{}]", in(reg) &raw const *image, options(nostack, preserves_flags));
    }
}

/// What is loaded so that an address of this is what is left, and not one of a guest's.
static CLEAN_WORD: u32 = 0;

/// Makes the next use of the FPU trap.
pub fn trap_next_use() {
    // SAFETY: TS affects FPU instructions only, and the hypervisor has none outside this module.
    // (The library's own way reads the register twice.)
    unsafe { Cr0::write_raw(Cr0::read_raw() | Cr0Flags::TASK_SWITCHED.bits()) }
}

/// The guest used the FPU while TS was set. TS is clear when this returns.
pub fn device_not_available(fpu: &mut Fpu, state: &State) -> DeviceNotAvailable {
    if fpu.loaded {
        // SAFETY: clears TS, nothing else.
        unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) }
    } else {
        load(fpu, state);
    }
    match core::mem::take(&mut fpu.guest_trap) {
        true => DeviceNotAvailable::ForGuest,
        false => DeviceNotAvailable::Resolved,
    }
}

/// Whether a #NM is one that the guest has asked for, and nothing else is due because of it: then [`note_told`] is all
/// that [`device_not_available`] comes to.
#[inline(always)]
pub fn is_asked_for(fpu: &Fpu) -> bool {
    fpu.loaded && fpu.guest_trap
}

/// The guest is told of such a #NM.
#[inline(always)]
pub fn note_told(fpu: &mut Fpu) {
    // SAFETY: clears TS, nothing else; what is in the registers is the guest's.
    unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) }
    fpu.guest_trap = false;
}

/// An image for FXRSTOR (Intel SDM vol. 1 §10.5): every register zero, control words as FNINIT and a reset leave them.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
struct FxImage(FpuImage);

const CLEAN: FxImage = {
    let mut image = [0; 512];
    // FCW: all exceptions masked, 64-bit precision.
    image[0] = 0x7f;
    image[1] = 0x03;
    // MXCSR 0x1f80: all exceptions masked, round to nearest.
    image[24] = 0x80;
    image[25] = 0x1f;
    FxImage(image)
};
