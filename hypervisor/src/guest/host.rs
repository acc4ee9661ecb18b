//! The machine as `core` knows it ([`Host`]), from what the boot has found: frame table, allocator, and the tables that
//! guests share.

use super::hw::Hw;
use super::trace;
use crate::boot;
use crate::mm::layout::{self, PAGE_SIZE};
use crate::mm::paging::{self, Flags};
use crate::mm::{early, ioremap};
use crate::options::GuestConsole;
use proxenos_abi::Pirq;
use proxenos_core::domain::Privileges;
use proxenos_core::frame::{FrameInfo, FrameTable};
use proxenos_core::frame_alloc::{FrameAllocator, Zone};
use proxenos_core::host::{Domains, Host, MachineToPhys, NO_PFN_NARROW};
use proxenos_core::sync::Mutex;
use spin::Once;
use x86_64::VirtAddr;

static HOST: Once<Host<Hw>> = Once::new();

/// Frames of the table of 32-bit entries: 4 MiB for the 2^20 frames that x86_32 guests can name.
const NARROW_FRAMES: u64 = 1024;
/// Its alignment in frames: the shadows map it by two large pages.
const NARROW_ALIGN: u64 = 512;
/// Frames that no guest's request may take, whatever it costs the guest: 1 MiB for the hypervisor's heap and tables.
const OWN_FRAMES: u64 = 256;

/// Finds out what there is. From now on the hypervisor's own memory comes from the allocator too.
pub(super) fn init() -> &'static Host<Hw> {
    let host = HOST.call_once(build_host);
    early::set_frame_source(|| {
        let host = HOST.get()?;
        host.alloc.lock().alloc_hypervisor(0, Zone::Any, &host.hw)
    });
    host
}

/// The machine, once it is known whole.
pub(super) fn get() -> Option<&'static Host<Hw>> {
    HOST.get()
}

/// A line of devices has interrupted: whoever has it is told.
pub fn line_interrupted(line: Pirq) {
    // No line is opened before there is a domain to have it.
    if let Some(host) = get() {
        crate::irq::lines().interrupt(&host.domains, &host.hw, line);
    }
}

/// The frame table, the allocator with all memory that is left, and the machine-to-physical tables.
fn build_host() -> Host<Hw> {
    let frames = frame_table();
    let m2p = machine_to_phys(frames.len());
    let traced = trace::reserve();
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
    if let Some((first, count)) = traced {
        alloc.share_range(first, count);
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
        new_privileges: match boot::options().guest_console {
            GuestConsole::Domain0 => Privileges::empty(),
            GuestConsole::All => Privileges::LOG,
        },
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
        // SAFETY: the frames were just taken for good, are contiguous in the direct map and hold `count` records,
        // aligned.
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
