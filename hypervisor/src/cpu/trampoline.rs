//! The way of a CPU that starts, from real mode to its own stack in long mode.
//!
//! It begins at the start of a frame below 1 MiB (Intel SDM vol. 3, 9.4.4), into which [`Trampoline::new`] copies the
//! code here. The first MiB is never given to anybody, so no frame has to be taken for it. On the way from protected
//! mode to the hypervisor's addresses that frame must be mapped where it is: by page tables for this alone, in which it
//! is executable and not writable. (Its contents are written through the direct map, where it is not executable.) No
//! CPU uses either once it has arrived, and [`Trampoline::remove`] leaves nothing of them.
//!
//! One CPU starts at a time: what is in the frame is for that one. No lock: only the boot CPU is here.

use crate::boot;
use crate::mm::layout::{self, PAGE_SIZE};
use crate::mm::paging::{self, Flags};
use crate::mm::{early, ranges::MachineRange};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use proxenos_abi::{MachineAddr, Mfn};
use x86_64::VirtAddr;

// What is named `start_far..`, `start_gdt_at`, `start_root`, `start_stack` and `start_next` is filled in by
// `Trampoline`. Addresses in the first two parts are relative to the frame. CR0 and the rest are as in `boot::asm`.
global_asm!(
    ".pushsection .rodata.start, \"a\", @progbits",
    ".balign 16",
    "start_begin:",
    ".code16",
    "   cli",
    "   cld",
    "   movw %cs, %ax",
    "   movw %ax, %ds",
    "   xorl %ebx, %ebx",
    "   movw %ax, %bx",
    "   shll $4, %ebx",
    "   lgdtl (start_gdt_pointer - start_begin)",
    // Protection on; the caches too, which a reset turns off.
    "   movl $0x11, %eax",
    "   movl %eax, %cr0",
    "   ljmpl *(start_far32 - start_begin)",
    ".code32",
    "start_32:",
    "   movl $0x10, %eax",
    "   movl %eax, %ds",
    "   movl %eax, %es",
    "   movl %eax, %ss",
    "   movl $0x20, %eax",
    "   movl %eax, %cr4",
    "   movl (start_root - start_begin)(%ebx), %eax",
    "   movl %eax, %cr3",
    "   movl $0xc0000080, %ecx",
    "   xorl %edx, %edx",
    "   movl $0x900, %eax",
    "   wrmsr",
    "   movl $0x80010033, %eax",
    "   movl %eax, %cr0",
    "   ljmpl *(start_far64 - start_begin)(%ebx)",
    ".code64",
    "start_64:",
    "   movq start_stack(%rip), %rsp",
    "   movq start_next(%rip), %rax",
    "   xorl %ebp, %ebp",
    "   callq *%rax",
    "   ud2",
    // Flat code of 32 bits, data, code of 64 bits. Their accessed bits are set: the table cannot be written to.
    ".balign 8",
    "start_gdt:",
    "   .quad 0",
    "   .quad 0x00cf9b000000ffff",
    "   .quad 0x00cf93000000ffff",
    "   .quad 0x00af9b000000ffff",
    "start_gdt_pointer:",
    "   .short start_gdt_pointer - start_gdt - 1",
    "start_gdt_at: .long 0",
    "start_far32: .long 0",
    "   .short 0x8",
    "start_far64: .long 0",
    "   .short 0x18",
    "start_root: .long 0",
    ".balign 8",
    "start_stack: .quad 0",
    "start_next: .quad 0",
    "start_end:",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    static start_begin: u8;
    static start_32: u8;
    static start_64: u8;
    static start_gdt: u8;
    static start_gdt_at: u8;
    static start_far32: u8;
    static start_far64: u8;
    static start_root: u8;
    static start_stack: u8;
    static start_next: u8;
    static start_end: u8;
}

/// The end of what a PC calls conventional memory.
const CONVENTIONAL_END: u64 = 0xa_0000;

/// A page table.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn set(&self, slot: usize, entry: u64) {
        self.0[slot].store(entry, Ordering::Release);
    }

    fn at(&self) -> MachineAddr {
        layout::image_to_machine(VirtAddr::from_ptr(self))
    }
}

/// L4 to L1. In the image, so below 4 GiB, where a CPU in protected mode can name the first.
static TABLES: [Table; 4] = [const { Table::new() }; 4];

/// The code in its place.
pub struct Trampoline {
    frame: Mfn,
}

impl Trampoline {
    /// Puts it in its place; `None` if there is no RAM for it below 1 MiB.
    pub fn new() -> Option<Self> {
        let frame = low_frame()?;
        let trampoline = Self { frame };
        let start = &raw const start_begin;
        let size = (&raw const start_end).addr() - start.addr();
        assert!(size as u64 <= PAGE_SIZE);
        // SAFETY: the code and its data lie between the two symbols; the frame is RAM, in the direct map, and nobody's.
        unsafe { start.copy_to_nonoverlapping(layout::direct_frame(frame).as_mut_ptr(), size) };
        let here = |symbol: *const u8| frame.addr().0 as u32 + offset(symbol) as u32;
        trampoline.write(&raw const start_gdt_at, here(&raw const start_gdt));
        trampoline.write(&raw const start_far32, here(&raw const start_32));
        trampoline.write(&raw const start_far64, here(&raw const start_64));
        let [l4, l3, l2, l1] = &TABLES;
        trampoline.write(&raw const start_root, u32::try_from(l4.at().0).expect("the image lies below 4 GiB"));
        for (slot, entry) in (layout::FIRST_SLOT..).zip(paging::hypervisor_slots()) {
            l4.set(slot, entry);
        }
        l4.set(0, l3.at().0 | Flags::TABLE.bits());
        l3.set(0, l2.at().0 | Flags::TABLE.bits());
        l2.set(0, l1.at().0 | Flags::TABLE.bits());
        l1.set(frame.0 as usize, frame.addr().0 | Flags::TEXT.bits());
        Some(trampoline)
    }

    /// Where a CPU is to start: its frame.
    pub const fn frame(&self) -> Mfn {
        self.frame
    }

    /// Says where the next CPU goes on, and on which stack.
    pub fn lead_to(&self, next: extern "C" fn() -> !, stack: VirtAddr) {
        self.write(&raw const start_stack, stack.as_u64());
        self.write(&raw const start_next, next as usize as u64);
    }

    fn write<T>(&self, symbol: *const u8, value: T) {
        let at: *mut T = (layout::direct_frame(self.frame) + offset(symbol)).as_mut_ptr();
        // SAFETY: the symbol is that of a field of this size within the code, whose copy lies in the frame; no CPU
        // reads it now.
        unsafe { at.write_unaligned(value) }
    }

    /// Removes the code and the tables that map it. No CPU is on its way.
    pub fn remove(self) {
        for table in &TABLES {
            (0..512).for_each(|slot| table.set(slot, 0));
        }
        let at: *mut u8 = layout::direct_frame(self.frame).as_mut_ptr();
        // SAFETY: the frame is still what `new` found it to be.
        unsafe { at.write_bytes(0, PAGE_SIZE as usize) }
    }
}

/// How far from the start of the code something in it is.
fn offset(symbol: *const u8) -> u64 {
    (symbol.addr() - (&raw const start_begin).addr()) as u64
}

/// The highest frame of conventional memory that is RAM and holds no module.
fn low_frame() -> Option<Mfn> {
    let range = |frame: u64| MachineAddr(frame * PAGE_SIZE)..MachineAddr((frame + 1) * PAGE_SIZE);
    let is_ram = |page: &MachineRange| early::ram().iter().any(|ram| ram.start <= page.start && page.end <= ram.end);
    let is_module = |page: &MachineRange| {
        boot::info().modules.iter().any(|module| module.range.start < page.end && page.start < module.range.end)
    };
    // The first frame has the BIOS's data.
    let mut frames = (1..CONVENTIONAL_END / PAGE_SIZE).rev();
    frames.find(|&frame| is_ram(&range(frame)) && !is_module(&range(frame))).map(Mfn)
}
