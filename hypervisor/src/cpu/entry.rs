//! Every way from the CPU into the hypervisor by a gate, and back.
//!
//! A stub a vector pushes an error code where the CPU pushes none, and the vector; the common part saves the general
//! registers, which completes a [`TrapFrame`], and calls [`trap_entry`]. (Exceptions of guests try a shorter way first:
//! `guest::quick`.) Returning from that restores the frame, which
//! may have been changed, and leaves by `iretq`.
//!
//! No lock. Interrupts are disabled throughout: every gate is an interrupt gate, and nothing here enables them.

use crate::cpu::idt::Vector;
use crate::cpu::percpu::{self, Cpu, Pending};
use crate::cpu::{debugreg, extable, ipi, nmi};
use crate::mm::layout::STACK_SIZE;
use crate::{fault, guest, irq, time};
use core::arch::global_asm;
use core::sync::atomic::Ordering;
use x86_64::VirtAddr;

/// The interrupted context, low to high as it lies on the stack. A trap from a guest puts it right below the CPU's
/// [`Cpu`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct TrapFrame {
    /// General register.
    pub r15: u64,
    /// General register.
    pub r14: u64,
    /// General register.
    pub r13: u64,
    /// General register.
    pub r12: u64,
    /// General register.
    pub rbp: u64,
    /// General register.
    pub rbx: u64,
    /// General register.
    pub r11: u64,
    /// General register.
    pub r10: u64,
    /// General register.
    pub r9: u64,
    /// General register.
    pub r8: u64,
    /// General register.
    pub rax: u64,
    /// General register.
    pub rcx: u64,
    /// General register.
    pub rdx: u64,
    /// General register.
    pub rsi: u64,
    /// General register.
    pub rdi: u64,
    /// Vector of the trap, 0 to 255.
    pub vector: u64,
    /// The CPU's error code, or 0.
    pub error_code: u64,
    /// Where it was interrupted.
    pub rip: u64,
    /// Code selector; its two lowest bits are the ring that was interrupted.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector.
    pub ss: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 22 * 8 && size_of::<TrapFrame>().is_multiple_of(16));

/// What was interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The hypervisor itself.
    Hypervisor,
    /// A guest, its kernel or an application.
    Guest,
}

/// Flags: virtual-8086 mode, where a selector's low bits say nothing about a ring.
const VM: u64 = 1 << 17;
/// Flags: I/O privilege level.
const IOPL: u64 = 3 << 12;

impl TrapFrame {
    /// Those that [`has_forbidden_flags`](Self::has_forbidden_flags) is about.
    pub const FORBIDDEN_FLAGS: u64 = VM | IOPL;

    /// Whether a guest or the hypervisor was interrupted.
    #[inline]
    #[must_use]
    pub const fn origin(&self) -> Origin {
        if self.cs & 3 == 0 && self.rflags & VM == 0 { Origin::Hypervisor } else { Origin::Guest }
    }

    /// Whether a guest was interrupted that runs with flags which no guest can have by the manual: IOPL is given to
    /// none, and long mode has no virtual-8086 mode (Intel SDM vol. 3 §21.1). QEMU's emulation (7.2 at least) lets any
    /// 32-bit code have both: its `iretd` does not look at the privilege level before it obeys VM. A return to such a
    /// guest would give it I/O ports, or, since its code selector can be any number, ring 0.
    #[inline]
    #[must_use]
    pub const fn has_forbidden_flags(&self) -> bool {
        // The first test alone decides it for all that is not forbidden, but for a hypervisor that was entered with
        // IOPL.
        self.rflags & Self::FORBIDDEN_FLAGS != 0 && matches!(self.origin(), Origin::Guest)
    }

    /// The vector.
    #[inline]
    #[must_use]
    pub const fn vector(&self) -> Vector {
        Vector(self.vector as u8)
    }
}

// The direction flag is the only flag the hypervisor depends on that a gate leaves alone. AC has no effect in ring 0
// while CR4.SMAP is off, and it is (`features::set_control_registers`); the gate itself clears IF, TF, NT, RF and VM.
global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".balign 16",
    ".globl trap_stubs",
    "trap_stubs:",
    "vector = 0",
    ".rept 256",
    ".balign 16",
    // The list of `Vector::has_error_code`.
    "has_code = (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)",
    // Hypercalls have an entry of their own (`guest::calls`).
    ".if vector == {hypercall}",
    "   jmp hypercall_entry",
    // And so have system calls (`guest::quick`).
    ".elseif vector == {system_call}",
    "   jmp system_call_entry",
    ".else",
    ".if has_code || (vector == 29) || (vector == 30)",
    ".else",
    "   pushq $0",
    ".endif",
    "   pushq $vector",
    // Exceptions have one for those of guests, but for those that arrive on stacks of their own.
    ".if (vector >= 32) || (vector == 1) || (vector == 2) || (vector == 8) || (vector == 18)",
    "   jmp trap_common",
    ".elseif vector == {page_fault}",
    "   jmp page_fault_entry",
    ".elseif vector == {no_device}",
    "   jmp no_device_entry",
    ".else",
    "   jmp exception_entry",
    ".endif",
    ".endif",
    "vector = vector + 1",
    ".endr",
    ".balign 16",
    ".globl trap_common",
    "trap_common:",
    "   pushq %rdi",
    "   pushq %rsi",
    "   pushq %rdx",
    "   pushq %rcx",
    "   pushq %rax",
    "   pushq %r8",
    "   pushq %r9",
    "   pushq %r10",
    "   pushq %r11",
    "   pushq %rbx",
    "   pushq %rbp",
    "   pushq %r12",
    "   pushq %r13",
    "   pushq %r14",
    "   pushq %r15",
    "   cld",
    "   xorl %ebp, %ebp",
    "   movq %rsp, %rdi",
    "   callq {trap_entry}",
    ".globl trap_return",
    "trap_return:",
    "   popq %r15",
    "   popq %r14",
    "   popq %r13",
    "   popq %r12",
    "   popq %rbp",
    "   popq %rbx",
    "   popq %r11",
    "   popq %r10",
    "   popq %r9",
    "   popq %r8",
    "   popq %rax",
    "   popq %rcx",
    "   popq %rdx",
    "   popq %rsi",
    "   popq %rdi",
    "   addq $16, %rsp",
    ".globl trap_iret",
    "trap_iret:",
    "   iretq",
    // Enters a guest with the frame at the top of this CPU's stack; what else is on the stack is forgotten.
    ".balign 16",
    ".globl resume_guest",
    "resume_guest:",
    "   orq ${stack_mask}, %rsp",
    "   subq ${below_top} - 1, %rsp",
    "   jmp trap_return",
    // A debug exception arrives on a stack of its own. One that a guest caused is moved to the CPU's stack, where all
    // else that comes from a guest is; one in the hypervisor is handled where it is.
    ".balign 16",
    ".globl trap_debug",
    "trap_debug:",
    "   testb $3, 8(%rsp)",
    "   jnz 1f",
    "   testl ${vm}, 16(%rsp)",
    "   jz trap_stubs + 16",
    "1: pushq %rax",
    "   movq %rsp, %rax",
    "   orq ${stack_mask}, %rax",
    "   movq -7(%rax), %rax",
    "   pushq 40(%rsp)",
    "   popq -8(%rax)",
    "   pushq 32(%rsp)",
    "   popq -16(%rax)",
    "   pushq 24(%rsp)",
    "   popq -24(%rax)",
    "   pushq 16(%rsp)",
    "   popq -32(%rax)",
    "   pushq 8(%rsp)",
    "   popq -40(%rax)",
    "   leaq -40(%rax), %rax",
    "   pushq (%rsp)",
    "   popq -8(%rax)",
    "   leaq -8(%rax), %rsp",
    "   popq %rax",
    "   jmp trap_stubs + 16",
    ".popsection",
    trap_entry = sym trap_entry,
    hypercall = const Vector::HYPERCALL.0,
    page_fault = const Vector::PAGE_FAULT.0,
    no_device = const Vector::DEVICE_NOT_AVAILABLE.0,
    system_call = const Vector::SYSTEM_CALL.0,
    vm = const VM,
    stack_mask = const STACK_SIZE - 1,
    below_top = const percpu::RESERVED as usize + size_of::<TrapFrame>(),
    options(att_syntax)
);

unsafe extern "C" {
    /// Enters a guest with the [`TrapFrame`] at the top of this CPU's stack ([`Cpu::guest_frame`]). What else is on the
    /// stack is forgotten: nothing that needs to be dropped may be alive there.
    ///
    /// # Safety
    /// Page tables, descriptor tables and frame must be a guest's, validated: the frame's selectors in rings 1 to 3,
    /// its flags without IOPL and with IF. Runs on the CPU's own stack.
    pub fn resume_guest() -> !;
}

/// Where every trap arrives, unless it has gone a shorter way.
pub extern "C" fn trap_entry(frame: &mut TrapFrame) {
    let vector = frame.vector();
    let handled = if vector.0 >= 32 { interrupt(vector) } else { Handled::NotYet };
    if frame.has_forbidden_flags() {
        return guest::stop_lawless(frame);
    }
    if handled == Handled::Wholly {
        return;
    }
    match frame.origin() {
        Origin::Guest if vector == Vector::NMI => nmi::handle(),
        Origin::Guest if vector == Vector::MACHINE_CHECK => fault::report_trap(frame),
        Origin::Guest => guest::trap(frame),
        Origin::Hypervisor => hypervisor_trap(frame),
    }
}

/// What became of an interrupt.
#[derive(PartialEq, Eq)]
enum Handled {
    /// Nothing is left to do.
    Wholly,
    /// The guest layer wants to know of it (a guest's `int n`, or a timer that may end its turn).
    NotYet,
}

/// Interrupts of the local APIC, whatever they interrupt.
fn interrupt(vector: Vector) -> Handled {
    match vector {
        Vector::LOOK | Vector::FLUSH | Vector::HOLD => {
            // First, so that the next may come while this CPU stands still.
            time::apic::end_of_interrupt();
            if ipi::received(vector) { Handled::Wholly } else { Handled::NotYet }
        }
        Vector::TIMER => {
            time::apic::end_of_interrupt();
            let cpu = Cpu::current();
            cpu.timer_count.fetch_add(1, Ordering::Relaxed);
            cpu.timer_has_fired();
            cpu.set_pending(Pending::TIMER);
            Handled::NotYet
        }
        // Spurious interrupts get no end-of-interrupt (Intel SDM vol. 3, 11.9).
        Vector::SPURIOUS => Handled::Wholly,
        Vector::APIC_ERROR => {
            time::apic::report_error();
            time::apic::end_of_interrupt();
            Handled::Wholly
        }
        _ => {
            if let Some(line) = irq::line_of(vector) {
                irq::interrupt(line);
            }
            Handled::NotYet
        }
    }
}

/// A trap while the hypervisor ran.
fn hypervisor_trap(frame: &mut TrapFrame) {
    match frame.vector() {
        // Taken in the idle loop, which looks at what is pending.
        Vector::TIMER | Vector::LOOK => {}
        vector if irq::line_of(vector).is_some() => {}
        Vector::NMI => nmi::handle(),
        // One of a guest's breakpoints: on memory that is being copied, or held off by `mov ss` until the first
        // instruction of ours. It means nothing here (see `debugreg`).
        Vector::DEBUG => debugreg::clear_status(),
        _ if guest::enters_guest(frame.rip) => guest::return_faulted(frame),
        // Only where the hypervisor touches guest memory knowingly: a wild pointer of its own must not be repaired.
        Vector::PAGE_FAULT
            if extable::fixup(VirtAddr::new_truncate(frame.rip)).is_some()
                && guest::repair_access(frame) == guest::Repair::TryAgain => {}
        _ => match extable::fixup(VirtAddr::new_truncate(frame.rip)) {
            Some(fixup) => {
                extable::note_error_code(frame.error_code);
                frame.rip = fixup.as_u64();
            }
            None => fault::report_trap(frame),
        },
    }
}
