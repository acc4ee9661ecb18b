//! Every page of the 4 GiB: read, then written. What can be read is mapped by our own page tables or is the
//! machine-to-physical table; what can be written is mapped writable by our own page tables.

use proxenos_guest::abi::{GuestArch, GuestVirt};
use proxenos_guest::memory::tables;
use proxenos_guest::pte::Pte;
use proxenos_guest::test::section;
use proxenos_guest::{Arch, check, check_eq, memory, println, probe};

const PAGE: u64 = 4096;
/// Bytes of the machine-to-physical table: a word for each of 2^20 frames.
const TABLE_SIZE: u64 = 4 << 20;

pub fn run() {
    section("every address");
    let (mut readable, mut writable) = (0u32, 0u32);
    for at in (0..1u64 << 32).step_by(PAGE as usize).map(GuestVirt) {
        let (may_read, may_write) = allowed(at);
        // Not the page's first word only: somewhere in the page.
        let word = GuestVirt(at.raw() + (at.raw() >> 12 & 0x3ff) * 4);
        let (reads, writes) = (probe::is_readable(word), probe::is_writable(word));
        check_eq!((reads, writes), (may_read, may_write), "{at:#x}: can be read, can be written");
        readable += u32::from(reads);
        writable += u32::from(writes);
    }
    check!(writable > 0 && readable > writable, "{readable} and {writable}");
    println!("   {readable} pages can be read, {writable} can be written");
    edges();
}

/// Whether a page may be read and written.
fn allowed(at: GuestVirt) -> (bool, bool) {
    if at.raw() >= Arch::HYPERVISOR_VIRT_START {
        return (at.raw() < Arch::MACHINE_TO_PHYS + TABLE_SIZE, false);
    }
    let upper = tables::entry_at(at, 2).map_or(Pte::NONE, |(_, entry)| entry);
    let lower = if upper.is_present() { memory::pte_of(at).unwrap_or(Pte::NONE) } else { Pte::NONE };
    (lower.is_present(), lower.is_present() && lower.is_writable() && upper.is_writable())
}

/// Accesses across the edges of what is ours, and around the end of the address space.
fn edges() {
    section("edges");
    let table_end = Arch::MACHINE_TO_PHYS + TABLE_SIZE;
    for at in [Arch::HYPERVISOR_VIRT_START - 2, table_end - 2, 0xffff_fffd, 0xffff_ffff] {
        check!(!probe::is_readable(GuestVirt(at)), "{at:#x}");
        check!(!probe::is_writable(GuestVirt(at)), "{at:#x}");
    }
}
