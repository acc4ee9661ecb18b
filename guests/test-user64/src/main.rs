//! Applications of an x86_64 kernel: every way to them and back, and what they and bad frames cannot do.
#![no_std]
#![no_main]

mod bases;
mod calls;
mod deaths;
mod events;
mod frames;
mod program;
mod segments;
mod traps;

use proxenos_guest::abi::GuestVirt;
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::user::{self, Exit, UserSpace};
use proxenos_guest::{StartInfo, TrapFrame, boot, check_eq, hypercall};

proxenos_guest::test_guest!(main);

/// Where applications find their code.
pub const CODE: u64 = 0x100_0000_0000;
/// The same page, where 32 bits reach.
pub const LOW_CODE: u64 = 0x7000_0000;
/// A page that they and the kernel share, writable.
pub const DATA: u64 = CODE + 0x10_0000;
/// The same page, read-only.
pub const READ_ONLY: u64 = CODE + 0x20_0000;
/// Where nothing is.
pub const NOTHING: u64 = CODE + 0x30_0000;
/// The last page below what is not canonical.
pub const LAST_PAGE: u64 = (1 << 47) - 4096;

/// What all parts work with.
pub struct World {
    /// Where applications run.
    pub space: UserSpace,
    /// The page at [`DATA`].
    pub data: Frame,
}

impl World {
    fn new() -> Self {
        let space = UserSpace::new().expect("memory for page tables");
        let code = memory::machine_of(program::page()).mfn();
        let data = memory::alloc_frame().expect("memory");
        let map = |at, frame, flags| space.map(GuestVirt(at), Pte::new(frame, flags)).expect("a page of ours");
        map(CODE, code, PteFlags::KERNEL_RO);
        map(LOW_CODE, code, PteFlags::KERNEL_RO);
        map(LAST_PAGE, code, PteFlags::KERNEL_RO);
        map(DATA, data.mfn(), PteFlags::KERNEL_RW);
        map(READ_ONLY, data.mfn(), PteFlags::KERNEL_RO);
        space.activate().expect("a table of ours");
        Self { space, data }
    }

    /// A word of the page that applications share.
    pub fn word(&self, index: usize) -> *mut u64 {
        // SAFETY: within the page, which is mapped for good.
        unsafe { self.data.words().cast::<u64>().add(index) }
    }
}

/// An application at an entry of [`program`], with its stack at the end of [`DATA`].
pub fn at(entry: unsafe extern "C" fn()) -> TrapFrame {
    user::application(GuestVirt(address(entry)), GuestVirt(DATA + 4096))
}

/// Where an entry of [`program`] is to an application.
pub fn address(entry: unsafe extern "C" fn()) -> u64 {
    CODE + (entry as *const () as u64 - program::page().raw())
}

/// Runs an application up to its system call.
#[track_caller]
pub fn to_system_call(registers: &mut TrapFrame) {
    check_eq!(user::run(registers), Ok(Exit::SystemCall));
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    user::install().expect("the callbacks");
    if let Some(name) = boot::option("death") {
        deaths::run(name);
    }
    bases::without();
    let world = World::new();
    calls::run(&world);
    traps::run(&world);
    events::run(&world);
    segments::run(&world);
    frames::run(&world);
    bases::run(&world);
    check_eq!(hypercall::audit(), Ok(()), "the machine's memory");
}
