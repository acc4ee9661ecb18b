//! x86_64: a kernel in ring 3 with four-level page tables, which calls by `syscall`.

mod entry;
mod events;
mod hypercall;
mod traps;
pub mod user;

pub use entry::{BootRegisters, boot_registers};
pub use events::{event_callback, failsafe_callback, failsafe_count};
pub use hypercall::{hypercall0, hypercall1, hypercall2, hypercall3, hypercall4, hypercall5};
pub use traps::{TrapFrame, trap_stub};

/// The architecture, as `proxenos-abi` names it.
pub type Arch = proxenos_abi::X86_64;
/// The machine word: `memory_t` and `cpureg_t` of the interface, and a page-table entry.
pub type Word = u64;

/// Levels of the page tables.
pub const LEVELS: u32 = 4;
/// log2 of the entries in one page table.
pub const LEVEL_BITS: u32 = 9;
/// Whether kernel mappings need the user bit: yes, ring 3 is user to the page tables.
pub const KERNEL_PAGES_ARE_USER: bool = true;

/// The processor's time-stamp counter, in cycles of `cpu_freq`.
#[inline]
pub fn read_tsc() -> u64 {
    // SAFETY: the interface promises that the counter can be read by a guest; reading it changes nothing.
    unsafe { core::arch::x86_64::_rdtsc() }
}
