//! The machine as `core` sees it: its traits, over the direct map and a few instructions.
//!
//! [`Hw`] has no size and no state of its own. Memory is reached through the direct map by single atomic accesses; the
//! caller names only frames that the frame table knows, all of which are RAM and mapped.

use super::memory;
use crate::cpu::percpu::Cpu;
use crate::cpu::tlb;
use crate::ex_table;
use crate::mm::layout::{self, PAGE_SIZE};
use crate::mm::paging::{self, Flags};
use crate::{console, pci, time};
use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use proxenos_abi::Selector;
use proxenos_abi::hypercall::SegmentBase;
use proxenos_core::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use proxenos_core::debugreg::DebugRegisters;
use proxenos_core::machine::{
    BadPointer, Clock, Console, CpuTables, DescriptorPage, GuestMemory, MachineMemory, NotLoaded, Preemption,
    TableRegister, Tlb,
};
use proxenos_core::pci::{PciAddress, PciConfig, Width};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{FsBase, GsBase, KernelGsBase};

/// The machine.
#[derive(Clone, Copy)]
pub struct Hw;

/// A byte of RAM, as an atomic of the width asked for.
fn cell<T>(at: MachineAddr) -> &'static T {
    debug_assert!(at.0.is_multiple_of(align_of::<T>() as u64) && at.0 < layout::DIRECT_MAP_SIZE);
    let pointer = (layout::DIRECT_MAP + at.0) as *const T;
    // SAFETY: T is one of the three atomics below, valid for any bytes; the caller's frame is RAM, which the direct map
    // covers for good, and whatever else changes it (guests, other CPUs) does so by single accesses too.
    unsafe { &*pointer }
}

fn cell8(at: MachineAddr) -> &'static AtomicU8 {
    cell(at)
}

fn cell32(at: MachineAddr) -> &'static AtomicU32 {
    cell(at)
}

fn cell64(at: MachineAddr) -> &'static AtomicU64 {
    cell(at)
}

impl MachineMemory for Hw {
    #[inline]
    fn load8(&self, at: MachineAddr) -> u8 {
        cell8(at).load(Ordering::Acquire)
    }

    #[inline]
    fn store8(&self, at: MachineAddr, value: u8) {
        cell8(at).store(value, Ordering::Release);
    }

    #[inline]
    fn load32(&self, at: MachineAddr) -> u32 {
        cell32(at).load(Ordering::Acquire)
    }

    #[inline]
    fn store32(&self, at: MachineAddr, value: u32) {
        cell32(at).store(value, Ordering::Release);
    }

    #[inline]
    fn load64(&self, at: MachineAddr) -> u64 {
        cell64(at).load(Ordering::Acquire)
    }

    #[inline]
    fn store64(&self, at: MachineAddr, value: u64) {
        cell64(at).store(value, Ordering::Release);
    }

    #[inline]
    fn cas32(&self, at: MachineAddr, old: u32, new: u32) -> Result<(), u32> {
        cell32(at).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    #[inline]
    fn cas64(&self, at: MachineAddr, old: u64, new: u64) -> Result<(), u64> {
        cell64(at).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    #[inline]
    fn swap32(&self, at: MachineAddr, new: u32) -> u32 {
        cell32(at).swap(new, Ordering::AcqRel)
    }

    #[inline]
    fn swap64(&self, at: MachineAddr, new: u64) -> u64 {
        cell64(at).swap(new, Ordering::AcqRel)
    }

    #[inline]
    fn or32(&self, at: MachineAddr, bits: u32) -> u32 {
        cell32(at).fetch_or(bits, Ordering::AcqRel)
    }

    #[inline]
    fn and32(&self, at: MachineAddr, bits: u32) -> u32 {
        cell32(at).fetch_and(bits, Ordering::AcqRel)
    }

    fn clear_frame(&self, frame: Mfn) {
        let at: *mut u8 = layout::direct_frame(frame).as_mut_ptr();
        // Words, where `write_bytes` would store bytes: fast on every CPU, and an eighth of the instructions where each
        // repetition counts as one.
        // SAFETY: a frame of RAM that the caller owns; the direct map covers it, and the direction flag is clear.
        unsafe {
            asm!(
                "rep stosq",
                inout("rcx") PAGE_SIZE / 8 => _, inout("rdi") at => _, in("rax") 0u64,
                options(nostack, preserves_flags)
            );
        }
    }

    fn copy_frame(&self, from: Mfn, to: Mfn) {
        let source: *const u64 = layout::direct_frame(from).as_ptr();
        let target: *mut u64 = layout::direct_frame(to).as_mut_ptr();
        // SAFETY: two frames of RAM, both in the direct map; the caller owns the second and nobody else writes to it.
        // What changes the first meanwhile is seen or not, word by word.
        unsafe { core::ptr::copy_nonoverlapping(source, target, PAGE_SIZE as usize / 8) }
    }

    #[inline]
    fn is_same_line(&self, one: MachineAddr, other: MachineAddr) -> bool {
        let (one, other) = (layout::DIRECT_MAP + one.0, layout::DIRECT_MAP + other.0);
        let mut differ = 1_u64;
        // SAFETY: reads two cache lines of RAM, which the direct map covers, by single accesses. By hand, because a
        // compiler does not compare what it loads as an atomic with memory, and this is most of what closing a page
        // table costs.
        unsafe {
            asm!(
                "mov {word}, [{one}]", "cmp {word}, [{other}]", "jne 2f",
                "mov {word}, [{one} + 8]", "cmp {word}, [{other} + 8]", "jne 2f",
                "mov {word}, [{one} + 16]", "cmp {word}, [{other} + 16]", "jne 2f",
                "mov {word}, [{one} + 24]", "cmp {word}, [{other} + 24]", "jne 2f",
                "mov {word}, [{one} + 32]", "cmp {word}, [{other} + 32]", "jne 2f",
                "mov {word}, [{one} + 40]", "cmp {word}, [{other} + 40]", "jne 2f",
                "mov {word}, [{one} + 48]", "cmp {word}, [{other} + 48]", "jne 2f",
                "mov {word}, [{one} + 56]", "sub {word}, [{other} + 56]", "mov {differ}, {word}",
                "2:",
                one = in(reg) one, other = in(reg) other, word = out(reg) _, differ = inout(reg) differ,
                options(readonly, nostack)
            );
        }
        differ == 0
    }

    #[inline]
    fn bits_of_line(&self, at: MachineAddr) -> u64 {
        let line = layout::DIRECT_MAP + at.0;
        let bits;
        // SAFETY: reads a cache line of RAM, which the direct map covers, by single accesses. By hand, because a
        // compiler does not let what it loads as an atomic be an operand of anything else; this is what an empty page
        // table costs.
        unsafe {
            asm!(
                "mov {bits}, [{line}]", "or {bits}, [{line} + 8]", "or {bits}, [{line} + 16]", "or {bits}, [{line} + 24]",
                "or {bits}, [{line} + 32]", "or {bits}, [{line} + 40]", "or {bits}, [{line} + 48]", "or {bits}, [{line} + 56]",
                line = in(reg) line, bits = out(reg) bits,
                options(readonly, nostack)
            );
        }
        bits
    }

    fn read(&self, at: MachineAddr, into: &mut [u8]) {
        let from: *const u8 = layout::direct(at).as_ptr();
        // SAFETY: RAM, contiguous in the direct map; `into` is ours, and lies nowhere a caller's frame does. What a
        // guest writes meanwhile is torn at worst: bytes are bytes.
        unsafe { core::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    fn write(&self, at: MachineAddr, from: &[u8]) {
        let to: *mut u8 = layout::direct(at).as_mut_ptr();
        // SAFETY: as in `read`, the other way.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }
}

impl GuestMemory for Hw {
    #[inline]
    fn copy_from_guest(&self, from: GuestVirt, into: &mut [u8]) -> Result<(), BadPointer> {
        memory::copy_from_guest(from, into)
    }

    #[inline]
    fn copy_to_guest(&self, to: GuestVirt, from: &[u8]) -> Result<(), BadPointer> {
        memory::copy_to_guest(to, from)
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, from: GuestVirt) -> Result<[u64; N], BadPointer> {
        memory::read_words(from)
    }

    #[inline(always)]
    fn read_words_or_ones<const N: usize>(&self, from: GuestVirt) -> [u64; N] {
        memory::read_words_or_ones(from)
    }

    #[inline(always)]
    fn write_aligned_u32(&self, to: GuestVirt, value: u32) -> Result<(), BadPointer> {
        memory::write_aligned_u32(to, value)
    }

    #[inline(always)]
    fn write_aligned_u64(&self, to: GuestVirt, value: u64) -> Result<(), BadPointer> {
        memory::write_aligned_u64(to, value)
    }
}

impl Tlb for Hw {
    fn flush_all(&self) {
        tlb::flush_all();
    }

    fn flush_page(&self, at: GuestVirt) {
        // SAFETY: drops a translation, if there is one.
        unsafe { asm!("invlpg [{}]", in(reg) at.0, options(nostack, preserves_flags)) }
    }

    fn flush_caches(&self) {
        // SAFETY: writes caches back; memory stays what it is.
        unsafe { asm!("wbinvd", options(nostack, preserves_flags)) }
    }

    fn flush_frame(&self, frame: Mfn) {
        /// No CPU of 64 bits has shorter lines (CPUID leaf 1 says what `clflush` drops).
        const LINE: u64 = 64;
        let start = layout::direct_frame(frame).as_u64();
        for at in (start..start + PAGE_SIZE).step_by(LINE as usize) {
            // SAFETY: writes a line of RAM back, which the direct map covers; memory stays what it is.
            unsafe { asm!("clflush [{}]", in(reg) at, options(nostack, preserves_flags)) }
        }
        // `clflush` is ordered with other accesses by a fence only (Intel SDM vol. 2, CLFLUSH).
        // SAFETY: a fence.
        unsafe { asm!("mfence", options(nostack, preserves_flags)) }
    }

    fn stamp(&self) -> u32 {
        tlb::CLOCK.stamp()
    }

    #[inline]
    fn stamp_behind_exchange(&self) -> u32 {
        tlb::CLOCK.stamp_behind_exchange()
    }

    fn flush_if_older(&self, stamp: u32) {
        tlb::flush_if_older(stamp);
    }
}

/// Distance between two domains' descriptor tables: sixteen pages each of GDT and LDT.
const DOMAIN_TABLES_STRIDE: u64 = 32 * PAGE_SIZE;
/// Where a domain's LDT begins, behind its GDT.
const LDT_OFFSET: u64 = 16 * PAGE_SIZE;

/// Where a domain's GDT lies.
fn gdt_base(domain: DomId) -> VirtAddr {
    VirtAddr::new_truncate(layout::DOMAIN_TABLES + u64::from(domain.0) * DOMAIN_TABLES_STRIDE)
}

/// Loads the root of a mode; see [`proxenos_core::user_mode::switch`].
#[inline(always)]
pub(super) fn load_root_of_mode(cpu: &Cpu, l4: Mfn) {
    // SAFETY: as in `load_root`.
    unsafe { tlb::load_root_without_a_tick(cpu, l4) }
}

/// Loads what the domain that is to run here walks, on this CPU (`cpu`).
#[inline(always)]
pub(super) fn load_root_of_next(cpu: &Cpu, l4: Mfn) {
    // SAFETY: as in `load_root`.
    unsafe { tlb::load_root_of(cpu, l4) }
}

impl CpuTables for Hw {
    fn load_root(&self, l4: Mfn) {
        // SAFETY: `core` passes a validated L4 table, or one of its own making, whose upper slots are the hypervisor's.
        unsafe { tlb::load_root(l4) }
    }

    fn set_segment_base(&self, which: SegmentBase, base: u64) {
        let base = VirtAddr::new_truncate(base);
        match which {
            SegmentBase::Fs => FsBase::write(base),
            // The kernel runs: its own is the one in use.
            SegmentBase::GsKernel => GsBase::write(base),
            SegmentBase::GsUser | SegmentBase::GsUserSelector => KernelGsBase::write(base),
        }
    }

    fn load_user_gs(&self, selector: Selector) -> Result<(), NotLoaded> {
        let mut failed: u32;
        // SAFETY: gs and both its bases are the guest's, and the hypervisor uses none. A selector that cannot be loaded
        // goes on behind the load.
        unsafe {
            asm!(
                "swapgs",
                "mov {failed:e}, 1",
                "2: mov gs, {selector:x}",
                "xor {failed:e}, {failed:e}",
                "4: swapgs",
                ex_table!("2b", "4b"),
                selector = in(reg) u64::from(selector.0),
                failed = out(reg) failed,
                options(nostack)
            );
        }
        if failed == 0 { Ok(()) } else { Err(NotLoaded) }
    }

    fn map_descriptors(&self, domain: DomId, page: DescriptorPage, frame: Option<Mfn>) {
        let offset = match page {
            DescriptorPage::Gdt(page) => u64::from(page) * PAGE_SIZE,
            DescriptorPage::Ldt(page) => LDT_OFFSET + u64::from(page) * PAGE_SIZE,
        };
        let at = gdt_base(domain) + offset;
        let range = at..at + PAGE_SIZE;
        if paging::translate(at).is_some() {
            paging::unmap(range.clone());
        }
        if let Some(frame) = frame {
            // Read-only: every descriptor has its accessed bit set when it is stored, so the CPU has nothing to write.
            paging::map(range, frame.addr(), Flags::RODATA);
        }
    }

    fn gdt_address(&self, domain: DomId) -> u64 {
        gdt_base(domain).as_u64()
    }

    #[inline]
    fn load_gdt(&self, _: DomId, _: u16, register: &TableRegister) {
        // SAFETY: `core` made it of the address above. The domain's table holds the reserved entries in its first page,
        // the hypervisor's own segments among them, so what is loaded in CS, SS and TR means the same as before.
        unsafe { asm!("lgdt [{}]", in(reg) register, options(readonly, nostack, preserves_flags)) }
    }

    fn load_ldt(&self, entries: u16) {
        let selector: u16 = if entries == 0 { 0 } else { crate::cpu::gdt::LDT.0 };
        // SAFETY: null, or the descriptor that `core` wrote into the reserved entries of the GDT that is loaded.
        unsafe { asm!("lldt {:x}", in(reg) selector, options(nostack, preserves_flags)) }
        Cpu::current().local.ldt_entries.set(entries);
    }

    fn ldt_address(&self, domain: DomId) -> u64 {
        (gdt_base(domain) + LDT_OFFSET).as_u64()
    }

    fn trap_fpu(&self) {
        super::fpu::trap_next_use();
    }

    fn load_breakpoints(&self, registers: &DebugRegisters) {
        crate::cpu::debugreg::load_breakpoints(registers);
        Cpu::current().local.breakpoints.set(registers.control());
    }
}

impl PciConfig for Hw {
    fn pci_read(&self, at: PciAddress, register: u8, width: Width) -> u32 {
        pci::read(at, register, width)
    }

    fn pci_write(&self, at: PciAddress, register: u8, width: Width, value: u32) {
        pci::write(at, register, width, value);
    }
}

impl Console for Hw {
    fn console_write(&self, bytes: &[u8]) {
        console::write(bytes);
    }

    fn console_log(&self, domain: DomId, bytes: &[u8]) {
        console::domains::write(domain, bytes);
    }

    fn console_read(&self, into: &mut [u8]) -> usize {
        // Where no interrupt tells of it, this is when it is looked for.
        super::console_interrupted();
        let mut got = 0;
        while got < into.len() {
            let Some(byte) = console::try_read() else { break };
            into[got] = byte;
            got += 1;
        }
        got
    }
}

impl Preemption for Hw {
    #[inline]
    fn preemption_wanted(&self) -> bool {
        time::deadline_has_passed()
    }
}

impl Clock for Hw {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }
}
