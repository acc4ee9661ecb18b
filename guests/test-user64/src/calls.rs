//! System calls: every register there and back, and an application's `syscall` is never a hypercall.

use crate::{World, at, program, to_system_call};
use proxenos_guest::abi::GuestArch;
use proxenos_guest::test::section;
use proxenos_guest::user::{self, Exit, Resume};
use proxenos_guest::{Arch, TrapFrame, check, check_eq, hypercall, traps};

/// All registers that a system call keeps.
fn kept(frame: &TrapFrame) -> [u64; 15] {
    let f = frame;
    [f.rax, f.rbx, f.rdx, f.rsi, f.rdi, f.rbp, f.r8, f.r9, f.r10, f.r12, f.r13, f.r14, f.r15, f.rsp, f.ss]
}

pub fn run(_: &World) {
    registers();
    numbers();
    unregistered();
    many();
}

fn registers() {
    section("registers of a system call, there and back");
    let mut app = at(program::calls);
    let start = app.rip;
    for (index, register) in (1..).zip([
        &mut app.rax,
        &mut app.rbx,
        &mut app.rdx,
        &mut app.rsi,
        &mut app.rdi,
        &mut app.rbp,
        &mut app.r8,
        &mut app.r9,
        &mut app.r10,
        &mut app.r12,
        &mut app.r13,
        &mut app.r14,
        &mut app.r15,
    ]) {
        *register = 0x1111_1111_1111_1111 * index;
    }
    app.rflags |= 0x8d5;
    let before = app.clone();
    to_system_call(&mut app);
    check_eq!(kept(&app), kept(&before));
    check_eq!(app.rip, start + 2);
    check_eq!((app.rcx, app.r11), (start + 2, before.rflags | 2), "what the instruction leaves in rcx and r11");
    check_eq!(app.rflags, before.rflags | 2);
    check_eq!(app.cs, Arch::FLAT_USER_CS.raw().into());

    app.rax = 0x1234_5678_9abc_def0;
    let before = app.clone();
    check_eq!(user::resume(&mut app, Resume::FromSystemCall), Ok(Exit::SystemCall));
    check_eq!(kept(&app), kept(&before), "as from a system call");

    // Between two traps rcx and r11 are kept too.
    let mut app = at(program::invalid);
    (app.rcx, app.r11) = (0xcccc, 0x1111);
    check!(matches!(user::run(&mut app), Ok(Exit::Trap(trap)) if trap.vector == 6));
    check_eq!((app.rcx, app.r11), (0xcccc, 0x1111), "rcx and r11 of an application that traps");
}

/// Whatever is in rax and the others, it is the kernel that is asked.
fn numbers() {
    section("an application's syscall is no hypercall");
    let mut app = at(program::calls);
    for number in (0..64).chain([u64::MAX, 1 << 32, 1 << 63]) {
        (app.rax, app.rdi, app.rsi) = (number, 2, 0);
        to_system_call(&mut app);
        check_eq!(app.rax, number);
    }
    // And a kernel's own are still hypercalls.
    check_eq!(hypercall::xen_version(), Ok(0x2_0000));
}

fn unregistered() {
    section("no entry for system calls is registered");
    proxenos_guest::events::install().expect("the callbacks");
    let mut app = at(program::calls);
    let start = app.rip;
    for _ in 0..2 {
        match user::run(&mut app) {
            Ok(Exit::Trap(trap)) => check_eq!((trap.vector, trap.ip.raw()), (traps::vector::INVALID_OPCODE, start)),
            other => check!(false, "{other:?}"),
        };
    }
    proxenos_guest::events::unmask_upcalls();
    user::install().expect("the callbacks");
    to_system_call(&mut app);
}

fn many() {
    section("many system calls");
    let mut app = at(program::calls);
    app.rbx = 0x7777;
    let ends = (0..20_000).filter(|_| user::run(&mut app) == Ok(Exit::SystemCall)).count();
    check_eq!((ends, app.rbx), (20_000, 0x7777));
}
