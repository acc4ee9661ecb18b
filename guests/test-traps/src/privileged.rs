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
