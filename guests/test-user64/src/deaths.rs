//! Ends: an application comes back, and its kernel cannot be entered.

use crate::{World, at, program};
use proxenos_guest::abi::hypercall::SwitchToUser;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestArch, GuestVirt};
use proxenos_guest::memory;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Arch, hypercall, println, test};

/// Dies in the way that is called so.
pub fn run(name: &str) -> ! {
    println!("-- the end by {name}");
    let _world = World::new();
    let page = memory::alloc_frame().expect("memory");
    let end = page.virt().raw() + 4096;
    match name {
        "stack-unmapped" => {
            unmap(page.virt());
            leave(program::invalid, end)
        }
        "stack-read-only" => {
            // SAFETY: a fresh frame.
            unsafe { memory::remap(page, PteFlags::KERNEL_RO) }.expect("a page of ours");
            leave(program::invalid, end)
        }
        "stack-of-the-hypervisor" => leave(program::invalid, Arch::HYPERVISOR_VIRT_END - 4096),
        "system-call-stack-unmapped" => {
            unmap(page.virt());
            leave(program::calls, end)
        }
        _ => test::error("there is no such end"),
    }
}

fn unmap(at_address: GuestVirt) {
    // SAFETY: a fresh page.
    unsafe { memory::update_va_mapping(at_address, Pte::NONE, UpdateVaFlags::INVLPG) }.expect("a page of ours");
}

/// Leaves for an application, with the end of frames at an address.
fn leave(entry: unsafe extern "C" fn(), frames_end: u64) -> ! {
    let app = at(entry);
    let frame = SwitchToUser {
        rip: app.rip,
        cs: app.cs,
        rflags: app.rflags,
        rsp: app.rsp,
        ss: app.ss,
        ..SwitchToUser::default()
    };
    // SAFETY: nothing comes back.
    unsafe {
        hypercall::stack_switch(Arch::FLAT_GUESTOS_DS, GuestVirt(frames_end)).expect("any stack");
        hypercall::switch_to_user(&frame)
    }
}
