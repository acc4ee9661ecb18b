//! What a watched domain writes to is recorded, whoever writes it and however.

use super::random::{LENGTH, Score, config, story};
use super::world::*;
use crate::addr::{DomId, GuestVirt, Mfn};
use crate::domain::{Arch, Privileges};
use crate::paging::Pager;
use crate::paging::format::bits::{A, D, RW, US};
use crate::paging::format::{FourLevel, TwoLevel};
use crate::paging::log_dirty::{ControlError, Report, Room, Stats, control};
use crate::paging::pool::{MINIMUM, ShadowFrames};
use crate::sim_hw::Mode;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::dom0_ops::args::ShadowControlOp::{self, *};
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_abi::{Errno, Hypercall};

/// Room enough.
const ROOM: Room = Room(1 << 20);

fn both(test: impl Fn(&mut World)) {
    for arch in [Arch::X86_32, Arch::X86_64] {
        test(&mut World::of(arch));
    }
}

/// Domain 0 does something with another one's shadows, while that is on its CPU.
fn watch(world: &World, who: usize, op: ShadowControlOp) -> Result<Option<Report>, ControlError> {
    let guest = &world.guests[who];
    guest.run();
    let load = |root| crate::machine::CpuTables::load_root(&world.host.hw, root);
    let result = control(&world.host, &guest.dom, DomId(77), op.raw(), ROOM, load);
    world.check();
    result
}

/// The pfns that are recorded.
fn pfns(report: Result<Option<Report>, ControlError>) -> Vec<usize> {
    let bitmap = report.expect("it is watched").expect("there is a report").bitmap.expect("there is room");
    (0..bitmap.len() * 64).filter(|pfn| bitmap[pfn / 64] & 1 << (pfn % 64) != 0).collect()
}

fn store(world: &World, page: usize, value: u64) {
    let guest = &world.guests[1];
    guest.run();
    world.host.hw.guest_store(guest.va(page), value, Mode::Kernel).expect("writable");
    world.check();
}

#[test]
fn a_guests_own_writes_are_recorded_once_each_time() {
    both(|world| {
        store(world, DATA, 1);
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        assert_eq!(pfns(watch(world, 1, Peek)), []);
        for round in 0..3 {
            store(world, DATA + 1, round);
            store(world, DATA + 3, round);
            assert!(world.host.hw.guest_load(world.guests[1].va(DATA), Mode::Kernel).is_ok());
            assert_eq!(pfns(watch(world, 1, Peek)), [DATA + 1, DATA + 3]);
            // A second write faults no more.
            let before = watch(world, 1, Peek).expect("watched").expect("a report").stats;
            store(world, DATA + 1, 9);
            let report = watch(world, 1, Clean).expect("watched").expect("a report");
            assert_eq!((report.stats, report.pages), (before, FRAMES as u32));
            assert_eq!(report.stats.dirty, 2);
            assert!(report.stats.faults >= 2);
            assert_eq!(watch(world, 1, Peek).expect("watched").expect("a report").stats, Stats::default());
            assert_eq!(pfns(watch(world, 1, Peek)), []);
        }
        assert_eq!(watch(world, 1, Off), Ok(None));
        store(world, DATA + 2, 1);
        assert_eq!(watch(world, 1, Off), Ok(None), "again");
    });
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    both(|world| {
        for op in [Flush, Clean, Peek] {
            assert_eq!(watch(world, 1, op), Err(ControlError::NotEnabled));
        }
        assert_eq!(watch(world, 1, EnableTranslate), Err(ControlError::Unsupported));
        let dom = world.guests[1].dom.clone();
        let ask = |caller, op, room| control(&world.host, &dom, DomId(caller), op, Room(room), |_| ());
        assert_eq!(ask(1, EnableLogdirty.raw(), 0), Err(ControlError::Oneself));
        for op in [4, 9, 13, u32::MAX] {
            assert_eq!(ask(0, op, 0), Err(ControlError::Unsupported));
        }
        assert_eq!(watch(world, 1, EnableTest), Ok(None));
        assert_eq!(watch(world, 1, Peek).expect("on").expect("a report").bitmap, None, "nothing is recorded");
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        store(world, DATA, 1);
        // Without room the record stays, and only the counts begin anew.
        let report = ask(0, Clean.raw(), FRAMES as u64 - 1).expect("on").expect("a report");
        assert_eq!((report.bitmap, report.stats.dirty), (None, 1));
        world.check();
        assert_eq!(pfns(watch(world, 1, Clean)), [DATA]);
        for error in [ControlError::Unsupported, ControlError::NotEnabled, ControlError::Oneself] {
            assert_eq!(Errno::from(error), Errno::EINVAL);
        }
    });
}

/// What it takes to read the record away of a domain whose L1 tables, so many of them, are all in use.
fn effort(arch: Arch, tables: usize) -> usize {
    let mut world = World::of(arch);
    let guest = &mut world.guests[1];
    let above = guest.frames[if guest.top_level() == 2 { TOP } else { 4 }];
    let first = if guest.top_level() == 2 { 0x300 } else { 0 };
    for (slot, page) in (1..=tables).zip([SPARE, SPARE2]) {
        for index in 0..64 {
            let request = guest.set(guest.frames[page], index, guest.entry(DATA + index % 4, RW | D));
            assert_eq!(guest.request(request), OK);
        }
        let request = guest.set(above, first + slot, guest.entry(page, RW) | US);
        assert_eq!(guest.request(request), OK);
    }
    assert_eq!(watch(&world, 1, EnableLogdirty), Ok(None));
    let guest = &world.guests[1];
    for slot in 0..=tables {
        let at = GuestVirt(guest.base() + (slot << if guest.top_level() == 2 { 22 } else { 21 }) as u64);
        let at = if slot == 0 { guest.va(DATA) } else { at };
        world.host.hw.guest_store(at, 1, Mode::Kernel).expect("writable");
    }
    world.host.hw.leave_out();
    let _ = world.host.hw.longest_stretch();
    let report = control(&world.host, &guest.dom, DomId(77), Clean.raw(), ROOM, |_| ());
    let effort = world.host.hw.longest_stretch();
    assert!(pfns(report).contains(&DATA));
    world.check();
    effort
}

#[test]
fn reading_the_record_away_takes_time_in_proportion_to_the_shadows() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let [none, one, two] = [0, 1, 2].map(|tables| effort(arch, tables));
        // A shadow is looked through once: 512 entries, or 1,024 in two frames.
        let entries = if arch == Arch::X86_32 { 1024 } else { 512 };
        for more in [one - none, two - one] {
            assert!((entries..entries + 512).contains(&more), "{arch:?}: {none}, {one}, {two} accesses");
        }
        assert!(none < 2 * entries, "{arch:?}: {none}");
    }
}

#[test]
fn what_the_hypervisor_writes_is_recorded() {
    both(|world| {
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        let guest = world.guest(1);
        assert!(guest.put_args(&[]));
        // An entry, a word of plain memory, a number, a descriptor.
        let requests = [
            guest.set(guest.frames[L1], FRAMES + 2, guest.entry(DATA, 0)),
            guest.set(guest.frames[DATA + 2], 5, 77),
            guest.machphys(guest.frames[DATA + 4], DATA as u64 + 4),
        ];
        pfns(watch(world, 1, Clean));
        let guest = world.guest(1);
        assert_eq!(guest.mmu_update(&requests), Done { result: OK, count: 3 });
        let dirty = pfns(watch(world, 1, Clean));
        assert!([ARGS, L1, DATA + 2, DATA + 4].iter().all(|pfn| dirty.contains(pfn)), "{dirty:?}");
        assert!(![DATA, DATA + 1, DATA + 3].iter().any(|pfn| dirty.contains(pfn)), "{dirty:?}");
        let at = world.guests[1].frames[DATA + 5].addr().0;
        assert_eq!(world.guest(1).call(Hypercall::UpdateDescriptor, [at, 0, 0, 0, 0, 0]), OK);
        assert_eq!(pfns(watch(world, 1, Clean)), [DATA + 5]);
        // An accessed bit, and a dirty one.
        let clean = world.guests[1].entry(DATA, RW) & !(A | D);
        assert_eq!(world.guest(1).remap(DATA, clean, 2), OK);
        pfns(watch(world, 1, Clean));
        assert!(world.host.hw.guest_load(world.guests[1].va(DATA), Mode::Kernel).is_ok());
        let dirty = pfns(watch(world, 1, Clean));
        assert!(dirty.contains(&L1) && !dirty.contains(&DATA), "{dirty:?}");
        store(world, DATA, 1);
        let dirty = pfns(watch(world, 1, Clean));
        assert!(dirty.contains(&L1) && dirty.contains(&DATA), "{dirty:?}");
    });
}

#[test]
fn accessed_and_dirty_bits_stay_right() {
    both(|world| {
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        let clean = world.guests[1].entry(DATA, RW) & !(A | D);
        assert_eq!(world.guest(1).remap(DATA, clean, 2), OK);
        let used = |world: &World| {
            let guest = &world.guests[1];
            let at = guest.set(guest.frames[L1], DATA, 0).0;
            u64::from(crate::machine::MachineMemory::load32(&world.host.hw, crate::addr::MachineAddr(at))) & (A | D)
        };
        assert_eq!(used(world), 0);
        let at = world.guests[1].va(DATA);
        assert!(world.host.hw.guest_load(at, Mode::Kernel).is_ok());
        assert_eq!(used(world), A);
        store(world, DATA, 1);
        assert_eq!(used(world), A | D);
    });
}

#[test]
fn tables_that_are_open_are_recorded_each_time() {
    both(|world| {
        let guest = world.guest(1);
        assert_eq!(guest.assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
        let (frame, entry) = (guest.frames[SPARE], guest.entry(DATA, 0));
        assert_eq!(guest.request(pin(frame, 1)), OK);
        let open = |world: &mut World, first: usize| {
            for slot in first..first + 6 {
                world.guest(1).write(SPARE, slot, entry).expect("carried out");
                world.check();
            }
            assert_eq!(world.guests[1].open_tables(), 1);
        };
        // It is open when the watch begins, when the record is read away, and when the watch ends.
        open(world, 0);
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        assert_eq!(world.guests[1].open_tables(), 0);
        for round in 1..4 {
            open(world, 10 * round);
            assert!(pfns(watch(world, 1, Clean)).contains(&SPARE));
            assert_eq!(pfns(watch(world, 1, Clean)), []);
        }
        open(world, 50);
        assert_eq!(watch(world, 1, Off), Ok(None));
        open(world, 60);
        world.check();
    });
}

#[test]
fn a_foreign_writer_is_recorded_when_it_comes_and_when_it_goes() {
    both(|world| {
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        let entry = world.guests[1].frames[DATA].addr().0 | world.guests[0].flags(RW);
        let page = world.guests[0].va(SPARE).0 >> 12;
        assert_eq!(world.guest(0).call(Hypercall::UpdateVaMappingOtherdomain, [page, entry, 2, 1, 0, 0]), OK);
        assert_eq!(pfns(watch(world, 1, Clean)), [DATA]);
        world.guests[0].run();
        assert!(world.host.hw.guest_store(world.guests[0].va(SPARE), 7, Mode::Kernel).is_ok());
        assert_eq!(world.guest(0).remap(SPARE, 0, 2), OK);
        assert_eq!(pfns(watch(world, 1, Clean)), [DATA]);
    });
}

#[test]
fn a_foreign_writer_that_goes_by_a_store_to_an_open_table_is_recorded() {
    both(|world| {
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        let guest = world.guest(0);
        assert_eq!(guest.assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), OK);
        let frame = guest.frames[SPARE];
        assert_eq!(guest.request(pin(frame, 1)), OK);
        // The entry is made by a request, since a store can name no foreign frame, and loses its right to write by a
        // store.
        let entry = world.guests[1].frames[DATA].addr().0 | world.guests[0].flags(RW);
        let entry_at = world.guests[0].set(frame, 40, entry);
        let of_plain = foreign(world.guests[1].dom.id);
        assert_eq!(world.guest(0).mmu_update(&[of_plain, entry_at]).result, OK);
        assert_eq!(pfns(watch(world, 1, Clean)), [DATA]);
        let harmless = world.guests[0].entry(DATA, 0);
        for slot in 0..6 {
            world.guest(0).write(SPARE, slot, harmless).expect("carried out");
        }
        assert_eq!(world.guests[0].open_tables(), 1);
        world.guest(0).write(SPARE, 40, entry & !RW).expect("it is open");
        assert_eq!(world.guest(0).mmu_update(&[]).result, OK);
        assert_eq!(pfns(watch(world, 1, Clean)), [DATA]);
    });
}

#[test]
fn bases_change_under_watch() {
    both(|world| {
        assert_eq!(watch(world, 1, EnableLogdirty), Ok(None));
        for top in [SECOND_TOP, TOP, SECOND_TOP] {
            let frame = world.guests[1].frames[top];
            assert_eq!(world.guest(1).request(new_base(frame)), OK);
            world.check();
            store(world, DATA, 1);
        }
        assert!(pfns(watch(world, 1, Flush).map(|_| ()).and_then(|()| watch(world, 1, Clean))).contains(&DATA));
        store(world, DATA, 2);
        assert_eq!(watch(world, 1, EnableTest), Ok(None));
        store(world, DATA + 1, 2);
        assert_eq!(watch(world, 1, Off), Ok(None));
        store(world, DATA + 1, 3);
        assert!(world.host.hw.guest_load(GuestVirt(world.guests[1].base()), Mode::Kernel).is_ok());
    });
}

/// Frames of a domain's that have a number, with what is in them.
fn contents(world: &World, who: usize) -> Vec<(Mfn, u64, Vec<u8>)> {
    let pager = Pager::new(&*world.host, &world.guests[who].dom);
    let frames = (0..world.host.frames.len()).map(Mfn);
    frames
        .filter_map(|frame| Some((frame, pager.recorded_as(frame)?, world.host.hw.machine().frame_bytes(frame))))
        .collect()
}

proptest! {
    #![proptest_config(config())]

    /// A domain without a right to others' memory does what it likes; the others do nothing.
    #[test]
    fn whatever_changes_is_recorded(
        arch in prop_oneof![Just(Arch::X86_32), Just(Arch::X86_64)],
        ops in story(1..LENGTH),
        few in any::<bool>(),
        turns in proptest::collection::vec(0..6u8, LENGTH),
    ) {
        let mut world = World::new(&[(arch, PRIVILEGED), (arch, Privileges::DEVICES)]);
        if few {
            let pager = Pager::new(&*world.host, &world.guests[1].dom);
            let mut state = pager.lock();
            match arch {
                Arch::X86_32 => pager.set_shadow_limit::<TwoLevel>(&mut state, ShadowFrames(MINIMUM.0)),
                Arch::X86_64 => pager.set_shadow_limit::<FourLevel>(&mut state, ShadowFrames(MINIMUM.0)),
            }.expect("it is enough");
        }
        let ops: Vec<_> = ops.into_iter().map(|(_, op)| (1, op)).collect();
        watch(&world, 1, EnableLogdirty).expect("there is memory");
        for (ops, turn) in ops.chunks(3).zip(turns.into_iter().cycle()) {
            let before = contents(&world, 1);
            world.play(ops, &mut Score::default()).map_err(TestCaseError::fail)?;
            // What was written past the caches is there now.
            crate::machine::Tlb::flush_caches(&world.host.hw);
            if world.guests[1].dom.log.is_on() {
                let report = watch(&world, 1, Peek).expect("watched").expect("a report");
                let bitmap = report.bitmap.unwrap_or_else(|| vec![u64::MAX; 1]);
                for (frame, pfn, bytes) in contents(&world, 1) {
                    let same = before.iter().any(|(was, _, bytes_were)| *was == frame && *bytes_were == bytes);
                    let was_there = before.iter().any(|(was, ..)| *was == frame);
                    if was_there && !same && pfn < report.pages.into() {
                        prop_assert!(bitmap[pfn as usize / 64] & 1 << (pfn % 64) != 0, "{frame:?}, {pfn} after {ops:?}");
                    }
                }
            }
            let op = match turn {
                0 | 1 => Clean,
                2 => Off,
                3 | 4 => EnableLogdirty,
                _ => Flush,
            };
            let _ = watch(&world, 1, op);
        }
    }
}
