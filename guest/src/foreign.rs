//! Memory of other domains, for who controls them: a page of one's own address space at which their frames are shown.

use crate::hypercall;
use crate::memory::{self, Frame};
use crate::pte::{Pte, PteFlags};
use proxenos_abi::mmu::UpdateVaFlags;
use proxenos_abi::{DomId, Errno, Mfn, PAGE_SIZE};

/// A page at which frames of other domains can be mapped, one at a time.
///
/// Their contents are others', and may change at any time: they are read and written in words that nothing is assumed
/// of. Before a frame is [shown](Self::show), the page is one of this domain's own.
#[derive(Clone, Copy, Debug)]
pub struct Window(Frame);

impl Window {
    /// One that shows a frame of this domain's own; `None`: there is no frame left. It is never given back.
    #[must_use]
    pub fn new() -> Option<Self> {
        memory::alloc_frame().map(Self)
    }

    /// Maps a frame of another domain's, writable.
    ///
    /// # Errors
    /// Those of `update_va_mapping_otherdomain`: EPERM without the privilege, ESRCH, EINVAL for what cannot be mapped.
    pub fn show(self, domain: DomId, frame: Mfn) -> Result<(), Errno> {
        let entry = Pte::new(frame, PteFlags::KERNEL_RW);
        // SAFETY: no reference is ever made to the page.
        unsafe { hypercall::update_va_mapping_otherdomain(self.0.virt(), entry, UpdateVaFlags::INVLPG, domain) }
    }

    /// Lets go of what it shows: nothing is there until it shows something else.
    pub fn close(self) {
        // SAFETY: no reference is ever made to the page.
        let closed = unsafe { hypercall::update_va_mapping(self.0.virt(), Pte::NONE, UpdateVaFlags::INVLPG) };
        assert!(closed.is_ok(), "a page of ours can be unmapped");
    }

    /// Writes bytes into what it shows, one by one.
    pub fn write(self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE, "within a page");
        let at = self.address(offset) as *mut u8;
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: the page is nothing of ours; one that shows nothing is a fault, told as such.
            unsafe { at.add(index).write_volatile(*byte) }
        }
    }

    /// A word of what it shows.
    #[must_use]
    pub fn word(self, offset: usize) -> u32 {
        assert!(offset + size_of::<u32>() <= PAGE_SIZE && offset.is_multiple_of(size_of::<u32>()), "within a page");
        // SAFETY: as in `write`.
        unsafe { (self.address(offset) as *const u32).read_volatile() }
    }

    /// Two words, the lower one first.
    #[must_use]
    pub fn number(self, offset: usize) -> u64 {
        u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32
    }

    fn address(self, offset: usize) -> usize {
        self.0.virt().raw() as usize + offset
    }
}
