//! Instructions that a kernel should not execute, or not like this. What traps does not come back here.

use core::arch::{asm, global_asm};
use fastrand::Rng;
use proxenos_guest::abi::{GuestArch, GuestVirt};
use proxenos_guest::{Arch, probe};

use crate::{point, words};

/// Bytes from one `int` to the next.
const STUB: usize = 4;

unsafe extern "C" {
    fn __blind_ints();
}

global_asm!(
    r#"
    .text
    .globl __blind_ints
    __blind_ints:
    .set .Lblind_vector, 0
    .rept 256
        .byte   0xcd, .Lblind_vector, 0xc3, 0x90   /* int, ret */
        .set .Lblind_vector, .Lblind_vector + 1
    .endr
    "#
);

/// `int` of any vector. Where it is the hypercall, the number is one that does not exist.
pub fn software_interrupt(rng: &mut Rng) {
    let at = __blind_ints as *const () as usize + STUB * rng.usize(..256);
    // SAFETY: comes back with the stack as it was, or not at all.
    unsafe { asm!("call {at}", at = in(reg) at, inout("eax") 0x7fff_ffff => _, clobber_abi("C")) };
}

/// A store that may trap or end the guest.
pub fn store(rng: &mut Rng) {
    let value = if rng.bool() { words::entry(rng) } else { words::any(rng) };
    // SAFETY: nothing that Rust relies on is there, but for what may be the guest's end.
    let _ = unsafe { probe::store(GuestVirt(words::target(rng) as u64), value as _) };
}

/// `in` and `out`.
pub fn ports(rng: &mut Rng) {
    let port = if rng.bool() { [0x20, 0x60, 0x64, 0xf4, 0xcf8, 0xcf9, 0x3f8][rng.usize(..7)] } else { rng.u16(..) };
    let value = words::any(rng) as u32;
    // SAFETY: none of them may reach a device.
    unsafe {
        match rng.u8(..6) {
            0 => asm!("in al, dx", in("dx") port, out("al") _),
            1 => asm!("in ax, dx", in("dx") port, out("ax") _),
            2 => asm!("in eax, dx", in("dx") port, out("eax") _),
            3 => asm!("out dx, al", in("dx") port, in("al") value as u8),
            4 => asm!("out dx, ax", in("dx") port, in("ax") value as u16),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value),
        }
    }
}

/// An instruction of ring 0, or one that traps by itself.
pub fn privileged(rng: &mut Rng) {
    let word = words::any(rng);
    let (c, d) = (words::any(rng) as u32, words::any(rng) as u32);
    let at = if rng.bool() { words::address(rng) } else { words::nowhere(rng) };
    // SAFETY: each traps, or changes nothing that Rust relies on.
    unsafe {
        match rng.u8(..32) {
            0 => asm!("hlt"),
            1 => asm!("cli"),
            2 => asm!("sti"),
            3 => asm!("clts"),
            4 => asm!("invd"),
            5 => asm!("wbinvd"),
            6 => asm!("mov cr0, {}", in(reg) word),
            7 => asm!("mov {}, cr0", out(reg) _),
            8 => asm!("mov cr3, {}", in(reg) word),
            9 => asm!("mov {}, cr3", out(reg) _),
            10 => asm!("mov cr4, {}", in(reg) word),
            11 => asm!("mov cr2, {}", in(reg) word),
            12 => asm!("mov dr7, {}", in(reg) word),
            13 => asm!("mov {}, dr6", out(reg) _),
            14 => asm!("mov dr0, {}", in(reg) at),
            15 => asm!("rdmsr", in("ecx") c, out("eax") _, out("edx") _),
            16 => asm!("wrmsr", in("ecx") c, in("eax") word as u32, in("edx") d),
            17 => asm!("lgdt [{}]", in(reg) at),
            18 => asm!("lidt [{}]", in(reg) at),
            19 => asm!("lldt {:x}", in(reg) word),
            20 => asm!("ltr {:x}", in(reg) word),
            21 => asm!("sgdt [{}]", in(reg) at),
            22 => asm!("sidt [{}]", in(reg) at),
            23 => asm!("invlpg [{}]", in(reg) at),
            24 => asm!("lmsw {:x}", in(reg) word),
            25 => asm!("ud2"),
            26 => asm!("int3"),
            27 => asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _),
            28 => asm!(".byte 0xf1"),
            29 => asm!("fldcw [{}]", "fdiv st(0)", "fwait", "fninit", in(reg) at),
            30 => asm!("fxrstor [{}]", "fninit", in(reg) at & !15),
            // sysenter, sysexit, sysret, swapgs by the next digit.
            _ => match rng.u8(..4) {
                0 => asm!(".byte 0x0f, 0x34"),
                1 => asm!(".byte 0x0f, 0x35"),
                2 => asm!(".byte 0x0f, 0x07"),
                _ => asm!(".byte 0x0f, 0x01, 0xf8"),
            },
        }
    }
}

/// Loads a segment register, enters the hypervisor with it, and takes the flat one again.
pub fn segments(rng: &mut Rng) {
    let selector = words::selector(rng);
    let flat = usize::from(Arch::FLAT_GUESTOS_DS.raw());
    // The call's number is one that does not exist.
    macro_rules! load {
        ($register:literal) => {
            // SAFETY: nothing is accessed by it before the flat one is back.
            unsafe {
                #[cfg(target_arch = "x86")]
                asm!(
                    concat!("mov ", $register, ", {selector:e}"),
                    "int 0x82",
                    concat!("mov ", $register, ", {flat:e}"),
                    selector = in(reg) selector,
                    flat = in(reg) flat,
                    inout("eax") 0x7fff_ffff => _,
                    out("ebx") _, out("ecx") _,
                );
                #[cfg(target_arch = "x86_64")]
                asm!(
                    concat!("mov ", $register, ", {selector:e}"),
                    "syscall",
                    concat!("mov ", $register, ", {flat:e}"),
                    selector = in(reg) selector,
                    flat = in(reg) flat,
                    inout("rax") 0x7fff_ffffusize => _,
                    out("rcx") _,
                    out("r11") _,
                );
            }
        };
    }
    match rng.u8(..16) {
        0..4 => load!("ds"),
        4..8 => load!("es"),
        8..11 => load!("fs"),
        11..15 => load!("gs"),
        _ => load!("ss"),
    }
}

/// `iret` with any selectors and flags, rarely with any stack; and a call with any stack pointer.
pub fn returns(rng: &mut Rng) {
    let good = rng.u8(..4) != 0;
    let code = usize::from(Arch::FLAT_GUESTOS_CS.raw());
    let cs = if good { code } else { words::selector(rng) };
    // VM and IOPL are the guest's end where the CPU lets them through.
    let flags = words::any(rng) & if rng.u16(..1024) == 0 { usize::MAX } else { 0x4cfd5 } | 2;
    let ip = if good { point::entry() } else { words::any(rng) };
    let sp = if rng.u16(..2048) == 0 { words::any(rng) } else { point::kernel_stack().raw() as usize };
    let ss = words::selector(rng);
    // SAFETY: leads to the entry or to a trap; the stack is taken anew there.
    unsafe {
        match rng.u8(..8) {
            #[cfg(target_arch = "x86")]
            0..6 => asm!(
                "push {ss}", "push {sp}", "push {flags}", "push {cs}", "push {ip}", "iretd",
                ss = in(reg) ss, sp = in(reg) sp, flags = in(reg) flags, cs = in(reg) cs, ip = in(reg) ip,
                options(noreturn),
            ),
            #[cfg(target_arch = "x86_64")]
            0..6 => asm!(
                "push {ss}", "push {sp}", "push {flags}", "push {cs}", "push {ip}", "iretq",
                ss = in(reg) ss, sp = in(reg) sp, flags = in(reg) flags, cs = in(reg) cs, ip = in(reg) ip,
                options(noreturn),
            ),
            #[cfg(target_arch = "x86")]
            _ => asm!("mov esp, {sp}", "int 0x82", "ud2", sp = in(reg) sp, in("eax") 17, options(noreturn)),
            #[cfg(target_arch = "x86_64")]
            _ => asm!("mov rsp, {sp}", "syscall", "ud2", sp = in(reg) sp, in("rax") 17, options(noreturn)),
        }
    }
}
