//! Faults of the hypervisor made on purpose (option `provoke=`), so that tests can see how each is reported
//! ([`crate::fault`]). None of them returns (but those that are made elsewhere, for others to see), and
//! without the option nothing here runs.
//!
//! Each fault has a function of its own that is never inlined: its name is what the backtrace has to show.

use crate::cpu::percpu::CpuId;
use crate::cpu::smp;
use crate::mm::layout;
use crate::options::Provocation;
use core::arch::asm;
use core::hint::black_box;

/// A page of the hypervisor's part of every address space where nothing is ever mapped, far from any stack.
const NOWHERE: u64 = layout::HYPERVISOR_START + 0x1234_5000;

/// Whether it is made here, once the machine is up: others are made where they belong, before that or after.
pub fn is_due_at_boot(what: Provocation) -> bool {
    !matches!(what, Provocation::LostReference | Provocation::LostCpu | Provocation::TscApart)
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
        // Made elsewhere: nothing faults.
        Provocation::LostReference | Provocation::LostCpu | Provocation::TscApart => {}
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
    // SAFETY: the fault's frame cannot be pushed, nor that of the fault which this causes; a double fault has a stack of
    // its own, and does not return.
    unsafe { asm!("mov rsp, {}", "ud2", in(reg) NOWHERE, options(noreturn)) }
}
