//! Guests that test something of their own, while domain 0 watches what they write (log-dirty): they are to see no
//! difference.
//!
//! `watch=LAST` on the command line: domains 1 to LAST.

use crate::ask;
use proxenos_guest::abi::dom0_ops::args::{DomainFlags, GetDomainInfo, ShadowControl, ShadowControlOp};
use proxenos_guest::abi::{DomId, Errno, GuestWord, Padded, Virq};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check, check_eq, events, hypercall, println, time};

/// Words of a record: of a domain of 32 MiB.
const WORDS: usize = 256;
/// Between two looks at the records, in nanoseconds.
const PAUSE: u64 = 300_000;
/// Every so many looks all shadows are dropped besides.
const FLUSH: u32 = 16;
/// Domains that are watched at most.
const MOST: usize = 8;

struct Watched {
    domain: DomId,
    /// Frames that were recorded, all looks together.
    recorded: u32,
    ended: bool,
}

impl Watched {
    /// A request, what was recorded by the bitmap, and by the count since the last flush.
    fn control(&self, op: ShadowControlOp) -> (Result<usize, Errno>, u32, u32) {
        let mut bitmap = [0_u32; WORDS];
        let request = ShadowControl::<Arch> {
            domain: self.domain,
            op: op.raw(),
            dirty_bitmap: Padded::new(bitmap.as_mut_ptr() as Word),
            pages: Padded::new(Word::from_u64_truncating(32 * WORDS as u64)),
            ..ShadowControl::<Arch>::default()
        };
        let (result, answer) = ask(request);
        let stats = answer.stats;
        (result, bitmap.iter().map(|word| word.count_ones()).sum(), stats.dirty_count)
    }

    fn has_ended(&self) -> bool {
        let (result, info) = ask(GetDomainInfo::<Arch> { domain: self.domain, ..GetDomainInfo::<Arch>::default() });
        check_eq!(result, Ok(0));
        DomainFlags::from_bits_retain(info.flags).intersects(DomainFlags::SHUTDOWN | DomainFlags::CRASHED)
    }
}

pub fn run(last: usize) {
    section("guests that are watched");
    events::handle_virq(Virq::Timer, |_| ()).expect("the timer can be bound");
    let mut all: [Watched; MOST] =
        core::array::from_fn(|index| Watched { domain: DomId(index as u16 + 1), recorded: 0, ended: false });
    let all = &mut all[..last];
    for watched in &*all {
        check_eq!(watched.control(ShadowControlOp::EnableLogdirty).0, Ok(0), "domain {}", watched.domain.0);
    }
    for look in 1.. {
        let until = time::system_time() + PAUSE;
        check_eq!(hypercall::set_timer_op(until), Ok(()));
        events::wait_until(|| time::system_time() >= until);
        for watched in all.iter_mut().filter(|watched| !watched.ended) {
            watched.ended = watched.has_ended();
            let (result, bits, count) = watched.control(ShadowControlOp::Clean);
            check!(result == Ok(0) && bits >= count, "domain {}: {result:?}, {bits} of {count}", watched.domain.0);
            watched.recorded += bits;
            if look % FLUSH == 0 {
                check_eq!(watched.control(ShadowControlOp::Flush).0, Ok(0));
            }
        }
        if all.iter().all(|watched| watched.ended) {
            println!("{look} looks");
            break;
        }
    }
    for watched in &*all {
        check!(watched.recorded > 0, "domain {}: nothing recorded", watched.domain.0);
    }
    let recorded: u32 = all.iter().map(|watched| watched.recorded).sum();
    check!(recorded > 100, "{recorded} frames recorded");
}
