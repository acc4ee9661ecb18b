//! A simulated host with domains on it.

use super::SimHardware;
use super::others::PATTERN_DESCRIPTOR;
use crate::addr::{DomId, FIRST_RAM_FRAME, MachineAddr, Mfn, Pfn};
use crate::descriptor;
use crate::domain::{Arch, Domain, Privileges};
use crate::frame::{FrameInfo, FrameTable};
use crate::frame_alloc::{FrameAllocator, Zone};
use crate::host::{Domains, Host, MachineToPhys};
use crate::hypercall::{Args, Caller};
use crate::machine::{CpuTables, DescriptorPage};
use crate::paging::Pager;
use crate::paging::format::HYPERVISOR_L4_SLOTS;
use crate::preempt::{Answer, Place};
use crate::sync::Mutex;
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use proxenos_abi::Hypercall;

/// What the hypervisor's slots of an L4 table hold here: not present, and recognisable, with the slot's number below
/// it.
pub const PATTERN_SLOT: u64 = 0x4859_5045_5256_0000;

/// Records that no machine uses now, by their number.
static RECORDS: Mutex<Vec<&'static [FrameInfo]>> = Mutex::new(Vec::new());

/// Records for a machine of so many frames, which [`give_back`] takes.
fn records(frames: usize) -> &'static [FrameInfo] {
    let mut unused = RECORDS.lock();
    let fitting = unused.iter().position(|records| records.len() == frames);
    let Some(records) = fitting.map(|at| unused.swap_remove(at)) else {
        return (0..frames).map(|_| FrameInfo::reserved()).collect::<Vec<_>>().leak();
    };
    drop(unused);
    records.iter().for_each(FrameInfo::renew);
    records
}

/// A machine is no more.
pub(super) fn give_back(records: &'static [FrameInfo]) {
    if !records.is_empty() {
        RECORDS.lock().push(records);
    }
}

/// A host with this much RAM (in frames, the first 256 of which are the PC's), room for a number of domains, and the
/// machine-to-physical table of 64-bit entries.
#[must_use]
pub fn host(frames: usize, domains: usize) -> Arc<Host<SimHardware>> {
    host_with(frames, domains, None)
}

/// As [`host`], with the machine-to-physical table of 32-bit entries in the 1024 frames from `narrow` on.
///
/// # Panics
/// If `narrow` is not aligned to 512 frames, or the table does not fit.
#[must_use]
pub fn host_with(frames: usize, domains: usize, narrow: Option<Mfn>) -> Arc<Host<SimHardware>> {
    let records = records(frames);
    let table = FrameTable::new(records);
    let mut hw = SimHardware::new(frames, domains);
    hw.records = records;
    let mut alloc = FrameAllocator::new(table);
    let first = FIRST_RAM_FRAME.0;
    alloc.adopt_range(Mfn(first), frames as u64 - first);
    match narrow {
        Some(narrow) => {
            assert!(narrow.0.is_multiple_of(512) && narrow.0 >= first && narrow.0 + 1024 <= frames as u64);
            alloc.share_range(narrow, 1024);
            alloc.release_range(Mfn(first), narrow.0 - first);
            alloc.release_range(Mfn(narrow.0 + 1024), frames as u64 - narrow.0 - 1024);
        }
        None => alloc.release_range(Mfn(first), frames as u64 - first),
    }
    let wide_order = (frames as u64).div_ceil(512).next_power_of_two().ilog2();
    let wide = alloc.alloc_hypervisor(wide_order, Zone::Any, &hw).expect("frames for the machine-to-physical table");
    let hypervisor_slots: [u64; HYPERVISOR_L4_SLOTS] = core::array::from_fn(|slot| PATTERN_SLOT | (slot as u64) << 1);
    let host = Arc::new(Host {
        hw,
        frames: table,
        machine_frames: 1 << 24,
        alloc: Mutex::new(alloc),
        m2p: MachineToPhys::new(narrow, Some(wide)),
        hypervisor_slots,
        forbidden_io: alloc::vec![Mfn(0xfee00)],
        domains: Domains::new(),
        new_privileges: Privileges::empty(),
        watched: AtomicU32::new(0),
    });
    *host.hw.host.lock() = Arc::downgrade(&host);
    host
}

/// A domain with its virtual CPU and its CPU.
pub struct SimDomain {
    /// The machine.
    pub host: Arc<Host<SimHardware>>,
    /// The domain.
    pub dom: Arc<Domain>,
    /// Its virtual CPU.
    pub vcpu: Vcpu,
    /// Its memory, by pfn.
    pub frames: Vec<Mfn>,
    /// Which CPU it runs on.
    cpu: usize,
}

/// Makes a domain with this much memory and no page tables, and gives it the CPU of its number.
///
/// # Panics
/// When memory runs out.
#[must_use]
pub fn domain(
    host: &Arc<Host<SimHardware>>,
    id: DomId,
    arch: Arch,
    privileges: Privileges,
    frames: usize,
) -> SimDomain {
    use crate::machine::MachineMemory;
    let mut alloc = host.alloc.lock();
    let shared_info = alloc.alloc_shared(id, &host.hw).expect("memory");
    let gdt_page = alloc.alloc_hypervisor(0, Zone::Any, &host.hw).expect("memory");
    let take = || alloc.alloc(0, Zone::Below4G, &host.hw).expect("memory");
    let memory: Vec<Mfn> = core::iter::repeat_with(take).take(frames).collect();
    drop(alloc);
    for index in descriptor::RESERVED {
        let at = MachineAddr(gdt_page.addr().0 + 8 * u64::from(index));
        host.hw.store64(at, PATTERN_DESCRIPTOR | u64::from(index));
    }
    host.hw.map_descriptors(id, DescriptorPage::Gdt(0), Some(gdt_page));
    let dom = Arc::new(Domain::new(id, arch, privileges, shared_info, gdt_page));
    memory.iter().for_each(|&frame| host.hand_over(frame, &dom));
    dom.total_pages.store(frames as u32, Relaxed);
    if arch == Arch::X86_32 {
        Pager::new(host, &dom).create_upper_tables(&mut dom.paging.lock()).expect("memory");
    }
    for (pfn, &frame) in (0..).zip(&memory) {
        host.m2p.set(&host.hw, frame, Pfn(pfn));
    }
    host.domains.insert(dom.clone());
    let sim = SimDomain { host: host.clone(), dom, vcpu: Vcpu::new(), frames: memory, cpu: id.0.into() };
    sim.run();
    host.hw.enter(id);
    sim
}

impl SimDomain {
    /// From now on this domain's CPU executes.
    pub fn run(&self) {
        self.host.hw.run_on(self.cpu);
    }

    /// Makes a hypercall, as the guest does, again and again until it is over; the result is what its register would
    /// hold.
    pub fn hypercall(&mut self, number: Hypercall, args: Args) -> u64 {
        loop {
            if let Answer::Done(result) = self.hypercall_once(number, args, Place::default()) {
                return result;
            }
        }
    }

    /// Makes a hypercall at some place, once.
    pub fn hypercall_once(&mut self, number: Hypercall, args: Args, place: Place) -> Answer {
        self.run();
        let mut caller = Caller { host: &*self.host, dom: &self.dom, vcpu: &mut self.vcpu, place };
        match caller.hypercall(number.raw().into(), &args) {
            Answer::Done(result) if self.dom.arch == Arch::X86_32 => Answer::Done(u64::from(result as u32)),
            answer => answer,
        }
    }
}
