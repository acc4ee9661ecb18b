//! The calls of the interface, with types. A negative result becomes an [`Errno`].
//!
//! The raw calls, with any number and any words, are [`crate::arch::hypercall0`] to `hypercall5`: tests want to call
//! wrongly.

use crate::arch::{Arch, Word, hypercall0, hypercall1, hypercall2, hypercall3, hypercall4, hypercall5};
use crate::pte::Pte;
use crate::shutdown::Reason;
use core::mem::MaybeUninit;
use proxenos_abi::context::TrapInfo;
use proxenos_abi::event_channel::{EvtchnArgument, EvtchnOp, EvtchnSend};
use proxenos_abi::hypercall::{
    AUDIT_CALL, ConsoleIo, DomMemOp, MulticallEntry, SCHEDOP_REASONSHIFT, SchedOp, VmAssistCommand, VmAssistType,
};
use proxenos_abi::mmu::{MmuUpdate, UpdateVaFlags};
use proxenos_abi::{DomId, Errno, GuestVirt, Hypercall, MachineAddr, Mfn, PAGE_SHIFT, Selector};

/// A page's number in the virtual address space, as `update_va_mapping` takes it.
#[inline]
fn page_number(at: GuestVirt) -> usize {
    at.raw() as usize >> PAGE_SHIFT
}

/// A call's number as the raw calls take it.
const fn number(call: Hypercall) -> usize {
    call.raw() as usize
}

/// What a call's result word says.
///
/// # Panics
/// If the word is a negative number that is no error of the interface.
#[inline]
pub fn check(result: usize) -> Result<usize, Errno> {
    const FIRST_ERROR: usize = -4095_isize as usize;
    if result < FIRST_ERROR { Ok(result) } else { Err(error(result)) }
}

#[cold]
fn error(result: usize) -> Errno {
    let signed = result as isize;
    match Errno::from_result(signed as i64) {
        Some(errno) => errno,
        None => panic!("a hypercall returned {signed}, which is no error of the interface"),
    }
}

/// 0: installs handlers. The table's last entry has address 0.
///
/// # Safety
/// Every address is an entry point made for its vector.
#[inline]
pub unsafe fn set_trap_table(table: &[TrapInfo<Arch>]) -> Result<(), Errno> {
    // SAFETY: the hypervisor reads the table up to its end mark; the rest is the caller's promise.
    check(unsafe { hypercall1(number(Hypercall::SetTrapTable), table.as_ptr() as usize) }).map(drop)
}

/// 1: checked changes to page tables, and what goes with them. Returns how many requests were carried out.
///
/// # Safety
/// No reference the compiler knows of becomes invalid by the change.
#[inline]
pub unsafe fn mmu_update(requests: &[MmuUpdate<Arch>]) -> Result<usize, (Errno, usize)> {
    let mut done: u32 = 0;
    // SAFETY: the list is read, the count written; the rest is the caller's promise.
    let result = unsafe {
        hypercall3(number(Hypercall::MmuUpdate), requests.as_ptr() as usize, requests.len(), &raw mut done as usize)
    };
    match check(result) {
        Ok(_) => Ok(done as usize),
        Err(errno) => Err((errno, done as usize)),
    }
}

/// 2: installs a descriptor table of so many entries in these frames.
///
/// # Safety
/// The descriptors of the selectors in use stay as they are.
#[inline]
pub unsafe fn set_gdt(frames: &[Word], entries: usize) -> Result<(), Errno> {
    // SAFETY: the list is read; the rest is the caller's promise.
    check(unsafe { hypercall2(number(Hypercall::SetGdt), frames.as_ptr() as usize, entries) }).map(drop)
}

/// 3: the kernel's stack for entries from ring 3.
///
/// # Safety
/// The stack is the kernel's to use for this.
#[inline]
pub unsafe fn stack_switch(ss: Selector, sp: GuestVirt) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    check(unsafe { hypercall2(number(Hypercall::StackSwitch), ss.raw().into(), sp.raw() as usize) }).map(drop)
}

/// 4: the callbacks for events and for segment registers that cannot be restored.
///
/// # Safety
/// Both are entry points made for it.
#[inline]
pub unsafe fn set_callbacks(event: (Selector, GuestVirt), failsafe: (Selector, GuestVirt)) -> Result<(), Errno> {
    // On x86_64 there is one more argument: no entry for system calls.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    return unsafe { set_callbacks_of_both(event, failsafe, GuestVirt(0)) };
    #[cfg(target_arch = "x86")]
    // SAFETY: the caller's promise.
    check(unsafe {
        hypercall4(
            number(Hypercall::SetCallbacks),
            event.0.raw().into(),
            event.1.raw() as usize,
            failsafe.0.raw().into(),
            failsafe.1.raw() as usize,
        )
    })
    .map(drop)
}

/// 4: as [`set_callbacks`], and where the `syscall` of applications leads.
///
/// # Safety
/// All are entry points made for it.
#[cfg(target_arch = "x86_64")]
pub unsafe fn set_callbacks_of_both(
    event: (Selector, GuestVirt),
    failsafe: (Selector, GuestVirt),
    system_call: GuestVirt,
) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    check(unsafe {
        hypercall5(
            number(Hypercall::SetCallbacks),
            event.0.raw().into(),
            event.1.raw() as usize,
            failsafe.0.raw().into(),
            failsafe.1.raw() as usize,
            system_call.raw() as usize,
        )
    })
    .map(drop)
}

/// 5: the next use of the floating-point unit raises #NM, once.
#[inline]
pub fn fpu_taskswitch() -> Result<(), Errno> {
    // SAFETY: changes no memory.
    check(unsafe { hypercall0(number(Hypercall::FpuTaskswitch)) }).map(drop)
}

/// 31, where the hypervisor has its option `audit=calls`: the memory of the whole machine is checked. Where something
/// is amiss, that is the machine's end; where the option is off, the error is ENOSYS.
pub fn audit() -> Result<(), Errno> {
    // SAFETY: changes no memory.
    check(unsafe { hypercall0(AUDIT_CALL as usize) }).map(drop)
}

/// 6: gives the CPU up.
#[inline]
pub fn sched_yield() -> Result<(), Errno> {
    // SAFETY: changes no memory.
    check(unsafe { hypercall1(number(Hypercall::SchedOp), SchedOp::Yield.raw() as usize) }).map(drop)
}

/// 6: unmasks upcalls and waits until an event is pending.
#[inline]
pub fn sched_block() -> Result<(), Errno> {
    // SAFETY: changes no memory but the shared page, which is atomic.
    check(unsafe { hypercall1(number(Hypercall::SchedOp), SchedOp::Block.raw() as usize) }).map(drop)
}

/// 6: ends the domain; see [`crate::shutdown::shutdown`].
#[inline]
pub fn shutdown(reason: Reason) -> Result<(), Errno> {
    let op = SchedOp::Shutdown.raw() | u32::from(reason.0) << SCHEDOP_REASONSHIFT;
    // SAFETY: changes no memory.
    check(unsafe { hypercall1(number(Hypercall::SchedOp), op as usize) }).map(drop)
}

/// 7: control of domains and of the machine. `op` points to a `dom0_op_t`.
///
/// # Safety
/// The operation, and every address in it, is sound to carry out.
#[inline]
pub unsafe fn dom0_op<T>(op: &mut T) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    check(unsafe { hypercall1(number(Hypercall::Dom0Op), &raw mut *op as usize) })
}

/// 8: sets a debug register.
#[inline]
pub fn set_debugreg(register: usize, value: usize) -> Result<(), Errno> {
    // SAFETY: changes no memory; breakpoints raise traps, which have handlers.
    check(unsafe { hypercall2(number(Hypercall::SetDebugreg), register, value) }).map(drop)
}

/// 9: reads a debug register. A register that does not exist gives an error that looks like a value.
#[inline]
pub fn get_debugreg(register: usize) -> usize {
    // SAFETY: changes nothing.
    unsafe { hypercall1(number(Hypercall::GetDebugreg), register) }
}

/// 10: changes one descriptor, at its machine address.
///
/// # Safety
/// The descriptors of the selectors in use stay as they are.
#[inline]
pub unsafe fn update_descriptor(at: MachineAddr, descriptor: u64) -> Result<(), Errno> {
    let (low, high) = (descriptor as u32 as usize, (descriptor >> 32) as usize);
    // SAFETY: the caller's promise.
    check(unsafe { hypercall3(number(Hypercall::UpdateDescriptor), at.raw() as usize, low, high) }).map(drop)
}

/// 11: one vector (0x80, 0x20 to 0x2f) goes straight to the kernel; 0 undoes it.
#[inline]
pub fn set_fast_trap(vector: u8) -> Result<(), Errno> {
    // SAFETY: the trap table has the vector's handler.
    check(unsafe { hypercall1(number(Hypercall::SetFastTrap), vector.into()) }).map(drop)
}

/// 12: asks for memory or gives it back, in extents of 2^`order` frames. Returns how many extents were done.
///
/// # Safety
/// Frames given back are in use nowhere.
#[inline]
pub unsafe fn dom_mem_op(op: DomMemOp, extents: &mut [Word], order: u32, domain: DomId) -> Result<usize, Errno> {
    // SAFETY: the list is read and written; the rest is the caller's promise.
    check(unsafe {
        hypercall5(
            number(Hypercall::DomMemOp),
            op.raw() as usize,
            extents.as_mut_ptr() as usize,
            extents.len(),
            order as usize,
            domain.raw().into(),
        )
    })
}

/// 13: several calls at once; each result replaces its entry's sixth argument.
///
/// # Safety
/// As each of the calls asks.
#[inline]
pub unsafe fn multicall(calls: &mut [MulticallEntry<Arch>]) -> Result<(), Errno> {
    // SAFETY: the list is read and written; the rest is the caller's promise.
    check(unsafe { hypercall2(number(Hypercall::Multicall), calls.as_mut_ptr() as usize, calls.len()) }).map(drop)
}

/// 14: changes the L1 entry of a virtual page.
///
/// # Safety
/// No reference the compiler knows of becomes invalid by the change.
#[inline]
pub unsafe fn update_va_mapping(at: GuestVirt, entry: Pte, flags: UpdateVaFlags) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    check(unsafe {
        hypercall3(number(Hypercall::UpdateVaMapping), page_number(at), entry.0 as usize, flags.bits() as usize)
    })
    .map(drop)
}

/// 15: the system time, in nanoseconds, of the next timer event; 0 for none.
#[inline]
pub fn set_timer_op(system_time_ns: u64) -> Result<(), Errno> {
    let (high, low) = ((system_time_ns >> 32) as usize, system_time_ns as u32 as usize);
    // SAFETY: changes no memory.
    check(unsafe { hypercall2(number(Hypercall::SetTimerOp), high, low) }).map(drop)
}

/// 16: an operation on event channels. Returns the argument as the hypervisor filled it in.
#[inline]
pub fn event_channel_op<T: EvtchnArgument>(argument: T) -> Result<T, Errno> {
    let mut op = EvtchnOp::new(argument);
    // SAFETY: `op` is read and written, nothing else.
    check(unsafe { hypercall1(number(Hypercall::EventChannelOp), &raw mut op as usize) })?;
    Ok(op.argument())
}

/// 16: sends an event. Nothing comes back, and of the request only what says so is written.
#[inline(always)]
pub fn event_channel_send(send: EvtchnSend) -> Result<(), Errno> {
    let mut op = MaybeUninit::<EvtchnOp>::uninit();
    let at = op.as_mut_ptr();
    // SAFETY: two fields of the request, the second as large as a command's argument can be. The hypervisor reads the
    // rest, if at all, as the bytes that are there.
    unsafe {
        (&raw mut (*at).cmd).write_unaligned(EvtchnSend::COMMAND.raw());
        (&raw mut (*at).u).cast::<EvtchnSend>().write_unaligned(send);
    }
    // SAFETY: the request is read, nothing is written.
    check(unsafe { hypercall1(number(Hypercall::EventChannelOp), at as usize) }).map(drop)
}

/// 17: the interface's version, major number in bits 16 to 31.
#[inline]
pub fn xen_version() -> Result<u32, Errno> {
    // SAFETY: changes no memory.
    check(unsafe { hypercall1(number(Hypercall::XenVersion), 0) }).map(|version| version as u32)
}

/// 18: writes to the emergency console, up to the first NUL. Returns how many bytes were taken.
#[inline]
pub fn console_write(bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the bytes are read, nothing is written.
    check(unsafe {
        hypercall3(number(Hypercall::ConsoleIo), ConsoleIo::Write.raw() as usize, bytes.len(), bytes.as_ptr() as usize)
    })
}

/// 18: reads from the emergency console. Returns how many bytes there were.
#[inline]
pub fn console_read(into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: at most so many bytes are written.
    check(unsafe {
        hypercall3(number(Hypercall::ConsoleIo), ConsoleIo::Read.raw() as usize, into.len(), into.as_mut_ptr() as usize)
    })
}

/// 19: PCI and interrupts. `op` points to a `physdev_op_t`.
///
/// # Safety
/// What the operation does to a device is sound.
#[inline]
pub unsafe fn physdev_op<T>(op: &mut T) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    check(unsafe { hypercall1(number(Hypercall::PhysdevOp), &raw mut *op as usize) })
}

/// 20: operations on grants, each with a status of its own. Returns the call's result.
///
/// # Safety
/// Mappings made or undone leave every reference valid; frames transferred are in use nowhere.
#[inline]
pub unsafe fn grant_table_op<T>(command: u32, operations: &mut [T]) -> Result<usize, Errno> {
    // SAFETY: the list is read and written; the rest is the caller's promise.
    check(unsafe {
        hypercall3(
            number(Hypercall::GrantTableOp),
            command as usize,
            operations.as_mut_ptr() as usize,
            operations.len(),
        )
    })
}

/// 21: turns an assistance on or off.
#[inline]
pub fn vm_assist(command: VmAssistCommand, what: VmAssistType) -> Result<(), Errno> {
    // SAFETY: changes no memory.
    check(unsafe { hypercall2(number(Hypercall::VmAssist), command.raw() as usize, what.raw() as usize) }).map(drop)
}

/// 22: as [`update_va_mapping`], with a frame of another domain.
///
/// # Safety
/// See [`update_va_mapping`].
#[inline]
pub unsafe fn update_va_mapping_otherdomain(
    at: GuestVirt,
    entry: Pte,
    flags: UpdateVaFlags,
    domain: DomId,
) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    check(unsafe {
        hypercall4(
            number(Hypercall::UpdateVaMappingOtherdomain),
            page_number(at),
            entry.0 as usize,
            flags.bits() as usize,
            domain.raw().into(),
        )
    })
    .map(drop)
}

/// 25: sets the base of fs or gs.
///
/// # Safety
/// The base is the caller's to use; this SDK uses neither register.
#[inline]
#[cfg(target_arch = "x86_64")]
pub unsafe fn set_segment_base(which: proxenos_abi::hypercall::SegmentBase, base: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    check(unsafe { hypercall2(number(Hypercall::SetSegmentBase), which.raw() as usize, base as usize) }).map(drop)
}

/// 23: leaves the kernel for an application. Does not come back.
///
/// # Safety
/// What runs then comes back only through a trap, a system call or an event, on the stack of [`stack_switch`].
#[inline]
#[cfg(target_arch = "x86_64")]
pub unsafe fn switch_to_user(frame: &proxenos_abi::hypercall::SwitchToUser) -> ! {
    // SAFETY: the frame is at the stack pointer when the call is made; the rest is the caller's promise.
    unsafe {
        core::arch::asm!(
            "mov rsp, {frame}",
            "syscall",
            "ud2",
            frame = in(reg) &raw const *frame,
            in("rax") number(Hypercall::SwitchToUser),
            options(noreturn),
        )
    }
}

/// The machine frame numbers as [`set_gdt`] wants them.
#[inline]
pub fn frame_word(frame: Mfn) -> Word {
    frame.raw() as Word
}
