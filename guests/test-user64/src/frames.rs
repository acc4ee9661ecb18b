//! Frames for `switch_to_user` that are not as they should be.

use crate::{CODE, DATA, LAST_PAGE, NOTHING, World, address, at, program, to_system_call};
use core::arch::asm;
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::hypercall::MulticallEntry;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, Hypercall};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::user::{self, Exit};
use proxenos_guest::{Arch, TrapFrame, check, check_eq, events, hypercall, memory};

pub fn run(world: &World) {
    unreadable(world);
    selectors();
    addresses();
    flags();
    in_a_multicall();
    callback_into_nothing();
    system_call_at_the_end();
}

/// Makes the call with the stack pointer anywhere.
fn switch_at(sp: u64) -> Result<usize, Errno> {
    let result = events::without_upcalls(|| {
        let result: usize;
        // SAFETY: the frame cannot be read, so the call fails; no event and no trap comes on that stack.
        unsafe {
            asm!(
                "mov r12, rsp",
                "mov rsp, {sp}",
                "syscall",
                "mov rsp, r12",
                sp = in(reg) sp,
                inlateout("rax") Hypercall::SwitchToUser.raw() as usize => result,
                out("rcx") _, out("r11") _, out("r12") _,
            );
        }
        result
    });
    hypercall::check(result)
}

fn unreadable(_: &World) {
    section("frames that cannot be read");
    let page = memory::alloc_frame().expect("memory");
    let base = page.virt().raw();
    let next = memory::alloc_frame().expect("memory");
    check_eq!(next.virt().raw(), base + 4096, "two pages in a row");
    // SAFETY: a fresh frame.
    unsafe { memory::update_va_mapping(next.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("a page of ours");
    for sp in [
        NOTHING,
        DATA,
        base + 4096,
        base + 4096 - 8,
        base + 4096 - 56,
        base + 4096 - 63,
        0,
        u64::MAX,
        u64::MAX - 63,
        (1 << 47) - 32,
        1 << 47,
        1 << 63,
        Arch::HYPERVISOR_VIRT_START,
        Arch::HYPERVISOR_VIRT_START - 32,
        Arch::HYPERVISOR_VIRT_END - 32,
        0xffff_8300_0000_0000,
    ] {
        check_eq!(switch_at(sp), Err(Errno::EFAULT), "{sp:#x}");
    }
    // rax would lie where nothing is.
    // SAFETY: a page of ours.
    unsafe { page.words().cast::<u64>().add(512 - 8 + 2).write_volatile(1 << 9) };
    check_eq!(switch_at(base + 4096 - 64), Err(Errno::EFAULT), "the word above");
    // SAFETY: a page of ours, and nothing else is to be mapped there.
    unsafe { memory::remap(next, PteFlags::KERNEL_RW) }.expect("a page of ours");
    to_system_call(&mut at(program::calls));
}

/// A selector is loaded as ring 3's, or the kernel is told.
fn selectors() {
    section("selectors of all kinds");
    for selector in (0..=0xffffu64).step_by(8).chain([0x82b, 0x823, 0x833].map(|flat| flat & !3)) {
        // The highest entries say nothing new.
        if selector > 0x1000 && selector & 0xff8 != 0xff8 {
            continue;
        }
        for rpl in [0, 3] {
            let selector = selector | rpl;
            let mut app = at(program::calls);
            app.cs = selector;
            let outcome = user::run(&mut app);
            match selector | 3 {
                0x82b => check_eq!(outcome, Ok(Exit::SystemCall), "cs {selector:#x}"),
                // 32-bit code, at an address that it cannot have.
                0x823 => check!(matches!(outcome, Ok(Exit::Trap(_) | Exit::Failsafe)), "cs {selector:#x}: {outcome:?}"),
                _ => check_eq!(outcome, Ok(Exit::Failsafe), "cs {selector:#x}"),
            };
            check_eq!(app.cs & 3, 3);
            let mut app = at(program::calls);
            app.ss = selector;
            let outcome = user::run(&mut app);
            match selector | 3 {
                0x833 => check_eq!(outcome, Ok(Exit::SystemCall), "ss {selector:#x}"),
                _ => check_eq!(outcome, Ok(Exit::Failsafe), "ss {selector:#x}"),
            };
        }
    }
    // What is above their sixteen bits is nobody's.
    let mut app = at(program::calls);
    (app.cs, app.ss) = (app.cs | 0xffff_ffff_dead_0000, app.ss | 0xbeef << 16);
    to_system_call(&mut app);
}

fn addresses() {
    section("addresses that are none");
    for ip in [1 << 47, 1 << 63, u64::MAX >> 1, 0xffff_7fff_ffff_fff0] {
        let mut app = at(program::calls);
        app.rip = ip;
        // Told before the application runs, or as its own fault, as the CPU has it.
        match user::run(&mut app) {
            Ok(Exit::Failsafe) => {}
            Ok(Exit::Trap(trap)) => {
                check!(matches!(trap.vector, vector::GENERAL_PROTECTION | vector::PAGE_FAULT), "{trap:?}");
            }
            other => {
                check!(false, "{ip:#x}: {other:?}");
            }
        }
        check_eq!(app.rip, ip);
    }
    for sp in [1 << 47, 1 << 63, u64::MAX, 0] {
        let mut app = at(program::calls);
        app.rsp = sp;
        to_system_call(&mut app);
        check_eq!(app.rsp, sp);
    }
    // The hypervisor's code, and the kernel's: not the application's to execute.
    for ip in [0xffff_8280_0000_0000, Arch::HYPERVISOR_VIRT_START, addresses as *const () as u64] {
        let mut app = at(program::calls);
        app.rip = ip;
        check!(matches!(user::run(&mut app), Ok(Exit::Trap(trap)) if trap.vector == vector::PAGE_FAULT), "{ip:#x}");
    }
}

fn flags() {
    section("flags that no application may have");
    const IF: u64 = 1 << 9;
    for given in [0, !(1 << 8), 3 << 12, 1 << 17, 3 << 19, 1 << 14] {
        let mut app = at(program::calls);
        app.rflags = given;
        to_system_call(&mut app);
        check_eq!(app.rflags & (3 << 12 | 1 << 17 | 3 << 19), 0, "{given:#x} gives {:#x}", app.rflags);
        check_eq!(app.rflags & IF, IF);
        app.rip = address(program::disable);
        check!(matches!(user::run(&mut app), Ok(Exit::Trap(trap)) if trap.vector == vector::GENERAL_PROTECTION));
    }
}

fn in_a_multicall() {
    section("in a multicall");
    let mut calls = [MulticallEntry::<Arch>::default(); 2];
    calls[0].op = Hypercall::SwitchToUser.raw().into();
    calls[1].op = Hypercall::XenVersion.raw().into();
    // SAFETY: the first call fails, the second does nothing.
    check_eq!(unsafe { hypercall::multicall(&mut calls) }, Ok(()));
    let results = calls.map(|call| { call.args }[5] as i64);
    check_eq!(results, [Errno::EINVAL.to_result(), 0x2_0000]);
}

/// The entry for system calls is where nothing is: the kernel's own fault.
fn callback_into_nothing() {
    section("an entry for system calls where nothing is");
    let cs = Arch::FLAT_GUESTOS_CS;
    let (event, failsafe) = (proxenos_guest::arch::event_callback(), proxenos_guest::arch::failsafe_callback());
    let set = |at: u64| {
        // SAFETY: two entry points; at the third nothing is, which the handler of page faults knows.
        unsafe { hypercall::set_callbacks_of_both((cs, event), (cs, failsafe), GuestVirt(at)) }
    };
    fn detour(frame: &mut TrapFrame) -> Outcome {
        if frame.ip().raw() != NOTHING || frame.error_code() & 4 != 0 {
            return Outcome::NotMine;
        }
        frame.set_ip(proxenos_guest::arch::user::system_call_entry());
        Outcome::Handled
    }
    traps::set_handler(vector::PAGE_FAULT, detour);
    check_eq!(set(NOTHING), Ok(()));
    let before = traps::count();
    to_system_call(&mut at(program::calls));
    check_eq!(traps::count(), before + 1);
    traps::clear_handler(vector::PAGE_FAULT);
    // What no guest can have is no entry.
    for at_address in [1 << 47, Arch::HYPERVISOR_VIRT_START, 0xffff_8300_0000_0000] {
        check_eq!(set(at_address), Ok(()));
        let outcome = user::run(&mut at(program::calls));
        check!(matches!(outcome, Ok(Exit::Trap(trap)) if trap.vector == vector::INVALID_OPCODE), "{outcome:?}");
    }
    user::install().expect("the callbacks");
    check_eq!(traps::install_vector(0x90, TrapFlags::from_dpl(3)), Ok(()));
}

/// `syscall` as the last instruction below what is not canonical: where it returns to cannot be returned to.
fn system_call_at_the_end() {
    section("a system call at the end of the address space");
    let mut app = at(program::calls);
    app.rip = address(program::last) - CODE + LAST_PAGE;
    to_system_call(&mut app);
    check_eq!(app.rip, 1 << 47);
    let outcome = user::resume(&mut app, user::Resume::FromSystemCall);
    check!(matches!(outcome, Ok(Exit::Failsafe | Exit::Trap(_))), "{outcome:?}");
    check_eq!(app.rip, 1 << 47);
}
