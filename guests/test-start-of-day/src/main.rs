//! The start of day: what a domain finds when its first instruction runs (`xen.h`, "Start-of-day memory layout", and
//! `start_info_t`).
#![no_std]
#![no_main]

use core::sync::atomic::Ordering;
use proxenos_guest::abi::event_channel::Channel;
use proxenos_guest::abi::shared_info::{CONTROL_IF_OFFSET, SharedInfo};
use proxenos_guest::abi::start_info::StartInfoFlags;
use proxenos_guest::abi::{GuestArch, GuestVirt, GuestWord, MachineAddr, PAGE_SIZE, Pfn, Port, Virq};
use proxenos_guest::arch::KERNEL_PAGES_ARE_USER;
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, StartInfo, Word, boot, check, check_eq, events, probe, shared_info, time, traps};

proxenos_guest::test_guest!(main);

const PAGE: u64 = PAGE_SIZE as u64;

fn main(si: &StartInfo) {
    registers();
    command_line(si);
    traps::install().expect("the trap table is accepted");
    segments();
    layout(si);
    module(si);
    mappings(si);
    image();
    frames(si);
    shared_page(si);
    ports();
}

#[cfg(target_arch = "x86")]
fn registers() {
    section("registers");
    let r = boot::registers();
    check_eq!(u64::from(r.esi), boot::start_info_address().raw());
    for (name, value) in
        [("eax", r.eax), ("ebx", r.ebx), ("ecx", r.ecx), ("edx", r.edx), ("edi", r.edi), ("ebp", r.ebp)]
    {
        check_eq!(value, 0, "{name}");
    }
    check_eq!(r.eflags, 0x202, "eflags");
    check_eq!(r.cs, 0x0819, "cs");
    for (name, value) in [("ss", r.ss), ("ds", r.ds), ("es", r.es), ("fs", r.fs), ("gs", r.gs)] {
        check_eq!(value, 0x0821, "{name}");
    }
}

#[cfg(target_arch = "x86_64")]
fn registers() {
    section("registers");
    let r = boot::registers();
    check_eq!(r.rsi, boot::start_info_address().raw());
    let zero = [
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rdi", r.rdi),
        ("rbp", r.rbp),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
    ];
    for (name, value) in zero {
        check_eq!(value, 0, "{name}");
    }
    check_eq!(r.rflags, 0x202, "rflags");
    check_eq!(r.cs, 0x082b, "cs");
    check_eq!(r.ss, 0x0833, "ss");
}

#[cfg(target_arch = "x86")]
fn segments() {
    use proxenos_guest::abi::Selector;
    use proxenos_guest::arch::segments;

    section("descriptor tables");
    let mut gdtr = [0u16; 4];
    // SAFETY: `sgdt` stores six bytes.
    unsafe { core::arch::asm!("sgdt [{}]", in(reg) gdtr.as_mut_ptr()) };
    check_eq!(gdtr[0], 0x93f, "limit of the GDT");
    for index in 0..256 {
        let selector = Selector::gdt(index, 1);
        check_eq!(segments::rights(selector), None, "descriptor {index}");
    }
    for index in 0..16 {
        let selector = Selector(index << 3 | 5);
        check!(!segments::load_es(selector), "there is no LDT: {selector:?}");
    }
}

#[cfg(target_arch = "x86_64")]
fn segments() {}

fn command_line(si: &StartInfo) {
    section("command line and flags");
    check!(boot::option("check").is_some(), "the command line is {:?}", boot::command_line());
    if boot::option("check") == Some("plain") {
        check_eq!(boot::command_line(), "check=plain quoted words");
    }
    let len = si.command_line().len();
    check!(len < si.cmd_line.len(), "ended by NUL");
    check!(si.cmd_line[len..].iter().all(|&byte| byte == 0), "nothing behind it");
    check_eq!(si.flags(), StartInfoFlags::PRIVILEGED | StartInfoFlags::INITDOMAIN);
    check_eq!(si.flags, si.flags().bits());
    check_eq!(si.domain_controller_evtchn, 0);
}

/// Points 1, 2, 4, 5 and 9: one region, in order, packed, page-aligned, padded.
fn layout(si: &StartInfo) {
    section("layout");
    let module = if si.mod_len.to_u64() > 0 { si.mod_start.to_u64() } else { memory::image_end().raw() };
    let list = si.mfn_list.to_u64();
    let tables = si.pt_base.to_u64();
    let start_info = boot::start_info_address().raw();
    let stack = memory::boot_stack_end().raw();
    let list_bytes = si.nr_pages.to_u64() * size_of::<Word>() as u64;

    check_eq!(memory::virt_base().raw() % memory::REGION_ALIGN, 0, "the region's start");
    check_eq!(module, memory::image_end().raw(), "the module follows the image");
    check_eq!(list, (module + si.mod_len.to_u64()).next_multiple_of(PAGE), "the frame list follows");
    check_eq!(tables, (list + list_bytes).next_multiple_of(PAGE), "the page tables follow");
    check_eq!(start_info, tables + si.nr_pt_frames.to_u64() * PAGE, "start_info follows");
    check_eq!(stack, start_info + 2 * PAGE, "the stack follows");

    let mut end = stack;
    while memory::pte_of(GuestVirt(end)).is_some() {
        end += PAGE;
    }
    check_eq!(end % memory::REGION_ALIGN, 0, "the region's end, {end:#x}");
    check!(end - stack >= memory::MIN_PADDING, "{} bytes of padding", end - stack);
    check!(end - stack < memory::MIN_PADDING + memory::REGION_ALIGN, "no more padding than needed");
    check_eq!(end, memory::region_end().raw(), "the SDK's idea of the region's end");
    check!(memory::pfn_of(GuestVirt(end)).raw() <= si.nr_pages.to_u64(), "the whole region is backed");
}

/// Point 6, and the module's bytes.
fn module(si: &StartInfo) {
    section("module");
    let expected: usize = boot::option("module").and_then(|len| len.parse().ok()).unwrap_or(0);
    check_eq!(si.mod_len.to_u64(), expected as u64);
    let Some(module) = boot::module() else { return };
    let wrong = module.iter().enumerate().find(|&(at, &byte)| byte != b'a' + (at % 23) as u8);
    check_eq!(wrong, None, "the module's bytes");
    check_eq!(si.mod_start.to_u64() % PAGE, 0);
}

/// Points 3, 7 and 8: one to one, writable but for the page tables.
fn mappings(si: &StartInfo) {
    section("mappings");
    let tables_start = si.pt_base.to_u64();
    let tables_end = tables_start + si.nr_pt_frames.to_u64() * PAGE;
    let base = memory::virt_base().raw();
    let mut at = base;
    while at < memory::region_end().raw() {
        let pfn = Pfn((at - base) / PAGE);
        let entry = memory::pte_of(GuestVirt(at)).unwrap_or(Pte::NONE);
        let is_table = (tables_start..tables_end).contains(&at);
        check!(entry.is_present(), "{at:#x} is mapped");
        check_eq!(entry.mfn(), memory::mfn_of(pfn), "frame behind {at:#x}");
        check_eq!(entry.is_writable(), !is_table, "{at:#x} is writable");
        let flags = entry.flags();
        check!(flags.contains(PteFlags::ACCESSED), "{at:#x}: {flags:?}");
        check_eq!(flags.contains(PteFlags::USER), KERNEL_PAGES_ARE_USER, "{at:#x}: user bit");
        let odd = PteFlags::WRITE_THROUGH | PteFlags::UNCACHED | PteFlags::LARGE_OR_PAT | PteFlags::GLOBAL;
        check!(!flags.intersects(odd), "{at:#x}: {flags:?}");
        if Arch::PAGE_TABLE_LEVELS == 2 {
            let upper = tables::entry_at(GuestVirt(at), 2).map(|(_, entry)| entry.0 & 0xfff);
            check_eq!(upper, Some(0x067), "L2 entry of {at:#x}");
        }
        at += PAGE;
    }
    for at in (tables_start..tables_end).step_by(PAGE_SIZE) {
        check!(!probe::is_writable(GuestVirt(at)), "page table at {at:#x}");
        let trap = traps::last_trap();
        check_eq!((trap.vector, trap.error_code), (traps::vector::PAGE_FAULT, 3), "write to a page table");
    }
    for (level, table) in tables::tables_of(memory::virt_base()) {
        let at = memory::pfn_of_mfn(table).map(|pfn| memory::virt_of(pfn).raw()).unwrap_or(0);
        check!((tables_start..tables_end).contains(&at), "L{level} table at {at:#x}");
    }
    for (what, at) in [
        ("frame list", si.mfn_list.to_u64()),
        ("start_info", boot::start_info_address().raw()),
        ("boot stack", memory::boot_stack_end().raw() - PAGE),
        ("padding", memory::boot_stack_end().raw()),
        ("image", base),
    ] {
        check!(probe::is_writable(GuestVirt(at)), "{what} is writable");
    }
}

#[used]
static mut ZEROED: [u8; 3 * PAGE_SIZE] = [0; 3 * PAGE_SIZE];
#[used]
static mut LOADED: [u32; 4] = [0x1234_5678, 0x9abc_def0, 1, 2];

/// Every segment's bytes are there, and what the file does not hold is zero.
fn image() {
    section("image");
    // SAFETY: read once, before anybody could write to them.
    unsafe {
        check_eq!((&raw const LOADED).read_volatile(), [0x1234_5678, 0x9abc_def0, 1, 2], "data");
        check!((&raw const ZEROED).read_volatile().iter().all(|&byte| byte == 0), "bss");
    }
}

/// The frame list: every frame once, as the machine-to-physical table says too.
fn frames(si: &StartInfo) {
    section("frames");
    for pfn in (0..si.nr_pages.to_u64()).map(Pfn) {
        let mfn = memory::mfn_of(pfn);
        let back = memory::machine_to_phys(mfn).map(Word::to_u64);
        if !check_eq!(back, Some(pfn.raw()), "machine_to_phys of {mfn:?}") {
            break;
        }
        if Arch::PAGE_TABLE_LEVELS == 2 {
            check!(mfn.raw() < 1 << 20, "{mfn:?} lies below 4 GiB");
        }
    }
    if boot::option("check") == Some("scrambled") {
        let in_a_row = (1..si.nr_pages.to_u64())
            .filter(|&pfn| memory::mfn_of(Pfn(pfn)).raw() == memory::mfn_of(Pfn(pfn - 1)).raw() + 1)
            .count() as u64;
        check!(in_a_row < si.nr_pages.to_u64() / 2, "{in_a_row} frames follow the one before");
    }
}

fn shared_page(si: &StartInfo) {
    section("shared page");
    let machine = MachineAddr(si.shared_info.to_u64());
    check_eq!(machine.page_offset(), 0);
    check_eq!(memory::pfn_of_mfn(machine.mfn()), None, "the shared frame is none of our pages");
    shared_info::map().expect("the shared page can be mapped");

    check_eq!(shared_info::upcall_mask().load(Ordering::Relaxed), 1, "upcalls are masked");
    // Virtual interrupts that nobody has bound go to port 0, so its bits may be set already.
    check_eq!(shared_info::pending_word(0).load(Ordering::Relaxed) & !1, 0, "pending ports");
    check_eq!(shared_info::pending_selector().load(Ordering::Relaxed) & !1, 0, "pending words");
    for index in 1..32 {
        check_eq!(shared_info::pending_word(index).load(Ordering::Relaxed), 0, "pending ports, word {index}");
    }
    for index in 0..32 {
        check_eq!(shared_info::mask_word(index).load(Ordering::Relaxed), 0, "masked ports, word {index}");
    }
    let word = |offset| shared_info::word(offset).load(Ordering::Relaxed);
    check_eq!(shared_info::byte(2).load(Ordering::Relaxed), 0);
    check_eq!(shared_info::byte(3).load(Ordering::Relaxed), 0);
    let zero = [SharedInfo::WALL_TIMEOUT, SharedInfo::DOMAIN_TIMEOUT, SharedInfo::PFN_TO_MFN_FRAME_LIST];
    for offset in zero {
        check_eq!(shared_info::double_word(offset), 0, "field at {offset}");
    }
    for offset in (size_of::<SharedInfo>()..PAGE_SIZE).step_by(4) {
        check_eq!(word(offset), 0, "behind shared_info, at {offset} (control interface at {CONTROL_IF_OFFSET})");
    }

    section("time at the start");
    let snapshot = time::snapshot();
    check!(snapshot.cpu_freq > 1_000_000, "{} Hz", snapshot.cpu_freq);
    check!(word(SharedInfo::TIME_VERSION1) > 0, "time has been set");
    check!(snapshot.tsc_timestamp > 0, "the counter at the last update");
    check!(snapshot.system_time > 0, "system time");
    check!(snapshot.wc_sec > 1_700_000_000, "wall clock: {} seconds since 1970", snapshot.wc_sec);
    check!(snapshot.wc_usec < 1_000_000, "{} microseconds", snapshot.wc_usec);
    if Arch::PAGE_TABLE_LEVELS == 2 {
        check!(shared_info::double_word(SharedInfo::MFN_TO_PFN_START) != 0, "where machine_to_phys lies");
    }
}

fn ports() {
    section("ports");
    check_eq!(events::status(Port(0)), Ok(Channel::Virq(Virq::Misdirect)));
    for port in 1..1024 {
        check_eq!(events::status(Port(port)), Ok(Channel::Closed), "port {port}");
    }
    check_eq!(events::bind_virq(Virq::Debug), Ok(Port(1)), "the first free port");
}
