//! Which virtual address belongs to what.
//!
//! The x86_64 guest interface leaves the hypervisor the top-level (L4) slots 256 to 271, 0xffff800000000000 to
//! 0xffff87ffffffffff; nothing else is used once [`super::paging::init`] has run. The 16 L3 tables below these slots
//! are allocated at boot and stay for good, so the 16 entries never change: a guest's top-level table gets a copy of
//! them ([`super::paging::hypervisor_slots`]) and never has to be visited again.
//!
//! | slot | from               | what                                                              |
//! |------|--------------------|-------------------------------------------------------------------|
//! | 256  | 0xffff800000000000 | nothing                                                           |
//! | 257  | 0xffff808000000000 | per-CPU areas: stacks, IST stacks, GDT, TSS                       |
//! | 258  | 0xffff810000000000 | machine-to-physical table of 64-bit guests; alone user-readable   |
//! | 259  | 0xffff818000000000 | frame table, heap, device memory                                  |
//! | 260  | 0xffff820000000000 | per-domain descriptor tables                                      |
//! | 261  | 0xffff828000000000 | the image                                                         |
//! | 262  | 0xffff830000000000 | direct map of all RAM, to the end of slot 271 (5 TiB)             |
//!
//! None of these mappings is global (G clear, CR4.PGE off). A global entry would save refilling the hypervisor's
//! translations after a guest's address-space switch, but a guest must not be able to make one, and a flush would have
//! to toggle CR4.PGE; it is a later optimisation, and a measured one.

use proxenos_abi::{MachineAddr, Mfn};
use x86_64::VirtAddr;

/// Bytes in a page and a frame.
pub const PAGE_SIZE: u64 = 4096;
/// First L4 slot of the hypervisor.
pub const FIRST_SLOT: usize = proxenos_abi::x86_64::FIRST_RESERVED_L4_SLOT;
/// Number of the hypervisor's L4 slots.
pub const SLOTS: usize = proxenos_abi::x86_64::LAST_RESERVED_L4_SLOT - FIRST_SLOT + 1;
/// L4 slot of the image.
pub const IMAGE_SLOT: usize = 261;
/// First L4 slot of the direct map.
pub const DIRECT_SLOT: usize = 262;

/// The first address of an L4 slot of the upper half.
const fn slot(index: usize) -> u64 {
    0xffff_0000_0000_0000 | (index as u64) << 39
}

/// First address of the hypervisor's part of every address space.
pub const HYPERVISOR_START: u64 = slot(FIRST_SLOT);
/// First address behind the hypervisor's part.
pub const HYPERVISOR_END: u64 = slot(FIRST_SLOT + SLOTS);

/// Per-CPU areas.
pub const CPU_AREAS: u64 = slot(257);
/// The machine-to-physical table that x86_64 guests see (`machine_to_phys_mapping`).
pub const MACHINE_TO_PHYS: u64 = slot(258);
/// The frame table, or whatever else is as large as memory is: 128 GiB of room.
pub const FRAME_TABLE: u64 = slot(259);
/// The heap.
pub const HEAP: u64 = FRAME_TABLE + (128 << 30);
/// Room of the heap: 64 GiB.
pub const HEAP_MAX: u64 = 64 << 30;
/// Device memory and firmware tables: see [`super::ioremap`].
pub const IOREMAP: u64 = FRAME_TABLE + (384 << 30);
/// Room there: 8 MiB.
pub const IOREMAP_SIZE: u64 = 8 << 20;
/// Per-domain descriptor tables.
pub const DOMAIN_TABLES: u64 = slot(260);
/// The image: what the linker script calls VIRT_BASE.
pub const IMAGE: u64 = slot(IMAGE_SLOT);
/// Where the image is loaded: what the linker script calls PHYS_BASE.
pub const IMAGE_PHYS: u64 = 0x20_0000;
/// The direct map: machine address `a` is at `DIRECT_MAP + a`.
pub const DIRECT_MAP: u64 = slot(DIRECT_SLOT);
/// Machine memory that the direct map has room for: 5 TiB.
pub const DIRECT_MAP_SIZE: u64 = HYPERVISOR_END - DIRECT_MAP;

/// Bytes of a stack and its alignment, the guard page included. Any address in a stack leads to its top by
/// `rsp | (STACK_SIZE - 1)`.
pub const STACK_SIZE: u64 = 32 << 10;
/// Bytes of the stack that the boot runs on before there are per-CPU areas. It has no guard page.
pub const BOOT_STACK_SIZE: u64 = 64 << 10;

/// Distance from one CPU's area to the next. Everything between the parts is unmapped, so a stack overflow or a wild
/// index faults and never reaches a neighbour.
pub const CPU_AREA_SIZE: u64 = 256 << 10;
/// Offset in a CPU's area of the first interrupt stack; the others follow, each [`STACK_SIZE`] further. Of each, the
/// lowest page is a guard.
pub const CPU_IST_STACKS: u64 = 0;
/// Number of interrupt stacks.
pub const IST_STACKS: usize = 4;
/// Offset of the page of code `.text.percpu`. It is the same frame in every CPU's area, so a reference relative to rip
/// from it to another part of the area reaches the area of the CPU it runs on: what a `syscall` entry needs, which
/// finds no stack and may not touch a register.
pub const CPU_TEXT: u64 = IST_STACKS as u64 * STACK_SIZE + PAGE_SIZE;
/// Offset of the CPU's GDT, one page.
pub const CPU_GDT: u64 = CPU_TEXT + 2 * PAGE_SIZE;
/// Offset of the CPU's TSS, one page.
pub const CPU_TSS: u64 = CPU_GDT + 2 * PAGE_SIZE;
/// Offset of the CPU's own stack, whose lowest page is a guard and whose top is its [`Cpu`](crate::cpu::percpu::Cpu).
pub const CPU_STACK: u64 = (IST_STACKS as u64 + 1) * STACK_SIZE;

const _: () = assert!(CPU_TSS + PAGE_SIZE < CPU_STACK && CPU_STACK + STACK_SIZE < CPU_AREA_SIZE);
const _: () = assert!(HYPERVISOR_START == 0xffff_8000_0000_0000 && HYPERVISOR_END == 0xffff_8800_0000_0000);
const _: () = assert!(IMAGE == 0xffff_8280_0000_0000 && DIRECT_MAP == 0xffff_8300_0000_0000);

/// The direct map's address of a machine address. Only RAM is mapped there.
#[must_use]
pub const fn direct(at: MachineAddr) -> VirtAddr {
    assert!(at.0 < DIRECT_MAP_SIZE);
    VirtAddr::new_truncate(DIRECT_MAP + at.0)
}

/// The direct map's address of a frame.
#[must_use]
pub const fn direct_frame(frame: Mfn) -> VirtAddr {
    direct(frame.addr())
}

/// The machine address of something in the image.
#[must_use]
pub fn image_to_machine(at: VirtAddr) -> MachineAddr {
    let image = image();
    assert!(image.contains(&at));
    MachineAddr(at.as_u64() - IMAGE + IMAGE_PHYS)
}

/// A range of virtual addresses.
pub type VirtRange = core::ops::Range<VirtAddr>;

unsafe extern "C" {
    static __image_base: u8;
    static __text_start: u8;
    static __percpu_text: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __image_end: u8;
}

fn between(start: *const u8, end: *const u8) -> VirtRange {
    VirtAddr::from_ptr(start)..VirtAddr::from_ptr(end)
}

/// The whole image as it lies in memory, the boot page at its start included, `.bss` as well.
#[must_use]
pub fn image() -> VirtRange {
    between(&raw const __image_base, &raw const __image_end)
}

/// The image's code, whole pages.
#[must_use]
pub fn text() -> VirtRange {
    between(&raw const __text_start, &raw const __text_end)
}

/// The page of code that every CPU's area maps.
#[must_use]
pub fn percpu_text() -> VirtAddr {
    VirtAddr::from_ptr(&raw const __percpu_text)
}

/// The image's constants, whole pages.
#[must_use]
pub fn rodata() -> VirtRange {
    between(&raw const __rodata_start, &raw const __rodata_end)
}

/// The image's variables, whole pages.
#[must_use]
pub fn data() -> VirtRange {
    between(&raw const __data_start, &raw const __image_end)
}

/// The stack of the boot.
#[must_use]
pub fn boot_stack() -> VirtRange {
    unsafe extern "C" {
        static boot_stack_bottom: u8;
        static boot_stack_top: u8;
    }
    between(&raw const boot_stack_bottom, &raw const boot_stack_top)
}
