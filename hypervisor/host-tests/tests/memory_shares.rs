//! The machine's memory, divided.

#[path = "../../src/memory_shares.rs"]
mod memory_shares;

use memory_shares::{Frames, for_further, needs, of_domain0, reserve, to_build};
use proptest::prelude::*;

#[test]
fn domain_0_gets_what_it_is_said_to_have() {
    let (free, kept) = (Frames(30_000), reserve(Frames(30_000)));
    assert_eq!(kept, Frames(2048));
    assert_eq!(of_domain0(free, kept, Some(Frames(8192)), Frames(9000)), Ok(Frames(8192)));
    let most = of_domain0(free, kept, None, Frames(0)).unwrap();
    assert_eq!(of_domain0(free, kept, Some(most), Frames(0)), Ok(most));
    assert_eq!(of_domain0(free, kept, Some(Frames(most.0 + 1)), Frames(0)), Err(most));
    assert_eq!(of_domain0(Frames(1000), kept, None, Frames(0)), Ok(Frames(0)));
}

#[test]
fn never_more_than_half_is_put_aside() {
    let (free, kept) = (Frames(30_000), reserve(Frames(30_000)));
    let least = of_domain0(free, kept, None, Frames(u64::MAX)).unwrap();
    assert_eq!(to_build(least), Frames((30_000 - 2048) / 2));
}

/// A machine of 64 GiB: the list of domain 0's frames alone is as long as the reserve.
#[test]
fn a_large_machine_has_room_for_another_domain() {
    let free = Frames(64 << 18);
    let kept = reserve(free);
    let wanted = needs(Frames(2048), None);
    let pages = of_domain0(free, kept, None, wanted).unwrap();
    assert!(pages.0 / 512 > kept.0 / 2);
    assert!(for_further(free.less(to_build(pages)), kept) >= wanted);
}

proptest! {
    #[test]
    fn what_is_put_aside_is_there(
        (bits, mantissa) in (12..32_u32, 0.5..1.0_f64),
        further in prop::collection::vec((256..1_u64 << 20, prop::option::of(96..100_000_u64)), 0..6),
        taken in 0.0..1.0_f64,
    ) {
        let free = Frames((mantissa * f64::from(bits).exp2()) as u64);
        let kept = reserve(free);
        let list: Vec<_> = further.iter().map(|&(pages, shadows)| (Frames(pages), shadows.map(Frames))).collect();
        let wanted = list.iter().fold(Frames(0), |sum, &(pages, shadows)| sum.and(needs(pages, shadows)));
        let pages = of_domain0(free, kept, None, wanted).unwrap();
        // Tables, shadows and records of the hypervisor's: a quarter of the reserve at the most.
        let own = Frames((taken * (kept.0 / 4) as f64) as u64);
        let mut left = free.less(to_build(pages)).less(own);
        prop_assert!(free.0 < kept.0 || left.and(own) >= kept, "the reserve is kept");
        if wanted.0 <= free.less(kept).0 / 2 {
            for &(pages, shadows) in &list {
                let needs = needs(pages, shadows);
                prop_assert!(for_further(left, kept) >= needs, "{left:?} left of {free:?}, {needs:?} needed");
                left = left.less(needs);
            }
        }
    }
}
