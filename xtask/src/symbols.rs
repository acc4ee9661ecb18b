//! The hypervisor's symbol table: what lets it name functions in a backtrace without reading its own ELF file.
//!
//! The hypervisor reserves a loaded, read-only section `.symtab_blob` of fixed size. Its first 12 bytes are the
//! magic and the capacity; the rest is zero until this module fills it in the linked file. A blob that was never
//! filled has `count == 0`, and the reader must cope with that.
//!
//! # Format
//!
//! All numbers are little-endian `u32`, aligned to 4 bytes; the section itself is aligned to at least 4.
//!
//! | offset        | field         | meaning                                                                      |
//! |---------------|---------------|------------------------------------------------------------------------------|
//! | 0             | `magic`       | the 8 bytes `PXSYMS\0\0`                                                     |
//! | 8             | `capacity`    | bytes of the whole section, header included (written by the hypervisor)      |
//! | 12            | `used`        | bytes in use, header included; `used <= capacity`                            |
//! | 16            | `count`       | number of entries                                                            |
//! | 20            | `pool_offset` | offset of the string pool from the section's start, `24 + 8 * count`         |
//! | 24            | entries       | `count` times (`function`, `name`), ascending by `function`, no two equal    |
//! | `pool_offset` | pool          | NUL-terminated UTF-8 names, up to `used`                                     |
//!
//! `function` is the function's first byte as an offset from the *image base*; `name` is the name's offset in the
//! pool. The image base is the value of the ELF symbol `__image_base` (the linker script defines it), or, where
//! there is no such symbol, the lowest `p_vaddr` of a `PT_LOAD` segment in the upper half of the address space.
//! Functions below the base or 4 GiB and more above it (32-bit boot code) have no entry. One entry, named
//! `<end>`, stands at the end of the last function, so an address past all code is not taken for its tail.
//!
//! Names are demangled and carry no hash. To find an address, subtract the image base and take the last entry
//! whose `function` is not above the result.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::elf::Executable;

const SECTION: &str = ".symtab_blob";
const MAGIC: &[u8; 8] = b"PXSYMS\0\0";
const HEADER_SIZE: usize = 24;
const ENTRY_SIZE: usize = 8;
/// Name of the entry after the last function.
const END: &str = "<end>";
/// A name is never cut below this, unless not even that fits.
const SHORTEST: usize = 24;

/// What became of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many functions, all with their full names.
    All(usize),
    /// Not all names fitted: so many had their tails cut.
    Shortened {
        /// Functions in the table.
        functions: usize,
        /// Names that were cut.
        names: usize,
    },
    /// The file has no section for it.
    NoSection,
}

/// Fills the table of a linked hypervisor, in place.
///
/// # Errors
/// Where the file cannot be parsed, its section has no proper header, or is too small for the entries alone.
pub fn fill(image: &mut [u8]) -> Result<Filled> {
    let executable = Executable::parse(image)?;
    let Some(range) = executable.section(SECTION) else { return Ok(Filled::NoSection) };
    let base = image_base(&executable).context("no segment in the upper half to count offsets from")?;
    let functions = collect(base, executable.functions());
    let section = image.get_mut(range).context("the symbol section ends beyond the file")?;
    ensure!(section.len() >= HEADER_SIZE && &section[..8] == MAGIC, "{SECTION} does not begin with its magic");
    let capacity = u32::from_le_bytes(section[8..12].try_into()?) as usize;
    ensure!(capacity <= section.len(), "{SECTION} says it is bigger than it is");
    let (blob, filled) = encode(&functions, capacity)?;
    section[..capacity].fill(0);
    section[..blob.len()].copy_from_slice(&blob);
    Ok(filled)
}

fn image_base(executable: &Executable) -> Option<u64> {
    executable
        .symbol("__image_base")
        .or_else(|| executable.segments().iter().map(|s| s.virt).filter(|v| *v >= 1 << 63).min())
}

/// Functions by offset, with demangled names. Of several names at one address the shortest is kept.
fn collect(base: u64, functions: Vec<(u64, u64, String)>) -> BTreeMap<u32, String> {
    let mut table: BTreeMap<u32, String> = BTreeMap::new();
    let mut end = 0;
    for (address, size, name) in functions {
        let Some(offset) = address.checked_sub(base).and_then(|o| u32::try_from(o).ok()) else { continue };
        // The alternate form leaves out the hash.
        let name = format!("{:#}", rustc_demangle::demangle(&name)).replace('\0', "");
        end = end.max(offset.saturating_add(u32::try_from(size).unwrap_or(u32::MAX)));
        match table.get(&offset) {
            Some(other) if (other.len(), other) <= (name.len(), &name) => {}
            _ => drop(table.insert(offset, name)),
        }
    }
    if !table.is_empty() {
        table.entry(end).or_insert_with(|| END.to_owned());
    }
    table
}

/// The blob for a section of `capacity` bytes.
fn encode(functions: &BTreeMap<u32, String>, capacity: usize) -> Result<(Vec<u8>, Filled)> {
    let pool_offset = HEADER_SIZE + ENTRY_SIZE * functions.len();
    let room = capacity.checked_sub(pool_offset).filter(|room| *room >= functions.len());
    let room = room.with_context(|| {
        format!("{SECTION} has {capacity} bytes; {} functions need at least {}", functions.len(), pool_offset)
    })?;
    let limit = name_limit(functions.values().map(String::len), room);
    let mut cut = 0;
    let mut entries = Vec::new();
    let mut pool = Vec::new();
    for (offset, name) in functions {
        entries.extend(offset.to_le_bytes());
        entries.extend(u32::try_from(pool.len())?.to_le_bytes());
        let kept = &name[..name.floor_char_boundary_at(limit)];
        cut += usize::from(kept.len() < name.len());
        pool.extend_from_slice(kept.as_bytes());
        pool.push(0);
    }
    let mut blob = MAGIC.to_vec();
    for value in [capacity, pool_offset + pool.len(), functions.len(), pool_offset] {
        blob.extend(u32::try_from(value)?.to_le_bytes());
    }
    blob.extend(entries);
    blob.extend(pool);
    let filled = match cut {
        0 => Filled::All(functions.len()),
        names => Filled::Shortened { functions: functions.len(), names },
    };
    Ok((blob, filled))
}

/// The greatest length that names may have so that all of them fit, each with its NUL.
fn name_limit(lengths: impl Iterator<Item = usize> + Clone, room: usize) -> usize {
    let fits = |limit: usize| lengths.clone().map(|l| l.min(limit) + 1).sum::<usize>() <= room;
    let longest = lengths.clone().max().unwrap_or(0);
    if fits(longest) {
        return longest;
    }
    let start = if fits(SHORTEST) { SHORTEST } else { 0 };
    (start..longest).rev().find(|limit| fits(*limit)).unwrap_or(0)
}

/// `str::floor_char_boundary`, which is newer than the oldest rustc this builds with.
trait FloorCharBoundary {
    /// The last boundary at or before `index`, or the end.
    fn floor_char_boundary_at(&self, index: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_at(&self, index: usize) -> usize {
        if index >= self.len() {
            return self.len();
        }
        (0..=index).rev().find(|i| self.is_char_boundary(*i)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(blob: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(blob[at..at + 4].try_into().expect("four bytes"))
    }

    /// A reader as the format's description has it.
    fn lookup(blob: &[u8], offset: u32) -> Option<String> {
        let count = word(blob, 16) as usize;
        let index = (0..count).rev().find(|i| word(blob, HEADER_SIZE + 8 * i) <= offset)?;
        let start = (word(blob, 20) + word(blob, HEADER_SIZE + 8 * index + 4)) as usize;
        let length = blob[start..].iter().position(|b| *b == 0)?;
        Some(String::from_utf8(blob[start..start + length].to_vec()).expect("UTF-8"))
    }

    fn sample() -> BTreeMap<u32, String> {
        collect(
            0x1000,
            vec![
                (0x1020, 0x10, "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE".to_owned()),
                (0x1000, 0x20, "start".to_owned()),
                (0x1000, 0x20, "a_longer_alias".to_owned()),
                (0x0800, 4, "boot32".to_owned()),
                (0x2_0000_0000, 4, "far".to_owned()),
            ],
        )
    }

    #[test]
    fn functions_are_found_by_address() {
        let (blob, filled) = encode(&sample(), 4096).expect("room");
        assert_eq!(filled, Filled::All(3));
        assert_eq!(&blob[..8], MAGIC);
        assert_eq!(word(&blob, 8), 4096);
        assert_eq!(word(&blob, 12) as usize, blob.len());
        assert_eq!(lookup(&blob, 0).as_deref(), Some("start"));
        assert_eq!(lookup(&blob, 0x1f).as_deref(), Some("start"));
        assert_eq!(lookup(&blob, 0x20).as_deref(), Some("core::fmt::Write::write_fmt"));
        assert_eq!(lookup(&blob, 0x2f).as_deref(), Some("core::fmt::Write::write_fmt"));
        assert_eq!(lookup(&blob, 0x30).as_deref(), Some(END));
    }

    #[test]
    fn long_names_lose_their_tails_when_room_is_short() {
        let full = encode(&sample(), 4096).expect("room").0.len();
        let (blob, filled) = encode(&sample(), full - 5).expect("room for shorter names");
        assert_eq!(filled, Filled::Shortened { functions: 3, names: 1 });
        assert!(blob.len() <= full - 5);
        assert_eq!(lookup(&blob, 0x20).as_deref(), Some("core::fmt::Write::writ"));
        assert_eq!(lookup(&blob, 0).as_deref(), Some("start"));
    }

    #[test]
    fn no_room_for_the_entries_is_an_error() {
        assert!(encode(&sample(), HEADER_SIZE + 3 * ENTRY_SIZE).is_err());
        assert!(encode(&sample(), 10).is_err());
    }

    #[test]
    fn cutting_respects_characters() {
        assert_eq!("aé".floor_char_boundary_at(2), 1);
        assert_eq!("aé".floor_char_boundary_at(3), 3);
    }

    #[test]
    fn a_file_without_the_section_is_left_alone() {
        let mut image = crate::multiboot::tests::sample_elf64(b"code", 0, 0x10_0000);
        let before = image.clone();
        assert_eq!(fill(&mut image).expect("an executable"), Filled::NoSection);
        assert_eq!(image, before);
    }
}
