//! A domain that leaves everything it may change in the worst state it can, and does so for ever.

use crate::state::{self, Floating, Ldt, WATCHED, data_segment};
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::{GuestArch, GuestVirt, Virq};
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{Arch, events, hypercall, memory, time};

static OWN: [AtomicU32; 2] = [const { AtomicU32::new(!0) }; 2];

pub fn run() -> ! {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, |_| ()).expect("the timer can be bound");
    let (sender, receiver) = events::bind_loopback().expect("two ports");
    events::set_handler(receiver, |_| ());
    state::count_debug_exceptions();
    traps::set_handler(vector::DEVICE_NOT_AVAILABLE, |_| Outcome::Handled);
    let ldt = Ldt::install([OWN[0].as_ptr(), OWN[1].as_ptr()]);
    let table = memory::alloc_frame().expect("a frame for a table");
    // SAFETY: a frame of ours, which nobody reads as anything else.
    unsafe { memory::remap(table, proxenos_guest::pte::PteFlags::KERNEL_RO) }.expect("a frame can be read-only");
    for round in 0_u32.. {
        // Where a witness of the same architecture has its code and its data: it is the same image.
        let code = state::registers_code();
        state::set_breakpoints(&[(code, 0), (code + 16, 0), (WATCHED.as_ptr() as usize, 0b1111), (code + 30, 0)]);
        Floating { control: 0x007f, mxcsr: 0x1fff, ..Floating::of(!round) }.load();
        ldt.load();
        ldt.set((round % 2) as usize, data_segment(OWN[0].as_ptr().wrapping_add((round % 64) as usize)));
        // SAFETY: nothing of this domain's runs in ring 3.
        let _ = unsafe { hypercall::stack_switch(Arch::FLAT_GUESTOS_DS, GuestVirt(u64::from(round) << 4)) };
        if round % 3 == 0 {
            let _ = hypercall::fpu_taskswitch();
        }
        let _ = memory::pin(1, table.mfn());
        for count in 0..(round % 64) * 1000 {
            black_box(count);
        }
        let _ = memory::unpin(table.mfn());
        let _ = memory::flush_tlb();
        let _ = events::send(sender);
        match round % 4 {
            0 => assert_eq!(hypercall::sched_yield(), Ok(())),
            1 => {
                let _ = hypercall::set_timer_op(time::system_time() + 50_000);
                events::wait();
            }
            2 => assert_eq!(time::set_timer_in(1), Ok(())),
            _ => {}
        }
        OWN[1].store(round, Ordering::Relaxed);
    }
    unreachable!()
}
