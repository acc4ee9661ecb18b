//! The interrupt descriptor table: 256 interrupt gates, one table for all CPUs.
//!
//! Every gate disables interrupts, so the hypervisor never nests (NMI and machine check apart). Gates have DPL 0, so a
//! guest's `int n` faults with #GP and is delivered by software, but for breakpoint and overflow (3, 4: any ring, as
//! `int3` and `into` demand), the hypercall vector 0x82 (ring 1 and 0: an application's attempt must fault) and the
//! vector of system calls 0x80 (any ring; who may raise it is the guest's to say, and is looked up by software).
//!
//! NMI, double fault, machine check and debug have stacks of their own (IST): they may come at the one instruction
//! after `syscall` where rsp still is the guest's.

use crate::cpu::gdt;
use core::cell::UnsafeCell;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

/// The vector of an exception or interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vector(pub u8);

impl Vector {
    /// Debug exception.
    pub const DEBUG: Self = Self(1);
    /// Non-maskable interrupt.
    pub const NMI: Self = Self(2);
    /// Device not available: the FPU is used while CR0.TS is set.
    pub const DEVICE_NOT_AVAILABLE: Self = Self(7);
    /// Double fault.
    pub const DOUBLE_FAULT: Self = Self(8);
    /// Page fault.
    pub const PAGE_FAULT: Self = Self(14);
    /// General protection.
    pub const GENERAL_PROTECTION: Self = Self(13);
    /// Machine check.
    pub const MACHINE_CHECK: Self = Self(18);
    /// Hypercalls of x86_32 guests (`TRAP_VECTOR`).
    pub const HYPERCALL: Self = Self(proxenos_abi::x86_32::TRAP_VECTOR);
    /// System calls of a guest's applications to its kernel.
    pub const SYSTEM_CALL: Self = Self(proxenos_core::bounce::SYSTEM_CALL);
    /// Where the masked interrupt controllers of the PC/AT would deliver: sixteen vectors.
    pub const PIC: Self = Self(0xe0);
    /// The local APIC's timer.
    pub const TIMER: Self = Self(0xf0);
    /// From another CPU: see [`super::ipi::Message::Look`].
    pub const LOOK: Self = Self(0xf1);
    /// From another CPU: see [`super::ipi::Message::Flush`].
    pub const FLUSH: Self = Self(0xf2);
    /// From another CPU: see [`super::ipi::Message::Hold`].
    pub const HOLD: Self = Self(0xf3);
    /// The local APIC's own errors.
    pub const APIC_ERROR: Self = Self(0xfe);
    /// The local APIC's spurious interrupts.
    pub const SPURIOUS: Self = Self(0xff);

    /// Whether the CPU pushes an error code for it (Intel SDM vol. 3, table 6-1; 29 and 30 are AMD's).
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21 | 29 | 30)
    }

    /// Its name in the manuals, for exceptions.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "#DE divide error",
            1 => "#DB debug",
            2 => "NMI",
            3 => "#BP breakpoint",
            4 => "#OF overflow",
            5 => "#BR bound",
            6 => "#UD invalid opcode",
            7 => "#NM device not available",
            8 => "#DF double fault",
            10 => "#TS invalid TSS",
            11 => "#NP segment not present",
            12 => "#SS stack fault",
            13 => "#GP general protection",
            14 => "#PF page fault",
            16 => "#MF x87 error",
            17 => "#AC alignment check",
            18 => "#MC machine check",
            19 => "#XM SIMD error",
            20 => "#VE virtualisation",
            21 => "#CP control protection",
            9 | 15 | 22..=31 => "reserved exception",
            _ => "interrupt",
        }
    }
}

/// The interrupt stacks, as indices of the TSS's table (whose first entry a gate calls 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Ist {
    /// For NMI.
    Nmi = 0,
    /// For double faults.
    DoubleFault = 1,
    /// For machine checks.
    MachineCheck = 2,
    /// For debug exceptions.
    Debug = 3,
}

impl Ist {
    /// All of them.
    pub const ALL: [Self; crate::mm::layout::IST_STACKS] =
        [Self::Nmi, Self::DoubleFault, Self::MachineCheck, Self::Debug];
}

/// A gate: two words (Intel SDM vol. 3, figure 6-8).
type Gate = [u64; 2];

/// The table. Written only by the boot CPU, before the others start.
#[repr(C, align(4096))]
struct Idt(UnsafeCell<[Gate; 256]>);

// SAFETY: the table is written only in `init` and `load_with_stacks`, by the boot CPU while it is the only one; later
// only CPUs read it.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

unsafe extern "C" {
    /// 256 entry stubs, 16 bytes each: see [`super::entry`].
    static trap_stubs: [[u8; 16]; 256];
    /// The stub of debug exceptions.
    static trap_debug: u8;
}

/// An interrupt gate to `handler`; `ist` 0 is the ring's own stack.
fn gate(handler: VirtAddr, dpl: u64, ist: u64) -> Gate {
    let handler = handler.as_u64();
    let low = (handler & 0xffff)
        | u64::from(gdt::HYPERVISOR_CS.0) << 16
        | ist << 32
        | 0xe << 40
        | dpl << 45
        | 1 << 47
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Fills the table, without interrupt stacks, and loads it: from here on a fault is reported.
pub fn init() {
    fill(|_| 0);
    load();
}

/// Sends NMI, double fault, machine check and debug to their own stacks, and loads the table.
pub fn load_with_stacks() {
    fill(|vector| match vector {
        Vector::DEBUG => Ist::Debug as u64 + 1,
        Vector::NMI => Ist::Nmi as u64 + 1,
        Vector::DOUBLE_FAULT => Ist::DoubleFault as u64 + 1,
        Vector::MACHINE_CHECK => Ist::MachineCheck as u64 + 1,
        _ => 0,
    });
    load();
}

fn fill(stack_of: impl Fn(Vector) -> u64) {
    for number in 0..=255u8 {
        let vector = Vector(number);
        let handler = match vector {
            Vector::DEBUG => &raw const trap_debug,
            // SAFETY: the stubs are 256 arrays of 16 bytes of code; only their addresses are taken.
            _ => unsafe { &raw const trap_stubs[number as usize] }.cast(),
        };
        let dpl = match number {
            3 | 4 => 3,
            _ if vector == Vector::SYSTEM_CALL => 3,
            _ if vector == Vector::HYPERCALL => 1,
            _ => 0,
        };
        let value = gate(VirtAddr::from_ptr(handler), dpl, stack_of(vector));
        // SAFETY: only the boot CPU runs yet (see `Idt`), with interrupts disabled, and each gate that may be in use
        // meanwhile changes in its IST field alone.
        unsafe { (*IDT.0.get())[number as usize] = value };
    }
}

/// Loads the table on this CPU.
pub fn load() {
    // SAFETY: the table is static and its gates lead to the entry stubs through a selector that every GDT of ours has.
    unsafe { lidt(&DescriptorTablePointer { limit: 256 * 16 - 1, base: VirtAddr::from_ptr(IDT.0.get()) }) }
}
