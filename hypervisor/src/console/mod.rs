//! The console: one stream of bytes, which goes to the serial port and is kept in a ring for later readers.
//!
//! Two kinds of writers share it. The hypervisor's own messages are whole lines that begin with `(px) `; domain 0's
//! output is passed on byte by byte ([`write`]), other domains' in lines of their own ([`domains`]). A message that
//! comes in the middle of a guest's line starts a new one.
//!
//! The lock [`CONSOLE`] guards ring and port together, so that both see the same order. Fatal reports get around it
//! ([`emergency`]).

pub mod domains;
mod input;
mod log;
mod ring;
mod serial;

use crate::options::{Com1, Options};
use core::ops::Range;
pub use input::Arrived;
use input::Input;
use proxenos_core::console_keys::Command;
use proxenos_core::sync::{Mutex, MutexGuard};
use ring::Ring;
pub use ring::{Position, Reading};
use serial::Serial;

struct Console {
    ring: Ring,
    input: Input,
    serial: Serial,
    column: Column,
}

/// Where the next byte will appear.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    /// At the start of a line.
    First,
    /// Behind something else.
    Later,
}

static CONSOLE: Mutex<Console> =
    Mutex::new(Console { ring: Ring::new(), input: Input::new(), serial: Serial::absent(), column: Column::First });

impl Console {
    fn write(&mut self, bytes: &[u8]) {
        self.ring.write(bytes);
        self.serial.write(bytes);
        match bytes.last() {
            Some(b'\n') => self.column = Column::First,
            Some(_) => self.column = Column::Later,
            None => {}
        }
    }

    fn start_line(&mut self) {
        if self.column == Column::Later {
            self.write(b"\n");
        }
    }
}

/// Opens the serial port and prints the banner.
pub fn init(options: &Options) {
    if let Com1::Baud(baud) = options.com1 {
        CONSOLE.lock().serial = Serial::open(baud);
    }
    log::init(options.log_level);
    ::log::info!("Proxenos {} build {}", env!("CARGO_PKG_VERSION"), crate::symbols::build_id());
}

/// Writes bytes as they are: a guest's output. Line feeds become CR LF on the wire.
pub fn write(bytes: &[u8]) {
    CONSOLE.lock().write(bytes);
}

/// The next byte that was typed for domain 0. What else has arrived stays to be fetched.
#[must_use]
pub fn try_read() -> Option<u8> {
    CONSOLE.lock().input.take_byte()
}

/// The next command that was typed.
#[must_use]
pub fn take_command() -> Option<Command> {
    CONSOLE.lock().input.take_command()
}

/// Takes what has arrived at the serial port.
#[must_use]
pub fn fetch_input() -> Arrived {
    let mut console = CONSOLE.lock();
    let Console { input, serial, .. } = &mut *console;
    input.fetch(serial)
}

/// Copies what was written from `from` on, as far as it is kept and fits in `into`.
pub fn read_since(from: Position, into: &mut [u8]) -> Reading {
    CONSOLE.lock().ring.read_since(from, into)
}

/// What there is to be read.
#[must_use]
pub fn kept() -> Range<Position> {
    CONSOLE.lock().ring.kept()
}

/// What lies before this is not kept for readers any more.
pub fn forget(until: Position) {
    CONSOLE.lock().ring.forget(until);
}

/// For fatal reports only: a writer that works even when whoever was interrupted holds the console's lock.
///
/// The lock is taken if it is free; otherwise the port alone is written to, past its owner, who will never continue.
#[must_use]
pub fn emergency() -> Emergency {
    match CONSOLE.try_lock() {
        Some(mut console) => {
            console.start_line();
            Emergency(Way::Locked(console))
        }
        None => Emergency(Way::Port(match crate::boot::options().com1 {
            Com1::Off => Serial::absent(),
            Com1::Baud(_) => Serial::assume(),
        })),
    }
}

/// See [`emergency`].
pub struct Emergency(Way);

enum Way {
    /// The console, as always.
    Locked(MutexGuard<'static, Console>),
    /// The port alone.
    Port(Serial),
}

impl core::fmt::Write for Emergency {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        match &mut self.0 {
            Way::Locked(console) => console.write(text.as_bytes()),
            Way::Port(serial) => serial.write(text.as_bytes()),
        }
        Ok(())
    }
}
