//! Breakpoints where the hypervisor comes by: at the moment it is entered, on the stack that it pushes frames on, on
//! the instructions that call it, and more of them than anybody needs.

use crate::breakpoints::{execute, places, watched};
use crate::{ACCESS_4, EXECUTE, WRITE_4, arm, disarm, seen};
use core::arch::{asm, global_asm};
use proxenos_guest::abi::GuestArch;
use proxenos_guest::arch::trap_stub;
use proxenos_guest::test::{self, section};
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{Arch, check, check_eq, hypercall, memory, println, stack_pointer};

const VERSION: usize = 0x0002_0000;
const XEN_VERSION: usize = 17;

pub fn run() {
    held_off();
    watched_stack();
    at_a_hypercall();
    storm();
    section("still alive");
    check_eq!(hypercall::xen_version(), Ok(VERSION as u32));
}

/// `mov ss` from watched memory holds the #DB off until the next instruction is done: on real CPUs, which this one
/// enters the hypervisor with, it is reported at the hypervisor's first instruction (CVE-2018-8897).
macro_rules! held_off {
    ([$($code:literal),*]) => {{
        let result: usize;
        #[cfg(target_arch = "x86")]
        // SAFETY: loads the selector that is loaded; the handlers change nothing.
        unsafe {
            asm!(
                "mov ss, word ptr [{at}]",
                $($code,)*
                proxenos_guest::__fixup!(),
                at = in(reg) watched(),
                inout("eax") XEN_VERSION => result,
                inout("ebx") 0usize => _,
            )
        };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: loads the selector that is loaded; the handlers change nothing.
        unsafe {
            asm!(
                "mov ss, word ptr [{at}]",
                $($code,)*
                proxenos_guest::__fixup!(),
                at = in(reg) watched(),
                inout("rax") XEN_VERSION => result,
                inout("rdi") 0usize => _,
                out("rcx") _,
                out("r11") _,
            )
        };
        result
    }};
}

fn held_off() {
    section("breakpoints held off until the hypervisor is entered");
    // SAFETY: a place of ours.
    unsafe { watched().write_volatile(Arch::FLAT_GUESTOS_DS.raw().into()) };
    traps::set_handler(vector::BREAKPOINT, |_| Outcome::Handled);
    arm(0, ACCESS_4, watched() as usize);
    seen();
    #[cfg(target_arch = "x86")]
    let call = held_off!(["int 0x82", "2:", "3:"]);
    #[cfg(target_arch = "x86_64")]
    let call = held_off!(["syscall", "2:", "3:"]);
    check_eq!(call, VERSION, "a hypercall's result");
    check!(seen().0 <= 1, "a hypercall");
    held_off!(["int3", "2:", "3:"]);
    check!(seen().0 <= 1, "int3");
    for (what, vector, run) in TRAPPING {
        let before = traps::count();
        run();
        let count = seen().0;
        check!(count <= 1, "{what}: {count} breakpoints");
        check_eq!(traps::count().wrapping_sub(before), 1 + count, "{what}: traps");
        check_eq!(traps::last_trap().vector, vector, "{what}: the last of them");
    }
    disarm();
    traps::clear_handler(vector::BREAKPOINT);
}

type Trapping = (&'static str, u8, fn());
const TRAPPING: [Trapping; 5] = [
    ("ud2", vector::INVALID_OPCODE, || _ = held_off!(["2: ud2", "3:"])),
    ("hlt", vector::GENERAL_PROTECTION, || _ = held_off!(["2: hlt", "3:"])),
    ("int of a closed vector", vector::GENERAL_PROTECTION, || _ = held_off!(["2: int 0x99", "3:"])),
    ("int 1", vector::GENERAL_PROTECTION, || _ = held_off!(["2: .byte 0xcd, 1", "3:"])),
    ("a move to DR7", vector::GENERAL_PROTECTION, || _ = held_off!(["2: .byte 0x0f, 0x23, 0xf8", "3:"])),
];

/// The hypervisor pushes a frame on a stack that is watched.
fn watched_stack() {
    section("frames on a watched stack");
    let stack = memory::alloc_frame().expect("padding");
    let top = stack.virt().raw() as usize + 4096;
    for number in 0..4 {
        arm(number, WRITE_4, top - 16 + 4 * number);
    }
    seen();
    for _ in 0..3 {
        let before = traps::count();
        // SAFETY: traps on the other stack, and comes back to this one.
        unsafe {
            asm!(
                concat!("mov {saved}, ", stack_pointer!()),
                concat!("mov ", stack_pointer!(), ", {top}"),
                "2: ud2",
                concat!("3: mov ", stack_pointer!(), ", {saved}"),
                proxenos_guest::__fixup!(),
                saved = out(reg) _,
                top = in(reg) top,
            )
        };
        // The handler writes to its frame itself, to go on elsewhere: that the guest is told of.
        let count = seen().0;
        check!(count <= 2, "{count} #DBs");
        check_eq!(traps::count().wrapping_sub(before), 1 + count, "traps");
    }
    disarm();
}

#[cfg(target_arch = "x86")]
global_asm!(
    ".pushsection .text.breakpoint_call, \"ax\", @progbits",
    ".globl breakpoint_call",
    ".globl breakpoint_called",
    "breakpoint_call: int 0x82",
    "breakpoint_called: ret",
    ".popsection"
);
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.breakpoint_call, \"ax\", @progbits",
    ".globl breakpoint_call",
    ".globl breakpoint_called",
    "breakpoint_call: syscall",
    "breakpoint_called: ret",
    ".popsection"
);

unsafe extern "C" {
    fn breakpoint_call();
    fn breakpoint_called();
}

/// An instruction that calls the hypervisor, with a breakpoint on it and one behind it.
fn at_a_hypercall() {
    section("breakpoints at a hypercall");
    let (call, behind) = (breakpoint_call as *const () as usize, breakpoint_called as *const () as usize);
    arm(0, EXECUTE, call);
    seen();
    check_eq!(version(), VERSION, "the call's result");
    check_eq!(seen(), (1, call, 0xffff_0ff1), "on it");
    arm(0, EXECUTE, behind);
    check_eq!(version(), VERSION, "the call's result");
    check_eq!(seen(), (1, behind, 0xffff_0ff1), "behind it");
    arm(1, EXECUTE, call);
    check_eq!(version(), VERSION, "the call's result");
    check!((1..=2).contains(&seen().0), "both");
    disarm();
}

/// Asks for the version by `breakpoint_call`.
fn version() -> usize {
    let result: usize;
    // SAFETY: the call changes nothing but the register of its result.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("call breakpoint_call", inout("eax") XEN_VERSION => result, inout("ebx") 0usize => _)
    };
    // SAFETY: the call changes nothing but the register of its result, rcx and r11.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "call breakpoint_call",
            inout("rax") XEN_VERSION => result,
            inout("rdi") 0usize => _,
            out("rcx") _,
            out("r11") _,
        )
    };
    result
}

/// A breakpoint that is hit again and again.
fn storm() {
    section("a storm of breakpoints");
    arm(2, WRITE_4, watched() as usize);
    seen();
    for value in 0..2000 {
        // SAFETY: a place of ours.
        unsafe { watched().write_volatile(value) };
    }
    check_eq!(seen().0, 2000);
    disarm();
}

/// A breakpoint on the first instruction of the handler of breakpoints: each causes the next, until the stack has eaten
/// what there is to eat.
pub fn spiral() -> ! {
    println!("-- the end by spiral");
    arm(0, EXECUTE, trap_stub(vector::DEBUG).raw() as usize);
    arm(1, EXECUTE, places()[0]);
    execute();
    test::error("survived")
}
