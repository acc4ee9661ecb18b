//! Attacks by returns: flags that a guest may not have, stacks that cannot be written or are not the guest's, single
//! steps across the hypervisor, virtual-8086 mode. The hypervisor lives; the guest does where it has done nothing that
//! must end it.
//!
//! `death=NAME` on the command line chooses an attack that must end the guest, each in a run of its own.
#![no_std]
#![no_main]

mod deaths;
mod entry;
mod flags;
mod stacks;
mod steps;
mod vm86;

use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, boot, check_eq, hypercall};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    if let Some(name) = boot::option("death") {
        deaths::run(name);
    }
    flags::run();
    steps::run();
    stacks::run();
    section("still alive");
    check_eq!(hypercall::xen_version(), Ok(0x0002_0000));
}
