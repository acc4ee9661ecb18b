//! Where `print!` goes: the emergency console for domain 0 and whomever the hypervisor lets use it, the control
//! interface's console for a domain that has a controller, and nowhere for one that has neither.
//!
//! A `print!` is gathered on the stack and handed over in pieces of up to [`CHUNK`] bytes, so that an upcall that
//! prints while other code does leaves whole pieces. The ring has no lock: it is used with upcalls masked.

mod ring;

use crate::{StartInfo, events, hypercall};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};
use proxenos_abi::start_info::StartInfoFlags;

/// Bytes gathered before they are handed over.
const CHUNK: usize = 256;

const NOWHERE: u8 = 0;
const EMERGENCY: u8 = 1;
const RING: u8 = 2;

static KIND: AtomicU8 = AtomicU8::new(NOWHERE);

/// Chooses the console by what the domain is. The ring carries nothing until the shared page is mapped.
pub(crate) fn attach(si: &StartInfo) {
    let may_write = si.flags().contains(StartInfoFlags::INITDOMAIN) || hypercall::console_write(&[]).is_ok();
    let controller = si.domain_controller_evtchn;
    let kind = match controller {
        _ if may_write => EMERGENCY,
        0 => NOWHERE,
        _ => RING,
    };
    KIND.store(kind, Ordering::Relaxed);
}

/// Writes bytes. What the console does not take is dropped: there is nowhere to complain.
pub fn write(bytes: &[u8]) {
    match KIND.load(Ordering::Relaxed) {
        EMERGENCY => write_emergency(bytes),
        RING => events::without_upcalls(|| ring::write(bytes)),
        _ => {}
    }
}

/// The hypervisor stops at a NUL, so what lies between NULs is written piece by piece.
fn write_emergency(bytes: &[u8]) {
    for mut piece in bytes.split(|&byte| byte == 0) {
        while !piece.is_empty() {
            match hypercall::console_write(piece) {
                Ok(taken) if taken > 0 => piece = &piece[taken.min(piece.len())..],
                _ => return,
            }
        }
    }
}

/// Reads what has been typed, without waiting. Returns how many bytes there were.
pub fn read(into: &mut [u8]) -> usize {
    match KIND.load(Ordering::Relaxed) {
        EMERGENCY => hypercall::console_read(into).unwrap_or(0),
        RING => events::without_upcalls(|| ring::read(into)),
        _ => 0,
    }
}

struct Gather {
    bytes: [u8; CHUNK],
    len: usize,
}

impl Gather {
    fn flush(&mut self) {
        write(&self.bytes[..self.len]);
        self.len = 0;
    }
}

impl Write for Gather {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut rest = s.as_bytes();
        while !rest.is_empty() {
            if self.len == CHUNK {
                self.flush();
            }
            let (now, later) = rest.split_at(rest.len().min(CHUNK - self.len));
            self.bytes[self.len..self.len + now.len()].copy_from_slice(now);
            self.len += now.len();
            rest = later;
        }
        Ok(())
    }
}

#[doc(hidden)]
pub fn _print(arguments: fmt::Arguments<'_>) {
    let mut gather = Gather { bytes: [0; CHUNK], len: 0 };
    // An error can only come from a value's own formatting; what it wrote so far is printed.
    let _ = gather.write_fmt(arguments);
    gather.flush();
}

/// Prints to the guest's console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::_print(::core::format_args!($($argument)*)) };
}

/// Prints to the guest's console, with a new line.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::_print(::core::format_args!("{}\n", ::core::format_args!($($argument)*))) };
}
