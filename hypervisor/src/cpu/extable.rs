//! The exception table: instructions of the hypervisor that are allowed to fault, and where to go on if they do.
//!
//! Each entry of section `.ex_table` is a pair of `i32`, each relative to its own place: the instruction, and its
//! fixup. An assembler fragment adds one with [`ex_table!`]. A fault at the instruction continues at the fixup with all
//! registers as they were; there is no other effect.

use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::VirtAddr;

/// The assembler lines that add an exception-table entry, for use in `asm!`, `naked_asm!` and `global_asm!` in the
/// Intel or AT&T syntax: labels of the instruction that may fault and of its fixup.
///
/// `asm!("2: mov al, [rdi]", "3:", ex_table!("2b", "3b"), ...)`
#[macro_export]
macro_rules! ex_table {
    ($instruction:literal, $fixup:literal) => {
        concat!(
            ".pushsection .ex_table, \"a\", @progbits\n",
            ".long ",
            $instruction,
            " - .\n",
            ".long ",
            $fixup,
            " - .\n",
            ".popsection"
        )
    };
}

/// The error code of the last fault that was fixed up, on any CPU: for those who provoke one at boot.
static LAST_ERROR_CODE: AtomicU64 = AtomicU64::new(0);

/// Remembers the error code of a fault that is fixed up.
pub fn note_error_code(code: u64) {
    LAST_ERROR_CODE.store(code, Ordering::Relaxed);
}

/// The error code of the last fault that was fixed up.
pub fn last_error_code() -> u64 {
    LAST_ERROR_CODE.load(Ordering::Relaxed)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    instruction: i32,
    fixup: i32,
}

/// Where to go on after a fault at `rip`, if that instruction may fault.
///
/// A linear search: there are a few dozen entries, and a guest that makes us search pays for it with its own time.
#[must_use]
pub fn fixup(rip: VirtAddr) -> Option<VirtAddr> {
    unsafe extern "C" {
        static __ex_table_start: Entry;
        static __ex_table_end: Entry;
    }
    let start = &raw const __ex_table_start;
    let count = ((&raw const __ex_table_end).addr() - start.addr()) / size_of::<Entry>();
    // SAFETY: the linker script collects the table between the two symbols, in read-only memory, aligned to 8.
    let entries = unsafe { core::slice::from_raw_parts(start, count) };
    let target = |field: &i32| core::ptr::from_ref(field).addr().wrapping_add_signed(*field as isize) as u64;
    let entry = entries.iter().find(|entry| target(&entry.instruction) == rip.as_u64())?;
    Some(VirtAddr::new_truncate(target(&entry.fixup)))
}
