//! Other ways into a kernel through a code segment that cannot be loaded: events, software interrupts, page faults.

use crate::entries;
use crate::raise::{frame_at, set_handler};
use crate::tables::{RING, Tables};
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestArch, GuestVirt, Selector};
use proxenos_guest::arch::{self, trap_stub};
use proxenos_guest::pte::Pte;
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{Arch, check, check_eq, events, memory, probe, shared_info};

/// Nothing is in this slot of the GDT.
const EMPTY: Selector = Selector::gdt(40, RING);
/// Index of the code address in the failsafe frame, and words of the whole frame.
const IP: usize = if cfg!(target_arch = "x86") { 4 } else { 6 };
const WORDS: usize = if cfg!(target_arch = "x86") { 7 } else { 11 };

static EVENTS: AtomicUsize = AtomicUsize::new(0);

pub fn run(_: &Tables) {
    by_event();
    by_software_interrupt();
    by_page_fault();
}

/// The frame of what could not be entered, which lies above the failsafe frame.
fn frame_above(words: usize) -> &'static [usize] {
    let found = entries::found();
    // The stack pointer that the handler was to have: on x86_64 it is in the failsafe frame.
    let sp = if cfg!(target_arch = "x86") { found.sp + WORDS * 4 } else { found.words[9] };
    // SAFETY: our own stack; the words are read as numbers, and what is below the stack pointer of now is not kept for
    // long.
    unsafe { core::slice::from_raw_parts(sp as *const usize, words) }
}

fn by_event() {
    section("an event callback in a code segment that cannot be loaded");
    let (ours, other) = events::bind_loopback().expect("a channel to ourselves");
    events::set_handler(other, |_| {
        EVENTS.store(EVENTS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    });
    events::unmask(other);
    for round in 1..=3 {
        entries::install(EMPTY, Arch::FLAT_GUESTOS_CS);
        let (failsafes, upcalls) = (entries::count(), events::upcall_count());
        check_eq!(events::send(ours), Ok(()), "the send succeeds");
        entries::install_failsafe();
        check_eq!(entries::count() - failsafes, 1, "failsafe callbacks");
        check_eq!(events::upcall_count() - upcalls, 1, "and the event callback ran all the same");
        check_eq!(EVENTS.load(Ordering::Relaxed), round, "with the event");
        check_eq!(shared_info::upcall_mask().load(Ordering::Relaxed), 0, "and unmasked events at its end");
        let found = entries::found();
        check_eq!(found.words[IP], arch::event_callback().raw() as usize, "ip");
        check_eq!(found.words[IP + 1] & 0xffff, usize::from(EMPTY.raw()), "cs");
    }
    // Masked, nothing comes.
    entries::install(EMPTY, Arch::FLAT_GUESTOS_CS);
    let failsafes = entries::count();
    let were_unmasked = events::mask_upcalls();
    check!(were_unmasked);
    check_eq!(events::send(ours), Ok(()));
    events::enter_hypervisor();
    check_eq!(entries::count() - failsafes, 0, "masked: failsafe callbacks");
    events::unmask_upcalls();
    check_eq!(entries::count() - failsafes, 1, "unmasked: failsafe callbacks");
    entries::install_failsafe();
    check_eq!(events::close(ours), Ok(()));
}

fn by_software_interrupt() {
    const VECTOR: u8 = 0x46;
    section("a software interrupt's handler, which masks events");
    let flags = TrapFlags::from_dpl(3) | TrapFlags::MASK_EVENTS;
    set_handler(VECTOR, EMPTY, flags);
    traps::set_handler(VECTOR, |_| {
        // The flag of the handler counts also where it was entered by this detour.
        check_eq!(shared_info::upcall_mask().load(Ordering::Relaxed), 1, "events are masked in the handler");
        Outcome::Handled
    });
    let (failsafes, count) = (entries::count(), traps::count());
    // SAFETY: the handler does nothing.
    unsafe { core::arch::asm!("int 0x46") };
    events::unmask_upcalls();
    check_eq!(entries::count() - failsafes, 1, "failsafe callbacks");
    check_eq!(traps::count() - count, 1, "and the handler ran");
    let found = entries::found();
    check_eq!(found.words[IP], trap_stub(VECTOR).raw() as usize, "ip");
    check_eq!(found.words[IP + 1] & 0xffff, usize::from(EMPTY.raw()), "cs");
    traps::clear_handler(VECTOR);
}

fn by_page_fault() {
    section("a page fault's handler");
    let hole = memory::alloc_frame().expect("padding");
    // SAFETY: a fresh frame.
    unsafe { memory::update_va_mapping(hole.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("may be unmapped");
    let at = GuestVirt(hole.virt().raw() + 0x128);
    set_handler(vector::PAGE_FAULT, EMPTY, TrapFlags::empty());
    let (failsafes, count) = (entries::count(), traps::count());
    check_eq!(probe::load(at), None);
    check_eq!(entries::count() - failsafes, 1, "failsafe callbacks");
    check_eq!(traps::count() - count, 1, "and the handler ran");
    let trap = traps::last_trap();
    check_eq!((trap.vector, trap.error_code, trap.fault_address), (vector::PAGE_FAULT, 0, at), "with its frame");
    let found = entries::found();
    check_eq!(found.words[IP], trap_stub(vector::PAGE_FAULT).raw() as usize, "ip");
    // x86_32: cr2, code, ip, cs, flags; x86_64: rcx, r11, cr2, code, ip, cs, flags, sp, ss.
    let words = if cfg!(target_arch = "x86") { 5 } else { 9 };
    let sp = frame_above(words).as_ptr() as usize;
    check_eq!(found.sp, frame_at(sp, WORDS), "the failsafe frame lies below the page fault's");
    set_handler(vector::PAGE_FAULT, Arch::FLAT_GUESTOS_CS, TrapFlags::empty());
}
