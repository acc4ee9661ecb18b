//! Guests that write to their own page tables.

use super::world::*;
use crate::addr::GuestVirt;
use crate::assist::{self, Fetched, Outcome};
use crate::domain::{Arch, RunState};
use crate::frame::FrameType;
use crate::machine::MachineMemory;
use crate::paging::Pager;
use crate::paging::format::bits::{self, D, G, P, RW};
use crate::paging::shadow::Access;
use crate::paging::writable::{PATIENCE, TableFault};
use crate::sim_hw::{Fault, Mode};
use crate::store::{CodeWidth, Registers, decode};
use alloc::vec::Vec;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, Hypercall};

/// Where [`table`] hangs its table: pages from this one on.
const WINDOW: usize = 1024;

#[track_caller]
fn both(test: impl Fn(&mut World)) {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        test(&mut world);
        world.check();
    }
}

impl World {
    /// Makes a page of domain 1's an L1 table that its L2 table leads to in a slot, and turns writable tables on.
    pub(super) fn hang(&mut self, page: usize, slot: usize) {
        let guest = &mut self.guests[1];
        assert_eq!(guest.assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
        let above = guest.frames[if guest.top_level() == 2 { TOP } else { 4 }];
        let entry = guest.entry(page, RW) | bits::US;
        let request = guest.set(above, l2_slot(guest, slot), entry);
        assert_eq!(guest.request(request), OK);
        self.check();
    }

    /// Writes entries that map the data pages, one after the other, from a slot on.
    fn fill(&self, page: usize, from: usize, count: usize) {
        let guest = &self.guests[1];
        for slot in from..from + count {
            assert_eq!(guest.write(page, slot, guest.entry(DATA + slot % 4, RW | D)), Ok(()));
            self.check();
        }
    }

    /// Hangs up the first spare page and writes to it until it is open.
    fn open(&mut self) {
        self.hang(SPARE, 1);
        self.fill(SPARE, 0, PATIENCE as usize + 2);
        assert_eq!(self.guests[1].open_tables(), 1);
    }

    fn kind(&self, page: usize) -> (FrameType, u32) {
        self.guests[1].type_of(self.guests[1].frames[page])
    }

    /// Where an entry of a table at a page is read.
    fn entry_at(&self, page: usize, slot: usize) -> u64 {
        let guest = &self.guests[1];
        let at = crate::addr::MachineAddr(guest.frames[page].addr().0 + slot as u64 * guest.width());
        if guest.width() == 4 { self.host.hw.load32(at).into() } else { self.host.hw.load64(at) }
    }

    fn is_dead(&self) -> bool {
        self.guests[1].dom.run_state().contains(RunState::CRASHED)
    }
}

/// The slot of the L2 table for the region's `slot`th L1 table.
fn l2_slot(guest: &Guest, slot: usize) -> usize {
    if guest.top_level() == 2 { 0x300 + slot } else { slot }
}

/// The first page that the table in a slot maps.
fn first_page(guest: &Guest, slot: usize) -> usize {
    slot * if guest.top_level() == 2 { 1024 } else { 512 }
}

#[test]
fn assistance_is_asked_for_as_the_interface_says() {
    both(|world| {
        let guest = world.guest(1);
        for kind in 0..3 {
            for command in 0..2 {
                assert_eq!(guest.call(Hypercall::VmAssist, [command, kind, 0, 0, 0, 0]), OK);
            }
            assert_eq!(guest.call(Hypercall::VmAssist, [2, kind, 0, 0, 0, 0]), error(Errno::ENOSYS));
        }
        for command in 0..3 {
            assert_eq!(guest.call(Hypercall::VmAssist, [command, 3, 0, 0, 0, 0]), error(Errno::EINVAL));
        }
    });
}

#[test]
fn without_assistance_a_table_cannot_be_written_to() {
    both(|world| {
        assert_eq!(world.guest(1).write(L1, 30, 0), Err(Fault));
        world.hang(SPARE, 1);
        assert_eq!(world.guest(1).write(SPARE, 0, 0), Ok(()));
        assert_eq!(world.guest(1).assist(VmAssistCommand::Disable, VmAssistType::WritablePagetables), OK);
        assert_eq!(world.guest(1).write(SPARE, 0, 0), Err(Fault));
        for table in [TOP, SECOND_TOP] {
            assert_eq!(world.guest(1).write(table, 5, 0), Err(Fault), "nor with it, if it is no L1 table");
        }
    });
}

#[test]
fn a_single_store_is_an_update() {
    both(|world| {
        world.hang(SPARE, 1);
        let guest = world.guest(1);
        let entry = guest.entry(DATA, RW | D);
        assert_eq!(guest.write(SPARE, 3, entry), Ok(()));
        let page = first_page(guest, 1) + 3;
        assert_eq!(guest.host.hw.guest_store(guest.va(page), 77, Mode::Kernel), Ok(()));
        assert_eq!(guest.host.hw.guest_load(guest.va(DATA), Mode::Kernel), Ok(77));
        assert_eq!(guest.open_tables(), 0);
        assert_eq!(world.kind(DATA), (FrameType::Writable, 2));
        assert_eq!(world.guest(1).write(SPARE, 3, entry & !RW), Ok(()));
        assert_eq!(world.kind(DATA), (FrameType::Writable, 1));
        assert_eq!(world.guest(1).write(SPARE, 3, 0), Ok(()));
        world.check();
    });
}

#[test]
fn a_store_of_a_part_merges_with_the_rest() {
    both(|world| {
        world.hang(SPARE, 1);
        let guest = world.guest(1);
        let entry = guest.entry(DATA, RW | D) & !P;
        assert_eq!(guest.write(SPARE, 3, entry), Ok(()));
        let mut registers = Registers { flags: 0x8d5, ..Registers::default() };
        // or byte [...], 1: the last, because then the entry means something.
        let at = guest.va(SPARE).offset(3 * guest.width());
        assert_eq!(guest.execute(at, &[0x80, 0x08, 0x01], &mut registers), Ok(()));
        assert_eq!((registers.ip, registers.flags & 0x8d1), (3, 0), "neither zero nor negative, no carry");
        assert_eq!(world.kind(DATA), (FrameType::Writable, 2));
        assert_eq!(world.entry_at(SPARE, 3), entry | P);
        // Across two entries it is none of ours: the table is opened for it.
        let guest = world.guest(1);
        assert_eq!(guest.execute(at.offset(guest.width() - 2), &[0x89, 0x08], &mut registers), Ok(()));
        assert_eq!(guest.open_tables(), 1);
        world.check();
    });
}

#[test]
fn read_and_change_is_one_step() {
    both(|world| {
        world.hang(SPARE, 1);
        let guest = world.guest(1);
        let wide: &[u8] = if guest.width() == 8 { &[0x48] } else { &[] };
        let run = |code: &[u8], rax: u64, rcx: u64| {
            let mut registers = Registers::default();
            (registers.general[0], registers.general[1]) = (rax, rcx);
            let code: Vec<u8> = [&[0xf0], wide, code].concat();
            assert_eq!(guest.execute(guest.va(SPARE), &code, &mut registers), Ok(()));
            assert_eq!(registers.ip, code.len() as u64);
            drop(Pager::new(&*guest.host, &guest.dom).lock());
            (registers.general[0], registers.general[1], registers.flags & 0x41)
        };
        let (one, two) = (guest.entry(DATA, RW | D), guest.entry(DATA + 1, RW | D));
        assert_eq!(run(&[0x87, 0x08], 0, one), (0, 0, 0), "xchg");
        assert_eq!(run(&[0x0f, 0xb1, 0x08], two, two).0, one, "cmpxchg of something else");
        assert_eq!(run(&[0x0f, 0xb1, 0x08], one, two), (one, two, 0x40), "cmpxchg");
        assert_eq!(run(&[0x0f, 0xba, 0x30, 1], 0, 0).2, 1, "btr of RW");
        assert_eq!((world.kind(DATA).1, world.kind(DATA + 1).1), (1, 1));
        assert_eq!(world.entry_at(SPARE, 0), two & !RW);
    });
}

#[test]
fn a_table_that_is_written_to_again_and_again_is_opened() {
    both(|world| {
        world.hang(SPARE, 1);
        world.fill(SPARE, 0, PATIENCE as usize);
        assert_eq!(world.guest(1).open_tables(), 0);
        let before = world.kind(DATA).1 + world.kind(DATA + 1).1;
        world.fill(SPARE, PATIENCE as usize, 64);
        assert_eq!(world.guest(1).open_tables(), 1);
        assert_eq!(world.kind(DATA).1 + world.kind(DATA + 1).1, before + 1 - 1, "nothing is referred to yet");
        // The first touch of what it maps closes it.
        let page = first_page(world.guest(1), 1) + 9;
        let guest = world.guest(1);
        assert_eq!(guest.host.hw.guest_store(guest.va(page), 5, Mode::Kernel), Ok(()));
        assert_eq!(guest.open_tables(), 0);
        assert_eq!(guest.host.hw.guest_load(guest.va(DATA + 1), Mode::Kernel), Ok(5));
        assert_eq!(world.kind(DATA).1, 1 + 17);
        // One more store is one that is carried out.
        world.fill(SPARE, 100, 1);
        assert_eq!(world.guest(1).open_tables(), 0);
    });
}

#[test]
fn the_way_to_a_table_that_is_opened_is_forgotten() {
    both(|world| {
        world.hang(SPARE, 1);
        world.fill(SPARE, 0, 1);
        let page = first_page(world.guest(1), 1);
        // The CPU keeps the tables on the way, and no request comes between.
        let guest = world.guest(1);
        assert!(guest.host.hw.guest_load(guest.va(page), Mode::Kernel).is_ok());
        world.fill(SPARE, 1, 20);
        assert_eq!(world.guest(1).open_tables(), 1);
        // A page whose entry the guest has just written is not found by the old way.
        let guest = world.guest(1);
        assert!(guest.host.hw.guest_load(guest.va(page + 15), Mode::Kernel).is_ok());
        assert_eq!(guest.open_tables(), 0);
    });
}

#[test]
fn faults_of_its_own_keep_a_guest_from_opening() {
    both(|world| {
        world.hang(SPARE, 1);
        for slot in 0..20 {
            world.fill(SPARE, slot, 1);
            let guest = world.guest(1);
            assert_eq!(guest.host.hw.guest_load(guest.va(WINDOW + 500), Mode::Kernel), Err(Fault));
            assert_eq!(guest.open_tables(), 0, "a page at a time");
        }
    });
}

#[test]
fn every_moment_that_needs_a_table_closes_it() {
    type Action = (&'static str, fn(&mut World));
    let actions: &[Action] = &[
        ("a request", |w| {
            let _ = w.guest(1).mmu_update(&[]);
        }),
        ("a flush", |w| {
            let _ = w.guest(1).request(extended(MmuExtCommand::TlbFlush, 0, 0));
        }),
        ("a flush of a page", |w| {
            let _ = w.guest(1).request(extended(MmuExtCommand::Invlpg, 0, 0));
        }),
        ("a mapping", |w| {
            let _ = w.guest(1).remap(DATA, 0, 0);
        }),
        ("a pin", |w| {
            let frame = w.guest(1).frames[SPARE];
            let _ = w.guest(1).request(pin(frame, 1));
        }),
        ("an unpin", |w| {
            let frame = w.guest(1).frames[SPARE];
            let _ = w.guest(1).request(unpin(frame));
        }),
        ("a new base", |w| {
            let frame = w.guest(1).frames[SECOND_TOP];
            let _ = w.guest(1).request(new_base(frame));
        }),
        ("a change of the table above", |w| {
            let guest = w.guest(1);
            let above = guest.frames[if guest.top_level() == 2 { TOP } else { 4 }];
            let request = guest.set(above, l2_slot(guest, 1), 0);
            assert_eq!(guest.request(request), OK);
        }),
        // What the hypervisor does where another domain's turn may come.
        ("the end of a turn", |w| {
            let guest = w.guest(1);
            drop(Pager::new(&guest.host, &guest.dom).lock());
        }),
        ("turning it off", |w| {
            let _ = w.guest(1).assist(VmAssistCommand::Disable, VmAssistType::WritablePagetables);
        }),
        ("a descriptor table", |w| {
            let list = w.guest(1).va(ARGS).0;
            let _ = w.guest(1).call(Hypercall::SetGdt, [list, 300, 0, 0, 0, 0]);
        }),
        ("a fault elsewhere", |w| {
            let guest = w.guest(1);
            assert_eq!(guest.host.hw.guest_load(guest.va(WINDOW * 3), Mode::Kernel), Err(Fault));
        }),
        ("another domain's request", |w| {
            let frame = w.guest(1).frames[SPARE];
            let id = w.guest(1).dom.id;
            let done = w.guest(0).mmu_update(&[foreign(id), pin(frame, 1)]);
            assert_eq!(done.result, OK);
        }),
    ];
    for (name, action) in actions {
        both(|world| {
            world.open();
            let references = world.kind(DATA).1;
            action(world);
            assert_eq!(world.guest(1).open_tables(), 0, "{name}");
            assert!(!world.is_dead());
            world.check();
            let gone = *name == "a change of the table above";
            assert!(gone || world.kind(DATA).1 + world.kind(DATA + 1).1 > references, "{name}: checked");
            if !gone && world.kind(SPARE).0 == FrameType::L1 && *name != "turning it off" {
                // The window is gone from every TLB: the next store faults, and is carried out or opens again.
                world.fill(SPARE, 40, 1);
            }
        });
    }
}

#[test]
fn two_tables_are_open_at_a_time() {
    both(|world| {
        for (page, slot) in [(SPARE, 1), (SPARE2, 2)] {
            world.hang(page, slot);
        }
        // As a fork does: from one to the other.
        for slot in 0..40 {
            world.fill(SPARE, slot, 1);
            world.fill(SPARE2, slot, 1);
        }
        assert_eq!(world.guest(1).open_tables(), 2);
        // A third takes the place of the one that has been open longest.
        let read_only = world.guest(1).entry(DATA + 6, 0);
        assert_eq!(world.guest(1).remap(DATA + 6, read_only, 1), OK);
        world.hang(DATA + 6, 3);
        for page in [SPARE, SPARE2, DATA + 6] {
            world.fill(page, 50, 10);
        }
        assert_eq!(world.guest(1).open_tables(), 2);
        let open: Vec<_> =
            world.guest(1).dom.paging.lock().writable.windows().map(|(window, _)| window.table).collect();
        assert!(!open.contains(&world.guest(1).frames[SPARE]));
        world.check();
    });
}

#[test]
fn a_bad_entry_ends_the_domain() {
    both(|world| {
        world.hang(SPARE, 1);
        let bad = world.guest(1).entry(TOP, RW);
        assert_eq!(world.guest(1).write(SPARE, 2, bad), Ok(()), "there is nobody to tell");
        assert!(world.is_dead());
        let refused = world.guest(1).dom.paging.lock().writable.refused.expect("it is known why");
        assert_eq!((refused.table, refused.index, refused.entry.0), (world.guest(1).frames[SPARE], 2, bad));
        assert_eq!(world.entry_at(SPARE, 2), 0, "and it is not there");
    });
}

#[test]
fn a_bad_entry_in_an_open_table_ends_the_domain() {
    for bad in ["a table", "a frame of another", "a bit", "itself", "nothing"] {
        both(|world| {
            world.open();
            let guest = &world.guests[1];
            let bad = match bad {
                "a table" => guest.entry(TOP, RW),
                "a frame of another" => world.guests[0].entry(DATA, 0),
                "a bit" => guest.entry(DATA, RW) | G,
                "itself" => guest.entry(SPARE, RW),
                _ => 0xfff_0000_0fff & !P,
            };
            let slots = [7, 30, 31];
            for slot in slots {
                assert_eq!(guest.write(SPARE, slot, bad), Ok(()));
            }
            assert_eq!(guest.write(SPARE, 20, guest.entry(DATA, RW | D)), Ok(()), "before it: stays");
            assert_eq!(guest.write(SPARE, 40, guest.entry(DATA, RW | D)), Ok(()), "behind it: taken back");
            world.check();
            let _ = world.guest(1).mmu_update(&[]);
            assert_eq!(world.is_dead(), bad & P != 0);
            world.check();
            if world.is_dead() {
                assert_eq!(world.guest(1).dom.paging.lock().writable.refused.map(|r| r.index), Some(7));
                assert_eq!((world.entry_at(SPARE, 7), world.entry_at(SPARE, 30), world.entry_at(SPARE, 40)), (0, 0, 0));
            }
        });
    }
}

#[test]
fn a_table_in_two_slots_is_opened_only_if_the_cpu_does_not_walk_it() {
    both(|world| {
        world.hang(SPARE, 1);
        world.hang(SPARE, 2);
        world.fill(SPARE, 0, 100);
        let shadowed = world.guest(1).top_level() == 2;
        assert_eq!(world.guest(1).open_tables(), usize::from(shadowed));
        // Both show what was written.
        for slot in [1, 2] {
            let guest = world.guest(1);
            let page = first_page(guest, slot) + 5;
            assert_eq!(guest.host.hw.guest_store(guest.va(page), slot as u64, Mode::Kernel), Ok(()));
            assert_eq!(guest.host.hw.guest_load(guest.va(DATA + 1), Mode::Kernel), Ok(slot as u64));
        }
    });
}

#[test]
fn a_table_that_is_only_pinned_is_opened() {
    both(|world| {
        let guest = world.guest(1);
        assert_eq!(guest.assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
        let frame = guest.frames[SPARE];
        assert_eq!(guest.request(pin(frame, 1)), OK);
        world.fill(SPARE, 0, 50);
        assert_eq!(world.guest(1).open_tables(), 1);
        assert_eq!(world.guest(1).request(unpin(frame)), OK, "checked first, then all given back");
        assert_eq!(world.kind(DATA), (FrameType::Writable, 1));
    });
}

#[test]
fn a_table_that_maps_itself_is_never_opened() {
    both(|world| {
        assert_eq!(world.guest(1).assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
        world.fill(L1, 40, 60);
        assert_eq!(world.guest(1).open_tables(), 0);
        let guest = world.guest(1);
        assert_eq!(
            guest.host.hw.guest_load(guest.va(50), Mode::Kernel),
            guest.host.hw.guest_load(guest.va(DATA + 2), Mode::Kernel)
        );
    });
}

#[test]
fn a_table_and_what_maps_it_are_not_both_open() {
    both(|world| {
        world.hang(SPARE, 1);
        // The second is mapped by the first alone.
        let guest = world.guest(1);
        assert_eq!(guest.write(SPARE, 0, guest.entry(SPARE2, 0)), Ok(()));
        world.hang(SPARE2, 2);
        let through = first_page(world.guest(1), 1);
        world.fill(through, 0, 20);
        assert_eq!(world.guest(1).open_tables(), 1);
        world.fill(SPARE, 1, 20);
        let guest = world.guest(1);
        assert_eq!(guest.open_tables(), 1, "the other is closed");
        assert_eq!(guest.write(through, 29, 0), Ok(()));
        let open = guest.dom.paging.lock().writable.windows().any(|(window, _)| window.table == guest.frames[SPARE]);
        assert!(!open, "what an open table maps is not reached through it");
        world.fill(through, 30, 20);
        assert_eq!(world.guest(1).write(SPARE, 0, 0), Ok(()), "the window is taken away by a store");
        world.check();
        assert_eq!(world.guest(1).write(through, 0, 0), Err(Fault));
    });
}

#[test]
fn what_cannot_be_decoded_opens_a_table_at_once() {
    both(|world| {
        world.hang(SPARE, 1);
        let guest = &world.guests[1];
        guest.run();
        let (at, access) = (guest.va(SPARE), Access { write: true, user: guest.top_level() == 4 });
        let mut registers = Registers { ip: 0x1234, ..Registers::default() };
        let fault = || assist::look(&guest.host, &guest.dom, at, access);
        let TableFault::Store(written) = fault() else { panic!("a store") };
        let outcome = assist::store(&guest.host, &guest.dom, &written, &mut registers, |_| None);
        assert_eq!((outcome, guest.open_tables()), (Outcome::Resolved, 1));
        // If a fault closes it again before the instruction is done, it is not helped a second time.
        assert_eq!(assist::look(&guest.host, &guest.dom, guest.va(WINDOW + 7), access), TableFault::TryAgain);
        let TableFault::Store(written) = fault() else { panic!("a store") };
        let outcome = assist::store(&guest.host, &guest.dom, &written, &mut registers, |_| None);
        assert_eq!((outcome, guest.open_tables()), (Outcome::Other, 0));
        // A string instruction goes on step by step then.
        let store = decode(&[0xf3, 0xab], CodeWidth::Bits32).expect("rep stos");
        registers.general[1] = 5;
        for (left, opened) in [(5, 1), (4, 0)] {
            let TableFault::Store(written) = fault() else { panic!("a store") };
            let fetched = Fetched { store, read: 0 };
            let outcome = assist::store(&guest.host, &guest.dom, &written, &mut registers, |_| Some(fetched));
            assert_eq!((outcome, guest.open_tables(), registers.general[1]), (Outcome::Resolved, opened, left));
            assert_eq!(registers.ip, 0x1234);
            let _ = assist::look(&guest.host, &guest.dom, guest.va(WINDOW + 7), access);
        }
        // If something was written before, it is: it was done, and comes again.
        for value in 2..5 {
            let TableFault::Store(written) = fault() else { panic!("a store") };
            let outcome = assist::store(&guest.host, &guest.dom, &written, &mut registers, |_| None);
            assert_eq!((outcome, guest.open_tables()), (Outcome::Resolved, 1), "{value}");
            assert_eq!(guest.host.hw.guest_store(at, value << 1, Mode::Kernel), Ok(()));
            assert_eq!(assist::look(&guest.host, &guest.dom, guest.va(WINDOW + 7), access), TableFault::TryAgain);
        }
    });
}

#[test]
fn an_application_is_not_helped() {
    let mut world = World::of(Arch::X86_32);
    world.hang(SPARE, 1);
    let guest = &world.guests[1];
    let access = Access { write: true, user: true };
    assert_eq!(assist::look(&guest.host, &guest.dom, guest.va(SPARE), access), TableFault::Other);
}

#[test]
fn the_hypervisor_writes_to_tables_on_the_guests_behalf() {
    both(|world| {
        world.hang(SPARE, 1);
        // The count of an empty list goes into a table, whose entry is zero then as before.
        let guest = world.guest(1);
        let (list, done) = (guest.va(ARGS).0, guest.va(SPARE).0 + 64);
        assert_eq!(guest.call(Hypercall::MmuUpdate, [list, 0, done, 0, 0, 0]), OK);
        assert_eq!(guest.open_tables(), 1);
        world.check();
        let guest = world.guest(1);
        // Reading what an open table maps closes it.
        assert_eq!(guest.write(SPARE, 0, guest.entry(ARGS, 0)), Ok(()));
        let through = GuestVirt(guest.va(first_page(guest, 1)).0);
        let result = guest.call(Hypercall::EventChannelOp, [through.0, 0, 0, 0, 0, 0]);
        assert_ne!(result, error(Errno::EFAULT));
        assert_eq!(guest.open_tables(), 0);
    });
}

#[test]
fn damage_to_an_open_table_is_seen_by_the_audit() {
    use crate::addr::MachineAddr;
    type Damage = (&'static str, fn(&World, MachineAddr));
    // The address is that of the slot that leads to the table: of its L2 table, or where the window is.
    let damages: [Damage; 2] = [
        ("the CPU can walk it", |world, at| {
            let entry = world.host.hw.load64(at);
            world.host.hw.store64(at, entry | P);
        }),
        ("its copy is not what holds the references", |world, _| {
            let (_, copy) =
                world.guests[1].dom.paging.lock().writable.windows().map(|(w, copy)| (*w, copy)).next().expect("open");
            world.host.hw.store64(MachineAddr(copy.addr().0 + 8), 0);
        }),
    ];
    for (what, damage) in damages {
        for arch in [Arch::X86_32, Arch::X86_64] {
            let mut world = World::of(arch);
            world.open();
            let window = *world.guests[1].dom.paging.lock().writable.windows().next().expect("open").0;
            let Some((l2, slot, _)) = window.parent.or(Some((window.mapper, 0, window.mapping))) else { continue };
            if arch == Arch::X86_32 && what == "the CPU can walk it" {
                continue;
            }
            damage(&world, MachineAddr(l2.addr().0 + 8 * slot as u64));
            assert!(world.verdict().is_err(), "{what}, {arch:?}");
        }
    }
}
