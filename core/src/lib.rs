//! The mechanisms of Proxenos that need no machine instruction of their own.
//!
//! Everything here sees hardware only through the traits of [`machine`], so the very code that runs in ring 0 also
//! runs in host unit tests and property tests. It contains no `unsafe` and knows no boot protocol.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod addr;
pub mod assist;
mod atomics;
pub mod audit;
pub mod bounce;
pub mod builder;
pub mod call_gate;
pub mod code;
pub mod console_keys;
pub mod control;
pub mod debugreg;
pub mod descriptor;
pub mod dom0_op;
pub mod domain;
pub mod event;
pub mod far_call;
pub mod frame;
pub mod frame_alloc;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod grant;
pub mod host;
pub mod hypercall;
pub mod life;
pub mod machine;
pub mod mmu;
pub mod others;
pub mod paging;
pub mod pci;
pub mod personality;
pub mod physdev;
pub mod pirq;
pub mod ports;
pub mod preempt;
pub mod reservation;
pub mod run_state;
pub mod sched;
pub mod segments;
pub mod shootdown;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[cfg(any(test, feature = "sim"))]
pub mod sim_hw;
pub mod speculation;
pub mod store;
pub mod sync;
pub mod teardown;
pub mod timekeeping;
pub mod trace;
pub mod tsc_sync;
pub mod user_mode;
pub mod vcpu;
pub mod virq;

/// Says that the branch it stands in is rarely taken, or is to cost the other nothing.
#[cold]
const fn rarely() {}
