//! From a machine that is up to the first guest's first instruction: which domains the loader has brought, and building
//! them.
//!
//! The first module is domain 0's kernel. Of the others, those whose command line says so ([`crate::domain_options`])
//! are kernels of further, unprivileged domains, numbered from 1 in their order; the first that does not is domain 0's
//! initial RAM disk. All are built before any runs.
//!
//! A kernel that cannot be domain 0 is refused with a message that names the fault, and the machine stops: there is
//! nothing else that would look after it. Any other is refused likewise, and the machine goes on without it.

use super::build::{Order, Refusal, build};
use super::hw::Hw;
use super::{enter, host, sched, trace};
use crate::boot::info::Module;
use crate::cpu::percpu::{self, Cpu};
use crate::cpu::{ipi, smp};
use crate::domain_options::{DomainOptions, Reservation, Weight};
use crate::memory_shares::{self, Frames};
use crate::mm::layout::{self, PAGE_SIZE};
use crate::options::{Bytes, Provocation};
use crate::{boot, time};
use alloc::vec::Vec;
use core::num::NonZeroU32;
use proxenos_core::addr::{DomId, FIRST_RAM_FRAME, Mfn};
use proxenos_core::domain::{Domain, Privileges};
use proxenos_core::frame_alloc::Zone;
use proxenos_core::host::Host;
use proxenos_core::life::zone;
use proxenos_core::sched::atropos::AtroposParams;
use proxenos_core::sched::bvt::BvtParams;
use proxenos_core::sched::{Affinity, CpuId, Home, Params};
use proxenos_image::Image;

/// What a weight of 1 comes to as an advance of BVT's, the inverse of a weight: so the usual weight, 100, is the usual
/// advance, 10.
const ADVANCE_OF_WEIGHT_1: u32 = 1000;

/// The machine is up: builds the domains and runs them.
pub fn start() -> ! {
    super::faults::init();
    super::syscall::init();
    let host = host::init();
    sched::init(u16::try_from(smp::count()).expect("no more CPUs than areas"));
    sched::set_interrupt(|cpu| ipi::kick(percpu::CpuId(cpu.0.into())));
    let modules = &boot::info().modules;
    let Some((kernel, others)) = modules.split_first() else {
        panic!("no domain 0: the loader gave no module; the first one must be its kernel");
    };
    let mut further = Vec::new();
    let mut initrd = None;
    for module in others {
        let line = boot::info().text(module.command_line);
        match DomainOptions::parse(line, &mut |complaint| log::warn!("domain {}: {complaint}", further.len() + 1)) {
            Some(options) => further.push((module, options)),
            None if initrd.is_none() => initrd = Some(module),
            None => log::warn!("module \"{line}\" is nobody's: it is no domain, and there is an initial RAM disk"),
        }
    }
    let reserve = memory_shares::reserve(free(host, Zone::Any));
    if let Err(refusal) = start_domain0(host, kernel, initrd, reserve, &further) {
        panic!("domain 0 is refused: {refusal}");
    }
    for (id, (module, options)) in (1..).map(DomId).zip(&further) {
        if let Err(refusal) = start_further(host, id, module, options, reserve) {
            log::error!("domain {} is refused: {refusal}", id.0);
        }
    }
    for module in modules {
        release(host, module);
    }
    log::info!(
        "boot: {} TSC cycles from our first instruction to the guest's",
        time::tsc::read().0 - boot::first_tsc()
    );
    smp::release(|| enter(Cpu::current(), host::get().expect("the machine is known")));
    enter(Cpu::current(), host)
}

/// Domain 0, which may do everything, and gets all memory that can be spared if the options do not say how much.
fn start_domain0(
    host: &'static Host<Hw>,
    kernel: &Module,
    initrd: Option<&Module>,
    reserve: Frames,
    further: &[(&Module, DomainOptions<'_>)],
) -> Result<(), Refusal> {
    let image = Image::parse(contents(kernel)).map_err(Refusal::Image)?;
    trace::init(image.arch());
    let order = Order {
        id: DomId::DOM0,
        privileges: Privileges::CONTROL | Privileges::DEVICES,
        pages: memory_of_domain0(host, zone(image.arch()), reserve, further)?,
        module: initrd.map_or(&[], contents),
        command_line: command_line(kernel),
        shadow: boot::options().dom0_shadow,
    };
    let params = Params::of_new_domain(sched::scheduler(), DomId::DOM0);
    let home = sched::reserve(params, Affinity::Any).map_err(Refusal::Place)?;
    let running = build(host, &image, &order)?;
    if boot::options().provoke == Some(Provocation::LostReference) {
        lose_reference(host, &running.dom);
    }
    sched::place(home, running);
    Ok(())
}

/// A further domain, as its module's command line says.
fn start_further(
    host: &'static Host<Hw>,
    id: DomId,
    module: &Module,
    options: &DomainOptions<'_>,
    reserve: Frames,
) -> Result<(), Refusal> {
    let image = Image::parse(contents(module)).map_err(Refusal::Image)?;
    let pages = options.memory.0 / PAGE_SIZE;
    let needs = needs(options);
    let free = memory_shares::for_further(free(host, zone(image.arch())), reserve);
    if needs > free {
        let free_mib = free.0.saturating_sub(needs.0 - pages) >> 8;
        return Err(Refusal::Memory { asked_mib: options.memory.0 >> 20, free_mib });
    }
    let home = place(id, options)?;
    let order = Order {
        id,
        privileges: host.new_privileges,
        pages,
        module: &[],
        command_line: options.command_line,
        shadow: options.shadow,
    };
    match build(host, &image, &order) {
        Ok(running) => sched::place(home, running),
        Err(refusal) => {
            sched::release(home);
            return Err(refusal);
        }
    }
    Ok(())
}

/// A place in a run queue.
fn place(id: DomId, options: &DomainOptions<'_>) -> Result<Home, Refusal> {
    let usual = Params::of_new_domain(sched::scheduler(), id);
    let params = match (usual, options.weight, options.reserve) {
        (_, None, None) => usual,
        (Params::Bvt(params), Some(weight), None) => Params::Bvt(BvtParams { advance: advance(weight), ..params }),
        (Params::Atropos(params), None, Some(reserve)) => Params::Atropos(reserved(params, reserve)),
        _ => return Err(Refusal::OtherScheduler(sched::scheduler())),
    };
    let affinity = options.cpu.map_or(Affinity::Any, |cpu| Affinity::Pinned(CpuId(cpu)));
    sched::reserve(params, affinity).map_err(Refusal::Place)
}

fn advance(weight: Weight) -> NonZeroU32 {
    let rounded = (ADVANCE_OF_WEIGHT_1 + weight.0 / 2) / weight.0;
    NonZeroU32::new(rounded).unwrap_or(NonZeroU32::MIN)
}

fn reserved(params: AtroposParams, reserve: Reservation) -> AtroposParams {
    let period = sched::span(reserve.period);
    AtroposParams { slice: sched::span(reserve.slice), period, latency: period, ..params }
}

/// What is free.
fn free(host: &Host<Hw>, zone: Zone) -> Frames {
    Frames(host.alloc.lock().free_frames(zone))
}

/// What a further domain takes.
fn needs(options: &DomainOptions<'_>) -> Frames {
    let frames = |bytes: Bytes| Frames(bytes.0 / PAGE_SIZE);
    memory_shares::needs(frames(options.memory), options.shadow.map(frames))
}

/// How many frames domain 0 gets: what the option says, or all that can be spared.
fn memory_of_domain0(
    host: &Host<Hw>,
    zone: Zone,
    reserve: Frames,
    further: &[(&Module, DomainOptions<'_>)],
) -> Result<u64, Refusal> {
    let asked = boot::options().dom0_mem;
    let wanted = further.iter().fold(Frames(0), |sum, (_, options)| sum.and(needs(options)));
    let pages = asked.map(|bytes| Frames(bytes.0 / PAGE_SIZE));
    memory_shares::of_domain0(free(host, zone), reserve, pages, wanted)
        .map(|pages| pages.0)
        .map_err(|free| Refusal::Memory { asked_mib: asked.map_or(0, |bytes| bytes.0 >> 20), free_mib: free.0 >> 8 })
}

/// Takes a reference to a domain's first table and forgets it, for tests of the audit.
fn lose_reference(host: &Host<Hw>, dom: &Domain) {
    log::warn!("a fault is provoked: {:?}", Provocation::LostReference);
    let table = dom.paging.lock().base.expect("the domain has a page-table base");
    host.frames.get(table, dom.id).map(drop).expect("its own table");
}

/// What a module holds.
fn contents(module: &Module) -> &'static [u8] {
    let bytes = (module.range.end.0 - module.range.start.0) as usize;
    if bytes == 0 {
        return &[];
    }
    // SAFETY: RAM that the loader put the module in and that the early allocator leaves alone; nobody writes to it
    // before `release` gives it away, when no reference is left.
    unsafe { core::slice::from_raw_parts(layout::direct(module.range.start).as_ptr(), bytes) }
}

/// Domain 0's command line: its module's without the first word, which is the file's name; or what follows `--` in our
/// own.
fn command_line(kernel: &Module) -> &'static str {
    let own = boot::info().text(kernel.command_line).trim_start();
    let own = own.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
    if own.is_empty() { boot::guest_command_line().unwrap_or("") } else { own }
}

/// Frees a module's frames, once nothing of it is needed. Those of the first MiB stay reserved.
fn release(host: &Host<Hw>, module: &Module) {
    let first = module.range.start.0.div_ceil(PAGE_SIZE).max(FIRST_RAM_FRAME.0);
    let end = module.range.end.0 / PAGE_SIZE;
    if first < end {
        host.alloc.lock().release_range(Mfn(first), end - first);
    }
}
