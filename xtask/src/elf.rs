//! Reading the hypervisor's and the guests' ELF files.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, elf};

use crate::guest_meta::Arch;

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of its bytes in the file.
    pub offset: u64,
    /// Address it is linked at.
    pub virt: u64,
    /// Address it is loaded at.
    pub phys: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory.
    pub mem_size: u64,
    /// PF_R, PF_W, PF_X.
    pub flags: u32,
}

impl Segment {
    /// The physical address of an address in it.
    fn translate(&self, virt: u64) -> Option<u64> {
        let offset = virt.checked_sub(self.virt)?;
        (offset < self.mem_size).then(|| self.phys + offset)
    }
}

/// A 64-bit x86 executable that is linked at fixed addresses.
pub struct Executable<'a> {
    file: ElfFile64<'a, Endianness>,
}

impl<'a> Executable<'a> {
    /// Parses it; anything but an x86_64 ET_EXEC without dynamic relocations is refused.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let file = ElfFile64::<Endianness>::parse(bytes).context("not an ELF64 file")?;
        let header = file.elf_header();
        let endian = file.endian();
        ensure!(header.e_machine(endian) == elf::EM_X86_64, "not for x86_64");
        ensure!(header.e_type(endian) == elf::ET_EXEC, "not linked at a fixed address (ET_EXEC)");
        ensure!(file.elf_program_headers().iter().all(|p| p.p_type(endian) != elf::PT_DYNAMIC), "dynamically linked");
        Ok(Self { file })
    }

    /// Its PT_LOAD segments that take memory.
    pub fn segments(&self) -> Vec<Segment> {
        let endian = self.file.endian();
        self.file
            .elf_program_headers()
            .iter()
            .filter(|p| p.p_type(endian) == elf::PT_LOAD && p.p_memsz(endian) > 0)
            .map(|p| Segment {
                offset: p.p_offset(endian),
                virt: p.p_vaddr(endian),
                phys: p.p_paddr(endian),
                file_size: p.p_filesz(endian),
                mem_size: p.p_memsz(endian),
                flags: p.p_flags(endian),
            })
            .collect()
    }

    /// Bytes that are loaded from the file: the image without its zeroed memory.
    pub fn loaded_size(&self) -> u64 {
        self.segments().iter().map(|s| s.file_size).sum()
    }

    /// The entry as a physical address: itself, where no segment is linked there.
    pub fn physical_entry(&self) -> u64 {
        let entry = self.file.entry();
        self.segments().iter().find_map(|s| s.translate(entry)).unwrap_or(entry)
    }

    /// File range of a section.
    pub fn section(&self, name: &str) -> Option<std::ops::Range<usize>> {
        let (offset, size) = self.file.section_by_name(name)?.file_range()?;
        let start = usize::try_from(offset).ok()?;
        Some(start..start.checked_add(usize::try_from(size).ok()?)?)
    }

    /// Functions as (address, size, mangled name), in no order.
    pub fn functions(&self) -> Vec<(u64, u64, String)> {
        self.file
            .symbols()
            .filter(|s| s.kind() == object::SymbolKind::Text && s.is_definition())
            .filter_map(|s| Some((s.address(), s.size(), s.name().ok()?.to_owned())))
            .filter(|(_, _, name)| !name.is_empty())
            .collect()
    }

    /// Value of a symbol.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.file.symbols().find(|s| s.name() == Ok(name)).map(|s| s.address())
    }
}

/// The architecture of a guest's ELF file.
pub fn arch(file: &Path) -> Result<Arch> {
    let data = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    match object::FileKind::parse(&*data) {
        Ok(object::FileKind::Elf32) => Ok(Arch::X86_32),
        Ok(object::FileKind::Elf64) => Ok(Arch::X86_64),
        _ => bail!("{} is not an ELF file", file.display()),
    }
}
