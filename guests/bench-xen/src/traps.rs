//! Traps to the kernel and back, by handlers as short as can be.
//!
//! A frame that interrupted the kernel says privilege level 0, where `iretq` wants 3. So each handler has an
//! instruction more than the same of `guests/bench`. Linux returns by the hypercall `iret` instead, always: what that
//! takes is measured too, by names that end in `-iret`.

use crate::abi::{self, TrapInfo, call, shared_info};
use crate::hypercall;
use crate::instructions::{STORE_BYTES, UD2_BYTES, fnop, hlt, int3, int80, store, ud2};
use crate::measure::Bench;
use crate::memory::{self, Frame};
use core::arch::global_asm;

/// The vector of `int 0x80`.
pub const SYSTEM_CALL: u8 = 0x80;
pub const BREAKPOINT: u8 = 3;
const INVALID_OPCODE: u8 = 6;
const DEVICE_NOT_AVAILABLE: u8 = 7;
const GENERAL_PROTECTION: u8 = 13;
pub const PAGE_FAULT: u8 = 14;

/// How a handler goes back to the interrupted kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// By the instruction `iretq`.
    Instruction,
    /// By the hypercall `iret`, which also says whether events are held back: as the frame has it, in `rflags.IF`.
    Hypercall,
}

/// The handlers for one way to go back.
struct Handlers {
    upcall: unsafe extern "C" fn(),
    at_once: unsafe extern "C" fn(),
    skip_ud2: unsafe extern "C" fn(),
    skip_store: unsafe extern "C" fn(),
    skip_hlt: unsafe extern "C" fn(),
}

unsafe extern "C" {
    fn quick_upcall();
    fn quick_return();
    fn quick_skip_ud2();
    fn quick_skip_store();
    fn quick_skip_hlt();
    fn iret_upcall();
    fn iret_return();
    fn iret_skip_ud2();
    fn iret_skip_store();
    fn iret_skip_hlt();
    fn failsafe_entry();
}

impl Return {
    fn handlers(self) -> Handlers {
        match self {
            Self::Instruction => Handlers {
                upcall: quick_upcall,
                at_once: quick_return,
                skip_ud2: quick_skip_ud2,
                skip_store: quick_skip_store,
                skip_hlt: quick_skip_hlt,
            },
            Self::Hypercall => Handlers {
                upcall: iret_upcall,
                at_once: iret_return,
                skip_ud2: iret_skip_ud2,
                skip_store: iret_skip_store,
                skip_hlt: iret_skip_hlt,
            },
        }
    }
}

// On the stack: rcx, r11, [error code,] rip, cs, rflags, rsp, ss. The hypercall wants rax, r11, rcx, flags before rip.
// An upcall takes every event of the first word at once and unmasks. What came in between would be lost; nothing does.
global_asm!(
    r#"
    .macro handlers name, finish, unmask
    .globl \name\()_upcall, \name\()_return, \name\()_skip_ud2, \name\()_skip_store, \name\()_skip_hlt
    \name\()_upcall:
        mov     qword ptr [{shared} + {pending}], 0
        mov     qword ptr [{shared} + {selector}], 0
        mov     byte ptr [{shared} + {due}], 0
        .if \unmask
        mov     byte ptr [{shared} + {mask}], 0
        .endif
    \name\()_return:
        pop     rcx
        pop     r11
        \finish
    \name\()_skip_ud2:
        pop     rcx
        pop     r11
        add     qword ptr [rsp], {ud2}
        \finish
    \name\()_skip_store:
        pop     rcx
        pop     r11
        add     rsp, 8
        add     qword ptr [rsp], {store}
        \finish
    \name\()_skip_hlt:
        pop     rcx
        pop     r11
        add     rsp, 8
        inc     qword ptr [rsp]
        \finish
    .endm
    .macro by_instruction
        or      byte ptr [rsp + 8], 3
        iretq
    .endm
    .macro by_hypercall
        push    0
        push    rcx
        push    r11
        push    rax
        mov     eax, {iret}
        syscall
    .endm

    .text
    .globl failsafe_entry
    handlers quick, by_instruction, 1
    handlers iret, by_hypercall, 0
    /* No segment register of ours is ever changed. */
    failsafe_entry:
        ud2
    "#,
    shared = sym memory::SHARED,
    pending = const shared_info::PENDING,
    selector = const shared_info::PENDING_SEL,
    due = const shared_info::UPCALL_PENDING,
    mask = const shared_info::UPCALL_MASK,
    ud2 = const UD2_BYTES,
    store = const STORE_BYTES,
    iret = const call::IRET,
);

/// Address of code.
pub fn address(entry: unsafe extern "C" fn()) -> u64 {
    entry as *const () as usize as u64
}

/// Address of the event callback that goes back so.
pub fn upcall(back: Return) -> u64 {
    address(back.handlers().upcall)
}

/// Address of the failsafe callback.
pub fn failsafe() -> u64 {
    address(failsafe_entry)
}

/// A handler, of a trap that `int n` may raise from applications if `dpl` is 3.
pub fn handler(vector: u8, dpl: u8, code: unsafe extern "C" fn()) -> TrapInfo {
    TrapInfo { vector, flags: dpl, cs: abi::KERNEL_CS, address: address(code) }
}

/// The last element of a table.
pub const END_OF_TABLE: TrapInfo = TrapInfo { vector: 0, flags: 0, cs: 0, address: 0 };

pub fn run(bench: &Bench) {
    let (hole, read_only) = (Frame::new(), Frame::new());
    hole.unmap();
    read_only.make_read_only();
    for (back, [pf, pf_ro, ud, breakpoint, int_80, gp]) in [
        (
            Return::Hypercall,
            ["fault-pf-iret", "fault-pf-ro-iret", "fault-ud-iret", "int3-iret", "int80-iret", "fault-gp-iret"],
        ),
        (Return::Instruction, ["fault-pf", "fault-pf-ro", "fault-ud", "int3", "int80", "fault-gp"]),
    ] {
        install(back);
        bench.measure(pf, |_| hole.virt(), store);
        bench.measure(pf_ro, |_| read_only.virt(), store);
        bench.measure(ud, |_| (), ud2);
        bench.measure(breakpoint, |_| (), int3);
        bench.measure(int_80, |_| (), int80);
        bench.measure(gp, |_| (), hlt);
    }
    // The first use of all is the hypervisor's own affair.
    fnop(());
    bench.measure("fault-nm", |_| assert!(hypercall::fpu_taskswitch()), fnop);
    bench.measure("fpu-taskswitch", |_| (), |()| hypercall::fpu_taskswitch());
    fnop(());
    crate::user::run(bench);
}

/// Sets the trap table.
fn install(back: Return) {
    let handlers = back.handlers();
    let table = [
        handler(BREAKPOINT, 3, handlers.at_once),
        handler(SYSTEM_CALL, 3, handlers.at_once),
        handler(INVALID_OPCODE, 0, handlers.skip_ud2),
        handler(PAGE_FAULT, 0, handlers.skip_store),
        handler(GENERAL_PROTECTION, 0, handlers.skip_hlt),
        handler(DEVICE_NOT_AVAILABLE, 0, handlers.at_once),
        END_OF_TABLE,
    ];
    // SAFETY: each handler is made for its vector and for the one instruction below that raises it.
    assert!(unsafe { hypercall::set_trap_table(&table) }, "a trap table of ours");
}
