//! Calls and jumps through 32-bit call gates in the LDT: from the kernel's ring, and from an application's with
//! parameters and a way back, as kernels have it whose applications make system calls by `lcall $7, $0`.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use proxenos_guest::abi::{GuestVirt, Selector};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{
    Arch, StartInfo, Word, abi::GuestArch, abi::mmu::UpdateVaFlags, check, check_eq, events, hypercall,
};

proxenos_guest::test_guest!(main);

/// Slots of the LDT.
const SYSTEM_CALL: u16 = 0;
const EXIT: u16 = 1;
const NEAR: u16 = 2;
const JUMP: u16 = 3;
const FOR_KERNEL: u16 = 4;
const TO_DATA: u16 = 5;
const ABSENT: u16 = 6;
const OLD: u16 = 7;

const fn local(slot: u16, ring: u16) -> u16 {
    slot << 3 | 4 | ring
}

const fn gate(selector: Selector, offset: u32, dpl: u64, parameters: u64) -> u64 {
    (offset & 0xffff) as u64
        | (selector.raw() as u64) << 16
        | parameters << 32
        | (0x8c | dpl << 5) << 40
        | (offset as u64 >> 16) << 48
}

// What the entries found: of a system call eip, cs, two parameters, esp, ss; of the exit esp and cs; and where our
// stack was.
global_asm!(
    ".pushsection .bss, \"aw\", @nobits",
    ".balign 4",
    "call_gate_seen: .skip 24",
    "call_gate_exit: .skip 8",
    "call_gate_calls: .skip 4",
    "call_gate_stack: .skip 4",
    ".popsection",
    ".pushsection .text, \"ax\", @progbits",
    // A system call of an application's: two parameters, which the return drops from both stacks.
    "call_gate_system_call:",
    "   push eax",
    "   push ecx",
    "   mov eax, {kernel_ds}",
    "   mov ds, eax",
    "   mov es, eax",
    "   inc dword ptr [call_gate_calls]",
    "   xor ecx, ecx",
    "2: mov eax, [esp + ecx * 4 + 8]",
    "   mov [call_gate_seen + ecx * 4], eax",
    "   inc ecx",
    "   cmp ecx, 6",
    "   jne 2b",
    "   pop ecx",
    "   pop eax",
    "   retf 8",
    // The application is done: back to where it was entered from.
    "call_gate_exit_entry:",
    "   mov eax, {kernel_ds}",
    "   mov ds, eax",
    "   mov es, eax",
    "   mov [call_gate_exit], esp",
    "   mov eax, cs",
    "   mov [call_gate_exit + 4], eax",
    "   mov esp, [call_gate_stack]",
    "   popad",
    "   ret",
    // Runs an application: its first instruction, its stack.
    "call_gate_run:",
    "   mov eax, [esp + 4]",
    "   mov ecx, [esp + 8]",
    "   pushad",
    "   mov [call_gate_stack], esp",
    "   push {user_ds}",
    "   push ecx",
    "   pushfd",
    "   push {user_cs}",
    "   push eax",
    "   iretd",
    // Within the kernel's ring.
    "call_gate_near:",
    "   inc dword ptr [call_gate_calls]",
    "   retf",
    "call_gate_jump:",
    "   inc dword ptr [call_gate_calls]",
    "   jmp dword ptr [call_gate_stack]",
    ".popsection",
    kernel_ds = const Arch::FLAT_GUESTOS_DS.raw(),
    user_cs = const Arch::FLAT_USER_CS.raw(),
    user_ds = const Arch::FLAT_USER_DS.raw(),
);

unsafe extern "C" {
    static call_gate_seen: [u32; 6];
    static call_gate_exit: [u32; 2];
    static call_gate_calls: u32;
    fn call_gate_system_call();
    fn call_gate_exit_entry();
    fn call_gate_near();
    fn call_gate_jump();
    fn call_gate_run(ip: u32, sp: u32);
}

/// The application: passes two parameters, once by a direct call and once through memory, and ends.
const APPLICATION: &[u8] = &[
    0x68, 0x22, 0x22, 0, 0, // push 0x2222
    0x68, 0x11, 0x11, 0, 0, // push 0x1111
    0x9a, 0, 0, 0, 0, 0x07, 0, // lcall $7, $0
    0x6a, 0x07, // push 7
    0x6a, 0x00, // push 0
    0x68, 0x44, 0x44, 0, 0, // push 0x4444
    0x68, 0x33, 0x33, 0, 0, // push 0x3333
    0xff, 0x5c, 0x24, 0x08, // lcall *8(%esp)
    0x9a, 0, 0, 0, 0, 0x0f, 0, // lcall $0xf, $0
    0x0f, 0x0b, // ud2
];
/// Offset behind its second call.
const BEHIND: u32 = 35;

fn calls() -> u32 {
    // SAFETY: written by the entries above only, which run within what we call.
    unsafe { (&raw const call_gate_calls).read_volatile() }
}

fn frame() -> Frame {
    memory::alloc_frame().expect("padding")
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    let ldt = install_gates();
    kernel();
    refused();
    let were_unmasked = events::mask_upcalls();
    application();
    if were_unmasked {
        events::unmask_upcalls();
    }
    rewritten(ldt);
}

/// Where an entry lies.
fn at(entry: unsafe extern "C" fn()) -> u32 {
    entry as usize as u32
}

fn install_gates() -> Frame {
    section("gates in the LDT");
    let ldt = frame();
    let code = Arch::FLAT_GUESTOS_CS;
    let old = gate(code, 0, 3, 0) & !(0x8 << 40);
    for (slot, raw) in [
        (SYSTEM_CALL, gate(code, at(call_gate_system_call), 3, 2)),
        (EXIT, gate(code, at(call_gate_exit_entry), 3, 0)),
        (NEAR, gate(code, at(call_gate_near), 1, 3)),
        (JUMP, gate(code, at(call_gate_jump), 1, 0)),
        (FOR_KERNEL, gate(code, at(call_gate_near), 1, 0)),
        (TO_DATA, gate(Selector(local(8, 1)), 0, 3, 0)),
        (ABSENT, gate(code, 0, 3, 0) & !(1 << 47)),
        (8, 0x00cf_b300_0000_ffff),
    ] {
        // SAFETY: a frame of the test's own.
        unsafe { ldt.words().cast::<u64>().add(slot.into()).write_volatile(raw) };
    }
    // SAFETY: as above.
    check_eq!(unsafe { memory::remap(ldt, PteFlags::KERNEL_RO) }, Ok(()));
    // SAFETY: no selector of an older LDT is in use.
    check_eq!(unsafe { memory::set_ldt(ldt.virt(), 512) }, Ok(()));
    // A 16-bit gate is none that a kernel can have.
    let at = memory::machine_of(GuestVirt(ldt.virt().raw() + 8 * u64::from(OLD)));
    check!(hypercall_update(at, old).is_err(), "a 16-bit gate");
    ldt
}

fn hypercall_update(at: proxenos_guest::abi::MachineAddr, raw: u64) -> Result<(), proxenos_guest::abi::Errno> {
    // SAFETY: changes a descriptor that is not loaded.
    unsafe { hypercall::update_descriptor(at, raw) }
}

fn kernel() {
    section("from the kernel's ring");
    let before = calls();
    let (sp, sp_after): (u32, u32);
    // SAFETY: the entry returns with everything as it was.
    unsafe {
        asm!(
            "mov {sp}, esp",
            ".byte 0x9a, 0, 0, 0, 0, 0x15, 0",
            "mov {after}, esp",
            sp = out(reg) sp,
            after = out(reg) sp_after,
        );
    }
    check_eq!(calls(), before + 1, "a call");
    check_eq!(sp_after, sp, "and back, with no parameter copied");
    let pointer = [0u32, local(NEAR, 1).into()];
    // SAFETY: as above.
    unsafe { asm!("call fword ptr [{}]", in(reg) &raw const pointer) };
    check_eq!(calls(), before + 2, "a call through memory");
    // SAFETY: the entry jumps to the address that it finds in `call_gate_stack`.
    unsafe {
        asm!(
            "lea {scratch}, [2f]",
            "mov [call_gate_stack], {scratch}",
            ".byte 0xea, 0, 0, 0, 0, 0x1d, 0",
            "2:",
            scratch = out(reg) _,
        );
    }
    check_eq!(calls(), before + 3, "a jump");
}

/// Tries a far call, which is to fault.
macro_rules! faults {
    ($instruction:literal) => {
        // SAFETY: faults.
        unsafe { !proxenos_guest::attempt!($instruction) }
    };
}

fn refused() {
    section("what is refused");
    let before = calls();
    // Slot 4 by a selector that asks for ring 3.
    check!(faults!(".byte 0x9a, 0, 0, 0, 0, 0x27, 0"), "a gate for the kernel, asked for as an application");
    check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (vector::GENERAL_PROTECTION, 0x24));
    check!(faults!(".byte 0x9a, 0, 0, 0, 0, 0x2d, 0"), "a gate to data");
    let to_data = (traps::last_trap().vector, traps::last_trap().error_code);
    check_eq!(to_data, (vector::GENERAL_PROTECTION, u32::from(local(8, 0))));
    check!(faults!(".byte 0x9a, 0, 0, 0, 0, 0x35, 0"), "a gate that is not there");
    check!(faults!(".byte 0x9a, 0, 0, 0, 0, 0x3d, 0"), "no gate");
    check_eq!(calls(), before);
}

fn application() {
    section("from an application's ring");
    let (code, stack, kernel_stack) = (frame(), frame(), frame());
    // SAFETY: a frame of the test's own.
    unsafe { code.words().cast::<u8>().copy_from_nonoverlapping(APPLICATION.as_ptr(), APPLICATION.len()) };
    for frame in [code, stack] {
        let entry = Pte::new(frame.mfn(), PteFlags::KERNEL_RW | PteFlags::USER);
        // SAFETY: frames of the test's own.
        check_eq!(unsafe { memory::update_va_mapping(frame.virt(), entry, UpdateVaFlags::INVLPG) }, Ok(()));
    }
    let top = kernel_stack.virt().raw() as u32 + 4096;
    // SAFETY: a frame that is nothing else.
    check_eq!(unsafe { hypercall::stack_switch(Arch::FLAT_GUESTOS_DS, GuestVirt(top.into())) }, Ok(()));
    let (ip, sp) = (code.virt().raw() as u32, stack.virt().raw() as u32 + 4096);
    let before = calls();
    // SAFETY: the application ends through a gate that leads back here.
    unsafe { call_gate_run(ip, sp) };
    check_eq!(calls(), before + 2, "two system calls");
    // SAFETY: written by the entries, which have run.
    let (seen, exit) =
        unsafe { ((&raw const call_gate_seen).read_volatile(), (&raw const call_gate_exit).read_volatile()) };
    let (user_cs, user_ds) = (u32::from(Arch::FLAT_USER_CS.raw()), u32::from(Arch::FLAT_USER_DS.raw()));
    // The first call's parameters were dropped, then came the far pointer and two more.
    let expected = [ip + BEHIND, user_cs, 0x3333, 0x4444, sp - 16, user_ds];
    check_eq!(seen, expected, "the second system call's frame");
    check_eq!(exit[0], top - 16, "the kernel's stack at the end");
    check_eq!(exit[1] & 0xffff, u32::from(Arch::FLAT_GUESTOS_CS.raw()), "in the kernel's ring");
    // SAFETY: a frame of the test's own.
    let left = unsafe { ((top as usize - 16) as *const Word).read_volatile() };
    check_eq!(left, ip + BEHIND + 7, "the application's last instruction");
}

/// A gate can be changed, as any descriptor.
fn rewritten(ldt: Frame) {
    section("a gate changed by update_descriptor");
    let at_slot = memory::machine_of(GuestVirt(ldt.virt().raw() + 8 * u64::from(TO_DATA)));
    check_eq!(hypercall_update(at_slot, gate(Arch::FLAT_GUESTOS_CS, at(call_gate_near), 1, 0)), Ok(()));
    let before = calls();
    // SAFETY: the entry returns with everything as it was.
    unsafe { asm!(".byte 0x9a, 0, 0, 0, 0, 0x2d, 0") };
    check_eq!(calls(), before + 1);
}
