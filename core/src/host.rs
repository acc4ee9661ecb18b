//! The machine as a whole: its frames, who has them, its domains, and the tables all of them share.
//!
//! One [`Host`] exists. Locks: the frame allocator's mutex and the list of domains' mutex, both innermost.

use crate::addr::{DomId, FRAMES_BELOW_4G, MachineAddr, Mfn, Pfn};
use crate::control::MachineControl;
use crate::domain::{Domain, Privileges, RunState};
use crate::event::EventDomains;
use crate::frame::{FrameInfo, FrameTable};
use crate::frame_alloc::FrameAllocator;
use crate::machine::{Clock, Console, CpuTables, GuestMemory, MachineMemory, Preemption, Tlb};
use crate::others::VirtualCpus;
use crate::paging::Target;
use crate::paging::format::HYPERVISOR_L4_SLOTS;
use crate::paging::types::is_low_io;
use crate::pci::PciConfig;
use crate::sync::Mutex;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

/// All that `core` asks of the machine.
pub trait Hardware:
    MachineMemory + GuestMemory + Tlb + CpuTables + Console + Clock + Preemption + PciConfig + VirtualCpus + MachineControl
{
}
impl<T> Hardware for T where
    T: MachineMemory
        + GuestMemory
        + Tlb
        + CpuTables
        + Console
        + Clock
        + Preemption
        + PciConfig
        + VirtualCpus
        + MachineControl
{
}

/// The machine-to-physical tables: which pfn each frame is to its owner. Guests of both widths read their own table;
/// both say the same.
#[derive(Clone, Copy, Debug)]
pub struct MachineToPhys {
    /// 2^20 entries of 32 bits, 4 MiB, aligned to 2 MiB; what x86_32 guests see at 0xFC000000.
    narrow: Option<Mfn>,
    /// An entry of 64 bits for each frame of the frame table; what x86_64 guests see at 0xFFFF810000000000.
    wide: Option<Mfn>,
}

/// What an entry says of a frame that has no pfn (Xen 2.0's initial pattern).
pub const NO_PFN_NARROW: u32 = 0x5555_5555;
/// The same, in the table of 64-bit entries.
pub const NO_PFN_WIDE: u64 = 0x5555_5555_5555_5555;
/// The same, for [`MachineToPhys::set`].
const NO_PFN: Pfn = Pfn(NO_PFN_WIDE);

impl MachineToPhys {
    /// The tables, from their first frames. Each must be as large as said above, and filled with its pattern.
    #[must_use]
    pub const fn new(narrow: Option<Mfn>, wide: Option<Mfn>) -> Self {
        Self { narrow, wide }
    }

    /// First frame of the table of 32-bit entries.
    #[must_use]
    pub const fn narrow(&self) -> Option<Mfn> {
        self.narrow
    }

    /// First frame of the table of 64-bit entries.
    #[must_use]
    pub const fn wide(&self) -> Option<Mfn> {
        self.wide
    }

    /// The entry of a frame of the frame table; none if there is no table for it, or it says that there is no pfn.
    pub fn get(&self, memory: &impl MachineMemory, frame: Mfn) -> Option<Pfn> {
        if let Some(table) = self.wide {
            let pfn = memory.load64(MachineAddr(table.addr().0 + 8 * frame.0));
            return (pfn != NO_PFN_WIDE).then_some(Pfn(pfn));
        }
        let table = self.narrow.filter(|_| frame.0 < FRAMES_BELOW_4G)?;
        let pfn = memory.load32(MachineAddr(table.addr().0 + 4 * frame.0));
        (pfn != NO_PFN_NARROW).then_some(Pfn(pfn.into()))
    }

    /// Makes the entry of a frame of the frame table say that it has no pfn.
    pub fn forget(&self, memory: &impl MachineMemory, frame: Mfn) {
        self.set(memory, frame, NO_PFN);
    }

    /// Sets the entry of a frame of the frame table.
    pub fn set(&self, memory: &impl MachineMemory, frame: Mfn, pfn: Pfn) {
        if let Some(table) = self.narrow.filter(|_| frame.0 < FRAMES_BELOW_4G) {
            memory.store32(MachineAddr(table.addr().0 + 4 * frame.0), pfn.0 as u32);
        }
        if let Some(table) = self.wide {
            memory.store64(MachineAddr(table.addr().0 + 8 * frame.0), pfn.0);
        }
    }
}

/// All domains.
pub struct Domains {
    all: Mutex<Vec<Arc<Domain>>>,
    /// The number that was found free last.
    last_id: AtomicU32,
    /// Numbers below this are given again, before one above.
    top_id: AtomicU32,
}

/// So many numbers are in use, one after the other, as long as there are not more domains (as in Xen 2.0).
const LOW_IDS: u32 = 101;

impl Default for Domains {
    fn default() -> Self {
        Self::new()
    }
}

impl Domains {
    /// No domains.
    #[must_use]
    pub const fn new() -> Self {
        Self { all: Mutex::new(Vec::new()), last_id: AtomicU32::new(0), top_id: AtomicU32::new(LOW_IDS) }
    }

    /// Adds one.
    pub fn insert(&self, domain: Arc<Domain>) {
        self.all.lock().push(domain);
    }

    /// Removes one.
    pub(crate) fn remove(&self, id: DomId) {
        let mut all = self.all.lock();
        let gone = all.iter().position(|domain| domain.id == id).map(|index| all.remove(index));
        drop(all);
        // It may be the last that knows it: its memory is given back when nobody waits.
        drop(gone);
    }

    /// The one with the lowest number that is not below this.
    pub fn first_from(&self, id: DomId) -> Option<Arc<Domain>> {
        self.all.lock().iter().filter(|domain| domain.id >= id).min_by_key(|domain| domain.id).cloned()
    }

    /// Those that are to end, or have.
    pub(crate) fn dying(&self) -> Vec<Arc<Domain>> {
        let dying = |domain: &&Arc<Domain>| domain.run_state().contains(RunState::DYING);
        self.all.lock().iter().filter(dying).cloned().collect()
    }

    /// A number that no domain has: the next one after the last that was given, of as few as there can be.
    pub(crate) fn free_id(&self) -> Option<DomId> {
        let all = self.all.lock();
        let is_free = |id: &u16| !all.iter().any(|domain| domain.id.0 == *id);
        let (last, top) = (self.last_id.load(Ordering::Relaxed) as u16, self.top_id.load(Ordering::Relaxed) as u16);
        let found = (last + 1..top).chain(1..=last).find(is_free);
        let found = found.or_else(|| (top..DomId::FIRST_RESERVED.0).find(is_free))?;
        self.last_id.store(found.into(), Ordering::Relaxed);
        self.top_id.fetch_max(u32::from(found) + 1, Ordering::Relaxed);
        Some(DomId(found))
    }

    /// How many there are.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.lock().len()
    }

    /// All of them, as they are now.
    pub fn all(&self) -> Vec<Arc<Domain>> {
        self.all.lock().clone()
    }
}

impl EventDomains for Domains {
    type Domain = Domain;
    type Ref = Arc<Domain>;

    fn find(&self, id: DomId) -> Option<Arc<Domain>> {
        self.all.lock().iter().find(|domain| domain.id == id).cloned()
    }
}

/// Whether frames of the hypervisor's may have been page tables that some CPU walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Walked {
    /// No CPU's table ever led to them.
    Never,
    /// One may have.
    Perhaps,
}

/// Whether I/O memory is a domain's to map, as far as its devices are concerned.
pub(crate) fn may_reach(dom: &Domain, mfn: Mfn) -> bool {
    dom.privileges.contains(Privileges::DEVICES) || dom.granted.has_memory(mfn)
}

/// The machine.
pub struct Host<H> {
    /// Its hardware.
    pub hw: H,
    /// Its RAM, frame by frame.
    pub frames: FrameTable,
    /// Frames that a page-table entry can name on this CPU: 2^(physical address width - 12).
    pub machine_frames: u64,
    /// Free frames.
    pub alloc: Mutex<FrameAllocator>,
    /// Which pfn each frame is.
    pub m2p: MachineToPhys,
    /// The hypervisor's slots of every L4 table.
    pub hypervisor_slots: [u64; HYPERVISOR_L4_SLOTS],
    /// Frames of I/O memory that no domain may map, whatever its rights: the interrupt controllers.
    pub forbidden_io: Vec<Mfn>,
    /// The domains.
    pub domains: Domains,
    /// What domains may do that the control interface makes.
    pub new_privileges: Privileges,
    /// How many of them are watched (`paging::log_dirty`).
    pub watched: AtomicU32,
}

impl<H: Hardware> Host<H> {
    /// Whether a frame is RAM that references are counted for; all else is I/O memory.
    #[inline]
    pub fn is_ram(&self, mfn: Mfn) -> bool {
        !is_low_io(mfn) && self.frames.is_ram(mfn)
    }

    /// Whether some domain's writes are recorded, so that those of others to its frames matter.
    #[inline]
    pub fn is_any_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed) != 0
    }

    /// Whether a domain may map a frame of I/O memory: DOMID_IO leaves it at its own right, another foreign domain
    /// lends it that domain's.
    pub fn may_map_io(&self, dom: &Domain, mfn: Mfn, target: Target) -> bool {
        let has_right = match target {
            Target::Own | Target::Io => may_reach(dom, mfn),
            Target::Hypervisor => false,
            Target::Domain(id) => self.domains.find(id).is_some_and(|other| may_reach(&other, mfn)),
        };
        has_right && !self.forbidden_io.contains(&mfn)
    }

    /// Makes a frame that the allocator gave the property of a domain: the one way in which frames come to domains.
    ///
    /// What a domain had is scrubbed when it is freed, but RAM that nobody had yet holds what firmware, the loader, or
    /// a system before this one left there. That is domain 0's to see, which is trusted with the machine, and nobody
    /// else's (I3): for all others the frame is cleared, before anybody can refer to it. Of a frame that is clean
    /// already this is one clearing too many; a note of which are clean could be wrong.
    pub fn hand_over(&self, mfn: Mfn, owner: &Domain) {
        owner.expect_frame(mfn);
        if owner.id != DomId::DOM0 {
            self.hw.clear_frame(mfn);
        }
        self.frames.info(mfn).expect("the allocator knows frames of the table only").assign(owner.id);
    }

    /// Gives a reference back, and the frame if it was the last.
    #[inline]
    pub fn put_frame(&self, mfn: Mfn, info: &FrameInfo) {
        if info.put() {
            self.free_frame(mfn, info);
        }
    }

    /// A domain's own reference to a frame is given up; the frame stays its until nothing else refers to it.
    pub fn give_up_frame(&self, mfn: Mfn, info: &FrameInfo) {
        if info.put_allocation() == Some(true) {
            self.free_frame(mfn, info);
        }
    }

    /// The hypervisor and a domain share a frame no more (`FrameAllocator::alloc_shared`). It stays the domain's until
    /// nothing else refers to it; nobody but those who do can use it meanwhile.
    pub fn give_up_shared(&self, mfn: Mfn, info: &FrameInfo) {
        // It is counted until it is free, since the owner's number must not be another's before that.
        let owner = self.domains.find(info.refs().owner());
        if let Some(owner) = &owner {
            owner.lent_pages.fetch_add(1, Ordering::AcqRel);
        }
        match info.put_shared() {
            Some(true) => self.free_frame(mfn, info),
            Some(false) => {}
            None => {
                if let Some(owner) = owner {
                    owner.lent_pages.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
    }

    /// A frame lost its last reference: scrubs it, so that nobody sees what was there, forgets which pfn it was, and
    /// frees it.
    #[cold]
    pub(crate) fn free_frame(&self, mfn: Mfn, info: &FrameInfo) {
        let refs = info.refs();
        if let Some(owner) = self.domains.find(refs.owner()) {
            let count = if refs.is_shared() { &owner.lent_pages } else { &owner.total_pages };
            count.fetch_sub(1, Ordering::Relaxed);
        }
        if info.take_uncached() {
            self.hw.flush_frame(mfn);
        }
        self.hw.clear_frame(mfn);
        self.m2p.forget(&self.hw, mfn);
        info.set_stamp(self.hw.stamp());
        self.alloc.lock().free(mfn, 0);
    }

    /// Frees 2^`order` frames of the hypervisor's own.
    pub fn free_hypervisor(&self, first: Mfn, order: u32) {
        for mfn in first.0..first.0 + (1 << order) {
            self.hw.clear_frame(Mfn(mfn));
        }
        self.free_zeroed(first, order, Walked::Perhaps);
    }

    /// Frees 2^`order` frames of the hypervisor's own in which its caller has left nothing but zeroes. No guest may
    /// ever have had a mapping of them. Frames that no CPU ever walked to either need no flush before they are used
    /// again.
    pub(crate) fn free_zeroed(&self, first: Mfn, order: u32, walked: Walked) {
        if walked == Walked::Perhaps {
            let stamp = self.hw.stamp();
            for mfn in first.0..first.0 + (1 << order) {
                if let Some(info) = self.frames.info(Mfn(mfn)) {
                    info.set_stamp(stamp);
                }
            }
        }
        self.alloc.lock().free_zeroed(first, order);
    }
}
