//! A guest's debug registers: `set_debugreg`, `get_debugreg`, and what a #DB tells.
//!
//! Promises: whatever a guest asks for, no breakpoint of its lies in the hypervisor's range, none is for I/O ports, and
//! moves to debug registers never trap (DR7.GD); so what the CPU is given can disturb the guest alone. DR6 is the
//! guest's own copy: it collects what its #DBs reported until the guest clears it, as the register does, and what the
//! hypervisor ran into while it worked on the guest's memory is not in it.
//!
//! The interface is Xen 2.0's. No lock: the registers are a virtual CPU's. (Intel SDM vol. 3 §17.2.)

use crate::addr::GuestVirt;
use crate::domain::Arch;
use crate::personality::Personality;
use proxenos_abi::Errno;

/// Bytes at a breakpoint's address that must be the guest's, whatever its length: Xen 2.0's bound.
const WORD: u64 = 4;
/// DR6: bits that are always set.
const STATUS_ONES: u64 = 0xffff_0ff0;
/// DR6: bits that exist, or are always set. Bit 12 and all above 31 are zero.
const STATUS_MASK: u64 = 0xffff_efff;
/// DR6: a single step was the cause.
const STATUS_STEP: u64 = 1 << 14;
/// DR7: bit 10, which is always set.
const CONTROL_ONES: u64 = 1 << 10;
/// DR7: bits that exist, or are always set. (Bit 11, for transactions, is among those that are not.)
const CONTROL_MASK: u64 = 0xffff_27ff;
/// DR7: every access to a debug register traps.
const GENERAL_DETECT: u64 = 1 << 13;

/// A virtual CPU's debug registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugRegisters {
    addresses: [GuestVirt; 4],
    status: u64,
    control: u64,
}

impl Default for DebugRegisters {
    fn default() -> Self {
        Self::new()
    }
}

/// Which of its registers a guest's request has changed, as far as the CPU's own must follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// A breakpoint's address or the control register.
    Breakpoints,
    /// The status register alone, of which the CPU needs not know.
    Status,
}

impl DebugRegisters {
    /// Registers as a guest starts with them: all zero, as 2.0 has them, DR6 and DR7 too.
    #[must_use]
    pub const fn new() -> Self {
        Self { addresses: [GuestVirt(0); 4], status: 0, control: 0 }
    }

    /// Addresses of the four breakpoints.
    #[must_use]
    pub const fn addresses(&self) -> [GuestVirt; 4] {
        self.addresses
    }

    /// DR7 as the CPU is to have it; 0 is none at all.
    #[must_use]
    pub const fn control(&self) -> u64 {
        self.control
    }

    /// `set_debugreg(register, value)`.
    ///
    /// # Errors
    /// `EPERM` for what a guest must not have: an address that is not its own, general detection, a breakpoint at an
    /// I/O port or of a length that the architecture has not; `EINVAL` for a register that does not exist. Nothing
    /// changes then.
    pub fn set<P: Personality>(&mut self, register: u32, value: u64) -> Result<Changed, Errno> {
        match register {
            0..=3 => {
                let at = GuestVirt(value);
                if !P::in_guest_range(at, WORD) {
                    return Err(Errno::EPERM);
                }
                self.addresses[register as usize] = at;
                Ok(Changed::Breakpoints)
            }
            6 => {
                self.status = value & STATUS_MASK | STATUS_ONES;
                Ok(Changed::Status)
            }
            7 => {
                self.control = control::<P>(value)?;
                Ok(Changed::Breakpoints)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// `get_debugreg(register)`. Registers 4 and 5, which cannot be set, are 0.
    ///
    /// # Errors
    /// `EINVAL` for a register that does not exist. The guest cannot tell it from a value.
    #[cold]
    #[inline(never)]
    pub fn get(&self, register: u32) -> Result<u64, Errno> {
        match register {
            0..=3 => Ok(self.addresses[register as usize].0),
            4 | 5 => Ok(0),
            6 => Ok(self.status),
            7 => Ok(self.control),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The guest took a #DB, and the CPU's DR6 reported this since it was last cleared.
    pub const fn report(&mut self, status: u64) {
        self.status = (self.status | status) & STATUS_MASK | STATUS_ONES;
    }

    /// The guest is to take a #DB for a single step that was carried out for it.
    pub const fn report_step(&mut self) {
        self.report(STATUS_STEP);
    }
}

/// Checks a value for DR7: what is to be loaded. 0 turns all breakpoints off, and stays 0.
fn control<P: Personality>(value: u64) -> Result<u64, Errno> {
    if value == 0 {
        return Ok(0);
    }
    let value = value & CONTROL_MASK | CONTROL_ONES;
    if value & GENERAL_DETECT != 0 {
        return Err(Errno::EPERM);
    }
    for breakpoint in 0..4 {
        // Whether or not the breakpoint is enabled, as in 2.0.
        let (condition, length) = (value >> (16 + 4 * breakpoint) & 3, value >> (18 + 4 * breakpoint) & 3);
        // Length 2 is eight bytes, where there are such operands; 2.0 had no such guests.
        let is_length = length != 2 || P::ARCH == Arch::X86_64;
        if condition == 2 || !is_length {
            return Err(Errno::EPERM);
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proxenos_abi::{GuestArch, X86_32, X86_64};

    #[test]
    fn addresses_are_the_guests_own() {
        let mut registers = DebugRegisters::new();
        for (register, at) in [(0, 0), (1, 0xc000_0003), (2, 0xfbff_fffc), (3, 1)] {
            assert_eq!(registers.set::<X86_32>(register, at), Ok(Changed::Breakpoints));
            assert_eq!(registers.get(register), Ok(at));
        }
        for at in [0xfbff_fffd, 0xfc00_0000, 0xfc40_0000, 0xffff_ffff] {
            assert_eq!(registers.set::<X86_32>(2, at), Err(Errno::EPERM), "{at:#x}");
        }
        assert_eq!(registers.get(2), Ok(0xfbff_fffc));
        let hypervisor = [X86_64::HYPERVISOR_VIRT_START, X86_64::HYPERVISOR_VIRT_END - 1, 0xffff_8100_0000_0000];
        let none = [1 << 47, (1 << 47) - 3, 0x7fff_ffff_ffff_ffff, 0xffff_7fff_ffff_ffff];
        for at in hypervisor.into_iter().chain(none) {
            assert_eq!(registers.set::<X86_64>(0, at), Err(Errno::EPERM), "{at:#x}");
        }
        for at in [(1 << 47) - 4, X86_64::HYPERVISOR_VIRT_END, 0xffff_ffff_ffff_fff8] {
            assert_eq!(registers.set::<X86_64>(0, at), Ok(Changed::Breakpoints), "{at:#x}");
        }
    }

    #[test]
    fn registers_that_do_not_exist() {
        let mut registers = DebugRegisters::new();
        for register in [4, 5, 8, 0x8000_0000, u32::MAX] {
            assert_eq!(registers.set::<X86_32>(register, 0), Err(Errno::EINVAL), "{register}");
        }
        assert_eq!((registers.get(4), registers.get(5)), (Ok(0), Ok(0)));
        assert_eq!((registers.get(8), registers.get(u32::MAX)), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
        assert_eq!(registers, DebugRegisters::new());
    }

    #[test]
    fn the_status_register_collects() {
        let mut registers = DebugRegisters::new();
        assert_eq!(registers.get(6), Ok(0));
        registers.report(0xffff_0ff1);
        registers.report_step();
        assert_eq!(registers.get(6), Ok(0xffff_4ff1));
        assert_eq!(registers.set::<X86_64>(6, 0), Ok(Changed::Status));
        assert_eq!(registers.get(6), Ok(0xffff_0ff0));
        assert_eq!(registers.set::<X86_64>(6, u64::MAX), Ok(Changed::Status));
        assert_eq!(registers.get(6), Ok(0xffff_efff));
    }

    #[test]
    fn the_control_register_is_checked() {
        let mut registers = DebugRegisters::new();
        for (value, is) in [(0x1, 0x401), (0x300, 0x700), (0xd800, 0x400), (0x000d_0303, 0x000d_0703), (0, 0)] {
            assert_eq!(registers.set::<X86_32>(7, value), Ok(Changed::Breakpoints), "{value:#x}");
            assert_eq!(registers.get(7), Ok(is));
        }
        assert_eq!(registers.set::<X86_64>(7, 0xffff_ffff_0000_0000), Ok(Changed::Breakpoints));
        assert_eq!(registers.get(7), Ok(0x400));
        for breakpoint in 0..4 {
            let io = 0x2_0000 << (4 * breakpoint);
            assert_eq!(registers.set::<X86_32>(7, io), Err(Errno::EPERM));
            assert_eq!(registers.set::<X86_64>(7, io), Err(Errno::EPERM));
            let eight_bytes = 0x8_0000 << (4 * breakpoint);
            assert_eq!(registers.set::<X86_32>(7, eight_bytes), Err(Errno::EPERM));
            assert_eq!(registers.set::<X86_64>(7, eight_bytes), Ok(Changed::Breakpoints));
        }
        let before = registers;
        assert_eq!(registers.set::<X86_32>(7, GENERAL_DETECT), Err(Errno::EPERM));
        assert_eq!(registers, before);
    }

    proptest! {
        /// Whatever is asked for in whatever order, what the CPU gets is harmless, and what is refused changes nothing.
        #[test]
        fn nothing_reaches_the_hypervisor(requests in proptest::collection::vec((0..9u32, any::<u64>()), 0..32)) {
            let mut narrow = DebugRegisters::new();
            let mut wide = DebugRegisters::new();
            for (register, value) in requests {
                let before = (narrow, wide);
                let refused = narrow.set::<X86_32>(register, value & 0xffff_ffff).is_err();
                prop_assert!(!refused || narrow == before.0);
                let refused = wide.set::<X86_64>(register, value).is_err();
                prop_assert!(!refused || wide == before.1);
                for at in narrow.addresses() {
                    prop_assert!(at.0 < X86_32::HYPERVISOR_VIRT_START);
                }
                for at in wide.addresses() {
                    prop_assert!(X86_64::in_guest_range(at, 1));
                }
                for registers in [narrow, wide] {
                    let control = registers.control();
                    prop_assert!(control == 0 || control & !0xffff_03ff == 0x400);
                    prop_assert!((0..4).all(|n| control >> (16 + 4 * n) & 3 != 2));
                }
            }
        }
    }
}
