//! The guest interface of Xen 2.0: every type and every number of its public headers, for both architectures.
//!
//! Nothing here acts. The crate says how the bytes lie that a guest and its hypervisor exchange, and names the
//! numbers in them; it holds no unsafe code, allocates nothing and depends on no instruction of the machine it is
//! compiled for.
//!
//! Both layouts exist in every build. A type whose layout depends on the guest's architecture takes a [`GuestArch`]
//! parameter ([`X86_32`] or [`X86_64`]); a type without one is laid out alike for both. All structures are packed, as
//! in the headers, and may be read from and written to raw bytes through `zerocopy`'s traits. Sizes and offsets are
//! asserted at compile time beside each type, and checked by the crate's tests against what a C compiler makes of the
//! headers.
//!
//! The modules follow the headers:
//!
//! | module | header |
//! |---|---|
//! | [`hypercall`], [`mmu`], [`start_info`], [`shared_info`], [`ids`] | `xen.h` |
//! | [`arch`], [`context`], [`x86_32`], [`x86_64`] | `arch-x86_32.h`, `arch-x86_64.h` |
//! | [`event_channel`] | `event_channel.h` |
//! | [`grant_table`] | `grant_table.h` |
//! | [`dom0_ops`], [`sched_ctl`] | `dom0_ops.h`, `sched_ctl.h` |
//! | [`physdev`] | `physdev.h` |
//! | [`trace`] | `trace.h` |
//! | [`io`] | `io/domain_controller.h`, `io/blkif.h`, `io/netif.h` |
//! | [`frames`] | none: the frames on a kernel's stack when a trap or event arrives |
//! | [`errno`] | none: the error numbers that calls return negated |
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[macro_use]
mod macros;

pub mod arch;
pub mod context;
pub mod dom0_ops;
pub mod errno;
pub mod event_channel;
pub mod frames;
pub mod grant_table;
pub mod hypercall;
pub mod ids;
pub mod io;
pub mod mmu;
pub mod payload;
pub mod physdev;
pub mod sched_ctl;
pub mod shared_info;
pub mod start_info;
pub mod trace;
pub mod x86_32;
pub mod x86_64;

pub use arch::{AbiType, Arch, GuestArch, GuestWord, Padded, Pod, X86_32, X86_64};
pub use errno::Errno;
pub use hypercall::Hypercall;
pub use ids::{DomId, GrantRef, GuestVirt, MachineAddr, Mfn, Pfn, Pirq, Port, Selector, Virq};
pub use ids::{PAGE_SHIFT, PAGE_SIZE};
pub use zerocopy;
