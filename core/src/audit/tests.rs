//! The audit sees what is wrong: each kind of damage, done by hand, is named as what it is. And the allocator under
//! random use, across the border of its zones.

use super::{Census, FRAMES_AT_A_TIME, Invariant, Subject, Violation, audit_in_steps};
use crate::addr::{DomId, FRAMES_BELOW_4G, GuestVirt, MachineAddr, Mfn};
use crate::domain::Arch;
use crate::frame::{FrameInfo, FrameTable, FrameType};
use crate::frame_alloc::{FrameAllocator, MAX_ORDER, Zone};
use crate::machine::{MachineMemory, Tlb};
use crate::paging::format::bits::RW;
use crate::paging::tests::world::*;
use crate::sim_hw::Mode;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use proptest::prelude::*;
use proxenos_abi::Hypercall;

/// Does damage in a world of each architecture; the audit, or the check of the TLBs, must name this invariant first.
#[track_caller]
fn damage(invariant: Invariant, deed: impl Fn(&mut World)) {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        deed(&mut world);
        let found = world.verdict().expect_err("the damage is seen");
        let name = alloc::format!("I{}, ", invariant as u8 + 1);
        assert!(found.iter().any(|text| text.starts_with(&name)), "expected {name} {found:#?}");
    }
}

/// Overwrites an entry of a table of the second domain's.
fn poke(world: &World, pfn: usize, slot: usize, value: u64) {
    let guest = &world.guests[1];
    let at = MachineAddr(guest.frames[pfn].addr().0 + slot as u64 * guest.width());
    match guest.dom.arch {
        Arch::X86_32 => world.host.hw.store32(at, value as u32),
        Arch::X86_64 => world.host.hw.store64(at, value),
    }
}

#[test]
fn a_writable_table_is_seen() {
    damage(Invariant::WritableOrTable, |world| poke(world, L1, L1, world.guests[1].entry(L1, RW)));
}

#[test]
fn references_nobody_has_and_references_nobody_counted_are_seen() {
    damage(Invariant::Counted, |world| {
        world.host.frames.get(world.guests[1].frames[DATA], DomId(1)).map(|_| ()).expect("its own");
    });
    damage(Invariant::Counted, |world| poke(world, L1, FRAMES + 3, world.guests[1].entry(DATA, 0)));
    damage(Invariant::TypeIsHeld, |world| {
        let info = world.host.frames.get(world.guests[1].frames[DATA], DomId(1)).expect("its own");
        info.get_type(FrameType::Writable, |_| ()).expect("writable");
    });
    damage(Invariant::Counted, |world| {
        world.guests[1].dom.total_pages.fetch_add(1, Relaxed);
    });
}

#[test]
fn mappings_without_a_right_are_seen() {
    damage(Invariant::Rightful, |world| {
        let theirs = world.guests[0].frames[DATA];
        world.host.frames.get(theirs, DomId(0)).map(|_| ()).expect("so that the count is right");
        poke(world, L1, FRAMES + 3, theirs.addr().0 | world.guests[1].flags(0));
    });
    damage(Invariant::Rightful, |world| poke(world, L1, FRAMES + 3, 0xb8000 | world.guests[1].flags(0)));
    damage(Invariant::Rightful, |world| {
        let own = world.guests[1].dom.gdt_page;
        poke(world, L1, FRAMES + 3, own.addr().0 | world.guests[1].flags(0));
    });
}

#[test]
fn entries_that_are_not_allowed_are_seen() {
    damage(Invariant::TypeIsHeld, |world| poke(world, L1, DATA, world.guests[1].entry(DATA, RW) | 1 << 8));
    damage(Invariant::TypeIsHeld, |world| {
        let copy = world.guests[1].dom.gdt_page.addr().0;
        world.host.hw.store64(MachineAddr(copy + 8), 0x00af_8b00_0000_ffff);
    });
    let world = World::of(Arch::X86_64);
    poke(&world, TOP, 262, 0);
    assert!(world.verdict().is_err(), "a slot of the hypervisor's");
}

#[test]
fn a_shadow_that_lags_is_seen() {
    let world = World::of(Arch::X86_32);
    let info = world.host.frames.info(world.guests[1].frames[L1]).expect("RAM");
    let shadow = info.shadow().expect("a table in use has one");
    world.host.hw.store64(MachineAddr(shadow.addr().0 + 8 * DATA as u64), 0);
    let found = world.verdict().expect_err("the damage is seen");
    assert!(found[0].starts_with("I6"), "{found:?}");
}

#[test]
fn what_is_wrong_with_a_linear_table_is_seen() {
    let seen = |invariant: &str, deed: &dyn Fn(&World, &FrameInfo)| {
        let mut world = World::of(Arch::X86_32);
        let request = world.guests[1].set(world.guests[1].frames[TOP], 1, world.guests[1].entry(TOP, 0));
        assert_eq!(world.guest(1).request(request), OK);
        world.check();
        deed(&world, world.host.frames.info(world.guests[1].frames[TOP]).expect("RAM"));
        let found = world.verdict().expect_err("the damage is seen");
        assert!(found.iter().any(|text| text.starts_with(invariant)), "expected {invariant}: {found:#?}");
    };
    seen("I1", &|world, _| poke(world, TOP, 1, world.guests[1].entry(TOP, RW)));
    seen("I2", &|world, _| poke(world, TOP, 2, world.guests[1].entry(TOP, 0)));
    seen("I3", &|world, _| poke(world, TOP, 2, world.guests[1].entry(L1, 0)));
    // A view that lags, one that lets tables be written to, one that shows what nobody has looked at.
    let in_view = |info: &FrameInfo, slot: u64| MachineAddr(info.view().expect("a view").addr().0 + 8 * slot);
    seen("I6", &|world, info| world.host.hw.store64(in_view(info, 0x300), 0));
    seen("I6", &|world, info| {
        let at = in_view(info, 0x300);
        world.host.hw.store64(at, world.host.hw.load64(at) | RW);
    });
    seen("I6", &|world, info| world.host.hw.store64(in_view(info, 1010), world.guests[1].entry(DATA, 0)));
}

#[test]
fn a_missed_flush_is_seen() {
    damage(Invariant::Flushed, |world| {
        let guest = &world.guests[1];
        guest.run();
        let (at, hw) = (guest.va(DATA), &world.host.hw);
        hw.guest_store(at, 0, Mode::Kernel).expect("writable");
        // A remapping without a flush, and a hypervisor that loses the stamp it got: its clock goes round.
        let (page, entry) = (at.0 >> 12, guest.entry(DATA, 0));
        assert_eq!(world.guest(1).call(Hypercall::UpdateVaMapping, [page, entry, 0, 0, 0, 0]), OK);
        let info = world.host.frames.info(world.guests[1].frames[DATA]).expect("RAM");
        info.set_stamp(info.stamp().wrapping_add(0x7fff_ffff));
        info.set_stamp(0);
        assert_eq!(info.stamp(), 0);
        let frame = world.guest(1).frames[DATA];
        assert_eq!(world.guest(1).request(pin(frame, 1)), OK);
        assert!(world.host.hw.guest_store(at, 0, Mode::Kernel).is_ok(), "the damage is one");
    });
}

/// What the audit says of a world with so many frames at a time.
fn in_steps(world: &World, step: usize) -> Result<Census, Vec<Violation>> {
    let subjects: Vec<Subject<'_>> =
        world.guests.iter().map(|guest| Subject { dom: &guest.dom, segments: &guest.vcpu.segments }).collect();
    audit_in_steps(&world.host, &subjects, step)
}

#[test]
fn a_machine_that_is_looked_at_in_parts_is_the_same_machine() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        let mut world = World::of(arch);
        if arch == Arch::X86_32 {
            let request = world.guests[1].set(world.guests[1].frames[TOP], 1, world.guests[1].entry(TOP, 0));
            assert_eq!(world.guest(1).request(request), OK);
        }
        let whole = in_steps(&world, FRAMES_AT_A_TIME).expect("all is well");
        assert!(whole.tables >= 4 && whole.free > 0 && whole.domains > 0 && whole.hypervisor > 0, "{whole}");
        let seen: Vec<bool> = whole.checked.iter().map(|&checked| checked > 0).collect();
        assert_eq!(seen, [true, true, true, true, false, true, false], "{whole}");
        for step in [1, 7, 64, 500] {
            assert_eq!(in_steps(&world, step), Ok(whole), "{step} frames at a time");
        }
        // Damage is found by the part that it is in, whichever that is.
        let lost = world.guests[1].frames[DATA];
        world.host.frames.get(lost, DomId(1)).map(|_| ()).expect("its own");
        poke(&world, L1, L1, world.guests[1].entry(L1, RW));
        let whole = in_steps(&world, FRAMES_AT_A_TIME).expect_err("the damage is seen");
        for step in [1, 7, 64, 500] {
            let found = in_steps(&world, step).expect_err("the damage is seen");
            assert!(whole.len() < 16 && whole.iter().all(|one| found.contains(one)), "{whole:?} {found:?}");
        }
    }
}

#[test]
fn a_frame_lost_to_the_allocator_is_seen() {
    damage(Invariant::Counted, |world| {
        world.host.alloc.lock().alloc(0, Zone::Any, &world.host.hw).expect("memory");
    });
}

/// No TLB, since nothing is mapped.
struct NoTlb;

impl Tlb for NoTlb {
    fn flush_all(&self) {}
    fn flush_page(&self, _: GuestVirt) {}
    fn flush_caches(&self) {}
    fn flush_frame(&self, _: Mfn) {}
    fn stamp(&self) -> u32 {
        0
    }
    fn flush_if_older(&self, _: u32) {}
}

/// Frames on either side of 4 GiB that the allocator gets in the test below.
const BELOW: core::ops::Range<u64> = FRAMES_BELOW_4G - 3000..FRAMES_BELOW_4G - 7;
const ABOVE: core::ops::Range<u64> = FRAMES_BELOW_4G + 5..FRAMES_BELOW_4G + 2100;

fn table_across_4g() -> FrameTable {
    let records: Vec<_> = (0..ABOVE.end + 100).map(|_| FrameInfo::reserved()).collect();
    FrameTable::new(records.leak())
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take { order: u32, zone: Zone },
    Free { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (prop_oneof![3 => Just(0), 3 => 0..=MAX_ORDER], prop_oneof![Just(Zone::Any), Just(Zone::Below4G)])
            .prop_map(|(order, zone)| Step::Take { order, zone }),
        any::<usize>().prop_map(|which| Step::Free { which }),
    ]
}

/// The blocks cover exactly the frames that are not out, none twice, each zone's sum is right, and no two buddies are
/// free.
fn check_blocks(alloc: &FrameAllocator, table: FrameTable, out: u64) -> Result<(), TestCaseError> {
    let mut blocks: Vec<(Mfn, u32)> = alloc.blocks().collect();
    blocks.sort_unstable_by_key(|(first, _)| first.0);
    let overlap = blocks.windows(2).find(|pair| pair[0].0.0 + (1 << pair[0].1) > pair[1].0.0);
    prop_assert_eq!(overlap, None);
    let low: u64 = blocks.iter().filter(|(first, _)| first.0 < FRAMES_BELOW_4G).map(|(_, order)| 1 << order).sum();
    let all: u64 = blocks.iter().map(|(_, order)| 1 << order).sum();
    prop_assert_eq!((low, all), (alloc.free_frames(Zone::Below4G), alloc.free_frames(Zone::Any)));
    prop_assert_eq!(all + out, BELOW.end - BELOW.start + ABOVE.end - ABOVE.start);
    for &(first, order) in &blocks {
        prop_assert!(first.0.is_multiple_of(1 << order));
        prop_assert_eq!(table.info(first).and_then(FrameInfo::free_order), Some(order));
        let buddy = (Mfn(first.0 ^ 1 << order), order);
        prop_assert!(order == MAX_ORDER || !blocks.contains(&buddy), "{:?} and its buddy are free", first);
    }
    Ok(())
}

#[test]
fn random_allocations_never_overlap_nor_leave_their_zone() {
    // The table is the large part: one for all cases, which leave it as they found it.
    let table = table_across_4g();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(32));
    let steps = proptest::collection::vec(step(), 1..60);
    let result = runner.run(&steps, |steps| {
        let mut alloc = FrameAllocator::new(table);
        for range in [BELOW, ABOVE] {
            alloc.release_range(Mfn(range.start), range.end - range.start);
        }
        let mut taken: Vec<(Mfn, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Take { order, zone } => {
                    let free_above = alloc.free_frames(Zone::Any) - alloc.free_frames(Zone::Below4G);
                    let Some(first) = alloc.alloc_owned(DomId(1), order, zone, &NoTlb) else { continue };
                    prop_assert!(zone == Zone::Any || first.0 + (1 << order) <= FRAMES_BELOW_4G);
                    if zone == Zone::Any && order == 0 && free_above > 0 {
                        prop_assert!(first.0 >= FRAMES_BELOW_4G, "low frames are kept for who needs them");
                    }
                    let own = |mfn| table.info(Mfn(mfn)).map(|info| (info.refs().owner(), info.refs().count()));
                    for mfn in first.0..first.0 + (1 << order) {
                        prop_assert_eq!(own(mfn), Some((DomId(1), 1)));
                        prop_assert!(BELOW.contains(&mfn) || ABOVE.contains(&mfn));
                    }
                    taken.push((first, order));
                }
                Step::Free { .. } if taken.is_empty() => {}
                Step::Free { which } => {
                    let (first, order) = taken.swap_remove(which % taken.len());
                    alloc.free(first, order);
                }
            }
            check_blocks(&alloc, table, taken.iter().map(|(_, order)| 1 << order).sum())?;
        }
        for (first, order) in taken {
            alloc.free(first, order);
        }
        check_blocks(&alloc, table, 0)?;
        // For the next case, every frame is taken from this allocator again.
        while let Some(first) = alloc.alloc(0, Zone::Any, &NoTlb) {
            let _: Mfn = first;
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
