//! The symbol table that BSD kernels ask for, in the form they look for it behind their image.
//!
//! In memory, from the image's end rounded up to a word: a 32-bit count of the bytes that follow; a copy of the ELF
//! header, without program headers and with the section headers right behind it; the section headers, nameless, each
//! symbol table's and its strings' offset counted from the ELF header; then those sections' contents, each rounded up to
//! a word. String tables that no symbol table uses have offset 0.

use super::{Elf, ImageError, Symbols, bytes_at, guest_may_use};
use alloc::vec::Vec;
use elf::abi::{SHT_STRTAB, SHT_SYMTAB};
use proxenos_abi::Arch;

/// Where the fields lie in the headers of a class, and how wide its words are (ELF specification, figures 1-3 and 1-9).
struct Class {
    word: usize,
    file_header: usize,
    section_header: usize,
    e_phoff: usize,
    e_shoff: usize,
    /// `e_phentsize`, which `e_phnum` follows.
    e_phentsize: usize,
    e_shstrndx: usize,
    sh_offset: usize,
}

const CLASS32: Class = Class {
    word: 4,
    file_header: 52,
    section_header: 40,
    e_phoff: 28,
    e_shoff: 32,
    e_phentsize: 42,
    e_shstrndx: 50,
    sh_offset: 16,
};

const CLASS64: Class = Class {
    word: 8,
    file_header: 64,
    section_header: 64,
    e_phoff: 32,
    e_shoff: 40,
    e_phentsize: 54,
    e_shstrndx: 62,
    sh_offset: 24,
};

/// Bytes of the count in front.
const COUNT: usize = 4;

/// Builds the table for an image that ends at `end`; nothing if the image has no symbols.
pub(super) fn table(elf: &Elf<'_>, file: &[u8], arch: Arch, end: u64) -> Result<Option<Symbols>, ImageError> {
    let class = match arch {
        Arch::X86_32 => &CLASS32,
        Arch::X86_64 => &CLASS64,
    };
    let Some(sections) = elf.section_headers() else { return Ok(None) };
    // Section numbers of the strings that symbol tables use, for a search that stays fast however many there are.
    let mut strings: Vec<u32> = Vec::new();
    for section in sections.iter().filter(|section| section.sh_type == SHT_SYMTAB) {
        strings.try_reserve(1).map_err(|_| ImageError::OutOfMemory)?;
        strings.push(section.sh_link);
    }
    if strings.is_empty() {
        return Ok(None);
    }
    strings.sort_unstable();

    let headers = bytes_at(file, elf.ehdr.e_shoff, (sections.len() * class.section_header) as u64)
        .ok_or(ImageError::Truncated("section headers"))?;
    let mut bytes = Vec::new();
    append(&mut bytes, &[0; COUNT])?;
    append(&mut bytes, &file[..class.file_header])?;
    append(&mut bytes, headers)?;
    // Sections of one file do not overlap, so what is copied is never larger than the file. A file where they do could
    // ask for any amount.
    let most = bytes.len() + file.len() + 2 * class.word * sections.len();

    for (number, section) in sections.iter().enumerate() {
        let header = COUNT + class.file_header + number * class.section_header;
        let used_strings = section.sh_type == SHT_STRTAB && strings.binary_search(&(number as u32)).is_ok();
        let mut offset = section.sh_offset;
        if section.sh_type == SHT_SYMTAB || used_strings {
            let contents = bytes_at(file, section.sh_offset, section.sh_size)
                .ok_or(ImageError::SymbolTable("its section is not all in the file"))?;
            pad(&mut bytes, class.word)?;
            if bytes.len() + contents.len() > most {
                return Err(ImageError::SymbolTable("its sections overlap"));
            }
            offset = (bytes.len() - COUNT) as u64;
            append(&mut bytes, contents)?;
        } else if section.sh_type == SHT_STRTAB {
            offset = 0;
        }
        put(&mut bytes, header, 4, 0);
        put(&mut bytes, header + class.sh_offset, class.word, offset);
    }
    pad(&mut bytes, class.word)?;

    let count = (bytes.len() - COUNT) as u64;
    put(&mut bytes, 0, COUNT, count);
    for (field, width, value) in [
        (class.e_phoff, class.word, 0),
        (class.e_shoff, class.word, class.file_header as u64),
        (class.e_phentsize, 4, 0),
        (class.e_shstrndx, 2, 0),
    ] {
        put(&mut bytes, COUNT + field, width, value);
    }

    let at = end.checked_next_multiple_of(class.word as u64);
    at.filter(|at| at.checked_add(bytes.len() as u64).is_some_and(|last| guest_may_use(arch, *at, last)))
        .map(|at| Some(Symbols { at, bytes }))
        .ok_or(ImageError::SymbolTable("there are no addresses left for it"))
}

fn append(bytes: &mut Vec<u8>, more: &[u8]) -> Result<(), ImageError> {
    bytes.try_reserve(more.len()).map_err(|_| ImageError::OutOfMemory)?;
    bytes.extend_from_slice(more);
    Ok(())
}

/// Fills up to a word boundary of memory. The table starts on one.
fn pad(bytes: &mut Vec<u8>, word: usize) -> Result<(), ImageError> {
    append(bytes, &[0; 8][..bytes.len().next_multiple_of(word) - bytes.len()])
}

/// Writes the low `width` bytes of a value.
fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}
