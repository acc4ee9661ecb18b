//! Traps to the kernel and back, by handlers as short as can be.
//!
//! A frame that interrupted the kernel says privilege level 0, where `iretq` wants 3. So each handler has an instruction
//! more than the same of `guests/bench`. Kernels that return by the hypercall `iret` pay for that instead.

use crate::abi::{self, TrapInfo, shared_info};
use crate::hypercall;
use crate::measure::Bench;
use crate::memory::{self, Frame};
use core::arch::{asm, global_asm};

/// The vector of `int 0x80`.
pub const SYSTEM_CALL: u8 = 0x80;
pub const BREAKPOINT: u8 = 3;
const INVALID_OPCODE: u8 = 6;
const DEVICE_NOT_AVAILABLE: u8 = 7;
const GENERAL_PROTECTION: u8 = 13;
pub const PAGE_FAULT: u8 = 14;
/// Bytes of the store that faults.
const STORE_BYTES: u64 = 3;
/// Bytes of `ud2`.
const UD2_BYTES: u64 = 2;

unsafe extern "C" {
    fn quick_upcall_entry();
    fn quick_return();
    fn quick_skip_ud2();
    fn quick_skip_store();
    fn quick_skip_hlt();
    fn failsafe_entry();
}

// On the stack: rcx, r11, [error code,] rip, cs, rflags, rsp, ss.
// An upcall takes every event of the first word at once and unmasks. What came in between would be lost; nothing does.
global_asm!(
    r#"
    .text
    .globl quick_upcall_entry, quick_return, quick_skip_ud2, quick_skip_store, quick_skip_hlt, failsafe_entry
    quick_upcall_entry:
        mov     qword ptr [{shared} + {pending}], 0
        mov     qword ptr [{shared} + {selector}], 0
        mov     byte ptr [{shared} + {due}], 0
        mov     byte ptr [{shared} + {mask}], 0
    quick_return:
        pop     rcx
        pop     r11
        or      byte ptr [rsp + 8], 3
        iretq
    quick_skip_ud2:
        pop     rcx
        pop     r11
        add     qword ptr [rsp], {ud2}
        or      byte ptr [rsp + 8], 3
        iretq
    quick_skip_store:
        pop     rcx
        pop     r11
        add     rsp, 8
        add     qword ptr [rsp], {store}
        or      byte ptr [rsp + 8], 3
        iretq
    quick_skip_hlt:
        pop     rcx
        pop     r11
        add     rsp, 8
        inc     qword ptr [rsp]
        or      byte ptr [rsp + 8], 3
        iretq
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
);

/// Address of code.
pub fn address(entry: unsafe extern "C" fn()) -> u64 {
    entry as *const () as usize as u64
}

/// Address of the event callback.
pub fn quick_upcall() -> u64 {
    address(quick_upcall_entry)
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
    let quick = [
        handler(BREAKPOINT, 3, quick_return),
        handler(SYSTEM_CALL, 3, quick_return),
        handler(INVALID_OPCODE, 0, quick_skip_ud2),
        handler(PAGE_FAULT, 0, quick_skip_store),
        handler(GENERAL_PROTECTION, 0, quick_skip_hlt),
        handler(DEVICE_NOT_AVAILABLE, 0, quick_return),
        END_OF_TABLE,
    ];
    // SAFETY: each handler is made for its vector and for the one instruction below that raises it.
    assert!(unsafe { hypercall::set_trap_table(&quick) }, "a trap table of ours");
    bench.measure("fault-pf", |_| hole.virt(), store);
    bench.measure("fault-pf-ro", |_| read_only.virt(), store);
    bench.measure("fault-ud", |_| (), ud2);
    bench.measure("int3", |_| (), int3);
    bench.measure("int80", |_| (), int80);
    bench.measure("fault-gp", |_| (), hlt);
    // The first use of all is the hypervisor's own affair.
    fnop(());
    bench.measure("fault-nm", |_| assert!(hypercall::fpu_taskswitch()), fnop);
    bench.measure("fpu-taskswitch", |_| (), |()| hypercall::fpu_taskswitch());
    fnop(());
    crate::user::run(bench);
}

/// A store that faults, and is skipped.
#[inline(always)]
fn store(to: u64) -> bool {
    // SAFETY: `mov byte ptr [rcx], 0`, of STORE_BYTES bytes, to a page of ours that cannot be written: the handler
    // skips it.
    unsafe { asm!(".byte 0xc6, 0x01, 0x00", in("rcx") to) };
    true
}

/// A breakpoint.
#[inline(always)]
fn int3((): ()) -> bool {
    // SAFETY: the handler returns at once and changes no register.
    unsafe { asm!("int3") };
    true
}

/// A system call of old, from the kernel itself.
#[inline(always)]
fn int80((): ()) -> bool {
    // SAFETY: as above.
    unsafe { asm!("int 0x80") };
    true
}

/// A privileged instruction of one byte, which is skipped.
#[inline(always)]
fn hlt((): ()) -> bool {
    // SAFETY: the handler skips it.
    unsafe { asm!("hlt") };
    true
}

/// A use of the FPU that changes nothing of it.
#[inline(always)]
fn fnop((): ()) -> bool {
    // SAFETY: the handler returns at once, to the same instruction.
    unsafe { asm!("fnop") };
    true
}

/// An invalid opcode, which is skipped.
#[inline(always)]
fn ud2((): ()) -> bool {
    // SAFETY: the handler skips it.
    unsafe { asm!("ud2") };
    true
}
