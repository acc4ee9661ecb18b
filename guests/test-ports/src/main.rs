//! I/O ports: nobody's at first, the kernel's from DOM0_IOPL on, but for those of devices that the hypervisor drives
//! itself.
#![no_std]
#![no_main]

use core::arch::asm;
use proxenos_guest::abi::dom0_ops::args::Iopl;
use proxenos_guest::abi::dom0_ops::{Dom0Op, Dom0Version};
use proxenos_guest::abi::{DomId, Errno, Hypercall};
use proxenos_guest::arch::hypercall1;
use proxenos_guest::hypercall::{self, check as result_of};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{StartInfo, attempt, check, check_eq, memory};

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
    let mut untouched = [0x77u8; 4];
    check_eq!(input(0x71, untouched.as_mut_ptr(), 4), (false, 4), "ins");
    check_eq!(untouched, [0x77; 4]);
    check_eq!((traps::last_trap().vector, traps::last_trap().error_code), (vector::GENERAL_PROTECTION, 0));
    requests();
    with_the_right();
    strings();
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
    for level in [1, 3] {
        check_eq!(set_level(DomId::SELF, level), Ok(0));
        let flags: usize;
        // SAFETY: changes flags for three instructions; the interrupt flag is not ours to clear.
        unsafe { asm!("pushf", "push 2", "popf", "pushf", "pop {0}", "popf", out(reg) flags) };
        check!(flags & 1 << 9 != 0, "level {level}: interrupts stay on: {flags:#x}");
    }
}

/// `rep insb` of so many bytes: whether it came to its end, and how many were left.
fn input(port: u16, into: *mut u8, bytes: usize) -> (bool, usize) {
    let mut left = bytes;
    // SAFETY: writes where the callers say, or faults; their ports have no registers that a read changes.
    #[cfg(target_arch = "x86")]
    let done = unsafe { attempt!("rep insb", inout("ecx") left, inout("edi") into => _, in("edx") u32::from(port)) };
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    let done = unsafe { attempt!("rep insb", inout("rcx") left, inout("rdi") into => _, in("edx") u32::from(port)) };
    (done, left)
}

/// `ins` and `outs`, by the clock's memory and by a port of the hypervisor's.
fn strings() {
    section("strings");
    let before = traps::count();
    let value = [0x3cu8; 4];
    check!(write8(CMOS_INDEX, SCRATCH));
    // SAFETY: writes the byte of memory that is chosen.
    #[cfg(target_arch = "x86")]
    check!(unsafe {
        attempt!("xchg esi, {0}\n rep outsb\n xchg esi, {0}", inout(reg) value.as_ptr() => _, inout("ecx") 4u32 => _,
            in("edx") u32::from(CMOS_DATA))
    });
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    check!(unsafe {
        attempt!("rep outsb", inout("rsi") value.as_ptr() => _, inout("rcx") 4usize => _, in("edx") u32::from(CMOS_DATA))
    });
    check!(write8(CMOS_INDEX, SCRATCH));
    check_eq!(read8(CMOS_DATA), Some(0x3c), "outs");
    check!(write8(CMOS_INDEX, SCRATCH));
    let mut few = [0u8; 3];
    check_eq!(input(CMOS_DATA, few.as_mut_ptr(), few.len()), (true, 0));
    check_eq!(few[0], 0x3c, "ins");
    let mut many = [0u8; 3000];
    check_eq!(input(0x3f8, many.as_mut_ptr(), many.len()), (true, 0), "more than is moved at once");
    check!(many.iter().all(|&byte| byte == 0xff), "a port of the hypervisor's reads as ones");
    check_eq!(traps::count(), before, "no fault reached us");
    // Half of it lies where nothing is.
    section("strings that fault");
    let end = memory::region_end().raw();
    // The last bytes of the initial region, which is padding behind the stack, and beyond it nothing.
    let (done, left) = input(0x3f8, (end - 16) as *mut u8, 64);
    check!(!done);
    let trap = traps::last_trap();
    check_eq!((trap.vector, trap.error_code & !4), (vector::PAGE_FAULT, 2), "a write where nothing is");
    check_eq!(trap.fault_address.raw(), end, "at the first byte that is not there");
    check_eq!(left, 48, "those before it are done");
    // SAFETY: the region's last byte.
    check_eq!(unsafe { *((end - 1) as *const u8) }, 0xff);
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
