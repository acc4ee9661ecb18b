//! Copies between the hypervisor and the guest that runs on this CPU, at the guest's own virtual addresses.
//!
//! The copy runs under the guest's page tables, with write protection on, so it can do what the guest's kernel could. A
//! fault in it ends the copy: the exception table leads out, and the caller gets [`BadPointer`]. Callers have checked
//! that the addresses are the guest's (`Personality::in_guest_range`): what is mapped elsewhere is the hypervisor's.
//! What is a word or a few is moved by single instructions, in the midst of the code that wants it.
//!
//! A fault may also be one that shadowing or writable page tables cause and the trap path repairs, for which it takes
//! the domain's paging lock: nobody holds that lock around a copy.
//!
//! **No store crosses a page.** A store to one of the guest's page tables needs that table open, and any other fault
//! closes it: that of the page behind, if it is not mapped, was not written to yet, or is reached through the table. A
//! store that needs both at once would fault for ever. What is not aligned goes byte by byte where it meets a page's
//! edge; all else that stores to a guest keeps to whole, aligned words.

use crate::ex_table;
use crate::mm::layout::PAGE_SIZE;
use core::arch::asm;
use proxenos_core::addr::GuestVirt;
use proxenos_core::machine::BadPointer;

/// The fixup, at label 5, of a read: says that it failed and goes on at label 4. Out of the way of those that do not.
macro_rules! failed_at {
    () => {
        ".pushsection .text.fixup, \"ax\", @progbits\n5: mov {failed:e}, 1\njmp 4b\n.popsection"
    };
}

/// Copies from the guest.
pub fn copy_from_guest(from: GuestVirt, into: &mut [u8]) -> Result<(), BadPointer> {
    // SAFETY: the destination is ours and as long as the count.
    unsafe { copy(into.as_mut_ptr() as u64, from.0, Count::in_words(into.len())) }
}

/// Copies to the guest.
pub fn copy_to_guest(to: GuestVirt, from: &[u8]) -> Result<(), BadPointer> {
    let end = to.0.wrapping_add(from.len() as u64);
    let word_may_cross = !to.0.is_multiple_of(WORD as u64) && to.0 / PAGE_SIZE != end / PAGE_SIZE;
    let count = if word_may_cross { Count { words: 0, rest: from.len() } } else { Count::in_words(from.len()) };
    // SAFETY: writes go to a guest address, which the caller has checked, so no memory of ours changes.
    unsafe { copy(to.0, from.as_ptr() as u64, count) }
}

/// What a copy moves at a time, if it can.
const WORD: usize = size_of::<u64>();

/// How much is copied: words first, then bytes.
struct Count {
    words: usize,
    rest: usize,
}

impl Count {
    /// Most of what is copied is a few words.
    const fn in_words(bytes: usize) -> Self {
        Self { words: bytes / WORD, rest: bytes % WORD }
    }
}

/// Copies; a fault on either side ends it.
///
/// # Safety
/// `to` is either memory the caller may write, or in the guest's range.
unsafe fn copy(to: u64, from: u64, count: Count) -> Result<(), BadPointer> {
    let left: usize;
    // SAFETY: the caller vouches for the destination; the source is only read. A fault leaves rcx at what is left, and
    // goes on behind the copy.
    unsafe {
        asm!(
            "2: rep movsq",
            "mov rcx, {rest}",
            "3: rep movsb",
            "4:",
            ex_table!("2b", "4b"),
            ex_table!("3b", "4b"),
            rest = in(reg) count.rest,
            inout("rcx") count.words => left,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack)
        );
    }
    if left == 0 { Ok(()) } else { Err(BadPointer) }
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
                "xor {failed:e}, {failed:e}",
                "2: mov {one}, [{at}]",
                "3: mov {other}, [{at} + 8]",
                "4:",
                failed_at!(),
                ex_table!("2b", "5b"),
                ex_table!("3b", "5b"),
                at = in(reg) at,
                one = out(reg) one,
                other = out(reg) other,
                failed = out(reg) failed,
                options(nostack, readonly)
            );
        }
        if failed != 0 {
            return Err(BadPointer);
        }
        (pair[0], pair[1]) = (one, other);
        at = at.wrapping_add(16);
    }
    if let [word] = pairs.into_remainder() {
        let failed: u32;
        // SAFETY: as above.
        unsafe {
            asm!(
                "xor {failed:e}, {failed:e}",
                "2: mov {word}, [{at}]",
                "4:",
                failed_at!(),
                ex_table!("2b", "5b"),
                at = in(reg) at,
                word = out(reg) *word,
                failed = out(reg) failed,
                options(nostack, readonly)
            );
        }
        if failed != 0 {
            return Err(BadPointer);
        }
    }
    Ok(words)
}

/// Reads one word or two; all ones where that fails, so there is nothing to look at where it does not.
#[inline(always)]
pub fn read_words_or_ones<const N: usize>(from: GuestVirt) -> [u64; N] {
    const { assert!(N == 1 || N == 2) };
    let mut words = [0; N];
    match &mut words[..] {
        // SAFETY: only reads, at the guest's address; a fault goes on behind the read, with all ones.
        [one] => unsafe {
            asm!(
                "2: mov {one}, [{at}]",
                "4:",
                ".pushsection .text.fixup, \"ax\", @progbits",
                "5: mov {one}, -1",
                "jmp 4b",
                ".popsection",
                ex_table!("2b", "5b"),
                at = in(reg) from.0,
                one = lateout(reg) *one,
                options(nostack, preserves_flags, readonly)
            );
        },
        // SAFETY: as above, of two reads.
        [one, other] => unsafe {
            asm!(
                "2: mov {one}, [{at}]",
                "3: mov {other}, [{at} + 8]",
                "4:",
                ".pushsection .text.fixup, \"ax\", @progbits",
                "5: mov {one}, -1",
                "mov {other}, -1",
                "jmp 4b",
                ".popsection",
                ex_table!("2b", "5b"),
                ex_table!("3b", "5b"),
                at = in(reg) from.0,
                // The address is needed for the second.
                one = out(reg) *one,
                other = lateout(reg) *other,
                options(nostack, preserves_flags, readonly)
            );
        },
        _ => {}
    }
    words
}

/// Writes 32 bits, to a multiple of 4.
#[inline(always)]
pub fn write_aligned_u32(to: GuestVirt, value: u32) -> Result<(), BadPointer> {
    debug_assert!(to.0.is_multiple_of(4));
    // SAFETY: writes to a guest address, which the caller has checked, so no memory of ours changes.
    unsafe {
        asm!(
            "2: mov [{to}], {value:e}",
            ex_table!("2b", "{fault}"),
            to = in(reg) to.0,
            value = in(reg) value,
            fault = label { return Err(BadPointer) },
            options(nostack, preserves_flags)
        );
    }
    Ok(())
}

/// Writes 64 bits, to a multiple of 8.
#[inline(always)]
pub fn write_aligned_u64(to: GuestVirt, value: u64) -> Result<(), BadPointer> {
    debug_assert!(to.0.is_multiple_of(8));
    // SAFETY: as in `write_aligned_u32`.
    unsafe {
        asm!(
            "2: mov [{to}], {value}",
            ex_table!("2b", "{fault}"),
            to = in(reg) to.0,
            value = in(reg) value,
            fault = label { return Err(BadPointer) },
            options(nostack, preserves_flags)
        );
    }
    Ok(())
}
