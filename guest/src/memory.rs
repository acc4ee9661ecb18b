//! The guest's memory: its numbering, its page tables, its free frames.
//!
//! A frame has three names: its machine number (`Mfn`), its number in the guest's own contiguous view (`Pfn`), and the
//! virtual address at which the SDK maps it, which is the pseudo-physical address plus the base of the image. The
//! builder maps the first frames like that, [`frames`] goes on in the same way.

pub mod frames;
pub mod range;
pub mod tables;

use crate::arch::{Arch, Word};
use crate::hypercall;
use crate::probe;
use crate::pte::Pte;
use proxenos_abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate, UpdateVaFlags};
use proxenos_abi::{Errno, GuestArch, GuestVirt, GuestWord, MachineAddr, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};

pub use frames::{Frame, alloc_frame};
pub use hypercall::update_va_mapping;
pub use range::Range;
pub use tables::{entry_of, pte_of};

unsafe extern "C" {
    static __guest_virt_base: u8;
    static __guest_image_end: u8;
}

/// The initial region ends on a multiple of this.
pub const REGION_ALIGN: u64 = 4 << 20;
/// Least padding behind the boot stack.
pub const MIN_PADDING: u64 = 512 << 10;

/// First address of the image: where pseudo-physical frame 0 is mapped.
pub fn virt_base() -> GuestVirt {
    GuestVirt(&raw const __guest_virt_base as usize as u64)
}

/// The first page boundary behind the image.
pub fn image_end() -> GuestVirt {
    GuestVirt(&raw const __guest_image_end as usize as u64)
}

/// Where the builder's boot stack ends: the end of what it made.
pub fn boot_stack_end() -> GuestVirt {
    let registers = crate::boot::registers();
    #[cfg(target_arch = "x86")]
    return GuestVirt(registers.esp.into());
    #[cfg(target_arch = "x86_64")]
    return GuestVirt(registers.rsp);
}

/// End of the region that the builder mapped (header, layout of the initial domain, points 2 and 9).
pub fn region_end() -> GuestVirt {
    GuestVirt((boot_stack_end().raw() + MIN_PADDING).next_multiple_of(REGION_ALIGN))
}

/// Where a frame is mapped, if it is mapped yet.
pub fn virt_of(pfn: Pfn) -> GuestVirt {
    GuestVirt(virt_base().raw().wrapping_add(pfn.raw() << PAGE_SHIFT))
}

/// The frame mapped at an address by the SDK's numbering.
pub fn pfn_of(at: GuestVirt) -> Pfn {
    Pfn(at.raw().wrapping_sub(virt_base().raw()) >> PAGE_SHIFT)
}

/// The machine frame behind one of our frames, by the list the builder left.
///
/// # Panics
/// If the domain has no such frame.
pub fn mfn_of(pfn: Pfn) -> Mfn {
    assert!(pfn.raw() < crate::boot::frames(), "{pfn:?} is not ours");
    let list = crate::boot::start_info().mfn_list.get() as usize as *const Word;
    // SAFETY: the list has an entry for every frame of the domain and is mapped from the start.
    Mfn(unsafe { list.add(pfn.raw() as usize).read_volatile() }.to_u64())
}

/// Enters a frame into the list, or that there is none.
pub(crate) fn set_mfn_of(pfn: Pfn, frame: Option<Mfn>) {
    assert!(pfn.raw() < crate::boot::frames(), "{pfn:?} is not in the list");
    let list = crate::boot::start_info().mfn_list.get() as usize as *mut Word;
    let word = frame.map_or(Word::MAX, hypercall::frame_word);
    // SAFETY: as in `mfn_of`; the builder mapped the list writable, and it is read through raw pointers only.
    unsafe { list.add(pfn.raw() as usize).write_volatile(word) };
}

/// Machine address of an address in the SDK's mapping of our frames.
pub fn machine_of(at: GuestVirt) -> MachineAddr {
    MachineAddr(mfn_of(pfn_of(at)).addr().raw() + at.page_offset() as u64)
}

/// What the hypervisor's machine-to-physical table says of a frame, whoever has it; `None` if the table does not reach
/// so far. The trap table must be installed.
pub fn machine_to_phys(mfn: Mfn) -> Option<Word> {
    let at = Arch::MACHINE_TO_PHYS.checked_add(mfn.raw().checked_mul(size_of::<Word>() as u64)?)?;
    if at >= Arch::HYPERVISOR_VIRT_END {
        return None;
    }
    probe::load(GuestVirt(at))
}

/// The number of a machine frame in our own view, if it is ours.
pub fn pfn_of_mfn(mfn: Mfn) -> Option<Pfn> {
    let pfn = Pfn(machine_to_phys(mfn)?.to_u64());
    (pfn.raw() < crate::boot::frames() && mfn_of(pfn) == mfn).then_some(pfn)
}

/// One request of [`hypercall::mmu_update`].
///
/// # Panics
/// If the address is wider than the guest's word.
#[inline]
pub fn request(command: MmuCommand, at: MachineAddr, value: Word) -> MmuUpdate<Arch> {
    MmuUpdate::from_parts(command, at.raw(), value).expect("an address of this architecture")
}

/// One extended request of [`hypercall::mmu_update`].
///
/// # Panics
/// If an argument is wider than the guest's word.
#[inline]
pub fn extended(command: MmuExtCommand, ptr: u64, argument: u64) -> MmuUpdate<Arch> {
    MmuUpdate::extended(command, ptr, argument).expect("arguments of this architecture")
}

/// Carries out one request.
///
/// # Safety
/// See [`hypercall::mmu_update`].
#[inline]
pub unsafe fn update(request: MmuUpdate<Arch>) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { hypercall::mmu_update(&[request]) }.map(drop).map_err(|(errno, _)| errno)
}

/// Writes a page-table entry at its machine address.
///
/// # Safety
/// See [`hypercall::mmu_update`].
#[inline]
pub unsafe fn write_entry(at: MachineAddr, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { update(request(MmuCommand::NormalPtUpdate, at, entry.0)) }
}

/// Makes a frame a page table of a level (1 to 4) for good. Nothing may map it writable.
pub fn pin(level: u32, frame: Mfn) -> Result<(), Errno> {
    let command = match level {
        1 => MmuExtCommand::PinL1Table,
        2 => MmuExtCommand::PinL2Table,
        3 => MmuExtCommand::PinL3Table,
        _ => MmuExtCommand::PinL4Table,
    };
    // SAFETY: no mapping changes.
    unsafe { update(extended(command, frame.addr().raw(), 0)) }
}

/// Undoes [`pin`].
pub fn unpin(frame: Mfn) -> Result<(), Errno> {
    // SAFETY: no mapping changes.
    unsafe { update(extended(MmuExtCommand::UnpinTable, frame.addr().raw(), 0)) }
}

/// Switches to another top-level page table.
///
/// # Safety
/// It maps what this one maps, as far as anybody cares.
#[inline]
pub unsafe fn set_base(frame: Mfn) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { update(extended(MmuExtCommand::NewBaseptr, frame.addr().raw(), 0)) }?;
    tables::set_root(frame);
    Ok(())
}

/// Flushes all translations.
#[inline]
pub fn flush_tlb() -> Result<(), Errno> {
    // SAFETY: no mapping changes.
    unsafe { update(extended(MmuExtCommand::TlbFlush, 0, 0)) }
}

/// Flushes the translations of one page.
#[inline]
pub fn flush_page(at: GuestVirt) -> Result<(), Errno> {
    // SAFETY: no mapping changes. The low bits of the address are the command's.
    unsafe { update(extended(MmuExtCommand::Invlpg, at.raw(), 0)) }
}

/// Installs a local descriptor table of so many entries at an address.
///
/// # Safety
/// No selector in use refers to the old one.
pub unsafe fn set_ldt(at: GuestVirt, entries: u32) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { update(extended(MmuExtCommand::SetLdt, at.raw(), entries.into())) }
}

/// Changes the flags of the mapping of one of our frames at its usual address, with its old translation flushed.
///
/// # Safety
/// No reference the compiler knows of becomes invalid by the change.
#[inline]
pub unsafe fn remap(frame: Frame, flags: crate::pte::PteFlags) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { update_va_mapping(frame.virt(), Pte::new(frame.mfn(), flags), UpdateVaFlags::INVLPG) }
}

/// The page of an address.
pub fn page_base(at: GuestVirt) -> GuestVirt {
    GuestVirt(at.raw() & !(PAGE_SIZE as u64 - 1))
}
