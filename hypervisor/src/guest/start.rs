//! From a machine that is up to domain 0's first instruction: frame table and allocator, the tables guests share, the
//! domain itself, built as the interface's start-of-day layout says.
//!
//! A kernel that cannot be domain 0 is refused with a message that names the fault, and the machine stops: there is nothing
//! else to run.

use super::hw::Hw;
use super::timer::{self, Timer};
use super::{Running, faults, fpu, syscall};
use crate::boot::info::Module;
use crate::cpu::entry::{TrapFrame, resume_guest};
use crate::cpu::gdt::{self, Flavour};
use crate::cpu::percpu::Cpu;
use crate::cpu::tlb;
use crate::mm::layout::{self, PAGE_SIZE};
use crate::mm::paging::{self, Flags};
use crate::mm::{early, ioremap};
use crate::options::{Bytes, P2m, Provocation};
use crate::{boot, time};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use proxenos_abi::arch::FIRST_RESERVED_GDT_ENTRY;
use proxenos_abi::shared_info::SharedInfo;
use proxenos_abi::start_info::StartInfoFlags;
use proxenos_abi::{Pirq, Port, Selector};
use proxenos_core::addr::{DomId, MachineAddr, Mfn, Pfn};
use proxenos_core::builder::{
    DomainKind, FrameContents, InitialState, Layout, Request, StartOfDay, initial_state, populate,
};
use proxenos_core::domain::{Arch, Domain, Privileges};
use proxenos_core::frame::{FrameInfo, FrameTable};
use proxenos_core::frame_alloc::{FrameAllocator, MAX_ORDER, Zone};
use proxenos_core::host::{Domains, Host, MachineToPhys, NO_PFN_NARROW};
use proxenos_core::image::Image;
use proxenos_core::machine::{CpuTables, DescriptorPage, MachineMemory};
use proxenos_core::paging::format::{FourLevel, TwoLevel};
use proxenos_core::paging::pool::{MINIMUM, ShadowFrames};
use proxenos_core::paging::{Pager, PagingError, PagingState};
use proxenos_core::sync::{Mutex, MutexGuard};
use proxenos_core::vcpu::Vcpu;
use spin::Once;
use x86_64::VirtAddr;

static HOST: Once<Host<Hw>> = Once::new();

/// Frames of the table of 32-bit entries: 4 MiB for the 2^20 frames that x86_32 guests can name.
const NARROW_FRAMES: u64 = 1024;
/// Its alignment in frames: the shadows map it by two large pages.
const NARROW_ALIGN: u64 = 512;
/// Frames that no guest's request may take, whatever it costs the guest: 1 MiB for the hypervisor's heap and tables.
const OWN_FRAMES: u64 = 256;
/// What the hypervisor keeps of free memory for its own tables and shadows, when domain 0 takes all that there is: a
/// sixteenth, within these bounds (in frames).
const RESERVE_FRAMES: core::ops::RangeInclusive<u64> = 2048..=32768;

/// The machine is up: builds domain 0 and runs it.
pub fn start() -> ! {
    syscall::init();
    faults::init();
    let host = HOST.call_once(build_host);
    early::set_frame_source(|| {
        let host = HOST.get()?;
        host.alloc.lock().alloc_hypervisor(0, Zone::Any, &host.hw)
    });
    let modules = &boot::info().modules;
    let Some(kernel) = modules.first() else {
        panic!("no domain 0: the loader gave no module; the first one must be its kernel");
    };
    match build_domain0(host, kernel, modules.get(1)) {
        Ok((running, state)) => {
            if boot::options().provoke == Some(Provocation::LostReference) {
                lose_reference(host, &running.dom);
            }
            enter(running, &state)
        }
        Err(refusal) => panic!("domain 0 is refused: {refusal}"),
    }
}

/// Takes a reference to a domain's first table and forgets it, for tests of the audit.
fn lose_reference(host: &Host<Hw>, dom: &Domain) {
    log::warn!("a fault is provoked: {:?}", Provocation::LostReference);
    let table = dom.paging.lock().base.expect("the domain has a page-table base");
    host.frames.get(table, dom.id).map(drop).expect("its own table");
}

/// The machine, once it is known whole.
pub(super) fn host() -> Option<&'static Host<Hw>> {
    HOST.get()
}

/// A line of devices has interrupted: whoever has it is told.
pub fn line_interrupted(line: Pirq) {
    // No line is opened before there is a domain to have it.
    if let Some(host) = host() {
        crate::irq::lines().interrupt(&host.domains, &host.hw, line);
    }
}

/// The frame table, the allocator with all memory that is left, and the machine-to-physical tables.
fn build_host() -> Host<Hw> {
    let frames = frame_table();
    let m2p = machine_to_phys(frames.len());
    let mut alloc = FrameAllocator::new(frames);
    let free = early::hand_over();
    let mut used = early::ram().clone();
    for range in free.iter() {
        used.remove(range.clone());
    }
    for range in used.iter() {
        alloc.adopt_range(range.start.mfn(), (range.end.0 - range.start.0) / PAGE_SIZE);
    }
    if let Some(first) = m2p.narrow() {
        alloc.share_range(first, NARROW_FRAMES);
    }
    if let Some(first) = m2p.wide() {
        alloc.share_range(first, wide_frames(frames.len()));
    }
    for range in free.iter() {
        alloc.release_range(range.start.mfn(), (range.end.0 - range.start.0) / PAGE_SIZE);
    }
    alloc.set_reserve(OWN_FRAMES);
    Host {
        hw: Hw,
        frames,
        machine_frames: 1 << (physical_address_bits() - 12),
        alloc: Mutex::new(alloc),
        m2p,
        hypervisor_slots: paging::hypervisor_slots(),
        forbidden_io: ioremap::device_frames(),
        domains: Domains::new(),
        watched: 0.into(),
    }
}

/// Bits of a machine address on this CPU (CPUID leaf 0x80000008).
fn physical_address_bits() -> u32 {
    raw_cpuid::CpuId::new().get_processor_capacity_feature_info().map_or(36, |info| info.physical_address_bits().into())
}

/// A record for every frame up to the last one of RAM.
fn frame_table() -> FrameTable {
    let count = early::end_of_ram().0 as usize;
    let bytes = (count * size_of::<FrameInfo>()) as u64;
    let first = early::alloc_boot_pages(bytes.div_ceil(PAGE_SIZE), 1, early::Zone::Any);
    let at: *mut FrameInfo = layout::direct_frame(first).as_mut_ptr();
    for index in 0..count {
        // SAFETY: the frames were just taken for good, are contiguous in the direct map and hold `count` records, aligned.
        unsafe { at.add(index).write(FrameInfo::reserved()) }
    }
    // SAFETY: all records are initialised, and from here on only shared.
    FrameTable::new(unsafe { core::slice::from_raw_parts(at, count) })
}

fn wide_frames(frames: u64) -> u64 {
    (frames * 8).div_ceil(PAGE_SIZE)
}

/// Both tables, every entry saying that the frame is nobody's. The wide one is mapped for x86_64 guests to read.
fn machine_to_phys(frames: u64) -> MachineToPhys {
    let narrow = early::alloc_boot_pages(NARROW_FRAMES, NARROW_ALIGN, early::Zone::Low);
    let wide_count = wide_frames(frames);
    let wide = early::alloc_boot_pages(wide_count, 1, early::Zone::Any);
    let pattern = NO_PFN_NARROW as u8;
    for (first, count) in [(narrow, NARROW_FRAMES), (wide, wide_count)] {
        let at: *mut u8 = layout::direct_frame(first).as_mut_ptr();
        // SAFETY: frames that were just taken, contiguous in the direct map.
        unsafe { at.write_bytes(pattern, (count * PAGE_SIZE) as usize) }
    }
    let start = VirtAddr::new_truncate(layout::MACHINE_TO_PHYS);
    paging::map(start..start + wide_count * PAGE_SIZE, wide.addr(), Flags::RODATA | Flags::USER);
    MachineToPhys::new(Some(narrow), Some(wide))
}

/// Why there is no domain 0.
#[derive(Debug)]
enum Refusal {
    Image(proxenos_core::image::ImageError),
    Build(proxenos_core::builder::BuildError),
    Memory { asked_mib: u64, free_mib: u64 },
    Tables(PagingError),
    Shadows,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Build(error) => error.fmt(f),
            Self::Memory { asked_mib, free_mib } => {
                write!(f, "it is to have {asked_mib} MiB of memory and {free_mib} MiB are free")
            }
            Self::Shadows => {
                write!(f, "its shadow page tables need {} KiB at least", (u64::from(MINIMUM.0) * PAGE_SIZE) >> 10)
            }
            Self::Tables(error) => write!(f, "its first page tables are not valid: {error:?}"),
        }
    }
}

/// What a module holds.
fn contents(module: &Module) -> &'static [u8] {
    let bytes = (module.range.end.0 - module.range.start.0) as usize;
    if bytes == 0 {
        return &[];
    }
    // SAFETY: RAM that the loader put the module in and that the early allocator leaves alone; nobody writes to it before
    // `release` gives it away, when no reference is left.
    unsafe { core::slice::from_raw_parts(layout::direct(module.range.start).as_ptr(), bytes) }
}

/// Domain 0's command line: its module's without the first word, which is the file's name; or what follows `--` in our own.
fn command_line(kernel: &Module) -> &'static str {
    let own = boot::info().text(kernel.command_line).trim_start();
    let own = own.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
    if own.is_empty() { boot::guest_command_line().unwrap_or("") } else { own }
}

/// Builds domain 0.
fn build_domain0(
    host: &'static Host<Hw>,
    kernel: &Module,
    initrd: Option<&Module>,
) -> Result<(Running, InitialState), Refusal> {
    let image = Image::parse(contents(kernel)).map_err(Refusal::Image)?;
    let module = initrd.map_or(&[][..], contents);
    let arch = image.arch();
    let zone = if arch == Arch::X86_32 { Zone::Below4G } else { Zone::Any };
    let pages = memory_of_domain0(host, zone)?;
    let request = Request { module_bytes: module.len() as u64, pages, kind: DomainKind::Initial };
    let layout = Layout::plan(&image, &request).map_err(Refusal::Build)?;
    let frames = take_frames(host, DomId::DOM0, pages, zone);
    let frame = |pfn: Pfn| frames[pfn.0 as usize];

    let dom = Arc::new(new_domain(host, DomId::DOM0, arch));
    dom.total_pages.store(pages as u32, core::sync::atomic::Ordering::Relaxed);
    // What it gives back it can have again. More it cannot: what is left is for shadows and other domains (as in 2.0).
    dom.max_pages.store(pages as u32, core::sync::atomic::Ordering::Relaxed);
    // What lies behind the region is whatever the firmware left: domain 0 is trusted with that. The region is clean.
    for pfn in 0..layout.region_pages() {
        host.hw.clear_frame(frame(Pfn(pfn)));
    }
    let start = StartOfDay {
        shared_info: dom.shared_info,
        flags: StartInfoFlags::PRIVILEGED | StartInfoFlags::INITDOMAIN,
        controller: Port(0),
        command_line: command_line(kernel).as_bytes(),
    };
    let top =
        populate(&host.hw, &frame, FrameContents::Zero, &layout, &image, module, &start).map_err(Refusal::Build)?;
    for pfn in 0..pages {
        host.m2p.set(&host.hw, frame(Pfn(pfn)), Pfn(pfn));
    }
    install_tables(host, &dom, top).map_err(Refusal::Tables)?;
    if let Some(limit) = boot::options().dom0_shadow {
        limit_shadows(host, &dom, limit)?;
    }
    proxenos_core::assist::follow_image(&dom, image.page_tables());
    host.domains.insert(dom.clone());
    let name = if arch == Arch::X86_32 { "x86_32" } else { "x86_64" };
    log::info!(
        "domain 0: {name}, {} MiB, entry {:#x}, command line \"{}\"",
        pages >> 8,
        layout.entry.0,
        command_line(kernel)
    );
    for module in &boot::info().modules {
        release(host, module);
    }
    let mut vcpu = Box::new(Vcpu::new());
    let state = initial_state(&layout);
    vcpu.set_kernel_stack(state.kernel_ss, state.kernel_sp);
    Ok((Running { host, dom, vcpu, timer: Timer::new() }, state))
}

/// Bounds what a domain's shadows may take.
fn limit_shadows(host: &Host<Hw>, dom: &Domain, limit: Bytes) -> Result<(), Refusal> {
    let frames = ShadowFrames(u32::try_from(limit.0 / PAGE_SIZE).unwrap_or(u32::MAX));
    let pager = Pager::new(host, dom);
    let mut state = pager.lock();
    let set = match dom.arch {
        Arch::X86_32 => pager.set_shadow_limit::<TwoLevel>(&mut state, frames),
        Arch::X86_64 => pager.set_shadow_limit::<FourLevel>(&mut state, frames),
    };
    set.map_err(|_| Refusal::Shadows)
}

/// How many frames domain 0 gets: what the option says, or all that can be spared.
fn memory_of_domain0(host: &Host<Hw>, zone: Zone) -> Result<u64, Refusal> {
    let free = host.alloc.lock().free_frames(zone);
    let reserve = (free / 16).clamp(*RESERVE_FRAMES.start(), *RESERVE_FRAMES.end());
    let spare = free.saturating_sub(reserve);
    match boot::options().dom0_mem {
        Some(bytes) if bytes.0 / PAGE_SIZE > spare => {
            Err(Refusal::Memory { asked_mib: bytes.0 >> 20, free_mib: spare >> 8 })
        }
        Some(bytes) => Ok(bytes.0 / PAGE_SIZE),
        None => Ok(spare),
    }
}

/// Takes a domain's frames, in the order of its pfns.
///
/// # Panics
/// When there are not as many: the caller has looked.
fn take_frames(host: &Host<Hw>, owner: DomId, pages: u64, zone: Zone) -> Vec<Mfn> {
    let mut frames = Vec::with_capacity(pages as usize);
    let mut alloc = host.alloc.lock();
    let mut order = MAX_ORDER;
    while (frames.len() as u64) < pages {
        order = order.min((pages - frames.len() as u64).ilog2());
        match alloc.alloc(order, zone, &host.hw) {
            Some(first) => frames.extend((first.0..first.0 + (1 << order)).map(Mfn)),
            None => order = order.checked_sub(1).expect("as many frames as were free a moment ago"),
        }
    }
    drop(alloc);
    for &frame in &frames {
        host.hand_over(frame, owner);
    }
    if boot::options().p2m == P2m::Scrambled {
        scramble(&mut frames);
    }
    frames
}

/// Puts frames in no order: always the same none, so that what a guest does wrong with it can be seen again.
fn scramble(frames: &mut [Mfn]) {
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    for index in (1..frames.len()).rev() {
        // Marsaglia's xorshift; the slight bias of the remainder does not matter here.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        frames.swap(index, (random % (index as u64 + 1)) as usize);
    }
}

/// A domain without memory: its shared page and the first page of its GDT.
fn new_domain(host: &Host<Hw>, id: DomId, arch: Arch) -> Domain {
    let mut alloc = host.alloc.lock();
    let shared_info = alloc.alloc_shared(id, &host.hw).expect("a frame for shared_info");
    let gdt_page = alloc.alloc_hypervisor(0, Zone::Any, &host.hw).expect("a frame for the GDT");
    drop(alloc);
    let flavour = if arch == Arch::X86_32 { Flavour::X86_32 } else { Flavour::X86_64 };
    for (index, descriptor) in gdt::reserved_gdt(flavour).into_iter().enumerate() {
        let slot = u64::from(FIRST_RESERVED_GDT_ENTRY) + index as u64;
        host.hw.store64(MachineAddr(gdt_page.addr().0 + 8 * slot), descriptor);
    }
    host.hw.map_descriptors(id, DescriptorPage::Gdt(0), Some(gdt_page));
    let field = |offset: usize| MachineAddr(shared_info.addr().0 + offset as u64);
    host.hw.store8(field(SharedInfo::EVTCHN_UPCALL_MASK), 1);
    let m2p = if arch == Arch::X86_32 { host.m2p.narrow() } else { host.m2p.wide() };
    host.hw.store64(field(SharedInfo::MFN_TO_PFN_START), m2p.map_or(0, |first| first.0));
    let dom = Domain::new(id, arch, Privileges::CONTROL | Privileges::DEVICES, shared_info, gdt_page);
    dom.pirqs.call_once(crate::irq::lines);
    dom
}

/// Validates the page tables that the builder wrote, pins them and makes them the domain's base.
fn install_tables(host: &Host<Hw>, dom: &Domain, top: Mfn) -> Result<(), PagingError> {
    let pager = Pager::new(host, dom);
    let mut state: MutexGuard<'_, PagingState> = dom.paging.lock();
    match dom.arch {
        Arch::X86_32 => {
            pager.create_upper_tables(&mut state)?;
            pager.pin::<TwoLevel>(&mut state, top, 2)?;
            pager.set_base::<TwoLevel>(&mut state, top)
        }
        Arch::X86_64 => {
            pager.pin::<FourLevel>(&mut state, top, 4)?;
            pager.set_base::<FourLevel>(&mut state, top)
        }
    }
}

/// Frees a module's frames, once nothing of it is needed. Those of the first MiB stay reserved.
fn release(host: &Host<Hw>, module: &Module) {
    let first = module.range.start.0.div_ceil(PAGE_SIZE).max(proxenos_core::addr::FIRST_RAM_FRAME.0);
    let end = module.range.end.0 / PAGE_SIZE;
    if first < end {
        host.alloc.lock().release_range(Mfn(first), end - first);
    }
}

/// Runs a domain for the first time.
fn enter(running: Running, state: &InitialState) -> ! {
    let cpu = Cpu::current();
    let root = running.dom.paging.lock().cpu_root().expect("the domain has a page-table base");
    let run = cpu.local.install(running);
    timer::start(run);
    run.vcpu.segments.load(run.host, &run.dom);
    tlb::begin_to_walk();
    run.host.hw.load_root(root);
    syscall::allow(run.dom.arch);
    fpu::trap_next_use();
    run.host.hw.load_breakpoints(&run.vcpu.debug);
    let frame = TrapFrame {
        rip: state.ip.0,
        cs: state.code.0.into(),
        rflags: state.flags,
        rsp: state.sp.0,
        ss: state.data.0.into(),
        rsi: state.start_info.0,
        ..TrapFrame::default()
    };
    load_data_segments(state.data);
    log::info!(
        "boot: {} TSC cycles from our first instruction to the guest's",
        time::tsc::read().0 - boot::first_tsc()
    );
    // SAFETY: page tables and descriptor tables are the domain's, validated; the frame is that of a guest at its start:
    // its selectors are the flat ones of ring 1 or 3, interrupts are on and IOPL is 0. Nothing on the stack below it is needed.
    unsafe {
        cpu.guest_frame().write(frame);
        resume_guest()
    }
}

/// Loads the segment registers that `iretq` does not.
fn load_data_segments(data: Selector) {
    // SAFETY: the selector names a flat data segment of the GDT that is loaded, and the hypervisor uses none of the four.
    unsafe {
        asm!(
            "mov ds, {0:x}", "mov es, {0:x}", "mov fs, {0:x}", "mov gs, {0:x}",
            in(reg) u64::from(data.0), options(nostack, preserves_flags)
        );
    }
}
