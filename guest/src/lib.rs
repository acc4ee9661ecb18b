//! Write a guest kernel for the Xen 2.0 interface in Rust, for x86_32 and x86_64 alike.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! use proxenos_guest::{StartInfo, println};
//!
//! proxenos_guest::entry!(main);
//!
//! fn main(si: &StartInfo) {
//!     proxenos_guest::init();
//!     println!("{} pages", si.nr_pages.to_u64());
//! }
//! ```
//!
//! Before `main` runs, the SDK has taken a stack and a console and nothing else: the rest of the world is as the
//! hypervisor made it. [`init`] then maps the shared page, installs the trap table and the callbacks; each step can
//! also be taken by itself ([`shared_info::map`], [`traps::install`], [`events::install`]). When `main` returns, the
//! domain shuts down with reason 0.
//!
//! # Design
//! - One virtual CPU; upcalls and traps are the only concurrency. State is in atomics; what is not says why.
//! - Handlers run on the interrupted stack, upcalls with further upcalls masked.
//! - Nothing allocates. Frames for page tables and the like come from [`memory::alloc_frame`].
//! - A panic prints its message and shuts the domain down with reason 3 ([`shutdown::CRASH`]).
#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]

pub mod calendar;
pub mod clock;

// Everything below needs the machine; the crate's own tests, on the host, cover what is above.

#[cfg(not(test))]
pub mod arch;
#[cfg(not(test))]
pub mod balloon;
#[cfg(not(test))]
pub mod boot;
#[cfg(not(test))]
pub mod console;
#[cfg(not(test))]
pub mod events;
#[cfg(not(test))]
pub mod foreign;
#[cfg(not(test))]
pub mod hypercall;
#[cfg(not(test))]
pub mod memory;
#[cfg(not(test))]
mod panic;
#[cfg(not(test))]
pub mod probe;
#[cfg(not(test))]
pub mod pte;
#[cfg(not(test))]
mod racy;
#[cfg(not(test))]
pub mod shared_info;
#[cfg(not(test))]
pub mod shutdown;
#[cfg(not(test))]
pub mod test;
#[cfg(not(test))]
pub mod time;
#[cfg(not(test))]
pub mod traps;
#[cfg(all(not(test), target_arch = "x86_64"))]
pub mod user;

#[cfg(not(test))]
mod exports {
    pub use crate::arch::{Arch, Word};
    /// `start_info_t` of the architecture the guest is compiled for.
    pub type StartInfo = proxenos_abi::start_info::StartInfo<Arch>;
    /// A frame with its address, as upcalls and traps build it.
    pub use crate::arch::TrapFrame;

    /// Maps the shared page, installs the trap table and the callbacks, and unmasks upcalls.
    ///
    /// # Panics
    /// If the hypervisor refuses any of it.
    pub fn init() {
        crate::shared_info::map().expect("the shared page can be mapped");
        crate::traps::install().expect("the trap table can be installed");
        crate::events::install().expect("the callbacks can be installed");
        crate::events::unmask_upcalls();
    }
}
#[cfg(not(test))]
pub use exports::*;

pub use proxenos_abi as abi;
