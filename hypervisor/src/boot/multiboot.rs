//! Multiboot 1 (QEMU's `-kernel` with several modules, old GRUB) and Multiboot 2 (GRUB).
//!
//! Multiboot 1's information is a small fixed structure (Multiboot specification 0.6.96, section 3.3), read here;
//! Multiboot 2's tags are read by the `multiboot2` crate.

use crate::boot::info::{AcpiRoot, BootError, BootInfo, Protocol};
use crate::boot::loader_memory::{bytes, text, u32_at, u64_at};
use multiboot2::{BootInformation, BootInformationHeader};
use proxenos_abi::MachineAddr;

/// Bytes of the part of Multiboot 1's information that is read.
const INFORMATION: usize = 52;
/// Flags of Multiboot 1's information: which of its fields are there.
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;
/// Bytes of an entry of its module list.
const MODULE: usize = 16;

/// Reads Multiboot 1's information at `at` into `info`.
pub fn parse_1(at: u32, info: &mut BootInfo) -> Result<(), BootError> {
    info.protocol = Protocol::Multiboot1;
    let start = bytes(at.into(), INFORMATION, "Multiboot information")?;
    let flags = u32_at(start, 0);
    if flags & HAS_COMMAND_LINE != 0 {
        // Its first word is the file's name.
        let line = text(u32_at(start, 16).into(), "command line")?;
        let name = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
        info.command_line = info.keep_text(line[name..].trim_ascii())?;
    }
    if flags & HAS_MEMORY_MAP == 0 {
        return Err(BootError::NoMemoryMap);
    }
    let mut map = bytes(u32_at(start, 48).into(), u32_at(start, 44) as usize, "memory map")?;
    // Each entry is preceded by its size, which does not count itself.
    while map.len() >= 24 {
        let size = u32_at(map, 0) as usize;
        if size < 20 || size + 4 > map.len() {
            return Err(BootError::BadStructure("memory map"));
        }
        info.add_region(u64_at(map, 4), u64_at(map, 12), u32_at(map, 20))?;
        map = &map[size + 4..];
    }
    if flags & HAS_MODULES != 0 {
        let count = u32_at(start, 20) as usize;
        let size = count.checked_mul(MODULE).ok_or(BootError::TooMuch("modules"))?;
        let list = if count == 0 { &[] } else { bytes(u32_at(start, 24).into(), size, "module list")? };
        for entry in list.chunks_exact(MODULE) {
            let line = match u32_at(entry, 8) {
                0 => &[],
                at => text(at.into(), "module's command line")?,
            };
            info.add_module(u32_at(entry, 0).into(), u32_at(entry, 4).into(), line)?;
        }
    }
    Ok(())
}

/// Reads Multiboot 2's information at `at` into `info`.
pub fn parse_2(at: u32, info: &mut BootInfo) -> Result<(), BootError> {
    const NAME: &str = "Multiboot 2 information";
    info.protocol = Protocol::Multiboot2;
    let size = u32_at(bytes(at.into(), 8, NAME)?, 0) as usize;
    let whole = bytes(at.into(), size, NAME)?;
    if !at.is_multiple_of(8) || size < 16 {
        return Err(BootError::BadStructure(NAME));
    }
    let header: *const BootInformationHeader = whole.as_ptr().cast();
    // SAFETY: the pointer is aligned to 8 and all of the structure, by its own size, is mapped and unchanging.
    let tags = unsafe { BootInformation::load(header) }.map_err(|_| BootError::BadStructure(NAME))?;
    if let Some(line) = tags.command_line_tag() {
        let line = line.cmdline().map_err(|_| BootError::BadStructure("command line"))?;
        info.command_line = info.keep_text(line.as_bytes())?;
    }
    let map = tags.memory_map_tag().ok_or(BootError::NoMemoryMap)?;
    for area in map.memory_areas() {
        info.add_region(area.start_address(), area.size(), area.typ().into())?;
    }
    for module in tags.module_tags() {
        let line = module.cmdline().map_err(|_| BootError::BadStructure("module's command line"))?;
        info.add_module(module.start_address().into(), module.end_address().into(), line.as_bytes())?;
    }
    let new = tags.rsdp_v2_tag().filter(|tag| tag.checksum_is_valid());
    let old = tags.rsdp_v1_tag().filter(|tag| tag.checksum_is_valid());
    info.acpi = match (new, old) {
        (Some(tag), _) => Some(AcpiRoot::Xsdt(MachineAddr(tag.xsdt_address() as u64))),
        (None, Some(tag)) => Some(AcpiRoot::Rsdt(MachineAddr(tag.rsdt_address() as u64))),
        (None, None) => None,
    };
    Ok(())
}
