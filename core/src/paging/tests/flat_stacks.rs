//! What is remembered of flat stacks, against what a guest and others can do to the tables.

use super::commands::INVALID;
use super::segments::set_gdt;
use super::world::*;
use crate::domain::Arch;
use crate::paging::format::bits::RW;
use crate::sim_hw::SimDomain;
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{GuestArch, Hypercall, Selector, X86_32};

/// What a step of [`a_flat_stack_is_one_whatever_a_guest_does`] does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A frame is pushed on behalf of the kernel, in this segment: what is found is remembered.
    Push(Selector),
    /// `stack_switch`.
    Switch(Selector),
    /// `set_gdt` with this many entries, in these frames.
    SetGdt([usize; 2], u64),
    /// `update_descriptor` of an entry of a frame, by this domain.
    Update(usize, u64, u64, usize),
    /// A plain store to an entry, by this domain.
    Store(usize, u64, usize),
    /// The page of a frame is mapped with these flags, or not at all.
    Remap(usize, Option<u64>),
    /// The LDT lies in the page of a frame.
    SetLdt(usize),
}

/// Entries that selectors name, in either of two pages, and what may stand there.
const ENTRIES: [u64; 2] = [100, 300];
const DESCRIPTORS: [u64; 5] =
    [0x00cf_f300_0000_ffff, 0x00cf_f300_1000_ffff, 0x00cf_f100_0000_ffff, 0x00cf_f300_0000_ffff, 0];

fn selectors() -> impl Strategy<Value = Selector> {
    let own = (0..2usize, 0..2u16, prop_oneof![Just(0u16), Just(4)], 1..4u16)
        .prop_map(|(entry, page, local, rpl)| Selector((ENTRIES[entry] as u16 + 512 * page) << 3 | local | rpl));
    prop_oneof![8 => own, 1 => Just(X86_32::FLAT_GUESTOS_DS), 1 => any::<u16>().prop_map(Selector)]
}

fn steps() -> impl Strategy<Value = Step> {
    let page = || prop::sample::select(&[SPARE, SPARE2][..]);
    prop_oneof![
        4 => selectors().prop_map(Step::Push),
        2 => selectors().prop_map(Step::Switch),
        2 => ([page(), page()], prop::sample::select(&[296u64, 512, 700, 1024][..]))
            .prop_map(|(frames, entries)| Step::SetGdt(frames, entries)),
        6 => (page(), prop::sample::select(&ENTRIES[..]), prop::sample::select(&DESCRIPTORS[..]), 0..2usize)
            .prop_map(|(page, entry, value, who)| Step::Update(page, entry, value, who)),
        1 => (page(), prop::sample::select(&ENTRIES[..]), 0..2usize)
            .prop_map(|(page, entry, who)| Step::Store(page, entry, who)),
        1 => (page(), prop::option::of(prop::sample::select(&[0, RW][..])))
            .prop_map(|(page, flags)| Step::Remap(page, flags)),
        4 => page().prop_map(Step::SetLdt),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 192 }))]

    /// The short ways' knowledge is never more than what a look at the tables would find, whatever was done to them and
    /// by whom.
    #[test]
    fn a_flat_stack_is_one_whatever_a_guest_does(steps in prop::collection::vec(steps(), 1..40)) {
        let mut world = World::of(Arch::X86_32);
        let all: Vec<Selector> = (0..4u16)
            .flat_map(|n| [0u16, 4].map(|local| (ENTRIES[usize::from(n % 2)] as u16 + 512 * (n / 2)) << 3 | local))
            .flat_map(|index| [1, 2, 3].map(|rpl| Selector(index | rpl)))
            .chain([X86_32::FLAT_GUESTOS_DS])
            .collect();
        for step in steps {
            flat_step(&mut world, step);
            let guest = world.guest(1);
            let host = guest.host.clone();
            let SimDomain { dom, vcpu, .. } = &mut guest.0;
            let mut bases = |ss| vcpu.segments.looked_up_base::<X86_32, _>(&host, dom, ss);
            let found: Vec<_> = all.iter().map(|&ss| bases(ss)).collect();
            let kernel = bases(vcpu.kernel_stack.0);
            for (&ss, &base) in all.iter().zip(&found) {
                prop_assert!(!vcpu.segments.is_flat_stack::<X86_32>(ss) || base == Some(0), "{:?} after {:?}", ss, step);
            }
            let frame = vcpu.segments.system_call_frame();
            prop_assert!(frame == 0 || kernel == Some(0), "the kernel's stack after {:?}", step);
            prop_assert!(frame == 0 || u64::from(frame) + 20 == vcpu.kernel_stack.1.0);
        }
    }
}

fn flat_step(world: &mut World, step: Step) {
    match step {
        Step::Push(ss) => {
            let guest = world.guest(1);
            let host = guest.host.clone();
            let SimDomain { dom, vcpu, .. } = &mut guest.0;
            let _: Option<u64> = vcpu.segments.stack_base::<X86_32, _>(&host, dom, ss);
        }
        Step::Switch(ss) => {
            let args = [ss.0.into(), 0xc000_1000, 0, 0, 0, 0];
            let _: Result<u64, _> = world.judge(1, |guest| guest.call(Hypercall::StackSwitch, args));
        }
        Step::SetGdt(frames, entries) => {
            let _: Result<(), u64> = set_gdt(world, &frames[..entries.div_ceil(512) as usize], entries);
        }
        Step::Update(page, entry, value, who) => {
            let at = world.guest(1).frames[page].addr().0 + 8 * entry;
            let args = [at, value & 0xffff_ffff, value >> 32, 0, 0, 0];
            let result = world.judge(who, |guest| guest.call(Hypercall::UpdateDescriptor, args));
            assert!(who == 1 || result == Ok(INVALID), "only its owner changes a frame");
        }
        Step::Store(page, entry, who) => {
            let at = world.guest(1).frames[page].addr().0 + 8 * entry;
            let _: Done = world.guest(who).mmu_update(&[(at, DESCRIPTORS[1] & 0xffff_ffff)]);
        }
        Step::Remap(page, flags) => {
            let _: u64 = world.remap(page, |guest| flags.map_or(0, |flags| guest.entry(page, flags)));
        }
        Step::SetLdt(page) => {
            let at = world.guest(1).va(page).0;
            let _: Done = world.guest(1).mmu_update(&[extended(MmuExtCommand::SetLdt, at, 512)]);
        }
    }
}
