//! A system call by `int 0x80`, as an application makes it: from ring 3, to a kernel that returns at once.
//!
//! The application reads the time-stamp counter itself, on both sides of the call, and comes back by a breakpoint.

use crate::Bench;
use crate::traps::SYSTEM_CALL;
use core::arch::global_asm;
use proxenos_guest::abi::GuestVirt;
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::x86_32::{FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING3_CS, FLAT_RING3_DS};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{hypercall, memory, println};

/// Instructions that are counted besides the call: a move, and the second look at the counter.
const OVERHEAD: u32 = 2;
/// Rounds, of which the shortest counts.
const ROUNDS: usize = 8;

unsafe extern "C" {
    fn __ring3_page();
    fn __ring3_return();
    fn __ring3_back();
    fn __ring3_call() -> u32;
}

global_asm!(
    r#"
    .text
    .globl __ring3_page, __ring3_return, __ring3_back, __ring3_call
    /* Goes to ring 3, and returns what that found. */
    __ring3_call:
        push    ebp
        push    ebx
        push    esi
        push    edi
        mov     dword ptr [__ring3_sp], esp
        push    {user_ds}
        push    0
        push    0x202
        push    {user_cs}
        lea     eax, [__ring3_page]
        push    eax
        iretd
    /* The handler of the breakpoint that ends it. The iret to ring 3 has emptied the data registers. */
    __ring3_back:
        mov     ecx, {ds}
        mov     ds, ecx
        mov     es, ecx
        mov     esp, dword ptr [__ring3_sp]
        pop     edi
        pop     esi
        pop     ebx
        pop     ebp
        ret
    __ring3_return:
        iretd

    .balign 4096
    __ring3_page:
        rdtsc
        mov     ebx, eax
        int     0x80
        rdtsc
        sub     eax, ebx
        int3
    .balign 4096

    .data
    .balign 4
    __ring3_sp:
        .long   0
    .text
    "#,
    user_ds = const FLAT_RING3_DS.raw(),
    user_cs = const FLAT_RING3_CS.raw(),
    ds = const FLAT_RING1_DS.raw(),
);

fn address(code: unsafe extern "C" fn()) -> GuestVirt {
    GuestVirt(code as *const () as usize as u64)
}

/// Measures it. The trap table is another afterwards, and so is the kernel's stack.
pub fn run(bench: &Bench) {
    if !bench.measures("int80-user") {
        return;
    }
    let page = address(__ring3_page);
    let entry = Pte::new(memory::machine_of(page).mfn(), PteFlags::KERNEL_RO | PteFlags::USER);
    // SAFETY: the page holds nothing but the application.
    unsafe { memory::update_va_mapping(page, entry, UpdateVaFlags::INVLPG) }.expect("a page of ours");
    let stack = memory::alloc_frame().expect("the domain has more memory than this needs");
    let top = GuestVirt(stack.virt().raw() + 4096);
    let handler =
        |vector, code| TrapInfo::new(vector, TrapFlags::from_dpl(3), FLAT_RING1_CS, address(code).raw() as u32);
    let table =
        [handler(SYSTEM_CALL, __ring3_return), handler(vector::BREAKPOINT, __ring3_back), traps::end_of_table()];
    // SAFETY: the stack is for nothing else; the handlers are made for what the application does.
    let least = unsafe {
        hypercall::stack_switch(FLAT_RING1_DS, top).expect("a stack of ours");
        hypercall::set_trap_table(&table).expect("a trap table of ours");
        (0..ROUNDS).map(|_| __ring3_call()).min()
    };
    println!("bench int80-user {}", least.unwrap_or(0).saturating_sub(OVERHEAD));
}
