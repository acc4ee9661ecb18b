//! Where a guest wants to be entered: `set_trap_table` and `set_callbacks`.

use super::Mode;
use crate::addr::GuestVirt;
use crate::descriptor;
use crate::domain::Arch;
use crate::personality::Personality;
use core::mem::offset_of;
use proxenos_abi::context::{NR_TRAPS, TrapFlags, TrapInfo};
use proxenos_abi::{Errno, GuestWord, Selector};

/// A place in a guest's kernel that the hypervisor enters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Callback {
    /// Code selector.
    pub cs: Selector,
    /// Code address.
    pub ip: GuestVirt,
}

impl Callback {
    /// Checks a place. The selector must have the kernel's ring as its privilege level, and be of the LDT, outside the
    /// GDT's reserved entries, or one of the flat code segments there. On x86_64 the address must be canonical and
    /// not the hypervisor's; an x86_32 guest that names a bad one faults in its own name.
    ///
    /// # Errors
    /// `EPERM` for the selector, `EINVAL` for the address.
    pub fn new<P: Personality>(cs: Selector, ip: GuestVirt) -> Result<Self, Errno> {
        if !descriptor::is_entry(cs, P::FLAT_GUESTOS_CS) {
            return Err(Errno::EPERM);
        }
        if P::ARCH == Arch::X86_64 && !P::in_guest_range(ip, 1) {
            return Err(Errno::EINVAL);
        }
        Ok(Self { cs, ip })
    }
}

/// A handler of an exception or software interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrapHandler {
    /// Where it is.
    pub at: Callback,
    /// The least privileged ring that may raise it by `int n`.
    pub dpl: u8,
    /// Whether events are masked when it is entered.
    pub masks_events: bool,
}

impl TrapHandler {
    /// As an entry of a trap table says it.
    pub(crate) const fn flags(&self) -> TrapFlags {
        let mask = if self.masks_events { TrapFlags::MASK_EVENTS } else { TrapFlags::empty() };
        TrapFlags::from_dpl(self.dpl).union(mask)
    }
}

/// What an `int n` in a guest comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SoftwareInterrupt {
    /// Its handler is entered, without an error code and past the instruction.
    Deliver(TrapHandler),
    /// It is a general protection fault at the instruction, with this error code.
    Protection(u32),
}

/// Debug exception: the handler never masks events.
const DEBUG: u8 = 1;
/// Breakpoint: any ring may raise it.
const BREAKPOINT: u8 = 3;
/// Overflow: any ring may raise it.
const OVERFLOW: u8 = 4;
/// Device not available: the handler never masks events.
const DEVICE_NOT_AVAILABLE: u8 = 7;

/// The vector of system calls by `int 0x80`.
pub const SYSTEM_CALL: u8 = 0x80;

/// Vectors that may be a fast trap: the system call of Linux and the BSDs, and what Windows and MS-DOS use.
const fn may_be_fast(vector: u8) -> bool {
    matches!(vector, SYSTEM_CALL | 0x20..=0x2f)
}

/// The handlers of all vectors, and the fast trap.
pub struct TrapTable {
    handlers: [Option<TrapHandler>; NR_TRAPS],
    /// The vector that goes to its handler without a look at the table; 0 for none.
    fast_vector: u8,
    /// Its handler, as it was when that was asked for.
    fast: Option<TrapHandler>,
    /// Address of an x86_32 guest's handler of [`SYSTEM_CALL`], if it is of the plainest kind: open to every ring, and
    /// not masking events. Else 0, which is no handler's address (it ends the list of `set_trap_table`).
    plain_system_call: u32,
    /// Its code selector.
    plain_system_call_cs: u32,
}

impl Default for TrapTable {
    fn default() -> Self {
        Self::new()
    }
}

impl TrapTable {
    /// No handlers.
    #[must_use]
    pub const fn new() -> Self {
        Self { handlers: [None; NR_TRAPS], fast_vector: 0, fast: None, plain_system_call: 0, plain_system_call_cs: 0 }
    }

    /// Where the address of a plain handler of [`SYSTEM_CALL`] lies in this, for the entry in assembly.
    pub const PLAIN_SYSTEM_CALL: usize = offset_of!(Self, plain_system_call);
    /// Where its code selector does. Both are 32 bits wide.
    pub const PLAIN_SYSTEM_CALL_CS: usize = offset_of!(Self, plain_system_call_cs);

    /// Installs one entry of `set_trap_table`.
    ///
    /// # Errors
    /// Those of [`Callback::new`]; the old handler stays.
    pub fn set<P: Personality>(&mut self, entry: &TrapInfo<P>) -> Result<(), Errno> {
        let (cs, address) = (entry.cs, entry.address);
        let at = Callback::new::<P>(cs, GuestVirt(address.to_u64()))?;
        // Xen 2.0 delivers these two by a path that does not look at the flag.
        let may_mask = !matches!(entry.vector, DEBUG | DEVICE_NOT_AVAILABLE);
        let handler = TrapHandler { at, dpl: entry.dpl(), masks_events: may_mask && entry.masks_events() };
        self.handlers[usize::from(entry.vector)] = Some(handler);
        if entry.vector == SYSTEM_CALL {
            self.note_system_call::<P>();
        }
        Ok(())
    }

    /// The vector of the fast trap, or 0.
    pub(crate) const fn fast_vector(&self) -> u8 {
        self.fast_vector
    }

    /// What the entry in assembly finds.
    #[cfg(test)]
    pub(super) const fn plain_system_call(&self) -> (u32, u32) {
        (self.plain_system_call_cs, self.plain_system_call)
    }

    /// Works out anew where a plain [`SYSTEM_CALL`] goes.
    fn note_system_call<P: Personality>(&mut self) {
        let fast = self.fast.filter(|_| self.fast_vector == SYSTEM_CALL);
        let handler = fast.or(self.get(SYSTEM_CALL));
        let plain = handler.filter(|handler| P::ARCH == Arch::X86_32 && handler.dpl == 3 && !handler.masks_events);
        // Whether its segment can be entered is for `iretq` to find out, as for any handler.
        let (cs, ip) = plain.map_or((0, 0), |handler| (handler.at.cs.0.into(), handler.at.ip.0 as u32));
        (self.plain_system_call_cs, self.plain_system_call) = (cs, ip);
    }

    /// `set_fast_trap(vector)`: from now on `int` of this vector goes to the handler that the table has for it now,
    /// whatever the table says later; 0 undoes that, and so does a vector that has no handler. On x86 this was a gate
    /// from ring 3 straight to ring 1, which long mode has not; what a guest sees of it is the same.
    ///
    /// # Errors
    /// `EPERM` for a vector that cannot be one, or whose handler is to mask events: no gate does that. The fast trap
    /// stays what it was.
    #[cold]
    #[inline(never)]
    pub fn set_fast_trap<P: Personality>(&mut self, vector: u32) -> Result<(), Errno> {
        let (vector, handler) = match vector {
            0 => (0, None),
            _ => {
                let vector = u8::try_from(vector).ok().filter(|&vector| may_be_fast(vector)).ok_or(Errno::EPERM)?;
                (vector, self.get(vector))
            }
        };
        if handler.is_some_and(|handler| handler.masks_events) {
            return Err(Errno::EPERM);
        }
        (self.fast_vector, self.fast) = (vector, handler);
        self.note_system_call::<P>();
        Ok(())
    }

    /// Where [`software_interrupt`](Self::software_interrupt) leads from any ring; `None` if that depends on the ring.
    #[inline]
    #[must_use]
    pub fn open_to_all(&self, vector: u8) -> Option<TrapHandler> {
        const ANY_RING: u8 = 3;
        let fast = self.fast.filter(|_| self.fast_vector == vector);
        fast.or(self.get(vector)).filter(|handler| handler.dpl == ANY_RING)
    }

    /// The handler of a vector. A guest that has none for an exception it takes cannot go on.
    #[inline]
    #[must_use]
    pub fn get(&self, vector: u8) -> Option<TrapHandler> {
        self.handlers[usize::from(vector)]
    }

    /// What `int n` comes to, for `vector` executed in a mode of the guest. (In the hypervisor's own table no gate is
    /// open, lest a guest enter handlers that are not made for it.)
    #[must_use]
    pub fn software_interrupt<P: Personality>(&self, vector: u8, cs: Selector, mode: Mode) -> SoftwareInterrupt {
        let ring = match (P::ARCH, mode) {
            (Arch::X86_32, _) => cs.rpl(),
            // Both modes are ring 3 to the CPU; a kernel counts as ring 1, as it would on x86_32.
            (Arch::X86_64, Mode::Kernel) => 1,
            (Arch::X86_64, Mode::User) => 3,
        };
        if vector == self.fast_vector
            && let Some(handler) = self.fast
            && handler.dpl >= ring
        {
            return SoftwareInterrupt::Deliver(handler);
        }
        // A gate that the ring may not use is a #GP to the CPU, which 2.0 answers by the table, as if there were none.
        match self.get(vector) {
            Some(handler) if handler.dpl >= ring || matches!(vector, BREAKPOINT | OVERFLOW) => {
                SoftwareInterrupt::Deliver(handler)
            }
            // Error code of a fault on a gate of the IDT: its index and bit 1 (Intel SDM vol. 3 §6.13).
            _ => SoftwareInterrupt::Protection(u32::from(vector) << 3 | 2),
        }
    }
}
