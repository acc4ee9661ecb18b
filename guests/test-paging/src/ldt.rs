//! Pages of the LDT: what they may be beside, and until when.

use crate::{frame, map, remap, store};
use proxenos_guest::abi::{Errno, GuestVirt};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq};

pub fn run() {
    section("pages of the LDT");
    let (page, other) = (frame(), frame());
    for frame in [page, other] {
        check_eq!(remap(frame, PteFlags::KERNEL_RO), Ok(()));
    }
    check_eq!(set(page.virt(), 512), Ok(()));
    is_descriptors(page, "taken when the LDT is set");
    check_eq!(map(page.virt(), Pte::NONE), Ok(()));
    check_eq!(remap(page, PteFlags::KERNEL_RW), Ok(()), "unmapped, it is free");
    check!(store(page.virt(), 0));
    check_eq!(remap(page, PteFlags::KERNEL_RO), Ok(()));

    // Another page in its place, by one change.
    check_eq!(set(page.virt(), 511), Ok(()));
    is_descriptors(page, "taken again");
    check_eq!(map(page.virt(), Pte::new(other.mfn(), PteFlags::KERNEL_RO)), Ok(()));
    is_descriptors(other, "the page that is there now");
    let alias = frame();
    check_eq!(map(alias.virt(), Pte::new(page.mfn(), PteFlags::KERNEL_RW)), Ok(()), "the one that was there");
    check_eq!(remap(alias, PteFlags::KERNEL_RW), Ok(()));

    check_eq!(set(page.virt(), 0), Ok(()));
    for frame in [page, other] {
        check_eq!(remap(frame, PteFlags::KERNEL_RW), Ok(()), "no LDT, no descriptors");
    }
}

fn set(at: GuestVirt, entries: u32) -> Result<(), Errno> {
    // SAFETY: no selector of the LDT is in use.
    unsafe { memory::set_ldt(at, entries) }
}

fn is_descriptors(page: Frame, what: &str) {
    check_eq!(remap(page, PteFlags::KERNEL_RW), Err(Errno::EINVAL), "{what}: not to be written");
    check_eq!(memory::pin(1, page.mfn()), Err(Errno::EINVAL), "{what}: no table");
}
