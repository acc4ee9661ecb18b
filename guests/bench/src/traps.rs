//! Traps to the kernel and back, by handlers as short as can be; and, where the name ends in `-sdk`, by the SDK's,
//! which save every register and look up who is to be called.

use crate::Bench;
use crate::entries::{frame, writable};
use crate::instructions::{STORE_BYTES, UD2_BYTES, fnop, hlt, int3, int80, store, ud2};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::{GuestArch, GuestVirt, GuestWord, MachineAddr, PAGE_SIZE};
use proxenos_guest::memory;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{Arch, TrapFrame, Word, boot, hypercall};

/// The vector of `int 0x80`.
pub const SYSTEM_CALL: u8 = 0x80;

unsafe extern "C" {
    fn quick_upcall_entry();
    fn quick_return();
    fn quick_skip_ud2();
    fn quick_skip_store();
    fn quick_skip_hlt();
}

/// A page of the image over which the shared page is mapped once more: code can name its fields.
#[repr(C, align(4096))]
struct SharedPage(UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: only its address is taken, and the assembly below stores to it.
unsafe impl Sync for SharedPage {}

static SHARED: SharedPage = SharedPage(UnsafeCell::new([0; PAGE_SIZE]));

// An upcall takes every event of the first word at once and unmasks. What came in between would be lost; nothing does.
#[cfg(target_arch = "x86")]
global_asm!(
    r#"
    .text
    .globl quick_upcall_entry, quick_return, quick_skip_ud2, quick_skip_store, quick_skip_hlt
    quick_upcall_entry:
        mov     dword ptr [{shared} + {pending}], 0
        mov     dword ptr [{shared} + {selector}], 0
        mov     byte ptr [{shared} + {due}], 0
        mov     byte ptr [{shared} + {mask}], 0
    quick_return:
        iretd
    quick_skip_ud2:
        add     dword ptr [esp], {ud2}
        iretd
    quick_skip_store:
        add     esp, 8
        add     dword ptr [esp], {store}
        iretd
    quick_skip_hlt:
        add     esp, 4
        inc     dword ptr [esp]
        iretd
    "#,
    shared = sym SHARED,
    pending = const SharedInfo::EVTCHN_PENDING,
    selector = const SharedInfo::EVTCHN_PENDING_SEL,
    due = const SharedInfo::EVTCHN_UPCALL_PENDING,
    mask = const SharedInfo::EVTCHN_UPCALL_MASK,
    ud2 = const UD2_BYTES,
    store = const STORE_BYTES,
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    r#"
    .text
    .globl quick_upcall_entry, quick_return, quick_skip_ud2, quick_skip_store, quick_skip_hlt
    quick_upcall_entry:
        mov     dword ptr [{shared} + {pending}], 0
        mov     dword ptr [{shared} + {selector}], 0
        mov     byte ptr [{shared} + {due}], 0
        mov     byte ptr [{shared} + {mask}], 0
    quick_return:
        pop     rcx
        pop     r11
        iretq
    quick_skip_ud2:
        pop     rcx
        pop     r11
        add     qword ptr [rsp], {ud2}
        iretq
    quick_skip_store:
        pop     rcx
        pop     r11
        add     rsp, 16
        add     qword ptr [rsp], {store}
        iretq
    quick_skip_hlt:
        pop     rcx
        pop     r11
        add     rsp, 8
        inc     qword ptr [rsp]
        iretq
    "#,
    shared = sym SHARED,
    pending = const SharedInfo::EVTCHN_PENDING,
    selector = const SharedInfo::EVTCHN_PENDING_SEL,
    due = const SharedInfo::EVTCHN_UPCALL_PENDING,
    mask = const SharedInfo::EVTCHN_UPCALL_MASK,
    ud2 = const UD2_BYTES,
    store = const STORE_BYTES,
);

fn address(entry: unsafe extern "C" fn()) -> GuestVirt {
    GuestVirt(entry as *const () as usize as u64)
}

/// Address of the short event callback. The shared page must be mapped for it.
pub fn quick_upcall() -> GuestVirt {
    address(quick_upcall_entry)
}

/// Maps the shared page where the short event callback looks for it.
pub fn map_shared_page() {
    let frame = MachineAddr(boot::start_info().shared_info.to_u64()).mfn();
    let at = GuestVirt(SHARED.0.get() as usize as u64);
    // SAFETY: the page is reserved for this, and no code but the assembly above touches it.
    unsafe { memory::update_va_mapping(at, writable(frame), UpdateVaFlags::INVLPG) }.expect("the shared page is ours");
}

pub fn run(bench: &Bench) {
    let (hole, read_only) = (frame(), frame());
    // SAFETY: a fresh page, to which nothing refers.
    unsafe { memory::update_va_mapping(hole.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("a page of ours");
    // SAFETY: as above.
    unsafe { memory::remap(read_only, PteFlags::KERNEL_RO) }.expect("a page of ours");

    let entry = |vector, dpl, handler| {
        let address = Word::from_u64_truncating(address(handler).raw());
        TrapInfo::new(vector, TrapFlags::from_dpl(dpl), Arch::FLAT_GUESTOS_CS, address)
    };
    let quick = [
        entry(vector::BREAKPOINT, 3, quick_return),
        entry(SYSTEM_CALL, 3, quick_return),
        entry(vector::INVALID_OPCODE, 0, quick_skip_ud2),
        entry(vector::PAGE_FAULT, 0, quick_skip_store),
        entry(vector::GENERAL_PROTECTION, 0, quick_skip_hlt),
        entry(vector::DEVICE_NOT_AVAILABLE, 0, quick_return),
        traps::end_of_table(),
    ];
    // SAFETY: each handler is made for its vector and for the one instruction below that raises it.
    unsafe { hypercall::set_trap_table(&quick) }.expect("a trap table of ours");
    bench.measure("fault-pf", |_| hole.virt().raw(), store);
    bench.measure("fault-pf-ro", |_| read_only.virt().raw(), store);
    bench.measure("fault-ud", |_| (), ud2);
    bench.measure("int3", |_| (), int3);
    bench.measure("int80", |_| (), int80);
    bench.measure("fault-gp", |_| (), hlt);
    // The first use of all is the hypervisor's own affair.
    fnop(());
    bench.measure("fault-nm", |_| hypercall::fpu_taskswitch().expect("it has no errors"), fnop);
    bench.measure("fpu-taskswitch", |_| (), |()| hypercall::fpu_taskswitch().is_ok());
    fnop(());
    #[cfg(target_arch = "x86")]
    crate::ring3::run(bench);
    #[cfg(target_arch = "x86_64")]
    crate::user64::run(bench);

    traps::install().expect("the SDK's own trap table");
    traps::set_handler(vector::PAGE_FAULT, |frame| skip(frame, STORE_BYTES));
    traps::set_handler(vector::INVALID_OPCODE, |frame| skip(frame, UD2_BYTES));
    bench.measure("fault-pf-sdk", |_| hole.virt().raw(), store);
    bench.measure("fault-ud-sdk", |_| (), ud2);
    traps::clear_handler(vector::PAGE_FAULT);
    traps::clear_handler(vector::INVALID_OPCODE);
}

/// A handler's work: the interrupted code goes on behind the instruction that trapped.
fn skip(frame: &mut TrapFrame, bytes: u64) -> Outcome {
    frame.set_ip(GuestVirt(frame.ip().raw() + bytes));
    Outcome::Handled
}
