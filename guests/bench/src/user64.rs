//! What an application of an x86_64 kernel pays for a system call, an `int 0x80` and a page fault, to a kernel that
//! returns at once.
//!
//! The application ([`crate::application`]) comes back by a breakpoint.

use crate::Bench;
use crate::application::{OVERHEAD, application_fault, application_int80, application_page, application_syscall};
use crate::traps::SYSTEM_CALL;
use core::arch::global_asm;
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::hypercall::SWITCH_TO_USER_IN_SYSCALL;
use proxenos_guest::abi::{GuestArch, GuestVirt, Hypercall};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::traps::{self, vector};
use proxenos_guest::user::UserSpace;
use proxenos_guest::{Arch, arch, hypercall, memory, println};

/// Where the application's code lies.
const CODE: u64 = 0x100_0000_0000;
/// Rounds, of which the shortest counts.
const ROUNDS: usize = 8;

unsafe extern "C" {
    fn __user64_system_call();
    fn __user64_return();
    fn __user64_skip_store();
    fn __user64_back();
    fn __user64_call(entry: u64) -> u64;
}

global_asm!(
    r#"
    .text
    .globl __user64_system_call, __user64_return, __user64_skip_store, __user64_back, __user64_call
    /* Runs the application from rdi on, and returns what it found. */
    __user64_call:
        push    rbx
        push    rbp
        push    r12
        push    r13
        push    r14
        push    r15
        mov     [rip + __user64_sp], rsp
        push    {ds}
        push    0
        push    0x202
        push    {cs}
        push    rdi
        push    0
        push    0
        push    0
        mov     eax, {switch_to_user}
        syscall
        ud2
    /* The handler of the breakpoint that ends it. */
    __user64_back:
        mov     rax, rsi
        mov     rsp, [rip + __user64_sp]
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        ret
    /* On the stack: rcx, r11, rip, cs, rflags, rsp, ss. */
    __user64_system_call:
        sub     rsp, 8
        mov     qword ptr [rsp + 16], {in_syscall}
        mov     eax, {switch_to_user}
        syscall
        ud2
    __user64_skip_store:
        pop     rcx
        pop     r11
        add     rsp, 16
        add     qword ptr [rsp], 3
        jmp     2f
    __user64_return:
        pop     rcx
        pop     r11
    2:  push    0
        push    rcx
        push    r11
        mov     eax, {switch_to_user}
        syscall
        ud2

    .data
    .balign 8
    __user64_sp:
        .quad   0
    .text
    "#,
    ds = const Arch::FLAT_USER_DS.raw(),
    cs = const Arch::FLAT_USER_CS.raw(),
    in_syscall = const SWITCH_TO_USER_IN_SYSCALL,
    switch_to_user = const Hypercall::SwitchToUser.raw(),
);

fn address(code: unsafe extern "C" fn()) -> GuestVirt {
    GuestVirt(code as *const () as usize as u64)
}

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
    let space = UserSpace::new().expect("memory for page tables");
    let page = address(application_page);
    let entry = Pte::new(memory::machine_of(page).mfn(), PteFlags::KERNEL_RO);
    space.map(GuestVirt(CODE), entry).expect("a page of ours");
    space.activate().expect("a table of ours");
    let stack = memory::alloc_frame().expect("the domain has more memory than this needs");
    let top = GuestVirt(stack.virt().raw() + 4096);
    let cs = Arch::FLAT_GUESTOS_CS;
    let handler = |vector, code| TrapInfo::new(vector, TrapFlags::from_dpl(3), cs, address(code).raw());
    let table = [
        handler(SYSTEM_CALL, __user64_return),
        handler(vector::BREAKPOINT, __user64_back),
        handler(vector::PAGE_FAULT, __user64_skip_store),
        traps::end_of_table(),
    ];
    let (event, failsafe) = ((cs, arch::event_callback()), (cs, arch::failsafe_callback()));
    // SAFETY: the stack is for nothing else; the handlers are made for what the application does.
    unsafe {
        hypercall::stack_switch(Arch::FLAT_GUESTOS_DS, top).expect("a stack of ours");
        hypercall::set_callbacks_of_both(event, failsafe, address(__user64_system_call)).expect("entries of ours");
        hypercall::set_trap_table(&table).expect("a trap table of ours");
    }
    for (name, code) in rows.into_iter().filter(|(name, _)| bench.measures(name)) {
        let entry = CODE + (address(code).raw() - page.raw());
        // Events wait: the SDK's callback knows nothing of this application.
        let least = proxenos_guest::events::without_upcalls(|| {
            // SAFETY: it comes back by the breakpoint.
            (0..ROUNDS).map(|_| unsafe { __user64_call(entry) }).min()
        });
        println!("bench {name} {}", least.unwrap_or(0).saturating_sub(OVERHEAD));
    }
}
