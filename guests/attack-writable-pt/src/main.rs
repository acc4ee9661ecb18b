//! Entries that a guest may not have, written to its own page tables: whichever way it is done, the domain ends. Each
//! run makes one attack, named on the command line; who is still there afterwards says so.
#![no_std]
#![no_main]

use proxenos_guest::abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestVirt, Mfn};
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{StartInfo, Word, boot, hypercall, println, probe};

proxenos_guest::entry!(main);

/// Stores after which a table is surely open.
const MANY: usize = 32;

fn main(_: &StartInfo) {
    proxenos_guest::init();
    let attack = boot::option("attack").expect("a run names its attack");
    hypercall::vm_assist(VmAssistCommand::Enable, VmAssistType::WritablePagetables).expect("it is supported");
    println!("about to try: {attack}");
    carry_out(attack);
    println!("still alive");
}

/// A range of addresses of 32 pages with an L1 table of its own: where it begins, and where its table is mapped.
fn range() -> (GuestVirt, GuestVirt) {
    let at = GuestVirt((memory::region_end().raw() | 0x0fff_ffff) + 1);
    tables::ensure_l1(at).expect("memory for tables");
    let (entry, _) = tables::entry_of(at).expect("it was made just now");
    (at, memory::virt_of(memory::pfn_of_mfn(entry.mfn()).expect("a table of ours")))
}

fn write(table: GuestVirt, index: usize, entry: Pte) -> bool {
    // SAFETY: an entry of a range that nobody else uses.
    unsafe { probe::store(GuestVirt(table.raw() + (index * size_of::<Word>()) as u64), entry.0) }
}

/// Writes so many good entries that the table is open.
fn open(table: GuestVirt) {
    let page = memory::alloc_frame().expect("memory");
    for index in 0..MANY {
        assert!(write(table, index, Pte::new(page.mfn(), PteFlags::KERNEL_RW)), "a good entry");
    }
}

fn carry_out(attack: &str) {
    let (at, table) = range();
    // A writable mapping of the top-level table.
    let bad = Pte::new(tables::root(), PteFlags::KERNEL_RW);
    match attack {
        "single" => drop(write(table, 3, bad)),
        "flush" => {
            open(table);
            write(table, 3, bad);
            let _ = memory::flush_tlb();
        }
        "touch" => {
            // Where nothing was mapped before: what was may be what it was until a flush.
            open(table);
            write(table, MANY + 3, bad);
            // SAFETY: if this can be done, all is lost.
            unsafe { probe::store(GuestVirt(at.raw() + 4096 * (MANY as u64 + 3)), 0) };
        }
        "yield" => {
            open(table);
            write(table, 3, bad);
            let _ = hypercall::sched_yield();
        }
        "pin" => {
            open(table);
            write(table, 3, bad);
            let _ = memory::pin(1, memory::pte_of(table).expect("mapped").mfn());
        }
        "base" => {
            open(table);
            write(table, 3, bad);
            // SAFETY: the base that it is already.
            let _ = unsafe { memory::set_base(tables::root()) };
        }
        "stale" => {
            // The window is in the TLB, writable, when it is closed.
            open(table);
            let _ = memory::flush_page(at);
            write(table, 3, bad);
            let _ = memory::flush_page(at);
        }
        "alias" => {
            // The window shows at a second address, since the table that maps it hangs in two slots.
            let (parent, entry) = tables::entry_at(table, 2).expect("the table is mapped");
            let slot = (parent.raw() & 0xfff) as usize / size_of::<Word>();
            let span = 1u64 << (12 + proxenos_guest::arch::LEVEL_BITS);
            let free = slot + 128;
            let alias = GuestVirt(table.raw() + 128 * span);
            // SAFETY: the slot was free.
            unsafe { memory::write_entry(tables::entry_address(parent.mfn(), free), entry) }
                .expect("an L1 in two slots");
            open(table);
            // Through both while it is open; a fault closes it in between, or not.
            write(alias, 5, Pte::NONE);
            for index in 0..MANY {
                write(alias, index, Pte::NONE);
            }
            write(table, 6, Pte::NONE);
            let _ = memory::flush_page(at);
            write(table, 3, bad);
            write(alias, 3, bad);
            let _ = memory::flush_page(at);
        }
        "foreign-frame" => {
            // A frame that is not ours, between others, in the middle of an open table.
            open(table);
            let last = (0..boot::frames()).map(|pfn| memory::mfn_of(proxenos_guest::abi::Pfn(pfn)).raw()).max();
            let foreign = (0x101..last.expect("frames")).map(Mfn).find(|&mfn| memory::pfn_of_mfn(mfn).is_none());
            open(table);
            write(table, 9, Pte::new(foreign.expect("the hypervisor has some"), PteFlags::KERNEL_RO));
            // SAFETY: unmaps a page of the range.
            let _ = unsafe { memory::update_va_mapping(at, Pte::NONE, UpdateVaFlags::INVLPG) };
        }
        _ => panic!("an attack of that name is not known"),
    }
}
