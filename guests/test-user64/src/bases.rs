//! The second page-table base.

use crate::{DATA, World, at, program, to_system_call};
use proxenos_guest::abi::mmu::{MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::{Errno, GuestVirt};
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::user::{self, Exit, UserSpace};
use proxenos_guest::{boot, check, check_eq};

/// There is none yet.
pub fn without() {
    section("no base for applications");
    check_eq!(user::run(&mut at(program::calls)), Err(Errno::EFAULT));
}

pub fn run(world: &World) {
    refused();
    two(world);
    one();
    dropped();
    world.space.activate().expect("a table of ours");
    to_system_call(&mut at(program::calls));
}

fn set(at: u64) -> Result<(), Errno> {
    // SAFETY: no mapping of the kernel's changes.
    unsafe { memory::update(memory::extended(MmuExtCommand::NewUserBaseptr, at, 0)) }
}

fn refused() {
    section("what cannot be a base");
    let writable = memory::alloc_frame().expect("memory");
    let l1 = tables::new_table().expect("memory");
    check_eq!(memory::pin(1, l1.mfn()), Ok(()));
    let shared = boot::start_info().shared_info.to_u64();
    for at_address in
        [writable.mfn().addr().raw(), l1.mfn().addr().raw(), shared, 0xb8000, 0xfee0_0000, 1 << 45, 1 << 60]
    {
        check_eq!(set(at_address), Err(Errno::EINVAL), "{at_address:#x}");
    }
    check_eq!(memory::unpin(l1.mfn()), Ok(()));
    // The one that there was is still there.
    to_system_call(&mut at(program::calls));
}

fn two(world: &World) {
    section("two address spaces in turn");
    let other = UserSpace::new().expect("memory");
    let code = memory::machine_of(program::page()).mfn();
    let data = memory::alloc_frame().expect("memory");
    other.map(GuestVirt(crate::CODE), Pte::new(code, PteFlags::KERNEL_RO)).expect("a page of ours");
    other.map(GuestVirt(DATA), Pte::new(data.mfn(), PteFlags::KERNEL_RW)).expect("a page of ours");
    // SAFETY: pages that applications share.
    unsafe {
        world.word(0).write_volatile(1);
        data.words().cast::<u64>().write_volatile(2);
    }
    for _ in 0..3 {
        for (space, expected) in [(&world.space, 1), (&other, 2)] {
            check_eq!(space.activate(), Ok(()));
            let mut app = at(program::load);
            app.rdi = DATA;
            to_system_call(&mut app);
            check_eq!(app.rax, expected);
        }
    }
    // A page that is taken away is gone when applications run next.
    other.map(GuestVirt(DATA), Pte::NONE).expect("may be unmapped");
    let mut app = at(program::load);
    app.rdi = DATA;
    check!(matches!(user::run(&mut app), Ok(Exit::Trap(trap)) if trap.error_code == 4));

    section("a base is held");
    check_eq!(memory::unpin(other.top()), Ok(()));
    let top = memory::virt_of(memory::pfn_of_mfn(other.top()).expect("ours"));
    let entry = Pte::new(other.top(), PteFlags::KERNEL_RW);
    // SAFETY: refused while it is a base.
    check_eq!(unsafe { memory::update_va_mapping(top, entry, UpdateVaFlags::INVLPG) }, Err(Errno::EINVAL));
    to_system_call(&mut at(program::calls));
    check_eq!(world.space.activate(), Ok(()));
    // SAFETY: it is nothing any more.
    check_eq!(unsafe { memory::update_va_mapping(top, entry, UpdateVaFlags::INVLPG) }, Ok(()));
}

/// The kernel's own tables: then applications see all of it.
fn one() {
    section("one base for both");
    check_eq!(user::set_base(tables::root()), Ok(()));
    let stack = memory::alloc_frame().expect("memory");
    let mut app = user::application(program::page(), GuestVirt(stack.virt().raw() + 4096));
    to_system_call(&mut app);
    app.rip = program::page().raw() + (program::load as *const () as u64 - program::page().raw());
    app.rdi = program::page().raw();
    to_system_call(&mut app);
}

fn dropped() {
    section("a base is given up");
    check_eq!(user::clear_base(), Ok(()));
    check_eq!(user::run(&mut at(program::calls)), Err(Errno::EFAULT));
    check_eq!(user::clear_base(), Ok(()), "there is none");
}
