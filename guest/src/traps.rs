//! Exceptions and software interrupts: the trap table, and who handles what.
//!
//! [`install`] points every exception at an entry point of the SDK. What traps is then handled by the function
//! registered for its vector ([`set_handler`]); failing that, by the recovery listed for its instruction
//! ([`crate::probe`]); failing that, it is a panic with the frame printed.

use crate::arch::{Arch, TrapFrame, Word, trap_stub};
use crate::{hypercall, probe};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use proxenos_abi::context::{TrapFlags, TrapInfo};
use proxenos_abi::{Errno, GuestArch, GuestVirt, GuestWord};

/// The vectors the tests and handlers of most guests name.
pub mod vector {
    /// Divide error.
    pub const DIVIDE: u8 = 0;
    /// Debug exception.
    pub const DEBUG: u8 = 1;
    /// Breakpoint (`int3`).
    pub const BREAKPOINT: u8 = 3;
    /// Overflow (`into`).
    pub const OVERFLOW: u8 = 4;
    /// Invalid opcode.
    pub const INVALID_OPCODE: u8 = 6;
    /// The floating-point unit is not available.
    pub const DEVICE_NOT_AVAILABLE: u8 = 7;
    /// Segment not present.
    pub const SEGMENT_NOT_PRESENT: u8 = 11;
    /// Stack fault.
    pub const STACK: u8 = 12;
    /// General protection.
    pub const GENERAL_PROTECTION: u8 = 13;
    /// Page fault.
    pub const PAGE_FAULT: u8 = 14;
}

/// Exceptions of the processor: these get an entry in [`install`].
const EXCEPTIONS: u8 = 20;

/// What a handler has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The interrupted code goes on as the frame now says.
    Handled,
    /// Not this handler's business.
    NotMine,
}

/// A trap's handler. It may change the frame.
pub type Handler = fn(&mut TrapFrame) -> Outcome;

/// Addresses of the handlers, 0 for none.
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// A trap, as it was when its handler was entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trap {
    /// The vector.
    pub vector: u8,
    /// The error code; zero for vectors without one.
    pub error_code: u32,
    /// For page faults, the address whose access faulted.
    pub fault_address: GuestVirt,
    /// The instruction pointer.
    pub ip: GuestVirt,
}

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LAST_VECTOR: AtomicU32 = AtomicU32::new(0);
static LAST_ERROR: AtomicU32 = AtomicU32::new(0);
static LAST_ADDRESS: AtomicUsize = AtomicUsize::new(0);
static LAST_IP: AtomicUsize = AtomicUsize::new(0);

/// The trap that came last.
pub fn last_trap() -> Trap {
    Trap {
        vector: LAST_VECTOR.load(Ordering::Relaxed) as u8,
        error_code: LAST_ERROR.load(Ordering::Relaxed),
        fault_address: GuestVirt(LAST_ADDRESS.load(Ordering::Relaxed) as u64),
        ip: GuestVirt(LAST_IP.load(Ordering::Relaxed) as u64),
    }
}

/// How many traps there have been. Wraps.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Registers the function for a vector, in place of the one before.
pub fn set_handler(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::Release);
}

/// Removes the function of a vector.
pub fn clear_handler(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, Ordering::Release);
}

/// Called by every entry point.
pub(crate) extern "C" fn dispatch(frame: &mut TrapFrame) {
    COUNT.store(COUNT.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    LAST_VECTOR.store(frame.vector().into(), Ordering::Relaxed);
    LAST_ERROR.store(frame.error_code(), Ordering::Relaxed);
    LAST_ADDRESS.store(frame.fault_address().raw() as usize, Ordering::Relaxed);
    LAST_IP.store(frame.ip().raw() as usize, Ordering::Relaxed);
    let handler = HANDLERS[usize::from(frame.vector())].load(Ordering::Acquire);
    if handler != 0 {
        // SAFETY: only `set_handler` stores anything but 0, and it stores a `Handler`.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        if handler(frame) == Outcome::Handled {
            return;
        }
    }
    match probe::recovery(frame.ip()) {
        Some(recovery) => frame.set_ip(recovery),
        None => panic!("a trap nobody handles\n{frame}"),
    }
}

/// An entry of the trap table that leads to the SDK's entry point of its vector.
pub fn entry(vector: u8, flags: TrapFlags) -> TrapInfo<Arch> {
    TrapInfo::new(vector, flags, Arch::FLAT_GUESTOS_CS, Word::from_u64_truncating(trap_stub(vector).raw()))
}

/// The entry that ends a trap table.
pub fn end_of_table() -> TrapInfo<Arch> {
    TrapInfo::default()
}

/// Installs the entry points of all exceptions. `int3` and `into` may be raised from every ring.
pub fn install() -> Result<(), Errno> {
    let mut table = [end_of_table(); EXCEPTIONS as usize + 1];
    for vector in 0..EXCEPTIONS {
        let dpl = if matches!(vector, vector::BREAKPOINT | vector::OVERFLOW) { 3 } else { 0 };
        table[usize::from(vector)] = entry(vector, TrapFlags::from_dpl(dpl));
    }
    // SAFETY: the entry points are made for their vectors, and the table ends with an empty entry.
    unsafe { hypercall::set_trap_table(&table) }
}

/// Installs the entry point of one more vector.
pub fn install_vector(vector: u8, flags: TrapFlags) -> Result<(), Errno> {
    // SAFETY: as in `install`.
    unsafe { hypercall::set_trap_table(&[entry(vector, flags), end_of_table()]) }
}
