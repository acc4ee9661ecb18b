//! The first guest: a tour of what a domain sees, told on its console.
//!
//! It prints what it was started with, maps the shared page, takes a page fault of its own making and repairs it from
//! within the handler, reads the clocks, lets ten timer events come through the event callback, and shuts down with
//! reason 0.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestArch, GuestVirt, GuestWord, MachineAddr, Port, Virq};
use proxenos_guest::calendar::DateTime;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::traps::{self, Outcome};
use proxenos_guest::{Arch, StartInfo, TrapFrame, Word};
use proxenos_guest::{boot, events, hypercall, memory, println, shared_info, time};

proxenos_guest::entry!(main);

/// How many timer events we stay for.
const TICKS: u32 = 10;
/// Time between two of them, in nanoseconds.
const TICK_NS: u64 = 100_000_000;

fn main(si: &StartInfo) {
    greet();
    show_start_info(si);
    map_shared_page(si);
    traps::install().expect("the trap table is accepted");
    events::install().expect("the callbacks are accepted");
    events::unmask_upcalls();
    repair_a_page_fault();
    show_time();
    take_ticks();
    println!();
    println!("  Goodbye. The host was kind.");
}

fn greet() {
    let version = hypercall::xen_version().expect("the version is free to ask");
    let (major, minor) = (version >> 16, version & 0xffff);
    println!();
    println!("  Hello! This is a guest, and Proxenos is its host.");
    println!(
        "  I am an {} kernel in ring {}, {}, and we speak Xen {major}.{minor}.",
        Arch::NAME,
        boot::ring(),
        whose()
    );
}

/// What the domain is to its host.
fn whose() -> &'static str {
    if boot::is_initial_domain() { "domain 0" } else { "one of its domains" }
}

fn heading(title: &str) {
    println!();
    println!("  {title}");
}

fn show_start_info(si: &StartInfo) {
    heading("What I was given (start_info)");
    let pages = si.nr_pages.to_u64();
    let tables = si.nr_pt_frames.to_u64();
    let base = memory::virt_base();
    println!("    memory        {} MiB, {pages} pages", pages >> 8);
    println!("    kernel        {base:#x}, {} KiB", (memory::image_end().raw() - base.raw()) >> 10);
    match boot::module() {
        Some(module) => println!("    module        {:#x}, {} bytes", module.as_ptr() as usize, module.len()),
        None => println!("    module        none"),
    }
    println!("    frame list    {:#x}: my page 0 is machine frame {:#x}", si.mfn_list.to_u64(), first_frame(si));
    println!("    page tables   {:#x}, {tables} frames on {} levels", si.pt_base.to_u64(), Arch::PAGE_TABLE_LEVELS);
    println!("    start_info    {:#x}", boot::start_info_address());
    println!("    boot stack    up to {:#x}, mapped up to {:#x}", memory::boot_stack_end(), memory::region_end());
    println!("    shared_info   machine address {:#x}", si.shared_info.to_u64());
    println!("    flags         {}", Flags(si));
    println!("    command line  \"{}\"", boot::command_line());
}

/// The machine frame behind our first page.
fn first_frame(si: &StartInfo) -> Word {
    // SAFETY: the list has an entry for every page of the domain, and there is at least one.
    unsafe { (si.mfn_list.to_u64() as usize as *const Word).read() }
}

/// The names of the flags.
struct Flags<'a>(&'a StartInfo);

impl core::fmt::Display for Flags<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (index, (name, _)) in self.0.flags().iter_names().enumerate() {
            write!(f, "{}{name}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

fn map_shared_page(si: &StartInfo) {
    heading("The page we share (shared_info)");
    shared_info::map().expect("the shared page can be mapped");
    let at = shared_info::address();
    let mapped = memory::pte_of(at).map(|entry| entry.mfn());
    assert_eq!(mapped, Some(MachineAddr(Word::to_u64(si.shared_info.get())).mfn()), "the entry names the shared frame");
    println!(
        "    mapped at     {at:#x}, and upcalls are {}",
        masked(shared_info::upcall_mask().load(Ordering::Relaxed))
    );
}

fn masked(mask: u8) -> &'static str {
    if mask == 0 { "welcome" } else { "still masked" }
}

/// Address of the page that is taken away.
static LOST: AtomicUsize = AtomicUsize::new(0);
/// Its entry before.
static LOST_ENTRY: AtomicUsize = AtomicUsize::new(0);
static REPAIRS: AtomicU32 = AtomicU32::new(0);

fn repair_a_page_fault() {
    const TREASURE: Word = 0x2004_1105;
    heading("A page fault of my own making");
    let frame = memory::alloc_frame().expect("there is padding behind the boot stack");
    let at = frame.virt();
    // SAFETY: a fresh, mapped frame.
    unsafe { frame.words().write_volatile(TREASURE) };
    LOST.store(at.raw() as usize, Ordering::Relaxed);
    LOST_ENTRY.store(Pte::new(frame.mfn(), PteFlags::KERNEL_RW).0 as usize, Ordering::Relaxed);
    traps::set_handler(traps::vector::PAGE_FAULT, on_page_fault);
    println!("    unmapping     {at:#x}, which holds {TREASURE:#x}");
    // SAFETY: nobody has a reference into the frame.
    unsafe { memory::update_va_mapping(at, Pte::NONE, UpdateVaFlags::INVLPG) }.expect("a page of ours may be unmapped");
    // SAFETY: the handler maps the page before the read is tried again.
    let found = unsafe { frame.words().read_volatile() };
    traps::clear_handler(traps::vector::PAGE_FAULT);
    assert_eq!((found, REPAIRS.load(Ordering::Relaxed)), (TREASURE, 1), "one fault, and the page is back");
    println!("    read again    {found:#x}, as if nothing had happened");
}

fn on_page_fault(frame: &mut TrapFrame) -> Outcome {
    let lost = GuestVirt(LOST.load(Ordering::Relaxed) as u64);
    if memory::page_base(frame.fault_address()) != lost {
        return Outcome::NotMine;
    }
    println!(
        "    fault         at {:#x}, error code {:#x}, by the instruction at {:#x}",
        frame.fault_address(),
        frame.error_code(),
        frame.ip()
    );
    REPAIRS.fetch_add(1, Ordering::Relaxed);
    let entry = Pte(LOST_ENTRY.load(Ordering::Relaxed) as Word);
    // SAFETY: the entry maps the same frame as before, which nobody refers to but the interrupted read.
    match unsafe { memory::update_va_mapping(lost, entry, UpdateVaFlags::empty()) } {
        Ok(()) => Outcome::Handled,
        Err(errno) => panic!("the page cannot be mapped again: {errno}"),
    }
}

fn show_time() {
    heading("The time");
    let wall = time::wall_clock();
    println!("    wall clock    {}", DateTime::from_unix(wall.seconds));
    println!("    machine       up for {}", Seconds(time::system_time()));
    println!("    processor     {} MHz", shared_info::cpu_frequency() / 1_000_000);
}

/// Nanoseconds, shown as seconds with milliseconds.
struct Seconds(u64);

impl core::fmt::Display for Seconds {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let ms = self.0 / 1_000_000;
        write!(f, "{}.{:03} s", ms / 1000, ms % 1000)
    }
}

static TICKED: AtomicU32 = AtomicU32::new(0);

fn take_ticks() {
    heading("Ten ticks (VIRQ_TIMER through the event callback)");
    let port = events::handle_virq(Virq::Timer, on_tick).expect("the timer can be bound");
    println!("    bound to      port {port}, every {} ms", TICK_NS / 1_000_000);
    while TICKED.load(Ordering::Relaxed) < TICKS {
        let before = TICKED.load(Ordering::Relaxed);
        time::set_timer_in(TICK_NS).expect("the timer can be set");
        events::wait_until(|| TICKED.load(Ordering::Relaxed) > before);
    }
    events::mask(port);
    time::cancel_timer().expect("the timer can be cancelled");
}

fn on_tick(_: Port) {
    let tick = TICKED.load(Ordering::Relaxed) + 1;
    if tick <= TICKS {
        TICKED.store(tick, Ordering::Relaxed);
        println!("    tick {tick:>2}       at {}", Seconds(time::system_time()));
    }
}
