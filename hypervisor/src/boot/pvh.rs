//! PVH: what QEMU's `-kernel` and cloud VMMs use.
//!
//! The loader passes the address of an `hvm_start_info` (Xen's public header arch-x86/hvm/start_info.h, where offsets
//! and version rules are given): version 0 has modules and a command line, version 1 adds the memory map, without which
//! we cannot run.

use crate::boot::asm::PVH_MAGIC;
use crate::boot::info::{AcpiRoot, BootError, BootInfo, MAX_MODULES, MAX_REGIONS, Protocol};
use crate::boot::loader_memory::{bytes, text, u32_at, u64_at};
use proxenos_abi::MachineAddr;

/// Bytes of `hvm_start_info` from version 1 on.
const START_INFO: usize = 56;
/// Bytes of `hvm_modlist_entry`.
const MODULE: usize = 32;
/// Bytes of `hvm_memmap_table_entry`.
const MEMMAP_ENTRY: usize = 24;

/// Reads the start information at `at` into `info`.
pub fn parse(at: u32, info: &mut BootInfo) -> Result<(), BootError> {
    let start = bytes(at.into(), START_INFO, "PVH start information")?;
    if u32_at(start, 0) != PVH_MAGIC {
        return Err(BootError::BadStructure("PVH start information"));
    }
    let version = u32_at(start, 4);
    if version == 0 {
        return Err(BootError::NoMemoryMap);
    }
    info.protocol = Protocol::Pvh(version);
    let modules = u32_at(start, 12) as usize;
    let module_list = u64_at(start, 16);
    let command_line = u64_at(start, 24);
    let rsdp = u64_at(start, 32);
    let memory_map = u64_at(start, 40);
    let memory_entries = u32_at(start, 48) as usize;

    if memory_map == 0 || memory_entries == 0 {
        return Err(BootError::NoMemoryMap);
    }
    if memory_entries > MAX_REGIONS {
        return Err(BootError::TooMuch("memory regions"));
    }
    for entry in bytes(memory_map, memory_entries * MEMMAP_ENTRY, "memory map")?.chunks_exact(MEMMAP_ENTRY) {
        info.add_region(u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16))?;
    }
    if command_line != 0 {
        info.command_line = info.keep_text(text(command_line, "command line")?)?;
    }
    if modules > MAX_MODULES {
        return Err(BootError::TooMuch("modules"));
    }
    if modules > 0 {
        for entry in bytes(module_list, modules * MODULE, "module list")?.chunks_exact(MODULE) {
            let start = u64_at(entry, 0);
            let end = start.checked_add(u64_at(entry, 8)).ok_or(BootError::BadPointer("module"))?;
            let line = match u64_at(entry, 16) {
                0 => &[],
                at => text(at, "module's command line")?,
            };
            info.add_module(start, end, line)?;
        }
    }
    info.acpi = (rsdp != 0).then_some(AcpiRoot::Rsdp(MachineAddr(rsdp)));
    Ok(())
}
