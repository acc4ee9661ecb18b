//! A guest kernel's ELF image: what the domain builder needs of it, checked.
//!
//! Promises: any bytes at all give an [`Image`] or an [`ImageError`] that names the fault, never a panic. An `Image`'s
//! segments lie inside the file, inside the guest's part of the address space and apart from each other; its entry point
//! lies in one of them; its region starts on a page boundary at or below the lowest. Nothing here needs a lock.
//!
//! The format is that of Xen 2.0's loader: a section named `__xen_guest` (it need not be loaded) holds comma-separated
//! `KEY=VALUE`; segments go where `p_vaddr` says. That loader skipped segments that are neither writable nor
//! executable; here every `PT_LOAD` counts, because today's linkers put constants into one of their own.

mod error;
mod notes;
#[cfg(any(test, feature = "recipe"))]
pub mod recipe;
mod symbols;
#[cfg(test)]
mod tests;

pub use error::ImageError;
pub use notes::PageTableMode;

use alloc::vec::Vec;
use core::ops::Range;
use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, ET_EXEC, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::Class;
use notes::GuestNotes;
use proxenos_abi::{Arch, GuestArch, GuestVirt, PAGE_SHIFT, X86_32, X86_64};

/// Sections and strings as the `elf` crate reads them.
type Elf<'a> = ElfBytes<'a, LittleEndian>;

/// A checked guest image, still in its file.
#[derive(Debug)]
pub struct Image<'a> {
    file: &'a [u8],
    arch: Arch,
    entry: GuestVirt,
    virt_base: GuestVirt,
    end: GuestVirt,
    page_tables: PageTableMode,
    segments: Vec<Segment>,
    symbols: Option<Symbols>,
}

/// A part of the image that is loaded: `size` bytes at `at`, the first of them from the file, the rest zero.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Segment {
    at: u64,
    size: u64,
    file: Range<usize>,
}

/// The symbol table that BSD kernels ask for (`BSD_SYMTAB`), as it will lie in memory behind the image.
#[derive(Debug)]
struct Symbols {
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Image<'a> {
    /// Checks an image.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let (elf, arch) = header(file)?;
        let segments = segments(&elf, arch, file.len() as u64)?;
        let lowest = segments.first().map_or(0, |segment| segment.at);
        let mut end = segments.last().map_or(0, |segment| segment.at + segment.size);

        let entry = elf.ehdr.e_entry;
        if !segments.iter().any(|segment| (segment.at..segment.at + segment.size).contains(&entry)) {
            return Err(ImageError::EntryOutside { entry });
        }

        let notes = GuestNotes::parse(guest_section(&elf, file)?)?;
        let virt_base = notes.virt_base.unwrap_or(lowest);
        if virt_base % (1 << PAGE_SHIFT) != 0 {
            return Err(ImageError::BaseNotAligned { base: virt_base });
        }
        if virt_base > lowest {
            return Err(ImageError::BaseAboveImage { base: virt_base, lowest });
        }
        if !guest_may_use(arch, virt_base, end) {
            return Err(ImageError::OutsideGuestSpace { start: virt_base, end });
        }

        let symbols = if notes.wants_symbols { symbols::table(&elf, file, arch, end)? } else { None };
        if let Some(symbols) = &symbols {
            end = symbols.at + symbols.bytes.len() as u64;
        }
        Ok(Self {
            file,
            arch,
            entry: GuestVirt(entry),
            virt_base: GuestVirt(virt_base),
            end: GuestVirt(end),
            page_tables: notes.page_tables,
            segments,
            symbols,
        })
    }

    /// The architecture it is built for.
    #[must_use]
    pub const fn arch(&self) -> Arch {
        self.arch
    }

    /// Where it starts.
    #[must_use]
    pub const fn entry(&self) -> GuestVirt {
        self.entry
    }

    /// Where its initial mapping begins: `VIRT_BASE`, else its lowest segment. On a page boundary.
    #[must_use]
    pub const fn virt_base(&self) -> GuestVirt {
        self.virt_base
    }

    /// The first byte behind it (and behind its symbol table, if it asks for one).
    #[must_use]
    pub const fn end(&self) -> GuestVirt {
        self.end
    }

    /// How it wants to change page tables.
    #[must_use]
    pub const fn page_tables(&self) -> PageTableMode {
        self.page_tables
    }

    /// What to write where. All other bytes from [`virt_base`](Self::virt_base) to [`end`](Self::end) are zero.
    pub fn contents(&self) -> impl Iterator<Item = (GuestVirt, &[u8])> {
        let segments = self.segments.iter().map(|segment| (GuestVirt(segment.at), &self.file[segment.file.clone()]));
        segments.chain(self.symbols.iter().map(|symbols| (GuestVirt(symbols.at), symbols.bytes.as_slice())))
    }
}

/// Whether `start..end` is in the part of the address space that is a guest's: canonical, and not the hypervisor's.
pub(crate) fn guest_may_use(arch: Arch, start: u64, end: u64) -> bool {
    /// First non-canonical address.
    const LOW_HALF_END: u64 = 1 << 47;
    match arch {
        Arch::X86_32 => start <= end && end <= X86_32::HYPERVISOR_VIRT_START,
        Arch::X86_64 => start <= end && (end <= LOW_HALF_END || start >= X86_64::HYPERVISOR_VIRT_END),
    }
}

/// Checks the file header, and that both tables are where it says.
fn header(file: &[u8]) -> Result<(Elf<'_>, Arch), ImageError> {
    /// Offset of the byte that says which end comes first, and its value for the little end.
    const BYTE_ORDER: (usize, u8) = (5, 1);
    if file.get(..4) != Some(b"\x7fELF") {
        return Err(ImageError::NotElf);
    }
    match file.get(BYTE_ORDER.0) {
        Some(&order) if order == BYTE_ORDER.1 => {}
        Some(_) => return Err(ImageError::ByteOrder),
        None => return Err(ImageError::Truncated("ELF header")),
    }
    let elf = Elf::minimal_parse(file).map_err(|error| ImageError::from_parser(error, "ELF header"))?;
    let arch = match (elf.ehdr.class, elf.ehdr.e_machine) {
        (Class::ELF32, EM_386) => Arch::X86_32,
        (Class::ELF64, EM_X86_64) => Arch::X86_64,
        (class, machine) => {
            let bits = if class == Class::ELF32 { 32 } else { 64 };
            return Err(ImageError::WrongMachine { bits, machine });
        }
    };
    if elf.ehdr.e_type != ET_EXEC {
        return Err(ImageError::NotExecutable { kind: elf.ehdr.e_type });
    }
    Ok((elf, arch))
}

/// The segments to load, by address; at least one.
fn segments(elf: &Elf<'_>, arch: Arch, file_len: u64) -> Result<Vec<Segment>, ImageError> {
    let mut segments = Vec::new();
    for header in elf.segments().into_iter().flat_map(|table| table.iter()) {
        if header.p_type != PT_LOAD || header.p_memsz == 0 {
            continue;
        }
        let at = header.p_vaddr;
        if header.p_filesz > header.p_memsz {
            return Err(ImageError::FileLargerThanMemory { at });
        }
        let file = match header.p_offset.checked_add(header.p_filesz) {
            Some(end) if end <= file_len => header.p_offset as usize..end as usize,
            _ => return Err(ImageError::SegmentBeyondFile { at }),
        };
        let end = at.checked_add(header.p_memsz).ok_or(ImageError::OutsideGuestSpace { start: at, end: u64::MAX })?;
        if !guest_may_use(arch, at, end) {
            return Err(ImageError::OutsideGuestSpace { start: at, end });
        }
        segments.try_reserve(1).map_err(|_| ImageError::OutOfMemory)?;
        segments.push(Segment { at, size: header.p_memsz, file });
    }
    segments.sort_unstable_by_key(|segment| segment.at);
    if segments.is_empty() {
        return Err(ImageError::NothingToLoad);
    }
    for pair in segments.windows(2) {
        if pair[0].at + pair[0].size > pair[1].at {
            return Err(ImageError::Overlap { first: pair[0].at, second: pair[1].at });
        }
    }
    Ok(segments)
}

/// The bytes of the section named `__xen_guest`.
fn guest_section<'a>(elf: &Elf<'a>, file: &'a [u8]) -> Result<&'a [u8], ImageError> {
    let sections = elf.section_headers().ok_or(ImageError::NoGuestSection)?;
    let names = sections
        .get(usize::from(elf.ehdr.e_shstrndx))
        .ok()
        .filter(|_| elf.ehdr.e_shstrndx != 0)
        .ok_or(ImageError::NoSectionNames)?;
    let names = bytes_at(file, names.sh_offset, names.sh_size).ok_or(ImageError::Truncated("section names"))?;
    // Compared where they lie: a file can name thousands of sections by one long string.
    let section = sections
        .iter()
        .find(|section| names.get(section.sh_name as usize..).is_some_and(|name| name.starts_with(b"__xen_guest\0")))
        .ok_or(ImageError::NoGuestSection)?;
    bytes_at(file, section.sh_offset, section.sh_size).ok_or(ImageError::Truncated("__xen_guest section"))
}

/// A part of the file, if it is all there.
fn bytes_at(file: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    file.get(start..start.checked_add(usize::try_from(size).ok()?)?)
}
