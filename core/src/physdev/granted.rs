//! Devices that a domain was given one by one (`DOM0_PCIDEV_ACCESS`), and what comes with each: its configuration, its
//! memory, its ports, its line.
//!
//! A domain without the right to all devices may reach exactly these. They are not taken back while it lives: of memory
//! that is not RAM no mappings are counted, so nobody could tell when the last was gone (2.0 refused it, too). Memory
//! is given by frames, whole ones, so what shares a frame with a device's is given with it; ports one by one.
//!
//! Lock: the list's own, innermost.

use super::{BASE_ADDRESSES, BUS, Bus, COMMAND, IS_PORTS, PLAIN};
use crate::addr::{Mfn, PAGE_SHIFT};
use crate::domain::{Domain, Privileges};
use crate::host::Hardware;
use crate::pci::{PciAddress, PciConfig, Width};
use crate::ports::Span;
use crate::sync::Mutex;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use proxenos_abi::{Errno, Pirq};

/// Command: reads and writes memory by itself.
const IS_MASTER: u32 = 1 << 2;
/// The register that names a device's line.
const INTERRUPT_LINE: u8 = 0x3c;
/// Base address of memory: the type, its value for 64 bits, and bits that are no address.
const MEMORY_TYPE: u32 = 3 << 1;
const MEMORY_64: u32 = 2 << 1;
const MEMORY_FLAGS: u32 = 0xf;
/// Base address of ports: bits that are no port, and how many ports there are.
const PORT_FLAGS: u32 = 3;
const PORTS: u32 = 1 << 16;

/// A device that was given.
#[derive(Debug)]
struct Device {
    at: PciAddress,
    line: Pirq,
    /// Frames that its memory lies in.
    memory: Vec<RangeInclusive<u64>>,
    /// Its ports.
    ports: Vec<RangeInclusive<u16>>,
}

/// All that a domain was given.
#[derive(Debug, Default)]
pub struct Granted(Mutex<Vec<Device>>);

impl Granted {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Whether there is any.
    pub(crate) fn has_any(&self) -> bool {
        !self.0.lock().is_empty()
    }

    /// Whether a device is among them.
    pub(super) fn has(&self, at: PciAddress) -> bool {
        self.0.lock().iter().any(|device| device.at == at)
    }

    /// Whether one of them interrupts by this line.
    pub(crate) fn has_line(&self, line: Pirq) -> bool {
        self.0.lock().iter().any(|device| device.line == line)
    }

    /// Whether any of them has ports.
    pub(crate) fn has_ports(&self) -> bool {
        self.0.lock().iter().any(|device| !device.ports.is_empty())
    }

    /// Whether an instruction uses no ports but those of one of them.
    #[must_use]
    pub fn covers(&self, span: Span) -> bool {
        self.0.lock().iter().any(|device| device.ports.iter().any(|ports| span.lies_within(ports)))
    }

    /// Whether memory of one of them lies in a frame.
    pub(crate) fn has_memory(&self, frame: Mfn) -> bool {
        self.0.lock().iter().any(|device| device.memory.iter().any(|range| range.contains(&frame.0)))
    }
}

/// Gives a domain a device, as whoever has them all. One that has it already keeps it.
///
/// # Errors
/// ENODEV if there is none, EPERM for a bridge, ENOMEM.
pub fn give<H: Hardware>(hw: &H, dom: &Domain, at: PciAddress) -> Result<(), Errno> {
    let device = describe(hw, dom, at)?;
    if dom.privileges.contains(Privileges::DEVICES) {
        return Ok(());
    }
    let mut granted = dom.granted.0.lock();
    if granted.iter().any(|device| device.at == at) {
        return Ok(());
    }
    granted.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    granted.push(device);
    drop(granted);
    dom.pirqs.call_once(|| hw.interrupt_lines());
    Ok(())
}

/// A domain ends: the devices that it was given read and write no memory any more, which is about to be others'. (One
/// that had them all is domain 0, and does not end.)
pub fn retire<H: PciConfig>(hw: &H, dom: &Domain) {
    for device in &*dom.granted.0.lock() {
        let _bus = BUS.lock();
        let command = hw.pci_read(device.at, COMMAND, Width::Two);
        hw.pci_write(device.at, COMMAND, Width::Two, command & !IS_MASTER);
    }
}

/// Looks a device up, and what belongs to it. Its base addresses are sized, with nobody of that domain's accessing the
/// bus meanwhile.
fn describe<H: PciConfig>(hw: &H, dom: &Domain, at: PciAddress) -> Result<Device, Errno> {
    let bus = Bus::new(hw, dom);
    if bus.header_type(at).ok_or(Errno::ENODEV)? & !super::MULTIFUNCTION != PLAIN {
        return Err(Errno::EPERM);
    }
    let (mut memory, mut ports) = (Vec::new(), Vec::new());
    let _bus = BUS.lock();
    let mut registers = BASE_ADDRESSES.step_by(4);
    while let Some(register) = registers.next() {
        let now = hw.pci_read(at, register, Width::Four);
        let low_size = bus.size(at, register, u32::MAX);
        if now & IS_PORTS != 0 {
            ports.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            ports.extend(ports_of(now, low_size));
            continue;
        }
        if low_size & !MEMORY_FLAGS == 0 {
            continue;
        }
        let (mut start, mut mask) = (u64::from(now & !MEMORY_FLAGS), u64::from(low_size & !MEMORY_FLAGS) | !0 << 32);
        if now & MEMORY_TYPE == MEMORY_64
            && let Some(upper) = registers.next()
        {
            start |= u64::from(hw.pci_read(at, upper, Width::Four)) << 32;
            mask = mask & 0xffff_ffff | u64::from(bus.size(at, upper, u32::MAX)) << 32;
        }
        let last = start.saturating_add(!mask);
        // One that was given no address yet has none.
        if start != 0 {
            memory.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            memory.push(start >> PAGE_SHIFT..=last >> PAGE_SHIFT);
        }
    }
    Ok(Device { at, line: Pirq(hw.pci_read(at, INTERRUPT_LINE, Width::One)), memory, ports })
}

/// The ports that a base address names, by what it reads as after ones were written to it: none, if it was given no
/// address, or one past the last port.
fn ports_of(now: u32, size: u32) -> Option<RangeInclusive<u16>> {
    // A device may answer to fewer bits than there could be: the upper half need not be there.
    let (start, mask) = (now & !PORT_FLAGS, size & !PORT_FLAGS & (PORTS - 1));
    let bytes = mask & mask.wrapping_neg();
    if start == 0 || bytes == 0 || start + (bytes - 1) >= PORTS {
        return None;
    }
    Some(start as u16..=(start + (bytes - 1)) as u16)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FakeBus, at, domain, read};
    use super::*;

    #[test]
    fn ports_of_base_addresses() {
        for (now, size, ports) in [
            (0xc001, 0xffff_ffe1, Some(0xc000..=0xc01f)),
            (0xc041, 0xfff1, Some(0xc040..=0xc04f)),
            (0xfffd, 0xffff_fffd, Some(0xfffc..=0xffff)),
            (0x1, 0xffff_ffe1, None),
            (0xc001, 0x1, None),
            (0x0001_0001, 0xffff_ffe1, None),
            (u32::MAX, u32::MAX, None),
        ] {
            assert_eq!(ports_of(now, size), ports, "{now:#x} {size:#x}");
        }
    }

    #[test]
    fn what_comes_with_a_device() {
        let bus = FakeBus::standard();
        let dom = domain(Privileges::empty());
        assert_eq!(describe(&bus, &dom, at(0, 2, 0)).map(drop), Err(Errno::ENODEV));
        assert_eq!(describe(&bus, &dom, at(0, 4, 0)).map(drop), Err(Errno::EPERM), "a bridge");
        let device = describe(&bus, &dom, at(0, 0, 0)).expect("it is there");
        assert_eq!(device.line, Pirq(11));
        assert!(device.memory.contains(&(0xfea00..=0xfeaff)), "{:x?}", device.memory);
        assert!(!device.memory.iter().any(|range| range.contains(&0xc)), "ports are no memory");
        assert_eq!(read(&bus, &dom, (0, 0, 0), 0x10, 4), Err(Errno::EPERM), "not given yet");
        let span = |port, width| Span { port: crate::ports::IoPort(port), width };
        use crate::ports::Width::{Byte, Long, Word};
        assert!(!dom.granted.covers(span(0xc000, Byte)) && !dom.granted.has_ports() && !dom.drives_devices());
        dom.granted.0.lock().push(device);
        assert!(dom.granted.has_ports() && dom.drives_devices());
        for (port, width, given) in [
            (0xbfff, Byte, false),
            (0xbfff, Word, false),
            (0xc000, Long, true),
            (0xc01c, Long, true),
            (0xc01d, Long, false),
            (0xc01f, Byte, true),
            (0xc01f, Word, false),
            (0xc020, Byte, false),
            (0xffff, Word, false),
        ] {
            assert_eq!(dom.granted.covers(span(port, width)), given, "{port:#x} {width:?}");
        }
        assert_eq!(read(&bus, &dom, (0, 0, 0), 0x10, 4), Ok(0xfea0_0000), "its address is what it was");
        assert_eq!(read(&bus, &dom, (0, 1, 0), 0, 4), Err(Errno::EPERM), "others are not its own");
        assert_eq!(read(&bus, &dom, (0, 2, 0), 0, 4), Err(Errno::ENODEV));
        assert_eq!(read(&bus, &dom, (0, 32, 0), 0, 4), Err(Errno::EINVAL));
        assert_eq!(Bus::new(&bus, &dom).root_buses()[0], 1);
        assert!(dom.granted.has_memory(Mfn(0xfea00)) && dom.granted.has_memory(Mfn(0xfeaff)));
        assert!(!dom.granted.has_memory(Mfn(0xfe9ff)) && !dom.granted.has_memory(Mfn(0xfeb00)));
        assert!(dom.granted.has_line(Pirq(11)) && !dom.granted.has_line(Pirq(10)));
        let command = |function| bus.pci_read(at(0, function, 0), COMMAND, Width::Two);
        assert_eq!((command(0), command(1)), (7, 7));
        retire(&bus, &dom);
        assert_eq!((command(0), command(1)), (3, 7), "it reads and writes memory no more; others do");
    }
}
