//! No CPU reaches a frame that has become something else, and no CPU waits for ever, in every order of the CPUs' steps
//! and with every stale value that the memory model allows. Each model says what was broken in `core/src/shootdown.rs`
//! to see it fail.

use loom::model::Builder;
use loom::thread;
use proxenos_tlb_model::{Clearing, Machine};
use std::sync::Arc;

/// How many times in a run a CPU that could go on is stopped for another. Every break that was tried shows with two.
const PREEMPTIONS: usize = 2;

/// What a CPU does.
type Part = fn(&Machine);

/// Runs the parts, each on the CPU of its number, in every order. `before` is what has happened by then. The checker's
/// first thread is no CPU: its first steps are not tried behind those of others.
fn every_order(before: Part, parts: &'static [Part]) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || {
        let machine = Arc::new(Machine::new(parts.len()));
        before(&machine);
        let cpus: Vec<_> = parts
            .iter()
            .map(|part| {
                let machine = machine.clone();
                thread::spawn(move || part(&machine))
            })
            .collect();
        cpus.into_iter().for_each(|cpu| cpu.join().unwrap());
    });
}

/// CPU 0 unmaps the frame and takes it.
fn unmap_and_take(machine: &Machine, clearing: Clearing) {
    machine.unmap(clearing);
    machine.take(0);
    machine.finish();
}

/// CPU 1 runs a guest, which has the frame in its TLB and switches its own address space in between.
fn run_a_guest(machine: &Machine) {
    machine.walk(1);
    machine.access(1);
    machine.flush(1);
    machine.walk(1);
    machine.access(1);
    machine.serve_until(1, 1);
    machine.access(1);
}

fn all_walk(machine: &Machine) {
    machine.begin_to_walk(0);
    machine.begin_to_walk(1);
}

/// Fails if the clock moves behind the flush, if who takes does not wait, or if whoever flushed at the stamp's own
/// moment is let off; with a plain store also if `stamp` has no barrier.
#[test]
fn a_frame_that_is_taken_is_in_no_tlb() {
    every_order(all_walk, &[|machine| unmap_and_take(machine, Clearing::Store), run_a_guest]);
    every_order(all_walk, &[|machine| unmap_and_take(machine, Clearing::Exchange), run_a_guest]);
}

/// The same, where the other CPU goes to and from its guest's applications: those flushes do not move the clock, and
/// count as older than they are. Fails if one counts as younger than a stamp of its moment, or if its moment is looked
/// up behind it.
#[test]
fn a_flush_that_does_not_move_the_clock_lets_nobody_off() {
    fn run_applications(machine: &Machine) {
        machine.walk(1);
        machine.access(1);
        machine.flush_without_a_tick(1);
        machine.walk(1);
        machine.access(1);
        machine.serve_until(1, 1);
        machine.access(1);
    }
    every_order(all_walk, &[|machine| unmap_and_take(machine, Clearing::Store), run_applications]);
    every_order(all_walk, &[|machine| unmap_and_take(machine, Clearing::Exchange), run_applications]);
}

/// The same with a third CPU, whose flushes move the clock at any point: what such a flush sees as its moment is
/// another's.
#[test]
fn nor_does_it_with_others_who_move_the_clock() {
    every_order(
        |machine| {
            all_walk(machine);
            machine.walk(1);
        },
        &[
            |machine| unmap_and_take(machine, Clearing::Store),
            |machine| {
                machine.flush_without_a_tick(1);
                machine.walk(1);
                machine.serve_until(1, 1);
                machine.access(1);
            },
            |machine| machine.flush(2),
        ],
    );
}

/// Fails if a CPU that has all others flush forgets itself.
#[test]
fn nor_is_it_in_the_tlb_of_who_takes_it() {
    every_order(
        all_walk,
        &[
            |machine| {
                machine.walk(0);
                unmap_and_take(machine, Clearing::Exchange);
                machine.access(0);
            },
            run_a_guest,
        ],
    );
}

/// One CPU unmaps, another takes, while a third has the frame in its TLB: domain 0 changes another's tables.
#[test]
fn who_takes_need_not_be_who_unmapped() {
    every_order(
        |machine| {
            machine.begin_to_walk(1);
            machine.walk(1);
        },
        &[
            |machine| machine.unmap(Clearing::Store),
            |machine| {
                machine.flush(1);
                machine.walk(1);
                machine.serve_until(1, 1);
                machine.access(1);
            },
            |machine| {
                machine.take(2);
                machine.finish();
            },
        ],
    );
}

/// A CPU that rests is not asked. Fails if it does not say that it walks, or says so behind the load of its first
/// table.
#[test]
fn a_cpu_that_begins_to_walk_is_seen_or_sees() {
    every_order(
        |machine| machine.begin_to_walk(0),
        &[
            |machine| unmap_and_take(machine, Clearing::Store),
            |machine| {
                machine.begin_to_walk(1);
                machine.walk(1);
                machine.access(1);
                machine.serve_until(1, 1);
                machine.access(1);
            },
        ],
    );
}

/// Nobody waits for a CPU that has gone to rest, and which answers nothing. Fails if it is not looked at again.
#[test]
fn a_cpu_that_goes_to_rest_is_not_waited_for() {
    every_order(
        all_walk,
        &[
            |machine| unmap_and_take(machine, Clearing::Store),
            |machine| {
                machine.walk(1);
                machine.access(1);
                machine.rest(1);
            },
        ],
    );
}

/// Fails if a wait does not serve.
#[test]
fn two_that_wait_for_one_another_both_get_on() {
    fn both(machine: &Machine, cpu: usize) {
        machine.flush_everywhere(cpu);
        machine.finish();
        machine.serve_until(cpu, 2);
    }
    every_order(all_walk, &[|machine| both(machine, 0), |machine| both(machine, 1)]);
}

/// Fails if a wait for a lock does not serve.
#[test]
fn who_waits_for_a_lock_answers_who_has_it() {
    fn both(machine: &Machine, cpu: usize) {
        machine.with_lock(cpu, || machine.flush_everywhere(cpu));
        machine.finish();
        machine.serve_until(cpu, 2);
    }
    every_order(all_walk, &[|machine| both(machine, 0), |machine| both(machine, 1)]);
}
