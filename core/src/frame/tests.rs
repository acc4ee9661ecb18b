//! One frame's word, request by request.

use super::mapping::WritableOf;
use super::word::{ALLOCATED, ONE_TYPE, VALIDATED};
use super::*;

fn frame() -> FrameInfo {
    let frame = FrameInfo::reserved();
    frame.assign(DomId(1));
    frame
}

#[test]
fn only_the_owner_gets_references() {
    let frame = frame();
    assert_eq!(frame.get(DomId(2)), Err(RefError::NotOwner));
    assert_eq!(frame.get(DomId(1)), Ok(()));
    assert_eq!(frame.refs().count(), 2);
    assert!(!frame.put());
    assert_eq!(frame.put_allocation(), Some(true));
    assert_eq!(frame.put_allocation(), None);
    assert_eq!(frame.get(DomId(1)), Err(RefError::NotOwner), "a freed frame is nobody's");
}

#[test]
fn a_type_excludes_every_other_until_its_count_is_zero() {
    let frame = frame();
    let no_flush = |_| ();
    assert_eq!(frame.get_type(FrameType::Writable, no_flush), Ok(TypeGrant::Held));
    assert_eq!(frame.get_type(FrameType::L1, no_flush), Err(RefError::WrongType));
    assert_eq!(frame.put_type(|| 7), TypeRest::Last);
    let flushed = core::cell::Cell::new(None);
    assert_eq!(frame.get_type(FrameType::L1, |stamp| flushed.set(Some(stamp))), Ok(TypeGrant::MustValidate));
    assert_eq!(flushed.get(), Some(7), "a new type is preceded by a flush as of the old one's end");
    assert_eq!(frame.get_type(FrameType::L1, no_flush), Err(RefError::WrongType), "not validated yet");
    frame.set_validated();
    assert_eq!(frame.get_type(FrameType::L1, no_flush), Ok(TypeGrant::Held));
    assert_eq!(frame.get_type(FrameType::Writable, no_flush), Err(RefError::WrongType));
    assert_eq!(frame.put_type(|| 8), TypeRest::Held);
    assert_eq!(frame.put_type(|| 9), TypeRest::Last);
    assert!(!frame.type_word().is_validated());
}

#[test]
fn no_type_is_taken_again_while_its_successor_is_being_flushed() {
    let frame = frame();
    assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Ok(TypeGrant::Held));
    assert_eq!(frame.put_type(|| 5), TypeRest::Last);
    // What another CPU does meanwhile happens within the flush. It must not get the old type back: nobody would
    // flush for it (XSA-401).
    let became = frame.get_type(FrameType::L1, |_| {
        assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Err(RefError::WrongType));
        assert_eq!(frame.get_type(FrameType::L1, |_| ()), Err(RefError::WrongType), "nor the new one, unvalidated");
    });
    assert_eq!(became, Ok(TypeGrant::MustValidate));
    frame.abandon_type();
    // Writable memory needs no validation, but the flush all the same: the second to take it makes it as well.
    let flushes = core::cell::Cell::new(0);
    let flush = |_| flushes.set(flushes.get() + 1);
    let became = frame.get_type(FrameType::Writable, |_| {
        flush(0);
        assert_eq!(frame.get_type(FrameType::Writable, flush), Ok(TypeGrant::Held));
    });
    assert_eq!((became, flushes.get()), (Ok(TypeGrant::Held), 2));
    assert_eq!((frame.type_word().count(), frame.type_word().is_validated()), (2, true));
}

#[test]
fn the_later_stamp_stays_even_when_the_clock_wraps() {
    let frame = frame();
    for (stamp, stays) in [(7, 7), (5, 7), (0x7000_0000, 0x7000_0000), (0xe000_0000, 0xe000_0000), (3, 3)] {
        frame.set_stamp(stamp);
        assert_eq!(frame.stamp(), stays);
    }
}

#[test]
fn a_frame_is_nobodys_while_it_changes_hands() {
    let frame = frame();
    frame.set_stamp(9);
    assert!(frame.reassign(DomId(1), DomId(2), |stamp| {
        assert_eq!(stamp, 9);
        assert_eq!(frame.get(DomId(1)), Err(RefError::NotOwner));
        assert_eq!(frame.get(DomId(2)), Err(RefError::NotOwner));
    }));
    assert_eq!(frame.get(DomId(2)), Ok(()));
    assert!(!frame.reassign(DomId(2), DomId(1), |_| ()), "somebody refers to it");
}

#[test]
fn counts_stop_at_their_limit() {
    let frame = frame();
    assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Ok(TypeGrant::Held));
    frame.word.fetch_or(REFS | TYPES, Ordering::Relaxed);
    assert_eq!(frame.get(DomId(1)), Err(RefError::Overflow));
    assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Err(RefError::Overflow));
    assert_eq!((frame.refs().owner(), frame.type_word().kind()), (DomId(1), FrameType::Writable));
}

#[test]
fn pins_are_counted_once() {
    let frame = frame();
    assert!(frame.pin());
    assert!(!frame.pin());
    assert!(frame.unpin());
    assert!(!frame.unpin());
}

#[test]
fn a_mapping_takes_and_gives_back_both_references_at_once() {
    let frame = frame();
    let counts = || (frame.refs().count(), frame.type_word().count(), frame.type_word().is_validated());
    assert!(!frame.get_writable(DomId(1)), "nobody has flushed for its being writable");
    assert_eq!(frame.get(DomId(1)), Ok(()));
    assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Ok(TypeGrant::Held));
    assert!(!frame.get_writable(DomId(2)) && !frame.get_writable(DomId(0x8001)), "somebody else's");
    assert!(frame.get_writable(DomId(1)));
    assert_eq!(counts(), (3, 2, true));
    assert!(!frame.put_writable(4));
    assert!(!frame.put_writable(5));
    assert_eq!((counts(), frame.stamp()), ((1, 0, false), 5));
    assert!(frame.get_writable(DomId(1)), "it was writable last");
    assert_eq!(counts(), (2, 1, true));
    assert_eq!(frame.put_allocation(), Some(false));
    assert!(frame.put_writable(6), "the last reference of all");
    assert!(!frame.get_writable(DomId(1)), "a frame without references is nobody's");
    assert_eq!(counts(), (0, 0, false));
}

/// Of whatever a frame may look like: where the quick way takes a reference, the slow one would have taken the same.
#[test]
fn the_quick_reference_of_a_reader_is_the_slow_one() {
    let frame = frame();
    let start = frame.word.load(Ordering::Relaxed);
    let look = |word: u64, owner: DomId| {
        let of = |get: &dyn Fn() -> bool| {
            frame.word.store(word, Ordering::Relaxed);
            (get(), frame.word.load(Ordering::Relaxed))
        };
        let quick = of(&|| frame.get_readable_quickly(WritableOf::domain(owner)));
        let slow = of(&|| frame.get(owner).is_ok());
        assert_eq!(quick, if quick.0 { slow } else { (false, word) }, "{word:#x} {owner:?}");
        quick.0
    };
    assert!(look(start, DomId(1)), "the usual one");
    assert!(look(start | VALIDATED | ONE_TYPE, DomId(1)));
    assert!(!look(start, DomId(2)) && !look(start, DomId(0x8001)), "somebody else's");
    assert!(!look(start | REFS, DomId(1)), "a count that is full");
    assert!(!look(start & !REFS & !ALLOCATED, DomId(1)), "nobody's");
    for bit in 0..64 {
        for owner in [1, 2, 3, 0x7ff1, 0x8000, 0x8001, 0xffff] {
            let word = start ^ 1 << bit;
            // The owner's own reference is one.
            if word & ALLOCATED == 0 || word & REFS != 0 {
                look(word, DomId(owner));
            }
        }
    }
}

#[test]
fn io_memory_is_not_counted() {
    let frame = FrameInfo::reserved();
    assert!(!frame.get_writable(DomId::IO));
    assert!(!frame.put_writable(3) && !frame.put_readable(3));
    assert_eq!((frame.refs().count(), frame.type_word().count(), frame.refs().owner()), (0, 0, DomId::IO));
}

#[test]
fn the_quick_way_leaves_full_counts_to_the_slow_one() {
    for full in [REFS, TYPES] {
        let frame = frame();
        assert_eq!(frame.get(DomId(1)), Ok(()));
        assert_eq!(frame.get_type(FrameType::Writable, |_| ()), Ok(TypeGrant::Held));
        frame.word.fetch_or(full, Ordering::Relaxed);
        let before = frame.word.load(Ordering::Relaxed);
        assert!(!frame.get_writable(DomId(1)));
        assert_eq!(frame.word.load(Ordering::Relaxed), before);
    }
}

#[test]
fn a_partial_table_keeps_its_references_its_owner_and_its_mark() {
    let frame = frame();
    assert_eq!(frame.get(DomId(1)), Ok(()));
    assert_eq!(frame.get_type(FrameType::L2, |_| ()), Ok(TypeGrant::MustValidate));
    let seen = || (frame.refs().count(), frame.refs().owner(), frame.type_word().kind(), frame.type_word().count());
    let as_ever = (2, DomId(1), FrameType::L2, 1);
    for (done, condition) in [(0, Condition::Suspended), (1024, Condition::Condemned), (1023, Condition::Suspended)] {
        frame.set_partial(done, condition);
        let word = frame.type_word();
        assert_eq!((word.partial(), word.is_pinned(), word.is_validated()), (Some((done, condition)), false, false));
        assert!(!frame.unpin(), "what marks it is no pin");
        assert_eq!((frame.type_word(), seen()), (word, as_ever));
        assert_eq!(frame.get_type(FrameType::L2, |_| ()), Err(RefError::WrongType));
    }
    frame.resume_validation();
    assert_eq!((frame.type_word().partial(), seen()), (None, as_ever));
    frame.set_validated();
    assert_eq!(frame.get_held_type(FrameType::L2), Ok(()));
    frame.put_type(|| 0);
    frame.set_partial(7, Condition::Condemned);
    assert_eq!((frame.put_type(|| 0), frame.type_word().partial()), (TypeRest::Last, None));
}

#[test]
fn the_next_frame_of_an_owner_is_found_or_the_look_ends() {
    extern crate std;
    let records = std::vec::Vec::from_iter((0..20).map(|_| FrameInfo::reserved())).leak();
    let table = FrameTable::new(records);
    records[7].assign(DomId(1));
    records[9].assign(DomId(2));
    records[19].assign(DomId(1));
    let next = |from, most| table.next_of(DomId(1), Mfn(from), most).0;
    assert_eq!([next(0, 100), next(7, 100), next(8, 100), next(20, 100)], [7, 7, 19, 20]);
    assert_eq!([next(0, 7), next(0, 8), next(8, 3), next(8, 0)], [7, 7, 11, 8]);
    assert_eq!(table.next_of(DomId(3), Mfn(0), u64::MAX), Mfn(20));
}
