//! Copies between the hypervisor and the guest that runs on this CPU, at the guest's own virtual addresses.
//!
//! The copy runs under the guest's page tables, with write protection on, so it can do what the guest's kernel could. A
//! fault in it ends the copy: the exception table leads out, and the caller gets [`BadPointer`]. Callers have checked
//! that the addresses are the guest's (`Personality::in_guest_range`): what is mapped elsewhere is the hypervisor's. What is a word
//! or a few is moved by single instructions, in the midst of the code that wants it.
//!
//! A fault may also be one that shadowing causes and the trap path repairs, for which it takes the domain's paging lock:
//! nobody holds that lock around a copy.

use crate::ex_table;
use core::arch::asm;
use proxenos_core::addr::GuestVirt;
use proxenos_core::machine::BadPointer;

/// Copies from the guest.
pub fn copy_from_guest(from: GuestVirt, into: &mut [u8]) -> Result<(), BadPointer> {
    // SAFETY: the destination is ours and as long as the count.
    unsafe { copy(into.as_mut_ptr() as u64, from.0, into.len()) }
}

/// Copies to the guest.
pub fn copy_to_guest(to: GuestVirt, from: &[u8]) -> Result<(), BadPointer> {
    // SAFETY: writes go to a guest address, which the caller has checked, so no memory of ours changes.
    unsafe { copy(to.0, from.as_ptr() as u64, from.len()) }
}

/// Copies bytes; a fault on either side ends it.
///
/// # Safety
/// `to` is either memory the caller may write, or in the guest's range.
unsafe fn copy(to: u64, from: u64, bytes: usize) -> Result<(), BadPointer> {
    let left: usize;
    // SAFETY: the caller vouches for the destination; the source is only read. A fault leaves rcx at what is left, and
    // goes on behind the copy.
    unsafe {
        asm!(
            // Words first: most of what is copied is a few of them.
            "mov {tail}, rcx",
            "and {tail:e}, 7",
            "shr rcx, 3",
            "2: rep movsq",
            "mov rcx, {tail}",
            "xor {tail:e}, {tail:e}",
            "3: rep movsb",
            "4:",
            ex_table!("2b", "4b"),
            ex_table!("3b", "4b"),
            tail = out(reg) _,
            inout("rcx") bytes => left,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack)
        );
    }
    if left == 0 { Ok(()) } else { Err(BadPointer) }
}

/// Whether a move came to its end. Its fixup is the instruction behind the one that says so.
#[inline(always)]
fn moved(failed: u32) -> Result<(), BadPointer> {
    if failed == 0 { Ok(()) } else { Err(BadPointer) }
}

/// Reads a few words.
#[inline(always)]
pub fn read_words<const N: usize>(from: GuestVirt) -> Result<[u64; N], BadPointer> {
    let mut words = [0; N];
    let mut at = from.0;
    let mut pairs = words.chunks_exact_mut(2);
    for pair in &mut pairs {
        let (one, other, failed): (u64, u64, u32);
        // SAFETY: only reads, at the guest's addresses; a fault leaves `failed` at 1.
        unsafe {
            asm!(
                "mov {failed:e}, 1",
                "2: mov {one}, [{at}]",
                "3: mov {other}, [{at} + 8]",
                "xor {failed:e}, {failed:e}",
                "4:",
                ex_table!("2b", "4b"),
                ex_table!("3b", "4b"),
                at = in(reg) at,
                one = out(reg) one,
                other = out(reg) other,
                failed = out(reg) failed,
                options(nostack, readonly)
            );
        }
        moved(failed)?;
        (pair[0], pair[1]) = (one, other);
        at = at.wrapping_add(16);
    }
    if let [word] = pairs.into_remainder() {
        let failed: u32;
        // SAFETY: as above.
        unsafe {
            asm!(
                "mov {failed:e}, 1",
                "2: mov {word}, [{at}]",
                "xor {failed:e}, {failed:e}",
                "4:",
                ex_table!("2b", "4b"),
                at = in(reg) at,
                word = out(reg) *word,
                failed = out(reg) failed,
                options(nostack, readonly)
            );
        }
        moved(failed)?;
    }
    Ok(words)
}

/// Writes 32 bits.
#[inline(always)]
pub fn write_u32(to: GuestVirt, value: u32) -> Result<(), BadPointer> {
    let failed: u32;
    // SAFETY: writes to a guest address, which the caller has checked, so no memory of ours changes.
    unsafe {
        asm!(
            "mov {failed:e}, 1",
            "2: mov [{to}], {value:e}",
            "xor {failed:e}, {failed:e}",
            "4:",
            ex_table!("2b", "4b"),
            to = in(reg) to.0,
            value = in(reg) value,
            failed = out(reg) failed,
            options(nostack)
        );
    }
    moved(failed)
}

/// Writes 64 bits.
#[inline(always)]
pub fn write_u64(to: GuestVirt, value: u64) -> Result<(), BadPointer> {
    let failed: u32;
    // SAFETY: as in `write_u32`.
    unsafe {
        asm!(
            "mov {failed:e}, 1",
            "2: mov [{to}], {value}",
            "xor {failed:e}, {failed:e}",
            "4:",
            ex_table!("2b", "4b"),
            to = in(reg) to.0,
            value = in(reg) value,
            failed = out(reg) failed,
            options(nostack)
        );
    }
    moved(failed)
}
