//! A simulated machine: RAM in a vector, a CPU that walks page tables in it, a TLB that counts, a clock that stands
//! still until told.
//!
//! For tests, of this crate and of others (feature `sim`). It promises what [`crate::machine`] asks for: every access
//! is one aligned atomic load or store, so threads may share a machine and interleave as CPUs would. A bad machine
//! address panics, which is what a test wants to see. No lock around memory; what else the CPU knows is behind one of
//! its own.

mod cpu;

pub use cpu::{SimAccess, SimFault, SimRing};

use crate::addr::{GuestVirt, MachineAddr, Mfn, PAGE_SHIFT};
use crate::control::{
    DateAtZero, LogPosition, MachineControl, MsrNumber, MsrRefused, NotMoved, Processors, TracePlace,
};
use crate::domain::{Arch, Domain};
use crate::machine::{Clock, MachineMemory, Preemption, Tlb};
use crate::others::{MachineState, Stopped, Unreached, VirtualCpus};
use crate::pirq::Pirqs;
use crate::sched::{Affinity, CpuId, SchedError, Schedulers, Span};
use crate::trace::Event;
use crate::vcpu::Vcpu;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use cpu::CpuState;
use proxenos_abi::arch::NR_RESERVED_GDT_ENTRIES;
use spin::Mutex;

/// Bytes in a frame.
const FRAME: u64 = 1 << PAGE_SHIFT;
/// Words of 64 bits in a frame.
const FRAME_WORDS: usize = FRAME as usize / 8;

/// A machine of `n` frames, numbered from 0, with counters for what is asked of its TLB.
#[derive(Debug)]
pub struct SimMachine {
    words: Vec<AtomicU64>,
    cpu: Mutex<CpuState>,
    now: AtomicU64,
    flush_clock: AtomicU32,
    last_flush: AtomicU32,
    /// How often everything was flushed, `flush_if_older` included when it found a reason.
    pub full_flushes: AtomicU32,
    /// How often a single page was flushed.
    pub page_flushes: AtomicU32,
    /// How often the data caches were written back.
    pub cache_flushes: AtomicU32,
    /// How often they were of a frame.
    pub frame_flushes: AtomicU32,
}

impl SimMachine {
    /// A machine with this many frames of zeroed RAM, at time 0.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        Self {
            words: (0..frames * FRAME_WORDS).map(|_| AtomicU64::new(0)).collect(),
            cpu: Mutex::new(CpuState::default()),
            now: AtomicU64::new(0),
            flush_clock: AtomicU32::new(1),
            last_flush: AtomicU32::new(0),
            full_flushes: AtomicU32::new(0),
            page_flushes: AtomicU32::new(0),
            cache_flushes: AtomicU32::new(0),
            frame_flushes: AtomicU32::new(0),
        }
    }

    /// How many frames there are.
    #[must_use]
    pub fn frames(&self) -> u64 {
        (self.words.len() / FRAME_WORDS) as u64
    }

    /// Fills a frame with a repeated byte: what a guest left in memory.
    pub fn fill_frame(&self, frame: Mfn, byte: u8) {
        for at in 0..FRAME_WORDS as u64 {
            self.word(frame_base(frame) + 8 * at).store(u64::from_ne_bytes([byte; 8]), SeqCst);
        }
    }

    /// A copy of a frame's bytes.
    #[must_use]
    pub fn frame_bytes(&self, frame: Mfn) -> Vec<u8> {
        let mut bytes = alloc::vec![0; FRAME as usize];
        self.read(MachineAddr(frame_base(frame)), &mut bytes);
        bytes
    }

    /// Moves the clock on.
    pub fn advance_ns(&self, by: u64) {
        self.now.fetch_add(by, SeqCst);
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        &self.words[(at / 8) as usize]
    }

    /// Replaces the bits of `mask` in the word that holds `at` by what `change` makes of them; returns the old word.
    fn update(&self, at: u64, mut change: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        self.word(at).fetch_update(SeqCst, SeqCst, &mut change)
    }
}

/// Byte address of a frame.
fn frame_base(frame: Mfn) -> u64 {
    frame.0 << PAGE_SHIFT
}

/// Checks the alignment that the trait asks of callers.
#[track_caller]
fn aligned(at: MachineAddr, to: u64) -> u64 {
    assert!(at.0.is_multiple_of(to), "access of {to} bytes at {:#x} is not aligned", at.0);
    at.0
}

/// Shift of the `bytes`-sized field at `at` within its 64-bit word.
fn lane(at: u64) -> u64 {
    (at % 8) * 8
}

impl MachineMemory for SimMachine {
    fn load8(&self, at: MachineAddr) -> u8 {
        (self.word(at.0).load(SeqCst) >> lane(at.0)) as u8
    }

    fn store8(&self, at: MachineAddr, value: u8) {
        let (mask, value) = (0xffu64 << lane(at.0), u64::from(value) << lane(at.0));
        let _ = self.update(at.0, |old| Some(old & !mask | value));
    }

    fn load32(&self, at: MachineAddr) -> u32 {
        let at = aligned(at, 4);
        (self.word(at).load(SeqCst) >> lane(at)) as u32
    }

    fn store32(&self, at: MachineAddr, value: u32) {
        let at = aligned(at, 4);
        let (mask, value) = (0xffff_ffffu64 << lane(at), u64::from(value) << lane(at));
        let _ = self.update(at, |old| Some(old & !mask | value));
    }

    fn load64(&self, at: MachineAddr) -> u64 {
        self.word(aligned(at, 8)).load(SeqCst)
    }

    fn store64(&self, at: MachineAddr, value: u64) {
        self.word(aligned(at, 8)).store(value, SeqCst);
    }

    fn cas32(&self, at: MachineAddr, old: u32, new: u32) -> Result<(), u32> {
        let at = aligned(at, 4);
        let mask = 0xffff_ffffu64 << lane(at);
        self.update(at, |word| ((word >> lane(at)) as u32 == old).then_some(word & !mask | u64::from(new) << lane(at)))
            .map(|_| ())
            .map_err(|word| (word >> lane(at)) as u32)
    }

    fn cas64(&self, at: MachineAddr, old: u64, new: u64) -> Result<(), u64> {
        self.word(aligned(at, 8)).compare_exchange(old, new, SeqCst, SeqCst).map(|_| ())
    }

    fn or32(&self, at: MachineAddr, bits: u32) -> u32 {
        let at = aligned(at, 4);
        (self.word(at).fetch_or(u64::from(bits) << lane(at), SeqCst) >> lane(at)) as u32
    }

    fn clear_frame(&self, frame: Mfn) {
        self.fill_frame(frame, 0);
    }

    fn read(&self, at: MachineAddr, into: &mut [u8]) {
        for (at, byte) in (at.0..).zip(into) {
            *byte = self.load8(MachineAddr(at));
        }
    }

    fn write(&self, at: MachineAddr, from: &[u8]) {
        let (mut at, mut from) = (at.0, from);
        while let Some(&byte) = from.first() {
            let taken = match from.first_chunk::<8>() {
                Some(word) if at % 8 == 0 => {
                    self.store64(MachineAddr(at), u64::from_le_bytes(*word));
                    8
                }
                _ => {
                    self.store8(MachineAddr(at), byte);
                    1
                }
            };
            at += taken as u64;
            from = &from[taken..];
        }
    }
}

impl Tlb for SimMachine {
    fn flush_all(&self) {
        self.full_flushes.fetch_add(1, SeqCst);
        self.last_flush.store(self.flush_clock.fetch_add(1, SeqCst), SeqCst);
    }

    fn flush_page(&self, _at: GuestVirt) {
        self.page_flushes.fetch_add(1, SeqCst);
    }

    fn flush_caches(&self) {
        self.cache_flushes.fetch_add(1, SeqCst);
    }

    fn flush_frame(&self, _: Mfn) {
        self.frame_flushes.fetch_add(1, SeqCst);
    }

    fn stamp(&self) -> u32 {
        self.flush_clock.load(SeqCst)
    }

    fn flush_if_older(&self, stamp: u32) {
        if self.last_flush.load(SeqCst) < stamp {
            self.flush_all();
        }
    }
}

/// Nothing is ever due here.
impl Preemption for SimMachine {
    fn preemption_wanted(&self) -> bool {
        false
    }
}

impl Clock for SimMachine {
    fn now_ns(&self) -> u64 {
        self.now.load(SeqCst)
    }
}

/// Nobody runs here.
impl VirtualCpus for SimMachine {
    fn with_stopped<R>(&self, _: &Domain, _: impl FnOnce(Stopped<'_>) -> R) -> Result<R, Unreached> {
        Err(Unreached::None)
    }

    fn caller_state(&self, _: &Vcpu) -> MachineState {
        MachineState::ZERO
    }

    fn is_running(&self, _: &Domain) -> bool {
        false
    }

    fn cpu_time(&self, _: &Domain) -> Span {
        Span::ZERO
    }

    fn admit(&self, _: &Arc<Domain>, _: Affinity) -> Result<(), SchedError> {
        Err(SchedError::NoSuchCpu)
    }

    fn dismiss(&self, _: &Domain) -> Result<Box<Vcpu>, Unreached> {
        Err(Unreached::None)
    }

    fn reserved_descriptors(&self, _: Arch) -> [u64; NR_RESERVED_GDT_ENTRIES as usize] {
        [0; NR_RESERVED_GDT_ENTRIES as usize]
    }
}

/// Nothing here is controlled but memory.
impl MachineControl for SimMachine {
    fn processors(&self) -> Processors {
        Processors { count: 1, threads_per_core: 1, khz: 1_000_000 }
    }

    fn this_cpu(&self) -> CpuId {
        CpuId(0)
    }

    fn set_date(&self, _: DateAtZero) {}

    fn log_kept(&self) -> Range<LogPosition> {
        LogPosition(0)..LogPosition(0)
    }

    fn read_log(&self, from: LogPosition, _: &mut [u8]) -> (usize, LogPosition) {
        (0, from)
    }

    fn forget_log(&self, _: LogPosition) {}

    fn read_msr(&self, _: CpuId, _: MsrNumber) -> Result<u64, MsrRefused> {
        Err(MsrRefused)
    }

    fn write_msr(&self, _: CpuId, _: MsrNumber, _: u64) -> Result<(), MsrRefused> {
        Err(MsrRefused)
    }

    fn schedulers(&self) -> &Schedulers {
        unreachable!("nobody is scheduled here")
    }

    fn choose_again(&self, _: CpuId) {}

    fn migrate(&self, _: &Domain, _: CpuId) -> Result<(), NotMoved> {
        Err(NotMoved::Nowhere)
    }

    fn trace_buffers(&self) -> Option<TracePlace> {
        None
    }

    fn trace(&self, _: impl FnOnce() -> Event) {}

    fn interrupt_lines(&self) -> &'static Pirqs {
        unreachable!("there are no devices here")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_of_a_word_are_independent() {
        let machine = SimMachine::new(2);
        machine.store64(MachineAddr(0x1000), 0x1122_3344_5566_7788);
        assert_eq!(machine.load32(MachineAddr(0x1000)), 0x5566_7788);
        assert_eq!(machine.load32(MachineAddr(0x1004)), 0x1122_3344);
        assert_eq!(machine.load8(MachineAddr(0x1007)), 0x11);
        machine.store8(MachineAddr(0x1001), 0xaa);
        assert_eq!(machine.or32(MachineAddr(0x1004), 1), 0x1122_3344);
        assert_eq!(machine.cas32(MachineAddr(0x1000), 0, 1), Err(0x5566_aa88));
        assert_eq!(machine.cas32(MachineAddr(0x1000), 0x5566_aa88, 1), Ok(()));
        assert_eq!(machine.load64(MachineAddr(0x1000)), 0x1122_3345_0000_0001);
        assert_eq!(machine.load64(MachineAddr(0x0ff8)), 0);
    }

    #[test]
    #[should_panic(expected = "not aligned")]
    fn misaligned_access_is_a_bug() {
        SimMachine::new(1).load32(MachineAddr(2));
    }

    #[test]
    fn copies_cross_frames_and_flushes_follow_stamps() {
        let machine = SimMachine::new(2);
        machine.write(MachineAddr(0xffe), &[1, 2, 3, 4]);
        let mut back = [0; 4];
        machine.read(MachineAddr(0xffe), &mut back);
        assert_eq!(back, [1, 2, 3, 4]);
        let stamp = machine.stamp();
        machine.flush_if_older(stamp);
        machine.flush_if_older(stamp);
        assert_eq!(machine.full_flushes.load(SeqCst), 1, "the second found the TLB flushed already");
    }
}
