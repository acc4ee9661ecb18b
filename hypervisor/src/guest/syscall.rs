//! `syscall`: how x86_64 guests call the hypervisor.
//!
//! The instruction changes neither stack nor any register but rcx and r11, which it loads with rip and rflags; so the
//! entry has nothing to find its CPU with. Its code lies in a page that every CPU's area maps for itself
//! (`.text.percpu`): what it reaches relative to rip is this CPU's. It begins a [`TrapFrame`] where every other trap
//! from a guest has one, and goes on in the image ([`super::calls`], or [`super::user`] if it comes from an
//! application).
//!
//! The same instruction in an x86_64 guest's 32-bit code exists on AMD's CPUs only, and leads to an entry of its own:
//! to the guest it is an invalid opcode, as it is elsewhere.

use super::{CpuLocal, Notes};
use crate::cpu::entry::TrapFrame;
use crate::cpu::percpu::{Area, Cpu, RESERVED};
use crate::mm::layout;
use core::arch::global_asm;
use core::mem::offset_of;
use proxenos_abi::{GuestArch, X86_64};
use proxenos_core::domain::Arch;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{Efer, EferFlags, LStar, Msr, SFMask};
use x86_64::registers::rflags::RFlags;

/// From the page of code to the `rsp` slot of the frame below the CPU's [`Cpu`], in every CPU's area.
const RSP_SLOT: i64 = (layout::CPU_STACK + layout::STACK_SIZE - RESERVED - 16) as i64 - layout::CPU_TEXT as i64;
const _: () = assert!(offset_of!(TrapFrame, rsp) + 16 == size_of::<TrapFrame>());
/// From the end of that frame, where the [`Cpu`] begins, to what guest code keeps there.
const LOCAL: usize = offset_of!(Cpu, local);
const IA32_STAR: u32 = 0xc000_0081;
const AMD_CSTAR: u32 = 0xc000_0083;

global_asm!(
    ".pushsection .text.percpu, \"ax\", @progbits",
    "percpu_text:",
    ".balign 16",
    ".globl syscall_entry",
    "syscall_entry:",
    "   movq %rsp, percpu_text + {slot}(%rip)",
    "1: leaq percpu_text + {slot}(%rip), %rsp",
    "1: movq ${ds}, 8(%rsp)",
    "   pushq %r11",
    "   pushq ${cs64}",
    "   pushq %rcx",
    // Of the kernel a hypercall, of an application its kernel's affair.
    "   jmpq *percpu_text + {to}(%rip)",
    ".balign 16",
    ".globl syscall_entry_compat",
    "syscall_entry_compat:",
    "   movq %rsp, percpu_text + {slot}(%rip)",
    "2: leaq percpu_text + {slot}(%rip), %rsp",
    "2: movq ${ds}, 8(%rsp)",
    "   pushq %r11",
    "   pushq ${cs32}",
    // Two bytes back: an invalid opcode is reported where it stands.
    "   subl $2, %ecx",
    "   pushq %rcx",
    "   pushq $0",
    "   pushq ${invalid_opcode}",
    "   jmpq *1f(%rip)",
    ".balign 8",
    "1: .quad trap_common",
    ".popsection",
    slot = const RSP_SLOT,
    to = const RSP_SLOT + 16 + LOCAL as i64 + offset_of!(CpuLocal, notes) as i64 + offset_of!(Notes, syscall_to) as i64,
    ds = const X86_64::FLAT_GUESTOS_DS.0,
    cs64 = const X86_64::FLAT_GUESTOS_CS.0,
    cs32 = const proxenos_abi::x86_64::FLAT_RING3_CS32.0,
    invalid_opcode = const 6,
    options(att_syntax)
);

unsafe extern "C" {
    static syscall_entry: u8;
    static syscall_entry_compat: u8;
}

/// Where a symbol of the page of code lies in this CPU's area.
fn in_area(area: Area, symbol: *const u8) -> VirtAddr {
    area.text() + (VirtAddr::from_ptr(symbol) - layout::percpu_text())
}

/// Opens `syscall` on this CPU.
pub fn init() {
    let area = Cpu::current().area();
    let star = u64::from(crate::cpu::gdt::HYPERVISOR_CS.0) << 32;
    LStar::write(in_area(area, &raw const syscall_entry));
    // Everything that would disturb the entry: interrupts, single steps, backward copies, NT (which makes iretq fault),
    // AC, VM (see `TrapFrame::has_forbidden_flags`: where a guest can have it, the hypervisor must not go on with it).
    SFMask::write(
        RFlags::INTERRUPT_FLAG
            | RFlags::TRAP_FLAG
            | RFlags::DIRECTION_FLAG
            | RFlags::NESTED_TASK
            | RFlags::ALIGNMENT_CHECK
            | RFlags::RESUME_FLAG
            | RFlags::VIRTUAL_8086_MODE
            | RFlags::IOPL_LOW
            | RFlags::IOPL_HIGH,
    );
    // SAFETY: the entries are in place; STAR's code and data selectors are the hypervisor's, and the way back is
    // `iretq`, which needs no more of it.
    unsafe {
        Msr::new(IA32_STAR).write(star);
        Msr::new(AMD_CSTAR).write(in_area(area, &raw const syscall_entry_compat).as_u64());
    }
}

/// Opens or closes `syscall` for the domain that is to run. An x86_32 guest has no use for it, and since the
/// instruction overwrites CS and SS, the fault that it is to such a guest could not be reported truly: closed, it is a
/// plain #UD.
pub fn allow(arch: Arch) {
    // SAFETY: the entries are in place since `init`.
    unsafe { Efer::update(|flags| flags.set(EferFlags::SYSTEM_CALL_EXTENSIONS, arch == Arch::X86_64)) }
}
