//! A domain that goes from CPU to CPU.

use crate::subject::Subject;
use crate::{NOBODY, SUBJECT, ask, cpus};
use proxenos_guest::abi::dom0_ops::args::{DomainFlags, GetDomainInfo, PinCpuDomain};
use proxenos_guest::abi::{DomId, Errno};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, check, check_eq};

/// How often it is moved.
const MOVES: u32 = 40;

/// Pins a domain.
pub fn pin(domain: DomId, cpu: i32) -> Result<usize, Errno> {
    ask(PinCpuDomain { domain, pad: 0, cpu }).0
}

/// The CPU that the subject is on.
fn whereabouts() -> u8 {
    let (result, info) = ask(GetDomainInfo::<Arch> { domain: SUBJECT, ..GetDomainInfo::<Arch>::default() });
    check_eq!(result, Ok(0));
    DomainFlags::from_bits_retain(info.flags).cpu()
}

pub fn run(subject: &Subject) {
    section("pinning");
    check_eq!(pin(SUBJECT, cpus() as i32), Err(Errno::EINVAL), "no such CPU");
    check_eq!(pin(SUBJECT, -2), Err(Errno::EINVAL));
    check_eq!(pin(NOBODY, 0), Err(Errno::ESRCH));
    check_eq!(pin(DomId::DOM0, 0), Err(Errno::EINVAL), "oneself");
    for busy in [false, true] {
        subject.keep_busy(busy);
        for number in 0..MOVES {
            let cpu = number % cpus();
            check_eq!(pin(SUBJECT, cpu as i32), Ok(0), "move {number}");
            check_eq!(u32::from(whereabouts()), cpu, "move {number}");
            if busy {
                check!(subject.gets_on(), "move {number}");
            } else {
                subject.exchange();
            }
        }
    }
    subject.keep_busy(false);
    check_eq!(pin(SUBJECT, -1), Ok(0));
    subject.exchange();
}
