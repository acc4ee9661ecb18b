//! Single steps across the hypervisor: the trap flag is the guest's, and it steps nothing but the guest's own code.

use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{TrapFrame, check, check_eq};

/// Steps that are noted.
const NOTED: usize = 32;

static STEPS: [AtomicUsize; NOTED] = [const { AtomicUsize::new(0) }; NOTED];
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn note(frame: &mut TrapFrame) -> Outcome {
    let count = COUNT.load(Ordering::Relaxed);
    if let Some(slot) = STEPS.get(count) {
        slot.store(frame.ip().raw() as usize, Ordering::Relaxed);
    }
    COUNT.store(count + 1, Ordering::Relaxed);
    Outcome::Handled
}

/// Runs `$code` with TF set, from label 6 to label 7. Gives where that lies, and the accumulator.
#[cfg(target_arch = "x86")]
macro_rules! stepping {
    ([$($code:literal),*] $(, $($operand:tt)+)?) => {{
        COUNT.store(0, Ordering::Relaxed);
        let (start, end, result): (usize, usize, usize);
        // SAFETY: the steps' handler changes nothing, and TF is clear at the end.
        unsafe {
            asm!(
                "push 0x302",
                "popfd",
                "6: nop",
                $($code,)*
                "push 0x202",
                "popfd",
                "7: lea ecx, [6b]",
                "lea edx, [7b]",
                proxenos_guest::__fixup!(),
                $($($operand)+,)?
                inout("eax") 17usize => result,
                inout("ebx") 0usize => _,
                out("ecx") start,
                out("edx") end,
            );
        }
        (start, end, result)
    }};
}

#[cfg(target_arch = "x86_64")]
macro_rules! stepping {
    ([$($code:literal),*] $(, $($operand:tt)+)?) => {{
        COUNT.store(0, Ordering::Relaxed);
        let (start, end, result): (usize, usize, usize);
        // SAFETY: the steps' handler changes nothing, and TF is clear at the end.
        unsafe {
            asm!(
                "push 0x302",
                "popfq",
                "6: nop",
                $($code,)*
                "push 0x202",
                "popfq",
                "7: lea rcx, [rip + 6b]",
                "lea rdx, [rip + 7b]",
                proxenos_guest::__fixup!(),
                $($($operand)+,)?
                inout("rax") 17usize => result,
                inout("rdi") 0usize => _,
                out("rcx") start,
                out("rdx") end,
                out("r11") _,
            );
        }
        (start, end, result)
    }};
}

/// Checks the steps: from the first instruction to the last, forwards, and nowhere else. An instruction that enters the
/// hypervisor has none of its own, so at least so many of them are there as the others, of which `plain` are.
#[track_caller]
fn check_steps(what: &str, (start, end, _): (usize, usize, usize), plain: usize, entering: usize) {
    let count = COUNT.load(Ordering::Relaxed);
    check!((plain..=plain + entering).contains(&count), "{what}: {count} steps, {plain} instructions");
    let steps = STEPS.each_ref().map(|step| step.load(Ordering::Relaxed));
    let Some(steps) = steps.get(..count) else { return };
    check_eq!(steps.first(), Some(&(start + 1)), "{what}: the first step, behind a nop");
    check_eq!(steps.last(), Some(&end), "{what}: the last step, behind popf");
    check!(steps.is_sorted_by(|a, b| a < b), "{what}: forwards: {steps:x?}");
}

pub fn run() {
    section("single steps across the hypervisor");
    traps::set_handler(vector::DEBUG, note);
    traps::set_handler(vector::BREAKPOINT, |_| Outcome::Handled);
    // nop, nop, push and popf are plain in each.
    #[cfg(target_arch = "x86")]
    let call = stepping!(["int 0x82", "nop", "2:", "3:"]);
    #[cfg(target_arch = "x86_64")]
    let call = stepping!(["syscall", "nop", "2:", "3:"]);
    check_steps("a hypercall", call, 3, 2);
    check_eq!(call.2, 0x0002_0000, "a hypercall: its result");
    let int3 = stepping!(["int3", "nop", "2:", "3:"]);
    check_steps("int3", int3, 3, 2);
    let ud2 = stepping!(["2: ud2", "3: nop", "nop"]);
    check_steps("an exception", ud2, 4, 2);
    // `mov ss` holds off the step behind it.
    #[cfg(target_arch = "x86")]
    let held_off = stepping!(["mov edx, ss", "mov ss, edx", "int 0x82", "nop", "2:", "3:"]);
    #[cfg(target_arch = "x86_64")]
    let held_off = stepping!(["mov edx, ss", "mov ss, edx", "syscall", "nop", "2:", "3:"]);
    check_steps("mov ss and a hypercall", held_off, 4, 3);
    check_eq!(held_off.2, 0x0002_0000, "mov ss and a hypercall: its result");
    let held_off = stepping!(["mov edx, ss", "mov ss, edx", "int3", "nop", "2:", "3:"]);
    check_steps("mov ss and int3", held_off, 4, 3);
    let held_off = stepping!(["mov edx, ss", "mov ss, edx", "2: ud2", "3: nop", "nop"]);
    check_steps("mov ss and an exception", held_off, 5, 3);
    // A vector that is closed to the guest.
    let closed = stepping!(["2: int 0x99", "3: nop", "nop"]);
    check_steps("int of a closed vector", closed, 4, 2);
    // The instruction that raises #DB by itself, or #UD in emulations that do not know it.
    let icebp = stepping!(["2: .byte 0xf1", "3: nop", "nop"]);
    let count = COUNT.load(Ordering::Relaxed);
    check!((4..=6).contains(&count), "int1: {count} steps");
    check!(icebp.1 > icebp.0);
    traps::clear_handler(vector::DEBUG);
    traps::clear_handler(vector::BREAKPOINT);
    crate::flags::still_unprivileged();
}
