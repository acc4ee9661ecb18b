//! The hypervisor's own names: its build id, and the functions' names for backtraces.
//!
//! The table of names is reserved here and filled in after linking by `cargo xtask`, which defines its format
//! (xtask/src/symbols.rs). A table that was not filled, or holds nonsense, gives no names and does no other harm.

use crate::mm::layout::{self, IMAGE};
use core::fmt;
use x86_64::VirtAddr;

/// Bytes reserved for the table.
const CAPACITY: usize = 96 << 10;
/// Bytes of its header.
const HEADER: usize = 24;
/// Bytes of an entry.
const ENTRY: usize = 8;

#[repr(C, align(8))]
struct Blob([u8; CAPACITY]);

/// The empty table: magic and capacity.
#[used]
#[unsafe(link_section = ".symtab_blob")]
static BLOB: Blob = Blob({
    let mut bytes = [0; CAPACITY];
    let magic = *b"PXSYMS\0\0";
    let capacity = (CAPACITY as u32).to_le_bytes();
    let mut at = 0;
    while at < 8 {
        bytes[at] = magic[at];
        at += 1;
    }
    while at < 12 {
        bytes[at] = capacity[at - 8];
        at += 1;
    }
    bytes
});

/// The table's bytes as they are in memory, which are not those the compiler saw.
fn blob() -> &'static [u8; CAPACITY] {
    let hidden = core::hint::black_box(&raw const BLOB.0);
    // SAFETY: it points to the static, whose contents never change while we run.
    unsafe { &*hidden }
}

fn word(at: usize) -> Option<usize> {
    let bytes = blob().get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
}

/// An address of ours, for people: `name+0x12`, or the offset in the image where there are no names.
#[derive(Clone, Copy)]
pub struct Symbolised(pub VirtAddr);

impl fmt::Display for Symbolised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !layout::text().contains(&self.0) {
            return write!(f, "(not our code)");
        }
        let offset = (self.0.as_u64() - IMAGE) as usize;
        match find(offset) {
            Some((name, within)) => write!(f, "{name}+{within:#x}"),
            None => write!(f, "image+{offset:#x}"),
        }
    }
}

/// The name of the function at an offset in the image, and the offset in the function.
fn find(offset: usize) -> Option<(&'static str, usize)> {
    let count = word(16)?;
    let entry = |index: usize| Some((word(HEADER + index * ENTRY)?, word(HEADER + index * ENTRY + 4)?));
    // The last entry that does not lie behind the offset.
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if entry(middle)?.0 <= offset { low = middle + 1 } else { high = middle }
    }
    let (start, name) = entry(low.checked_sub(1)?)?;
    let name = blob().get(word(20)?.checked_add(name)?..)?;
    let name = core::str::from_utf8(&name[..name.iter().position(|&byte| byte == 0)?]).ok()?;
    (name != "<end>").then_some((name, offset - start))
}

/// The SHA-1 that the linker made of the image, in hexadecimal.
pub struct BuildId(&'static [u8]);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "unknown");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The image's build id.
#[must_use]
pub fn build_id() -> BuildId {
    unsafe extern "C" {
        static __build_id_start: u8;
        static __build_id_end: u8;
    }
    let start = &raw const __build_id_start;
    let length = (&raw const __build_id_end).addr() - start.addr();
    // SAFETY: the linker script puts the note, and nothing else, between the two symbols.
    let note = unsafe { core::slice::from_raw_parts(start, length) };
    // An ELF note: lengths of name and description, type, "GNU\0", description.
    BuildId(note.get(16..).unwrap_or(&[]))
}
