//! No wakeup is lost, in every order of the CPUs' steps and with every stale value that the memory model allows. Each
//! model says what was broken in `core/src/event/page.rs` to see it fail.

use loom::model::Builder;
use loom::thread;
use proxenos_abi::Port;
use proxenos_event_model::Machine;
use std::sync::Arc;

/// Two ports of one word, and one of another.
const ONE: Port = Port(1);
const NEAR: Port = Port(2);
const FAR: Port = Port(33);

/// How many times in a run a CPU that could go on is stopped for another. Every break that was tried shows with three.
const PREEMPTIONS: usize = 3;

/// Runs the guest's CPU, which says whether the domain sleeps at the end, and a CPU for each port that is sent to, in
/// every order. All must have been handled when everything has come to rest. The checker's first thread is no CPU: its
/// first steps are not tried behind those of others.
fn every_order(
    prepare: impl Fn(&Machine) + Send + Sync + 'static,
    guest: impl Fn(&Machine) -> bool + Send + Sync + 'static,
    sent: &'static [Port],
) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    let guest = Arc::new(guest);
    builder.check(move || {
        let machine = Arc::new(Machine::default());
        prepare(&machine);
        let senders = sent.iter().map(|&port| {
            let machine = machine.clone();
            thread::spawn(move || machine.send(port))
        });
        let senders: Vec<_> = senders.collect();
        let guest = {
            let (machine, guest) = (machine.clone(), guest.clone());
            thread::spawn(move || guest(&machine))
        };
        let sleeps = guest.join().unwrap();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        machine.settle(sleeps);
        for &port in sent {
            assert!(machine.is_handled(port), "the event of port {} is lost", port.0);
        }
    });
}

/// The guest waits with upcalls masked until then, as kernels do that have just looked for work.
fn wait(machine: &Machine) -> bool {
    !machine.block()
}

/// Sender against unmask. Fails if the mask is looked at before the port is pending, or no barrier is between the two.
#[test]
fn an_event_that_meets_the_unmasking_of_its_port_arrives() {
    let unmask = |machine: &Machine| {
        machine.unmask(ONE);
        false
    };
    every_order(|machine| machine.mask(ONE), unmask, &[ONE]);
}

/// Sender against block. Fails if the flag is looked at before the domain is BLOCKED or not at all, or `notify` comes
/// before it.
#[test]
fn an_event_that_meets_its_domain_going_to_sleep_wakes_it() {
    every_order(Machine::mask_upcalls, wait, &[ONE]);
}

/// Two senders, against block. Fails if the selector is set before the port, or the port's word is changed by a load
/// and a store.
#[test]
fn two_events_of_a_word_that_meet_both_arrive() {
    every_order(Machine::mask_upcalls, wait, &[ONE, NEAR]);
}

/// The same with two words. Fails if the selector is set before the port, or changed by a load and a store.
#[test]
fn two_events_of_two_words_that_meet_both_arrive() {
    every_order(Machine::mask_upcalls, wait, &[ONE, FAR]);
}

/// Unmasking of upcalls against the exit with one. Fails if the flag is set before the selector, or after `notify`.
#[test]
fn an_event_that_meets_the_unmasking_of_upcalls_arrives() {
    let unmask = |machine: &Machine| {
        machine.unmask_upcalls();
        machine.take_interrupt();
        false
    };
    every_order(Machine::mask_upcalls, unmask, &[ONE]);
}

/// An exit with an upcall against one more event. Fails if the flag is set before the selector, or the selector
/// before the port.
#[test]
fn an_event_that_meets_the_upcall_for_another_arrives() {
    fn go_on(machine: &Machine) -> bool {
        machine.take_interrupt();
        false
    }
    every_order(|machine| machine.send(NEAR), go_on, &[ONE]);
    every_order(|machine| machine.send(FAR), go_on, &[ONE]);
}
