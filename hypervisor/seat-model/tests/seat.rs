//! A parked domain is in one CPU's hands at a time, whole, in every order of the CPUs' steps and with every stale value
//! that the memory model allows. Each model says what was broken in `hypervisor/src/guest/sched/seat.rs` to see it
//! fail.

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use proxenos_seat_model::seat::{Held, Seat};
use proxenos_seat_model::{Running, wait_a_little};
use std::collections::BTreeSet;

/// How many times in a run a CPU that could go on is stopped for another. Every break that was tried shows with three.
const PREEMPTIONS: usize = 3;

/// Runs a machine, which starts its CPUs and says what came of it, in every order: all that can come of it. (The
/// checker's first thread is no CPU: its first steps are not tried behind those of others.)
fn every_order<R: Ord + Send + 'static>(machine: impl Fn() -> R + Send + Sync + 'static) -> BTreeSet<R> {
    let outcomes = std::sync::Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let all = outcomes.clone();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || {
        let outcome = machine();
        all.lock().unwrap().insert(outcome);
    });
    std::mem::take(&mut *outcomes.lock().unwrap())
}

/// Starts a CPU that does something with what all share.
fn cpu<S: Send + Sync + 'static, R: 'static>(shared: &Arc<S>, work: impl FnOnce(&S) -> R + 'static) -> JoinHandle<R> {
    let shared = shared.clone();
    thread::spawn(move || work(&shared))
}

/// A seat in which a domain is parked.
fn taken_seat() -> Seat {
    let seat = Seat::empty();
    seat.put(Running::changed(0));
    seat
}

/// A turn of the domain's: its CPU has picked it. How often it was changed before.
fn turn(seat: &Seat) -> u32 {
    turn_if_there(seat).expect("who was picked sits there")
}

/// The same of one that may have left.
fn turn_if_there(seat: &Seat) -> Option<u32> {
    seat.take().map(|mut running| {
        let before = running.change();
        seat.put(running);
        before
    })
}

/// A CPU holds the domain, if it is parked, and changes it. How often that was done before.
fn hold_and_change(seat: &Seat) -> Option<u32> {
    seat.hold().map(|mut held| held.change())
}

/// A CPU holds the domain, if it is parked, and looks how often it was changed.
fn hold_and_look(seat: &Seat) -> Option<u32> {
    seat.hold().map(|held| held.changes())
}

/// A CPU tries until it has what it wants.
fn attempt<R>(what: impl Fn() -> Option<R>) -> R {
    loop {
        if let Some(result) = what() {
            return result;
        }
        wait_a_little();
    }
}

/// How often a domain was changed, at the end; it is gone then.
fn changes_in(seat: &Seat) -> Option<u32> {
    seat.take().map(|running| running.changes())
}

/// Fails when `claim` does not acquire, `put` or the end of a hold does not release, what is held counts as nobody's or
/// as parked, or the exchange is a load and a store.
#[test]
fn a_turn_begins_with_what_a_holder_left() {
    let found = every_order(|| {
        let seat = Arc::new(taken_seat());
        let home = cpu(&seat, |seat| [turn(seat), turn(seat)]);
        let other = cpu(&seat, hold_and_change);
        let (turns, held) = (home.join().unwrap(), other.join().unwrap());
        assert_eq!(changes_in(&seat), Some(2 + u32::from(held.is_some())), "a change is lost");
        (turns, held)
    });
    // It was held before both turns, between them, and behind both; or it ran.
    let expected = [([0, 1], None), ([0, 1], Some(2)), ([0, 2], Some(1)), ([1, 2], Some(0))];
    assert_eq!(found, expected.into());
}

/// Fails for the same, and when `hold` leaves what it found, or nobody.
#[test]
fn two_hold_one_behind_the_other() {
    let found = every_order(|| {
        let seat = Arc::new(taken_seat());
        let home = cpu(&seat, turn);
        let others = [cpu(&seat, hold_and_change), cpu(&seat, hold_and_change)];
        let before = home.join().unwrap();
        let held = others.map(|other| other.join().unwrap());
        let holds = held.iter().flatten().count() as u32;
        assert_eq!(changes_in(&seat), Some(1 + holds), "a change is lost");
        (before, holds)
    });
    assert_eq!(found, [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)].into());
}

/// Fails when the end of a hold does not release: a turn then changes what is still being looked at.
#[test]
fn who_only_looks_sees_the_last_change_and_no_half_one() {
    let found = every_order(|| {
        let seat = Arc::new(taken_seat());
        let home = cpu(&seat, turn);
        let others = [cpu(&seat, hold_and_look), cpu(&seat, hold_and_look)];
        assert_eq!(home.join().unwrap(), 0);
        let seen = others.map(|other| other.join().unwrap());
        assert_eq!(changes_in(&seat), Some(1));
        seen
    });
    // In either order.
    let [one, two]: [BTreeSet<_>; 2] = [0, 1].map(|cpu| found.iter().map(|seen| seen[cpu]).collect());
    assert_eq!((one, two), ([None, Some(0), Some(1)].into(), [None, Some(0), Some(1)].into()));
}

/// Fails when it is not asked whether the exchange succeeded, or `Held::take` leaves the seat held.
#[test]
fn one_gets_a_domain_that_two_take() {
    let found = every_order(|| {
        let seat = Arc::new(taken_seat());
        let home = cpu(&seat, |seat| seat.take().map(|mut running| running.change()));
        let other = cpu(&seat, |seat| seat.hold().map(|held| held.take().change()));
        let who = (home.join().unwrap(), other.join().unwrap());
        assert!(seat.hold().is_none() && seat.take().is_none(), "somebody still sits there");
        who
    });
    assert_eq!(found, [(Some(0), None), (None, Some(0))].into());
}

/// Fails when `Held::take` leaves the seat held, or puts the domain back as the end of a hold does.
#[test]
fn who_leaves_is_in_nobodys_hands() {
    let found = every_order(|| {
        let seat = Arc::new(taken_seat());
        let home = cpu(&seat, turn_if_there);
        let other = cpu(&seat, hold_and_change);
        let leaver = cpu(&seat, |seat| attempt(|| seat.hold().map(Held::take)));
        let mut gone = leaver.join().unwrap();
        // Whatever the others do is done with it before.
        let before = gone.change();
        drop(gone);
        let (turn, held) = (home.join().unwrap(), other.join().unwrap());
        assert_eq!(before, u32::from(turn.is_some()) + u32::from(held.is_some()), "a change is lost");
        assert!(seat.hold().is_none(), "somebody still sits there");
        (turn.is_some(), held.is_some())
    });
    assert_eq!(found, [(false, false), (false, true), (true, false), (true, true)].into());
}

/// Nothing but the seats is between the three here. Fails when `put` does not release, or `Held::take` leaves the old
/// seat held.
#[test]
fn who_is_moved_is_in_one_seat_with_all_that_was_done() {
    let found = every_order(|| {
        let seats = Arc::new([taken_seat(), Seat::empty()]);
        let old = cpu(&seats, |[from, _]| turn_if_there(from));
        let new = cpu(&seats, |[_, to]| {
            let mut running = attempt(|| to.take());
            let before = running.change();
            to.put(running);
            before
        });
        let mover = cpu(&seats, |[from, to]| {
            let mut held = attempt(|| from.hold());
            held.change();
            to.put(held.take());
        });
        mover.join().unwrap();
        let (old, new) = (old.join().unwrap(), new.join().unwrap());
        let [from, to] = &*seats;
        assert!(from.hold().is_none(), "it still sits where it was");
        assert_eq!(changes_in(to), Some(new + 1), "a change is lost");
        (old, new)
    });
    assert_eq!(found, [(None, 1), (Some(0), 2)].into());
}

/// The slot is used again, with a box that may lie where the first did. Fails when `Held::take` leaves the seat held,
/// or the exchange does not acquire.
#[test]
fn who_comes_behind_another_is_not_taken_for_it() {
    const SECOND: u32 = 10;
    let found = every_order(|| {
        let seat = Arc::new(taken_seat());
        let others = [cpu(&seat, hold_and_change), cpu(&seat, hold_and_change)];
        let control = cpu(&seat, |seat| {
            let first = attempt(|| seat.hold().map(Held::take)).changes();
            seat.put(Running::changed(SECOND));
            first
        });
        let first = control.join().unwrap();
        let held = others.map(|other| other.join().unwrap());
        let (of_second, of_first): (Vec<u32>, Vec<u32>) = held.iter().flatten().partition(|&&before| before >= SECOND);
        assert_eq!(first, of_first.len() as u32, "a change of the first is lost");
        assert_eq!(changes_in(&seat), Some(SECOND + of_second.len() as u32), "a change of the second is lost");
        (of_first.len(), of_second.len())
    });
    assert_eq!(found, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)].into());
}
