//! The short way of a yield: the CPU goes to the domain that is next in the queue, where nothing else is due.
//!
//! Its entries stand in the tables of hypercalls ([`super::calls`]), but for those that are recorded. They save the
//! guest's registers at once where a parked domain has them, since mostly another goes on; then [`attempt`] does what
//! the long way does (`attend` and `change` in [`super`]), made of the same parts. It leaves out what has nothing to do
//! there: no interrupt left anything, the domain is neither at its end nor about to wait, nobody has been woken or told
//! of, nothing is recorded, and the queue has a short way of its own
//! ([`RunQueue::hand_over`](proxenos_core::sched::RunQueue::hand_over)). Otherwise nothing has been changed, but that
//! no page table of the domain's is open any more, and the call goes its usual way.
//!
//! What another CPU does to either domain meanwhile comes behind that: it notes the domain and interrupts this CPU,
//! which takes that at the guest's first instruction.
//!
//! No lock but those of its parts, one after another as there.

use super::calls::{FROM_SYSCALL, handle};
use super::quick::{self, LOCAL};
use super::switch::{self, Context, Loaded};
use super::{CpuLocal, Running, leave, sched, timer};
use crate::cpu::entry::{TrapFrame, resume_guest};
use crate::cpu::idt::Vector;
use crate::time;
use core::arch::global_asm;
use core::mem::offset_of;
use proxenos_abi::hypercall::{SCHEDOP_CMDMASK, SchedOp};
use proxenos_abi::{GuestArch, Hypercall, X86_32, X86_64};
use proxenos_core::paging::Pager;

unsafe extern "C" {
    /// `sched_op` of x86_32 and of x86_64, for the tables of hypercalls. They go on with the plain handler if there is
    /// no short way.
    pub(super) safe fn yield_entry_32(frame: &mut TrapFrame) -> u64;
    pub(super) safe fn yield_entry_64(frame: &mut TrapFrame) -> u64;
}

/// Where a domain that runs has the frame that it goes on with when it has been parked.
const SAVED: usize = offset_of!(Running, context) + offset_of!(Context, frame);

// As the entries look for it.
const _: () = assert!(SchedOp::Yield.raw() == 0 && SCHEDOP_CMDMASK == 0xff);

// Called as a handler is: the guest's arguments are where they were, and in the frame; of `int 0x82`, r8 to r15 are
// nobody's, and of `syscall` rcx and r11. A domain runs here, since it makes a call.
global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".balign 16",
    ".globl yield_entry_32",
    "yield_entry_32:",
    "   testb %bl, %bl",
    "   jnz 9f",
    "   cmpb $0, {alone}(%rdi)",
    "   jne 9f",
    "   movq {running}(%rdi), %r8",
    "   movq {rdi}(%rdi), %r9",
    "   movq {rip}(%rdi), %r10",
    "   movq {cs}(%rdi), %r11",
    "   movq %r9, {saved}+{rdi}(%r8)",
    "   movq %r10, {saved}+{rip}(%r8)",
    "   movq %r11, {saved}+{cs}(%r8)",
    "   movq {rflags}(%rdi), %r9",
    "   movq {rsp}(%rdi), %r10",
    "   movq {ss}(%rdi), %r11",
    "   movq %r9, {saved}+{rflags}(%r8)",
    "   movq %r10, {saved}+{rsp}(%r8)",
    "   movq %r11, {saved}+{ss}(%r8)",
    "   movq %rsi, {saved}+{rsi}(%r8)",
    "   movq %rdx, {saved}+{rdx}(%r8)",
    "   movq %rcx, {saved}+{rcx}(%r8)",
    "   movq %rbx, {saved}+{rbx}(%r8)",
    "   movq %rbp, {saved}+{rbp}(%r8)",
    "   movq $0, {saved}+{rax}(%r8)",
    "   movq ${int82}, {saved}+{vector}(%r8)",
    "   movq %r8, %rsi",
    "   pushq %rdi",
    "   callq {attempt}",
    "   popq %rdi",
    "9: jmp {plain_32}",
    ".balign 16",
    ".globl yield_entry_64",
    "yield_entry_64:",
    "   cmpb $0, {rdi}(%rdi)",
    "   jne 9f",
    "   cmpb $0, {alone}(%rdi)",
    "   jne 9f",
    "   movq {running}(%rdi), %r11",
    "   movq {rdi}(%rdi), %rcx",
    "   movq %rcx, {saved}+{rdi}(%r11)",
    "   movq {rsp}(%rdi), %rcx",
    "   movq %rcx, {saved}+{rsp}(%r11)",
    // As the instruction itself leaves them, and its entry fills the frame.
    "   movq ${cs_64}, {saved}+{cs}(%r11)",
    "   movq ${ss_64}, {saved}+{ss}(%r11)",
    "   movq {rip}(%rdi), %rcx",
    "   movq %rcx, {saved}+{rip}(%r11)",
    "   movq %rcx, {saved}+{rcx}(%r11)",
    "   movq {rflags}(%rdi), %rcx",
    "   movq %rcx, {saved}+{rflags}(%r11)",
    "   movq %rcx, {saved}+{r11}(%r11)",
    "   movq %rsi, {saved}+{rsi}(%r11)",
    "   movq %rdx, {saved}+{rdx}(%r11)",
    "   movq %r8, {saved}+{r8}(%r11)",
    "   movq %r9, {saved}+{r9}(%r11)",
    "   movq %r10, {saved}+{r10}(%r11)",
    "   movq %rbx, {saved}+{rbx}(%r11)",
    "   movq %rbp, {saved}+{rbp}(%r11)",
    "   movq %r12, {saved}+{r12}(%r11)",
    "   movq %r13, {saved}+{r13}(%r11)",
    "   movq %r14, {saved}+{r14}(%r11)",
    "   movq %r15, {saved}+{r15}(%r11)",
    "   movq $0, {saved}+{rax}(%r11)",
    "   movq ${from_syscall}, {saved}+{vector}(%r11)",
    "   movq %r11, %rsi",
    "   pushq %rdi",
    "   callq {attempt}",
    "   popq %rdi",
    "9: jmp {plain_64}",
    ".popsection",
    int82 = const Vector::HYPERCALL.0,
    from_syscall = const FROM_SYSCALL,
    cs_64 = const X86_64::FLAT_GUESTOS_CS.0,
    ss_64 = const X86_64::FLAT_GUESTOS_DS.0,
    attempt = sym attempt,
    plain_32 = sym handle::<X86_32, { Hypercall::SchedOp.raw() }>,
    plain_64 = sym handle::<X86_64, { Hypercall::SchedOp.raw() }>,
    alone = const LOCAL + offset_of!(CpuLocal, alone),
    running = const LOCAL + offset_of!(CpuLocal, running),
    saved = const SAVED,
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
    rip = const offset_of!(TrapFrame, rip),
    cs = const offset_of!(TrapFrame, cs),
    rflags = const offset_of!(TrapFrame, rflags),
    rsp = const offset_of!(TrapFrame, rsp),
    ss = const offset_of!(TrapFrame, ss),
    options(att_syntax)
);

/// The domain that runs here yields, and others can run. Mostly this does not return: another goes on, with what was
/// saved of it. It returns if there is no short way. `frame` is where this CPU has that of a guest; what the domain
/// goes on with is in its context.
///
/// (`run` is the one reference of this entry, which the entry has read where [`CpuLocal::running`] does: it ends with
/// this function, or where another's turn begins.)
extern "C" fn attempt(frame: &mut TrapFrame, run: &mut Running) {
    let cpu = quick::cpu_of(frame);
    let local = &cpu.local;
    debug_assert!(!run.vcpu.timer_changed, "who runs has had its timer set");
    if run.dom.has_busy_tables() {
        drop(Pager::new(run.host, &run.dom).lock());
        // What is found in a table that is closed may be the domain's end.
        if !run.dom.run_state().is_empty() {
            return;
        }
    }
    let now = time::now();
    let Some(turn) = sched::hand_over(cpu, now.ns) else { return };
    run.vcpu.call_made_way = false;
    timer::pause(run, now.ns);
    switch::save_all_but_frame(run);
    let mut next = turn.next;
    timer::resume_and_program(cpu, &mut next, &now);
    // SAFETY: it is the one reference, and not used any more.
    let (run, old) = unsafe { local.exchange(run, next) };
    let loaded = switch::load_all_but_frame(cpu, run);
    turn.seat.put(old);
    // As at the end of `attend` and in `leave`.
    if loaded == Loaded::All && !cpu.has_pending() && !run.upcall_is_due() {
        // SAFETY: the domain's tables are loaded, validated, and its frame is that of a guest when it was last
        // interrupted. Nothing that is alive here or in the entry needs to be dropped: whoever ran before has been
        // parked.
        unsafe { switch::resume_saved(run, frame) }
    }
    go_on(run, frame, loaded)
}

/// Another domain's turn has begun, and there is something to do before it goes on.
#[cold]
#[inline(never)]
fn go_on(run: &'static mut Running, frame: &mut TrapFrame, loaded: Loaded) -> ! {
    switch::load_frame(run, frame, loaded);
    leave(quick::cpu_of(frame), run, frame);
    // SAFETY: the domain's tables are loaded, validated, and what is in the frame is what it goes on with. Nothing that
    // is alive here or in the entry needs to be dropped.
    unsafe { resume_guest() }
}
