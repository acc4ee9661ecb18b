//! The processor: descriptor tables, trap entry, per-CPU data, features.

pub mod debugreg;
pub mod entry;
pub mod extable;
pub mod features;
pub mod gdt;
pub mod idt;
pub mod nmi;
pub mod percpu;
pub mod speculation;
