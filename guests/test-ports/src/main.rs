//! I/O ports: nobody's at first, the kernel's from DOM0_IOPL on, but for those of devices that the hypervisor drives itself.
#![no_std]
#![no_main]

use proxenos_guest::abi::dom0_ops::args::{Iopl, SchedId};
use proxenos_guest::abi::dom0_ops::{Dom0Op, Dom0Version};
use proxenos_guest::abi::{DomId, Errno, Hypercall};
use proxenos_guest::arch::hypercall1;
use proxenos_guest::hypercall::{self, check as result_of};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{StartInfo, attempt, check, check_eq};

proxenos_guest::test_guest!(main);

/// The PC's real-time clock: the number of a register, and what is in it.
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
/// A byte of its memory that means nothing to anybody.
const SCRATCH: u8 = 0x60;

fn main(_: &StartInfo) {
    proxenos_guest::init();
    section("without the right");
    let before = traps::count();
    check_eq!(read8(CMOS_DATA), None);
    check!(!write8(CMOS_INDEX, SCRATCH));
    check_eq!(traps::count(), before + 2);
    let trap = traps::last_trap();
    check_eq!((trap.vector, trap.error_code), (vector::GENERAL_PROTECTION, 0));
    requests();
    with_the_right();
    section("the level goes back to 0");
    check_eq!(set_level(DomId::SELF, 0), Ok(0));
    check!(read8(CMOS_DATA).is_some(), "a kernel keeps what it was given");
}

fn set_level(domain: DomId, iopl: u32) -> Result<usize, Errno> {
    // SAFETY: no memory is concerned.
    unsafe { hypercall::dom0_op(&mut Dom0Op::new(Iopl { domain, pad: 0, iopl })) }
}

/// `dom0_op` refuses what it has to, in this order.
fn requests() {
    section("requests");
    // SAFETY: a pointer that is refused.
    let at = |pointer: usize| result_of(unsafe { hypercall1(Hypercall::Dom0Op.raw() as usize, pointer) });
    check_eq!(at(0), Err(Errno::EFAULT));
    check_eq!(at(usize::MAX - 40), Err(Errno::EFAULT));
    let request = Dom0Op::new(Iopl { domain: DomId::SELF, pad: 0, iopl: 0 });
    for version in [0, 0xaaaa_0018, 0xaaaa_001b, u32::MAX] {
        for cmd in [request.cmd, 0] {
            // SAFETY: it is refused.
            let result = unsafe { hypercall::dom0_op(&mut Dom0Op { interface_version: version, cmd, ..request }) };
            check_eq!(result, Err(Errno::EACCES), "version {version:#x}, command {cmd}");
        }
    }
    for cmd in [0, 1, 3, 31, u32::MAX] {
        // SAFETY: it is refused.
        let result = unsafe { hypercall::dom0_op(&mut Dom0Op { cmd, ..request }) };
        check_eq!(result, Err(Errno::ENOSYS), "command {cmd}");
    }
    // SAFETY: as above.
    check_eq!(unsafe { hypercall::dom0_op(&mut Dom0Op::new(SchedId::default())) }, Err(Errno::ENOSYS));
    check_eq!(set_level(DomId(77), 1), Err(Errno::ESRCH), "another domain");
    check_eq!(read8(CMOS_DATA), None, "and so far nothing has been given");
    check_eq!(set_level(DomId::SELF, 0), Ok(0));
    check_eq!(read8(CMOS_DATA), None, "level 0 is no right");
}

fn with_the_right() {
    section("with the right");
    let newer = Dom0Op {
        interface_version: Dom0Version::V1A.raw(),
        ..Dom0Op::new(Iopl { domain: DomId::DOM0, pad: 0, iopl: 1 })
    };
    // SAFETY: no memory is concerned.
    check_eq!(unsafe { hypercall::dom0_op(&mut { newer }) }, Ok(0), "in the newer version, and by number");
    let before = traps::count();
    for value in [0x5a, 0xa5] {
        check!(write8(CMOS_INDEX, SCRATCH) && write8(CMOS_DATA, value));
        check!(write8(CMOS_INDEX, SCRATCH));
        check_eq!(read8(CMOS_DATA), Some(value));
    }
    let mut rest: u32 = 0xdead_beef;
    // SAFETY: reads a byte of the clock's memory.
    check!(unsafe { attempt!("in al, 0x71", inout("eax") rest) });
    check_eq!(rest, 0xdead_bea5, "a byte leaves the rest of the register");

    section("the hypervisor's own");
    for port in [0x20, 0x21, 0x40, 0x43, 0xa1, 0x3f8, 0x3fd, 0xcf8] {
        check_eq!(read8(port), Some(0xff), "port {port:#x}");
        check!(write8(port, 0), "port {port:#x}");
    }
    check_eq!(read32(0xcfc), Some(u32::MAX));
    check_eq!(read32(0x3f5), Some(u32::MAX), "the last of four");
    check_eq!(read32(0xffff), Some(u32::MAX), "past the last port");
    check_eq!(traps::count(), before, "no fault reached us");

    section("no port of the right");
    // SAFETY: privileged, so refused.
    check!(!unsafe { attempt!("hlt") } && !unsafe { attempt!("cli") }, "it is no real level");
}

fn read8(port: u16) -> Option<u8> {
    let value: u32;
    // SAFETY: the callers' ports have no registers that a read changes.
    let done = unsafe { attempt!("in al, dx", inout("eax") 0u32 => value, in("edx") u32::from(port)) };
    done.then_some(value as u8)
}

fn read32(port: u16) -> Option<u32> {
    let value: u32;
    // SAFETY: as above.
    let done = unsafe { attempt!("in eax, dx", inout("eax") 0u32 => value, in("edx") u32::from(port)) };
    done.then_some(value)
}

fn write8(port: u16, value: u8) -> bool {
    // SAFETY: the callers write to the clock's memory and to ports that lead nowhere.
    unsafe { attempt!("out dx, al", in("eax") u32::from(value), in("edx") u32::from(port)) }
}
