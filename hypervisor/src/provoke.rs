//! Faults of the hypervisor made on purpose (option `provoke=`), so that tests can see how each is reported
//! ([`crate::fault`]). None of them returns (but those that are made elsewhere, for others to see), and
//! without the option nothing here runs.
//!
//! Each fault has a function of its own that is never inlined: its name is what the backtrace has to show.

use crate::cpu::idt::Ist;
use crate::cpu::percpu::{Cpu, CpuId};
use crate::cpu::smp;
use crate::mm::layout::{self, STACK_SIZE};
use crate::options::{InterruptStack, Provocation};
use core::arch::asm;
use core::hint::black_box;

/// A page of the hypervisor's part of every address space where nothing is ever mapped, far from any stack.
const NOWHERE: u64 = layout::HYPERVISOR_START + 0x1234_5000;

/// Whether it is made here, once the machine is up: others are made where they belong, before that or after.
pub fn is_due_at_boot(what: Provocation) -> bool {
    !matches!(
        what,
        Provocation::LostReference | Provocation::LostCpu | Provocation::TscApart | Provocation::FeaturesApart
    )
}

/// Panics, and says where.
#[inline(never)]
pub fn panic_on(cpu: CpuId) -> ! {
    panic!("a panic on CPU {} on purpose", black_box(cpu.0))
}

/// Does it.
#[inline(never)]
pub fn provoke(what: Provocation) -> ! {
    log::warn!("a fault is provoked: {what:?}");
    match what {
        Provocation::Panic => panicking(black_box("on purpose")),
        Provocation::PageFault => page_fault(),
        Provocation::InvalidOpcode => invalid_opcode(),
        Provocation::StackOverflow => {
            stack_overflow(black_box(0));
        }
        Provocation::WriteText => write_text(),
        Provocation::ExecuteData => execute_data(),
        Provocation::DoubleFault => double_fault(),
        Provocation::CpuPanic => smp::panic_elsewhere(),
        Provocation::MachineCheck => machine_check(),
        Provocation::InterruptStackOverflow(which) => interrupt_stack_overflow(which),
        // Made elsewhere: nothing faults.
        Provocation::LostReference | Provocation::LostCpu | Provocation::TscApart | Provocation::FeaturesApart => {}
    }
    panic!("{what:?} was provoked, and nothing happened")
}

#[inline(never)]
fn panicking(why: &str) {
    panic!("a panic {why}")
}

#[inline(never)]
fn page_fault() {
    // SAFETY: nothing is mapped there, so the read faults, and the fault does not return.
    unsafe { asm!("mov {0}, [{0}]", inout(reg) NOWHERE => _, options(nostack, readonly)) }
}

#[inline(never)]
fn invalid_opcode() {
    // SAFETY: the fault does not return.
    unsafe { asm!("ud2", options(nomem, nostack)) }
}

/// Calls itself until the stack ends.
#[inline(never)]
#[expect(unconditional_recursion, reason = "that is what it is for")]
fn stack_overflow(depth: u64) -> u64 {
    // What is done with the result keeps the call from becoming a jump.
    black_box(stack_overflow(black_box(depth + 1))) + depth
}

#[inline(never)]
fn write_text() {
    // SAFETY: code is mapped read-only, so the write faults, and the fault does not return.
    unsafe { asm!("mov byte ptr [{}], 0xcc", in(reg) write_text as *const (), options(nostack)) }
}

/// Code, were it not among the variables: a return.
static mut DATA: [u8; 16] = [0xc3; 16];

#[inline(never)]
fn execute_data() {
    // SAFETY: variables are mapped not executable, so the fetch faults, and the fault does not return; could they be
    // executed, this one would return to here.
    unsafe { asm!("call {}", in(reg) &raw mut DATA, clobber_abi("C")) }
}

#[inline(never)]
fn double_fault() {
    // SAFETY: the fault's frame cannot be pushed, nor that of the fault which this causes; a double fault has a stack
    // of its own, and does not return.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) NOWHERE, options(noreturn)) }
}

/// On a stack that is none: what is not reported as a machine check had no stack of its own.
#[inline(never)]
fn machine_check() {
    // SAFETY: the gate has a stack of its own, and what comes of it does not return. (`int` takes the gate's stack as
    // the exception does: Intel SDM vol. 3 §6.14.5.)
    unsafe { asm!("mov rsp, {}", "int 18", in(reg) NOWHERE, options(noreturn)) }
}

/// Pushes from the top of an interrupt's stack downwards: what is mapped is used up, and then there is to be nothing.
#[inline(never)]
fn interrupt_stack_overflow(which: InterruptStack) {
    let ist = match which {
        InterruptStack::Nmi => Ist::Nmi,
        InterruptStack::Debug => Ist::Debug,
        InterruptStack::MachineCheck => Ist::MachineCheck,
    };
    // Below the words by which the CPU is found.
    let top = Cpu::current().area().ist_stack(ist).end - 16u64;
    // SAFETY: nobody uses that stack now, and nobody will: the fault does not return, nor does what follows where there
    // was none in the whole range. Its guard is within so many words.
    unsafe {
        asm!(
            "mov rsp, {top}",
            "2: push rcx",
            "dec ecx",
            "jnz 2b",
            "ud2",
            top = in(reg) top.as_u64(),
            in("rcx") (STACK_SIZE - 16) / 8,
            options(noreturn),
        )
    }
}
