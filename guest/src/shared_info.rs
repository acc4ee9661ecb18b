//! The page shared with the hypervisor, mapped at a fixed address in the image.
//!
//! Both sides write to it at any time, so nobody holds a reference to its fields but to atomics. The 64-bit fields are
//! read as the two-version protocol of [`crate::time`] allows: not atomically.

use crate::arch::Word;
use crate::memory;
use crate::pte::{Pte, PteFlags};
use crate::racy::Racy;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use proxenos_abi::mmu::UpdateVaFlags;
use proxenos_abi::shared_info::SharedInfo;
use proxenos_abi::{Errno, GuestVirt, GuestWord, MachineAddr, PAGE_SIZE, Port};

#[repr(C, align(4096))]
pub(crate) struct Page([u8; PAGE_SIZE]);

/// Where the shared page is mapped. Until then a page of zeroes, which reads as: nothing pending, nothing masked.
pub(crate) static PAGE: Racy<Page> = Racy::new(Page([0; PAGE_SIZE]));

static MAPPED: AtomicBool = AtomicBool::new(false);

/// Maps the shared page over a page of the image. A second call changes nothing.
pub fn map() -> Result<(), Errno> {
    if MAPPED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let shared = MachineAddr(Word::to_u64(crate::boot::start_info().shared_info.get()));
    let pte = Pte::new(shared.mfn(), PteFlags::KERNEL_RW);
    // SAFETY: the page is reserved for this, and nobody holds a reference into it.
    unsafe { memory::update_va_mapping(address(), pte, UpdateVaFlags::INVLPG)? };
    MAPPED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether [`map`] has been called.
pub fn is_mapped() -> bool {
    MAPPED.load(Ordering::Relaxed)
}

/// Virtual address of the shared page.
pub fn address() -> GuestVirt {
    GuestVirt(PAGE.get() as usize as u64)
}

/// A field at a byte offset.
///
/// # Safety
/// `T` is an atomic that fits the page at `offset`, aligned.
unsafe fn field<T>(offset: usize) -> &'static T {
    // SAFETY: `PAGE` is a static page; the caller vouches for offset and type.
    unsafe { &*PAGE.get().cast::<u8>().add(offset).cast::<T>() }
}

/// A 32-bit field, by an offset constant of [`SharedInfo`].
///
/// # Panics
/// If the offset is not aligned to 4 or outside the page.
pub fn word(offset: usize) -> &'static AtomicU32 {
    assert!(offset.is_multiple_of(4) && offset < PAGE_SIZE);
    // SAFETY: aligned, inside the page, and any bytes are an `AtomicU32`.
    unsafe { field(offset) }
}

/// A byte, by its offset.
///
/// # Panics
/// If the offset is outside the page.
pub fn byte(offset: usize) -> &'static AtomicU8 {
    assert!(offset < PAGE_SIZE);
    // SAFETY: inside the page, and any byte is an `AtomicU8`.
    unsafe { field(offset) }
}

/// A 64-bit field, read in two halves: whoever reads it makes sure that it does not change meanwhile.
pub fn double_word(offset: usize) -> u64 {
    u64::from(word(offset).load(Ordering::Relaxed)) | u64::from(word(offset + 4).load(Ordering::Relaxed)) << 32
}

/// `evtchn_upcall_pending`: not zero while an upcall is due.
pub fn upcall_pending() -> &'static AtomicU8 {
    byte(SharedInfo::EVTCHN_UPCALL_PENDING)
}

/// `evtchn_upcall_mask`: not zero while upcalls are held off.
pub fn upcall_mask() -> &'static AtomicU8 {
    byte(SharedInfo::EVTCHN_UPCALL_MASK)
}

/// `evtchn_pending_sel`: a bit for each word of `evtchn_pending`.
pub fn pending_selector() -> &'static AtomicU32 {
    word(SharedInfo::EVTCHN_PENDING_SEL)
}

/// One of the 32 words of `evtchn_pending`.
pub fn pending_word(index: usize) -> &'static AtomicU32 {
    assert!(index < 32);
    word(SharedInfo::EVTCHN_PENDING + 4 * index)
}

/// One of the 32 words of `evtchn_mask`.
pub fn mask_word(index: usize) -> &'static AtomicU32 {
    assert!(index < 32);
    word(SharedInfo::EVTCHN_MASK + 4 * index)
}

/// Where a port's bit is: index of the word, and mask within it.
pub fn bit_of(port: Port) -> (usize, u32) {
    ((port.raw() / 32) as usize, 1 << (port.raw() % 32))
}

/// Whether an event is pending on a port.
pub fn is_pending(port: Port) -> bool {
    let (index, bit) = bit_of(port);
    pending_word(index).load(Ordering::Relaxed) & bit != 0
}

/// Whether a port is masked.
pub fn is_masked(port: Port) -> bool {
    let (index, bit) = bit_of(port);
    mask_word(index).load(Ordering::Relaxed) & bit != 0
}

/// `cpu_freq`: cycles of the time-stamp counter per second.
pub fn cpu_frequency() -> u64 {
    double_word(SharedInfo::CPU_FREQ)
}
