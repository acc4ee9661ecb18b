//! The domain builder: where everything lies at a domain's start of day, and putting it there.
//!
//! [`Layout::plan`] is arithmetic; [`populate`], or [`Populating`] piece by piece, writes through [`DomainMemory`] into
//! frames that nobody else uses yet.
//! Promises: the nine points of the comment "Start-of-day memory layout" in `xen.h`, for both architectures, with the
//! region starting where Xen 2.0 starts it (at `VIRT_BASE`, or at the image's lowest page, not rounded down). Nothing
//! is validated or pinned here: the caller hands the page tables to the paging code as it would a guest's. No lock is
//! needed.

mod memory;
mod populate;
mod registers;
#[cfg(test)]
mod tests;

pub use memory::DomainMemory;
pub use populate::{FrameContents, Pages, Populating, Source, StartOfDay, populate};
pub use registers::{InitialState, initial_state};

use crate::kernel::{Image, guest_may_use};
use core::fmt;
use proxenos_abi::{Arch, GuestVirt, Mfn, Pfn};

/// Bytes in a page, for arithmetic on addresses.
const PAGE: u64 = 4096;
/// The region ends on a multiple of this.
const REGION_ALIGN: u64 = 4 << 20;
/// Bytes that are free behind the boot stack, at least.
const PADDING: u64 = 512 << 10;

/// Whether the domain to be built is the initial one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainKind {
    /// Domain 0.
    Initial,
    /// Any other.
    Ordinary,
}

/// What a layout depends on, besides the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Bytes of the module (initial ram disk); 0 for none.
    pub module_bytes: u64,
    /// Frames the domain gets.
    pub pages: u64,
    /// Which domain it is.
    pub kind: DomainKind,
}

/// Where everything is. Each part but the image begins on a page boundary; all addresses are virtual, and the whole is
/// mapped one to one to the first frames of the domain's pseudo-physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The guest's architecture.
    pub arch: Arch,
    /// Which domain it is for.
    pub kind: DomainKind,
    /// Frames the domain gets.
    pub pages: u64,
    /// Where the region begins: pfn 0.
    pub virt_base: GuestVirt,
    /// Where the kernel starts.
    pub entry: GuestVirt,
    /// The module.
    pub module: GuestVirt,
    /// Its bytes; 0 if there is none.
    pub module_bytes: u64,
    /// The list of the domain's frames, a guest word each, by pfn.
    pub mfn_list: GuestVirt,
    /// The page tables: the top-level one, then level by level, each in order of the addresses it maps.
    pub pt_base: GuestVirt,
    /// How many frames they are.
    pub pt_frames: u64,
    /// `start_info_t`.
    pub start_info: GuestVirt,
    /// Top of the boot stack, which is one page.
    pub stack_top: GuestVirt,
    /// The first address behind the region, on a 4 MiB boundary.
    pub end: GuestVirt,
}

/// Why a domain cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// The initial region is larger than the domain's memory.
    TooBig {
        /// Pages the region needs.
        needed: u64,
        /// Pages the domain gets.
        available: u64,
    },
    /// The region would reach out of the guest's part of the address space.
    OutsideGuestSpace {
        /// Where it begins.
        start: GuestVirt,
    },
    /// Domain 0 may not be loaded below 1 GiB (x86_32).
    BelowOneGiB {
        /// Where it would begin.
        start: GuestVirt,
    },
    /// A frame has a number that the guest cannot name.
    FrameOutOfReach {
        /// Which of the domain's frames.
        pfn: Pfn,
        /// Its number.
        mfn: Mfn,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooBig { needed, available } => {
                // Rounded so that the memory named would do.
                let (needed, available) = (needed.div_ceil(256), available / 256);
                write!(f, "image and module need {needed} MiB of memory, the domain gets {available} MiB")
            }
            Self::OutsideGuestSpace { start } => {
                write!(f, "an initial mapping from {:#x} does not fit below the hypervisor's addresses", start.0)
            }
            Self::BelowOneGiB { start } => {
                write!(f, "domain 0 must be loaded at or above 1 GiB, not at {:#x}", start.0)
            }
            Self::FrameOutOfReach { pfn, mfn } => {
                write!(f, "frame {:#x} (pfn {:#x}) is beyond what the guest can name", mfn.0, pfn.0)
            }
        }
    }
}

impl core::error::Error for BuildError {}

impl Layout {
    /// Plans a domain.
    ///
    /// # Errors
    /// All of [`BuildError`] but [`BuildError::FrameOutOfReach`].
    pub fn plan(image: &Image<'_>, request: &Request) -> Result<Self, BuildError> {
        let arch = image.arch();
        let start = image.virt_base();
        if arch == Arch::X86_32 && request.kind == DomainKind::Initial && start.0 < 1 << 30 {
            return Err(BuildError::BelowOneGiB { start });
        }
        let outside = BuildError::OutsideGuestSpace { start };
        let layout = Self::place(image, request, arch).ok_or(outside)?;
        let needed = layout.region_pages();
        if needed > request.pages {
            return Err(BuildError::TooBig { needed, available: request.pages });
        }
        if !guest_may_use(arch, start.0, layout.end.0) {
            return Err(outside);
        }
        Ok(layout)
    }

    /// Places one part behind the other; `None` if addresses run out.
    fn place(image: &Image<'_>, request: &Request, arch: Arch) -> Option<Self> {
        let module = page_up(image.end().0)?;
        let mfn_list = page_up(module.checked_add(request.module_bytes)?)?;
        let pt_base = page_up(mfn_list.checked_add(request.pages.checked_mul(word_bytes(arch))?)?)?;
        // The tables map the region, which the tables are a part of. Each round can only find more to be needed, and
        // one further table adds 2 MiB at least, so this ends soon.
        let mut pt_frames = 0;
        loop {
            let start_info = pt_base.checked_add(pt_frames * PAGE)?;
            let stack_top = start_info.checked_add(2 * PAGE)?;
            let end = stack_top.checked_add(PADDING)?.checked_next_multiple_of(REGION_ALIGN)?;
            let needed = spans(arch).iter().map(|&span| tables(span, image.virt_base().0, end)).sum();
            if needed <= pt_frames {
                return Some(Self {
                    arch,
                    kind: request.kind,
                    pages: request.pages,
                    virt_base: image.virt_base(),
                    entry: image.entry(),
                    module: GuestVirt(module),
                    module_bytes: request.module_bytes,
                    mfn_list: GuestVirt(mfn_list),
                    pt_base: GuestVirt(pt_base),
                    pt_frames,
                    start_info: GuestVirt(start_info),
                    stack_top: GuestVirt(stack_top),
                    end: GuestVirt(end),
                });
            }
            pt_frames = needed;
        }
    }

    /// Pages of the region: the domain's first frames.
    #[must_use]
    pub const fn region_pages(&self) -> u64 {
        (self.end.0 - self.virt_base.0) / PAGE
    }

    /// The pseudo-physical frame behind an address of the region.
    #[must_use]
    pub const fn pfn(&self, at: GuestVirt) -> Pfn {
        Pfn((at.0 - self.virt_base.0) / PAGE)
    }

    /// The pseudo-physical frame of the top-level page table.
    #[must_use]
    pub const fn top_table(&self) -> Pfn {
        self.pfn(self.pt_base)
    }
}

/// log2 of the bytes that one page table maps, level by level, the top first.
const fn spans(arch: Arch) -> &'static [u32] {
    match arch {
        Arch::X86_32 => &[32, 22],
        Arch::X86_64 => &[48, 39, 30, 21],
    }
}

/// Tables of a level that it takes to map `start..end`.
const fn tables(span: u32, start: u64, end: u64) -> u64 {
    ((end - 1) >> span) - (start >> span) + 1
}

/// Bytes of a guest's word.
const fn word_bytes(arch: Arch) -> u64 {
    match arch {
        Arch::X86_32 => 4,
        Arch::X86_64 => 8,
    }
}

/// The page boundary at or above an address.
fn page_up(at: u64) -> Option<u64> {
    at.checked_next_multiple_of(PAGE)
}
