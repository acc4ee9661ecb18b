//! The bases of fs and gs.

use crate::{DATA, World, at, program, to_system_call};
use core::arch::asm;
use proxenos_guest::abi::hypercall::SegmentBase;
use proxenos_guest::abi::{Errno, GuestArch, Hypercall};
use proxenos_guest::arch::hypercall2;
use proxenos_guest::hypercall::{check, set_segment_base};
use proxenos_guest::test::section;
use proxenos_guest::traps::vector;
use proxenos_guest::user::{self, Exit};
use proxenos_guest::{Arch, check, check_eq};

static KERNELS: [u64; 2] = [0x1010, 0x2020];

fn set(which: SegmentBase, base: u64) {
    // SAFETY: this guest uses neither register otherwise.
    check_eq!(unsafe { set_segment_base(which, base) }, Ok(()), "{which:?} {base:#x}");
}

fn raw(which: usize, base: u64) -> Result<usize, Errno> {
    // SAFETY: as above.
    check(unsafe { hypercall2(Hypercall::SetSegmentBase.raw() as usize, which, base as usize) })
}

fn kernels_gs() -> u64 {
    let value;
    // SAFETY: the base is that of `KERNELS`.
    unsafe { asm!("mov {}, gs:[8]", out(reg) value, options(readonly, nostack)) };
    value
}

pub fn run(world: &World) {
    section("bases of fs and gs");
    // SAFETY: the page that applications share.
    unsafe {
        world.word(8).write_volatile(0xf5);
        world.word(9).write_volatile(0x65);
    }
    let here = KERNELS.as_ptr() as u64;
    set(SegmentBase::Fs, DATA + 64);
    set(SegmentBase::GsUser, DATA + 72);
    set(SegmentBase::GsKernel, here);
    for _ in 0..3 {
        check_eq!(kernels_gs(), 0x2020);
        let mut app = at(program::segments);
        to_system_call(&mut app);
        check_eq!((app.rax, app.rbx), (0xf5, 0x65));
    }
    // Traps change them too, and back.
    let mut app = at(program::invalid);
    check!(matches!(user::run(&mut app), Ok(Exit::Trap(trap)) if trap.vector == vector::INVALID_OPCODE));
    check_eq!(kernels_gs(), 0x2020);
    // And a failsafe callback.
    let mut app = at(program::invalid);
    app.ss = 0x99b;
    check_eq!(user::run(&mut app), Ok(Exit::Failsafe));
    check_eq!(kernels_gs(), 0x2020);
    let mut app = at(program::segments);
    to_system_call(&mut app);
    check_eq!((app.rax, app.rbx), (0xf5, 0x65));

    section("bases that are none");
    for base in [1 << 47, u64::MAX >> 1, 1 << 63, 0xffff_7fff_ffff_ffff] {
        for which in 0..3 {
            check_eq!(raw(which, base), Err(Errno::EINVAL), "{which} {base:#x}");
        }
    }
    check_eq!(raw(4, 0), Err(Errno::EINVAL));
    check_eq!(raw(1 << 31, 0), Err(Errno::EINVAL));
    check_eq!(kernels_gs(), 0x2020);
    // What is the hypervisor's may be named, and is as far away as ever.
    set(SegmentBase::GsUser, 0xffff_8300_0000_0000);
    let mut app = at(program::segments);
    check!(matches!(user::run(&mut app), Ok(Exit::Trap(trap)) if trap.vector == vector::PAGE_FAULT));

    section("the selector of gs");
    set(SegmentBase::GsUser, DATA + 72);
    // The hypervisor's data, its code, its task state, nothing, and code that cannot be read.
    for selector in [0x808, 0x80b, 0x800, 0x843, 0x99b, 0xfffb] {
        check_eq!(raw(3, selector), Err(Errno::EINVAL), "{selector:#x}");
    }
    let mut app = at(program::segments);
    to_system_call(&mut app);
    check_eq!(app.rbx, 0x65, "nothing has changed");
    check_eq!(raw(3, Arch::FLAT_USER_DS.raw().into()), Ok(0));
    check_eq!(kernels_gs(), 0x2020, "the kernel's base is its own");
    let mut app = at(program::segments);
    match user::run(&mut app) {
        Ok(Exit::Trap(trap)) => check_eq!((trap.vector, trap.fault_address.raw()), (vector::PAGE_FAULT, 0)),
        other => check!(false, "{other:?}"),
    };
    check_eq!(raw(3, 0), Ok(0));
    set(SegmentBase::GsUser, 0);
    set(SegmentBase::GsKernel, 0);
    set(SegmentBase::Fs, 0);
}
