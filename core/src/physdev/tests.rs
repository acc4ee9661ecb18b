//! A bus with a bridge, a device with several functions and one that does not look at the function's number; and the
//! operation's own rules.

extern crate std;

use super::*;
use crate::addr::{DomId, Mfn};
use crate::domain::Arch;
use core::cell::RefCell;

/// A function's configuration space, and which bits of its base addresses can be written.
struct Function {
    registers: [u8; 256],
    masks: [(u8, u32); 3],
}

/// Functions by address, and what was written to them.
#[derive(Default)]
pub struct FakeBus {
    functions: RefCell<BTreeMap<PciAddress, Function>>,
    written: RefCell<alloc::vec::Vec<(u8, u32)>>,
}

pub fn at(bus: u32, device: u32, function: u32) -> PciAddress {
    PciAddress::new(bus, device, function).unwrap()
}

impl FakeBus {
    fn add(&self, at: PciAddress, header_type: u8) {
        let mut registers = [0; 256];
        registers[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
        registers[4] = 7;
        registers[0x0e] = header_type;
        registers[0x10..0x14].copy_from_slice(&0xfea0_0000_u32.to_le_bytes());
        registers[0x14..0x18].copy_from_slice(&0xc001_u32.to_le_bytes());
        registers[0x30..0x34].copy_from_slice(&0xfeb0_0000_u32.to_le_bytes());
        registers[0x3c] = 11;
        let masks = [(0x10, 0xfff0_0000), (0x14, 0xffe0), (0x30, 0xffff_0001)];
        self.functions.borrow_mut().insert(at, Function { registers, masks });
    }

    pub fn standard() -> Self {
        let bus = Self::default();
        bus.add(at(0, 0, 0), 0);
        bus.add(at(0, 1, 0), 0x80);
        bus.add(at(0, 1, 2), 0);
        // Answers for all eight.
        for function in 0..8 {
            bus.add(at(0, 3, function), 0);
        }
        bus.add(at(0, 4, 0), 1);
        bus.functions.borrow_mut().get_mut(&at(0, 4, 0)).unwrap().registers[0x19] = 70;
        bus.add(at(70, 31, 0), 0);
        // A bridge that leads back.
        bus.add(at(70, 1, 0), 1);
        bus.add(at(71, 1, 0), 0);
        bus
    }
}

impl PciConfig for FakeBus {
    fn pci_read(&self, at: PciAddress, register: u8, width: Width) -> u32 {
        let functions = self.functions.borrow();
        let bytes = match width {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
        };
        assert!(register.is_multiple_of(bytes));
        let read = |index: u8| functions.get(&at).map_or(0xff, |function| function.registers[usize::from(index)]);
        (0..bytes).fold(0, |value, index| value | u32::from(read(register + index)) << (8 * index))
    }

    fn pci_write(&self, at: PciAddress, register: u8, width: Width, value: u32) {
        self.written.borrow_mut().push((register, value));
        let mut functions = self.functions.borrow_mut();
        let Some(function) = functions.get_mut(&at) else { return };
        let bytes = match width {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
        };
        let mask = function.masks.iter().find(|(masked, _)| *masked == register).map_or(u32::MAX, |(_, mask)| *mask);
        for index in 0..bytes {
            let (byte, mask) = ((value >> (8 * index)) as u8, (mask >> (8 * index)) as u8);
            let old = &mut function.registers[usize::from(register) + index];
            *old = *old & !mask | byte & mask;
        }
    }
}

pub fn domain(privileges: Privileges) -> Domain {
    Domain::new(DomId(0), Arch::X86_32, privileges, Mfn(0), Mfn(0))
}

pub fn read(bus: &FakeBus, dom: &Domain, (b, d, f): (u32, u32, u32), reg: u32, len: u32) -> Result<u32, Errno> {
    Bus::new(bus, dom).read(&PciCfgregRead { bus: b, dev: d, func: f, reg, len, value: 0 })
}

fn write(bus: &FakeBus, dom: &Domain, reg: u32, len: u32, value: u32) -> Result<(), Errno> {
    Bus::new(bus, dom).write(&PciCfgregWrite { bus: 0, dev: 0, func: 0, reg, len, value })
}

#[test]
fn who_has_what() {
    let bus = FakeBus::standard();
    let (own, none) = (domain(Privileges::DEVICES), domain(Privileges::CONTROL));
    for place in [(0, 0, 0), (0, 1, 0), (0, 1, 2), (0, 3, 0), (70, 31, 0)] {
        assert_eq!(read(&bus, &own, place, 0, 4), Ok(0x11e8_1234), "{place:?}");
        assert_eq!(read(&bus, &none, place, 0, 4), Err(Errno::EPERM));
    }
    for place in [(0, 2, 0), (0, 1, 1), (0, 3, 1), (0, 2, 7), (255, 31, 7)] {
        assert_eq!(read(&bus, &own, place, 0, 4), Err(Errno::ENODEV), "{place:?}");
    }
    assert_eq!(read(&bus, &own, (0, 4, 0), 0, 4), Err(Errno::EPERM), "a bridge");
    for place in [(256, 0, 0), (0, 32, 0), (0, 0, 8), (u32::MAX, 0, 0)] {
        assert_eq!(read(&bus, &own, place, 0, 4), Err(Errno::EINVAL), "{place:?}");
        assert_eq!(read(&bus, &none, place, 0, 4), Err(Errno::EPERM), "the right comes first");
    }
}

#[test]
fn registers_of_any_width() {
    let bus = FakeBus::standard();
    let own = domain(Privileges::DEVICES);
    let read = |reg, len| read(&bus, &own, (0, 0, 0), reg, len);
    assert_eq!((read(2, 2), read(3, 1), read(3, 2), read(3, 4)), (Ok(0x11e8), Ok(0x11), Ok(0x11e8), Ok(0x11e8_1234)));
    assert_eq!(read(0x3c, 1), Ok(11));
    for (reg, len) in [(256, 1), (u32::MAX, 4), (0, 0), (0, 3), (0, 8)] {
        assert_eq!(read(reg, len), Err(Errno::EINVAL));
        assert_eq!(write(&bus, &own, reg, len, 0), Err(Errno::EINVAL));
    }
    assert_eq!(write(&bus, &own, 0x3d, 1, 0x77), Ok(()));
    assert_eq!(read(0x3c, 4), Ok(0x770b));
}

#[test]
fn base_addresses_can_be_sized_and_not_moved() {
    let bus = FakeBus::standard();
    let own = domain(Privileges::DEVICES);
    let read = |reg| read(&bus, &own, (0, 0, 0), reg, 4).unwrap();
    for (reg, probe, size) in [
        (0x10, u32::MAX, 0xfff0_0000),
        (0x14, u32::MAX, 0xffe1),
        (0x14, 0xffff, 0xffe1),
        (0x30, 0xffff_fffe, 0xffff_0000),
        (0x30, u32::MAX, 0xffff_0000),
    ] {
        let now = read(reg);
        assert_eq!(write(&bus, &own, reg, 4, probe), Ok(()), "{reg:#x}");
        assert_eq!(read(reg), size, "{reg:#x}");
        assert_eq!(bus.pci_read(at(0, 0, 0), reg as u8, Width::Four), now, "the device has kept it");
        assert_eq!(bus.pci_read(at(0, 0, 0), COMMAND, Width::Two), 7, "and answers");
        assert_eq!(write(&bus, &own, reg, 4, now), Ok(()), "what was there");
        assert_eq!(read(reg), now);
        assert_eq!(write(&bus, &own, reg, 4, now ^ 0x10_0000), Err(Errno::EPERM), "anything else");
        assert_eq!(read(reg), now);
    }
    bus.written.borrow_mut().clear();
    for (reg, len) in [(0x10, 1), (0x13, 1), (0x12, 2), (0x11, 2), (0x27, 1), (0x24, 2), (0x33, 1), (0x30, 2)] {
        assert_eq!(write(&bus, &own, reg, len, 0xff), Err(Errno::EPERM), "{len} bytes at {reg:#x}");
    }
    assert_eq!(write(&bus, &own, 0x30, 4, 0), Ok(()), "a ROM may be turned off");
    assert_eq!(read(0x30), 0xfeb0_0000, "but is not");
    assert!(bus.written.borrow().is_empty(), "nothing reached the device");
    // While it is sized it answers nowhere.
    write(&bus, &own, 0x10, 4, u32::MAX).unwrap();
    assert_eq!(bus.written.take(), [(0x04, 4), (0x10, u32::MAX), (0x10, 0xfea0_0000), (0x04, 7)]);
    // An address of memory is not sized by 16 bits.
    assert_eq!(write(&bus, &own, 0x10, 4, 0xffff), Err(Errno::EPERM));
}

#[test]
fn buses_are_found_through_bridges() {
    let bus = FakeBus::standard();
    let mut expected = [0; 8];
    (expected[0], expected[2]) = (1, 1 << 6);
    assert_eq!(Bus::new(&bus, &domain(Privileges::DEVICES)).root_buses(), expected);
    assert_eq!(Bus::new(&bus, &domain(Privileges::CONTROL)).root_buses(), [0; 8]);
    assert_eq!(Bus::new(&FakeBus::default(), &domain(Privileges::DEVICES)).root_buses(), [0; 8], "no bus at all");
}

#[test]
fn lines_need_the_right() {
    let bind = |dom: &Domain| crate::event::bind_pirq(dom, Pirq(3), crate::event::PirqSharing::Shared);
    assert_eq!(bind(&domain(Privileges::CONTROL)), Err(crate::event::EventError::NotPermitted));
    let with_right = domain(Privileges::DEVICES);
    assert_eq!(bind(&with_right), Err(crate::event::EventError::NoSuchInterrupt), "no controller");
    assert_eq!(with_right.channels.pirq_port(Pirq(3)), None);
}

/// A bus for several threads.
struct Shared(std::sync::Mutex<FakeBus>);

impl PciConfig for Shared {
    fn pci_read(&self, at: PciAddress, register: u8, width: Width) -> u32 {
        self.0.lock().unwrap().pci_read(at, register, width)
    }

    fn pci_write(&self, at: PciAddress, register: u8, width: Width, value: u32) {
        self.0.lock().unwrap().pci_write(at, register, width, value);
    }
}

/// Two domains that have the same device find out its sizes at once, and turn it on and off: it stays where it is.
#[test]
fn two_domains_size_one_device() {
    let bus = Shared(std::sync::Mutex::new(FakeBus::standard()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let own = domain(Privileges::DEVICES);
                let place = |reg| PciCfgregWrite { bus: 0, dev: 0, func: 0, reg, len: 4, value: u32::MAX };
                let read = |reg| PciCfgregRead { bus: 0, dev: 0, func: 0, reg, len: 4, value: 0 };
                for _ in 0..2000 {
                    assert_eq!(Bus::new(&bus, &own).write(&place(0x10)), Ok(()));
                    assert_eq!(Bus::new(&bus, &own).read(&read(0x10)), Ok(0xfff0_0000));
                    let back = PciCfgregWrite { value: 0xfea0_0000, ..place(0x10) };
                    assert_eq!(Bus::new(&bus, &own).write(&back), Ok(()), "it is where it was");
                    let on = PciCfgregWrite { len: 2, value: 7, ..place(4) };
                    assert_eq!(Bus::new(&bus, &own).write(&on), Ok(()));
                }
            });
        }
    });
    let place = at(0, 0, 0);
    assert_eq!(bus.pci_read(place, 0x10, Width::Four), 0xfea0_0000);
    assert_eq!(bus.pci_read(place, COMMAND, Width::Two), 7);
}
