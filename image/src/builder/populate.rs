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
    let source = Source { layout, image, module, start };
    let mut populating = Populating::begin(memory, contents, &source)?;
    loop {
        if let Some(top) = populating.go_on(memory, &source, Pages(u64::MAX))? {
            return Ok(top);
        }
    }
}

/// What a domain is populated with.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Where everything goes.
    pub layout: &'a Layout,
    /// The image that it was planned for.
    pub image: &'a Image<'a>,
    /// The module, as long as it was planned to be.
    pub module: &'a [u8],
    /// What the domain is told.
    pub start: &'a StartOfDay<'a>,
}

/// A number of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages(pub u64);

/// [`populate`] in pieces: how far it is. Each piece is made from the same source.
#[derive(Clone, Copy, Debug)]
pub struct Populating(Next);

/// What is written next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// This frame is cleared.
    Clear(u64),
    /// A part of the image, from a byte of it on.
    Contents(usize, usize),
    /// The module, from a byte of it on.
    Module(usize),
    /// The frame list, from this frame on.
    List(u64),
    /// The page tables above the lowest.
    Tables,
    /// The entries of the pages, from this address on.
    Entries(u64),
    /// `start_info_t`.
    Start,
}

/// Entries of pages that take as long as a page's contents.
const ENTRIES_A_PAGE: u64 = 32;

impl Populating {
    /// Begins: looks whether the domain can name its frames.
    ///
    /// # Errors
    /// [`BuildError::FrameOutOfReach`].
    ///
    /// # Panics
    /// When the module is longer than planned.
    pub fn begin<M: DomainMemory>(memory: &M, contents: FrameContents, source: &Source<'_>) -> Result<Self, M::Error> {
        let layout = source.layout;
        assert!(source.module.len() as u64 <= layout.module_bytes, "the module has grown since the layout was planned");
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
        Ok(Self(match contents {
            FrameContents::Unknown => Next::Clear(0),
            FrameContents::Zero => Next::Contents(0, 0),
        }))
    }

    /// How many pages of the region have their contents: a measure of how far this is.
    pub fn pages(&self, source: &Source<'_>) -> u64 {
        let layout = source.layout;
        match self.0 {
            Next::Clear(_) => 0,
            Next::Contents(part, from) => {
                source.image.contents().nth(part).map_or(0, |(at, _)| (at.0 + from as u64 - layout.virt_base.0) / PAGE)
            }
            Next::Module(from) => layout.pfn(layout.module).0 + from as u64 / PAGE,
            Next::List(first) => layout.pfn(layout.mfn_list).0 + first * word_bytes(layout.arch) / PAGE,
            Next::Tables | Next::Entries(_) => layout.top_table().0,
            Next::Start => layout.region_pages(),
        }
    }

    /// Goes on with what takes about as long as to write so many pages; the top-level table's frame when all is done.
    ///
    /// # Errors
    /// Those of `memory`.
    pub fn go_on<M: DomainMemory>(
        &mut self,
        memory: &mut M,
        source: &Source<'_>,
        Pages(mut most): Pages,
    ) -> Result<Option<Mfn>, M::Error> {
        let mut region = Region { memory, layout: source.layout };
        while most > 0 {
            let (next, took) = match self.0 {
                Next::Start => return region.start(source).map(Some),
                next => region.piece(next, source, most)?,
            };
            self.0 = next;
            most = most.saturating_sub(took.max(1));
        }
        Ok(None)
    }
}

impl<M: DomainMemory> Region<'_, M> {
    /// Writes what is next, up to so many pages of it: what comes then, and how many it were.
    fn piece(&mut self, next: Next, source: &Source<'_>, most: u64) -> Result<(Next, u64), M::Error> {
        let layout = self.layout;
        let bytes = usize::try_from(most.saturating_mul(PAGE)).unwrap_or(usize::MAX);
        Ok(match next {
            Next::Clear(pfn) if pfn < layout.pages => {
                self.memory.clear(Pfn(pfn))?;
                (Next::Clear(pfn + 1), 1)
            }
            Next::Clear(_) => (Next::Contents(0, 0), 0),
            Next::Contents(part, from) => match source.image.contents().nth(part) {
                Some((at, all)) => match self.copy_piece(at, all, from, bytes)? {
                    (Some(from), took) => (Next::Contents(part, from), took),
                    (None, took) => (Next::Contents(part + 1, 0), took),
                },
                None => (Next::Module(0), 0),
            },
            Next::Module(from) => match self.copy_piece(layout.module, source.module, from, bytes)? {
                (Some(from), took) => (Next::Module(from), took),
                (None, took) => (Next::List(0), took),
            },
            Next::List(first) if first < layout.pages => (Next::List(self.mfn_list(first)?), 1),
            Next::List(_) => (Next::Tables, 0),
            Next::Tables => (Next::Entries(layout.virt_base.0), self.upper_tables()?),
            Next::Entries(from) if from < layout.end.0 => {
                let span = most.saturating_mul(ENTRIES_A_PAGE).saturating_mul(PAGE);
                let end = from.saturating_add(span).min(layout.end.0);
                self.entries(from, end)?;
                (Next::Entries(end), (end - from) / PAGE / ENTRIES_A_PAGE)
            }
            Next::Entries(_) | Next::Start => (Next::Start, 0),
        })
    }

    /// Writes a piece of some bytes: where to go on, and how many pages it was.
    fn copy_piece(
        &mut self,
        at: GuestVirt,
        all: &[u8],
        from: usize,
        most: usize,
    ) -> Result<(Option<usize>, u64), M::Error> {
        let end = from.saturating_add(most).min(all.len());
        self.copy(GuestVirt(at.0 + from as u64), &all[from..end])?;
        Ok(((end < all.len()).then_some(end), ((end - from) as u64).div_ceil(PAGE)))
    }

    /// Writes `start_info_t`, and answers the frame of the top-level page table.
    fn start(&mut self, source: &Source<'_>) -> Result<Mfn, M::Error> {
        let (layout, start) = (self.layout, source.start);
        match layout.arch {
            Arch::X86_32 => self.copy(layout.start_info, start_info::<X86_32>(layout, start).as_bytes())?,
            Arch::X86_64 => self.copy(layout.start_info, start_info::<X86_64>(layout, start).as_bytes())?,
        }
        Ok(self.frame(layout.pt_base.0))
    }

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

    /// Writes a page of the list of the domain's frames, from this one on: the first that is not in it.
    fn mfn_list(&mut self, first: u64) -> Result<u64, M::Error> {
        let word = word_bytes(self.layout.arch);
        let mut page = [0; PAGE as usize];
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
        Ok(first + count)
    }

    /// Writes a word of the guest's width, at a multiple of it.
    fn store_word(&mut self, at: u64, value: u64) -> Result<(), M::Error> {
        let bytes = value.to_le_bytes();
        self.copy(GuestVirt(at), &bytes[..word_bytes(self.layout.arch) as usize])
    }

    /// Links the page tables to one another; how many there are above the lowest.
    fn upper_tables(&mut self) -> Result<u64, M::Error> {
        let (start, end) = (self.layout.virt_base.0, self.layout.end.0);
        let mut level = self.layout.pt_base.0;
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
        Ok((level - self.layout.pt_base.0) / PAGE)
    }

    /// Maps a piece of the region, the page tables in it read-only.
    fn entries(&mut self, from: u64, to: u64) -> Result<(), M::Error> {
        let (start, end) = (self.layout.virt_base.0, self.layout.end.0);
        let tables_at = self.layout.pt_base.0..self.layout.pt_base.0 + self.layout.pt_frames * PAGE;
        let (&span, above) = spans(self.layout.arch).split_last().unwrap_or((&PAGE_SHIFT, &[]));
        let lowest = tables_at.start + above.iter().map(|&span| tables(span, start, end)).sum::<u64>() * PAGE;
        let page_bits = page_bits(self.layout.arch);
        for at in (from..to).step_by(PAGE as usize) {
            let bits = if tables_at.contains(&at) { page_bits & !pte::WRITABLE } else { page_bits };
            self.store_entry(lowest, span, PAGE_SHIFT, at, (self.frame(at).0 << PAGE_SHIFT) | bits)?;
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
