//! From the end of the 32-bit entry code to [`crate::kmain`]: the order in which the machine comes up.

pub mod asm;
pub mod info;
mod loader_memory;
mod multiboot;
mod pvh;

use crate::cpu::{features, idt, percpu};
use crate::mm::{early, heap, paging};
use crate::options::Options;
use crate::{console, power};
use info::{BootError, BootInfo, Protocol};
use spin::Once;

static INFO: Once<BootInfo> = Once::new();
static OPTIONS: Once<Options> = Once::new();

/// What the loader told us.
///
/// # Panics
/// Before it has been read, which is the first thing that happens.
pub fn info() -> &'static BootInfo {
    INFO.get().expect("the boot information was read")
}

/// The options of our command line; the defaults as long as it has not been read.
pub fn options() -> &'static Options {
    const DEFAULT: Options = Options::DEFAULT;
    static FALLBACK: Options = DEFAULT;
    OPTIONS.get().unwrap_or(&FALLBACK)
}

/// The part of our command line behind ` -- `: domain 0's command line where its module carries none.
#[must_use]
pub fn guest_command_line() -> Option<&'static str> {
    crate::options::split_guest_part(info().text(info().command_line)).1
}

/// The time stamp counter as it was at our first instructions.
#[must_use]
pub fn first_tsc() -> u64 {
    unsafe extern "C" {
        static boot_tsc: u64;
    }
    // SAFETY: the entry code wrote it before any Rust ran; nothing writes it since.
    unsafe { boot_tsc }
}

/// Where the entry code arrives: on the boot stack and the boot page tables, interrupts off.
#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, at: u32) -> ! {
    idt::init();
    let mut problem = None;
    INFO.call_once(|| {
        let mut info = BootInfo::new(Protocol::Multiboot1);
        let result = match magic {
            asm::PVH_MAGIC => pvh::parse(at, &mut info),
            asm::MULTIBOOT1_MAGIC => multiboot::parse_1(at, &mut info),
            asm::MULTIBOOT2_MAGIC => multiboot::parse_2(at, &mut info),
            other => Err(BootError::UnknownProtocol(other)),
        };
        problem = result.err();
        info
    });
    let line = info().text(info().command_line);
    let mut complaints = arrayvec::ArrayVec::<_, 8>::new();
    OPTIONS.call_once(|| {
        Options::parse(line, &mut |complaint| {
            let _ = complaints.try_push(complaint);
        })
    });
    console::init(options());
    for complaint in complaints {
        log::warn!("{complaint}");
    }
    if let Some(problem) = problem {
        panic!("cannot boot: {problem}");
    }
    power::init_debug_exit(options().debug_exit);
    early::init(info());
    report();
    paging::init();
    heap::init();
    let area = percpu::build(percpu::CpuId::BOOT);
    // SAFETY: the area is this CPU's, just built, and nothing on the boot stack is needed any more.
    unsafe { percpu::enter(area, crate::kmain) }
}

/// Prints what the loader told us.
fn report() {
    let info = info();
    log::info!("booted by {}, command line \"{}\"", info.protocol, info.text(info.command_line));
    for region in &info.regions {
        log::debug!("{:#014x}..{:#014x} {:?}", region.range.start, region.range.end, region.kind);
    }
    for module in &info.modules {
        let (start, end) = (module.range.start, module.range.end);
        log::info!("module {start:#x}..{end:#x} ({} bytes) \"{}\"", end.0 - start.0, info.text(module.command_line));
    }
    let cpu = features::get();
    let steady = if cpu.invariant_tsc.is_there() { ", invariant TSC" } else { "" };
    log::info!("CPU: {} ({}){steady}", cpu.brand, cpu.vendor);
    log::info!("{} MiB of memory, {} MiB free", early::ram().bytes() >> 20, early::free_bytes() >> 20);
}
