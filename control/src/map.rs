//! Addresses for what is not the domain's own memory: registers of devices, frames of other domains.
//!
//! They lie in a part of the address space of their own, from [`BASE`] on, page by page. Addresses that are given back are used
//! again; page tables stay.

use alloc::vec::Vec;
use core::ptr::NonNull;
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::{DomId, Errno, GuestVirt, MachineAddr, Mfn, PAGE_SIZE};
use proxenos_guest::hypercall;
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};

/// Far above the domain's own memory, which is mapped from 4 MiB on.
const BASE: u64 = 1 << 42;

/// The next address that was never used, and those that are free again.
static NEXT: spin::Mutex<u64> = spin::Mutex::new(BASE);
static FREE: spin::Mutex<Vec<u64>> = spin::Mutex::new(Vec::new());

/// Addresses of so many pages, with tables for them.
fn reserve(pages: u64) -> Result<GuestVirt, Errno> {
    let mut next = NEXT.lock();
    let first = *next;
    for page in 0..pages {
        tables::ensure_l1(GuestVirt(first + page * PAGE_SIZE as u64))?;
    }
    *next += pages * PAGE_SIZE as u64;
    Ok(GuestVirt(first))
}

/// Maps registers of a device, uncached, for good.
///
/// # Errors
/// When the hypervisor refuses, or there is no memory for page tables.
pub fn device_memory(at: MachineAddr, size: usize) -> Result<NonNull<u8>, Errno> {
    let offset = at.page_offset();
    let pages = (offset + size).div_ceil(PAGE_SIZE) as u64;
    let first = reserve(pages)?;
    for page in 0..pages {
        let entry = Pte::new(Mfn(at.mfn().raw() + page), PteFlags::KERNEL_RW | PteFlags::UNCACHED);
        let to = GuestVirt(first.raw() + page * PAGE_SIZE as u64);
        // SAFETY: nothing is mapped there.
        unsafe { memory::update_va_mapping(to, entry, UpdateVaFlags::INVLPG) }?;
    }
    NonNull::new((first.raw() as usize + offset) as *mut u8).ok_or(Errno::EINVAL)
}

/// One page for frames of other domains, one at a time.
pub struct Window {
    at: u64,
    /// What is mapped, and whether it can be written.
    shown: Option<(DomId, Mfn, PteFlags)>,
}

impl Window {
    /// A window that shows nothing.
    ///
    /// # Errors
    /// When there is no memory for page tables.
    pub fn new() -> Result<Self, Errno> {
        let spare = FREE.lock().pop();
        let at = match spare {
            Some(at) => at,
            None => reserve(1)?.raw(),
        };
        Ok(Self { at, shown: None })
    }

    /// Shows a frame, and where.
    ///
    /// # Errors
    /// When it is not that domain's, or a page table.
    pub fn show(&mut self, domain: DomId, frame: Mfn) -> Result<NonNull<[u8; PAGE_SIZE]>, Errno> {
        self.map(domain, frame, PteFlags::KERNEL_RW)
    }

    /// What is in a frame, if it is that domain's. Its owner had better not run.
    pub fn read(&mut self, domain: DomId, frame: Mfn) -> Option<Vec<u8>> {
        let page = self.map(domain, frame, PteFlags::KERNEL_RO).ok()?;
        let mut bytes = alloc::vec![0; PAGE_SIZE];
        // SAFETY: the page is mapped, and bytes are copied one way.
        unsafe { core::ptr::copy_nonoverlapping(page.cast::<u8>().as_ptr(), bytes.as_mut_ptr(), PAGE_SIZE) };
        Some(bytes)
    }

    fn map(&mut self, domain: DomId, frame: Mfn, flags: PteFlags) -> Result<NonNull<[u8; PAGE_SIZE]>, Errno> {
        if self.shown != Some((domain, frame, flags)) {
            self.shown = None;
            let (at, entry) = (GuestVirt(self.at), Pte::new(frame, flags));
            if domain == DomId::XEN {
                map_of_hypervisor(at, entry)?;
            } else {
                // SAFETY: the page is the window's; pointers into it are good until the next call.
                unsafe { hypercall::update_va_mapping_otherdomain(at, entry, UpdateVaFlags::INVLPG, domain) }?;
            }
            self.shown = Some((domain, frame, flags));
        }
        NonNull::new(self.at as *mut [u8; PAGE_SIZE]).ok_or(Errno::EINVAL)
    }
}

/// Maps a frame that the hypervisor shows, which `update_va_mapping_otherdomain` does not know (it is no domain's).
fn map_of_hypervisor(at: GuestVirt, entry: Pte) -> Result<(), Errno> {
    let (slot, _) = tables::entry_of(at).ok_or(Errno::EINVAL)?;
    // The domain's number lies in bits 16 to 31 of the word, of which `extended` shifts its argument by 8.
    let foreign = memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(DomId::XEN.raw()) << 8);
    let requests = [foreign, memory::request(MmuCommand::NormalPtUpdate, slot, entry.0)];
    // SAFETY: the page is the window's; pointers into it are good until the next call.
    unsafe { hypercall::mmu_update(&requests) }.map_err(|(errno, _)| errno)?;
    memory::flush_page(at)
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: nobody has a pointer into it any more. An entry that maps nothing is never refused.
        let _ = unsafe { memory::update_va_mapping(GuestVirt(self.at), Pte::NONE, UpdateVaFlags::INVLPG) };
        FREE.lock().push(self.at);
    }
}
