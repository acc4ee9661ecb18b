//! Puts a planned domain into its frames.

use super::{BuildError, DomainMemory, Layout, PAGE, spans, tables, word_bytes};
use crate::kernel::Image;
use proxenos_abi::start_info::{StartInfo, StartInfoFlags};
use proxenos_abi::zerocopy::IntoBytes;
use proxenos_abi::{Arch, GuestArch, GuestVirt, GuestWord, Mfn, PAGE_SHIFT, Padded, Pfn, Port, X86_32, X86_64};

/// What is in a domain's frames before it is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameContents {
    /// Zeroes: they were cleared when they were handed over.
    Zero,
    /// Anything: all of the domain's frames are cleared first.
    Unknown,
}

/// What the domain is told, besides its layout.
#[derive(Clone, Copy, Debug)]
pub struct StartOfDay<'a> {
    /// The frame of its shared_info page.
    pub shared_info: Mfn,
    /// Its rights and roles.
    pub flags: StartInfoFlags,
    /// Its port of the channel to the domain controller, or port 0.
    pub controller: Port,
    /// Its command line; cut to 255 bytes.
    pub command_line: &'a [u8],
}

/// Bits of a page-table entry, as the interface knows them (Intel SDM vol. 3 §4.3 and §4.5).
mod pte {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    /// Every level above the lowest: 0x067.
    pub(super) const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
}

/// Bits of the initial mapping of a page. An x86_32 kernel runs in ring 1 and its applications must not see it; an
/// x86_64 kernel runs in ring 3.
const fn page_bits(arch: Arch) -> u64 {
    match arch {
        Arch::X86_32 => pte::PRESENT | pte::WRITABLE | pte::ACCESSED,
        Arch::X86_64 => pte::PRESENT | pte::WRITABLE | pte::ACCESSED | pte::USER,
    }
}

/// A domain's frames, addressed as the guest will.
struct Region<'a, M> {
    memory: &'a mut M,
    layout: &'a Layout,
}

/// Writes image, module, frame list, page tables and `start_info_t`, and answers the frame of the top-level page table.
/// `image` is the one that `layout` was planned for, `module` as long as it was planned to be.
///
/// # Errors
/// [`BuildError::FrameOutOfReach`], and nothing has been written then; and those of `memory`.
///
/// # Panics
/// When the module is longer than planned.
pub fn populate<M: DomainMemory>(
    memory: &mut M,
    contents: FrameContents,
    layout: &Layout,
    image: &Image<'_>,
    module: &[u8],
    start: &StartOfDay<'_>,
) -> Result<Mfn, M::Error> {
    assert!(module.len() as u64 <= layout.module_bytes, "the module has grown since the layout was planned");
    let reach = match layout.arch {
        Arch::X86_32 => 1 << (32 - PAGE_SHIFT),
        Arch::X86_64 => 1 << (52 - PAGE_SHIFT),
    };
    for pfn in (0..layout.pages).map(Pfn) {
        let mfn = memory.mfn(pfn);
        if mfn.0 >= reach {
            return Err(BuildError::FrameOutOfReach { pfn, mfn }.into());
        }
    }
    if contents == FrameContents::Unknown {
        for pfn in 0..layout.pages {
            memory.clear(Pfn(pfn))?;
        }
    }

    let mut region = Region { memory, layout };
    for (at, bytes) in image.contents() {
        region.copy(at, bytes)?;
    }
    region.copy(layout.module, module)?;
    region.mfn_list()?;
    region.page_tables()?;
    match layout.arch {
        Arch::X86_32 => region.copy(layout.start_info, start_info::<X86_32>(layout, start).as_bytes())?,
        Arch::X86_64 => region.copy(layout.start_info, start_info::<X86_64>(layout, start).as_bytes())?,
    }
    Ok(region.frame(layout.pt_base.0))
}

impl<M: DomainMemory> Region<'_, M> {
    /// The frame behind an address.
    fn frame(&self, at: u64) -> Mfn {
        self.memory.mfn(self.layout.pfn(GuestVirt(at)))
    }

    /// Copies bytes, page by page: the frames may be anywhere.
    fn copy(&mut self, at: GuestVirt, mut bytes: &[u8]) -> Result<(), M::Error> {
        let mut at = at.0;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min((PAGE - at % PAGE) as usize));
            self.memory.write(self.layout.pfn(GuestVirt(at)), (at % PAGE) as usize, now)?;
            at += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Writes the list of the domain's frames, a page of it at a time: it is the longest thing there is to write.
    fn mfn_list(&mut self) -> Result<(), M::Error> {
        let word = word_bytes(self.layout.arch);
        let mut page = [0; PAGE as usize];
        for first in (0..self.layout.pages).step_by((PAGE / word) as usize) {
            let count = (self.layout.pages - first).min(PAGE / word);
            let frames = (first..first + count).map(|pfn| self.memory.mfn(Pfn(pfn)).0);
            match self.layout.arch {
                Arch::X86_32 => {
                    let words = page.as_chunks_mut().0.iter_mut();
                    words.zip(frames).for_each(|(word, mfn)| *word = (mfn as u32).to_le_bytes());
                }
                Arch::X86_64 => {
                    let words = page.as_chunks_mut().0.iter_mut();
                    words.zip(frames).for_each(|(word, mfn)| *word = mfn.to_le_bytes());
                }
            }
            self.copy(GuestVirt(self.layout.mfn_list.0 + first * word), &page[..(count * word) as usize])?;
        }
        Ok(())
    }

    /// Writes a word of the guest's width, at a multiple of it.
    fn store_word(&mut self, at: u64, value: u64) -> Result<(), M::Error> {
        let bytes = value.to_le_bytes();
        self.copy(GuestVirt(at), &bytes[..word_bytes(self.layout.arch) as usize])
    }

    /// Maps the region, the tables themselves read-only.
    fn page_tables(&mut self) -> Result<(), M::Error> {
        let (start, end) = (self.layout.virt_base.0, self.layout.end.0);
        let pt_base = self.layout.pt_base.0;
        let pt_end = pt_base + self.layout.pt_frames * PAGE;
        let mut level = pt_base;
        for below in spans(self.layout.arch).windows(2) {
            let (span, child_span) = (below[0], below[1]);
            let children = level + tables(span, start, end) * PAGE;
            for child in 0..tables(child_span, start, end) {
                let at = ((start >> child_span) + child) << child_span;
                let bits = (self.frame(children + child * PAGE).0 << PAGE_SHIFT) | pte::TABLE;
                self.store_entry(level, span, child_span, at, bits)?;
            }
            level = children;
        }
        let span = spans(self.layout.arch).last().copied().unwrap_or(PAGE_SHIFT);
        let page_bits = page_bits(self.layout.arch);
        for at in (start..end).step_by(PAGE as usize) {
            let bits = if (pt_base..pt_end).contains(&at) { page_bits & !pte::WRITABLE } else { page_bits };
            self.store_entry(level, span, PAGE_SHIFT, at, (self.frame(at).0 << PAGE_SHIFT) | bits)?;
        }
        Ok(())
    }

    /// Writes the entry for `at` in the table of a level that maps it. The level's tables begin at `tables` and map
    /// 2^`span` bytes each, their entries 2^`entry_span`.
    fn store_entry(&mut self, tables: u64, span: u32, entry_span: u32, at: u64, entry: u64) -> Result<(), M::Error> {
        let table = tables + ((at >> span) - (self.layout.virt_base.0 >> span)) * PAGE;
        let index = (at & ((1 << span) - 1)) >> entry_span;
        self.store_word(table + index * word_bytes(self.layout.arch), entry)
    }
}

/// What the domain finds at `layout.start_info`.
fn start_info<A: GuestArch>(layout: &Layout, start: &StartOfDay<'_>) -> StartInfo<A> {
    // Every value is an address or a count within the guest's own space, which `Layout::plan` and `populate` checked.
    let word = |value: u64| Padded::new(A::Word::from_u64_truncating(value));
    let module = if layout.module_bytes == 0 { 0 } else { layout.module.0 };
    let mut info = StartInfo {
        nr_pages: word(layout.pages),
        shared_info: word(start.shared_info.0 << PAGE_SHIFT),
        flags: start.flags.bits(),
        domain_controller_evtchn: start.controller.0 as u16,
        pt_base: word(layout.pt_base.0),
        nr_pt_frames: word(layout.pt_frames),
        mfn_list: word(layout.mfn_list.0),
        mod_start: word(module),
        mod_len: word(layout.module_bytes),
        ..StartInfo::default()
    };
    info.set_command_line(start.command_line);
    info
}
