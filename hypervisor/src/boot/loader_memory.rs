//! Reading what the loader left, by machine address, while the boot page tables are in use.
//!
//! Only the first 4 GiB can be read: the boot page tables map no more, and every loader of the three protocols runs in
//! 32 bits. Nothing read is trusted: bounds are checked here, contents by the callers.

use crate::boot::asm::BOOT_MAP_END;
use crate::boot::info::BootError;
use crate::mm::layout;
use proxenos_abi::MachineAddr;

/// The longest command line that is read.
const MAX_LINE: usize = 4096;

/// `length` bytes at a machine address. The name is what an error calls it.
pub fn bytes(at: u64, length: usize, name: &'static str) -> Result<&'static [u8], BootError> {
    let end = at.checked_add(length as u64).ok_or(BootError::BadPointer(name))?;
    if at == 0 || end > BOOT_MAP_END {
        return Err(BootError::BadPointer(name));
    }
    let start: *const u8 = layout::direct(MachineAddr(at)).as_ptr();
    // SAFETY: the boot page tables map the first 4 GiB at the start of the direct map, and nothing else runs that could
    // write there. What is not RAM reads as something, and any bytes are valid.
    Ok(unsafe { core::slice::from_raw_parts(start, length) })
}

/// A NUL-terminated text, at most 4 KiB of it.
pub fn text(at: u64, name: &'static str) -> Result<&'static [u8], BootError> {
    let room = BOOT_MAP_END.saturating_sub(at).min(MAX_LINE as u64) as usize;
    let bytes = bytes(at, room, name)?;
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    Ok(&bytes[..length])
}

/// The little-endian number of 32 bits at an offset.
///
/// # Panics
/// When `bytes` is too short: callers know the size of the structure they read.
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(raw)
}

/// The little-endian number of 64 bits at an offset.
///
/// # Panics
/// When `bytes` is too short.
#[must_use]
pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
