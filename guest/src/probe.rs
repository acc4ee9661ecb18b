//! Trying what may fault, and living on.
//!
//! Instructions that may fault are listed, with the address to go on at, in a table that the linker script collects.
//! When a trap has no handler of its own, [`crate::traps`] looks its instruction up here before it gives up; what
//! trapped is then to be read from [`crate::traps::last_trap`]. The trap table must be installed.

use crate::arch::Word;
use proxenos_abi::{GuestVirt, GuestWord};

/// The directives that list instruction `2:` with recovery at `3:`.
#[cfg(target_arch = "x86")]
#[doc(hidden)]
#[macro_export]
macro_rules! __fixup {
    () => {
        ".pushsection .guest_fixups, \"a\", @progbits\n .long 2b, 3b\n .popsection"
    };
}

/// The directives that list instruction `2:` with recovery at `3:`.
#[cfg(target_arch = "x86_64")]
#[doc(hidden)]
#[macro_export]
macro_rules! __fixup {
    () => {
        ".pushsection .guest_fixups, \"a\", @progbits\n .quad 2b, 3b\n .popsection"
    };
}

/// The name of the stack pointer, for `concat!` in assembly that is the same on both architectures.
#[cfg(target_arch = "x86")]
#[macro_export]
macro_rules! stack_pointer {
    () => {
        "esp"
    };
}

/// The name of the stack pointer, for `concat!` in assembly that is the same on both architectures.
#[cfg(target_arch = "x86_64")]
#[macro_export]
macro_rules! stack_pointer {
    () => {
        "rsp"
    };
}

/// Executes one instruction of inline assembly and tells whether it completed: `false` if it trapped.
///
/// `attempt!("hlt")`, or with operands as `asm!` takes them: `attempt!("mov cr3, {0}", in(reg) 0usize)`. An
/// instruction that traps *behind* itself (an `int`) and whose trap nobody handles does not count as recovered. To be
/// used in an `unsafe` block: the instruction is the caller's to justify.
#[macro_export]
macro_rules! attempt {
    ($instruction:literal $(, $($operand:tt)+)?) => {{
        let completed: u32;
        ::core::arch::asm!(
            concat!("2: ", $instruction),
            "mov {completed:e}, 1",
            "jmp 4f",
            "3: mov {completed:e}, 0",
            "4:",
            $crate::__fixup!(),
            $($($operand)+,)?
            completed = out(reg) completed,
        );
        completed != 0
    }};
}

#[repr(C)]
struct Fixup {
    instruction: Word,
    recovery: Word,
}

unsafe extern "C" {
    static __guest_fixups_start: Fixup;
    static __guest_fixups_end: Fixup;
}

/// Where to go on after a trap at this instruction, if it was expected to trap.
pub(crate) fn recovery(ip: GuestVirt) -> Option<GuestVirt> {
    let start = &raw const __guest_fixups_start;
    let count = (&raw const __guest_fixups_end as usize - start as usize) / size_of::<Fixup>();
    // SAFETY: the linker script puts the two symbols around an array of entries in read-only data.
    let fixups = unsafe { core::slice::from_raw_parts(start, count) };
    let fixup = fixups.iter().find(|fixup| fixup.instruction.to_u64() == ip.raw())?;
    Some(GuestVirt(fixup.recovery.to_u64()))
}

/// Reads a word, or tells that it cannot be read.
#[inline(never)]
pub fn load(at: GuestVirt) -> Option<Word> {
    let mut value = 0 as Word;
    // SAFETY: a read of whatever may lie there; no Rust object is formed from it.
    let completed =
        unsafe { attempt!("mov {value}, [{at}]", value = inout(reg) value, at = in(reg) at.raw() as usize) };
    completed.then_some(value)
}

/// Writes a word, or tells that it cannot be written.
///
/// # Safety
/// If the word can be written, nothing depends on its old value.
#[inline(never)]
pub unsafe fn store(at: GuestVirt, value: Word) -> bool {
    // SAFETY: the caller promises that the word may change.
    unsafe { attempt!("mov [{at}], {value}", at = in(reg) at.raw() as usize, value = in(reg) value) }
}

/// Tells whether a word can be written, by a write that leaves it as it is.
#[inline(never)]
pub fn is_writable(at: GuestVirt) -> bool {
    // SAFETY: adding zero changes no value.
    #[cfg(target_arch = "x86")]
    return unsafe { attempt!("lock or dword ptr [{at}], 0", at = in(reg) at.raw() as usize) };
    // SAFETY: adding zero changes no value.
    #[cfg(target_arch = "x86_64")]
    return unsafe { attempt!("lock or qword ptr [{at}], 0", at = in(reg) at.raw() as usize) };
}

/// Tells whether a word can be read.
pub fn is_readable(at: GuestVirt) -> bool {
    load(at).is_some()
}
