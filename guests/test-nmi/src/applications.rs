//! An application of an x86_64 kernel, which makes system calls without end: registers are kept on every way.

use crate::lasts;
use proxenos_guest::abi::GuestVirt;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::user::{self, Exit, UserSpace};
use proxenos_guest::{check_eq, memory};

/// Where the application's code lies.
const CODE: GuestVirt = GuestVirt(0x100_0000_0000);
/// `1: inc rbx; mov rcx, 200; 2: loop 2b; syscall; jmp 1b`.
const PROGRAM: u128 =
    u128::from_le_bytes([0x48, 0xff, 0xc3, 0xb9, 0xc8, 0, 0, 0, 0xe2, 0xfe, 0x0f, 0x05, 0xeb, 0xf2, 0x90, 0x90]);
/// What is in the other registers.
const KEPT: [u64; 4] = [0x1111_1111_1111, !0x2222, 0x3333, 0x4444_4444];

pub fn run() {
    let code = memory::alloc_frame().expect("a frame");
    // SAFETY: a fresh frame, of which nobody holds a reference.
    unsafe { code.words().cast::<u128>().write(PROGRAM) };
    let space = UserSpace::new().expect("memory for page tables");
    space.map(CODE, Pte::new(code.mfn(), PteFlags::KERNEL_RO)).expect("a page of ours");
    space.activate().expect("a table of ours");
    user::install().expect("an entry of the SDK's");
    let mut app = user::application(CODE, GuestVirt(0));
    [app.rdx, app.rsi, app.r8, app.r15] = KEPT;
    let goes_on = lasts("applications");
    let mut rounds = 0;
    while goes_on() {
        check_eq!(user::run(&mut app), Ok(Exit::SystemCall));
        rounds += 1;
        check_eq!((app.rbx, [app.rdx, app.rsi, app.r8, app.r15]), (rounds, KEPT));
    }
    user::clear_base().expect("none is allowed");
}
