//! The first instructions: from 32-bit protected mode without paging to [`super::boot_main`] in long mode.
//!
//! There are two ways in. PVH enters at `boot_entry_pvh` with the physical address of its `hvm_start_info` in `ebx`
//! (Xen's docs/misc/pvh: flat 32-bit segments, paging off, interrupts off). Multiboot 1 and 2 enter at
//! `boot_entry_multiboot`, the ELF entry point, with a magic number in `eax` and the address of the information in
//! `ebx`.
//!
//! The boot page tables built here are simple and short-lived: the first 4 GiB, writable and executable, at virtual 0
//! and at the start of the direct map, and the image where it is linked. They are left for good once
//! [`crate::mm::paging::init`] has built the real ones; until then [`super::info`] reads what the loader left.
//!
//! Nothing of the loader's is trusted but the two registers: the GDT, the stack and the flags are our own.

use core::arch::global_asm;

/// What `boot_entry_pvh` passes to `boot_main` as magic number (`XEN_HVM_START_MAGIC_VALUE`).
pub const PVH_MAGIC: u32 = 0x336e_c578;
/// What a Multiboot 1 loader leaves in `eax`.
pub const MULTIBOOT1_MAGIC: u32 = 0x2bad_b002;
/// What a Multiboot 2 loader leaves in `eax`.
pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;
/// Machine memory that the boot page tables map: 4 GiB.
pub const BOOT_MAP_END: u64 = 1 << 32;

// Multiboot 2 header (Multiboot2 specification 1.6, section 3.1): i386, no tags but the end. The ELF file's own program
// headers say where to load and `e_entry` where to start.
//
// There is deliberately no Multiboot 1 header: QEMU looks for one first, refuses a 64-bit ELF file that has it, and
// would never look for the PVH note. `cargo xtask` makes a separate file for Multiboot 1 loaders, which enters at
// `boot_entry_multiboot` too.
global_asm!(
    ".pushsection .boot.header, \"a\", @progbits",
    ".balign 8",
    "0: .long 0xe85250d6",
    "   .long 0",
    "   .long 1f - 0b",
    "   .long -(0xe85250d6 + 0 + (1f - 0b))",
    "   .short 0, 0",
    "   .long 8",
    "1:",
    ".popsection",
    // XEN_ELFNOTE_PHYS32_ENTRY (18).
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    "   .long 4, 4, 18",
    "   .asciz \"Xen\"",
    "   .long boot_entry_pvh",
    ".popsection",
);

global_asm!(
    ".pushsection .boot.text, \"ax\", @progbits",
    ".code32",
    ".globl boot_entry_multiboot",
    "boot_entry_multiboot:",
    "   movl %eax, %edi",
    "   jmp 1f",
    ".globl boot_entry_pvh",
    "boot_entry_pvh:",
    "   movl ${pvh_magic}, %edi",
    "1: cli",
    "   cld",
    "   movl %ebx, %esi",
    "   movl $boot_stack_top_phys, %esp",
    "   pushl $0",
    "   popfl",
    "   rdtsc",
    "   movl %eax, boot_tsc_phys",
    "   movl %edx, boot_tsc_phys + 4",
    // Long mode (CPUID 80000001h EDX bit 29) and no-execute (bit 20) or nothing. Every CPU that could boot this has
    // CPUID itself.
    "   movl $0x80000000, %eax",
    "   cpuid",
    "   cmpl $0x80000001, %eax",
    "   jb boot_no_long_mode",
    "   movl $0x80000001, %eax",
    "   cpuid",
    "   btl $29, %edx",
    "   jnc boot_no_long_mode",
    "   btl $20, %edx",
    "   jnc boot_no_nx",
    // (CPUID left edi and esi alone.) The first 4 GiB in 2 MiB pages.
    "   movl $boot_l2_low_phys, %eax",
    "   movl $0x83, %edx",
    "   movl $2048, %ecx",
    "2: movl %edx, (%eax)",
    "   addl $0x200000, %edx",
    "   addl $8, %eax",
    "   decl %ecx",
    "   jnz 2b",
    "   movl $boot_l2_low_phys + 3, boot_l3_low_phys",
    "   movl $boot_l2_low_phys + 0x1003, boot_l3_low_phys + 8",
    "   movl $boot_l2_low_phys + 0x2003, boot_l3_low_phys + 16",
    "   movl $boot_l2_low_phys + 0x3003, boot_l3_low_phys + 24",
    // 8 MiB of image from its load address on.
    "   movl ${phys_base} + 0x83, boot_l2_image_phys",
    "   movl ${phys_base} + 0x200083, boot_l2_image_phys + 8",
    "   movl ${phys_base} + 0x400083, boot_l2_image_phys + 16",
    "   movl ${phys_base} + 0x600083, boot_l2_image_phys + 24",
    "   movl $boot_l2_image_phys + 3, boot_l3_image_phys",
    "   movl $boot_l3_low_phys + 3, boot_l4_phys",
    "   movl $boot_l3_image_phys + 3, boot_l4_phys + 8 * {image_slot}",
    "   movl $boot_l3_low_phys + 3, boot_l4_phys + 8 * {direct_slot}",
    // CR4.PAE alone, CR3, EFER.LME and NXE, then CR0.PG, WP, NE, MP, PE (Intel SDM vol. 3, 9.8.5).
    "   movl $0x20, %eax",
    "   movl %eax, %cr4",
    "   movl $boot_l4_phys, %eax",
    "   movl %eax, %cr3",
    "   movl $0xc0000080, %ecx",
    "   xorl %edx, %edx",
    "   movl $0x900, %eax",
    "   wrmsr",
    "   movl $0x80010033, %eax",
    "   movl %eax, %cr0",
    "   lgdt boot_gdt_pointer",
    "   ljmp $0x800, $3f",
    ".code64",
    "3: movl $0x808, %eax",
    "   movl %eax, %ds",
    "   movl %eax, %es",
    "   movl %eax, %ss",
    "   xorl %eax, %eax",
    "   movl %eax, %fs",
    "   movl %eax, %gs",
    "   lldt %ax",
    "   movabsq $boot_stack_top, %rsp",
    "   xorl %ebp, %ebp",
    "   movl %edi, %edi",
    "   movl %esi, %esi",
    "   movabsq $boot_main, %rax",
    "   call *%rax",
    "   ud2",
    // A CPU that cannot run us: say so on COM1 as it stands, and stop.
    ".code32",
    "boot_no_long_mode:",
    "   movl $boot_text_no_long_mode, %esi",
    "   jmp 4f",
    "boot_no_nx:",
    "   movl $boot_text_no_nx, %esi",
    "4: lodsb",
    "   testb %al, %al",
    "   jz 6f",
    "   movb %al, %ah",
    "   movw $0x3fd, %dx",
    "   movl $100000, %ecx",
    "5: inb %dx, %al",
    "   testb $0x20, %al",
    "   loopz 5b",
    "   movw $0x3f8, %dx",
    "   movb %ah, %al",
    "   outb %al, %dx",
    "   jmp 4b",
    "6: cli",
    "   hlt",
    "   jmp 6b",
    "boot_text_no_long_mode: .asciz \"\\r\\n(px) this CPU has no 64-bit mode: cannot run\\r\\n\"",
    "boot_text_no_nx: .asciz \"\\r\\n(px) this CPU has no no-execute protection: cannot run\\r\\n\"",
    // The GDT of the boot: the hypervisor's two selectors stand where they always will, so the IDT works from the first
    // day.
    ".balign 8",
    "boot_gdt:",
    "   .fill 256, 8, 0",
    "   .quad 0x00af9b000000ffff",
    "   .quad 0x00cf93000000ffff",
    "boot_gdt_pointer:",
    "   .short boot_gdt_pointer - boot_gdt - 1",
    "   .long boot_gdt",
    "   .long 0",
    ".popsection",
    ".code64",
    ".pushsection .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    "boot_l4: .skip 4096",
    "boot_l3_low: .skip 4096",
    "boot_l2_low: .skip 16384",
    "boot_l3_image: .skip 4096",
    "boot_l2_image: .skip 4096",
    ".globl boot_stack_bottom",
    "boot_stack_bottom: .skip {boot_stack}",
    ".globl boot_stack_top",
    "boot_stack_top:",
    ".globl boot_tsc",
    "boot_tsc: .skip 8",
    ".globl boot_l4, boot_l3_low, boot_l2_low, boot_l3_image, boot_l2_image",
    ".popsection",
    pvh_magic = const PVH_MAGIC,
    phys_base = const crate::mm::layout::IMAGE_PHYS,
    image_slot = const crate::mm::layout::IMAGE_SLOT,
    direct_slot = const crate::mm::layout::DIRECT_SLOT,
    boot_stack = const crate::mm::layout::BOOT_STACK_SIZE,
    options(att_syntax)
);
