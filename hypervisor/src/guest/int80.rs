//! `int 0x80`, whose gate is open to every ring: the shortest way of an x86_32 guest's system call to its own kernel.
//!
//! A guest whose handler is a plain one ([`TrapTable::PLAIN_SYSTEM_CALL`]) is in it some forty instructions later: what
//! has to be checked of handler and stack was when they were named ([`Segments::SYSTEM_CALL_FRAME`]), and what is known
//! of its segments is forgotten when they may have changed ([`Segments::FLAT_STACK`]). Anything else is an exception
//! like others ([`super::quick`]), with the address behind the instruction; nothing has been changed then but memory
//! below the guest's stack pointer. No lock: all that is looked at is the CPU's own.

use super::CpuLocal;
use super::quick::LOCAL;
use crate::cpu::entry::TrapFrame;
use crate::ex_table;
use core::arch::global_asm;
use core::mem::offset_of;
use proxenos_abi::{GuestArch, X86_32};
use proxenos_core::bounce::{self, SYSTEM_CALL, TrapTable};
use proxenos_core::segments::Segments;
use proxenos_core::vcpu::Vcpu;

/// From what the CPU pushes for `int` to its own data.
const LOCAL_OF_INT: usize = LOCAL - offset_of!(TrapFrame, rip);
/// What the entry of system calls pushes below that: rax and rcx.
const SAVED: usize = 16;
/// Where the frame of a system call by an x86_32 kernel may begin at most, for three words to be the guest's.
const LAST_KERNEL_FRAME: u32 = X86_32::HYPERVISOR_VIRT_START as u32 - 3 * 4;

const _: () = assert!(bounce::CLEARED_FLAGS >> 31 == 0 && TrapFrame::FORBIDDEN_FLAGS >> 31 == 0);

global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    // Stores what every frame has at rcx; a store that faults goes on at `long`.
    ".macro store_at_rcx long",
    "   movl {ip}(%rsp), %eax",
    "771: movl %eax, (%rcx)",
    "   movl {cs}(%rsp), %eax",
    "772: movl %eax, 4(%rcx)",
    "   movl {flags}(%rsp), %eax",
    "773: movl %eax, 8(%rcx)",
    ex_table!("771b", "\\long"),
    ex_table!("772b", "\\long"),
    ex_table!("773b", "\\long"),
    ".endm",
    // Goes on in the handler: all is stored, and the stack is loaded. rax is the virtual CPU.
    ".macro go_on_in_handler",
    "   movl {handler_cs}(%rax), %ecx",
    "   movq %rcx, {cs}(%rsp)",
    "   movl {handler}(%rax), %eax",
    "   movq %rax, {ip}(%rsp)",
    "   andl ${kept_flags}, {flags}(%rsp)",
    "   cmpl $0, {attention}(%rsp)",
    "   jne .Lsystem_call_leave",
    // An upcall is due when pending is not zero and the mask, the next byte, is.
    "   movq {shared}(%rsp), %rax",
    "   cmpb $0, (%rax)",
    "   jne .Lsystem_call_pending",
    ".endm",
    ".balign 16",
    ".globl system_call_entry",
    "system_call_entry:",
    "   pushq %rax",
    "   pushq %rcx",
    "   movq {vcpu}(%rsp), %rax",
    "   cmpl $0, {handler}(%rax)",
    "   je .Lsystem_call_long",
    "   testl ${forbidden}, {flags}(%rsp)",
    "   jnz .Lsystem_call_long",
    // Rings 2 and 3 come with a change of stacks.
    "   testb $2, {cs}(%rsp)",
    "   jz .Lsystem_call_of_kernel",
    "   movl {frame}(%rax), %ecx",
    "   testl %ecx, %ecx",
    "   jz .Lsystem_call_long",
    "   movl {sp}(%rsp), %eax",
    ".Lstore_sp: movl %eax, 12(%rcx)",
    "   movl {ss}(%rsp), %eax",
    ".Lstore_ss: movl %eax, 16(%rcx)",
    "   store_at_rcx .Lsystem_call_long",
    "   movq {vcpu}(%rsp), %rax",
    "   movq %rcx, {sp}(%rsp)",
    "   movl {kernel_ss}(%rax), %ecx",
    "   movq %rcx, {ss}(%rsp)",
    "   go_on_in_handler",
    ".Lsystem_call_done:",
    "   popq %rcx",
    "   popq %rax",
    ".globl system_call_iret",
    "system_call_iret:",
    "   iretq",
    // From the kernel: the frame goes on the stack it has, which may be any.
    ".Lsystem_call_of_kernel:",
    "   movzwl {ss}(%rsp), %ecx",
    "   cmpl ${flat_ds}, %ecx",
    "   je 1f",
    "   cmpl %ecx, {flat_stack}(%rax)",
    "   jne .Lsystem_call_long",
    "1: movl {sp}(%rsp), %ecx",
    "   subl $12, %ecx",
    "   jb .Lsystem_call_long",
    // No word may lie on two pages.
    "   testb $3, %cl",
    "   jnz .Lsystem_call_long",
    "   cmpl ${last_kernel_frame}, %ecx",
    "   ja .Lsystem_call_long",
    "   store_at_rcx .Lsystem_call_long",
    "   movq {vcpu}(%rsp), %rax",
    "   movq %rcx, {sp}(%rsp)",
    "   go_on_in_handler",
    "   jmp .Lsystem_call_done",
    // Also where a store to the guest's stack faults.
    ".Lsystem_call_long:",
    "   popq %rcx",
    "   popq %rax",
    "   pushq $0",
    "   pushq ${vector}",
    "   jmp exception_entry",
    ".Lsystem_call_pending:",
    "   cmpb $0, 1(%rax)",
    "   jne .Lsystem_call_done",
    ".Lsystem_call_leave:",
    "   popq %rcx",
    "   popq %rax",
    "   pushq $0",
    "   pushq ${vector}",
    "   jmp leave_after_system_call",
    ex_table!(".Lstore_sp", ".Lsystem_call_long"),
    ex_table!(".Lstore_ss", ".Lsystem_call_long"),
    ".purgem store_at_rcx",
    ".purgem go_on_in_handler",
    ".popsection",
    ip = const SAVED,
    cs = const SAVED + 8,
    flags = const SAVED + 16,
    sp = const SAVED + 24,
    ss = const SAVED + 32,
    vcpu = const SAVED + LOCAL_OF_INT + offset_of!(CpuLocal, vcpu),
    attention = const SAVED + LOCAL_OF_INT + offset_of!(CpuLocal, attention),
    shared = const SAVED + LOCAL_OF_INT + offset_of!(CpuLocal, shared),
    handler = const offset_of!(Vcpu, traps) + TrapTable::PLAIN_SYSTEM_CALL,
    handler_cs = const offset_of!(Vcpu, traps) + TrapTable::PLAIN_SYSTEM_CALL_CS,
    frame = const offset_of!(Vcpu, segments) + Segments::SYSTEM_CALL_FRAME,
    kernel_ss = const offset_of!(Vcpu, segments) + Segments::KERNEL_STACK,
    flat_stack = const offset_of!(Vcpu, segments) + Segments::FLAT_STACK,
    forbidden = const TrapFrame::FORBIDDEN_FLAGS,
    kept_flags = const !(bounce::CLEARED_FLAGS as i32),
    flat_ds = const X86_32::FLAT_GUESTOS_DS.0,
    last_kernel_frame = const LAST_KERNEL_FRAME as i32,
    vector = const SYSTEM_CALL,
    options(att_syntax)
);
