//! The short ways from a guest into its own kernel: exceptions, and upcalls on the way out of a hypercall. (`int 0x80`
//! has one more before these: [`super::int80`].)
//!
//! Each is a special case of the long way ([`super::trap`], [`super::leave`], [`super::deliver`]), taken when all is as
//! it mostly is: the guest has a handler, its kernel's stack is in the flat segment, aligned to words, and can be
//! written to, and nothing but the guest is concerned. What is pushed and loaded is worked out by the same code
//! ([`proxenos_core::bounce`]). In any other case nothing has been changed but memory below the guest's stack pointer,
//! and the long way begins anew: it decides all cases, so none needs to be told apart here.
//!
//! Like hypercalls ([`super::calls`]) these entries save only the registers that compiled code may change, and look at
//! the same two things behind it. When an exception arrives nothing is due but an upcall: interrupts are off in the
//! hypervisor, and whatever they or a call left to do was done before the guest went on. Only the repair of a page of
//! the guest's stack may leave something, its domain's end, and says so ([`super::repair_access`]).

use super::{CpuLocal, Notes, Running, faults, fpu, leave, user};
use crate::cpu::entry::{TrapFrame, trap_entry};
use crate::cpu::idt::Vector;
use crate::cpu::percpu::Cpu;
use crate::ex_table;
use crate::mm::layout;
use core::arch::{asm, global_asm};
use core::marker::PhantomData;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use proxenos_abi::{GuestWord, Selector, X86_32, X86_64};
use proxenos_core::addr::GuestVirt;
use proxenos_core::bounce::{self, Callback, Cause, Context, FrameMemory, Mode, TrapHandler};
use proxenos_core::domain::Arch;
use proxenos_core::machine::BadPointer;
use proxenos_core::paging::Pager;
use proxenos_core::paging::fault::Page;
use proxenos_core::personality::Personality;
use x86_64::registers::control::Cr2;

/// What is to be done behind a short way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Next {
    /// The guest goes on.
    Guest = 0,
    /// Nothing has been done: the long way is to be taken.
    LongWay = 1,
}

/// Whose exceptions come: the entries below choose by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum TrapsOf {
    /// An x86_32 guest's, in whatever ring.
    X86_32 = 0,
    /// An x86_64 guest's kernel.
    Kernel = 1,
    /// An application of such a kernel.
    Application = 2,
}

/// Who was interrupted: the entries below tell.
trait Interrupted {
    /// The mode.
    const MODE: Mode;
}

/// A guest's kernel.
enum Kernel {}
/// An application.
enum Application {}

impl Interrupted for Kernel {
    const MODE: Mode = Mode::Kernel;
}

impl Interrupted for Application {
    const MODE: Mode = Mode::User;
}

/// A page fault in a guest that is its own.
extern "C" fn page_fault<P: Personality, I: Interrupted>(frame: &mut TrapFrame) -> Next {
    let at = Cr2::read_raw();
    // An x86_32 guest forms no address of the hypervisor's; one that the CPU looks up for it is beyond its tables.
    let is_ours = P::ARCH == Arch::X86_64 && (layout::HYPERVISOR_START..layout::HYPERVISOR_END).contains(&at);
    if is_ours || frame.has_forbidden_flags() {
        return Next::LongWay;
    }
    let cpu = cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else { return Next::LongWay };
    let seen = if frame.error_code & faults::PRESENT != 0 { Page::Present } else { Page::Absent };
    let access = faults::access(frame.error_code);
    let code = match Pager::new(run.host, &run.dom).plain_fault::<P::Tables>(GuestVirt(at), access, seen) {
        Some(Page::Absent) => frame.error_code & !faults::PRESENT,
        Some(Page::Present) => frame.error_code | faults::PRESENT,
        None => return Next::LongWay,
    } as u32;
    let next =
        enter_handler::<P, I>(cpu, run, frame, Vector::PAGE_FAULT, &Cause::PageFault { code, at: GuestVirt(at) });
    if next == Next::LongWay {
        // A fault on the way there has changed it.
        // SAFETY: the register only says where a page fault was.
        unsafe { asm!("mov cr2, {}", in(reg) at, options(nomem, nostack, preserves_flags)) }
    }
    next
}

/// A set of exceptions.
struct Exceptions(u32);

impl Exceptions {
    #[inline(always)]
    const fn contains(&self, vector: Vector) -> bool {
        vector.0 < 32 && self.0 >> vector.0 & 1 != 0
    }
}

/// Those without an error code that are the guest's and nobody else's: divide error, breakpoint, overflow, bound,
/// invalid opcode, x87 and SIMD errors.
const PLAIN: Exceptions = Exceptions(1 << 0 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 16 | 1 << 19);

/// Another exception in a guest, or its `int 0x80`.
extern "C" fn exception<P: Personality, I: Interrupted>(frame: &mut TrapFrame) -> Next {
    if frame.has_forbidden_flags() {
        return Next::LongWay;
    }
    let cpu = cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else { return Next::LongWay };
    let vector = Vector(frame.vector as u8);
    if PLAIN.contains(vector) {
        return enter_handler::<P, I>(cpu, run, frame, vector, &Cause::Plain);
    }
    // With an error code it may be an `int n` or a far call, of who has rights to ports it may be a use of one.
    if vector == Vector::GENERAL_PROTECTION && frame.error_code == 0 && !run.vcpu.ports.any() {
        return enter_handler::<P, I>(cpu, run, frame, vector, &Cause::Code(0));
    }
    if vector == Vector::SYSTEM_CALL
        && let Some(handler) = run.vcpu.traps.open_to_all(vector.0)
    {
        return enter::<P, I>(cpu, run, frame, |_| Some(handler), &Cause::Plain);
    }
    Next::LongWay
}

/// #NM in a guest, which has an entry of its own: in the midst of the others it would cost them.
extern "C" fn device_not_available<P: Personality, I: Interrupted>(frame: &mut TrapFrame) -> Next {
    if frame.has_forbidden_flags() {
        return Next::LongWay;
    }
    let cpu = cpu_of(frame);
    // SAFETY: the one reference of this entry; it ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else { return Next::LongWay };
    if !fpu::is_asked_for(&run.vcpu.fpu) {
        return Next::LongWay;
    }
    let next = enter_handler::<P, I>(cpu, run, frame, Vector::DEVICE_NOT_AVAILABLE, &Cause::Plain);
    if next == Next::Guest {
        fpu::note_told(&mut run.vcpu.fpu);
    }
    next
}

/// An event waits for a guest that has made a call, and it takes upcalls. Of the frame, the general registers are not
/// filled in: of those that [`bounce::enter`] looks at, rcx and r11 are what `syscall` makes of rip and the flags.
pub(super) extern "C" fn upcall<P: Personality>(frame: &mut TrapFrame) -> Next {
    let cpu = cpu_of(frame);
    // SAFETY: the one reference: that of the call's handler has ended, and this one ends with this function.
    let Some(run) = (unsafe { cpu.local.running() }) else { return Next::LongWay };
    let Some(callback) = run.vcpu.event_callback else { return Next::LongWay };
    // Calls are kernels': the gate is closed to other rings.
    debug_assert!(P::ARCH == Arch::X86_64 || Mode::of_ring(Selector(frame.cs as u16)) == Mode::Kernel);
    let next = match P::ARCH {
        Arch::X86_32 => enter_kernel_from::<P>(run, frame, Mode::Kernel, |_| Some(callback), &Cause::Plain),
        Arch::X86_64 => {
            // What `syscall` has left in them.
            let context = |frame: &TrapFrame| Context { rcx: frame.rip, r11: frame.rflags, ..frame.context() };
            enter_kernel_with::<P>(run, frame, context, Mode::Kernel, |_| Some(callback), &Cause::Plain)
        }
    };
    if next == Next::Guest {
        cpu.local.mask_upcalls();
    }
    next
}

/// An event waits for a guest that was interrupted, or has just got the CPU, and it takes upcalls. The frame is
/// complete.
#[inline(never)]
pub(super) fn event(run: &mut Running, frame: &mut TrapFrame, callback: Callback) -> Next {
    let to = |_: &Running| Some(callback);
    match run.dom.arch {
        Arch::X86_32 => match frame.mode::<X86_32>(&run.vcpu) {
            Mode::Kernel => enter_kernel_from::<X86_32>(run, frame, Mode::Kernel, to, &Cause::Plain),
            Mode::User => enter_kernel_from::<X86_32>(run, frame, Mode::User, to, &Cause::Plain),
        },
        Arch::X86_64 => match run.vcpu.mode {
            Mode::Kernel => enter_kernel_from::<X86_64>(run, frame, Mode::Kernel, to, &Cause::Plain),
            // The page tables of its kernel are not loaded.
            Mode::User => Next::LongWay,
        },
    }
}

/// The CPU, whose own data lies right above a guest's frame: where the entries below put it, and those of hypercalls.
#[inline(always)]
pub(super) fn cpu_of(frame: &TrapFrame) -> &'static Cpu {
    let above = core::ptr::from_ref(frame).addr() + size_of::<TrapFrame>();
    debug_assert!(core::ptr::from_ref(Cpu::current()).addr() == above);
    // SAFETY: it is the address that `Cpu::current` looks up: TSS.RSP0 points there, and a frame from a guest ends
    // there.
    unsafe { &*core::ptr::with_exposed_provenance(above) }
}

#[inline(always)]
fn enter_handler<P: Personality, I: Interrupted>(
    cpu: &Cpu,
    run: &mut Running,
    frame: &mut TrapFrame,
    vector: Vector,
    cause: &Cause,
) -> Next {
    enter::<P, I>(cpu, run, frame, |run| run.vcpu.traps.get(vector.0), cause)
}

#[inline(always)]
fn enter<P: Personality, I: Interrupted>(
    cpu: &Cpu,
    run: &mut Running,
    frame: &mut TrapFrame,
    handler: impl Fn(&Running) -> Option<TrapHandler>,
    cause: &Cause,
) -> Next {
    // Asked twice, so that nothing of the answer is kept meanwhile.
    let next = enter_kernel_from::<P>(run, frame, I::MODE, |run| Some(handler(run)?.at), cause);
    if next == Next::Guest && handler(run).is_some_and(|handler| handler.masks_events) {
        cpu.local.mask_upcalls();
    }
    next
}

/// Enters the guest's kernel. Where mode and cause are constants, this comes to a few stores. `to` is asked behind the
/// last of them, so that what it reads takes no register till then. (A guest that has no handler is at its end: what
/// lies below its stack pointer is nothing to it.)
#[inline(always)]
pub(super) fn enter_kernel_from<P: Personality>(
    run: &mut Running,
    frame: &mut TrapFrame,
    mode: Mode,
    to: impl FnOnce(&Running) -> Option<Callback>,
    cause: &Cause,
) -> Next {
    enter_kernel_with::<P>(run, frame, TrapFrame::context, mode, to, cause)
}

/// The same, where `context` says what is in the frame, or is to be.
#[inline(always)]
fn enter_kernel_with<P: Personality>(
    run: &mut Running,
    frame: &mut TrapFrame,
    context: impl FnOnce(&TrapFrame) -> Context,
    mode: Mode,
    to: impl FnOnce(&Running) -> Option<Callback>,
    cause: &Cause,
) -> Next {
    let context = context(frame);
    let pushed = bounce::Frame::new::<P>(&context, mode, run.vcpu.kernel_stack, cause);
    let at = GuestVirt(pushed.sp);
    // A word that lies on two pages may need both repaired, or fault half written: not here.
    if !at.0.is_multiple_of(P::Word::BYTES as u64)
        || !run.vcpu.segments.is_flat_stack::<P>(pushed.ss)
        || !P::in_guest_range(at, pushed.size())
    {
        return Next::LongWay;
    }
    // A 64-bit kernel's stack is in its own address space. (An x86_32 guest has one only.)
    let changes = P::ARCH == Arch::X86_64 && mode == Mode::User;
    if changes && user::leave_application(cpu_of(frame), run).is_err() {
        return Next::LongWay;
    }
    let stored = pushed.store(&mut Stack::<P> { lowest: at, words: PhantomData });
    if stored.is_ok()
        && let Some(to) = to(run)
    {
        frame.set_context(&pushed.registers(&context, &to));
        return Next::Guest;
    }
    if changes {
        user::return_to_application(cpu_of(frame), run);
    }
    Next::LongWay
}

/// Where a frame lies on a guest's stack: at addresses of the guest's, and no word of it on two pages.
struct Stack<P> {
    lowest: GuestVirt,
    words: PhantomData<P>,
}

impl<P: Personality> FrameMemory for Stack<P> {
    type Error = BadPointer;

    /// Stores under the guest's own page tables, with fault recovery (see [`super::memory`]: no paging lock is held).
    #[inline(always)]
    fn store<const INDEX: usize>(&mut self, word: u64) -> Result<(), BadPointer> {
        // SAFETY: what is written to is the guest's, so no memory of ours changes: to the compiler this only reads (a
        // fault may do both, but to nothing that is looked at here). A fault goes on at `fault`.
        unsafe {
            if P::Word::BYTES == 4 {
                asm!(
                    "2: mov [{at} + {offset}], {word:e}",
                    ex_table!("2b", "{fault}"),
                    at = in(reg) self.lowest.0,
                    offset = const 4 * INDEX,
                    word = in(reg) word,
                    fault = label { return Err(BadPointer) },
                    options(nostack, preserves_flags, readonly)
                );
            } else {
                asm!(
                    "2: mov [{at} + {offset}], {word}",
                    ex_table!("2b", "{fault}"),
                    at = in(reg) self.lowest.0,
                    offset = const 8 * INDEX,
                    word = in(reg) word,
                    fault = label { return Err(BadPointer) },
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
        Ok(())
    }
}

/// A short way is done, and an upcall is due, or more. The frame is complete.
extern "C" fn leave_after_exception(frame: &mut TrapFrame) {
    let cpu = Cpu::current();
    cpu.local.attention.store(0, Ordering::Relaxed);
    // SAFETY: the one reference of this entry: that of the short way has ended.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    leave(cpu, run, frame);
}

/// From a frame to the CPU's own data, which lies right above it.
pub(super) const LOCAL: usize = size_of::<TrapFrame>() + offset_of!(Cpu, local);

// Exceptions: what the CPU and the vector's entry have pushed makes the top of a `TrapFrame`. The entries differ in
// where they lead to only.
global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".macro short_way name, short_32, short_32_user, short_64, short_64_user",
    ".balign 16",
    ".globl \\name, \\name\\()_iret",
    "\\name:",
    // In the hypervisor (or with VM set, in whatever ring): for others to look at.
    "   testb $3, {cs} - {vector}(%rsp)",
    "   jz trap_common",
    "   subq ${vector}, %rsp",
    "   movq %rdi, {rdi}(%rsp)",
    "   movq %rsi, {rsi}(%rsp)",
    "   movq %rdx, {rdx}(%rsp)",
    "   movq %rcx, {rcx}(%rsp)",
    "   movq %rax, {rax}(%rsp)",
    "   cld",
    "   movq %rsp, %rdi",
    ".ifc \\name, page_fault_entry",
    // Likely a store to a page table, which goes the long way.
    "   movzbl {error_code}(%rsp), %eax",
    "   cmpb %al, {table_store}(%rsp)",
    "   je .Lexception_table_store",
    ".endif",
    "   cmpb ${kernel}, {traps_of}(%rsp)",
    "   jae .L\\name\\()_64",
    // As `Mode::of_ring` has it.
    "   testb $2, {cs}(%rsp)",
    "   jnz .L\\name\\()_32_user",
    // r8 to r11 are nobody's in 32-bit code, which is all that an x86_32 guest has.
    "   callq \\short_32",
    ".L\\name\\()_32_called:",
    "   testl %eax, %eax",
    "   jnz .Lexception_long",
    "   cmpl $0, {attention}(%rsp)",
    "   jne .Lexception_leave",
    // An upcall is due when pending is not zero and the mask, the next byte, is.
    "   movq {shared}(%rsp), %rdx",
    "   cmpb $0, (%rdx)",
    "   jne .L\\name\\()_pending",
    ".L\\name\\()_done:",
    "   movq {rax}(%rsp), %rax",
    "   movq {rcx}(%rsp), %rcx",
    "   movq {rdx}(%rsp), %rdx",
    "   movq {rsi}(%rsp), %rsi",
    "   movq {rdi}(%rsp), %rdi",
    "   addq ${rip}, %rsp",
    "\\name\\()_iret:",
    "   iretq",
    ".L\\name\\()_32_user:",
    "   callq \\short_32_user",
    "   jmp .L\\name\\()_32_called",
    ".L\\name\\()_64:",
    "   movq %r8, {r8}(%rsp)",
    "   movq %r9, {r9}(%rsp)",
    "   movq %r10, {r10}(%rsp)",
    "   movq %r11, {r11}(%rsp)",
    // Of the two that are left, the greater.
    "   ja .L\\name\\()_64_user",
    "   callq \\short_64",
    ".L\\name\\()_64_called:",
    "   testl %eax, %eax",
    "   jnz .Lexception_long_64",
    "   cmpl $0, {attention}(%rsp)",
    "   jne .Lexception_leave_64",
    "   movq {shared}(%rsp), %rdx",
    "   cmpb $0, (%rdx)",
    "   jne .L\\name\\()_64_pending",
    ".L\\name\\()_64_done:",
    "   movq {r8}(%rsp), %r8",
    "   movq {r9}(%rsp), %r9",
    "   movq {r10}(%rsp), %r10",
    "   movq {r11}(%rsp), %r11",
    "   jmp .L\\name\\()_done",
    ".L\\name\\()_64_user:",
    "   callq \\short_64_user",
    "   jmp .L\\name\\()_64_called",
    ".L\\name\\()_pending:",
    "   cmpb $0, 1(%rdx)",
    "   jne .L\\name\\()_done",
    "   jmp .Lexception_leave",
    ".L\\name\\()_64_pending:",
    "   cmpb $0, 1(%rdx)",
    "   jne .L\\name\\()_64_done",
    "   jmp .Lexception_leave_64",
    ".endm",
    "   short_way exception_entry, {exception_32}, {exception_32_user}, {exception_64}, {exception_64_user}",
    "   short_way page_fault_entry, {page_fault_32}, {page_fault_32_user}, {page_fault_64}, {page_fault_64_user}",
    "   short_way no_device_entry, {no_device_32}, {no_device_32_user}, {no_device_64}, {no_device_64_user}",
    ".purgem short_way",
    // The long way. The frame is completed; what is nobody's need not be right there.
    ".Lexception_table_store:",
    "   movq %r8, {r8}(%rsp)",
    "   movq %r9, {r9}(%rsp)",
    "   movq %r10, {r10}(%rsp)",
    "   movq %r11, {r11}(%rsp)",
    "   jmp .Lexception_long_64",
    ".Lexception_long:",
    "   leaq {trap_entry}(%rip), %rax",
    "   jmp .Lexception_clear",
    ".Lexception_leave:",
    "   leaq {leave}(%rip), %rax",
    ".Lexception_clear:",
    "   movq $0, {r8}(%rsp)",
    "   movq $0, {r9}(%rsp)",
    "   movq $0, {r10}(%rsp)",
    "   movq $0, {r11}(%rsp)",
    "   jmp .Lexception_complete",
    ".Lexception_long_64:",
    "   leaq {trap_entry}(%rip), %rax",
    "   jmp .Lexception_complete",
    ".Lexception_leave_64:",
    "   leaq {leave}(%rip), %rax",
    ".Lexception_complete:",
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
    // The handler of an x86_32 guest's system call has been entered, and an upcall or more is due on top of it.
    ".globl leave_after_system_call",
    "leave_after_system_call:",
    "   subq ${vector}, %rsp",
    "   movq %rdi, {rdi}(%rsp)",
    "   movq %rsi, {rsi}(%rsp)",
    "   movq %rdx, {rdx}(%rsp)",
    "   movq %rcx, {rcx}(%rsp)",
    "   movq %rax, {rax}(%rsp)",
    "   cld",
    "   jmp .Lexception_leave",
    ".popsection",
    kernel = const TrapsOf::Kernel as u8,
    exception_32 = sym exception::<X86_32, Kernel>,
    exception_32_user = sym exception::<X86_32, Application>,
    exception_64 = sym exception::<X86_64, Kernel>,
    exception_64_user = sym exception::<X86_64, Application>,
    no_device_32 = sym device_not_available::<X86_32, Kernel>,
    no_device_32_user = sym device_not_available::<X86_32, Application>,
    no_device_64 = sym device_not_available::<X86_64, Kernel>,
    no_device_64_user = sym device_not_available::<X86_64, Application>,
    page_fault_32 = sym page_fault::<X86_32, Kernel>,
    page_fault_32_user = sym page_fault::<X86_32, Application>,
    page_fault_64 = sym page_fault::<X86_64, Kernel>,
    page_fault_64_user = sym page_fault::<X86_64, Application>,
    trap_entry = sym trap_entry,
    leave = sym leave_after_exception,
    traps_of = const LOCAL + offset_of!(CpuLocal, notes) + offset_of!(Notes, traps_of),
    table_store = const LOCAL + offset_of!(CpuLocal, notes) + offset_of!(Notes, table_store),
    error_code = const offset_of!(TrapFrame, error_code),
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
    rip = const offset_of!(TrapFrame, rip),
    cs = const offset_of!(TrapFrame, cs),
    options(att_syntax)
);
