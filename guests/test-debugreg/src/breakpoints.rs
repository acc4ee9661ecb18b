//! What breakpoints and single steps tell their guest.

use crate::{ACCESS_4, EXECUTE, WRITE_1, WRITE_2, WRITE_4, arm, disarm, seen};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use proxenos_guest::abi::event_channel::{EvtchnOp, EvtchnStatus};
use proxenos_guest::abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_guest::abi::{DomId, Errno, Hypercall, Port};
use proxenos_guest::arch::hypercall1;
use proxenos_guest::hypercall::{check as result_of, get_debugreg, set_debugreg, vm_assist};
use proxenos_guest::memory::{self, Range};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq};

global_asm!(
    ".pushsection .text.breakpoint_target, \"ax\", @progbits",
    ".globl breakpoint_target",
    ".globl breakpoint_second",
    "breakpoint_target:",
    "   nop",
    "breakpoint_second:",
    "   nop",
    "   ret",
    ".popsection"
);

unsafe extern "C" {
    fn breakpoint_target();
    fn breakpoint_second();
}

/// Where the two instructions of `breakpoint_target` are.
pub fn places() -> [usize; 2] {
    [breakpoint_target as *const () as usize, breakpoint_second as *const () as usize]
}

/// Executes them.
pub fn execute() {
    // SAFETY: two instructions that do nothing.
    unsafe { breakpoint_target() }
}

/// Four bytes of eight that are watched.
static WATCHED: AtomicU64 = AtomicU64::new(0);

pub fn watched() -> *mut u32 {
    WATCHED.as_ptr().cast()
}

/// Stores to a place, and tells where the instruction behind the store is.
#[inline(never)]
fn store(at: *mut u32, value: u32) -> usize {
    let behind: usize;
    // SAFETY: a store to a place of ours.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("mov [{at}], {value:e}", "2: lea {behind:e}, [2b]", at = in(reg) at, value = in(reg) value, behind = out(reg) behind)
    };
    // SAFETY: a store to a place of ours.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov [{at}], {value:e}", "2: lea {behind}, [rip + 2b]", at = in(reg) at, value = in(reg) value, behind = out(reg) behind)
    };
    behind
}

/// Loads from a place.
#[inline(never)]
fn load(at: *const u32) -> u32 {
    // SAFETY: a place of ours.
    unsafe { at.read_volatile() }
}

pub fn run() {
    on_execution();
    on_access();
    copied_by_the_hypervisor();
    on_a_page_table();
    single_step();
}

fn on_execution() {
    section("breakpoints on execution");
    let [first, second] = places();
    seen();
    execute();
    check_eq!(seen().0, 0, "none is set");
    arm(0, EXECUTE, first);
    execute();
    check_eq!(seen(), (1, first, 0xffff_0ff1), "before the instruction, once");
    execute();
    check_eq!(seen(), (1, first, 0xffff_0ff1), "and again");
    arm(3, EXECUTE, second);
    execute();
    check_eq!(seen(), (2, second, 0xffff_0ff8), "two of them");
    // Moved while it is armed.
    arm(0, EXECUTE, second);
    execute();
    let (count, ip, status) = seen();
    check_eq!((count, ip), (1, second), "two at one place");
    check_eq!(status, 0xffff_0ff9, "DR6 names both");
    disarm();
    execute();
    check_eq!(seen().0, 0, "off again");
    check_eq!(get_debugreg(0), second, "the address stays");
}

fn on_access() {
    section("breakpoints on access");
    let at = watched();
    arm(1, WRITE_4, at as usize);
    let behind = store(at, 1);
    check_eq!(seen(), (1, behind, 0xffff_0ff2), "a write, behind the instruction");
    check_eq!(load(at), 1);
    check_eq!(seen().0, 0, "a read");
    store(at.wrapping_add(1), 1);
    check_eq!(seen().0, 0, "a write beside it");
    arm(1, ACCESS_4, at as usize);
    check_eq!(load(at), 1);
    check_eq!(seen().0, 1, "a read, where reads count");
    arm(1, WRITE_1, at as usize + 3);
    store(at, 2);
    check_eq!(seen().0, 1, "the last byte of four");
    arm(1, WRITE_2, at as usize + 4);
    store(at, 3);
    check_eq!(seen().0, 0, "two bytes behind the four");
    #[cfg(target_arch = "x86_64")]
    {
        arm(1, 0b1001, at as usize);
        store(at.wrapping_add(1), 4);
        check_eq!(seen().0, 1, "the upper half of eight");
    }
    // DR6 collects until it is cleared.
    check_eq!(set_debugreg(6, 0xffff_0ff4), Ok(()));
    arm(1, WRITE_4, at as usize);
    store(at, 5);
    check_eq!(seen(), (1, store_end(), 0xffff_0ff6), "what was there stays");
    disarm();
    store(at, 6);
    check_eq!(seen().0, 0, "off again");
}

/// Where a #DB of [`store`] is reported.
fn store_end() -> usize {
    static DUMMY: AtomicU32 = AtomicU32::new(0);
    store(DUMMY.as_ptr(), 0)
}

/// The hypervisor reads and writes what is watched: the call does what it does, and the guest hears nothing.
fn copied_by_the_hypervisor() {
    section("watched memory in hypercalls");
    let request = EvtchnOp::new(EvtchnStatus { dom: DomId::SELF, port: Port(0), ..EvtchnStatus::default() });
    let mut plain = request;
    check_eq!(status_of(&raw mut plain), Ok(0), "the call with nothing watched");
    // In a page of its own: what lies beside it on a stack would be watched too.
    let op = memory::alloc_frame().expect("padding").words().cast::<EvtchnOp>();
    for watched in [0, 4, 8, 12, 16, 28] {
        // SAFETY: a fresh frame.
        unsafe { op.write_unaligned(request) };
        for number in 0..4 {
            arm(number, ACCESS_4, op as usize + watched + 4 * number);
        }
        seen();
        let result = status_of(op);
        let count = seen().0;
        disarm();
        check_eq!(result, Ok(0), "watched from {watched}");
        // SAFETY: as above; the call has filled it in.
        let answer = unsafe { op.read_unaligned() };
        check_eq!(answer.argument::<EvtchnStatus>(), plain.argument(), "watched from {watched}: the answer");
        check_eq!(count, 0, "watched from {watched}: #DBs");
        check_eq!(get_debugreg(6), 0xffff_0ff0, "watched from {watched}: DR6");
    }
}

fn status_of(op: *mut EvtchnOp) -> Result<usize, Errno> {
    // SAFETY: reads and writes the operation, which is a question.
    result_of(unsafe { hypercall1(Hypercall::EventChannelOp.raw() as usize, op as usize) })
}

fn single_step() {
    section("single step");
    const STEP: usize = 0xffff_4ff0;
    let behind: usize;
    // SAFETY: sets TF for one instruction; the handler clears it.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("pushfd", "or dword ptr [esp], 0x100", "popfd", "nop", "2: lea {behind:e}, [2b]", behind = out(reg) behind)
    };
    // SAFETY: sets TF for one instruction; the handler clears it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "2: lea {behind}, [rip + 2b]",
            behind = out(reg) behind
        )
    };
    check_eq!(seen(), (1, behind, STEP), "DR6 says that it was a step");
    WATCHED.store(0, Ordering::Relaxed);
}

/// A store to a page table that the hypervisor carries out is nobody's access to the memory: it meets no breakpoint.
fn on_a_page_table() {
    section("a breakpoint on a page table's entry");
    let range = Range::new(1);
    let page = memory::alloc_frame().expect("padding");
    check_eq!(vm_assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables), Ok(()));
    arm(2, WRITE_4, range.slot(0).raw() as usize);
    seen();
    for entry in [Pte::new(page.mfn(), PteFlags::KERNEL_RO), Pte::NONE] {
        check!(range.write(0, entry), "it is carried out");
        check_eq!(seen().0, 0, "and meets no breakpoint");
        check_eq!(range.read(0), Some(entry));
    }
    disarm();
    // A table's entry is watched as any other word where the CPU itself reads it.
    arm(2, ACCESS_4, range.slot(0).raw() as usize);
    check_eq!(range.read(0), Some(Pte::NONE));
    check_eq!(seen().0, 1, "a read by the guest itself");
    disarm();
    check_eq!(vm_assist(VmAssistCommand::Disable, VmAssistType::WritablePagetables), Ok(()));
}
