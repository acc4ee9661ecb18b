//! Updates of page tables: what is allowed, what is refused, and what it does (`xen.h`, "MMU-UPDATE REQUESTS").
#![no_std]
#![no_main]

mod bits;
mod ldt;
mod mappings;
mod tables;

use proxenos_guest::abi::{Errno, GuestVirt};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{StartInfo, Word, abi::mmu::UpdateVaFlags, check, check_eq, probe};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    mappings::run();
    bits::run();
    tables::run();
    ldt::run();
    mappings::all_of_memory();
}

/// A fresh frame.
pub fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

/// Maps something at a page that is the test's own, with its translation flushed.
pub fn map(at: GuestVirt, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests map pages of their own, to which no reference exists.
    unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::INVLPG) }
}

/// Maps a frame at its usual address with these flags.
pub fn remap(frame: Frame, flags: PteFlags) -> Result<(), Errno> {
    map(frame.virt(), Pte::new(frame.mfn(), flags))
}

/// Writes to a page of the test's own, or tells that it cannot be written.
pub fn store(at: GuestVirt, value: Word) -> bool {
    // SAFETY: the tests write to pages of their own.
    unsafe { probe::store(at, value) }
}

/// Checks that a page can be read but not written, and that trying to is a page fault.
#[track_caller]
pub fn check_read_only(at: GuestVirt, what: &str) {
    check!(probe::is_readable(at), "{what}: readable");
    check!(!probe::is_writable(at), "{what}: not writable");
    check_eq!(traps::last_trap().vector, vector::PAGE_FAULT, "{what}");
}
