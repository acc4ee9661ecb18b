//! Writable page tables (`VMASST_TYPE_writable_pagetables`): the guest writes to its own L1 tables as if they were
//! memory. What it writes must be what it reads, and what its pages are, at every moment that it can tell.
#![no_std]
#![no_main]

mod cost;
mod forms;
mod moments;

use proxenos_guest::abi::Errno;
use proxenos_guest::abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_guest::memory::{self, Frame, Range, tables};
use proxenos_guest::pte::Pte;
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, arch, boot, check, check_eq, hypercall, probe};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    if boot::option("cost").is_some() {
        return cost::run();
    }
    asking();
    forms::run();
    moments::run();
}

/// A fresh frame.
pub fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

/// Turns writable page tables on or off.
pub fn assist(command: VmAssistCommand) {
    check_eq!(hypercall::vm_assist(command, VmAssistType::WritablePagetables), Ok(()), "{command:?}");
}

fn asking() {
    section("vm_assist");
    let raw = |command: usize, kind: usize| {
        // SAFETY: changes no memory.
        hypercall::check(unsafe { arch::hypercall2(21, command, kind) })
    };
    for kind in 0..3 {
        check_eq!(raw(0, kind), Ok(0), "on, {kind}");
        check_eq!(raw(0, kind), Ok(0), "again");
        check_eq!(raw(1, kind), Ok(0), "off, {kind}");
        check_eq!(raw(1, kind), Ok(0), "again");
        check_eq!(raw(2, kind), Err(Errno::ENOSYS), "command 2");
    }
    check_eq!(raw(0, 3), Err(Errno::EINVAL), "type 3");
    check_eq!(raw(2, 3), Err(Errno::EINVAL), "the type is looked at first");
    let range = Range::new(0);
    check!(!range.write(0, Pte::NONE), "off: no table can be written to");
    assist(VmAssistCommand::Enable);
    check!(range.write(0, Pte::NONE), "on");
    check!(!probe::is_writable(memory::virt_of(memory::pfn_of_mfn(tables::root()).expect("ours"))), "not the top one");
    assist(VmAssistCommand::Disable);
    check!(!range.write(0, Pte::NONE), "off again");
    assist(VmAssistCommand::Enable);
}
