//! Birth and end of a domain: what it has from the first moment on, and how all of that comes back.
//!
//! A domain is *conceived* with the page it shares with the hypervisor, the first page of its GDT and, for x86_32, the
//! tables that its shadows hang in. Everything else is given to it. It is in `host.domains` from then on.
//!
//! It ends in these steps ([`end`]), each of which may make way: it must not run any more; it leaves its run queue, and
//! its virtual CPU is kept here; its devices stop reading and writing memory; its event channels are closed; its memory
//! goes ([`Teardown`]); then the two pages. What another domain still maps stays the dead domain's, and so the dead
//! domain stays in the list, under its number, until that is unmapped; then it is [*reaped*](reap), when domains are
//! next asked about or made. So no number means two domains to anybody.
//!
//! Lock: what there is left of an ending domain has its own, for a step at a time; those of ports, paging, grants and
//! the allocator come behind it.

use crate::addr::{DomId, MachineAddr};
use crate::domain::{Arch, Domain, Privileges};
use crate::event;
use crate::frame_alloc::Zone;
use crate::host::{Hardware, Host};
use crate::machine::DescriptorPage;
use crate::paging::Pager;
use crate::physdev;
use crate::preempt::{Poll, Stop, cost};
use crate::segments::Segments;
use crate::sync::MutexGuard;
use crate::teardown::Teardown;
use crate::vcpu::Vcpu;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use proxenos_abi::Port;
use proxenos_abi::arch::FIRST_RESERVED_GDT_ENTRY;
use proxenos_abi::shared_info::SharedInfo;

/// How far a domain's end has come.
pub enum Ending {
    /// It has not begun.
    NotYet,
    /// It has left its run queue, and goes.
    Going {
        /// What was its virtual CPU.
        vcpu: Box<Vcpu>,
        /// The first of its ports that may not be closed yet.
        open: Option<Port>,
        /// How far its memory is gone.
        teardown: Teardown,
    },
    /// It has nothing of its own any more. Others may have.
    Over,
}

impl Ending {
    /// The descriptor tables of a domain that is going.
    #[must_use]
    pub fn segments(&self) -> Option<&Segments> {
        match self {
            Self::Going { vcpu, .. } => Some(&vcpu.segments),
            Self::NotYet | Self::Over => None,
        }
    }
}

/// Makes a domain without memory, and adds it to the machine's. Its number is nobody's.
///
/// `None`: there is no memory for it, and nothing has been done.
pub fn conceive<H: Hardware>(host: &Host<H>, id: DomId, arch: Arch, privileges: Privileges) -> Option<Arc<Domain>> {
    let mut alloc = host.alloc.lock();
    let shared_info = alloc.alloc_shared_for_guest(id, &host.hw)?;
    let Some(gdt_page) = alloc.alloc_for_guest(0, &host.hw) else {
        alloc.free(shared_info, 0);
        return None;
    };
    drop(alloc);
    let dom = Arc::new(Domain::new(id, arch, privileges, shared_info, gdt_page));
    let pager = Pager::new(host, &dom);
    if arch == Arch::X86_32 && pager.create_upper_tables(&mut pager.lock()).is_err() {
        host.free_hypervisor(gdt_page, 0);
        host.free_hypervisor(shared_info, 0);
        return None;
    }
    for (index, descriptor) in (0..).zip(host.hw.reserved_descriptors(arch)) {
        let slot = u64::from(FIRST_RESERVED_GDT_ENTRY) + index;
        host.hw.store64(MachineAddr(gdt_page.addr().0 + 8 * slot), descriptor);
    }
    host.hw.map_descriptors(id, DescriptorPage::Gdt(0), Some(gdt_page));
    let field = |offset: usize| MachineAddr(shared_info.addr().0 + offset as u64);
    host.hw.store8(field(SharedInfo::EVTCHN_UPCALL_MASK), 1);
    let m2p = if arch == Arch::X86_32 { host.m2p.narrow() } else { host.m2p.wide() };
    host.hw.store64(field(SharedInfo::MFN_TO_PFN_START), m2p.map_or(0, |first| first.0));
    host.domains.insert(dom.clone());
    Some(dom)
}

/// Takes a domain's memory for it, one frame after the other, until it has `pages`. They are its pfns in this order, as
/// far as the machine-to-physical table is concerned.
///
/// # Errors
/// [`Hungry`]: there was no time, or there is no memory left. What it has by then it keeps.
pub fn feed<H: Hardware>(host: &Host<H>, dom: &Domain, pages: u32, poll: &mut Poll) -> Result<(), Hungry> {
    let zone = zone(dom.arch);
    loop {
        let has = dom.total_pages.load(Ordering::Relaxed);
        if has >= pages {
            return Ok(());
        }
        if poll.is_due(&host.hw) {
            return Err(Hungry::NotYet);
        }
        let Some(_kept) = keep_alive(dom) else { return Err(Hungry::NoMemory) };
        let mfn = host.alloc.lock().alloc_memory(0, zone, &host.hw).ok_or(Hungry::NoMemory)?;
        dom.total_pages.fetch_add(1, Ordering::Relaxed);
        host.hand_over(mfn, dom);
        host.m2p.set(&host.hw, mfn, proxenos_abi::Pfn(has.into()));
        poll.step(cost::FRAME);
    }
}

/// Keeps the end of a domain from beginning as long as the guard is there; `None` if it has begun. Whoever gives a
/// domain memory has one: what came when its frames have been looked through would never come back.
///
/// Not for the caller's own domain, which does not end while it runs: who ends it waits for it under this lock.
pub(crate) fn keep_alive(dom: &Domain) -> Option<MutexGuard<'_, Ending>> {
    Some(dom.ending.lock()).filter(|ending| matches!(**ending, Ending::NotYet))
}

/// Why a domain has not got all it was to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hungry {
    /// There is no memory left.
    NoMemory,
    /// There was no time.
    NotYet,
}

/// Where the frames of a domain of this architecture must lie.
#[must_use]
pub const fn zone(arch: Arch) -> Zone {
    match arch {
        Arch::X86_32 => Zone::Below4G,
        Arch::X86_64 => Zone::Any,
    }
}

/// Ends a domain, or goes on with it; it may have ended before.
///
/// # Errors
/// [`Stop::Preempted`] when there was no time for all.
pub fn end<H: Hardware>(host: &Host<H>, dom: &Domain, poll: &mut Poll) -> Result<(), Stop> {
    // From now on it gets nothing more.
    dom.condemn();
    let mut ending = dom.ending.lock();
    if let Ending::NotYet = *ending {
        let vcpu = host.hw.dismiss(dom)?;
        physdev::retire(&host.hw, dom);
        *ending = Ending::Going { vcpu, open: Some(Port(1)), teardown: Teardown::Begun };
    }
    if let Ending::Going { vcpu, open, teardown } = &mut *ending {
        if let Some(port) = *open {
            // Asked before each is closed: the first always is.
            let is_due = || {
                let is_due = poll.is_due(&host.hw);
                poll.step(cost::ENTRY);
                is_due
            };
            *open = event::close_some(dom, &host.domains, port, is_due);
            if open.is_some() {
                return Err(Stop::Preempted);
            }
        }
        teardown.go_on(host, dom, &mut vcpu.segments, poll);
        if *teardown != Teardown::Done {
            return Err(Stop::Preempted);
        }
        give_up_pages(host, dom);
        *ending = Ending::Over;
    }
    Ok(())
}

/// Ends a domain that never had a place in a run queue, at once.
pub fn discard<H: Hardware>(host: &Host<H>, dom: &Domain) {
    dom.condemn();
    let (mut teardown, mut segments) = (Teardown::Begun, Segments::new());
    while teardown != Teardown::Done {
        teardown.go_on(host, dom, &mut segments, &mut Poll::NEVER.clone());
    }
    give_up_pages(host, dom);
    *dom.ending.lock() = Ending::Over;
    reap(host);
}

/// The pages that it had from the beginning. No CPU uses them any more.
fn give_up_pages<H: Hardware>(host: &Host<H>, dom: &Domain) {
    host.hw.map_descriptors(dom.id, DescriptorPage::Gdt(0), None);
    host.free_hypervisor(dom.gdt_page, 0);
    host.give_up_shared(dom.shared_info, host.frames.info(dom.shared_info).expect("its own page"));
    dom.over.store(true, Ordering::Release);
}

/// Removes the domains that are over and of which nobody has anything any more.
pub fn reap<H>(host: &Host<H>) {
    for dom in host.domains.dying().iter().filter(|dom| is_gone(dom)) {
        host.domains.remove(dom.id);
    }
}

/// Whether nothing is left of a domain but its number.
fn is_gone(dom: &Domain) -> bool {
    dom.over.load(Ordering::Acquire)
        && dom.total_pages.load(Ordering::Acquire) == 0
        && dom.lent_pages.load(Ordering::Acquire) == 0
}
