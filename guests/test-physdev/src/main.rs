//! `physdev_op` and interrupts of devices, with two of QEMU's "edu" devices: one on the first bus, one behind a bridge.
//! They have a page of registers, an interrupt by level that is raised and taken back by a store, and DMA that
//! interrupts when it is done. (QEMU: docs/specs/edu.txt.)
//!
//! `bus=none` on the command line: the machine has no PCI bus. `give`: domain 0 gives each of two other domains, which
//! are this guest too, one of the devices, and has no more to do with them.
#![no_std]
#![no_main]

mod config;
mod edu;
mod given;
mod lines;

use proxenos_guest::abi::physdev::{PhysdevArgument, PhysdevOp, PhysdevRequest};
use proxenos_guest::abi::{Errno, Hypercall};
use proxenos_guest::arch::hypercall1;
use proxenos_guest::hypercall::check as result_of;
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, boot, check_eq};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    unknown();
    if boot::option("bus") == Some("none") {
        return config::no_bus();
    }
    if !boot::is_initial_domain() {
        return given::run();
    }
    let devices = config::run();
    match boot::option("give") {
        Some(_) => given::give(&devices),
        None => lines::run(&devices),
    }
}

/// Carries an operation out, and leaves what it filled in.
fn call(op: &mut PhysdevOp) -> Result<(), Errno> {
    // SAFETY: the operation is read and written; what it does to a device is the test's to know.
    result_of(unsafe { hypercall1(Hypercall::PhysdevOp.raw() as usize, &raw mut *op as usize) }).map(drop)
}

/// Carries out a request; its argument as it was filled in, whatever came of it.
fn request<T: PhysdevArgument>(argument: T) -> (Result<(), Errno>, T) {
    let mut op = PhysdevOp::new(argument);
    let result = call(&mut op);
    (result, op.argument())
}

fn unknown() {
    section("commands that do not exist");
    for cmd in [6, 7, 0x8000_0000, u32::MAX] {
        let mut op = PhysdevOp { cmd, ..PhysdevOp::irq_unmask_notify() };
        check_eq!(call(&mut op), Err(Errno::EINVAL), "command {cmd:#x}");
    }
    let mut op = PhysdevOp::irq_unmask_notify();
    check_eq!(op.decode().map(|request| request == PhysdevRequest::IrqUnmaskNotify), Ok(true));
    check_eq!(call(&mut op), Ok(()), "nothing is outstanding");
}
