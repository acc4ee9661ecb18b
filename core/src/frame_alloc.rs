//! The frame allocator: binary buddies in two zones, below and above 4 GiB.
//!
//! x86_32 guests can only name frames below 4 GiB, so those are kept for who needs them: a request that does not care
//! is served from above first. Free blocks are linked through the frame table itself, so the allocator needs no memory
//! of its own.
//!
//! Promises: a frame handed out is on no list, belongs to nobody else and is in nobody's TLB (invariant I5: the stamp
//! it was freed with is flushed before it leaves); a frame given back by a domain was scrubbed before (I3).
//!
//! Lock: the caller's (one mutex around the whole allocator, innermost in the lock order).

use crate::addr::{DomId, FIRST_RAM_FRAME, FRAMES_BELOW_4G, MachineAddr, Mfn, PAGE_SIZE};
use crate::frame::{Contents, FrameInfo, FrameTable};
use crate::machine::{MachineMemory, Tlb};

/// log2 of the largest block: 4 MiB.
pub const MAX_ORDER: u32 = 10;
const ORDERS: usize = MAX_ORDER as usize + 1;
const NIL: u32 = u32::MAX;

/// Where a frame may lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zone {
    /// Anywhere; above 4 GiB by preference.
    Any,
    /// Below 4 GiB, where an x86_32 guest can name it.
    Below4G,
}

/// One zone's free blocks, a list an order.
struct FreeLists {
    heads: [u32; ORDERS],
    free: u64,
}

impl FreeLists {
    const fn new() -> Self {
        Self { heads: [NIL; ORDERS], free: 0 }
    }
}

/// The allocator. It knows frames by the frame table and nothing else.
pub struct FrameAllocator {
    table: FrameTable,
    zones: [FreeLists; 2],
    /// Free frames that no guest's request may take.
    reserve: u64,
}

impl FrameAllocator {
    /// An allocator with nothing to give; fill it with [`release_range`](Self::release_range).
    #[must_use]
    pub const fn new(table: FrameTable) -> Self {
        Self { table, zones: [FreeLists::new(), FreeLists::new()], reserve: 0 }
    }

    /// Keeps this many free frames for the hypervisor itself: [`alloc_for_guest`](Self::alloc_for_guest) leaves them.
    pub const fn set_reserve(&mut self, frames: u64) {
        self.reserve = frames;
    }

    /// Free frames, in a zone (`Any`: all of them).
    #[must_use]
    pub fn free_frames(&self, zone: Zone) -> u64 {
        match zone {
            Zone::Any => self.zones[0].free + self.zones[1].free,
            Zone::Below4G => self.zones[0].free,
        }
    }

    /// Gives the allocator `count` frames from `first` on, which nobody uses. Those of the first MiB cannot be given,
    /// so that no domain ever owns one.
    pub fn release_range(&mut self, first: Mfn, count: u64) {
        assert!(first >= FIRST_RAM_FRAME, "the first MiB is the PC's");
        let (mut at, end) = (first.0, first.0 + count);
        while at < end {
            let fits = (end - at).ilog2();
            let order = at.trailing_zeros().min(fits).min(MAX_ORDER);
            self.give_back(Mfn(at), order, Contents::Unknown);
            at += 1 << order;
        }
    }

    /// Takes 2^`order` frames, aligned to their number, owned by nobody yet. Their contents are what the last user
    /// left: zeroes where that was a domain or the hypervisor; where nobody had them yet, what firmware and loader made
    /// of them.
    pub fn alloc(&mut self, order: u32, zone: Zone, tlb: &impl Tlb) -> Option<Mfn> {
        let zones: &[usize] = if zone == Zone::Any { &[1, 0] } else { &[0] };
        let (found, zone) = zones.iter().find_map(|&z| self.take(order, z).map(|mfn| (mfn, z)))?;
        self.zones[zone].free -= 1 << order;
        // The youngest stamp speaks for all: who has flushed since then has flushed since the others.
        let stamps = (found.0..found.0 + (1 << order)).map(|mfn| self.record(mfn).stamp());
        if let Some(youngest) = stamps.reduce(|a, b| if b.wrapping_sub(a) as i32 > 0 { b } else { a }) {
            tlb.flush_if_older(youngest);
        }
        Some(found)
    }

    /// Takes 2^`order` frames and makes them `owner`'s, as they are: for tests without a host, whose
    /// [`hand_over`](crate::host::Host::hand_over) it is to see to what is in them.
    #[cfg(test)]
    pub(crate) fn alloc_owned(&mut self, owner: DomId, order: u32, zone: Zone, tlb: &impl Tlb) -> Option<Mfn> {
        let first = self.alloc(order, zone, tlb)?;
        for mfn in first.0..first.0 + (1 << order) {
            self.record(mfn).assign(owner);
        }
        Some(first)
    }

    /// Declares `count` frames from `first` on the hypervisor's: at boot all of RAM, of which
    /// [`release_range`](Self::release_range) then frees what is not in use.
    pub fn adopt_range(&mut self, first: Mfn, count: u64) {
        for mfn in first.0..first.0 + count {
            self.record(mfn).assign(DomId::XEN);
        }
    }

    /// Lets privileged domains map `count` of the hypervisor's frames, read-only (DOMID_XEN).
    pub fn share_range(&mut self, first: Mfn, count: u64) {
        for mfn in first.0..first.0 + count {
            self.record(mfn).assign_shared(DomId::XEN);
        }
    }

    /// Takes one frame of the hypervisor's that `owner` may map too, cleared.
    pub fn alloc_shared<M: MachineMemory + Tlb>(&mut self, owner: DomId, machine: &M) -> Option<Mfn> {
        let mfn = self.alloc(0, Zone::Below4G, machine)?;
        machine.clear_frame(mfn);
        self.record(mfn.0).assign_shared(owner);
        Some(mfn)
    }

    /// As [`alloc_shared`](Self::alloc_shared), for what a guest's request costs: see
    /// [`alloc_for_guest`](Self::alloc_for_guest).
    pub fn alloc_shared_for_guest<M: MachineMemory + Tlb>(&mut self, owner: DomId, machine: &M) -> Option<Mfn> {
        if self.free_frames(Zone::Any) < self.reserve + 1 {
            return None;
        }
        self.alloc_shared(owner, machine)
    }

    /// Takes 2^`order` frames for the hypervisor itself, cleared; owned by DOMID_XEN, which no guest can name. What is
    /// known to be zeroes is not cleared again.
    pub fn alloc_hypervisor<M: MachineMemory + Tlb>(&mut self, order: u32, zone: Zone, machine: &M) -> Option<Mfn> {
        let first = self.alloc(order, zone, machine)?;
        for mfn in first.0..first.0 + (1 << order) {
            let record = self.record(mfn);
            if record.is_zeroed() {
                debug_assert!(is_zero(machine, Mfn(mfn)), "frame {mfn:#x} was given back as zeroes");
            } else {
                machine.clear_frame(Mfn(mfn));
            }
            record.assign(DomId::XEN);
        }
        Some(first)
    }

    /// As [`alloc_hypervisor`](Self::alloc_hypervisor), for what a guest's request costs: refused while the
    /// hypervisor's own reserve would be touched, so that no guest can use up what the hypervisor needs to go on.
    pub fn alloc_for_guest<M: MachineMemory + Tlb>(&mut self, order: u32, machine: &M) -> Option<Mfn> {
        if self.leaves_reserve(order) { self.alloc_hypervisor(order, Zone::Any, machine) } else { None }
    }

    /// As [`alloc`](Self::alloc), for memory that a guest asks for: it leaves the reserve, too.
    pub fn alloc_memory<M: MachineMemory + Tlb>(&mut self, order: u32, zone: Zone, machine: &M) -> Option<Mfn> {
        if self.leaves_reserve(order) { self.alloc(order, zone, machine) } else { None }
    }

    fn leaves_reserve(&self, order: u32) -> bool {
        self.free_frames(Zone::Any) >= self.reserve + (1 << order)
    }

    /// Takes back 2^`order` frames that nobody refers to any more.
    pub fn free(&mut self, first: Mfn, order: u32) {
        self.give_back(first, order, Contents::Unknown);
    }

    /// As [`free`](Self::free), for frames of the hypervisor's that hold nothing but zeroes. *No guest may have had a
    /// mapping of them*: one that is in a TLB until the frames are used again could still write to them.
    pub(crate) fn free_zeroed(&mut self, first: Mfn, order: u32) {
        self.give_back(first, order, Contents::Zeroes);
    }

    fn give_back(&mut self, first: Mfn, order: u32, contents: Contents) {
        for mfn in first.0..first.0 + (1 << order) {
            self.record(mfn).set_unowned(contents);
        }
        let (mut mfn, mut order) = (first.0, order);
        let zone = zone_of(mfn);
        self.zones[zone].free += 1 << order;
        while order < MAX_ORDER {
            let buddy = mfn ^ (1 << order);
            // A buddy in the other zone cannot be: 4 GiB is aligned to every order.
            match self.table.info(Mfn(buddy)) {
                Some(info) if info.free_order() == Some(order) => self.unlink(buddy, order, zone),
                _ => break,
            }
            mfn &= !(1 << order);
            order += 1;
        }
        self.link(mfn, order, zone);
    }

    /// The free blocks, each as its first frame and log2 of its size.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (Mfn, u32)> + '_ {
        use core::sync::atomic::Ordering::Relaxed;
        let link = |at: u32| (at != NIL).then_some(at);
        let list = move |order: u32, head: u32| {
            core::iter::successors(link(head), move |&at| link(self.record(at.into()).next.load(Relaxed)))
                .map(move |first| (Mfn(first.into()), order))
        };
        self.zones.iter().flat_map(move |zone| (0..).zip(zone.heads).flat_map(move |(order, head)| list(order, head)))
    }

    fn record(&self, mfn: u64) -> &'static FrameInfo {
        self.table.info(Mfn(mfn)).expect("the allocator holds only frames of the table")
    }

    /// Finds a block of the order in a zone, splitting a larger one if need be.
    fn take(&mut self, order: u32, zone: usize) -> Option<Mfn> {
        let mut have = (order..=MAX_ORDER).find(|&o| self.zones[zone].heads[o as usize] != NIL)?;
        let mfn = u64::from(self.zones[zone].heads[have as usize]);
        self.unlink(mfn, have, zone);
        while have > order {
            have -= 1;
            self.link(mfn + (1 << have), have, zone);
        }
        Some(Mfn(mfn))
    }

    fn link(&mut self, mfn: u64, order: u32, zone: usize) {
        use core::sync::atomic::Ordering::Relaxed;
        let head = self.zones[zone].heads[order as usize];
        let record = self.record(mfn);
        record.prev.store(NIL, Relaxed);
        record.next.store(head, Relaxed);
        if head != NIL {
            self.record(head.into()).prev.store(mfn as u32, Relaxed);
        }
        record.set_free(order);
        self.zones[zone].heads[order as usize] = mfn as u32;
    }

    fn unlink(&mut self, mfn: u64, order: u32, zone: usize) {
        use core::sync::atomic::Ordering::Relaxed;
        let record = self.record(mfn);
        let (next, prev) = (record.next.load(Relaxed), record.prev.load(Relaxed));
        match prev {
            NIL => self.zones[zone].heads[order as usize] = next,
            prev => self.record(prev.into()).next.store(next, Relaxed),
        }
        if next != NIL {
            self.record(next.into()).prev.store(prev, Relaxed);
        }
        record.clear_free();
    }
}

/// Whether a frame holds nothing but zeroes.
fn is_zero(memory: &impl MachineMemory, frame: Mfn) -> bool {
    (0..PAGE_SIZE as u64).step_by(64).all(|at| memory.bits_of_line(MachineAddr(frame.addr().0 + at)) == 0)
}

const fn zone_of(mfn: u64) -> usize {
    (mfn >= FRAMES_BELOW_4G) as usize
}
