//! I/O ports, and the memory of devices, as the subject finds them.

use proxenos_guest::abi::mmu::{MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::physdev::{PciCfgregRead, PhysdevOp};
use proxenos_guest::abi::{Errno, Mfn};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{attempt, check, check_eq, hypercall, memory};

/// The PC's real-time clock: what is in the register that was chosen last.
const CMOS_DATA: u16 = 0x71;
/// The disk controller of QEMU's PC, and the base address of its 16 ports.
const DEVICE: u32 = 1;
const FUNCTION: u32 = 1;
const BASE: u32 = 0x20;
const PORTS: u16 = 16;
/// Of those: the status of the first channel's transfers. Reading it changes nothing.
const STATUS: u16 = 2;

/// QEMU's device for teachers: a megabyte of memory, which begins with what it is.
const TEACHERS: u32 = 2;
const MEMORY_BASE: u32 = 0x10;
const FRAMES: u64 = 256;
const IDENTITY: u32 = 0x0100_00ed;

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

/// Has all caches written back.
pub fn flushes_caches() -> bool {
    // SAFETY: no mapping changes.
    unsafe { memory::update(memory::extended(MmuExtCommand::FlushCache, 0, 0)) }.is_ok()
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

/// Maps frames of the machine's: exactly those of the device's memory can be.
fn look_at_memory() {
    let base = configuration(TEACHERS, 0, MEMORY_BASE).expect("it has the device");
    let first = u64::from(base >> 12);
    let page = memory::alloc_frame().expect("memory");
    let map = |frame: u64| {
        let entry = Pte::new(Mfn(frame), PteFlags::KERNEL_RW);
        // SAFETY: nobody has a reference to the page.
        unsafe { hypercall::update_va_mapping(page.virt(), entry, UpdateVaFlags::INVLPG) }
    };
    for frame in [first - 1, first + FRAMES] {
        check!(map(frame).is_err(), "frame {frame:#x} beside it");
    }
    check_eq!(map(first + FRAMES - 1), Ok(()), "its last frame");
    if check_eq!(map(first), Ok(()), "its first frame") {
        // SAFETY: it is mapped, and reading it changes nothing.
        let identity = unsafe { (page.virt().raw() as usize as *const u32).read_volatile() };
        check_eq!(identity, IDENTITY);
    }
    check_eq!(map(page.mfn().raw()), Ok(()));
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
    look_at_memory();
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
