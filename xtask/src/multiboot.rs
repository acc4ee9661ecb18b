//! The Multiboot 1 image: the hypervisor's ELF64 file, made into an ELF32 file that QEMU and GRUB load by it.
//!
//! Multiboot 1 knows ELF32 only, and QEMU's `-kernel` hands over several modules by no other protocol. The
//! segments are the same bytes at the same physical addresses; a loader never looks at the virtual ones.
//! (Multiboot specification 0.6.96, section 3.1; QEMU looks for the header in the first 8 KiB.)

use anyhow::{Context, Result, ensure};

use crate::elf::Executable;

const MAGIC: u32 = 0x1bad_b002;
/// Modules on page boundaries, and the memory map, are wanted.
const FLAGS: u32 = 0b11;
const HEADER_SIZE: usize = 52;
const PROGRAM_HEADER_SIZE: usize = 32;
/// Of a segment in the file. Pages, as is usual, cost nothing here.
const ALIGN: usize = 4096;

/// Makes the image.
///
/// # Errors
/// Where the input is no fixed-address ELF64 file, or a segment lies above 4 GiB of physical memory.
pub fn convert(elf64: &[u8]) -> Result<Vec<u8>> {
    let executable = Executable::parse(elf64)?;
    let segments = executable.segments();
    ensure!(!segments.is_empty(), "nothing to load");
    let low = |value: u64| u32::try_from(value).with_context(|| format!("{value:#x} is beyond 32 bits"));

    let mut image = Vec::new();
    let half = |image: &mut Vec<u8>, value: u16| image.extend(value.to_le_bytes());
    let word = |image: &mut Vec<u8>, value: u32| image.extend(value.to_le_bytes());
    image.extend(*b"\x7fELF\x01\x01\x01");
    image.resize(16, 0);
    half(&mut image, 2); // ET_EXEC
    half(&mut image, 3); // EM_386
    word(&mut image, 1);
    word(&mut image, low(executable.physical_entry())?);
    word(&mut image, HEADER_SIZE as u32);
    word(&mut image, 0); // no sections
    word(&mut image, 0);
    half(&mut image, HEADER_SIZE as u16);
    half(&mut image, PROGRAM_HEADER_SIZE as u16);
    half(&mut image, u16::try_from(segments.len())?);
    image.resize(HEADER_SIZE, 0);

    let headers_end = HEADER_SIZE + PROGRAM_HEADER_SIZE * segments.len() + 12;
    let mut offset = headers_end.next_multiple_of(ALIGN);
    let mut placed = Vec::new();
    for segment in &segments {
        low(segment.phys + segment.mem_size)?;
        word(&mut image, 1); // PT_LOAD
        word(&mut image, u32::try_from(offset)?);
        word(&mut image, low(segment.phys)?);
        word(&mut image, low(segment.phys)?);
        word(&mut image, low(segment.file_size)?);
        word(&mut image, low(segment.mem_size)?);
        word(&mut image, segment.flags);
        word(&mut image, ALIGN as u32);
        placed.push(offset);
        offset = (offset + segment.file_size as usize).next_multiple_of(ALIGN);
    }
    word(&mut image, MAGIC);
    word(&mut image, FLAGS);
    word(&mut image, 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS));

    for (segment, offset) in segments.iter().zip(placed) {
        image.resize(offset, 0);
        let start = usize::try_from(segment.offset)?;
        let bytes = elf64.get(start..start + segment.file_size as usize).context("a segment ends beyond the file")?;
        image.extend_from_slice(bytes);
    }
    Ok(image)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An ELF64 executable with one segment: vaddr 0xffff_8280_0010_0000, loaded at 1 MiB.
    pub fn sample_elf64(payload: &[u8], entry_offset: u64, phys: u64) -> Vec<u8> {
        let mut elf = Vec::new();
        elf.extend(*b"\x7fELF\x02\x01\x01");
        elf.resize(16, 0);
        elf.extend(2u16.to_le_bytes());
        elf.extend(62u16.to_le_bytes());
        elf.extend(1u32.to_le_bytes());
        elf.extend((0xffff_8280_0010_0000 + entry_offset).to_le_bytes());
        elf.extend(64u64.to_le_bytes());
        elf.extend(0u64.to_le_bytes());
        elf.extend(0u32.to_le_bytes());
        for value in [64u16, 56, 1, 0, 0, 0] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(1u32.to_le_bytes());
        elf.extend(5u32.to_le_bytes());
        let size = payload.len() as u64;
        for value in [120u64, 0xffff_8280_0010_0000, phys, size, size + 16, 8] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend_from_slice(payload);
        elf
    }

    fn word(image: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes"))
    }

    #[test]
    fn the_segment_keeps_its_bytes_and_physical_place() {
        let image = convert(&sample_elf64(b"hypervisor", 4, 0x10_0000)).expect("convertible");
        assert_eq!(&image[..5], b"\x7fELF\x01");
        assert_eq!(word(&image, 24), 0x10_0004, "the entry is physical");
        assert_eq!(word(&image, 52 + 12), 0x10_0000);
        assert_eq!((word(&image, 52 + 16), word(&image, 52 + 20)), (10, 26));
        let offset = word(&image, 52 + 4) as usize;
        assert_eq!(&image[offset..], b"hypervisor");
    }

    #[test]
    fn the_header_is_where_loaders_look_and_sums_to_zero() {
        let image = convert(&sample_elf64(b"x", 0, 0x10_0000)).expect("convertible");
        let at = (0..8192 - 12).step_by(4).find(|at| word(&image, *at) == MAGIC).expect("a header");
        let sum = (0..3).fold(0u32, |sum, i| sum.wrapping_add(word(&image, at + 4 * i)));
        assert_eq!(sum, 0);
    }

    #[test]
    fn a_segment_beyond_4_gib_is_refused() {
        assert!(convert(&sample_elf64(b"x", 0, 0x1_0000_0000)).is_err());
        assert!(convert(&sample_elf64(b"x", 0, 0xffff_fff8)).is_err());
        assert!(convert(b"\x7fELF\x01 not this").is_err());
    }
}
