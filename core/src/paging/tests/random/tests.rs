//! The random tests themselves.

extern crate std;

use super::play::Score;
use super::stories::story;
use crate::domain::{Arch, Privileges};
use crate::paging::tests::world::*;
use alloc::vec::Vec;
use proptest::prelude::*;

fn arch() -> impl Strategy<Value = Arch> {
    prop_oneof![Just(Arch::X86_32), Just(Arch::X86_64)]
}

/// A privileged domain, one with devices, and a plain one, of any architectures, and how much memory there is: enough,
/// or so little that shadows soon fail.
fn world() -> impl Strategy<Value = (usize, Vec<(Arch, Privileges)>)> {
    let domains = (arch(), arch(), arch()).prop_map(|(first, second, third)| {
        alloc::vec![(first, PRIVILEGED), (second, Privileges::DEVICES), (third, PLAIN)]
    });
    (prop_oneof![3 => Just(0x100 + 384), 1 => Just(0x100 + 112)], domains)
}

/// How many sequences are tried, unless PROPTEST_CASES says otherwise.
const CASES: u32 = 96;
/// Their greatest length.
pub const LENGTH: usize = 40;

pub fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 4096, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_requests_keep_every_invariant(
        (frames, domains) in world(),
        ops in story(1..LENGTH),
    ) {
        World::with_memory(frames, &domains, None).play(&ops, &mut Score::default()).map_err(TestCaseError::fail)?;
    }
}

/// The generator is worth something only if every kind of request is carried out and refused now and then.
#[test]
fn random_requests_are_neither_all_good_nor_all_bad() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
    let mut runner = TestRunner::new_with_rng(config(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let sequences = proptest::collection::vec(story(40..41), 32);
    let sequences = sequences.new_tree(&mut runner).expect("nothing is filtered").current();
    let mut total = Score::default();
    for (arch, ops) in [Arch::X86_32, Arch::X86_64].into_iter().cycle().zip(sequences) {
        let mut world = World::new(&[(arch, PRIVILEGED), (arch, Privileges::DEVICES), (arch, PLAIN)]);
        world.play(&ops, &mut total).unwrap_or_else(|error| panic!("{error}"));
    }
    let both = "GiveUp LdtFault Load NewBase NewUserBase Pin Reassign Remap RemapForeign SetGdt SetLdt Store Take Unpin \
                Update Write";
    for name in both.split(' ') {
        let (carried_out, refused) = total.by_name.get(name).copied().unwrap_or_default();
        assert!(carried_out > 0 && refused > 0, "{name}: {:#?}", total.by_name);
    }
    assert!(total.linear.last() > Some(&2), "linear entries: {:?}", total.linear);
}
