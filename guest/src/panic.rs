//! A panic prints its message and ends the domain.

use crate::shutdown::{self, CRASH};
use crate::{println, test};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if PANICKING.swap(true, Ordering::Relaxed) {
        // The console itself panics, or what the message shows: say nothing more.
        shutdown::shutdown(CRASH);
    }
    println!("\n{info}");
    test::panicked();
    shutdown::shutdown(CRASH)
}
