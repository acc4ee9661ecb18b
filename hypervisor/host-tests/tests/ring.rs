//! The console's log ring.

#[path = "../../src/console/ring.rs"]
mod ring;

use proptest::prelude::*;
use ring::{Position, Ring};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_reader_gets_what_was_written_or_learns_what_it_missed(
        steps in prop::collection::vec((0..9000usize, 0..9000usize), 1..30),
    ) {
        let mut ring = Box::new(Ring::new());
        let mut all = Vec::new();
        let mut position = Position::default();
        let mut buffer = vec![0; 9000];
        for (write, read) in steps {
            let piece: Vec<u8> = (all.len()..all.len() + write).map(|at| ((at * 31) >> 3) as u8).collect();
            ring.write(&piece);
            all.extend(piece);
            let reading = ring.read_since(position, &mut buffer[..read]);
            let start = (position.0 + reading.lost) as usize;
            prop_assert_eq!(&buffer[..reading.copied], &all[start..start + reading.copied]);
            prop_assert_eq!(reading.next, Position((start + reading.copied) as u64));
            prop_assert!(reading.copied == read || reading.next.0 == all.len() as u64);
            prop_assert!(reading.lost == 0 || all.len() - start == 32 << 10, "only what had to go is lost");
            position = reading.next;
        }
    }
}

#[test]
fn what_is_forgotten_is_not_kept() {
    let mut ring = Box::new(Ring::new());
    assert_eq!(ring.kept(), Position(0)..Position(0));
    ring.write(&[1; 100]);
    ring.forget(Position(60));
    ring.forget(Position(20));
    assert_eq!(ring.kept(), Position(60)..Position(100), "nothing comes back");
    ring.forget(Position(1 << 40));
    assert_eq!(ring.kept(), Position(100)..Position(100), "what is not written yet is not forgotten");
    ring.write(&[2; 100_000]);
    assert_eq!(ring.kept(), Position(100_100 - (32 << 10))..Position(100_100));
}

#[test]
fn more_than_fits_keeps_the_end() {
    let mut ring = Box::new(Ring::new());
    let bytes: Vec<u8> = (0..100_000u32).map(|at| (at >> 8) as u8).collect();
    ring.write(&bytes);
    let mut buffer = vec![0; 40_000];
    let reading = ring.read_since(Position(0), &mut buffer);
    assert_eq!(reading.copied, 32 << 10);
    assert_eq!(reading.lost, 100_000 - (32 << 10));
    assert_eq!(buffer[..reading.copied], bytes[100_000 - (32 << 10)..]);
}

#[test]
fn a_position_ahead_is_the_end() {
    let ring = Box::new(Ring::new());
    let reading = ring.read_since(Position(u64::MAX), &mut [0; 4]);
    assert_eq!((reading.copied, reading.next), (0, Position(0)));
}
