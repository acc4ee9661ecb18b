//! Virtual-8086 mode, which long mode does not have and no guest may enter, by an `iret` with VM set in the flags.
//!
//! A CPU ignores VM where the privilege is not 0. QEMU's emulation (7.2 at least) does not look at the privilege:
//! 32-bit code of any ring gets into that mode, with IOPL and IF as it likes. There a code selector is a plain number:
//! with 0 in its two lowest bits the interrupted code looks like the hypervisor's own, and a return to it is one to
//! ring 0.

use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestArch, GuestVirt};
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Arch, hypercall, println, shutdown};

use crate::entry;

const VM: usize = 1 << 17;
const IOPL: usize = 3 << 12;
const IF: usize = 1 << 9;
const TF: usize = 1 << 8;

/// Selectors: one that is the hypervisor's own 64-bit code in protected mode, one that looks like ring 3's.
const HYPERVISOR: usize = 0x0800;
const RING3: usize = 0x0803;
/// Where the code lies in its segment.
const OFFSET: usize = 0x100;

/// `jmp` to itself, `ud2`, `syscall`, `nop` and `jmp` to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];
const UD2: [u8; 2] = [0x0f, 0x0b];
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// What ring 0 would execute at the same offset: an exit of the emulator with status 16.
const PAYLOAD: [u8; 4] = [0xb0, 0x10, 0xe6, 0xf4];

pub fn run(name: &str) {
    match name {
        "vm86-timer" => attack(HYPERVISOR, IF, SPIN),
        "vm86-fault" => attack(HYPERVISOR, IF, UD2),
        "vm86-step" => attack(HYPERVISOR, IF | TF, SPIN),
        "vm86-iopl" => with_iopl(),
        "vm86-syscall" => attack(HYPERVISOR, IF, SYSCALL),
        _ => {}
    }
}

/// A page at an address where nothing was, for every ring.
fn page_at(at: u64, bytes: &[u8], offset: usize) {
    let frame = memory::alloc_frame().expect("padding");
    for (index, byte) in bytes.iter().enumerate() {
        // SAFETY: a fresh frame.
        unsafe { frame.words().cast::<u8>().add(offset + index).write_volatile(*byte) };
    }
    tables::ensure_l1(GuestVirt(at)).expect("page tables");
    let entry = Pte::new(frame.mfn(), PteFlags::KERNEL_RW | PteFlags::USER);
    // SAFETY: nothing of ours is mapped there.
    unsafe { memory::update_va_mapping(GuestVirt(at), entry, UpdateVaFlags::INVLPG) }.expect("a page of ours");
}

/// Enters the mode, and says so if the CPU does not let us.
fn attack(cs: usize, flags: usize, code: [u8; 2]) {
    page_at(0, &PAYLOAD, OFFSET);
    page_at(0x8000, &code, (cs * 16 + OFFSET) % 4096);
    leave(cs, VM | 2 | flags);
    println!("the CPU has no such mode");
    // The status that is expected of this run.
    shutdown::shutdown(shutdown::Reason(126));
}

/// IOPL 3 brought back to the kernel in the frame of an exception.
fn with_iopl() {
    entry::catch(6);
    let stack = memory::alloc_frame().expect("padding");
    // SAFETY: the frame is for nothing else.
    unsafe { hypercall::stack_switch(Arch::FLAT_GUESTOS_DS, GuestVirt(stack.virt().raw() + 4096)) }.expect("a stack");
    attack(RING3, IF | IOPL, UD2);
}

/// By `iretd` from our own ring.
#[cfg(target_arch = "x86")]
fn leave(cs: usize, flags: usize) {
    // SAFETY: comes back by the recovery, or with the registers that `entry` leaves, or not at all.
    unsafe {
        core::arch::asm!(
            "mov dword ptr [{resume}], esp",
            "lea eax, [4f]",
            "mov dword ptr [{resume} + 4], eax",
            "push 0",
            "push 0",
            "push 0",
            "push 0",
            "push 0x0808",
            "push 0x1000",
            "push {flags}",
            "push {cs}",
            "push {offset}",
            "2: iretd",
            // Behind the exception: with IOPL 3 this would be the emulator's end.
            "4: mov al, 0x10",
            "out 0xf4, al",
            "3: mov esp, dword ptr [{resume}]",
            proxenos_guest::__fixup!(),
            ".pushsection .guest_fixups, \"a\", @progbits",
            ".long 4b + 2, 3b",
            ".popsection",
            resume = sym entry::RESUME,
            flags = in(reg) flags,
            cs = in(reg) cs,
            offset = const OFFSET,
            out("eax") _,
            clobber_abi("C"),
        );
    }
}

/// By `iretd` from 32-bit code.
#[cfg(target_arch = "x86_64")]
fn leave(cs: usize, flags: usize) {
    use proxenos_guest::abi::x86_64::FLAT_RING3_CS32;
    // SAFETY: comes back by the recovery, or with the registers that `entry` leaves, or not at all.
    unsafe {
        core::arch::asm!(
            "mov qword ptr [{resume}], rsp",
            "lea rax, [rip + 4f]",
            "mov qword ptr [{resume} + 8], rax",
            "push {cs32}",
            "lea rax, [rip + 5f]",
            "push rax",
            "retfq",
            // 32-bit code from here, which has its stack below 4 GiB as everything of ours.
            ".code32",
            "5: push 0",
            "push 0",
            "push 0",
            "push 0",
            "push 0x0808",
            "push 0x1000",
            "push edx",
            "push ecx",
            "push {offset}",
            "2: iretd",
            ".code64",
            "4: mov al, 0x10",
            "out 0xf4, al",
            "3: mov rsp, qword ptr [{resume}]",
            proxenos_guest::__fixup!(),
            ".pushsection .guest_fixups, \"a\", @progbits",
            ".quad 4b + 2, 3b",
            ".popsection",
            resume = sym entry::RESUME,
            cs32 = const FLAT_RING3_CS32.raw(),
            offset = const OFFSET,
            in("rcx") cs,
            in("rdx") flags,
            out("rax") _,
            clobber_abi("C"),
        );
    }
}
