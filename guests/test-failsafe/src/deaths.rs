//! Ends: the guest cannot be told what is wrong, so it is stopped. Each is a run of its own (see Cargo.toml).

use crate::raise::set_handler;
use crate::tables::RING;
use crate::{entries, raise};
use core::arch::asm;
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestArch, Selector};
use proxenos_guest::memory::Frame;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{Arch, memory, println, stack_pointer, test};

/// Nothing is in this slot of the GDT.
const EMPTY: Selector = Selector::gdt(40, RING);

/// Dies in the way that is called so.
pub fn run(name: &str) -> ! {
    println!("-- the end by {name}");
    match name {
        "no-handler" => raise_plainly(),
        "no-failsafe" => {
            traps::install().expect("our entry points");
            set_handler(vector::INVALID_OPCODE, EMPTY, TrapFlags::empty());
            raise_plainly();
        }
        "failsafe-unloadable" => {
            proxenos_guest::init();
            entries::install(Arch::FLAT_GUESTOS_CS, EMPTY);
            set_handler(vector::INVALID_OPCODE, EMPTY, TrapFlags::empty());
            raise_plainly();
        }
        // The event comes on top of the failsafe callback, and that is what remains.
        "all-unloadable" => {
            proxenos_guest::init();
            let (ours, other) = proxenos_guest::events::bind_loopback().expect("a channel to ourselves");
            proxenos_guest::events::unmask(other);
            entries::install(EMPTY, Selector::gdt(41, RING));
            let _ = proxenos_guest::events::send(ours);
        }
        "failsafe-stack" => failsafe_stack(),
        "stack-unmapped" => raise_on(|frame| unmap(frame) + 4096),
        "stack-read-only" => raise_on(|frame| {
            // SAFETY: a fresh frame.
            unsafe { memory::remap(frame, PteFlags::KERNEL_RO) }.expect("may be made read-only");
            frame.virt().raw() as usize + 4096
        }),
        // The frame would end below the first address.
        "stack-at-the-start" => raise_on(|_| 8),
        "fault-on-the-stack" => fault_on_the_stack(),
        #[cfg(target_arch = "x86")]
        _ => x86_32::run(name),
        #[cfg(target_arch = "x86_64")]
        _ => test::error("there is no such end"),
    }
    test::error("survived")
}

fn raise_plainly() {
    raise::raise([Arch::FLAT_GUESTOS_DS; 4]);
}

fn unmap(frame: Frame) -> usize {
    // SAFETY: a fresh frame.
    unsafe { memory::update_va_mapping(frame.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("may be unmapped");
    frame.virt().raw() as usize
}

/// Raises #UD with a stack pointer that is made of a fresh frame.
fn raise_on(stack: impl FnOnce(Frame) -> usize) {
    proxenos_guest::init();
    raise_at(stack(memory::alloc_frame().expect("padding")));
}

/// Raises #UD with this stack pointer.
fn raise_at(sp: usize) -> ! {
    // SAFETY: does not come back.
    unsafe { asm!(concat!("mov ", stack_pointer!(), ", {}"), "ud2", in(reg) sp, options(noreturn)) }
}

/// A page fault by a push, whose frame cannot be pushed either.
fn fault_on_the_stack() {
    proxenos_guest::init();
    let sp = unmap(memory::alloc_frame().expect("padding")) + 4096;
    // SAFETY: does not come back.
    unsafe { asm!(concat!("mov ", stack_pointer!(), ", {0}"), "push {0}", in(reg) sp, options(noreturn)) }
}

/// The stack has room for the exception's frame, but not for the failsafe frame below it.
fn failsafe_stack() {
    proxenos_guest::init();
    entries::install_failsafe();
    set_handler(vector::INVALID_OPCODE, EMPTY, TrapFlags::empty());
    let (below, stack) = (memory::alloc_frame().expect("padding"), memory::alloc_frame().expect("padding"));
    assert_eq!(below.virt().raw() + 4096, stack.virt().raw());
    // SAFETY: a fresh frame.
    unsafe { memory::update_va_mapping(below.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("may be unmapped");
    raise_at(stack.virt().raw() as usize + 64);
}

#[cfg(target_arch = "x86")]
mod x86_32 {
    use crate::entries;
    use crate::raise::set_handler;
    use crate::rings::switch::{self, Start, enter, snippet};
    use crate::tables::{GOOD_DATA, RING, Tables};
    use core::arch::asm;
    use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
    use proxenos_guest::abi::x86_32::{FLAT_RING1_DS, FLAT_RING3_DS};
    use proxenos_guest::abi::{GuestArch, GuestVirt, Hypercall, Selector};
    use proxenos_guest::{Arch, hypercall, memory, test, traps};

    const SLOT: u16 = 90;

    pub fn run(name: &str) {
        proxenos_guest::init();
        entries::install_failsafe();
        switch::open_snippets();
        let sp = memory::alloc_frame().expect("padding").virt().raw() + 4000;
        let stack = |ss: Selector, sp: u64| {
            // SAFETY: whatever it is, the guest does not outlive its use.
            unsafe { hypercall::stack_switch(ss, GuestVirt(sp)) }.expect("a selector of ours");
        };
        match name {
            // Domain 0 starts with a kernel stack of 0:0.
            "no-kernel-stack" => {}
            "system-call-without-stack" => system_call(),
            "system-call-stack-unmapped" => {
                stack(FLAT_RING1_DS, 0x1000);
                system_call();
            }
            "kernel-stack-unmapped" => stack(FLAT_RING1_DS, 0x1000),
            "kernel-stack-in-hypervisor" => stack(FLAT_RING1_DS, 0xfc00_1000),
            "kernel-stack-not-present" => stack(Selector::gdt(SLOT, RING), sp),
            // The frame can be written, but no stack of ring 3's can be loaded in ring 1: neither for the handler nor
            // for the failsafe callback.
            "kernel-stack-of-ring-3" => stack(FLAT_RING3_DS, sp),
            // The same, with the hypervisor's own data segment.
            "kernel-stack-of-ring-0" => stack(Selector(0x0809), sp),
            "known-stack-not-present" => {
                let tables = Tables::install();
                tables.set(SLOT, GOOD_DATA);
                stack(Selector::gdt(SLOT, RING), sp);
                let back =
                    TrapInfo::new(0x80, TrapFlags::from_dpl(3), Arch::FLAT_GUESTOS_CS, switch::back().raw() as u32);
                // SAFETY: the vector is raised by what is run by `enter` only.
                unsafe { hypercall::set_trap_table(&[back, traps::end_of_table()]) }.expect("our entry");
                let call = Start::ring3(snippet::__ring_int80, 0x1000);
                enter(&call);
                enter(&call);
                tables.set(SLOT, GOOD_DATA & !(0x80 << 40));
                enter(&call);
            }
            "stack-taken-away" => take_stack_away(),
            _ => test::error("there is no such end"),
        }
        enter(&Start::ring3(snippet::__ring_ud2, 0x1000));
    }

    /// `int 0x80` from ring 3.
    fn system_call() {
        set_handler(0x80, Arch::FLAT_GUESTOS_CS, TrapFlags::from_dpl(3));
        enter(&Start::ring3(snippet::__ring_int80, 0x1000));
    }

    /// The stack's segment is cleared by code that runs on it: it cannot be returned to, and nothing can be pushed
    /// there.
    fn take_stack_away() {
        let tables = Tables::install();
        tables.set(SLOT, GOOD_DATA);
        // SAFETY: does not come back.
        unsafe {
            asm!(
                "mov ss, {selector:e}",
                "int 0x82",
                "ud2",
                selector = in(reg) u32::from(Selector::gdt(SLOT, RING).raw()),
                in("eax") Hypercall::UpdateDescriptor.raw(),
                in("ebx") tables.address(SLOT).raw() as usize,
                in("ecx") 0,
                in("edx") 0,
                options(noreturn),
            );
        }
    }
}
