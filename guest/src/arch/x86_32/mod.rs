//! x86_32: a kernel in ring 1 with two-level page tables, which calls by `int 0x82`.

mod entry;
mod events;
mod hypercall;
pub mod segments;
mod traps;

pub use entry::{BootRegisters, boot_registers};
pub use events::{event_callback, failsafe_callback, failsafe_count};
pub use hypercall::{hypercall0, hypercall1, hypercall2, hypercall3, hypercall4, hypercall5};
pub use traps::{TrapFrame, trap_stub};

/// The architecture, as `proxenos-abi` names it.
pub type Arch = proxenos_abi::X86_32;
/// The machine word: `memory_t` and `cpureg_t` of the interface, and a page-table entry.
pub type Word = u32;

/// Levels of the page tables.
pub const LEVELS: u32 = 2;
/// log2 of the entries in one page table.
pub const LEVEL_BITS: u32 = 10;
/// Whether kernel mappings need the user bit: no, ring 1 is supervisor to the page tables.
pub const KERNEL_PAGES_ARE_USER: bool = false;

/// The processor's time-stamp counter, in cycles of `cpu_freq`.
#[inline]
pub fn read_tsc() -> u64 {
    // SAFETY: the interface promises that the counter can be read by a guest; reading it changes nothing.
    unsafe { core::arch::x86::_rdtsc() }
}
