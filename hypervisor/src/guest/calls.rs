//! The hypercalls' fast path: from `int 0x82` or `syscall` to the call's handler and back, saving only the registers
//! that the compiled code between may change.
//!
//! An entry builds a [`TrapFrame`] where every trap from a guest has one, but fills in no more than it must. It calls
//! the handler of the number through a table (one instance of [`handle`] a number, so each holds its own call's code
//! only), and then looks at two things: whether the call left something to do ([`CpuLocal::attention`]), and whether
//! the guest waits for an upcall, which mostly has a short way too ([`quick::upcall`]). If neither, it returns at once.
//! Else it completes the frame (the registers that the ABI makes callees preserve are the guest's again) and goes the
//! way of all other traps, [`leave_after_call`].
//!
//! [`CpuLocal::attention`]: super::CpuLocal

use super::hw::Hw;
use super::quick::LOCAL;
use super::{CpuLocal, Running, audit, hand_over, leave, quick, timer, trace, user};
use crate::cpu::entry::TrapFrame;
use crate::cpu::percpu::{Cpu, Pending};
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, Ordering};
use proxenos_abi::hypercall::AUDIT_CALL;
use proxenos_abi::{Errno, Hypercall, X86_32, X86_64};
use proxenos_core::domain::Arch;
use proxenos_core::hypercall::{answer, is_yield, xen_version};
use proxenos_core::paging::Pager;
use proxenos_core::personality::Personality;
use proxenos_core::preempt::Answer;
use proxenos_core::trace::Event;

/// Length of `int 0x82`, and of `syscall`: a call that made way is made again from so far back.
const CALL_BYTES: u64 = 2;

/// Numbers that the tables cover; none above exists.
const NUMBERS: usize = 32;

/// A call's handler. The frame has the arguments, in the registers of [`CallRegisters`], and where the call was made.
/// What it returns goes into the guest's eax or rax.
type Handler = extern "C" fn(&mut TrapFrame) -> u64;

/// Where a call has its arguments. Each handler loads those of its own call, no more.
pub(super) trait CallRegisters: Personality {
    /// The arguments of a call, as wide as the guest's registers.
    fn arguments(frame: &TrapFrame) -> [u64; 6];
}

impl CallRegisters for X86_32 {
    #[inline(always)]
    fn arguments(frame: &TrapFrame) -> [u64; 6] {
        [frame.rbx, frame.rcx, frame.rdx, frame.rsi, frame.rdi, 0].map(|register| register & 0xffff_ffff)
    }
}

impl CallRegisters for X86_64 {
    #[inline(always)]
    fn arguments(frame: &TrapFrame) -> [u64; 6] {
        [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, 0]
    }
}

/// One handler a number.
macro_rules! table {
    ($handler:ident, $arch:ty) => {
        table!($handler, $arch: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    ($handler:ident, $arch:ty: $($number:literal)*) => {{
        let mut calls: Table = [$($handler::<$arch, $number>),*];
        if let Arch::X86_64 = <$arch as Personality>::ARCH {
            calls[Hypercall::SwitchToUser.raw() as usize] = user::switch_to_user_entry;
        }
        calls
    }};
}

/// With the entries of [`hand_over`], which go on with the plain handler where there is no short way.
const fn with_short_yield(mut calls: Table, entry: Handler) -> Table {
    calls[Hypercall::SchedOp.raw() as usize] = entry;
    calls
}

/// The handlers of all numbers.
type Table = [Handler; NUMBERS];

static PLAIN_32: Table = with_short_yield(table!(handle, X86_32), hand_over::yield_entry_32);
static PLAIN_64: Table = with_short_yield(table!(handle, X86_64), hand_over::yield_entry_64);
/// The same, with a record of each call: but for `switch_to_user`, which does not return.
static TRACED_32: Table = table!(traced, X86_32);
static TRACED_64: Table = table!(traced, X86_64);

/// The tables in use: so a trace costs nobody anything who does not want one.
static CALLS_32: AtomicPtr<Table> = AtomicPtr::new((&raw const PLAIN_32).cast_mut());
static CALLS_64: AtomicPtr<Table> = AtomicPtr::new((&raw const PLAIN_64).cast_mut());

/// From now on each call is recorded.
pub(super) fn trace_all() {
    CALLS_32.store((&raw const TRACED_32).cast_mut(), Ordering::Release);
    CALLS_64.store((&raw const TRACED_64).cast_mut(), Ordering::Release);
}

/// Records a call, and carries it out.
extern "C" fn traced<P: CallRegisters, const N: u32>(frame: &mut TrapFrame) -> u64 {
    let [first, second, ..] = P::arguments(frame);
    if let Some((_, caller)) = quick::cpu_of(frame).local.domain() {
        trace::event(|| Event::Hypercall { caller: caller.id, number: N, arguments: [first, second] });
    }
    handle::<P, N>(frame)
}

/// What a call may leave to do before the guest goes on, besides an upcall.
#[derive(PartialEq, Eq)]
enum Leaves {
    Nothing,
    /// The end of its domain, or its sleep.
    RunState,
    /// Those, or a new time for the timer, or the CPU for others.
    Anything,
}

const fn leaves(number: Hypercall) -> Leaves {
    match number {
        Hypercall::SetTrapTable
        | Hypercall::StackSwitch
        | Hypercall::SetCallbacks
        | Hypercall::FpuTaskswitch
        | Hypercall::EventChannelOp
        | Hypercall::XenVersion => Leaves::Nothing,
        Hypercall::MmuUpdate | Hypercall::UpdateVaMapping | Hypercall::UpdateVaMappingOtherdomain => Leaves::RunState,
        _ => Leaves::Anything,
    }
}

/// Carries out call `N`.
pub(super) extern "C" fn handle<P: CallRegisters, const N: u32>(frame: &mut TrapFrame) -> u64 {
    let Some(number) = Hypercall::from_raw(N) else {
        return if N == AUDIT_CALL { audit::call(frame) } else { Errno::ENOSYS.to_result() as u64 };
    };
    let args = P::arguments(frame);
    match number {
        Hypercall::XenVersion => return xen_version(args[0]),
        Hypercall::MmuUpdate
        | Hypercall::UpdateVaMapping
        | Hypercall::Multicall
        | Hypercall::EventChannelOp
        | Hypercall::Dom0Op => {}
        Hypercall::SchedOp if is_yield(args[0]) => return yield_to_others::<P>(frame),
        Hypercall::SchedOp => return carry_out_at_length::<P>(frame, number),
        _ => return carry_out::<P>(frame, number),
    }
    let cpu = quick::cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function, or where another begins.
    let Some(run) = (unsafe { cpu.local.running() }) else { return carry_out_at_length::<P>(frame, number) };
    let Some(result) = answer::<P, Hw>(run.host, &run.dom, &mut run.vcpu, number, &args) else {
        return carry_out_at_length::<P>(frame, number);
    };
    // Nothing of what is left to do is this call's, but the end of its domain.
    if leaves(number) != Leaves::Nothing && !run.dom.run_state().is_empty() {
        cpu.local.attention.store(1, Ordering::Relaxed);
    }
    result
}

/// `sched_op(yield)` that has no short way ([`hand_over`]). Page tables are closed here where there is nobody to have
/// the CPU, and else on the way to another domain (`attend`); who has a bad one gets no further.
#[inline(always)]
fn yield_to_others<P: CallRegisters>(frame: &mut TrapFrame) -> u64 {
    let cpu = quick::cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else {
        return carry_out_at_length::<P>(frame, Hypercall::SchedOp);
    };
    run.vcpu.call_made_way = false;
    if cpu.local.alone.get() {
        return yield_to_nobody(cpu, run);
    }
    run.vcpu.reschedule = true;
    cpu.local.attention.store(1, Ordering::Relaxed);
    0
}

/// A yield of the only one that can run here, which goes on.
#[inline(never)]
fn yield_to_nobody(cpu: &Cpu, run: &mut Running) -> u64 {
    run.vcpu.reschedule = false;
    if run.dom.has_busy_tables() {
        close_tables(cpu, run);
    }
    0
}

#[cold]
#[inline(never)]
fn close_tables(cpu: &Cpu, run: &Running) {
    drop(Pager::new(run.host, &run.dom).lock());
    if !run.dom.run_state().is_empty() {
        cpu.local.attention.store(1, Ordering::Relaxed);
    }
}

/// Carries out a call to which there was no quick answer. Out of the way of those to which there is.
#[inline(never)]
fn carry_out_at_length<P: CallRegisters>(frame: &mut TrapFrame, number: Hypercall) -> u64 {
    match number {
        Hypercall::MmuUpdate => carry_out::<P>(frame, Hypercall::MmuUpdate),
        Hypercall::Multicall => carry_out::<P>(frame, Hypercall::Multicall),
        Hypercall::EventChannelOp => carry_out::<P>(frame, Hypercall::EventChannelOp),
        Hypercall::Dom0Op => carry_out::<P>(frame, Hypercall::Dom0Op),
        Hypercall::SchedOp => carry_out::<P>(frame, Hypercall::SchedOp),
        _ => carry_out::<P>(frame, Hypercall::UpdateVaMapping),
    }
}

/// Carries out a call.
#[inline(always)]
fn carry_out<P: CallRegisters>(frame: &mut TrapFrame, number: Hypercall) -> u64 {
    let cpu = quick::cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    let result = match run.caller(frame).call_at_length::<P>(number, &P::arguments(frame)) {
        Answer::Done(result) => result,
        Answer::Again => return again::<P>(cpu, frame, number),
    };
    if matches!(number, Hypercall::VmAssist | Hypercall::Multicall) {
        cpu.local.notes.note_assists(&run.dom);
    }
    match number {
        Hypercall::SchedOp => run.yield_to_others(cpu),
        Hypercall::SetTimerOp => timer::defer(run, cpu),
        _ => {}
    }
    let leaves = leaves(number);
    let changes = leaves == Leaves::Anything && (run.vcpu.reschedule || run.vcpu.timer_changed);
    if changes || leaves != Leaves::Nothing && !run.dom.run_state().is_empty() {
        cpu.local.attention.store(1, Ordering::Relaxed);
    }
    result
}

/// A call made way: the guest is sent back to the instruction, with its number where that expects it, and what is due
/// is done before. (Of `syscall`, rcx and r11 are loaded once more.)
#[cold]
fn again<P: Personality>(cpu: &Cpu, frame: &mut TrapFrame, number: Hypercall) -> u64 {
    frame.rip = frame.rip.wrapping_sub(CALL_BYTES);
    if P::ARCH == Arch::X86_32 {
        frame.rip &= 0xffff_ffff;
    }
    // The timer's interrupt has not been taken yet.
    cpu.set_pending(Pending::TIMER);
    cpu.local.attention.store(1, Ordering::Relaxed);
    number.raw().into()
}

/// A call left something to do. The frame is complete.
extern "C" fn leave_after_call(frame: &mut TrapFrame) {
    let cpu = quick::cpu_of(frame);
    cpu.local.attention.store(0, Ordering::Relaxed);
    // SAFETY: the one reference of this entry: the handler's has ended.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    leave(cpu, run, frame);
}

/// What `vector` says in a frame that `syscall` built: no gate has it.
pub(super) const FROM_SYSCALL: u64 = 0x100;

// Registers of the frame are named by their offsets. `int 0x82` comes from ring 1 alone, in 32-bit code: r8 to r15 are
// nobody's.
global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".balign 16",
    ".globl hypercall_entry",
    "hypercall_entry:",
    "   subq ${rip}, %rsp",
    "   movq %rdi, {rdi}(%rsp)",
    "   movq %rsi, {rsi}(%rsp)",
    "   movq %rdx, {rdx}(%rsp)",
    "   movq %rcx, {rcx}(%rsp)",
    "   movq %rbx, {rbx}(%rsp)",
    "   cld",
    "   movl %eax, %eax",
    "   cmpl ${numbers}, %eax",
    "   jae 8f",
    "   movq %rsp, %rdi",
    "   movq {calls_32}(%rip), %r11",
    "   callq *(%r11, %rax, 8)",
    "2: cmpl $0, {attention}(%rsp)",
    "   jne 9f",
    // An upcall is due when pending is not zero and the mask, the next byte, is. Mostly there is none.
    "   movq {shared}(%rsp), %rdx",
    "   cmpb $0, (%rdx)",
    "   jne 4f",
    "3:",
    "   movq {rcx}(%rsp), %rcx",
    "   movq {rdx}(%rsp), %rdx",
    "   movq {rsi}(%rsp), %rsi",
    "   movq {rdi}(%rsp), %rdi",
    "   addq ${rip}, %rsp",
    ".globl hypercall_iret",
    "hypercall_iret:",
    "   iretq",
    "8: movl ${enosys}, %eax",
    "   jmp 2b",
    "4: cmpb $0, 1(%rdx)",
    "   jne 3b",
    "   movq %rax, {rax}(%rsp)",
    "   movq %rsp, %rdi",
    "   callq {upcall_32}",
    "   testl %eax, %eax",
    "   movq {rax}(%rsp), %rax",
    "   jz 3b",
    "9: movl %eax, %eax",
    "   movq ${int82}, {vector}(%rsp)",
    "   movq $0, {r8}(%rsp)",
    "   movq $0, {r9}(%rsp)",
    "   movq $0, {r10}(%rsp)",
    "   movq $0, {r11}(%rsp)",
    "   jmp complete_frame",
    ".balign 16",
    ".globl syscall_common",
    "syscall_common:",
    "   subq ${rip}, %rsp",
    "   movq %rdi, {rdi}(%rsp)",
    "   movq %rsi, {rsi}(%rsp)",
    "   movq %rdx, {rdx}(%rsp)",
    "   movq %r8, {r8}(%rsp)",
    "   movq %r9, {r9}(%rsp)",
    "   movq %r10, {r10}(%rsp)",
    "   cmpq ${numbers}, %rax",
    "   jae 8f",
    "   movq %rsp, %rdi",
    "   movq {calls_64}(%rip), %r11",
    "   callq *(%r11, %rax, 8)",
    ".globl syscall_done",
    "syscall_done:",
    "2: cmpl $0, {attention}(%rsp)",
    "   jne 9f",
    "   movq {shared}(%rsp), %rdx",
    "   cmpb $0, (%rdx)",
    "   jne 4f",
    "3:",
    "   movq {rdi}(%rsp), %rdi",
    "   movq {rsi}(%rsp), %rsi",
    "   movq {rdx}(%rsp), %rdx",
    "   movq {r8}(%rsp), %r8",
    "   movq {r9}(%rsp), %r9",
    "   movq {r10}(%rsp), %r10",
    // As the instruction itself leaves them, so that nothing of ours is seen in them.
    "   movq {rip}(%rsp), %rcx",
    "   movq {rflags}(%rsp), %r11",
    "   addq ${rip}, %rsp",
    ".globl syscall_iret",
    "syscall_iret:",
    "   iretq",
    "8: movq ${enosys}, %rax",
    "   jmp 2b",
    "4: cmpb $0, 1(%rdx)",
    "   jne 3b",
    "   movq %rax, {rax}(%rsp)",
    "   movq %rsp, %rdi",
    "   callq {upcall_64}",
    "   testl %eax, %eax",
    "   movq {rax}(%rsp), %rax",
    "   jz 3b",
    "9: movq ${from_syscall}, {vector}(%rsp)",
    "   movq {rip}(%rsp), %rcx",
    "   movq %rcx, {rcx}(%rsp)",
    "   movq {rflags}(%rsp), %rcx",
    "   movq %rcx, {r11}(%rsp)",
    "complete_frame:",
    "   movq $0, {error_code}(%rsp)",
    "   movq %rax, {rax}(%rsp)",
    "   movq %rbx, {rbx}(%rsp)",
    "   movq %rbp, {rbp}(%rsp)",
    "   movq %r12, {r12}(%rsp)",
    "   movq %r13, {r13}(%rsp)",
    "   movq %r14, {r14}(%rsp)",
    "   movq %r15, {r15}(%rsp)",
    "   xorl %ebp, %ebp",
    "   movq %rsp, %rdi",
    "   callq {leave}",
    "   jmp trap_return",
    ".popsection",
    numbers = const NUMBERS,
    enosys = const Errno::ENOSYS.to_result(),
    int82 = const crate::cpu::idt::Vector::HYPERCALL.0,
    from_syscall = const FROM_SYSCALL,
    calls_32 = sym CALLS_32,
    calls_64 = sym CALLS_64,
    leave = sym leave_after_call,
    upcall_32 = sym quick::upcall::<X86_32>,
    upcall_64 = sym quick::upcall::<X86_64>,
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
    rflags = const offset_of!(TrapFrame, rflags),
    options(att_syntax)
);

unsafe extern "C" {
    static trap_iret: u8;
    static hypercall_iret: u8;
    static syscall_iret: u8;
    static exception_entry_iret: u8;
    static page_fault_entry_iret: u8;
    static no_device_entry_iret: u8;
    static system_call_iret: u8;
    static application_iret: u8;
    static resume_from_iret: u8;
}

/// Whether an address is one of the `iretq`s by which guests are entered: a fault there is the guest's.
pub fn enters_guest(rip: u64) -> bool {
    [
        &raw const trap_iret,
        &raw const hypercall_iret,
        &raw const syscall_iret,
        &raw const exception_entry_iret,
        &raw const page_fault_entry_iret,
        &raw const no_device_entry_iret,
        &raw const system_call_iret,
        &raw const application_iret,
        &raw const resume_from_iret,
    ]
    .iter()
    .any(|at| at.addr() as u64 == rip)
}
