//! Random grants, mappings, unmappings and transfers among three domains, in between any other requests on memory.
//! After every step every invariant holds; in the end all can be unmapped, and nothing is left of it.

use super::*;
use crate::domain::Privileges;
use crate::paging::tests::random::{LENGTH, Op, Score, config, story};
use proptest::prelude::*;
use proxenos_abi::Errno;
use proxenos_abi::mmu::MmuUpdate;

/// What a domain does.
#[derive(Clone, Debug)]
enum Act {
    /// Anything else that concerns memory.
    Paging(Op),
    /// Writes an entry of its table: who is named, and whose frame.
    Grant { grant: u16, flags: u16, to: usize, owner: usize, pfn: usize },
    /// Maps.
    Map { from: usize, grant: u16, flags: u16, page: usize },
    /// Unmaps one of those that were mapped, of somebody's, as far as said, or something like it.
    Unmap { nth: usize, host: bool, device: bool, off: u64 },
    /// Clears a page of its own, as a kernel does before it gives the frame away.
    Clear { page: usize },
    /// Gives a frame away.
    Give { pfn: usize, to: usize, grant: u16 },
}

fn page() -> impl Strategy<Value = usize> {
    prop_oneof![4 => FREE_PAGE..FREE_PAGE + 3, 2 => DATA..DATA + 2, 1 => Just(SPARE), 1 => 0..FRAMES, 1 => 1020..1030_usize]
}

fn pfn() -> impl Strategy<Value = usize> {
    prop_oneof![6 => DATA..DATA + 2, 2 => Just(SPARE), 1 => 0..FRAMES]
}

fn act() -> BoxedStrategy<Vec<(usize, Act)>> {
    let flags = prop_oneof![6 => Just(ACCESS), 2 => Just(RO), 3 => Just(GrantFlags::ACCEPT_TRANSFER), 1 => Just(GrantFlags::empty())];
    let grant = || 0..3_u16;
    let one = prop_oneof![
        4 => (grant(), flags, 0..3_usize, prop_oneof![5 => Just(3), 1 => 0..3_usize], pfn()).prop_map(
            |(grant, flags, to, owner, pfn)| Act::Grant { grant, flags: flags.bits(), to, owner, pfn }
        ),
        6 => (0..3_usize, grant(), 0..16_u16, page()).prop_map(|(from, grant, flags, page)| Act::Map { from, grant, flags, page }),
        9 => (0..4_usize, any::<bool>(), any::<bool>(), prop_oneof![Just(0), Just(4096_u64)])
            .prop_map(|(nth, host, device, off)| Act::Unmap { nth, host, device, off }),
        2 => (DATA..DATA + 2).prop_map(|page| Act::Clear { page }),
        2 => (DATA..DATA + 2, 0..3_usize, grant()).prop_map(|(pfn, to, grant)| Act::Give { pfn, to, grant }),
    ];
    let other = story(1..4).prop_map(|ops| ops.into_iter().map(|(who, op)| (who, Act::Paging(op))).collect());
    // A grant that is mapped at once, or a frame that goes, so that there is something to work at.
    let mapped =
        (0..3_usize, 1..3_usize, grant(), pfn(), 1..16_u16, page()).prop_map(|(from, by, grant, pfn, flags, page)| {
            let who = (from + by) % 3;
            let granted = Act::Grant { grant, flags: ACCESS.bits(), to: who, owner: from, pfn };
            alloc::vec![(from, granted), (who, Act::Map { from, grant, flags, page })]
        });
    let given = (0..3_usize, 1..3_usize, grant(), DATA..DATA + 2).prop_map(|(to, by, grant, pfn)| {
        let who = (to + by) % 3;
        let waits = Act::Grant { grant, flags: GrantFlags::ACCEPT_TRANSFER.bits(), to: who, owner: to, pfn };
        alloc::vec![(to, waits), (who, Act::Clear { page: pfn }), (who, Act::Give { pfn, to, grant })]
    });
    prop_oneof![
        6 => (0..3_usize, one).prop_map(|one| alloc::vec![one]),
        3 => other,
        4 => mapped,
        1 => given,
    ]
    .boxed()
}

fn acts(length: usize) -> impl Strategy<Value = Vec<(usize, Act)>> {
    proptest::collection::vec(act(), 1..length).prop_map(|acts| acts.into_iter().flatten().collect())
}

/// A mapping, as its domain remembers it.
struct Known {
    who: usize,
    at: u64,
    bus: u64,
    flags: GrantMapFlags,
    handle: u16,
}

/// How often each came to something, and how often it was refused.
#[derive(Default, Debug)]
struct Outcomes {
    maps: (u32, u32),
    unmaps: (u32, u32),
    gifts: (u32, u32),
}

fn count(of: &mut (u32, u32), good: bool) {
    if good { of.0 += 1 } else { of.1 += 1 }
}

impl World {
    fn unmap_known(&mut self, known: &Known, host: bool, device: bool, off: u64) -> i16 {
        let at = if host && known.flags.contains(HOST) { known.at + off } else { 0 };
        let bus = if device && known.flags.contains(DEVICE) { known.bus + off } else { 0 };
        let mut op = unmapping(at, bus, known.handle);
        match self.guest(known.who).grants(GrantTableCommand::UnmapGrantRef, core::slice::from_mut(&mut op)) {
            OK => op.status,
            // It was the page that the request was in: done, and not told.
            result => {
                assert_eq!(result, error(Errno::EFAULT));
                OKAY
            }
        }
    }

    fn do_act(
        &mut self,
        who: usize,
        act: &Act,
        all: &mut Vec<Known>,
        outcomes: &mut Outcomes,
    ) -> Result<(), alloc::string::String> {
        match *act {
            Act::Paging(ref op) => self.play(&[(who, op.clone())], &mut Score::default())?,
            Act::Grant { grant, flags, to, owner, pfn } => {
                let frame = self.guests[if owner < 3 { owner } else { who }].frames[pfn].0;
                self.write_grant(who, grant, GrantFlags::from_bits_retain(flags), to, frame);
            }
            Act::Map { from, grant, flags, page } => {
                let flags = GrantMapFlags::from_bits_retain(flags);
                let mut op = mapping(from, grant, flags, self.guests[who].va(page).0);
                // It may be put over the very page that the request is in.
                if self.guest(who).grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)) == OK {
                    // (Then of the request only the outcome is there.)
                    let (at, bus) = (self.guests[who].va(page).0, op.dev_bus_addr.to_u64());
                    if let Ok(handle) = u16::try_from(op.handle) {
                        all.push(Known { who, at, bus, flags, handle });
                    }
                    count(&mut outcomes.maps, { op.handle } >= 0);
                }
            }
            Act::Unmap { nth, host, device, off } => {
                let Some(known) = all.get(nth) else { return Ok(()) };
                let known = Known { who: known.who, ..*known };
                let status = self.unmap_known(&known, host, device, off);
                count(&mut outcomes.unmaps, status == OKAY);
                if status == OKAY {
                    let rest = if host { HOST } else { GrantMapFlags::empty() }
                        | if device { DEVICE } else { GrantMapFlags::empty() };
                    all[nth].flags.remove(rest);
                    if !all[nth].flags.intersects(HOST | DEVICE) {
                        all.remove(nth);
                    }
                }
            }
            Act::Clear { page } => {
                let _ = self.guest(who).remap(page, 0, 0);
            }
            Act::Give { pfn, to, grant } => {
                let frame = self.guests[who].frames[pfn];
                let request =
                    MmuUpdate::<X86_64>::transfer_page(frame.addr(), DomId(to as u16), GrantRef(grant)).expect("fits");
                if self.guest(who).rescue() {
                    let result = self.guest(who).request((request.ptr, request.val));
                    count(&mut outcomes.gifts, result == OK);
                }
            }
        }
        self.verdict().map(|_| ()).map_err(|violations| alloc::format!("{violations:?}"))
    }

    /// Carries the acts out, and unmaps all in the end.
    fn act_out(&mut self, acts: &[(usize, Act)], outcomes: &mut Outcomes) -> Result<(), alloc::string::String> {
        let mut all = Vec::new();
        for (step, (who, act)) in acts.iter().enumerate() {
            let who = who % 3;
            if !self.guests.iter_mut().all(|guest| guest.rescue()) {
                return Ok(());
            }
            self.do_act(who, act, &mut all, outcomes)
                .map_err(|error| alloc::format!("step {step}, domain {who}, {act:?}: {error}"))?;
        }
        if !self.guests.iter_mut().all(|guest| guest.rescue()) {
            return Ok(());
        }
        for known in &all {
            let status = self.unmap_known(known, true, true, 0);
            if status != OKAY {
                return Err(alloc::format!(
                    "handle {} of domain {} cannot be unmapped: {status}",
                    known.handle,
                    known.who
                ));
            }
            self.verdict().map_err(|violations| alloc::format!("{violations:?}"))?;
        }
        for guest in &self.guests {
            let table = guest.dom.grants.table.lock();
            for frame in table.frames() {
                for at in (0..4096).step_by(8) {
                    let flags =
                        GrantFlags::from_bits_retain(self.host.hw.load32(MachineAddr(frame.addr().0 + at)) as u16);
                    let access = flags.intersection(GrantFlags::TYPE_MASK) == ACCESS;
                    if access && flags.intersects(BOTH) {
                        return Err(alloc::format!("entry {} of {:?} still says {flags:?}", at / 8, guest.dom.id));
                    }
                }
            }
            assert_eq!(guest.dom.grants.mappings.lock().iter().count(), 0);
        }
        Ok(())
    }
}

fn domains(archs: [Arch; 3]) -> [(Arch, Privileges); 3] {
    [(archs[0], PRIVILEGED), (archs[1], PLAIN), (archs[2], PLAIN)]
}

fn arch() -> impl Strategy<Value = Arch> {
    prop_oneof![Just(Arch::X86_32), Just(Arch::X86_64)]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_grants_keep_every_invariant(archs in [arch(), arch(), arch()], acts in acts(LENGTH)) {
        let mut world = World::new(&domains(archs));
        world.act_out(&acts, &mut Outcomes::default()).map_err(TestCaseError::fail)?;
    }
}

/// The generator is worth something only if all is carried out and refused now and then.
#[test]
fn random_grants_are_neither_all_good_nor_all_bad() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
    let mut runner = TestRunner::new_with_rng(config(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let sequences = proptest::collection::vec(acts(40), 12);
    let sequences = sequences.new_tree(&mut runner).expect("nothing is filtered").current();
    let mut outcomes = Outcomes::default();
    for (arch, acts) in [Arch::X86_32, Arch::X86_64].into_iter().cycle().zip(sequences) {
        World::new(&domains([arch; 3])).act_out(&acts, &mut outcomes).unwrap_or_else(|error| panic!("{error}"));
    }
    for (good, bad) in [outcomes.maps, outcomes.unmaps, outcomes.gifts] {
        assert!(good > 2 && bad > 2, "{outcomes:?}");
    }
}
