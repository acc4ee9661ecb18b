//! System calls of a kernel with segments of its own, which have the short way while they are flat: what becomes of
//! them when descriptors change between one call and the next.

use super::switch::{self, Found, Start, enter, snippet};
use super::{Kernel, SYSTEM_CALL};
use crate::entries;
use crate::raise;
use crate::tables::{GOOD_CODE, GOOD_DATA, RING, Tables, local, with_base};
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::mmu::{MmuCommand, UpdateVaFlags};
use proxenos_guest::abi::x86_32::{FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING3_CS};
use proxenos_guest::abi::{Errno, GuestVirt, MachineAddr, Selector};
use proxenos_guest::memory;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{check_eq, hypercall, traps};

const CODE_SLOT: u16 = 160;
const DATA_SLOT: u16 = 161;
/// In the second page, at the place of [`DATA_SLOT`] in the first.
const FAR_SLOT: u16 = 512 + DATA_SLOT;
/// A base by which an offset misses its page, but not all memory: the page below is ours too.
const BASE: u32 = 0x1000;

const CODE: Selector = Selector::gdt(CODE_SLOT, RING);
const DATA: Selector = Selector::gdt(DATA_SLOT, RING);

/// Makes `int 0x80` from ring 3, and checks how the kernel was entered: `base` is that of its stack's segment now.
#[track_caller]
fn call(what: &str, sp: usize, cs: Selector, ss: Selector, base: u32) {
    // Another each time, so that no frame passes for a later one.
    static USER_SP: AtomicUsize = AtomicUsize::new(0x1234_5678);
    let start = Start::ring3(snippet::__ring_int80, USER_SP.fetch_add(4, Ordering::Relaxed));
    let found: Found = enter(&start);
    check_eq!(found.sp, sp.wrapping_sub(base as usize) - 20, "{what}: esp");
    check_eq!((found.cs, found.ss), (cs.raw().into(), ss.raw().into()), "{what}: cs and ss");
    let [ip, code, flags, user_sp] = [0, 1, 2, 3].map(|word: usize| found.words[word]);
    check_eq!((ip, user_sp), (start.eip.raw() as usize + 2, start.esp), "{what}: eip and esp of the application");
    check_eq!((code & 0xffff, flags & 0x200), (FLAT_RING3_CS.raw().into(), 0x200), "{what}: cs and flags");
    check_eq!(found.words[4] & 0xffff, start.ss.raw().into(), "{what}: ss of the application");
}

/// `stack_switch` to where the top of the stack is in a segment of this base.
#[track_caller]
fn switch_stack(ss: Selector, sp: usize, base: u32) {
    let sp = (sp as u32).wrapping_sub(base);
    // SAFETY: the frame is for nothing else.
    check_eq!(unsafe { hypercall::stack_switch(ss, GuestVirt(sp.into())) }, Ok(()));
}

fn set_handler(cs: Selector) {
    let entry = TrapInfo::new(SYSTEM_CALL, TrapFlags::from_dpl(3), cs, switch::back().raw() as u32);
    // SAFETY: the vector is raised by what is run by `enter` only.
    unsafe { hypercall::set_trap_table(&[entry, traps::end_of_table()]) }.expect("a selector of our ring");
}

pub fn run(kernel: &Kernel, tables: &Tables) {
    section("system calls of a kernel with segments of its own");
    let (lower, upper) = (memory::alloc_frame().expect("padding"), memory::alloc_frame().expect("padding"));
    check_eq!(lower.virt().raw() + 4096, upper.virt().raw(), "two pages in a row");
    let sp = super::top(upper);
    tables.set(CODE_SLOT, GOOD_CODE);
    tables.set(DATA_SLOT, GOOD_DATA);
    set_handler(CODE);
    switch_stack(DATA, sp, 0);
    // The first finds out, the others know.
    let known = |what: &str| (0..3).for_each(|_| call(what, sp, CODE, DATA, 0));
    known("segments of our own");
    switch_stack(DATA, sp - 64, 0);
    call("another stack", sp - 64, CODE, DATA, 0);
    switch_stack(DATA, sp, 0);
    tables.set(CODE_SLOT - 1, GOOD_DATA);
    known("after a change of another descriptor");

    section("descriptors that change between two system calls");
    tables.set(DATA_SLOT, with_base(GOOD_DATA, BASE));
    switch_stack(DATA, sp, BASE);
    call("a base by update_descriptor", sp, CODE, DATA, BASE);
    // Without a word to the hypervisor in between but the change itself.
    tables.set(DATA_SLOT, GOOD_DATA);
    switch_stack(DATA, sp, 0);
    known("flat again");
    switch_stack(DATA, sp, BASE);
    tables.set(DATA_SLOT, with_base(GOOD_DATA, BASE));
    call("a base, with the stack named before", sp, CODE, DATA, BASE);
    tables.set(DATA_SLOT, GOOD_DATA);
    switch_stack(DATA, sp, 0);
    known("flat again");
    // The other way of storing is none.
    let stores = [(tables.address(DATA_SLOT), 0), (MachineAddr(tables.address(DATA_SLOT).raw() + 4), 0x10)];
    for (at, value) in stores {
        // SAFETY: refused.
        let result = unsafe { memory::update(memory::request(MmuCommand::NormalPtUpdate, at, value)) };
        check_eq!(result, Err(Errno::EINVAL), "a store to a GDT");
    }
    known("after stores that were refused");
    handler_not_present(tables, sp);
    other_table(tables, sp);
    second_page(tables, sp);
    ldt(sp);

    switch_stack(FLAT_RING1_DS, kernel.sp, 0);
    set_handler(FLAT_RING1_CS);
    call("the flat segments", kernel.sp, FLAT_RING1_CS, FLAT_RING1_DS, 0);
    raise::set_handler(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::empty());
    for slot in [CODE_SLOT - 1, CODE_SLOT, DATA_SLOT, FAR_SLOT] {
        tables.set(slot, 0);
    }
}

/// The handler's segment is taken away: the failsafe callback, and then the handler in the flat one.
fn handler_not_present(tables: &Tables, sp: usize) {
    tables.set(CODE_SLOT, 0);
    let failsafes = entries::count();
    call("a handler that cannot be entered", sp, FLAT_RING1_CS, DATA, 0);
    check_eq!(entries::count() - failsafes, 1, "failsafe callbacks");
    check_eq!(entries::found().words[5] & 0xffff, CODE.raw().into(), "cs of what could not be entered");
    tables.set(CODE_SLOT, GOOD_CODE);
    call("there again", sp, CODE, DATA, 0);
}

/// Another GDT, where the selector means something else.
fn other_table(tables: &Tables, sp: usize) {
    switch_stack(DATA, sp, BASE);
    Tables::filled(&[(CODE_SLOT, GOOD_CODE), (DATA_SLOT, with_base(GOOD_DATA, BASE))]);
    call("a base by set_gdt", sp, CODE, DATA, BASE);
    tables.reinstall();
    switch_stack(DATA, sp, 0);
    (0..2).for_each(|_| call("the first table", sp, CODE, DATA, 0));
}

/// A selector whose descriptor lies in the guest's own frame as the CPU sees it.
fn second_page(tables: &Tables, sp: usize) {
    let far = Selector::gdt(FAR_SLOT, RING);
    tables.set(FAR_SLOT, GOOD_DATA);
    switch_stack(far, sp, 0);
    (0..2).for_each(|_| call("the second page", sp, CODE, far, 0));
    tables.set(FAR_SLOT, with_base(GOOD_DATA, BASE));
    switch_stack(far, sp, BASE);
    call("a base in the second page", sp, CODE, far, BASE);
    switch_stack(DATA, sp, 0);
    (0..2).for_each(|_| call("the first page", sp, CODE, DATA, 0));
}

/// What the LDT holds changes with the address space, so it is looked up each time.
fn ldt(sp: usize) {
    let page = memory::alloc_frame().expect("padding");
    let put = |base: u32| {
        let own = |flags| {
            // SAFETY: no selector of the LDT is in use.
            check_eq!(unsafe { memory::remap(page, flags) }, Ok(()), "{flags:?}");
        };
        own(PteFlags::KERNEL_RW);
        // SAFETY: mapped writable, ours.
        unsafe { page.words().cast::<u64>().add(3).write_volatile(with_base(GOOD_DATA, base)) };
        own(PteFlags::KERNEL_RO);
    };
    let set_ldt = |at: GuestVirt, entries: u32| {
        // SAFETY: no selector of the LDT is in use.
        check_eq!(unsafe { memory::set_ldt(at, entries) }, Ok(()));
    };
    let ss = local(3);
    put(0);
    set_ldt(page.virt(), 8);
    switch_stack(ss, sp, 0);
    (0..2).for_each(|_| call("a stack of the LDT", sp, CODE, ss, 0));
    // The page becomes plain memory, is changed, and a table once more.
    set_ldt(GuestVirt(0), 0);
    put(BASE);
    set_ldt(page.virt(), 8);
    switch_stack(ss, sp, BASE);
    call("a stack of the LDT with a base", sp, CODE, ss, BASE);
    // Another page comes into its place.
    let other = memory::alloc_frame().expect("padding");
    // SAFETY: mapped writable, ours.
    unsafe { other.words().cast::<u64>().add(3).write_volatile(GOOD_DATA) };
    // SAFETY: a fresh frame.
    unsafe { memory::update_va_mapping(other.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("may be unmapped");
    let entry = Pte::new(other.mfn(), PteFlags::KERNEL_RO);
    // SAFETY: no reference into the frame exists.
    unsafe { memory::update_va_mapping(page.virt(), entry, UpdateVaFlags::INVLPG) }.expect("a frame of ours");
    switch_stack(ss, sp, 0);
    call("a stack of another LDT page", sp, CODE, ss, 0);
    set_ldt(GuestVirt(0), 0);
    switch_stack(DATA, sp, 0);
    (0..2).for_each(|_| call("after the LDT", sp, CODE, DATA, 0));
}
