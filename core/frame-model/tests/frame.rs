//! The frame's word under two and three CPUs, in every order of their steps and with every stale value that the memory
//! model allows. Each model says what was broken in `core/src/frame` to see it fail.

use loom::model::Builder;
use loom::thread;
use proxenos_frame_model::frame::{FrameType, TypeGrant};
use proxenos_frame_model::{Machine, OTHER, OWNER};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// How many times in a run a CPU that could go on is stopped for another. Every break that was tried shows with two,
/// and all orders whatever take minutes.
const PREEMPTIONS: usize = 2;

/// Runs a part for each CPU in every order, then what is to be true at the end.
fn every_order(
    prepare: impl Fn(&Machine) + Send + Sync + 'static,
    cpus: &'static [fn(&Machine)],
    end: impl Fn(&Machine) + Send + Sync + 'static,
) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || {
        let machine = Arc::new(Machine::default());
        prepare(&machine);
        let others = cpus[1..].iter().map(|cpu| {
            let machine = machine.clone();
            thread::spawn(move || cpu(&machine))
        });
        let others: Vec<_> = others.collect();
        cpus[0](&machine);
        others.into_iter().for_each(|other| other.join().unwrap());
        end(&machine);
    });
}

fn map_and_unmap_on_0(machine: &Machine) {
    if machine.map(0) {
        machine.unmap();
    }
}

fn map_and_unmap_on_1(machine: &Machine) {
    if machine.map(1) {
        machine.unmap();
    }
}

fn use_as_table(machine: &Machine) {
    machine.use_as_table();
}

fn counts_are_as_before(machine: &Machine) {
    assert_eq!((machine.frame.refs().count(), machine.frame.type_word().count()), (1, 0));
}

fn mapped_once(machine: &Machine) {
    assert!(machine.map(0));
    machine.unmap();
}

/// I1 and I5.
#[test]
fn a_table_is_never_mapped_writable() {
    every_order(|_| (), &[map_and_unmap_on_0, use_as_table], counts_are_as_before);
}

/// The same where the frame was writable memory, and with a third CPU.
#[test]
fn a_table_is_never_mapped_writable_by_either_of_two() {
    every_order(mapped_once, &[map_and_unmap_on_1, use_as_table], counts_are_as_before);
    every_order(|_| (), &[map_and_unmap_on_0, map_and_unmap_on_1, use_as_table], counts_are_as_before);
}

/// I5: the last mapping goes while another comes, and goes too, on a CPU that has just flushed.
#[test]
fn every_mapping_leaves_its_stamp() {
    fn flush_map_and_unmap(machine: &Machine) {
        machine.flush(1);
        map_and_unmap_on_1(machine);
    }
    let mapped = |machine: &Machine| assert!(machine.map(0));
    every_order(mapped, &[Machine::unmap, flush_map_and_unmap], |machine| assert!(machine.use_as_table()));
    every_order(mapped, &[Machine::unmap, use_as_table], |machine| assert!(machine.use_as_table()));
}

/// I5, the other way round: what was walked until now becomes writable memory, for two at once.
#[test]
fn nobody_writes_before_the_walks_are_flushed() {
    fn write(machine: &Machine) {
        assert!(machine.get_writable(), "nobody has it as a table");
        assert!(!machine.truth().tlbs[2].cached.load(SeqCst), "what a CPU walks can be written to");
        machine.unmap();
    }
    let walked = |machine: &Machine| {
        assert!(machine.use_as_table());
        machine.truth().tlbs[2].cached.store(true, SeqCst);
    };
    every_order(walked, &[write, write], counts_are_as_before);
}

/// I3.
#[test]
fn a_frame_is_freed_once_and_not_before_its_last_reference_is_gone() {
    fn refer(machine: &Machine) {
        if machine.frame.get(OWNER).is_ok() {
            assert_eq!(machine.truth().freed.load(SeqCst), 0, "a free frame is referred to");
            machine.put();
        }
    }
    let is_free = |machine: &Machine| {
        assert_eq!((machine.truth().freed.load(SeqCst), machine.frame.refs().count()), (1, 0));
        assert_ne!(machine.frame.refs().owner(), OWNER);
    };
    every_order(mapped_once, &[Machine::give_up, map_and_unmap_on_1], is_free);
    every_order(mapped_once, &[Machine::give_up, refer], is_free);
    every_order(mapped_once, &[Machine::give_up, refer, map_and_unmap_on_1], is_free);
    every_order(mapped_once, &[Machine::give_up, Machine::give_up], is_free);
}

/// I5.
#[test]
fn a_frame_that_changes_hands_is_nobodys_until_the_flush_is_over() {
    fn reassign(machine: &Machine) {
        let handed_over = machine.frame.reassign(OWNER, OTHER, |stamp| machine.flush_if_older(stamp));
        assert!(!handed_over || !machine.truth().is_cached(), "its old owner still reaches it");
    }
    let is_somebodys = |machine: &Machine| {
        let refs = machine.frame.refs();
        assert!(refs.count() == 1 && [OWNER, OTHER].contains(&refs.owner()));
    };
    every_order(|_| (), &[reassign, map_and_unmap_on_1], is_somebodys);
    every_order(mapped_once, &[reassign, map_and_unmap_on_1], is_somebodys);
    every_order(|_| (), &[reassign, reassign], is_somebodys);
}

/// Two who want the frame as a table meet: one validates it, the other is refused or finds it validated.
#[test]
fn one_validates() {
    fn pin(machine: &Machine) {
        let frame = &machine.frame;
        frame.get(OWNER).expect("it is the owner's");
        match frame.get_type(FrameType::L1, |stamp| machine.flush_if_older(stamp)) {
            Ok(TypeGrant::MustValidate) => {
                assert!(!machine.truth().is_table.swap(true, SeqCst), "two validate");
                frame.set_validated();
            }
            Ok(TypeGrant::Held) => assert!(machine.truth().is_table.load(SeqCst), "held before it is validated"),
            Err(_) => machine.put(),
        }
    }
    every_order(
        |_| (),
        &[pin, pin],
        |machine| {
            let (refs, word) = (machine.frame.refs(), machine.frame.type_word());
            assert!(word.is_validated() && (1..=2).contains(&word.count()) && refs.count() == word.count() + 1);
        },
    );
}
