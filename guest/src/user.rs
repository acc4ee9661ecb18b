//! Applications of an x86_64 kernel: an address space for them, and running one until something happens to it.
//!
//! ```ignore
//! let space = UserSpace::new()?;
//! space.map(GuestVirt(0x100_0000_0000), frame.mfn(), PteFlags::KERNEL_RO)?;
//! space.activate()?;
//! user::install()?;
//! let mut application = user::application(GuestVirt(0x100_0000_0000), GuestVirt(0));
//! match user::run(&mut application)? {
//!     Exit::SystemCall => {} // its number is in application.rax
//!     Exit::Trap(trap) => panic!("{trap:?}"),
//! }
//! ```
//!
//! Events are handled while an application runs, and it goes on. [`run`] is not to be called by a handler of theirs.

use crate::arch::user::{CAME_BY_EVENT, CAME_BY_FAILSAFE, CAME_BY_SYSCALL, enter, system_call_entry};
use crate::arch::{Arch, TrapFrame, event_callback, failsafe_callback};
use crate::memory::{self, Frame, tables};
use crate::pte::{Pte, PteFlags};
use crate::traps::Trap;
use crate::{events, hypercall};
use proxenos_abi::hypercall::{SWITCH_TO_USER_IN_SYSCALL, SWITCH_TO_USER_RAX};
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, GuestArch, GuestVirt, Mfn};

/// An address space with nothing of the kernel's in it.
pub struct UserSpace {
    top: Frame,
}

impl UserSpace {
    /// An empty one.
    pub fn new() -> Result<Self, Errno> {
        let top = tables::new_table()?;
        memory::pin(4, top.mfn())?;
        Ok(Self { top })
    }

    /// The frame of its top-level table.
    pub fn top(&self) -> Mfn {
        self.top.mfn()
    }

    /// Maps a frame, or with [`Pte::NONE`] unmaps what was there. Applications see it when they run next.
    pub fn map(&self, at: GuestVirt, entry: Pte) -> Result<(), Errno> {
        let mut table = self.top.mfn();
        for level in (2..=4).rev() {
            let index = tables::index(at, level);
            let mut next = tables::read_entry(table, index).ok_or(Errno::EINVAL)?;
            if !next.is_present() {
                next = Pte::new(tables::new_table()?.mfn(), PteFlags::TABLE);
                // SAFETY: nothing of the kernel's is mapped there.
                unsafe { memory::write_entry(tables::entry_address(table, index), next) }?;
            }
            table = next.mfn();
        }
        // SAFETY: as above.
        unsafe { memory::write_entry(tables::entry_address(table, tables::index(at, 1)), entry) }
    }

    /// From now on applications run in it.
    pub fn activate(&self) -> Result<(), Errno> {
        set_base(self.top())
    }
}

/// Makes a table what applications run on.
pub fn set_base(top: Mfn) -> Result<(), Errno> {
    // SAFETY: the kernel's mappings stay.
    unsafe { memory::update(memory::extended(MmuExtCommand::NewUserBaseptr, top.addr().raw(), 0)) }
}

/// Applications have nothing to run on any more.
pub fn clear_base() -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { memory::update(memory::extended(MmuExtCommand::NewUserBaseptr, 0, 0)) }
}

/// Registers the entry for system calls, beside the SDK's callbacks.
pub fn install() -> Result<(), Errno> {
    let cs = Arch::FLAT_GUESTOS_CS;
    // SAFETY: all are entry points made for it.
    unsafe { hypercall::set_callbacks_of_both((cs, event_callback()), (cs, failsafe_callback()), system_call_entry()) }
}

/// The registers of an application that begins.
pub fn application(ip: GuestVirt, sp: GuestVirt) -> TrapFrame {
    const INTERRUPTS: u64 = 1 << 9;
    TrapFrame {
        rip: ip.raw(),
        cs: Arch::FLAT_USER_CS.raw().into(),
        rflags: INTERRUPTS,
        rsp: sp.raw(),
        ss: Arch::FLAT_USER_DS.raw().into(),
        ..TrapFrame::default()
    }
}

/// What has happened to an application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It executed `syscall`; it goes on behind it.
    SystemCall,
    /// An exception, or an `int` that it may use.
    Trap(Trap),
    /// Its registers cannot be loaded.
    Failsafe,
}

/// How an application goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume {
    /// With all of its registers.
    Whole,
    /// As from a system call: rcx and r11 are lost.
    FromSystemCall,
}

/// Runs an application until something happens to it, and stores its registers.
///
/// # Errors
/// `EFAULT` if applications have nothing to run on.
pub fn run(registers: &mut TrapFrame) -> Result<Exit, Errno> {
    resume(registers, Resume::Whole)
}

/// The same, where it has made a system call.
///
/// # Errors
/// See [`run`].
pub fn resume(registers: &mut TrapFrame, how: Resume) -> Result<Exit, Errno> {
    let mut flags = SWITCH_TO_USER_RAX | if how == Resume::FromSystemCall { SWITCH_TO_USER_IN_SYSCALL } else { 0 };
    loop {
        // SAFETY: the registers are borrowed for as long as it takes.
        let why = hypercall::check(unsafe { enter(registers, flags) } as usize)? as u64;
        match why {
            CAME_BY_EVENT => {
                events::upcall();
                events::unmask_upcalls();
                // It was interrupted somewhere: nothing is lost any more.
                flags = SWITCH_TO_USER_RAX;
            }
            CAME_BY_SYSCALL => return Ok(Exit::SystemCall),
            CAME_BY_FAILSAFE => return Ok(Exit::Failsafe),
            _ => {
                return Ok(Exit::Trap(Trap {
                    vector: registers.vector(),
                    error_code: registers.error_code(),
                    fault_address: registers.fault_address(),
                    ip: registers.ip(),
                }));
            }
        }
    }
}
