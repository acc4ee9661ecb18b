//! The global descriptor table: the slots 256 to 295, which the guest interface reserves to the hypervisor.
//!
//! Guests hard-code the selectors of their flat segments (arch-x86_32.h, arch-x86_64.h), so the slots are the same
//! everywhere; the slots below 256 are a guest's own. Each CPU has a table of its own in one page, of 296 entries: what
//! fits the interface's smallest limit (0x93f). A guest's GDT replaces it while the guest runs, with the same reserved
//! entries.
//!
//! The hypervisor's own selectors satisfy `syscall`, which loads CS from STAR\[47:32\] and SS from 8 above (Intel SDM
//! vol. 3, 5.8.8).

use core::arch::asm;
use proxenos_abi::Selector;
use proxenos_abi::arch::{FIRST_RESERVED_GDT_ENTRY, NR_RESERVED_GDT_ENTRIES};
use x86_64::VirtAddr;
use x86_64::instructions::tables::{lgdt, load_tss as ltr};
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::tss::TaskStateSegment;

/// 64-bit code of the hypervisor.
pub const HYPERVISOR_CS: Selector = Selector::gdt(256, 0);
/// Data of the hypervisor.
pub const HYPERVISOR_DS: Selector = Selector::gdt(257, 0);
/// The task state segment, two entries.
pub const TSS: Selector = Selector::gdt(264, 0);
/// The guest's local descriptor table, two entries.
pub const LDT: Selector = Selector::gdt(266, 0);
/// The highest valid offset in a table of reserved entries and nothing behind them.
pub const LIMIT: u16 = (FIRST_RESERVED_GDT_ENTRY + NR_RESERVED_GDT_ENTRIES) * 8 - 1;

const _: () = assert!(LIMIT == 0x93f && HYPERVISOR_CS.0 == 0x800 && TSS.0 == 0x840 && LDT.0 == 0x850);

/// What guests of an architecture find in the reserved entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Kernel in ring 1.
    X86_32,
    /// Kernel in ring 3.
    X86_64,
}

/// Type of a code segment, readable, accessed; of a data segment, writable, accessed. The accessed bit is always set:
/// the CPU then never writes to the table, which may thus be mapped read-only.
const CODE: u64 = 0xb;
const DATA: u64 = 0x3;
/// 32-bit default size (D or B), 64-bit code (L).
const SIZE32: u64 = 1 << 54;
const LONG: u64 = 1 << 53;

/// A flat segment: base 0, limit 4 GiB, present.
///
/// An x86_32 guest reaches all of its 4 GiB with it, and nothing else: the hypervisor lies above what 32 bits can name,
/// and the part of the 4 GiB that the interface reserves is guarded by page protection.
const fn flat(kind: u64, dpl: u64, size: u64) -> u64 {
    0xffff | (kind | 0x10) << 40 | dpl << 45 | 1 << 47 | 0xf << 48 | size | 1 << 55
}

/// The reserved entries 256 to 295 as a guest of `flavour` sees them. TSS and LDT are zero: the
/// former is for [`tss_descriptor`] to make, the latter a guest's own.
#[must_use]
pub const fn reserved_gdt(flavour: Flavour) -> [u64; NR_RESERVED_GDT_ENTRIES as usize] {
    let mut entries = [0; NR_RESERVED_GDT_ENTRIES as usize];
    entries[0] = flat(CODE, 0, LONG);
    entries[1] = flat(DATA, 0, SIZE32);
    match flavour {
        Flavour::X86_32 => {
            entries[3] = flat(CODE, 1, SIZE32);
            entries[4] = flat(DATA, 1, SIZE32);
            entries[5] = flat(CODE, 3, SIZE32);
            entries[6] = flat(DATA, 3, SIZE32);
        }
        Flavour::X86_64 => {
            entries[4] = flat(CODE, 3, SIZE32);
            entries[5] = flat(CODE, 3, LONG);
            entries[6] = flat(DATA, 3, SIZE32);
        }
    }
    entries
}

/// A 16-byte system descriptor (Intel SDM vol. 3, figure 7-4), present, DPL 0; `limit` is the highest valid offset.
const fn system_descriptor(kind: u64, base: VirtAddr, limit: u32) -> [u64; 2] {
    let base = base.as_u64();
    let limit = limit as u64;
    let low = (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | kind << 40
        | 1 << 47
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// The descriptor of an available TSS. Loading it sets its busy bit.
#[must_use]
pub const fn tss_descriptor(tss: VirtAddr) -> [u64; 2] {
    system_descriptor(0x9, tss, size_of::<TaskStateSegment>() as u32 - 1)
}

/// A descriptor table in a page of its own.
#[repr(C, align(4096))]
pub struct Table {
    /// The descriptors; those from 296 on lie beyond [`LIMIT`].
    pub entries: [u64; 512],
}

impl Table {
    /// Fills in the table that is used when no guest runs: no guest entries, the reserved ones of x86_64, and the TSS.
    pub fn fill_boot(&mut self, tss: VirtAddr) {
        let first = FIRST_RESERVED_GDT_ENTRY as usize;
        self.entries.fill(0);
        self.entries[first..first + NR_RESERVED_GDT_ENTRIES as usize].copy_from_slice(&reserved_gdt(Flavour::X86_64));
        let at = TSS.index() as usize;
        self.entries[at..at + 2].copy_from_slice(&tss_descriptor(tss));
    }
}

/// Loads a GDT of limit [`LIMIT`] and reloads what the hypervisor needs from it: CS, SS, and null in the others.
///
/// # Safety
/// At `table` lies, for as long as it is loaded, a table whose reserved entries come from [`reserved_gdt`].
pub unsafe fn load(table: VirtAddr) {
    // SAFETY: the caller vouches for the table; its entries 256 and 257 are the hypervisor's flat code and data, so
    // reloading CS and SS continues as before.
    unsafe {
        lgdt(&DescriptorTablePointer { limit: LIMIT, base: table });
        asm!(
            "push {cs}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {ds:x}",
            "mov ds, {zero:x}",
            "mov es, {zero:x}",
            "mov fs, {zero:x}",
            "mov gs, {zero:x}",
            "lldt {zero:x}",
            cs = const HYPERVISOR_CS.0,
            ds = in(reg) u64::from(HYPERVISOR_DS.0),
            zero = in(reg) 0u64,
            scratch = out(reg) _,
        );
    }
}

/// Loads the task register from the GDT that is loaded.
///
/// # Safety
/// The GDT's entry [`TSS`] describes this CPU's TSS and is not busy.
pub unsafe fn load_tss() {
    // SAFETY: as the caller promises.
    unsafe { ltr(SegmentSelector(TSS.0)) }
}
