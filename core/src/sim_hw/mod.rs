//! Simulated CPUs on a [`SimMachine`]: the whole of [`Hardware`](crate::host::Hardware), for tests.
//!
//! It has caches, as far as aliases go: what a guest writes past them is not seen through them until they are flushed.
//!
//! A CPU walks what it was told to walk, as the manual says: four levels, write protection on, accessed and dirty bits
//! set by atomic updates. It remembers every translation *and every table on the way* until told to forget, as a real
//! CPU may and an ordinary test never sees: so whoever forgets a flush is found out ([`SimHardware::stale`], invariant
//! I5). Each domain has a CPU of its own, and flushes but those that a stamp asks for reach only the CPU they are made
//! on.
//!
//! Guest memory is reached through those walks, so hypercalls see the guest's memory as they do in ring 0, shadow
//! faults included. What is written can be logged ([`SimHardware::watch`]): a request that fails must leave nothing
//! behind (I7).
//!
//! No lock is held while memory is touched or a fault is resolved; the CPUs' state has one for the time of a look-up.

mod control;
mod cpu;
mod others;
mod setup;

pub use control::{Controlled, KNOWN_MSR};
pub use cpu::{Fault, Mode};
pub use setup::{PATTERN_SLOT, SimDomain, domain, host, host_with};

use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use crate::debugreg::DebugRegisters;
use crate::frame::FrameInfo;
use crate::host::Host;
use crate::machine::{
    BadPointer, Clock, Console, CpuTables, DescriptorPage, GuestMemory, MachineMemory, NotLoaded, Preemption,
    TableRegister, Tlb,
};
use crate::paging::shadow::Access;
use crate::pci::{PciAddress, PciConfig, Width};
use crate::sim::SimMachine;
use crate::sync::Mutex;
use alloc::collections::BTreeMap;
use alloc::sync::Weak;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use cpu::Cpu;
use proxenos_abi::hypercall::SegmentBase;
use proxenos_abi::{GuestArch, Selector, X86_64};

/// The simulated machine's hardware.
pub struct SimHardware {
    machine: SimMachine,
    flush_clock: AtomicU32,
    /// Which CPU executes.
    current: AtomicUsize,
    cpus: Mutex<Vec<Cpu>>,
    descriptors: Mutex<BTreeMap<(u16, u8), Mfn>>,
    /// What was set last, whichever CPU it was on: by number.
    segment_bases: Mutex<BTreeMap<u32, u64>>,
    written: Mutex<Option<BTreeMap<u64, u64>>>,
    console: Mutex<Vec<u8>>,
    /// The CPU's timer is due at every so many looks; 0 is never.
    preempt_every: AtomicUsize,
    looks: AtomicUsize,
    /// Accesses to machine memory since the last look at the clock, and the most that there were between two.
    accesses: AtomicUsize,
    longest: AtomicUsize,
    host: Mutex<Weak<Host<SimHardware>>>,
    /// What was written past the caches and is in memory, while they still hold what was there before: by address.
    past_caches: Mutex<BTreeMap<u64, PastCaches>>,
    /// What a domain in control has told it.
    pub controlled: Controlled,
    /// Virtual CPUs that do not run.
    others: others::Others,
    /// Of its frames, for the next machine.
    records: &'static [FrameInfo],
}

impl Drop for SimHardware {
    fn drop(&mut self) {
        setup::give_back(self.records);
    }
}

/// A word that was written past the caches.
#[derive(Clone, Copy)]
struct PastCaches {
    value: u64,
    /// Whose frame it was.
    owner: DomId,
}

/// A word of memory that is not what it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Where, aligned to 8.
    pub at: MachineAddr,
    /// What was there.
    pub before: u64,
    /// What is there.
    pub after: u64,
}

impl SimHardware {
    /// Hardware with this many frames of RAM and one CPU for each of `cpus` domains.
    #[must_use]
    pub fn new(frames: usize, cpus: usize) -> Self {
        Self {
            machine: SimMachine::new(frames),
            flush_clock: AtomicU32::new(1),
            current: AtomicUsize::new(0),
            cpus: Mutex::new((0..cpus).map(|_| Cpu::default()).collect()),
            descriptors: Mutex::new(BTreeMap::new()),
            segment_bases: Mutex::new(BTreeMap::new()),
            written: Mutex::new(None),
            console: Mutex::new(Vec::new()),
            preempt_every: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            accesses: AtomicUsize::new(0),
            longest: AtomicUsize::new(0),
            host: Mutex::new(Weak::new()),
            past_caches: Mutex::new(BTreeMap::new()),
            controlled: Controlled::new(),
            others: others::Others::new(),
            records: &[],
        }
    }

    /// The machine beneath.
    #[must_use]
    pub const fn machine(&self) -> &SimMachine {
        &self.machine
    }

    /// The base of a segment register, as it was set last.
    #[must_use]
    pub fn segment_base(&self, which: SegmentBase) -> Option<u64> {
        self.segment_bases.lock().get(&which.raw()).copied()
    }

    /// Makes a frame this CPU's L4 table, as at a change of a guest's mode: with no step of the flush clock.
    pub fn load_root_of_mode(&self, l4: Mfn) {
        let now = self.stamp();
        self.on_cpu(|cpu| {
            cpu.root = Some(l4);
            cpu.forget_all(now);
        });
    }

    /// From now on this CPU executes.
    pub fn run_on(&self, cpu: usize) {
        self.current.store(cpu, SeqCst);
    }

    /// The executing CPU now runs this domain (its root is loaded separately).
    pub fn enter(&self, domain: DomId) {
        self.on_cpu(|cpu| cpu.domain = Some(domain));
    }

    /// The executing CPU runs no domain any more.
    pub fn leave(&self) {
        self.on_cpu(|cpu| *cpu = Cpu::default());
    }

    /// From now on the CPU's timer is due at every `nth` look (0: never).
    pub fn preempt_every(&self, nth: usize) {
        self.preempt_every.store(nth, SeqCst);
        self.looks.store(0, SeqCst);
    }

    /// Memory is touched by somebody else than the hypervisor: that does not count as its work.
    pub fn leave_out(&self) {
        self.accesses.store(0, SeqCst);
    }

    /// The most accesses to machine memory between two looks at the clock (and since the last) from the last time that
    /// this was asked. A line that is cleared or flushed is one.
    pub fn longest_stretch(&self) -> usize {
        self.end_stretch();
        self.longest.swap(0, SeqCst)
    }

    /// The CPU goes back to the guest, or looks at the clock.
    pub fn end_stretch(&self) {
        self.longest.fetch_max(self.accesses.swap(0, SeqCst), SeqCst);
    }

    fn count_accesses(&self, accesses: usize) {
        self.accesses.fetch_add(accesses, SeqCst);
    }

    /// What the machine's console was given.
    #[must_use]
    pub fn console(&self) -> Vec<u8> {
        self.console.lock().clone()
    }

    /// Begins to log what memory is changed.
    pub fn watch(&self) {
        *self.written.lock() = Some(BTreeMap::new());
    }

    /// Ends the log: every word that is not what it was.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let written = self.written.lock().take().unwrap_or_default();
        let change = |(at, before)| Change { at: MachineAddr(at), before, after: self.machine.load64(MachineAddr(at)) };
        written.into_iter().map(change).filter(|change| change.before != change.after).collect()
    }

    /// The frames mapped as a domain's descriptor tables.
    #[must_use]
    pub fn descriptor_pages(&self, domain: DomId) -> Vec<(DescriptorPage, Mfn)> {
        let pages = self.descriptors.lock();
        let of_domain = pages.range((domain.0, 0)..=(domain.0, u8::MAX));
        of_domain.map(|(&(_, page), &frame)| (descriptor_page(page), frame)).collect()
    }

    fn on_cpu<R>(&self, action: impl FnOnce(&mut Cpu) -> R) -> R {
        action(&mut self.cpus.lock()[self.current.load(SeqCst)])
    }

    fn host(&self) -> Option<alloc::sync::Arc<Host<Self>>> {
        self.host.lock().upgrade()
    }

    /// A store past the caches.
    fn store_past_caches(&self, at: MachineAddr, value: u64) {
        let owner = self.host().and_then(|host| Some(host.frames.info(at.mfn())?.refs().owner()));
        self.past_caches.lock().insert(at.0, PastCaches { value, owner: owner.unwrap_or(DomId::IO) });
    }

    /// A load past the caches.
    fn load_past_caches(&self, at: MachineAddr) -> u64 {
        let past = self.past_caches.lock().get(&at.0).map(|word| word.value);
        past.unwrap_or_else(|| self.machine.load64(at))
    }

    /// Notes the words of `bytes` from `at` on, before they change.
    fn note(&self, at: MachineAddr, bytes: u64) {
        self.count_accesses(bytes.div_ceil(64) as usize);
        // A line that is written to in a cache will overwrite what is in memory.
        const LINE: u64 = 64;
        let mut past = self.past_caches.lock();
        if !past.is_empty() {
            let lines = at.0 & !(LINE - 1)..(at.0 + bytes).next_multiple_of(LINE);
            past.retain(|at, _| !lines.contains(at));
        }
        drop(past);
        if let Some(written) = self.written.lock().as_mut() {
            for word in (at.0 & !7..at.0 + bytes).step_by(8) {
                written.entry(word).or_insert_with(|| self.machine.load64(MachineAddr(word)));
            }
        }
    }

    /// Copies to or from the guest, page by page.
    fn each_page(
        &self,
        at: GuestVirt,
        bytes: usize,
        access: Access,
        mut copy: impl FnMut(MachineAddr, core::ops::Range<usize>),
    ) -> Result<(), BadPointer> {
        // A few words are read by single instructions, which need both pages at once. (No store of the hypervisor's
        // does.)
        let last = at.offset(bytes.saturating_sub(1) as u64);
        if !access.write && bytes <= WIDEST && at.0 >> 12 != last.0 >> 12 {
            self.access_both(at, last, access).map_err(|_| BadPointer)?;
        }
        let mut done = 0;
        while done < bytes {
            let here = at.offset(done as u64);
            let length = (bytes - done).min(4096 - here.page_offset());
            let found = self.access(here, access).map_err(|_| BadPointer)?;
            // I/O memory has no contents here.
            if found.mfn().0 < self.machine.frames() {
                copy(found, done..done + length);
            }
            done += length;
        }
        Ok(())
    }
}

/// Bytes that the hypervisor reads at a time.
const WIDEST: usize = 8;

/// The number of a page of a domain's tables, as it is kept here.
const fn descriptor_key(page: DescriptorPage) -> u8 {
    match page {
        DescriptorPage::Gdt(page) => page,
        DescriptorPage::Ldt(page) => 16 + page,
    }
}

const fn descriptor_page(key: u8) -> DescriptorPage {
    if key < 16 { DescriptorPage::Gdt(key) } else { DescriptorPage::Ldt(key - 16) }
}

impl MachineMemory for SimHardware {
    fn load8(&self, at: MachineAddr) -> u8 {
        self.machine.load8(at)
    }

    fn store8(&self, at: MachineAddr, value: u8) {
        self.note(at, 1);
        self.machine.store8(at, value);
    }

    fn load32(&self, at: MachineAddr) -> u32 {
        self.count_accesses(1);
        self.machine.load32(at)
    }

    fn store32(&self, at: MachineAddr, value: u32) {
        self.note(at, 4);
        self.machine.store32(at, value);
    }

    fn load64(&self, at: MachineAddr) -> u64 {
        self.count_accesses(1);
        self.machine.load64(at)
    }

    fn store64(&self, at: MachineAddr, value: u64) {
        self.note(at, 8);
        self.machine.store64(at, value);
    }

    fn cas32(&self, at: MachineAddr, old: u32, new: u32) -> Result<(), u32> {
        self.note(at, 4);
        self.machine.cas32(at, old, new)
    }

    fn cas64(&self, at: MachineAddr, old: u64, new: u64) -> Result<(), u64> {
        self.note(at, 8);
        self.machine.cas64(at, old, new)
    }

    fn or32(&self, at: MachineAddr, bits: u32) -> u32 {
        self.note(at, 4);
        self.machine.or32(at, bits)
    }

    fn clear_frame(&self, frame: Mfn) {
        self.note(frame.addr(), 4096);
        self.machine.clear_frame(frame);
    }

    fn read(&self, at: MachineAddr, into: &mut [u8]) {
        self.machine.read(at, into);
    }

    fn write(&self, at: MachineAddr, from: &[u8]) {
        self.note(at, from.len() as u64);
        self.machine.write(at, from);
    }
}

impl GuestMemory for SimHardware {
    fn copy_from_guest(&self, from: GuestVirt, into: &mut [u8]) -> Result<(), BadPointer> {
        let access = Access { write: false, user: false };
        self.each_page(from, into.len(), access, |at, range| self.machine.read(at, &mut into[range]))
    }

    fn copy_to_guest(&self, to: GuestVirt, from: &[u8]) -> Result<(), BadPointer> {
        let access = Access { write: true, user: false };
        self.each_page(to, from.len(), access, |at, range| self.write(at, &from[range]))
    }
}

impl Tlb for SimHardware {
    fn flush_all(&self) {
        self.machine.full_flushes.fetch_add(1, SeqCst);
        let now = self.flush_clock.fetch_add(1, SeqCst).wrapping_add(1);
        self.on_cpu(|cpu| cpu.forget_all(now));
    }

    fn flush_page(&self, at: GuestVirt) {
        self.machine.page_flushes.fetch_add(1, SeqCst);
        self.on_cpu(|cpu| cpu.forget_page(at));
    }

    fn flush_caches(&self) {
        self.machine.cache_flushes.fetch_add(1, SeqCst);
        let past: Vec<_> = core::mem::take(&mut *self.past_caches.lock()).into_iter().collect();
        past.into_iter().for_each(|(at, word)| self.machine.store64(MachineAddr(at), word.value));
    }

    fn flush_frame(&self, frame: Mfn) {
        self.machine.flush_frame(frame);
        self.count_accesses(4096 / 64);
        let start = frame.addr().0;
        let mut past = self.past_caches.lock();
        let of_frame: Vec<_> = past.range(start..start + 4096).map(|(&at, &word)| (at, word)).collect();
        for (at, word) in of_frame {
            past.remove(&at);
            self.machine.store64(MachineAddr(at), word.value);
        }
    }

    fn stamp(&self) -> u32 {
        self.flush_clock.load(SeqCst)
    }

    fn flush_if_older(&self, stamp: u32) {
        let mut cpus = self.cpus.lock();
        for cpu in cpus.iter_mut().filter(|cpu| cpu.last_flush.wrapping_sub(stamp) as i32 <= 0) {
            self.machine.full_flushes.fetch_add(1, SeqCst);
            cpu.forget_all(self.flush_clock.fetch_add(1, SeqCst).wrapping_add(1));
        }
    }
}

impl CpuTables for SimHardware {
    fn load_root(&self, l4: Mfn) {
        let now = self.flush_clock.fetch_add(1, SeqCst).wrapping_add(1);
        self.on_cpu(|cpu| {
            cpu.root = Some(l4);
            cpu.forget_all(now);
        });
    }

    fn set_segment_base(&self, which: SegmentBase, base: u64) {
        self.segment_bases.lock().insert(which.raw(), base);
    }

    fn load_user_gs(&self, selector: Selector) -> Result<(), NotLoaded> {
        // There are no descriptors here but the reserved ones.
        if selector.0 & !3 == 0 || selector == X86_64::FLAT_USER_DS {
            self.segment_bases.lock().insert(SegmentBase::GsUser.raw(), 0);
            return Ok(());
        }
        Err(NotLoaded)
    }

    fn map_descriptors(&self, domain: DomId, page: DescriptorPage, frame: Option<Mfn>) {
        let key = (domain.0, descriptor_key(page));
        let mut pages = self.descriptors.lock();
        match frame {
            Some(frame) => pages.insert(key, frame),
            None => pages.remove(&key),
        };
    }

    fn gdt_address(&self, domain: DomId) -> u64 {
        0xffff_8200_0000_0000 + u64::from(domain.0) * 32 * 4096
    }

    fn load_gdt(&self, _: DomId, entries: u16, _: &TableRegister) {
        self.on_cpu(|cpu| cpu.gdt_entries = entries);
    }

    fn load_ldt(&self, entries: u16) {
        self.on_cpu(|cpu| cpu.ldt_entries = entries);
    }

    fn ldt_address(&self, domain: DomId) -> u64 {
        0xffff_8200_0000_0000 + (u64::from(domain.0) * 32 + 16) * 4096
    }

    fn trap_fpu(&self) {}

    fn load_breakpoints(&self, _: &DebugRegisters) {}
}

/// No bus: what there is of one has its own tests.
impl PciConfig for SimHardware {
    fn pci_read(&self, _: PciAddress, _: u8, _: Width) -> u32 {
        u32::MAX
    }

    fn pci_write(&self, _: PciAddress, _: u8, _: Width, _: u32) {}
}

impl Console for SimHardware {
    fn console_write(&self, bytes: &[u8]) {
        self.console.lock().extend_from_slice(bytes);
    }

    fn console_log(&self, _: DomId, bytes: &[u8]) {
        self.console.lock().extend_from_slice(bytes);
    }

    fn console_read(&self, _: &mut [u8]) -> usize {
        0
    }
}

impl Preemption for SimHardware {
    fn preemption_wanted(&self) -> bool {
        self.end_stretch();
        let every = self.preempt_every.load(SeqCst);
        every != 0 && (self.looks.fetch_add(1, SeqCst) + 1).is_multiple_of(every)
    }
}

impl Clock for SimHardware {
    fn now_ns(&self) -> u64 {
        self.machine.now_ns()
    }
}
