//! What it costs, in instructions where the time-stamp counter counts those (`icount`).

use crate::{Range, assist, frame};
use proxenos_guest::abi::hypercall::VmAssistCommand;
use proxenos_guest::arch::read_tsc;
use proxenos_guest::memory;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{check, println};

pub fn run() {
    section("cost");
    assist(VmAssistCommand::Enable);
    let range = Range::new(0);
    let page = frame();
    let entry = Pte::new(page.mfn(), PteFlags::KERNEL_RW);
    let table = range.table.raw() as usize as *mut Pte;
    let write = move |index: usize, entry| {
        // SAFETY: an entry of the test's own range.
        unsafe { table.add(index).write_volatile(entry) }
    };
    let touch = |index| {
        // SAFETY: a page that was mapped just now.
        unsafe { (range.page(index).raw() as usize as *const u8).read_volatile() }
    };
    let cost = |what: &str, action: &dyn Fn()| {
        let mut least = u64::MAX;
        for _ in 0..5 {
            (0..128).for_each(|index| write(index, Pte::NONE));
            check!(memory::flush_tlb().is_ok());
            let nothing = read_tsc();
            let start = read_tsc();
            action();
            let end = read_tsc();
            least = least.min(end - start - (start - nothing));
        }
        println!("{what}: {least} instructions");
    };
    cost("one store", &|| write(0, entry));
    cost("one store and a touch", &|| {
        write(0, entry);
        touch(0);
    });
    for count in [2, 3, 4, 5, 6, 8, 12, 16, 32, 64] {
        let mut name = [0; 32];
        let name = text(&mut name, count);
        cost(name, &|| {
            (0..count).for_each(|index| write(index, entry));
            let _ = memory::flush_tlb();
        });
    }
    cost("128 stores, flushed", &|| {
        (0..128).for_each(|index| write(index, entry));
        let _ = memory::flush_tlb();
    });
    cost("128 stores, touched", &|| {
        (0..128).for_each(|index| write(index, entry));
        touch(127);
    });
    cost("a flush", &|| {
        let _ = memory::flush_tlb();
    });
}

fn text(into: &mut [u8; 32], count: usize) -> &str {
    let digits = [b'0' + (count / 10) as u8, b'0' + (count % 10) as u8];
    let rest = b" stores and a flush";
    into[..2].copy_from_slice(&digits);
    into[2..2 + rest.len()].copy_from_slice(rest);
    core::str::from_utf8(&into[..2 + rest.len()]).unwrap_or("")
}
