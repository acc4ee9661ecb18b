//! What ring 3 may not reach: page faults with the user bit, ways into ring 1.

use super::switch::{Start, enter, snippet};
use super::{Kernel, catch_in, until};
use crate::raise;
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::x86_32::{FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING3_CS, FLAT_RING3_DS};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::traps::vector;
use proxenos_guest::{check, check_eq};

/// Bits of a page fault's error code.
const PROTECTION: usize = 1;
const WRITE: usize = 2;
const USER: usize = 4;

pub fn run(kernel: &Kernel) {
    let page = memory::alloc_frame().expect("padding");
    page_faults(kernel, page);
    accessed_and_dirty(kernel, page);
    ways_in(kernel, page);
}

#[track_caller]
fn remap(page: Frame, flags: PteFlags) {
    // SAFETY: no reference into the frame exists.
    check_eq!(unsafe { memory::remap(page, flags) }, Ok(()), "{flags:?}");
}

fn page_faults(kernel: &Kernel, page: Frame) {
    section("page faults in ring 3");
    let user = PteFlags::USER;
    let at = page.virt().raw() as usize + 0x40;
    let case = |what: &str, snippet: unsafe extern "C" fn(), code: usize| {
        let start = Start::ring3(snippet, at);
        kernel.check(what, &until(vector::PAGE_FAULT, &start), &[at, code], &start, 0);
    };
    // SAFETY: no reference into the frame exists.
    check_eq!(unsafe { memory::update_va_mapping(page.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }, Ok(()));
    case("read of a hole", snippet::__ring_read, USER);
    case("write to a hole", snippet::__ring_write, USER | WRITE);
    for (flags, what) in [(PteFlags::KERNEL_RO, "the kernel's, read-only"), (PteFlags::KERNEL_RW, "the kernel's")] {
        remap(page, flags);
        case(what, snippet::__ring_read, USER | PROTECTION);
        case(what, snippet::__ring_write, USER | WRITE | PROTECTION);
        // Without A and D the shadow has no entry at all; the code is to say what the guest's tables do.
        remap(page, flags - PteFlags::ACCESSED - PteFlags::DIRTY);
        case(what, snippet::__ring_read, USER | PROTECTION);
        case(what, snippet::__ring_write, USER | WRITE | PROTECTION);
    }
    remap(page, PteFlags::KERNEL_RO | user);
    case("write to a read-only page", snippet::__ring_write, USER | WRITE | PROTECTION);
    let start = Start::ring3(snippet::__ring_read, at);
    kernel.check("a read that is allowed", &until(vector::INVALID_OPCODE, &start), &[], &start, 3);

    let start = Start::ring3(snippet::__ring_read_m2p, 0x1000);
    let found = until(vector::PAGE_FAULT, &start);
    let code = USER | PROTECTION;
    // Whether there is a page at all is nobody's business outside the kernel.
    check!(found.words[1] & !PROTECTION == USER, "machine_to_phys in ring 3: code {:#x}", found.words[1]);
    kernel.check("machine_to_phys", &found, &[0xfc00_0000, found.words[1] & code], &start, 0);
    // The kernel's code is not ring 3's to run.
    let start = Start { eip: super::switch::back(), ..Start::ring3(snippet::__ring_ud2, 0x1000) };
    let found = until(vector::PAGE_FAULT, &start);
    let code = found.words[1];
    check!(
        code == USER | PROTECTION || code == USER | PROTECTION | 0x10,
        "the kernel's code in ring 3: code {code:#x}"
    );
    check_eq!(found.words[0], start.eip.raw() as usize, "the kernel's code in ring 3: address");
}

/// An application's accesses set A and D, which the shadow makes it fault for; nobody sees that.
fn accessed_and_dirty(kernel: &Kernel, page: Frame) {
    section("accessed and dirty bits by ring 3");
    let flags = PteFlags::PRESENT | PteFlags::WRITABLE | PteFlags::USER;
    let at = page.virt().raw() as usize + 0x40;
    let bits = PteFlags::ACCESSED | PteFlags::DIRTY;
    let state = || memory::pte_of(page.virt()).map(|pte| pte.flags() & bits);
    remap(page, flags);
    check_eq!(state(), Some(PteFlags::empty()));
    let read = Start::ring3(snippet::__ring_read, at);
    kernel.check("a read", &until(vector::INVALID_OPCODE, &read), &[], &read, 3);
    check_eq!(state(), Some(PteFlags::ACCESSED), "after a read");
    let write = Start::ring3(snippet::__ring_write, at);
    kernel.check("a write", &until(vector::INVALID_OPCODE, &write), &[], &write, 8);
    check_eq!(state(), Some(bits), "after a write");
    // SAFETY: the page is ours.
    check_eq!(unsafe { (at as *const u32).read_volatile() }, 0x600d, "what was written");
}

/// Far returns and `iret` to ring 1, from a stack that the application fills.
fn ways_in(kernel: &Kernel, page: Frame) {
    section("ways from ring 3 into ring 1");
    remap(page, PteFlags::KERNEL_RW | PteFlags::USER);
    let at = page.virt().raw() as usize + 0x40;
    let put = |words: &[usize]| {
        for (index, word) in words.iter().enumerate() {
            // SAFETY: the page is ours.
            unsafe { (at as *mut usize).add(index).write_volatile(*word) };
        }
    };
    let target = super::switch::address(snippet::__ring_ud2).raw() as usize;
    let inner = usize::from(FLAT_RING1_CS.raw());
    for cs in [inner, inner & !3, inner | 3, 0x0800, 0x0803] {
        for (snippet, words) in [
            (
                snippet::__ring_far_return as unsafe extern "C" fn(),
                [target, cs, at, usize::from(FLAT_RING1_DS.raw()), 0],
            ),
            (snippet::__ring_iret, [target, cs, 0x202, at, usize::from(FLAT_RING1_DS.raw())]),
        ] {
            put(&words);
            let start = Start::ring3(snippet, at);
            kernel.check("refused", &until(vector::GENERAL_PROTECTION, &start), &[cs & !3], &start, 0);
        }
    }
    // To itself both work.
    put(&[target, usize::from(FLAT_RING3_CS.raw()), 0x202]);
    for (snippet, popped) in [(snippet::__ring_far_return as unsafe extern "C" fn(), 8), (snippet::__ring_iret, 12)] {
        let start = Start::ring3(snippet, at);
        catch_in(vector::INVALID_OPCODE, FLAT_RING1_CS, TrapFlags::empty());
        let found = enter(&start);
        raise::set_handler(vector::INVALID_OPCODE, FLAT_RING1_CS, TrapFlags::empty());
        let landed = Start { esp: at + popped, ..Start::ring3(snippet::__ring_ud2, 0) };
        kernel.check("allowed", &found, &[], &landed, 0);
    }
    check_eq!(usize::from(FLAT_RING3_DS.raw()), 0x833);
}
