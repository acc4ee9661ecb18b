//! Selectors of the LDT: its pages are taken when the CPU first looks for them, which may be at the `iret` into a
//! handler.

use crate::raise::{expect_direct, expect_failsafe};
use crate::tables::{CODE, ENTRIES, GOOD_CODE, GOOD_DATA, GRANULAR, RING, SIZE, Tables, flat, local};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{Errno, GuestArch, Selector};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, check_eq};

/// Entries of the LDT with code, one in each page, and with data.
const SLOTS: [u16; 2] = [3, 600];
const DATA_SLOT: u16 = 5;

/// Installs the LDT afresh: none of its pages is taken.
#[track_caller]
fn install(tables: &Tables, entries: usize) {
    // SAFETY: no selector of the LDT is in use.
    check_eq!(unsafe { memory::set_ldt(tables.ldt[0].virt(), entries as u32) }, Ok(()));
}

#[track_caller]
fn remap(frame: Frame, flags: PteFlags) {
    // SAFETY: no reference into the frame exists.
    check_eq!(unsafe { memory::remap(frame, flags) }, Ok(()), "{flags:?}");
}

fn write(frame: Frame, slot: u16, descriptor: u64) {
    // SAFETY: mapped writable, ours.
    unsafe { frame.words().cast::<u64>().add(usize::from(slot) % 512).write_volatile(descriptor) };
}

pub fn run(tables: &Tables) {
    section("handlers in the LDT");
    let data = [Arch::FLAT_GUESTOS_DS; 4];
    for (page, slot) in SLOTS.into_iter().enumerate() {
        write(tables.ldt[page], slot, GOOD_CODE);
        write(tables.ldt[page], slot + 1, flat(CODE, RING, GRANULAR | SIZE));
        write(tables.ldt[page], DATA_SLOT, GOOD_DATA);
    }

    // Mapped writable: not a table.
    install(tables, ENTRIES);
    for slot in SLOTS {
        expect_failsafe("a page that is mapped writable", local(slot), data);
    }
    // That changes, and the LDT is where it was: the page is looked for again.
    for (frame, slot) in tables.ldt.into_iter().zip(SLOTS) {
        remap(frame, PteFlags::KERNEL_RO);
        expect_direct("a page taken on the way into the handler", local(slot), data);
        expect_direct("a page that is there already", local(slot), data);
        expect_failsafe("not present", local(slot + 1), data);
        // SAFETY: refused.
        let result = unsafe { memory::remap(frame, PteFlags::KERNEL_RW) };
        check_eq!(result, Err(Errno::EINVAL), "a page of the LDT is not mapped writable");
    }
    data_registers();

    // A page that goes away is no longer the LDT's.
    for (frame, slot) in tables.ldt.into_iter().zip(SLOTS) {
        // SAFETY: no reference into the frame exists.
        let unmapped = unsafe { memory::update_va_mapping(frame.virt(), Pte::NONE, UpdateVaFlags::INVLPG) };
        check_eq!(unmapped, Ok(()));
        expect_failsafe("a page that is unmapped", local(slot), data);
    }
    install(tables, ENTRIES);
    for (frame, slot) in tables.ldt.into_iter().zip(SLOTS) {
        expect_failsafe("a page that is not mapped", local(slot), tables.data_selectors());
        remap(frame, PteFlags::KERNEL_RO);
        expect_direct("a page that came back", local(slot), data);
    }

    #[cfg(target_arch = "x86")]
    under_running_code(tables);
    limits(tables);
    bad_pages(tables);
    install(tables, 0);
    expect_failsafe("there is no LDT any more", local(SLOTS[0]), data);
}

/// The callback finds selectors of the LDT in the data registers, too.
fn data_registers() {
    let data = [Arch::FLAT_GUESTOS_DS, local(DATA_SLOT), local(512 + DATA_SLOT), Selector(0)];
    expect_failsafe("data of the LDT", Selector::gdt(1023, RING), data);
}

fn limits(tables: &Tables) {
    let data = [Arch::FLAT_GUESTOS_DS; 4];
    let [first, second] = SLOTS;
    install(tables, usize::from(first));
    expect_failsafe("behind the limit", local(first), data);
    install(tables, usize::from(first) + 1);
    expect_direct("just below the limit", local(first), data);
    expect_failsafe("in a page behind the limit", local(second), data);
    install(tables, usize::from(second));
    expect_failsafe("behind the limit in the second page", local(second), data);
    install(tables, usize::from(second) + 1);
    expect_direct("just below the limit in the second page", local(second), data);
}

/// A page that is no descriptor table for what else it holds.
fn bad_pages(tables: &Tables) {
    let data = [Arch::FLAT_GUESTOS_DS; 4];
    let frame = tables.ldt[0];
    let task_state = flat(0x89, RING, 0);
    install(tables, 0);
    remap(frame, PteFlags::KERNEL_RW);
    write(frame, 511, task_state);
    remap(frame, PteFlags::KERNEL_RO);
    install(tables, ENTRIES);
    expect_failsafe("a page with a system descriptor in it", local(SLOTS[0]), data);
    remap(frame, PteFlags::KERNEL_RW);
    write(frame, 511, 0);
    remap(frame, PteFlags::KERNEL_RO);
    expect_direct("a page without it", local(SLOTS[0]), data);
}

/// Code and stack lie in two pages of the LDT that is installed anew: the return from that very call looks for both.
#[cfg(target_arch = "x86")]
fn under_running_code(tables: &Tables) {
    use crate::entries;
    use core::arch::asm;
    use proxenos_guest::abi::Hypercall;
    use proxenos_guest::abi::mmu::MmuExtCommand;

    const CODE_SELECTOR: Selector = local(SLOTS[0]);
    const STACK_SELECTOR: Selector = local(512 + DATA_SLOT);
    let request = memory::extended(MmuExtCommand::SetLdt, tables.ldt[0].virt().raw(), ENTRIES as u64);
    let mut done = 0u32;
    let failsafes = entries::count();
    let (result, cs, ss): (usize, usize, usize);
    // SAFETY: both segments are flat, and the flat ones are back at the end.
    unsafe {
        asm!(
            "push {own_cs}",
            "lea edi, [5f]",
            "push edi",
            "retf",
            "5: mov edi, {own_ss}",
            "mov ss, edi",
            "int 0x82",
            "mov edi, cs",
            "mov ecx, ss",
            "push {flat_cs}",
            "lea edx, [6f]",
            "push edx",
            "retf",
            "6: mov edx, {flat_ss}",
            "mov ss, edx",
            own_cs = const CODE_SELECTOR.raw(),
            own_ss = const STACK_SELECTOR.raw(),
            flat_cs = const Arch::FLAT_GUESTOS_CS.raw(),
            flat_ss = const Arch::FLAT_GUESTOS_DS.raw(),
            inout("eax") Hypercall::MmuUpdate.raw() as usize => result,
            in("ebx") &raw const request,
            inout("ecx") 1usize => ss,
            inout("edx") &raw mut done => _,
            out("edi") cs,
        );
    }
    check_eq!((result, done), (0, 1), "the call succeeded");
    let own = [CODE_SELECTOR, STACK_SELECTOR].map(|selector| usize::from(selector.raw()));
    check_eq!([cs, ss], own, "and returned to the same segments");
    check_eq!(entries::count() - failsafes, 0, "failsafe callbacks");
}
