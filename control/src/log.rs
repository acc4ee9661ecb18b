//! What the control domain has to say of itself: on the emergency console, and kept for `proxenos dmesg --control`.

use alloc::string::String;
use core::fmt::{self, Write};
use proxenos_guest::println;

/// Bytes kept until they are asked for.
const MOST: usize = 16 << 10;

static KEPT: spin::Mutex<String> = spin::Mutex::new(String::new());

/// Says a line.
pub fn line(text: fmt::Arguments<'_>) {
    println!("{text}");
    let mut kept = KEPT.lock();
    if kept.len() < MOST {
        // A string takes everything.
        let _ = writeln!(kept, "{text}");
    }
}

/// What was said since this was last asked.
pub fn take() -> String {
    core::mem::take(&mut KEPT.lock())
}
