//! Building a domain from an image: its memory, contents as the interface's start-of-day layout says, page tables, and
//! the virtual CPU that stands at its first instruction.
//!
//! Promise: what is refused leaves nothing behind. The domain is known to the machine once it is whole, and runs when
//! it has been given a place ([`super::sched::place`]).

use super::Running;
use super::hw::Hw;
use crate::boot;
use crate::mm::layout::PAGE_SIZE;
use crate::options::{Bytes, P2m};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use proxenos_abi::Port;
use proxenos_abi::sched_ctl::SchedulerId;
use proxenos_abi::start_info::StartInfoFlags;
use proxenos_core::addr::{DomId, Mfn, Pfn};
use proxenos_core::builder::MachineFrames;
use proxenos_core::domain::{Arch, Domain, Privileges};
use proxenos_core::frame_alloc::{MAX_ORDER, Zone};
use proxenos_core::host::Host;
use proxenos_core::life::{conceive, discard, zone};
use proxenos_core::machine::MachineMemory;
use proxenos_core::paging::format::{FourLevel, TwoLevel};
use proxenos_core::paging::pool::{MINIMUM, ShadowFrames};
use proxenos_core::paging::{Pager, PagingError, PagingState};
use proxenos_core::sched::SchedError;
use proxenos_image::Image;
use proxenos_image::builder::{DomainKind, FrameContents, Layout, Request, StartOfDay, initial_state, populate};

/// What is to be built.
pub struct Order<'a> {
    /// The domain's number, which is nobody's yet.
    pub id: DomId,
    /// What it may do.
    pub privileges: Privileges,
    /// Its frames, as many as are free in [`zone`] at least.
    pub pages: u64,
    /// Its initial RAM disk; empty for none.
    pub module: &'a [u8],
    /// Its command line.
    pub command_line: &'a str,
    /// The most that its shadow page tables may take, if not what follows from its memory.
    pub shadow: Option<Bytes>,
}

/// Builds a domain.
pub fn build(host: &'static Host<Hw>, image: &Image<'_>, order: &Order<'_>) -> Result<Box<Running>, Refusal> {
    let (id, arch, pages) = (order.id, image.arch(), order.pages);
    let kind = if id == DomId::DOM0 { DomainKind::Initial } else { DomainKind::Ordinary };
    let request = Request { module_bytes: order.module.len() as u64, pages, kind };
    let layout = Layout::plan(image, &request).map_err(Refusal::Build)?;
    let free_mib = host.alloc.lock().free_frames(zone(arch)) >> 8;
    let dom = conceive(host, id, arch, order.privileges).ok_or(Refusal::Memory { asked_mib: pages >> 8, free_mib })?;
    if order.privileges.contains(Privileges::DEVICES) {
        dom.pirqs.call_once(crate::irq::lines);
    }
    let built = furnish(host, &dom, image, order, &layout);
    if let Err(refusal) = built {
        discard(host, &dom);
        return Err(refusal);
    }
    let name = if arch == Arch::X86_32 { "x86_32" } else { "x86_64" };
    log::info!(
        "domain {}: {name}, {} MiB, entry {:#x}, command line \"{}\"",
        id.0,
        pages >> 8,
        layout.entry.0,
        order.command_line
    );
    Ok(Running::at_start(host, dom, &initial_state(&layout)))
}

/// Gives a domain its memory, with what belongs there at its start.
fn furnish(
    host: &Host<Hw>,
    dom: &Arc<Domain>,
    image: &Image<'_>,
    order: &Order<'_>,
    layout: &Layout,
) -> Result<(), Refusal> {
    let frames = take_frames(host, dom, order.pages, zone(dom.arch));
    let frame = |pfn: Pfn| frames[pfn.0 as usize];
    dom.total_pages.store(order.pages as u32, Ordering::Relaxed);
    // What it gives back it can have again. More it cannot: what is left is for shadows and other domains (as in 2.0).
    dom.max_pages.store(order.pages as u32, Ordering::Relaxed);
    // What lies behind domain 0's region is whatever the firmware left: it is trusted with that. The region is clean,
    // and so is all that others get.
    if dom.id == DomId::DOM0 {
        for pfn in 0..layout.region_pages() {
            host.hw.clear_frame(frame(Pfn(pfn)));
        }
    }
    let flags = match layout.kind {
        DomainKind::Initial => StartInfoFlags::PRIVILEGED | StartInfoFlags::INITDOMAIN,
        DomainKind::Ordinary => StartInfoFlags::empty(),
    };
    // A domain that the loader brings has no controller yet: whoever becomes it binds a port.
    let start = StartOfDay {
        shared_info: dom.shared_info,
        flags,
        controller: Port(0),
        command_line: order.command_line.as_bytes(),
    };
    let mut memory = MachineFrames::new(&host.hw, frame);
    let top =
        populate(&mut memory, FrameContents::Zero, layout, image, order.module, &start).map_err(Refusal::Build)?;
    for pfn in 0..order.pages {
        host.m2p.set(&host.hw, frame(Pfn(pfn)), Pfn(pfn));
    }
    install_tables(host, dom, top).map_err(Refusal::Tables)?;
    if let Some(limit) = order.shadow {
        limit_shadows(host, dom, limit)?;
    }
    proxenos_core::assist::follow_image(dom, image.page_tables());
    Ok(())
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

/// Takes a domain's frames, in the order of its pfns.
///
/// # Panics
/// When there are not as many: the caller has looked.
fn take_frames(host: &Host<Hw>, owner: &Domain, pages: u64, zone: Zone) -> Vec<Mfn> {
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

/// Validates the page tables that the builder wrote, pins them and makes them the domain's base.
fn install_tables(host: &Host<Hw>, dom: &Domain, top: Mfn) -> Result<(), PagingError> {
    let pager = Pager::new(host, dom);
    let mut state: proxenos_core::sync::MutexGuard<'_, PagingState> = dom.paging.lock();
    match dom.arch {
        Arch::X86_32 => {
            pager.pin::<TwoLevel>(&mut state, top, 2)?;
            pager.set_base::<TwoLevel>(&mut state, top)
        }
        Arch::X86_64 => {
            pager.pin::<FourLevel>(&mut state, top, 4)?;
            pager.set_base::<FourLevel>(&mut state, top)
        }
    }
}

/// Why there is no such domain.
#[derive(Debug)]
pub enum Refusal {
    Image(proxenos_image::ImageError),
    Build(proxenos_image::builder::BuildError),
    Memory { asked_mib: u64, free_mib: u64 },
    Tables(PagingError),
    Shadows,
    Place(SchedError),
    OtherScheduler(SchedulerId),
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
            Self::Place(SchedError::NoSuchCpu) => f.write_str("there is no CPU of that number"),
            Self::Place(error) => write!(f, "no scheduler takes it: {error:?}"),
            Self::OtherScheduler(scheduler) => {
                write!(f, "its options are another scheduler's than that which was chosen, {scheduler:?}")
            }
            Self::Tables(error) => write!(f, "its first page tables are not valid: {error:?}"),
        }
    }
}
