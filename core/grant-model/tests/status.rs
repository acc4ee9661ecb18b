//! What the flags of a grant promise to a guest that keeps to the protocol, in every order of the CPUs' steps and with
//! every stale value that the memory model allows. Each model says what was broken in `core/src/grant/status.rs` to see
//! it fail.

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use proxenos_abi::grant_table::GrantFlags;
use proxenos_grant_model::status::{Access, Unfit};
use proxenos_grant_model::{DomId, Machine};

/// Domains that are granted something.
const ONE: DomId = DomId(1);
const OTHER: DomId = DomId(2);

const ACCESS: GrantFlags = GrantFlags::PERMIT_ACCESS;
const RO: GrantFlags = GrantFlags::PERMIT_ACCESS.union(GrantFlags::READONLY);
const BUSY: GrantFlags = GrantFlags::READING.union(GrantFlags::WRITING);
const ACCEPT: GrantFlags = GrantFlags::ACCEPT_TRANSFER;
const COMMITTED: GrantFlags = GrantFlags::TRANSFER_COMMITTED;
const COMPLETED: GrantFlags = GrantFlags::TRANSFER_COMPLETED;

/// How many times in a run a CPU that could go on is stopped for another: as often as can be.
const PREEMPTIONS: Option<usize> = None;

/// Runs the other CPUs beside the grantor's, which says whether it got its way, in every order; then what must be true
/// in the end.
fn every_order(
    prepare: fn(&Machine),
    others: &'static [fn(&Machine)],
    grantor: fn(&Machine) -> bool,
    end: fn(&Machine, bool),
) {
    let mut builder = Builder::new();
    builder.preemption_bound = PREEMPTIONS;
    builder.check(move || {
        let machine = Arc::new(Machine::default());
        prepare(&machine);
        let others = others.iter().map(|&other| {
            let machine = machine.clone();
            thread::spawn(move || other(&machine))
        });
        let others: Vec<_> = others.collect();
        // A thread of its own: what this one does first, the checker would never put in the midst of another's steps.
        let grantor = {
            let machine = machine.clone();
            thread::spawn(move || grantor(&machine))
        };
        others.into_iter().for_each(|other| other.join().unwrap());
        let changed = grantor.join().unwrap();
        end(&machine, changed);
    });
}

fn nothing_is_left(machine: &Machine, _: bool) {
    assert!(!machine.flags().intersects(BUSY), "{:?}", machine.flags());
}

/// Fails when flags are set by a plain store, or an entry is looked at only before the first attempt.
#[test]
fn what_was_withdrawn_is_the_grantors_alone() {
    every_order(
        |machine| machine.grant(ACCESS, ONE, 0),
        &[|machine| {
            let _: Result<u32, Unfit> = machine.map_use_unmap(ONE, Access::Write);
        }],
        |machine| {
            let withdrawn = machine.change(BUSY, |_| GrantFlags::empty());
            if withdrawn {
                machine.own(0);
            }
            withdrawn
        },
        nothing_is_left,
    );
}

/// Fails when the number is read before the flags are set, or the grantee is not part of what is exchanged.
#[test]
fn who_maps_gets_what_it_was_granted() {
    every_order(
        |machine| machine.grant(ACCESS, ONE, 0),
        &[
            |machine| {
                if let Ok(frame) = machine.map_use_unmap(ONE, Access::Write) {
                    assert_eq!(frame, 0);
                }
            },
            |machine| {
                if let Ok(frame) = machine.map_use_unmap(OTHER, Access::Read) {
                    assert_eq!(frame, 1);
                }
            },
        ],
        |machine| {
            let withdrawn = machine.change(BUSY, |_| GrantFlags::empty());
            if withdrawn {
                machine.grant(ACCESS, OTHER, 1);
                machine.own(0);
            }
            withdrawn
        },
        nothing_is_left,
    );
}

/// Fails when a writer looks at GTF_readonly before, not in, the exchange; or when GTF_writing is left where all has
/// ended.
#[test]
fn what_was_made_read_only_is_not_written_to() {
    every_order(
        |machine| machine.grant(ACCESS, ONE, 0),
        &[|machine| {
            let _: Result<u32, Unfit> = machine.map_use_unmap(ONE, Access::Write);
        }],
        |machine| {
            let changed = machine.change(GrantFlags::WRITING, |flags| flags | GrantFlags::READONLY);
            if changed {
                machine.look(0);
            }
            changed
        },
        nothing_is_left,
    );
}

fn reader(machine: &Machine) {
    if machine.map(ONE, Access::Read).is_ok() {
        assert!(machine.flags().contains(GrantFlags::READING));
        machine.unmap(Access::Read);
    }
}

fn writer(machine: &Machine) {
    if machine.map(ONE, Access::Write).is_ok() {
        assert!(machine.flags().contains(BUSY));
        machine.unmap(Access::Write);
    }
}

/// Fails when `end` clears flags that others still need, or a writer sets only one.
#[test]
fn flags_say_what_is_mapped_when_two_come_and_go() {
    every_order(
        |machine| machine.grant(ACCESS, ONE, 0),
        &[reader, writer],
        |_| false,
        |machine, _| assert_eq!(machine.flags(), ACCESS),
    );
}

/// Fails when `end` clears its flags by storing what it read.
#[test]
fn what_the_grantor_changes_meanwhile_is_kept() {
    every_order(
        |machine| machine.grant(RO, ONE, 0),
        &[reader, writer],
        |machine| {
            // From read-only to writable, by setting and clearing one bit.
            machine.change(GrantFlags::empty(), |flags| flags.difference(GrantFlags::READONLY))
        },
        |machine, changed| assert_eq!(machine.flags(), if changed { ACCESS } else { RO }),
    );
}

/// Fails when the number is written after the flag.
#[test]
fn a_frame_that_has_come_is_the_receivers() {
    every_order(
        |machine| machine.grant(ACCEPT, ONE, 40),
        &[|machine| {
            if let Ok(place) = machine.give(ONE, 1) {
                assert_eq!(place, 40);
            }
        }],
        |machine| {
            if machine.flags().contains(COMPLETED) {
                assert_eq!(machine.frame(), 1);
                machine.own(1);
                return false;
            }
            let withdrawn = machine.change(COMMITTED, |_| GrantFlags::empty());
            if withdrawn {
                // In time: nothing comes any more.
                machine.grant(ACCESS, OTHER, 0);
            }
            withdrawn
        },
        |machine, withdrawn| {
            let expected = if withdrawn { (ACCESS, 0) } else { (ACCEPT | COMMITTED | COMPLETED, 1) };
            assert_eq!((machine.flags(), machine.frame()), expected);
        },
    );
}

/// Fails when a committed entry is as good as one that waits.
#[test]
fn only_one_frame_comes() {
    every_order(
        |machine| machine.grant(ACCEPT, ONE, 0),
        &[
            |machine| {
                let _: Result<u32, Unfit> = machine.give(ONE, 0);
            },
            |machine| {
                let _: Result<u32, Unfit> = machine.give(ONE, 1);
            },
        ],
        |machine| {
            let came = machine.flags().contains(COMPLETED);
            if came {
                let frame = machine.frame();
                machine.own(frame);
            }
            came
        },
        |machine, _| {
            assert_eq!((machine.flags(), machine.given()), (ACCEPT | COMMITTED | COMPLETED, 1));
        },
    );
}
