//! Instructions that only the hypervisor may execute: #GP with code 0, and nothing happens.

use crate::expect;
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{attempt, check};

macro_rules! refused {
    ($({ $instruction:literal $(, $($operand:tt)+)? })+) => {
        $({
            let before = traps::count();
            // SAFETY: the instruction is refused; if not, the test fails.
            let completed = unsafe { attempt!($instruction $(, $($operand)+)?) };
            check!(!completed, "{} is refused", $instruction);
            expect($instruction, before, vector::GENERAL_PROTECTION, 0);
        })+
    };
}

pub fn run() {
    section("privileged instructions");
    let mut memory = [0u64; 2];
    let pointer = memory.as_mut_ptr();
    refused! {
        { "cli" }
        { "sti" }
        { "hlt" }
        { "clts" }
        { "invd" }
        { "wbinvd" }
        { "rdmsr", in("ecx") 0xc000_0080u32, out("eax") _, out("edx") _ }
        { "wrmsr", in("ecx") 0xc000_0080u32, in("eax") 0, in("edx") 0 }
        { "lgdt [{0}]", in(reg) pointer }
        { "lidt [{0}]", in(reg) pointer }
        { "invlpg [{0}]", in(reg) pointer }
        { "lldt {0:x}", in(reg) 0u32 }
        { "ltr {0:x}", in(reg) 0u32 }
        { "lmsw {0:x}", in(reg) 0u32 }
        { "in al, 0x80", out("al") _ }
        { "out 0x80, al", in("al") 0u8 }
        { "in eax, dx", in("edx") 0xcfcu32, out("eax") _ }
        { "out dx, eax", in("edx") 0xcf8u32, in("eax") 0 }
    }
    control_registers(pointer as usize);
    check!(memory == [0; 2]);
    #[cfg(target_arch = "x86_64")]
    compatible_code();
}

/// 32-bit code of a 64-bit kernel's has no way to the hypervisor: `syscall` there is #UD, and `int 0x82` an interrupt
/// like any other.
#[cfg(target_arch = "x86_64")]
fn compatible_code() {
    use core::arch::asm;
    use core::sync::atomic::{AtomicU64, Ordering};
    use proxenos_guest::abi::x86_64::FLAT_RING3_CS32;
    use proxenos_guest::abi::{GuestArch, GuestVirt};
    use proxenos_guest::traps::Outcome;
    use proxenos_guest::{Arch, TrapFrame, check_eq};

    section("32-bit code of a 64-bit kernel");
    static FOUND: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    static RESUME: AtomicU64 = AtomicU64::new(0);
    fn back(frame: &mut TrapFrame) -> Outcome {
        FOUND[0].store(frame.cs & 0xffff, Ordering::Relaxed);
        FOUND[1].store(frame.ip().raw(), Ordering::Relaxed);
        frame.cs = Arch::FLAT_GUESTOS_CS.raw().into();
        frame.set_ip(GuestVirt(RESUME.load(Ordering::Relaxed)));
        Outcome::Handled
    }
    macro_rules! in_32_bits {
        ($instruction:literal) => {{
            let at: u64;
            // SAFETY: the instruction traps, and the handler goes on behind it in 64-bit code. Code and stack are below
            // 4 GiB.
            unsafe {
                asm!(
                    "lea {at}, [rip + 4f]",
                    "mov qword ptr [{resume}], {at}",
                    "push {cs32}",
                    "lea {at}, [rip + 5f]",
                    "push {at}",
                    "retfq",
                    ".code32",
                    concat!("5: ", $instruction),
                    ".code64",
                    "4:",
                    at = out(reg) at,
                    resume = sym RESUME,
                    cs32 = const FLAT_RING3_CS32.raw(),
                    inout("rax") 17u64 => _,
                    inout("rdi") 0u64 => _,
                    out("rcx") _,
                    out("r11") _,
                );
            }
            at
        }};
    }
    traps::set_handler(vector::INVALID_OPCODE, back);
    traps::set_handler(vector::GENERAL_PROTECTION, back);
    let expect = |what: &str, trap: u8, code: u32, at: u64| {
        check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (trap, code), "{what}");
        check_eq!(FOUND[0].load(Ordering::Relaxed), u64::from(FLAT_RING3_CS32.raw()), "{what}: cs");
        check_eq!(FOUND[1].load(Ordering::Relaxed), at, "{what}: rip");
    };
    let at = in_32_bits!("syscall");
    expect("syscall", vector::INVALID_OPCODE, 0, at);
    let at = in_32_bits!("int 0x82");
    expect("int 0x82", vector::GENERAL_PROTECTION, 0x82 << 3 | 2, at);
    traps::clear_handler(vector::INVALID_OPCODE);
    traps::clear_handler(vector::GENERAL_PROTECTION);
}

#[cfg(target_arch = "x86")]
fn control_registers(value: usize) {
    refused! {
        { "mov {0}, cr0", out(reg) _ }
        { "mov {0}, cr2", out(reg) _ }
        { "mov {0}, cr3", out(reg) _ }
        { "mov {0}, cr4", out(reg) _ }
        { "mov cr0, {0}", in(reg) value }
        { "mov cr2, {0}", in(reg) value }
        { "mov cr3, {0}", in(reg) value }
        { "mov cr4, {0}", in(reg) value }
        { "mov {0}, dr7", out(reg) _ }
        { "mov dr7, {0}", in(reg) 0x400usize }
    }
}

#[cfg(target_arch = "x86_64")]
fn control_registers(value: usize) {
    refused! {
        { "mov {0}, cr0", out(reg) _ }
        { "mov {0}, cr2", out(reg) _ }
        { "mov {0}, cr3", out(reg) _ }
        { "mov {0}, cr4", out(reg) _ }
        { "mov {0}, cr8", out(reg) _ }
        { "mov cr0, {0}", in(reg) value }
        { "mov cr2, {0}", in(reg) value }
        { "mov cr3, {0}", in(reg) value }
        { "mov cr4, {0}", in(reg) value }
        { "mov cr8, {0}", in(reg) value }
        { "mov {0}, dr7", out(reg) _ }
        { "mov dr7, {0}", in(reg) 0x400usize }
        { "swapgs" }
        { "sysretq", in("rcx") 0usize, in("r11") 0usize }
    }
}
