//! I/O ports, as the subject finds them.

use proxenos_guest::abi::Errno;
use proxenos_guest::abi::physdev::{PciCfgregRead, PhysdevOp};
use proxenos_guest::{attempt, check, check_eq, hypercall};

/// The PC's real-time clock: what is in the register that was chosen last.
const CMOS_DATA: u16 = 0x71;
/// The disk controller of QEMU's PC, and the base address of its 16 ports.
const DEVICE: u32 = 1;
const FUNCTION: u32 = 1;
const BASE: u32 = 0x20;
const PORTS: u16 = 16;
/// Of those: the status of the first channel's transfers. Reading it changes nothing.
const STATUS: u16 = 2;

/// What somebody may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    None,
    OfDevice,
    All,
}

fn read8(port: u16) -> bool {
    // SAFETY: the callers' ports have no registers that a read changes.
    unsafe { attempt!("in al, dx", inout("eax") 0u32 => _, in("edx") u32::from(port)) }
}

fn read32(port: u16) -> bool {
    // SAFETY: as above.
    unsafe { attempt!("in eax, dx", inout("eax") 0u32 => _, in("edx") u32::from(port)) }
}

fn read_string(port: u16) -> bool {
    let mut byte = 0u8;
    let to = &raw mut byte;
    // SAFETY: writes the byte; the ports as above.
    #[cfg(target_arch = "x86")]
    let done = unsafe { attempt!("insb", inout("edi") to => _, in("edx") u32::from(port)) };
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    let done = unsafe { attempt!("insb", inout("rdi") to => _, in("edx") u32::from(port)) };
    done
}

/// Reads from the configuration of a device on bus 0.
pub fn configuration(dev: u32, func: u32, reg: u32) -> Result<u32, Errno> {
    let mut op = PhysdevOp::new(PciCfgregRead { bus: 0, dev, func, reg, len: 4, value: 0 });
    // SAFETY: reads a register that says what or where the device is.
    unsafe { hypercall::physdev_op(&mut op) }?;
    let u = op.u;
    let read: PciCfgregRead = u.read();
    Ok(read.value)
}

/// Tries ports: exactly those that are to be had can be used.
pub fn look(expected: Ports) {
    let all = expected == Ports::All;
    check_eq!(read8(CMOS_DATA), all, "{expected:?}");
    let base = configuration(DEVICE, FUNCTION, BASE);
    if expected == Ports::None {
        check_eq!(base, Err(Errno::EPERM), "it does not have the device");
        return;
    }
    let base = base.expect("it has the device");
    check!(base & 1 != 0 && base >> 16 == 0 && base > 1, "{base:#x}: ports");
    let first = base as u16 & !3;
    check!(read8(first + STATUS) && read_string(first + STATUS) && read32(first), "{expected:?}: the device's");
    for (port, can) in [(first - 1, read8 as fn(u16) -> bool), (first + PORTS, read8), (first + PORTS, read_string)] {
        check_eq!(can(port), all, "{expected:?}: port {port:#x} beside them");
    }
    for port in [first - 2, first + PORTS - 2] {
        check_eq!(read32(port), all, "{expected:?}: four from {port:#x} on are not all the device's");
    }
}
