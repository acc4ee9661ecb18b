//! `ins` and `outs` of an application that has the right to ports (DOM0_IOPL, level 3): they reach what it could reach
//! by itself, and no page of its kernel's.

use super::switch::{Start, snippet};
use super::{Kernel, until};
use proxenos_guest::abi::DomId;
use proxenos_guest::abi::dom0_ops::Dom0Op;
use proxenos_guest::abi::dom0_ops::args::Iopl;
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::PteFlags;
use proxenos_guest::test::section;
use proxenos_guest::traps::vector;
use proxenos_guest::{check_eq, hypercall};

/// Bits of a page fault's error code.
const PROTECTION: usize = 1;
const WRITE: usize = 2;
const USER: usize = 4;
/// What is in memory before.
const BEFORE: u32 = 0x1234_5678;

#[track_caller]
fn set_level(iopl: u32) {
    // SAFETY: no memory is concerned.
    let result = unsafe { hypercall::dom0_op(&mut Dom0Op::new(Iopl { domain: DomId::SELF, pad: 0, iopl })) };
    check_eq!(result, Ok(0));
}

#[track_caller]
fn word(page: Frame) -> u32 {
    // SAFETY: a page of ours.
    unsafe { page.words().cast::<u32>().add(16).read_volatile() }
}

pub fn run(kernel: &Kernel) {
    section("strings to and from ports in ring 3");
    let page = memory::alloc_frame().expect("padding");
    let at = page.virt().raw() as usize + 64;
    let remap = |flags: PteFlags| {
        // SAFETY: no reference into the frame exists.
        check_eq!(unsafe { memory::remap(page, flags) }, Ok(()), "{flags:?}");
    };
    // SAFETY: a fresh frame.
    unsafe { page.words().cast::<u32>().add(16).write_volatile(BEFORE) };
    let [input, output] = [snippet::__ring_ins, snippet::__ring_outs].map(|code| Start::ring3(code, at));
    /// Bytes of a snippet before the instruction that it is about.
    const TO_IT: usize = 18;
    let faults = |what: &str, start: &Start, code: usize| {
        kernel.check(what, &until(vector::PAGE_FAULT, start), &[at, code], start, TO_IT);
    };
    for flags in [PteFlags::KERNEL_RW, PteFlags::KERNEL_RW | PteFlags::USER] {
        remap(flags);
        for start in [&input, &output] {
            let found = until(vector::GENERAL_PROTECTION, start);
            kernel.check("without the right", &found, &[0], start, TO_IT);
        }
    }
    set_level(3);
    for flags in [PteFlags::KERNEL_RW, PteFlags::KERNEL_RW - PteFlags::ACCESSED - PteFlags::DIRTY] {
        remap(flags);
        faults("ins to the kernel's page", &input, USER | WRITE | PROTECTION);
        faults("outs from the kernel's page", &output, USER | PROTECTION);
    }
    remap(PteFlags::KERNEL_RO | PteFlags::USER);
    faults("ins to a page that is to be read", &input, USER | WRITE | PROTECTION);
    check_eq!(word(page), BEFORE, "nothing was written");
    remap(PteFlags::KERNEL_RW | PteFlags::USER);
    for start in [&output, &input] {
        // `ud2` behind two bytes.
        kernel.check("allowed", &until(vector::INVALID_OPCODE, start), &[], start, TO_IT + 2);
    }
    check_eq!(word(page), u32::MAX, "a port of the hypervisor's reads as ones");
    set_level(0);
    for start in [&input, &output] {
        kernel.check("the level is 0 again", &until(vector::GENERAL_PROTECTION, start), &[0], start, TO_IT);
    }
}
