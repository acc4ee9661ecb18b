//! What may be set, and what is then read.

use proxenos_guest::abi::{Errno, GuestArch, Hypercall};
use proxenos_guest::arch::hypercall2;
use proxenos_guest::hypercall::{check as result_of, get_debugreg, set_debugreg};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, check_eq};

pub fn run() {
    section("registers");
    for register in 0..8 {
        check_eq!(get_debugreg(register), 0, "DR{register} at the start");
    }
    for register in [4, 5, 8, 9, 31, 0x7fff_ffff, 0xffff_ffff] {
        check_eq!(set_debugreg(register, 0), Err(Errno::EINVAL), "setting DR{register}");
    }
    for register in [8, 9, 0x7fff_ffff, 0xffff_ffff] {
        check_eq!(get_debugreg(register), Errno::EINVAL.to_result() as usize, "reading DR{register}");
    }
    addresses();
    status();
    control();
    for register in [0, 1, 2, 3, 6, 7] {
        check_eq!(set_debugreg(register, 0), Ok(()), "DR{register} back to 0");
    }
}

fn addresses() {
    let own = Arch::HYPERVISOR_VIRT_START - 4;
    #[cfg(target_arch = "x86_64")]
    let own = own.min((1 << 47) - 4);
    for register in 0..4 {
        for at in [0, 1, 0x1234_5678, own as usize] {
            check_eq!(set_debugreg(register, at), Ok(()), "DR{register} = {at:#x}");
            check_eq!(get_debugreg(register), at, "DR{register}");
        }
        for at in NOT_OURS {
            check_eq!(set_debugreg(register, at), Err(Errno::EPERM), "DR{register} = {at:#x}");
        }
        check_eq!(get_debugreg(register), own as usize, "DR{register} after refusals");
    }
}

/// The hypervisor's addresses, and no addresses at all.
#[cfg(target_arch = "x86")]
const NOT_OURS: [usize; 5] = [0xfbff_fffd, 0xfc00_0000, 0xfc40_0000, 0xff00_0000, 0xffff_ffff];
/// The hypervisor's addresses, and no addresses at all.
#[cfg(target_arch = "x86_64")]
const NOT_OURS: [usize; 9] = [
    0x0000_7fff_ffff_fffd,
    0x0000_8000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_7fff_ffff_fff8,
    0xffff_8000_0000_0000,
    0xffff_8080_0002_f7c8,
    0xffff_8100_0000_0000,
    0xffff_8300_0000_0000,
    0xffff_87ff_ffff_ffff,
];

fn status() {
    for (value, is) in [(0, 0xffff_0ff0), (usize::MAX, 0xffff_efff), (0x1000, 0xffff_0ff0), (0xe00f, 0xffff_efff)] {
        check_eq!(set_debugreg(6, value), Ok(()), "DR6 = {value:#x}");
        check_eq!(get_debugreg(6), is, "DR6");
    }
}

fn control() {
    for (value, is) in [(0x300, 0x700), (0xd800, 0x400), (0xd5d5_0000, 0xd5d5_0400), (0x400, 0x400), (0, 0)] {
        check_eq!(set_debugreg(7, value), Ok(()), "DR7 = {value:#x}");
        check_eq!(get_debugreg(7), is, "DR7");
    }
    check_eq!(set_debugreg(7, 1 << 13), Err(Errno::EPERM), "general detection");
    let eight_bytes = if cfg!(target_arch = "x86") { Err(Errno::EPERM) } else { Ok(()) };
    for breakpoint in 0..4 {
        let field = 16 + 4 * breakpoint;
        check_eq!(set_debugreg(7, 2 << field), Err(Errno::EPERM), "breakpoint {breakpoint} at a port");
        check_eq!(set_debugreg(7, 0xa << field), Err(Errno::EPERM), "breakpoint {breakpoint} at a port");
        check_eq!(set_debugreg(7, 0x9 << field), eight_bytes, "breakpoint {breakpoint} on eight bytes");
        check_eq!(set_debugreg(7, 0), Ok(()));
    }
    // The number is an `int`: what lies above it does not count. (In 32 bits nothing does.)
    // SAFETY: sets a register to 0.
    let result = unsafe { hypercall2(Hypercall::SetDebugreg.raw() as usize, usize::MAX << 16 << 16 | 3, 0) };
    check_eq!(result_of(result), Ok(0), "the upper half of the number");
}
