//! What of the CPU a guest sees. CPUID is the CPU's own, but for what the hypervisor's control registers change of it;
//! what they turn off is #UD, what is the hypervisor's is #GP, and what 2.0's guests could look at they still can.
#![no_std]
#![no_main]

use core::arch::asm;
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{StartInfo, attempt, check, check_eq, time};

proxenos_guest::test_guest!(main);

/// Registers of all kinds: clocks, the APIC, microcode, speculation, SYSENTER, caching, system calls, segment bases,
/// performance.
const REGISTERS: [u32; 34] = [
    0x10,
    0x1b,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x79,
    0x8b,
    0xc1,
    0xfe,
    0x10a,
    0x10b,
    0x174,
    0x175,
    0x176,
    0x179,
    0x186,
    0x1a0,
    0x1d9,
    0x200,
    0x277,
    0x2ff,
    0x6e0,
    0x802,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc001_1029,
    0xffff_ffff,
];

fn main(_: &StartInfo) {
    proxenos_guest::init();
    registers();
    status();
    turned_off();
    looked_at();
}

/// Model-specific registers are nobody's but the hypervisor's, whether there is such a register or not.
fn registers() {
    section("model-specific registers");
    for number in REGISTERS {
        let (mut low, mut high) = (0x1234_5678u32, 0x9abc_def0u32);
        // SAFETY: privileged, so refused.
        let read = unsafe { attempt!("rdmsr", in("ecx") number, inout("eax") low, inout("edx") high) };
        check!(!read, "rdmsr {number:#x} is refused");
        check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (vector::GENERAL_PROTECTION, 0));
        check_eq!((low, high), (0x1234_5678, 0x9abc_def0), "rdmsr {number:#x} says nothing");
        // SAFETY: as above.
        let written = unsafe { attempt!("wrmsr", in("ecx") number, in("eax") 0u32, in("edx") 0u32) };
        check!(!written, "wrmsr {number:#x} is refused");
        check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (vector::GENERAL_PROTECTION, 0));
    }
    let before = time::system_time();
    check!(time::system_time() >= before, "and the clock goes on");
}

/// CR0 as `smsw` shows it, and what CPUID says of CR4.
fn status() {
    section("control registers");
    const SEEN: u32 = 0b11_0111;
    /// Protection, monitoring of the coprocessor, its type, and its errors as exceptions; no emulation. (TS comes and
    /// goes.)
    const EXPECTED: u32 = 0b11_0011;
    const TASK_SWITCHED: u32 = 1 << 3;
    let word: u32;
    // SAFETY: stores the low half of CR0.
    check!(unsafe { attempt!("smsw {0:e}", out(reg) word) }, "2.0's guests could read it");
    check_eq!(word & SEEN & !TASK_SWITCHED, EXPECTED, "CR0 {word:#x}");
    let [_, _, features, _] = cpuid(1);
    check_eq!(features >> 27 & 1, 0, "CPUID: the system does not manage extended states (CR4.OSXSAVE)");
    let [_, _, features, _] = cpuid(7);
    check_eq!(features >> 4 & 1, 0, "nor protection keys (CR4.PKE)");
    let before = cpuid(0);
    check_eq!(cpuid(0), before, "CPUID can be had");
}

macro_rules! undefined {
    ($({ $name:literal: $bytes:literal $(, $($operand:tt)+)? })+) => {
        $({
            // SAFETY: refused; if not, the test fails.
            let done = unsafe { attempt!($bytes $(, $($operand)+)?) };
            check!(!done, "{} is refused", $name);
            check_eq!(traps::last_trap().vector, vector::INVALID_OPCODE, "{}", $name);
        })+
    };
}

/// What control registers turn off: #UD, as on a CPU that has not got it.
fn turned_off() {
    section("what is turned off");
    let mut area = [0u64; 80];
    let at = area.as_mut_ptr() as usize;
    undefined! {
        { "xgetbv": ".byte 0x0f, 0x01, 0xd0", in("ecx") 0u32, out("eax") _, out("edx") _ }
        { "xsave": ".byte 0x0f, 0xae, 0x21", in("ecx") (at + 63) & !63, in("eax") 7u32, in("edx") 0u32 }
        { "xrstor": ".byte 0x0f, 0xae, 0x29", in("ecx") (at + 63) & !63, in("eax") 7u32, in("edx") 0u32 }
        { "vzeroupper": ".byte 0xc5, 0xf8, 0x77" }
        { "vxorps ymm0": ".byte 0xc5, 0xfc, 0x57, 0xc0" }
        { "rdpkru": ".byte 0x0f, 0x01, 0xee", in("ecx") 0u32, out("eax") _, out("edx") _ }
        { "wrpkru": ".byte 0x0f, 0x01, 0xef", in("ecx") 0u32, in("eax") 0u32, in("edx") 0u32 }
        { "clac": ".byte 0x0f, 0x01, 0xca" }
        { "stac": ".byte 0x0f, 0x01, 0xcb" }
    }
    check!(area.iter().all(|&word| word == 0), "and nothing was stored");
    // Segment bases by instruction; in 32-bit code they are none.
    undefined! { { "rdfsbase": ".byte 0xf3, 0x0f, 0xae, 0xc0", out("eax") _ } }
    // Performance counters are the hypervisor's. Makers of CPUs and of emulators do not agree on how `sysenter` and
    // `xsetbv` are refused.
    // SAFETY: refused.
    check!(!unsafe { attempt!("rdpmc", in("ecx") 0u32, out("eax") _, out("edx") _) });
    check_eq!(traps::last_trap().vector, vector::GENERAL_PROTECTION, "rdpmc (CR4.PCE)");
    // SAFETY: as above.
    check!(!unsafe { attempt!("sysenter") }, "sysenter");
    check!(matches!(traps::last_trap().vector, vector::GENERAL_PROTECTION | vector::INVALID_OPCODE));
    // SAFETY: as above.
    let set = unsafe { attempt!(".byte 0x0f, 0x01, 0xd1", in("ecx") 0u32, in("eax") 7u32, in("edx") 0u32) };
    check!(!set, "xsetbv");
    check!(matches!(traps::last_trap().vector, vector::GENERAL_PROTECTION | vector::INVALID_OPCODE));
}

/// What 2.0's guests could read: it tells where the hypervisor's tables are, and lets nobody there.
fn looked_at() {
    section("what can be looked at");
    let mut table = [0u8; 16];
    let mut word: u32;
    // SAFETY: they store what they say; the table is large enough.
    unsafe {
        check!(attempt!("sgdt [{0}]", in(reg) table.as_mut_ptr()), "sgdt");
        check!(attempt!("sidt [{0}]", in(reg) table.as_mut_ptr()), "sidt");
        check!(attempt!("sldt {0:e}", out(reg) word), "sldt");
        check_eq!(word & 0xffff, 0, "no LDT");
        check!(attempt!("str {0:e}", out(reg) word), "str");
        check!(word & 0xffff != 0, "the hypervisor's TSS");
        check!(attempt!("rdtsc", out("eax") _, out("edx") _), "rdtsc");
    }
}

/// CPUID's leaf, first part: eax, ebx, ecx, edx.
fn cpuid(leaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: changes four registers; the compiler may want ebx.
    unsafe {
        #[cfg(target_arch = "x86")]
        asm!("mov {0:e}, ebx", "cpuid", "xchg {0:e}, ebx",
            out(reg) b, inout("eax") leaf => a, inout("ecx") 0 => c, out("edx") d);
        #[cfg(target_arch = "x86_64")]
        asm!("mov {0:r}, rbx", "cpuid", "xchg {0:r}, rbx",
            out(reg) b, inout("eax") leaf => a, inout("ecx") 0 => c, out("edx") d);
    }
    [a, b, c, d]
}
