//! Every selector there is, in every segment register, and as the target of far jumps and calls.

use proxenos_guest::abi::{GuestVirt, Selector};
use proxenos_guest::arch::segments::{self, Landed, Through};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, memory, println, probe};

pub fn run() {
    section("every selector");
    let (mut loadable, mut jumps) = (0, 0);
    for selector in (0..=0xffffu16).map(Selector) {
        let loads = [
            segments::load_ds(selector),
            segments::load_es(selector),
            segments::load_fs(selector),
            segments::load_gs(selector),
        ];
        if loads.contains(&true) && !selector.is_null() {
            loadable += 1;
            check!(privilege(selector) > 0, "{selector:x?} can be loaded: {:x?}", segments::rights(selector));
            read_through(selector);
        }
        if segments::load_ss(selector) {
            check_eq!(privilege(selector), 1, "{selector:x?} can be loaded into ss");
        }
        match segments::rights(selector) {
            // Bit 21 of the rights is L: code that would run in 64-bit mode.
            Some(rights) if rights & 0x1800 == 0x1800 && rights & 1 << 21 != 0 => {
                check!(!reachable(rights, selector), "{selector:x?} leads to 64-bit code: {rights:x}");
            }
            _ => {}
        }
        let _ = segments::limit(selector);
        for landed in [segments::jump_to(selector), segments::call_to(selector)] {
            check!(landed != Landed::Code64, "{selector:x?} leads to 64-bit code");
            jumps += u32::from(landed == Landed::Code32);
        }
    }
    check!(loadable > 0 && jumps > 0, "some selectors are ours");
    println!("   {loadable} selectors can be loaded, {jumps} jumps and calls led somewhere");
}

/// The descriptor's privilege level, 0 where `lar` shows none.
fn privilege(selector: Selector) -> u32 {
    segments::rights(selector).map_or(0, |rights| rights >> 13 & 3)
}

/// Whether code with these rights can be jumped to from ring 1: it is present and either of ring 1 or conforming and of
/// a more privileged one (Intel SDM vol. 3, §5.8.1).
fn reachable(rights: u32, selector: Selector) -> bool {
    let (dpl, present, conforming) = (rights >> 13 & 3, rights & 1 << 15 != 0, rights & 1 << 10 != 0);
    present && if conforming { dpl <= 1 } else { dpl == 1 && selector.rpl() <= 1 }
}

/// What can be read through a selector is what can be read without: the same linear addresses, whatever its base.
fn read_through(selector: Selector) {
    let ours = memory::virt_base();
    for offset in [ours.raw() as u32, 0, 0x8000_0000, 0xfd00_0000, 0xff00_0000, 0xffff_f000] {
        if let Through::Value(value) = segments::load_through(selector, offset) {
            let direct = probe::load(GuestVirt(offset.into()));
            check_eq!(Some(value), direct, "{selector:x?} at {offset:#x}");
        }
    }
}
