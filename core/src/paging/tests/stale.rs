//! What a CPU still remembers of a two-level guest's tables that have changed since. A guest that changes an entry and
//! does not flush may see the old page for a while, as on hardware; but whether an access *faults* is for its tables to
//! say as they are now, since the fault may be one that only shadows make.

use super::world::*;
use crate::addr::GuestVirt;
use crate::domain::{Arch, Privileges};
use crate::machine::MachineMemory;
use crate::paging::format::bits::{A, D, P, RW, US};
use crate::sim_hw::Mode;

/// The directory's slot that is changed, and the pages below it that tell one table from the other.
const SLOT: usize = 0x301;
const FRESH: usize = 0;
const USED: usize = 1;
const HOLE: usize = 2;
const READ_ONLY: usize = 3;

fn at(slot: usize, page: usize) -> GuestVirt {
    GuestVirt(((slot << 22) + (page << 12)) as u64)
}

/// A world in which the plain domain's directory has swapped one L1 table for another, of which its CPU knows nothing.
/// Each maps [`DATA`] (before) or the page behind it (now), but with what a page's name says in the old one, and used
/// in the new.
fn swapped() -> World {
    let mut world = World::new(&[(Arch::X86_32, PRIVILEGED), (Arch::X86_32, PLAIN)]);
    let guest = world.guest(1);
    let (old, new) = (guest.frames[SPARE], guest.frames[SPARE2]);
    let before = |flags: u64| guest.frames[DATA].addr().0 | P | US | flags;
    let now = |flags: u64| guest.frames[DATA + 1].addr().0 | P | US | A | D | flags;
    let requests = [
        guest.set(old, FRESH, before(RW)),
        guest.set(old, USED, before(RW | A | D)),
        guest.set(old, READ_ONLY, before(A)),
        guest.set(new, FRESH, now(RW)),
        guest.set(new, USED, now(RW)),
        guest.set(new, HOLE, now(RW)),
        guest.set(new, READ_ONLY, now(RW)),
        pin(old, 1),
        pin(new, 1),
        guest.set(guest.frames[TOP], SLOT, guest.entry(SPARE, RW) | US),
    ];
    let words: alloc::vec::Vec<Request> = requests.to_vec();
    assert_eq!(guest.mmu_update(&words).result, OK);
    guest.run();
    // Both pages' translations, and the way to the table.
    assert!(guest.host.hw.guest_load(at(SLOT, USED), Mode::Kernel).is_ok());
    assert!(guest.host.hw.guest_load(at(SLOT, READ_ONLY), Mode::Kernel).is_ok());
    let swap = guest.set(guest.frames[TOP], SLOT, guest.entry(SPARE2, RW) | US);
    assert_eq!(guest.request(swap), OK);
    world.check();
    world.guest(1).run();
    world
}

#[test]
fn a_stale_way_shows_an_old_page_but_makes_no_fault() {
    let world = swapped();
    let hw = &world.host.hw;
    let [old, new] = [DATA, DATA + 1].map(|pfn| world.guests[1].frames[pfn]);
    hw.machine().store64(old.addr(), 0x01d);
    hw.machine().store64(new.addr(), 0x2e3);
    assert_eq!(hw.guest_load(at(SLOT, USED), Mode::Kernel), Ok(0x01d), "nobody has flushed");
    // The old table has not been used there, which its shadow does not show; the new one allows it.
    assert_eq!(hw.guest_load(at(SLOT, FRESH), Mode::Kernel), Ok(0x2e3));
    world.check();
}

#[test]
fn a_stale_entry_is_no_reason_to_refuse_what_the_tables_allow() {
    for mode in [Mode::Kernel, Mode::User] {
        let world = swapped();
        let hw = &world.host.hw;
        let new = world.guests[1].frames[DATA + 1];
        assert_eq!(hw.guest_store(at(SLOT, READ_ONLY), 0x77, mode), Ok(()), "read-only before, writable now");
        assert_eq!(hw.machine().load64(new.addr()), 0x77);
        assert_eq!(hw.guest_store(at(SLOT, HOLE), 0x78, mode), Ok(()), "nothing before, a page now");
        assert_eq!(hw.machine().load64(new.addr()), 0x78);
        world.check();
    }
}

#[test]
fn what_the_tables_refuse_now_is_refused_however_it_was_before() {
    let mut world = swapped();
    let guest = world.guest(1);
    let clear = guest.set(guest.frames[SPARE2], HOLE, 0);
    let read_only = guest.set(guest.frames[SPARE2], READ_ONLY, guest.entry(DATA + 1, 0));
    assert_eq!(guest.mmu_update(&[clear, read_only]).result, OK);
    let hw = &world.host.hw;
    assert!(hw.guest_load(at(SLOT, HOLE), Mode::Kernel).is_err());
    assert!(hw.guest_store(at(SLOT, READ_ONLY), 1, Mode::Kernel).is_err());
    assert!(hw.guest_load(at(SLOT, READ_ONLY), Mode::User).is_err(), "not the user's");
    world.check();
}

/// The same where a directory is read in the place of an L1 table.
#[test]
fn a_stale_view_of_a_directory_makes_no_fault() {
    let mut world = World::new(&[(Arch::X86_32, PRIVILEGED), (Arch::X86_32, Privileges::empty())]);
    let guest = world.guest(1);
    let (old, entry) = (guest.frames[SPARE], guest.entry(DATA, RW));
    let setup = [guest.set(old, 0x200, entry), pin(old, 1), guest.set(guest.frames[TOP], SLOT, guest.entry(SPARE, RW))];
    assert_eq!(guest.mmu_update(&setup).result, OK);
    guest.run();
    assert!(guest.host.hw.guest_load(at(SLOT, 0x200), Mode::Kernel).is_ok());
    // From now on the directory itself is what is read there: L1's own page at its slot.
    let hang = guest.set(guest.frames[TOP], SLOT, guest.entry(TOP, 0));
    assert_eq!(guest.request(hang), OK);
    guest.run();
    let seen = guest.host.hw.guest_load(at(SLOT, 0x300), Mode::Kernel);
    assert_eq!(seen, Ok(guest.host.hw.load64(guest.frames[L1].addr())));
    assert!(guest.host.hw.guest_store(at(SLOT, 0x300), 0, Mode::Kernel).is_err(), "to be read only");
    world.check();
}
