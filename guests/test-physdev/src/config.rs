//! Configuration space: what may be read and written, and what there is.

use crate::edu::{self, Edu};
use crate::request;
use proxenos_guest::abi::Errno;
use proxenos_guest::abi::physdev::{PciCfgregRead, PciCfgregWrite, PciInitialiseDevice, PciProbeRootBuses};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, test};

/// A function's bus, device and number.
pub type Place = (u32, u32, u32);

const VENDOR: u32 = 0;
const HEADER_TYPE: u32 = 0x0e;
/// The register that says where the device's memory is.
pub const BASE_ADDRESS: u32 = 0x10;
const ROM_ADDRESS: u32 = 0x30;
/// The register that names the device's line.
pub const INTERRUPT_LINE: u32 = 0x3c;

/// Reads a register: the result, and what the value is then.
pub fn read((bus, dev, func): Place, reg: u32, len: u32) -> (Result<(), Errno>, u32) {
    let (result, answer) = request(PciCfgregRead { bus, dev, func, reg, len, value: 0x5555_5555 });
    check_eq!((answer.bus, answer.dev, answer.func, answer.reg, answer.len), (bus, dev, func, reg, len));
    (result, answer.value)
}

/// Writes a register.
pub fn write((bus, dev, func): Place, reg: u32, len: u32, value: u32) -> Result<(), Errno> {
    request(PciCfgregWrite { bus, dev, func, reg, len, value }).0
}

fn initialise((bus, dev, func): Place) -> Result<(), Errno> {
    request(PciInitialiseDevice { bus, dev, func }).0
}

fn root_buses() -> [u32; 8] {
    let (result, answer) = request(PciProbeRootBuses { busmask: [0x5555_5555; 8] });
    check_eq!(result, Ok(()), "the root buses");
    answer.busmask
}

/// The machine has no bus: no device is there, and nothing else is wrong.
pub fn no_bus() {
    section("no bus");
    check_eq!(root_buses(), [0; 8]);
    check_eq!(read((0, 0, 0), VENDOR, 4), (Err(Errno::ENODEV), u32::MAX));
    check_eq!(write((0, 0, 0), VENDOR, 4, 0), Err(Errno::ENODEV));
    check_eq!(initialise((0, 0, 0)), Err(Errno::ENODEV));
}

/// Checks all that can be checked without an interrupt; the two devices.
pub fn run() -> [Edu; 2] {
    let buses = root_buses();
    check!(buses[0] & 1 != 0, "bus 0 has devices");
    let (mut found, mut bridges) = ([None; 2], 0);
    for bus in (0..256).filter(|bus| buses[*bus as usize / 32] >> (bus % 32) & 1 != 0) {
        for place in (0..32).map(|device| (bus, device, 0)) {
            match read(place, VENDOR, 4) {
                (Ok(()), edu::ID) => found[usize::from(bus != 0)] = Some(place),
                (Ok(()), id) => {
                    check!(id & 0xffff != 0xffff, "{place:?} is {id:#x}");
                }
                (Err(Errno::EPERM), value) => {
                    bridges += 1;
                    check_eq!(value, u32::MAX, "the bridge {place:?}");
                    check_eq!(write(place, 0x19, 1, 7), Err(Errno::EPERM), "its secondary bus");
                    check_eq!(initialise(place), Err(Errno::EPERM), "the bridge {place:?}");
                }
                (error, value) => {
                    check_eq!((error, value), (Err(Errno::ENODEV), u32::MAX), "nothing at {place:?}");
                }
            }
        }
    }
    check!(bridges >= 1, "the bridge is there and nobody's");
    let [Some(near), Some(far)] = found else { test::error("two edu devices are needed") };
    refusals(near);
    base_addresses(near);
    [near, far].map(found_at)
}

/// A device that is there.
fn found_at(place: Place) -> Edu {
    check_eq!(initialise(place), Ok(()), "{place:?}");
    let line = read(place, INTERRUPT_LINE, 1);
    check_eq!(line.0, Ok(()));
    check!((1..128).contains(&line.1), "the line of {place:?} is {}", line.1);
    Edu::new(place, read(place, BASE_ADDRESS, 4).1, line.1)
}

/// What a domain that has been given one device sees: that one, and of all others that they are not its own. `None`
/// while it has none.
pub fn given() -> Option<Edu> {
    let places = || (0..4).flat_map(|bus| (0..32).map(move |device| (bus, device, 0)));
    places().find(|&place| read(place, VENDOR, 4).0.is_ok())?;
    let mut found = None;
    for place in places() {
        match read(place, VENDOR, 4) {
            (Ok(()), id) => {
                check_eq!((id, found), (edu::ID, None), "the only one, {place:?}");
                found = Some(place);
            }
            (Err(Errno::EPERM), value) => {
                check_eq!(value, u32::MAX, "{place:?}");
                check_eq!(write(place, 4, 2, 0), Err(Errno::EPERM), "{place:?}");
                check_eq!(initialise(place), Err(Errno::EPERM), "{place:?}");
            }
            (error, value) => {
                check_eq!((error, value), (Err(Errno::ENODEV), u32::MAX), "{place:?}");
            }
        }
    }
    let place = found?;
    base_addresses(place);
    Some(found_at(place))
}

fn refusals(edu: Place) {
    section("requests that are refused");
    for place in [(256, 0, 0), (0, 32, 0), (0, 0, 8), (u32::MAX, 0, 0), (0, 0x8000_0000, 0)] {
        check_eq!(read(place, VENDOR, 4), (Err(Errno::EINVAL), u32::MAX), "{place:?}");
        check_eq!(write(place, VENDOR, 4, 0), Err(Errno::EINVAL), "{place:?}");
        check_eq!(initialise(place), Err(Errno::EINVAL), "{place:?}");
    }
    for (reg, len) in [(256, 1), (u32::MAX, 1), (0, 0), (0, 3), (0, 8), (0, u32::MAX)] {
        check_eq!(read(edu, reg, len), (Err(Errno::EINVAL), u32::MAX), "{len} bytes at {reg:#x}");
        check_eq!(write(edu, reg, len, 0), Err(Errno::EINVAL), "{len} bytes at {reg:#x}");
    }
    check_eq!(read((edu.0, edu.1, 1), VENDOR, 4), (Err(Errno::ENODEV), u32::MAX), "a second function");
    check_eq!((read(edu, 0, 2).1, read(edu, 2, 2).1, read(edu, 3, 1).1), (0x1234, 0x11e8, 0x11), "narrow reads");
    check_eq!(read(edu, HEADER_TYPE, 1), (Ok(()), 0));
}

/// A base address can be sized, and not moved.
fn base_addresses(edu: Place) {
    section("base addresses");
    let (_, now) = read(edu, BASE_ADDRESS, 4);
    check!(now & 0xf_ffff == 0 && now != 0, "memory, 1 MiB: {now:#x}");
    check_eq!(write(edu, BASE_ADDRESS, 4, u32::MAX), Ok(()));
    check_eq!(read(edu, BASE_ADDRESS, 4), (Ok(()), 0xfff0_0000), "its size");
    check_eq!(write(edu, BASE_ADDRESS, 4, now), Ok(()), "what was there");
    check_eq!(read(edu, BASE_ADDRESS, 4), (Ok(()), now));
    for bad in [0, now ^ 0x10_0000, 0xfee0_0000, 0xffff] {
        check_eq!(write(edu, BASE_ADDRESS, 4, bad), Err(Errno::EPERM), "moved to {bad:#x}");
    }
    for (reg, len) in [(BASE_ADDRESS, 1), (BASE_ADDRESS + 3, 1), (BASE_ADDRESS + 2, 2), (0x24, 2), (ROM_ADDRESS, 1)] {
        check_eq!(write(edu, reg, len, 0xfe), Err(Errno::EPERM), "{len} bytes at {reg:#x}");
    }
    check_eq!(read(edu, BASE_ADDRESS, 4), (Ok(()), now), "it is where it was");
    check_eq!(write(edu, ROM_ADDRESS, 4, 0xffff_fffe), Ok(()));
    check_eq!(read(edu, ROM_ADDRESS, 4), (Ok(()), 0), "no ROM");
    check_eq!(write(edu, ROM_ADDRESS, 4, 0), Ok(()));
}
