//! Words to the outside, and the end.

use crate::hypercall;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

/// Bytes that are handed over at once: a line of ours, so that Xen's own do not come in between.
const CHUNK: usize = 256;

struct Buffer {
    bytes: [u8; CHUNK],
    used: usize,
}

impl Buffer {
    fn flush(&mut self) {
        hypercall::console_write(&self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == CHUNK {
                self.flush();
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Prints.
pub fn print(text: fmt::Arguments<'_>) {
    let mut buffer = Buffer { bytes: [0; CHUNK], used: 0 };
    // The buffer takes all.
    let _ = buffer.write_fmt(text);
    buffer.flush();
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// The end: Xen writes out what the console still holds, and resets the machine.
pub fn shut_down() -> ! {
    loop {
        hypercall::reboot();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    shut_down()
}
