//! Exceptions and software interrupts: the right vector, error code, address and frame, for each.
#![no_std]
#![no_main]

mod exceptions;
mod privileged;
mod software;

use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::GuestVirt;
use proxenos_guest::traps::{self, Outcome, Trap};
use proxenos_guest::{StartInfo, TrapFrame, check_eq};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    exceptions::run();
    privileged::run();
    software::run();
}

/// What a handler saw that [`traps::last_trap`] does not keep.
static SEEN: [AtomicUsize; 5] = [const { AtomicUsize::new(0) }; 5];

/// A frame as [`note`] saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Code selector.
    pub cs: u16,
    /// Flags in the frame.
    pub flags: usize,
    /// The interrupted stack pointer.
    pub sp: GuestVirt,
    /// Flags while the handler ran.
    pub handler_flags: usize,
    /// `evtchn_upcall_mask` while the handler ran.
    pub upcall_mask: u8,
}

/// The frame of the last trap that [`note`] handled.
pub fn seen() -> Seen {
    let [cs, flags, sp, handler_flags, mask] = [0, 1, 2, 3, 4].map(|index: usize| SEEN[index].load(Ordering::Relaxed));
    Seen { cs: cs as u16, flags, sp: GuestVirt(sp as u64), handler_flags, upcall_mask: mask as u8 }
}

/// A handler that notes the frame and lets the interrupted code go on behind the trap.
pub fn note(frame: &mut TrapFrame) -> Outcome {
    let mask = proxenos_guest::shared_info::upcall_mask().load(Ordering::Relaxed);
    let values = [frame.cs().into(), frame.flags(), frame.sp().raw() as usize, current_flags(), mask.into()];
    for (slot, value) in SEEN.iter().zip(values) {
        slot.store(value, Ordering::Relaxed);
    }
    Outcome::Handled
}

/// The flags register now.
fn current_flags() -> usize {
    let flags: usize;
    // SAFETY: pushes and pops one word.
    #[cfg(target_arch = "x86")]
    unsafe {
        core::arch::asm!("pushfd", "pop {}", out(reg) flags)
    };
    // SAFETY: pushes and pops one word.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("pushfq", "pop {}", out(reg) flags)
    };
    flags
}

/// Checks that an instruction trapped once, with this vector and error code.
#[track_caller]
pub fn expect(what: &str, before: usize, vector: u8, error_code: u32) -> Trap {
    let trap = traps::last_trap();
    check_eq!(traps::count().wrapping_sub(before), 1, "{what}: traps");
    check_eq!((trap.vector, trap.error_code), (vector, error_code), "{what}: vector and error code");
    trap
}
