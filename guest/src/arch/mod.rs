//! What differs between the two architectures: instructions, frames on the stack, shapes of page tables.
//!
//! Both modules export the same names, and one of them is re-exported here by the target the guest is compiled for.
//! Nothing outside this directory asks which it is, except where the interface itself differs.

#[cfg(target_arch = "x86")]
mod x86_32;
#[cfg(target_arch = "x86")]
pub use x86_32::*;

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
