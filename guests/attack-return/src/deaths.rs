//! Attacks that must end the guest, each in a run of its own (see Cargo.toml): there is no stack to tell it anything
//! on.

use crate::stacks::{bad_places, call_at, trap_at};
use crate::{entry, vm86};
use core::sync::atomic::Ordering;
use proxenos_guest::abi::GuestArch;
use proxenos_guest::{Arch, boot, events, memory, println, probe, shared_info, test};

/// Carries out the attack that is called so.
pub fn run(name: &str) -> ! {
    println!("-- the end by {name}");
    match name {
        _ if name.starts_with("vm86-") => vm86::run(name),
        "spiral" => spiral(),
        #[cfg(target_arch = "x86")]
        "stack-base" => stack_base(),
        _ => stack(name),
    }
    test::error("survived")
}

/// An exception, or an event (`by=event`), with the stack pointer at a bad place.
fn stack(name: &str) {
    let place = name.strip_prefix("stack-").and_then(|name| bad_places().find(|(place, _)| *place == name));
    let Some((_, sp)) = place else { test::error("there is no such end") };
    if boot::option("by") == Some("event") {
        // What the guest writes itself the hypervisor sees when it is next entered.
        events::mask_upcalls();
        shared_info::upcall_pending().store(1, Ordering::SeqCst);
        shared_info::upcall_mask().store(0, Ordering::SeqCst);
        call_at(sp);
    } else {
        trap_at(Arch::FLAT_GUESTOS_DS, sp);
    }
}

/// base + esp leads into the hypervisor's part, esp alone does not.
#[cfg(target_arch = "x86")]
fn stack_base() {
    use crate::stacks::Gdt;
    let page = memory::alloc_frame().expect("padding");
    let sp = page.virt().raw() as u32 + 0x800;
    let gdt = Gdt::install();
    gdt.set(0xfd00_0000u32.wrapping_sub(sp));
    trap_at(Gdt::SELECTOR, sp as usize);
}

/// A page fault's handler that is not there: each fault causes the next, until the stack has eaten what there is to
/// eat.
fn spiral() {
    let hole = memory::alloc_frame().expect("padding").virt();
    // SAFETY: a fresh frame.
    unsafe {
        memory::update_va_mapping(hole, proxenos_guest::pte::Pte::NONE, proxenos_guest::abi::mmu::UpdateVaFlags::INVLPG)
    }
    .expect("may be unmapped");
    entry::set(14, Arch::FLAT_GUESTOS_CS, hole.raw() as usize);
    let _ = probe::load(hole);
}
