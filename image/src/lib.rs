//! What every builder of domains needs, whoever it is: reading a guest kernel's image ([`Image`]), and planning and writing a
//! domain's start of day ([`builder`]).
//!
//! The hypervisor builds the domains that the boot loader brings, the control domain all others; they differ in how they reach
//! a domain's memory, which is what [`DomainMemory`](builder::DomainMemory) stands for. Nothing here needs an instruction, a
//! hypercall or a lock, and images are taken from whoever has one: any bytes at all are read without a panic.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod builder;
mod kernel;

#[cfg(any(test, feature = "recipe"))]
pub use kernel::recipe;
pub use kernel::{Image, ImageError, PageTableMode};
