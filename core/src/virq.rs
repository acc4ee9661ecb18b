//! Where virtual interrupts come from that are not a domain's timer: the console, the debug key, domains that end, and
//! hardware that reports errors.
//!
//! All but VIRQ_DEBUG are domain 0's, as in Xen 2.0. No lock: delivery takes none.

use crate::addr::DomId;
use crate::domain::Domain;
use crate::event::{EventDomains, raise_virq};
use crate::host::{Hardware, Host};
use proxenos_abi::Virq;

/// Tells domain 0 something.
fn tell_domain0<H: Hardware>(host: &Host<H>, virq: Virq) {
    if let Some(domain0) = host.domains.find(DomId::DOM0) {
        raise_virq(&*domain0, &host.hw, virq);
    }
}

/// Something was typed at the console, where nothing waited to be read.
pub fn console_input<H: Hardware>(host: &Host<H>) {
    tell_domain0(host, Virq::Console);
}

/// A domain has shut down or was stopped. Of its own end domain 0 is not told: it is the machine's.
#[cold]
#[inline(never)]
pub fn domain_ended<H: Hardware>(host: &Host<H>, dom: &Domain) {
    if dom.id != DomId::DOM0 {
        tell_domain0(host, Virq::DomExc);
    }
}

/// A domain is asked to tell of itself.
pub fn debug<H: Hardware>(host: &Host<H>, dom: &Domain) {
    raise_virq(dom, &host.hw, Virq::Debug);
}

/// What hardware reported by an NMI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HardwareErrors {
    /// Memory's parity, or a system error of PCI.
    pub parity: bool,
    /// A card's channel check.
    pub io: bool,
}

/// Port 61h of the PC/AT: which errors have been reported, and which are (Intel ICH9 data sheet, 13.8.1 "NMI status and
/// control").
const PARITY_SOURCE: u8 = 1 << 7;
const IO_SOURCE: u8 = 1 << 6;
const IO_OFF: u8 = 1 << 3;
const PARITY_OFF: u8 = 1 << 2;
/// Those of its bits that are written: the others are status.
const CONTROL: u8 = 0xf;

impl HardwareErrors {
    /// What a reading of the port says, and what to write to it: who has reported an error is turned off until the
    /// machine starts again, lest it report the same without end.
    #[must_use]
    pub const fn of_port(value: u8) -> (Self, Option<u8>) {
        // All ones: there is no such port.
        let value = if value == 0xff { 0 } else { value };
        let errors = Self { parity: value & PARITY_SOURCE != 0, io: value & IO_SOURCE != 0 };
        let off = if errors.parity { PARITY_OFF } else { 0 } | if errors.io { IO_OFF } else { 0 };
        (errors, if off == 0 { None } else { Some(value & CONTROL | off) })
    }

    /// Tells domain 0 of them.
    pub fn report<H: Hardware>(self, host: &Host<H>) {
        for (_, virq) in [(self.parity, Virq::ParityErr), (self.io, Virq::IoErr)].into_iter().filter(|(is, _)| *is) {
            tell_domain0(host, virq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::MachineAddr;
    use crate::domain::{Arch, Privileges};
    use crate::event::bind_virq;
    use crate::machine::MachineMemory;
    use crate::sim_hw;
    use proxenos_abi::shared_info::SharedInfo;

    /// Ports of the first 32 that are pending.
    fn pending(host: &Host<sim_hw::SimHardware>, dom: &Domain) -> u32 {
        host.hw.load32(MachineAddr(dom.shared_info.addr().0 + SharedInfo::EVTCHN_PENDING as u64))
    }

    #[test]
    fn domain_0_is_told() {
        let host = sim_hw::host(1024, 2);
        let zero = sim_hw::domain(&host, DomId(0), Arch::X86_32, Privileges::CONTROL, 8);
        let one = sim_hw::domain(&host, DomId(1), Arch::X86_64, Privileges::empty(), 8);
        let bound = [Virq::Console, Virq::DomExc, Virq::ParityErr, Virq::IoErr, Virq::Debug]
            .map(|virq| 1 << bind_virq(&*zero.dom, virq).unwrap().0);
        let mut expected = 0;
        let mut check = |bits: u32| {
            expected |= bits;
            assert_eq!(pending(&host, &zero.dom), expected);
        };
        check(0);
        console_input(&host);
        check(bound[0]);
        domain_ended(&host, &one.dom);
        check(bound[1]);
        domain_ended(&host, &zero.dom);
        HardwareErrors::of_port(0x80).0.report(&host);
        check(bound[2]);
        HardwareErrors::of_port(0x40).0.report(&host);
        check(bound[3]);
        debug(&host, &zero.dom);
        check(bound[4]);
        assert_eq!(pending(&host, &one.dom), 0);
        debug(&host, &one.dom);
        assert_eq!(pending(&host, &one.dom), 1, "not bound: port 0");
    }

    #[test]
    fn reasons_of_nmis() {
        let errors = |parity, io| HardwareErrors { parity, io };
        assert_eq!(HardwareErrors::of_port(0x30), (errors(false, false), None));
        assert_eq!(HardwareErrors::of_port(0xb1), (errors(true, false), Some(0x05)));
        assert_eq!(HardwareErrors::of_port(0x71), (errors(false, true), Some(0x09)));
        assert_eq!(HardwareErrors::of_port(0xff), (errors(false, false), None), "no such port");
        assert_eq!(HardwareErrors::of_port(0xc0), (errors(true, true), Some(0x0c)));
    }
}
