//! The processors: descriptor tables, trap entry, per-CPU data, features, and what several of them need.

mod check;
pub mod debugreg;
pub mod entry;
pub mod errand;
pub mod extable;
pub mod features;
pub mod gdt;
pub mod idt;
pub mod ipi;
pub mod msr;
pub mod nmi;
pub mod percpu;
pub mod smp;
pub mod speculation;
pub mod tlb;
mod trampoline;
