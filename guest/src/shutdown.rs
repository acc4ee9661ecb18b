//! The end of the domain, and the reasons it can give.
//!
//! For domain 0, the reason is the exit status of `cargo xtask run`. The interface names 0 (power off), 1 (reboot) and
//! 2 (suspend); the numbers above are ours and stay below 0x7f.

use crate::hypercall;
use core::sync::atomic::{AtomicU16, Ordering};
use proxenos_abi::hypercall::ShutdownReason;

/// A reason for a shutdown: one byte, opaque to the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reason(pub u8);

/// All is well: the guest has finished.
pub const POWEROFF: Reason = Reason(ShutdownReason::Poweroff.raw());
/// Start the domain again.
pub const REBOOT: Reason = Reason(ShutdownReason::Reboot.raw());
/// The guest panicked.
pub const CRASH: Reason = Reason(3);
/// A test guest found a promise broken.
pub const TEST_FAILURE: Reason = Reason(16);
/// A test guest could not carry its test out.
pub const TEST_ERROR: Reason = Reason(17);

/// What the controller has asked for, plus 1; 0 for nothing.
static ASKED: AtomicU16 = AtomicU16::new(0);

/// Notes that the controller asks for an end: the message's subtype is the reason's number.
pub(crate) fn ask(how: u8) {
    ASKED.store(u16::from(how) + 1, Ordering::Relaxed);
}

/// The end that the controller has asked for last (`CMSG_SHUTDOWN`), as far as the console has been
/// [read](crate::console::read).
pub fn asked() -> Option<Reason> {
    ASKED.load(Ordering::Relaxed).checked_sub(1).map(|how| Reason(how as u8))
}

/// Ends the domain.
pub fn shutdown(reason: Reason) -> ! {
    loop {
        // A hypervisor that comes back from this has nothing better to offer than another try.
        let _ = hypercall::shutdown(reason);
    }
}
