//! An x86_64 guest's applications: the way to them, `switch_to_user`, and the way back by `syscall`. (All other ways
//! back are those into any kernel: [`super::quick`], [`super::deliver`].)
//!
//! Which of the two a `syscall` comes from costs no look: its entry goes on where [`Notes::syscall_to`] says, which
//! changes with the mode. So no number in an application's register is ever a hypercall's, whatever it does.
//!
//! In user mode the application's page tables are loaded. The hypervisor touches guest memory by the kernel's:
//! [`enter_kernel`] comes before a frame is pushed, and hypercalls come from kernels only. The one exception is an
//! instruction that is fetched because an application executed it ([`super::ports`]).

use super::calls::FROM_SYSCALL;
use super::quick::{self, LOCAL, Next, TrapsOf};
use super::{CpuLocal, Notes, Running, deliver, end, hw, leave};
use crate::cpu::entry::TrapFrame;
use crate::cpu::idt::Vector;
use crate::cpu::percpu::Cpu;
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use proxenos_abi::{Errno, GuestArch, X86_64};
use proxenos_core::addr::GuestVirt;
use proxenos_core::bounce::{Callback, Cause, Mode};
use proxenos_core::paging::user_base::{NoUserBase, Settled};
use proxenos_core::user_mode::{self, Application};

/// Length of `syscall`.
const SYSCALL_BYTES: u64 = 2;

unsafe extern "C" {
    fn syscall_common();
    fn syscall_of_application();
    /// Stands in the table of hypercalls; it does not return to where it was called from.
    pub(super) safe fn switch_to_user_entry(frame: &mut TrapFrame) -> u64;
}

/// Where `syscall` goes on when no guest runs that could make one.
///
/// # Safety
/// None: it only has the type of an entry.
pub(super) unsafe extern "C" fn nobody() {
    unreachable!("no guest runs")
}

impl Notes {
    /// To be called when an x86_64 domain changes its mode.
    #[inline]
    pub(super) fn note_mode(&self, mode: Mode) {
        self.syscall_to.set(match mode {
            Mode::Kernel => syscall_common,
            Mode::User => syscall_of_application,
        });
        self.traps_of.set(match mode {
            Mode::Kernel => TrapsOf::Kernel,
            Mode::User => TrapsOf::Application,
        });
    }
}

/// Changes the mode of the guest that runs here. Waits for the paging lock if another has it: out of the way of those
/// that need not.
#[cold]
#[inline(never)]
fn switch(cpu: &Cpu, run: &mut Running, to: Mode) -> Result<Settled, NoUserBase> {
    let settled = user_mode::switch(run.host, &run.dom, &mut run.vcpu, to, |root| hw::load_root_of_mode(cpu, root))?;
    mode_has_changed(cpu, to);
    Ok(settled)
}

/// The same, if nobody else has that lock; `None` if somebody has, and nothing has changed.
#[inline(always)]
fn switch_at_once(cpu: &Cpu, run: &mut Running, to: Mode) -> Option<Result<Settled, NoUserBase>> {
    let load = |root| hw::load_root_of_mode(cpu, root);
    let switched = user_mode::switch_at_once(run.host, &run.dom, &mut run.vcpu, to, load)?;
    if switched.is_ok() {
        mode_has_changed(cpu, to);
    }
    Some(switched)
}

/// What changes with the mode besides the page tables.
#[inline(always)]
fn mode_has_changed(cpu: &Cpu, to: Mode) {
    // SAFETY: both bases of gs are the guest's, and the hypervisor uses none.
    unsafe { asm!("swapgs", options(nomem, nostack, preserves_flags)) }
    cpu.local.notes.note_mode(to);
}

/// The guest's kernel runs from here on, if it did not already: its page tables, its base of gs.
#[inline]
pub(super) fn enter_kernel(run: &mut Running) {
    if run.vcpu.mode == Mode::User {
        let switched = switch(Cpu::current(), run, Mode::Kernel);
        debug_assert!(switched.is_ok(), "a kernel has something to run on");
    }
}

/// The same, where it was an application that ran.
///
/// # Errors
/// Another has the paging lock; nothing has changed.
#[inline(always)]
pub(super) fn leave_application(cpu: &Cpu, run: &mut Running) -> Result<(), Busy> {
    let switched = switch_at_once(cpu, run, Mode::Kernel).ok_or(Busy)?;
    debug_assert!(switched.is_ok(), "a kernel has something to run on");
    Ok(())
}

/// A short way would have to wait.
pub(super) struct Busy;

/// Undoes [`leave_application`]: nothing has been done yet.
#[cold]
pub(super) fn return_to_application(cpu: &Cpu, run: &mut Running) {
    let switched = switch(cpu, run, Mode::User);
    debug_assert!(switched.is_ok(), "it has had something to run on");
}

/// `switch_to_user()`. 0 is no result: the application goes on.
extern "C" fn switch_to_user(frame: &mut TrapFrame) -> u64 {
    let cpu = quick::cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    let Ok(application) = Application::at_stack(run.host, GuestVirt(frame.rsp)) else {
        return Errno::EFAULT.to_result() as u64;
    };
    let switched = match switch_at_once(cpu, run, Mode::User) {
        Some(switched) => switched,
        None => switch(cpu, run, Mode::User),
    };
    let Ok(settled) = switched else { return Errno::EFAULT.to_result() as u64 };
    let Application { context, rax } = application;
    frame.set_context(&context);
    (frame.rcx, frame.r11) = (context.rcx, context.r11);
    if let Some(rax) = rax {
        frame.rax = rax;
    }
    // A page table that had to be closed may be the domain's end.
    if settled == Settled::Tables && !run.dom.run_state().is_empty() {
        cpu.local.attention.store(1, Ordering::Relaxed);
    }
    0
}

/// An application's `syscall`.
extern "C" fn system_call(frame: &mut TrapFrame) -> Next {
    let cpu = quick::cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else { return Next::LongWay };
    // The entry has saved all but these, which it has twice.
    (frame.rcx, frame.r11) = (frame.rip, frame.rflags);
    match run.vcpu.system_call {
        Some(ip) if !frame.has_forbidden_flags() => {
            let to = Callback { cs: X86_64::FLAT_GUESTOS_CS, ip };
            quick::enter_kernel_from::<X86_64>(run, frame, Mode::User, |_| Some(to), &Cause::Plain)
        }
        _ => Next::LongWay,
    }
}

/// The same at length. The frame is complete.
extern "C" fn system_call_at_length(frame: &mut TrapFrame) {
    if frame.has_forbidden_flags() {
        end::stop_lawless(frame);
    }
    let cpu = Cpu::current();
    // SAFETY: the one reference of this entry: that of the short way has ended.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    match run.vcpu.system_call {
        Some(ip) => {
            let to = Callback { cs: X86_64::FLAT_GUESTOS_CS, ip };
            deliver::enter_kernel(run, frame, &to, &Cause::Plain);
        }
        // An instruction that the guest does not have, but for what has become of rcx and r11.
        None => {
            frame.rip = frame.rip.wrapping_sub(SYSCALL_BYTES);
            deliver::exception(run, frame, Vector(6), 0, None);
        }
    }
    leave(cpu, run, frame);
}

/// What is due is done, and perhaps the kernel entered, before the guest goes on. The frame is complete.
extern "C" fn leave_after_switch(frame: &mut TrapFrame) {
    let cpu = Cpu::current();
    cpu.local.attention.store(0, Ordering::Relaxed);
    // SAFETY: the one reference of this entry: that of what was done has ended.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    leave(cpu, run, frame);
}

// As the entries of `super::calls`: registers of the frame are named by their offsets.
global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".balign 16",
    ".globl syscall_of_application",
    "syscall_of_application:",
    "   subq ${rip}, %rsp",
    "   movq %rdi, {rdi}(%rsp)",
    "   movq %rsi, {rsi}(%rsp)",
    "   movq %rdx, {rdx}(%rsp)",
    "   movq %rax, {rax}(%rsp)",
    "   movq %r8, {r8}(%rsp)",
    "   movq %r9, {r9}(%rsp)",
    "   movq %r10, {r10}(%rsp)",
    "   movq %rsp, %rdi",
    "   callq {system_call}",
    "   testl %eax, %eax",
    "   jnz 8f",
    "2: cmpl $0, {attention}(%rsp)",
    "   jne 9f",
    // An upcall is due when pending is not zero and the mask, the next byte, is.
    "   movq {shared}(%rsp), %rdx",
    "   cmpb $0, (%rdx)",
    "   jne 4f",
    "3: movq {rdi}(%rsp), %rdi",
    "   movq {rsi}(%rsp), %rsi",
    "   movq {rdx}(%rsp), %rdx",
    "   movq {rcx}(%rsp), %rcx",
    "   movq {rax}(%rsp), %rax",
    "   movq {r8}(%rsp), %r8",
    "   movq {r9}(%rsp), %r9",
    "   movq {r10}(%rsp), %r10",
    "   movq {r11}(%rsp), %r11",
    "   addq ${rip}, %rsp",
    ".globl application_iret",
    "application_iret:",
    "   iretq",
    "4: cmpb $0, 1(%rdx)",
    "   jne 3b",
    "9: leaq {leave}(%rip), %rax",
    "   jmp 5f",
    "8: leaq {at_length}(%rip), %rax",
    "5: movq ${vector_of_syscall}, {vector}(%rsp)",
    "   movq $0, {error_code}(%rsp)",
    "   movq %rbx, {rbx}(%rsp)",
    "   movq %rbp, {rbp}(%rsp)",
    "   movq %r12, {r12}(%rsp)",
    "   movq %r13, {r13}(%rsp)",
    "   movq %r14, {r14}(%rsp)",
    "   movq %r15, {r15}(%rsp)",
    "   xorl %ebp, %ebp",
    "   movq %rsp, %rdi",
    "   callq *%rax",
    "   jmp trap_return",
    // In the place of a call's handler: what `syscall_common` has saved is what the application gets, rax included.
    ".balign 16",
    ".globl switch_to_user_entry",
    "switch_to_user_entry:",
    "   addq $8, %rsp",
    "   movq %rax, {rax}(%rsp)",
    "   callq {switch_to_user}",
    "   testq %rax, %rax",
    "   jz 2b",
    "   jmp syscall_done",
    ".popsection",
    system_call = sym system_call,
    at_length = sym system_call_at_length,
    leave = sym leave_after_switch,
    switch_to_user = sym switch_to_user,
    vector_of_syscall = const FROM_SYSCALL,
    attention = const LOCAL + offset_of!(CpuLocal, attention),
    shared = const LOCAL + offset_of!(CpuLocal, shared),
    r15 = const offset_of!(TrapFrame, r15),
    r14 = const offset_of!(TrapFrame, r14),
    r13 = const offset_of!(TrapFrame, r13),
    r12 = const offset_of!(TrapFrame, r12),
    rbp = const offset_of!(TrapFrame, rbp),
    rbx = const offset_of!(TrapFrame, rbx),
    r11 = const offset_of!(TrapFrame, r11),
    r10 = const offset_of!(TrapFrame, r10),
    r9 = const offset_of!(TrapFrame, r9),
    r8 = const offset_of!(TrapFrame, r8),
    rax = const offset_of!(TrapFrame, rax),
    rcx = const offset_of!(TrapFrame, rcx),
    rdx = const offset_of!(TrapFrame, rdx),
    rsi = const offset_of!(TrapFrame, rsi),
    rdi = const offset_of!(TrapFrame, rdi),
    vector = const offset_of!(TrapFrame, vector),
    error_code = const offset_of!(TrapFrame, error_code),
    rip = const offset_of!(TrapFrame, rip),
    options(att_syntax)
);
