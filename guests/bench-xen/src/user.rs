//! What an application pays for a system call, an `int 0x80` and a page fault, to a kernel that returns at once.
//!
//! The application is that of `guests/bench`. It comes back by a breakpoint.

use crate::abi::{self, MmuUpdate, call, mmuext};
use crate::application::{OVERHEAD, application_fault, application_int80, application_page, application_syscall};
use crate::hypercall;
use crate::measure::Bench;
use crate::memory::{self, Frame, KERNEL_RO, PAGE, USER, entry, pin};
use crate::println;
use crate::traps::{self, END_OF_TABLE, Return, SYSTEM_CALL, address, handler};
use core::arch::global_asm;

/// Where the application's code lies.
const CODE: u64 = 0x100_0000_0000;
/// Rounds, of which the shortest counts.
const ROUNDS: usize = 8;

unsafe extern "C" {
    fn user_system_call();
    fn user_return();
    fn user_skip_store();
    fn user_back();
    fn user_call(entry: u64) -> u64;
}

// `iret` takes, low to high: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss.
global_asm!(
    r#"
    .text
    .globl user_system_call, user_return, user_skip_store, user_back, user_call
    /* Runs the application from rdi on, and returns what it found. */
    user_call:
        push    rbx
        push    rbp
        push    r12
        push    r13
        push    r14
        push    r15
        mov     [rip + user_sp], rsp
        push    {ss}
        push    0
        push    0x202
        push    {cs}
        push    rdi
        push    0
        push    0
        push    0
        push    0
        mov     eax, {iret}
        syscall
        ud2
    /* The handler of the breakpoint that ends it. */
    user_back:
        mov     rax, rsi
        mov     rsp, [rip + user_sp]
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        ret
    /* On the stack: rcx, r11, rip, cs, rflags, rsp, ss. The call's flags take r11's place. */
    user_system_call:
        sub     rsp, 16
        mov     qword ptr [rsp + 24], {in_syscall}
        mov     eax, {iret}
        syscall
        ud2
    user_skip_store:
        pop     rcx
        pop     r11
        add     rsp, 8
        add     qword ptr [rsp], 3
        jmp     2f
    user_return:
        pop     rcx
        pop     r11
    2:  push    0
        push    rcx
        push    r11
        push    rax
        mov     eax, {iret}
        syscall
        ud2

    .data
    .balign 8
    user_sp:
        .quad   0
    .text
    "#,
    ss = const abi::USER_SS,
    cs = const abi::USER_CS,
    in_syscall = const abi::IN_SYSCALL,
    iret = const call::IRET,
);

/// Measures them. The trap table, the callbacks and the kernel's stack are others afterwards.
pub fn run(bench: &Bench) {
    let rows: [(&str, unsafe extern "C" fn()); 3] = [
        ("syscall-user", application_syscall),
        ("int80-user", application_int80),
        ("fault-pf-user", application_fault),
    ];
    if !rows.iter().any(|(name, _)| bench.measures(name)) {
        return;
    }
    map_application();
    let top = Frame::new().virt() + PAGE as u64;
    let table = [
        handler(SYSTEM_CALL, 3, user_return),
        handler(traps::BREAKPOINT, 3, user_back),
        handler(traps::PAGE_FAULT, 0, user_skip_store),
        END_OF_TABLE,
    ];
    // SAFETY: the stack is for nothing else; the handlers are made for what the application does.
    unsafe {
        assert!(hypercall::stack_switch(top), "a stack of ours");
        let (event, failsafe) = (traps::upcall(Return::Instruction), traps::failsafe());
        assert!(hypercall::set_callbacks(event, failsafe, address(user_system_call)), "entries of ours");
        assert!(hypercall::set_trap_table(&table), "a trap table of ours");
    }
    for (name, code) in rows.into_iter().filter(|(name, _)| bench.measures(name)) {
        let entry = CODE + (address(code) - address(application_page));
        // SAFETY: it comes back by the breakpoint. Events stay masked.
        let least = (0..ROUNDS).map(|_| unsafe { user_call(entry) }).min();
        println!("bench {name} {}", least.unwrap_or(0).saturating_sub(OVERHEAD));
    }
}

/// Page tables of their own for applications, with the one page.
fn map_application() {
    let root = Frame::new();
    root.make_read_only();
    assert!(pin(mmuext::PIN_L4_TABLE, root.mfn()), "an empty table is a table");
    let page = memory::mfn_of(address(application_page) as usize);
    let update = MmuUpdate { ptr: memory::entry_of(root.mfn(), CODE), val: entry(page, KERNEL_RO | USER) };
    // SAFETY: the entry was empty; the application's page is only read.
    assert!(unsafe { hypercall::mmu_update(&[update]) }, "a page of ours can be mapped");
    // SAFETY: no application runs yet.
    assert!(unsafe { hypercall::mmuext(mmuext::NEW_USER_BASEPTR, root.mfn()) }, "a table of ours");
}
