//! What becomes of a guest whose state cannot be loaded: its failsafe callback is entered, with the frame that the
//! interface gives it, and all goes on; or, where that is what cannot be entered, the guest is stopped, with a record.
//!
//! Guests return by `iret` themselves, so the hypervisor loads a bad selector only where it enters the kernel (a
//! handler's or a callback's code segment), and where a segment was taken away under the running code.
//!
//! `death=NAME` on the command line chooses an end instead; the run then expects that the hypervisor says why.
#![no_std]
#![no_main]

mod deaths;
mod entries;
mod events;
mod ldt;
mod raise;
mod revoked;
#[cfg(target_arch = "x86")]
mod rings;
mod selectors;
mod tables;

use proxenos_guest::{StartInfo, boot};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    if let Some(name) = boot::option("death") {
        deaths::run(name);
    }
    proxenos_guest::init();
    entries::install_failsafe();
    let tables = tables::Tables::install();
    selectors::run(&tables);
    ldt::run(&tables);
    events::run(&tables);
    revoked::run(&tables);
    #[cfg(target_arch = "x86")]
    rings::run(&tables);
}
