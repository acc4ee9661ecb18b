//! A stack pointer may be any: the frame lies right below it, also where a word of it lies on two pages.

use super::switch::{Start, enter, snippet};
use super::{ABOVE, Kernel, SYSTEM_CALL, catch_in, until};
use crate::raise;
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::x86_32::{FLAT_RING1_CS, FLAT_RING1_DS};
use proxenos_guest::abi::{GuestVirt, Selector};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::Pte;
use proxenos_guest::test::section;
use proxenos_guest::traps::vector;
use proxenos_guest::{check_eq, hypercall};

/// A page fault's error code: a write.
const WRITE: usize = 2;
const USER: usize = 4;

pub fn run(kernel: &Kernel) {
    let frame = || memory::alloc_frame().expect("padding");
    let (hole, lower, upper) = (frame(), frame(), frame());
    let edge = upper.virt().raw() as usize;
    check_eq!(lower.virt().raw() as usize + 4096, edge, "two pages in a row");
    // SAFETY: no reference into the frame exists.
    check_eq!(unsafe { memory::update_va_mapping(hole.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }, Ok(()));
    section("misaligned stacks");
    for sp in (edge + 1..edge + 32).chain(edge + ABOVE..edge + ABOVE + 4) {
        from_ring3(sp, hole);
        from_ring1(sp);
    }
    // SAFETY: the stack that was named before.
    check_eq!(unsafe { hypercall::stack_switch(FLAT_RING1_DS, GuestVirt(kernel.sp as u64)) }, Ok(()));
}

/// The kernel's stack begins here.
fn from_ring3(sp: usize, hole: Frame) {
    let kernel = Kernel { sp };
    // SAFETY: the frames are for nothing else.
    check_eq!(unsafe { hypercall::stack_switch(FLAT_RING1_DS, GuestVirt(sp as u64)) }, Ok(()));
    let start = |snippet| Start::ring3(snippet, 0x1234_5678);
    let ud2 = start(snippet::__ring_ud2);
    kernel.check("ud2", &until(vector::INVALID_OPCODE, &ud2), &[], &ud2, 0);
    let cli = start(snippet::__ring_cli);
    kernel.check("cli", &until(vector::GENERAL_PROTECTION, &cli), &[0], &cli, 0);
    let at = hole.virt().raw() as usize + 0x40;
    let write = Start::ring3(snippet::__ring_write, at);
    kernel.check("a write", &until(vector::PAGE_FAULT, &write), &[at, USER | WRITE], &write, 0);
    let call = start(snippet::__ring_int80);
    catch_in(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::from_dpl(3));
    kernel.check("int 0x80", &enter(&call), &[], &call, 2);
    raise::set_handler(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::empty());
}

/// The kernel itself is interrupted there.
fn from_ring1(sp: usize) {
    let start = |snippet| Start { cs: FLAT_RING1_CS, ss: FLAT_RING1_DS, ..Start::ring3(snippet, sp) };
    catch_in(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::from_dpl(3));
    for (snippet, vector, code, distance) in [
        (snippet::__kernel_ud2 as unsafe extern "C" fn(), vector::INVALID_OPCODE, &[][..], 0),
        (snippet::__kernel_cli, vector::GENERAL_PROTECTION, &[0], 0),
        (snippet::__kernel_int80, SYSTEM_CALL, &[], 2),
    ] {
        let start = start(snippet);
        let found = until(vector, &start);
        let count = code.len();
        check_eq!((found.sp, found.ss), (sp - 4 * (count + 3), FLAT_RING1_DS.raw().into()), "vector {vector}: where");
        check_eq!(&found.words[..count], code, "vector {vector}: code");
        // Behind the instruction that takes the stack.
        let ip = start.eip.raw() as usize + 3 + distance;
        check_eq!(found.words[count], ip, "vector {vector} at {sp:#x}: eip");
        check_eq!(Selector(found.words[count + 1] as u16), FLAT_RING1_CS, "vector {vector}: cs");
        check_eq!(found.words[count + 2] & 0x200, 0x200, "vector {vector}: flags");
    }
}
