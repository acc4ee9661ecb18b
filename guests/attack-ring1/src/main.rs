//! Attacks from ring 1. To the processor it is supervisor mode; what keeps the kernel of a 32-bit guest out of the
//! hypervisor is that it can form 32-bit addresses only. So it must never get to run 64-bit code, load a segment or
//! gate that leads elsewhere than it seems, or find anything of the hypervisor's below 4 GiB.
#![no_std]
#![no_main]

mod addresses;
mod descriptors;
mod entries;
mod selectors;

use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, check, check_eq, hypercall, memory, probe};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    selectors::run();
    descriptors::run();
    selectors::run();
    entries::run();
    addresses::run();
    section("still alive");
    check_eq!(hypercall::xen_version(), Ok(0x0002_0000));
    check!(probe::is_writable(memory::boot_stack_end()));
}
