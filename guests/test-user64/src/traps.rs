//! Exceptions and `int n` of applications, and what they cannot reach.

use crate::{CODE, DATA, LOW_CODE, NOTHING, READ_ONLY, World, address, at, program, to_system_call};
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::x86_64::FLAT_USER_CS32;
use proxenos_guest::abi::{GuestArch, GuestVirt};
use proxenos_guest::arch::trap_stub;
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, Trap, vector};
use proxenos_guest::user::{self, Exit};
use proxenos_guest::{Arch, TrapFrame, check, check_eq, hypercall, probe};

/// Open to applications, and to the kernel alone.
const OPEN: u8 = 0x80;
const KERNELS: u8 = 0x81;

pub fn run(world: &World) {
    exceptions();
    page_faults(world);
    interrupts();
    every_open_vector();
    every_interrupt_of_the_kernel();
    fpu();
    stepping();
    compatible();
}

/// Runs an application up to its trap.
#[track_caller]
fn trap_of(app: &mut TrapFrame) -> Trap {
    match user::run(app) {
        Ok(Exit::Trap(trap)) => trap,
        other => panic!("no trap but {other:?} at {:#x}", app.rip),
    }
}

#[track_caller]
fn expect(entry: unsafe extern "C" fn(), vector: u8, error_code: u32, past: u64) {
    let mut app = at(entry);
    let start = app.rip;
    let trap = trap_of(&mut app);
    check_eq!((trap.vector, trap.error_code, trap.ip.raw() - start), (vector, error_code, past));
}

fn exceptions() {
    section("exceptions of applications");
    expect(program::invalid, vector::INVALID_OPCODE, 0, 0);
    expect(program::breakpoint, vector::BREAKPOINT, 0, 1);
    expect(program::halt, vector::GENERAL_PROTECTION, 0, 0);
    expect(program::disable, vector::GENERAL_PROTECTION, 0, 0);
    expect(program::port, vector::GENERAL_PROTECTION, 0, 0);
}

#[track_caller]
fn fault(entry: unsafe extern "C" fn(), at_address: u64, code: u32) {
    let mut app = at(entry);
    app.rdi = at_address;
    let trap = trap_of(&mut app);
    check_eq!((trap.vector, trap.error_code, trap.fault_address.raw()), (vector::PAGE_FAULT, code, at_address));
}

fn page_faults(world: &World) {
    section("page faults of applications, and the kernel's memory");
    fault(program::load, NOTHING, 4);
    fault(program::store, NOTHING, 6);
    fault(program::store, READ_ONLY, 7);
    let mut app = at(program::store);
    (app.rdi, app.rsi) = (DATA + 8, 77);
    to_system_call(&mut app);
    // SAFETY: the page that applications share.
    check_eq!(unsafe { world.word(1).read_volatile() }, 77);
    // Nothing of the kernel's is there, though all of it may be read in ring 3.
    let kernel = page_faults as *const () as u64;
    check!(probe::is_readable(GuestVirt(kernel & !7)), "the kernel reads itself");
    fault(program::load, kernel & !7, 4);
    fault(program::store, kernel & !7, 6);
    fault(program::load, &raw const app as u64, 4);
    // Nor of the hypervisor's: what is there is not readable, or not there.
    for at_address in [Arch::HYPERVISOR_VIRT_START, 0xffff_8200_0000_0000, 0xffff_8280_0000_0000, 0xffff_8300_0000_0000]
    {
        for entry in [program::load as unsafe extern "C" fn(), program::store] {
            let mut app = at(entry);
            app.rdi = at_address;
            let trap = trap_of(&mut app);
            check_eq!((trap.vector, trap.fault_address.raw()), (vector::PAGE_FAULT, at_address));
            check_eq!(trap.error_code & 4, 4, "the user bit");
        }
    }
    // A jump to where nothing is, and a kernel fault, which has no user bit.
    let mut app = at(program::load);
    app.rip = NOTHING;
    let trap = trap_of(&mut app);
    check_eq!((trap.vector, trap.error_code & 5, trap.ip.raw()), (vector::PAGE_FAULT, 4, NOTHING));
    check!(!probe::is_readable(GuestVirt(NOTHING)));
    check_eq!(traps::last_trap().error_code, 0, "the kernel's own");
}

fn interrupts() {
    section("int n of applications");
    traps::install_vector(OPEN, TrapFlags::from_dpl(3)).expect("an entry point of ours");
    traps::install_vector(KERNELS, TrapFlags::from_dpl(1)).expect("an entry point of ours");
    for n in 0..=255u8 {
        let mut app = at(program::interrupts);
        app.rip += 4 * u64::from(n);
        let start = app.rip;
        let trap = trap_of(&mut app);
        let found = (trap.vector, trap.error_code, trap.ip.raw() - start);
        if matches!(n, OPEN | vector::BREAKPOINT | vector::OVERFLOW) {
            check_eq!(found, (n, 0, 2), "int {n:#x}");
            to_system_call(&mut app);
        } else {
            check_eq!(found, (vector::GENERAL_PROTECTION, u32::from(n) << 3 | 2, 0), "int {n:#x}");
        }
    }
}

/// Each vector open to applications, with one entry point for frames without code: none comes with one.
fn every_open_vector() {
    section("int n of applications, all open");
    let address = trap_stub(OPEN).raw();
    let install = |entry| {
        // SAFETY: an entry point for frames without code, or that of the vector.
        check_eq!(unsafe { hypercall::set_trap_table(&[entry, traps::end_of_table()]) }, Ok(()));
    };
    for n in 0..=255u8 {
        install(TrapInfo::<Arch>::new(n, TrapFlags::from_dpl(3), Arch::FLAT_GUESTOS_CS, address));
        let mut app = at(program::interrupts);
        app.rip += 4 * u64::from(n);
        let start = app.rip;
        let trap = trap_of(&mut app);
        check_eq!((trap.vector, trap.error_code, trap.ip.raw() - start), (OPEN, 0, 2), "int {n:#x}");
        let level = match n {
            vector::BREAKPOINT | vector::OVERFLOW | OPEN => 3,
            KERNELS => 1,
            _ => 0,
        };
        install(traps::entry(n, TrapFlags::from_dpl(level)));
    }
}

/// A kernel counts as ring 1, so `int` of an entry of level 1 is its own.
fn every_interrupt_of_the_kernel() {
    section("int n of the kernel");
    traps::set_handler(KERNELS, |_| Outcome::Handled);
    let before = traps::count();
    // SAFETY: the handler returns at once.
    unsafe { core::arch::asm!("int 0x81") };
    check_eq!(traps::count(), before + 1);
    check_eq!(traps::last_trap().vector, KERNELS);
    traps::clear_handler(KERNELS);

    // `int n; ret` for each, four bytes a vector.
    let first = program::kernels_interrupts as *const () as usize;
    traps::set_handler(vector::GENERAL_PROTECTION, |frame| {
        frame.set_ip(GuestVirt(frame.ip().raw() + 2));
        Outcome::Handled
    });
    for n in [vector::BREAKPOINT, vector::OVERFLOW, OPEN, KERNELS] {
        traps::set_handler(n, |_| Outcome::Handled);
    }
    for n in 0..=255u8 {
        // SAFETY: the table above has a function for each vector; all that it does is to trap.
        let raise: extern "C" fn() = unsafe { core::mem::transmute(first + 4 * usize::from(n)) };
        let before = traps::count();
        raise();
        let trap = traps::last_trap();
        let expected = match n {
            vector::BREAKPOINT | vector::OVERFLOW | OPEN | KERNELS => (n, 0),
            _ => (vector::GENERAL_PROTECTION, u32::from(n) << 3 | 2),
        };
        check_eq!((trap.vector, trap.error_code, traps::count()), (expected.0, expected.1, before + 1), "int {n:#x}");
    }
    for n in [vector::GENERAL_PROTECTION, vector::BREAKPOINT, vector::OVERFLOW, OPEN, KERNELS] {
        traps::clear_handler(n);
    }
}

fn fpu() {
    section("the FPU");
    let mut app = at(program::set_fpu);
    app.rdi = 0x1122_3344_5566_7788;
    to_system_call(&mut app);
    app.rip = address(program::get_fpu);
    to_system_call(&mut app);
    check_eq!(app.rax, 0x1122_3344_5566_7788);
    hypercall::fpu_taskswitch().expect("it has no errors");
    app.rip = address(program::get_fpu);
    check_eq!(trap_of(&mut app).vector, vector::DEVICE_NOT_AVAILABLE);
    app.rax = 0;
    to_system_call(&mut app);
    check_eq!(app.rax, 0x1122_3344_5566_7788, "once, and nothing is lost");
}

fn stepping() {
    const TRAP_FLAG: u64 = 1 << 8;
    section("single steps and breakpoints");
    let mut app = at(program::steps);
    let start = app.rip;
    app.rflags |= TRAP_FLAG;
    for step in 1..=2 {
        let trap = trap_of(&mut app);
        check_eq!((trap.vector, trap.ip.raw() - start), (vector::DEBUG, step));
        check_eq!(hypercall::get_debugreg(6) & 1 << 14, 1 << 14);
        hypercall::set_debugreg(6, 0).expect("may be cleared");
    }
    // The kernel's entry is not stepped, and the application's flag is in its frame.
    to_system_call(&mut app);
    check_eq!(app.rflags & TRAP_FLAG, TRAP_FLAG);
    let mut app = at(program::steps);
    hypercall::set_debugreg(0, start as usize + 1).expect("an address of an application's");
    hypercall::set_debugreg(7, 1).expect("a breakpoint on execution");
    let trap = trap_of(&mut app);
    check_eq!((trap.vector, trap.ip.raw() - start), (vector::DEBUG, 1));
    hypercall::set_debugreg(7, 0).expect("off");
    hypercall::set_debugreg(6, 0).expect("may be cleared");
    to_system_call(&mut app);
}

/// 32-bit code has no system call here, whatever the CPU does with the instruction.
fn compatible() {
    section("32-bit applications");
    let mut app = at(program::compatible);
    app.cs = FLAT_USER_CS32.raw().into();
    app.rip = app.rip - CODE + LOW_CODE;
    let start = app.rip;
    let trap = trap_of(&mut app);
    check_eq!((trap.vector, trap.ip.raw()), (vector::INVALID_OPCODE, start));
    check_eq!(app.cs, FLAT_USER_CS32.raw().into());
    app.rip = LOW_CODE + (address(program::interrupts) - CODE) + 4 * u64::from(OPEN);
    check_eq!(trap_of(&mut app).vector, OPEN);
}
