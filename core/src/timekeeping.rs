//! The clock that guests read: the time fields of `shared_info_t`, and the arithmetic behind them.
//!
//! A guest takes the time from four fields that belong together (time-stamp counter, system time, wall clock, its own
//! virtual time) and adds what its counter has advanced since. They change under its eyes, so two version numbers
//! bracket them: `time_version1` is bumped before a change, `time_version2` after it, and what was read between equal
//! versions is consistent (xen.h, "Time").
//!
//! No lock: the CPU that runs the domain is the only writer.

use crate::addr::{MachineAddr, Mfn};
use crate::machine::MachineMemory;
use proxenos_abi::shared_info::SharedInfo;

/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;

/// A moment, as guests are told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The time-stamp counter, in cycles.
    pub tsc: u64,
    /// System time: nanoseconds since the machine booted.
    pub system_ns: u64,
    /// Wall clock: nanoseconds since 1970-01-01 00:00:00 UTC.
    pub wall_ns: u64,
    /// Domain virtual time: nanoseconds that the domain has run.
    pub domain_ns: u64,
}

fn field(shared_info: Mfn, offset: usize) -> MachineAddr {
    MachineAddr(shared_info.addr().0 + offset as u64)
}

/// Says how fast the time-stamp counter runs, in Hz. Guests divide by it.
pub fn write_frequency(memory: &impl MachineMemory, shared_info: Mfn, hz: u64) {
    memory.store64(field(shared_info, SharedInfo::CPU_FREQ), hz);
}

/// Writes a moment, between the two versions. The guest may have scribbled on the page: the versions still end equal.
pub fn write_moment(memory: &impl MachineMemory, shared_info: Mfn, moment: &Moment) {
    let (version1, version2) =
        (field(shared_info, SharedInfo::TIME_VERSION1), field(shared_info, SharedInfo::TIME_VERSION2));
    let next = memory.load32(version1).wrapping_add(1);
    memory.store32(version1, next);
    memory.store64(field(shared_info, SharedInfo::TSC_TIMESTAMP), moment.tsc);
    memory.store64(field(shared_info, SharedInfo::SYSTEM_TIME), moment.system_ns);
    memory.store32(field(shared_info, SharedInfo::WC_SEC), (moment.wall_ns / NS_PER_SEC) as u32);
    memory.store32(field(shared_info, SharedInfo::WC_USEC), (moment.wall_ns % NS_PER_SEC / 1000) as u32);
    memory.store64(field(shared_info, SharedInfo::DOMAIN_TIME), moment.domain_ns);
    memory.store32(version2, next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimMachine;

    const PAGE: Mfn = Mfn(2);
    const NOON: Moment = Moment { tsc: 77, system_ns: 5_000_000_123, wall_ns: 1_100_000_000_654_321_999, domain_ns: 42 };

    #[test]
    fn fields_are_where_the_header_has_them() {
        let machine = SimMachine::new(4);
        write_frequency(&machine, PAGE, 2_400_000_000);
        write_moment(&machine, PAGE, &NOON);
        let at = |offset| MachineAddr(PAGE.addr().0 + offset);
        assert_eq!(machine.load64(at(264)), 2_400_000_000);
        assert_eq!(machine.load64(at(280)), 77);
        assert_eq!(machine.load64(at(288)), 5_000_000_123);
        assert_eq!((machine.load32(at(296)), machine.load32(at(300))), (1_100_000_000, 654_321));
        assert_eq!(machine.load64(at(304)), 42);
    }

    #[test]
    fn versions_agree_after_a_change_and_differ_from_before() {
        let machine = SimMachine::new(4);
        let at = |offset| MachineAddr(PAGE.addr().0 + offset);
        machine.store32(at(272), u32::MAX);
        machine.store32(at(276), 5);
        write_moment(&machine, PAGE, &NOON);
        assert_eq!((machine.load32(at(272)), machine.load32(at(276))), (0, 0));
        write_moment(&machine, PAGE, &NOON);
        assert_eq!((machine.load32(at(272)), machine.load32(at(276))), (1, 1));
    }
}
