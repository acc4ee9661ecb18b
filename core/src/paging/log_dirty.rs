//! Log-dirty: which of a domain's frames have been written to, for whoever copies its memory while it runs
//! (DOM0_SHADOW_CONTROL, dom0_ops.h).
//!
//! The record is a bitmap by *pfn*, as 2.0 has it: the pfn that the machine-to-physical table has for the frame. It
//! covers as many pfns as the domain may have pages. What has no such pfn is not recorded: the page it shares with the
//! hypervisor is no part of its reservation, and a frame whose entry says nonsense is its own affair.
//!
//! **Its own writes.** While a domain is watched, the CPU walks shadows of its tables, also where it could walk the
//! tables themselves: a four-level guest's get shadows of one frame each, made by the faults that need them. A shadow
//! of an L1 entry lets it write only to a frame whose bit is set. The fault that the first write causes sets the bit
//! and opens the entry ([`Pager::log_write`]); reading the record away ([`Pager::clean`]) closes all entries, flushes,
//! and only then takes the bits.
//!
//! **Ours.** What the hypervisor writes at a guest's address goes through the same tables and faults. What it writes by
//! machine address it records itself ([`Pager::mark_dirty`]): changed tables with their accessed and dirty bits,
//! checked stores, descriptors, the hypervisor's slots, and a pfn whose frame is another one now.
//!
//! **Others'.** A domain that maps a frame of the watched one's writable may write to it as long as it does: the frame
//! is recorded when it is mapped, and again when it is unmapped.
//!
//! Accessed and dirty bits of the guest's tables are kept as under shadows always ([`super::shadow`]); of a four-level
//! guest's upper entries the accessed bit too.
//!
//! Locks: the owner's paging lock for the mode and the shadows; the record has a lock of its own, innermost, so that
//! anybody can add to it.

use super::format::{Format, FourLevel, Pte, TwoLevel, bits};
use super::pool::Part;
use super::shadow::{order, slot};
use super::{Pager, PagingState, Translation};
use crate::addr::{DomId, Mfn};
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::frame::FrameInfo;
use crate::host::{Hardware, Host};
use crate::sync::Mutex;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::args::ShadowControlOp;

/// What shadows are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Mode {
    /// Two-level guests have them because they must.
    Off = 0,
    /// All guests have them, for their own sake.
    Test = 1,
    /// And what is written is recorded.
    Log = 2,
}

/// What was counted since the record was last read away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Faults that were dealt with.
    pub faults: u32,
    /// Bits that were set.
    pub dirty: u32,
}

#[derive(Default)]
struct Record {
    stats: Stats,
    /// How many pfns it covers.
    pages: u32,
    bits: Vec<u64>,
}

/// A domain's record.
#[derive(Default)]
pub struct DirtyLog {
    mode: AtomicU8,
    record: Mutex<Record>,
}

/// What an operation tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Counts.
    pub stats: Stats,
    /// How many bits have a meaning.
    pub pages: u32,
    /// A bit for each pfn, from the lowest of the first word on. None if nothing is recorded, or more than the caller
    /// has room for.
    pub bitmap: Option<Vec<u64>>,
}

/// How many bits a caller has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room(pub u64);

/// Why an operation was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlError {
    /// It is not an operation, or one that is not supported.
    Unsupported,
    /// The domain is not watched.
    NotEnabled,
    /// A domain cannot watch itself.
    Oneself,
    /// No memory for the record, or for the first shadow.
    NoMemory,
}

impl From<ControlError> for Errno {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::NoMemory => Self::ENOMEM,
            _ => Self::EINVAL,
        }
    }
}

impl DirtyLog {
    /// Nothing is recorded.
    #[must_use]
    pub const fn new() -> Self {
        let record = Record { stats: Stats { faults: 0, dirty: 0 }, pages: 0, bits: Vec::new() };
        Self { mode: AtomicU8::new(Mode::Off as u8), record: Mutex::new(record) }
    }

    /// Whether the CPU walks shadows though it need not, or they say less than they could.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.mode.load(Relaxed) != Mode::Off as u8
    }

    /// Whether a pfn may be written to without a fault: it is recorded already, or not covered.
    pub(crate) fn is_open(&self, pfn: u64) -> bool {
        let record = self.record.lock();
        pfn >= record.pages.into() || record.bits[pfn as usize / 64] & 1 << (pfn % 64) != 0
    }

    fn mark(&self, pfn: u64) {
        let mut record = self.record.lock();
        if pfn < record.pages.into() {
            let word = &mut record.bits[pfn as usize / 64];
            let before = core::mem::replace(word, *word | 1 << (pfn % 64));
            record.stats.dirty += u32::from(before & 1 << (pfn % 64) == 0);
        }
    }
}

/// An operation on a domain's shadows (`dom0_shadow_control_t`), as `caller`. `load` is given what the CPU that runs
/// the domain is to walk from now on, before what it walked is given up; a domain that does not run needs none.
///
/// What 2.0 does: a mode that is set begins anew; OFF where nothing is on is no error; counts are reset, and entries
/// closed, by CLEAN even where there is no room for the bitmap.
///
/// # Errors
/// See [`ControlError`]. Where `Report::bitmap` is missing the caller of CLEAN and PEEK gets EINVAL, and its counts.
pub fn control<H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    caller: DomId,
    op: u32,
    room: Room,
    load: impl FnOnce(Mfn),
) -> Result<Option<Report>, ControlError> {
    if caller == dom.id {
        return Err(ControlError::Oneself);
    }
    let op = ShadowControlOp::from_raw(op).ok_or(ControlError::Unsupported)?;
    let pager = Pager::new(host, dom);
    match dom.arch {
        Arch::X86_32 => pager.control::<TwoLevel>(op, room, load),
        Arch::X86_64 => pager.control::<FourLevel>(op, room, load),
    }
}

/// Notes that another domain than a frame's owner may write to it, or could until now.
#[cold]
pub(crate) fn foreign_writer<H: Hardware>(host: &Host<H>, writer: DomId, mfn: Mfn, info: &FrameInfo) {
    let owner = info.refs().owner();
    if owner != writer
        && let Some(dom) = host.domains.find(owner)
    {
        Pager::new(host, &dom).mark_dirty(mfn);
    }
}

impl<H: Hardware> Pager<'_, H> {
    /// Whether the CPU walks shadows of the domain's tables.
    #[inline]
    #[must_use]
    pub fn walks_shadows<F: Format>(&self) -> bool {
        F::SHADOWED || self.dom.log.is_on()
    }

    /// Records that a frame of the domain's has been written to, or is about to be. Nothing to do if it is not watched.
    #[inline]
    pub fn mark_dirty(&self, mfn: Mfn) {
        if self.dom.log.is_on() {
            self.record_dirty(mfn);
        }
    }

    #[cold]
    fn record_dirty(&self, mfn: Mfn) {
        if let Some(pfn) = self.recorded_as(mfn) {
            self.dom.log.mark(pfn);
        }
    }

    /// The pfn of a frame of the domain's.
    pub(crate) fn recorded_as(&self, mfn: Mfn) -> Option<u64> {
        let info = self.host.frames.info(mfn).filter(|_| self.host.is_ram(mfn))?;
        let own = info.refs().owner() == self.dom.id && !info.refs().is_shared();
        own.then(|| self.host.m2p.get(&self.host.hw, mfn)).flatten().map(|pfn| pfn.0)
    }

    /// What of an L1 shadow entry the CPU may see: without the right to write where that must be noticed.
    pub(super) fn unless_logged(&self, entry: Pte, shadow: u64) -> u64 {
        let closed =
            shadow & bits::RW != 0 && self.recorded_as(entry.mfn()).is_some_and(|pfn| !self.dom.log.is_open(pfn));
        if closed { shadow & !(bits::RW | bits::D) } else { shadow }
    }

    /// Deals with a write that the guest's tables allow, dirty bit and all. True if that is why it faulted.
    #[cold]
    pub(super) fn log_write<F: Format>(&self, found: &Translation) -> bool {
        let Some(shadow) = self.host.frames.info(found.table).and_then(|info| info.shadow()) else { return false };
        let at = slot(shadow, found.index);
        let before = self.host.hw.load64(at);
        self.record_dirty(found.entry.mfn());
        self.shadow_entry::<F>(1, found.table, found.index, F::load(&self.host.hw, found.table, found.index));
        self.host.hw.load64(at) != before
    }

    /// Counts a fault that was dealt with.
    pub(super) fn count_fault(&self) {
        if self.dom.log.is_on() {
            let stats = &mut self.dom.log.record.lock().stats;
            stats.faults = stats.faults.saturating_add(1);
        }
    }

    fn control<F: Format>(
        &self,
        op: ShadowControlOp,
        room: Room,
        load: impl FnOnce(Mfn),
    ) -> Result<Option<Report>, ControlError> {
        // Nothing is open to be written to from here on.
        let mut state = self.lock();
        let on = || if self.dom.log.is_on() { Ok(()) } else { Err(ControlError::NotEnabled) };
        match op {
            ShadowControlOp::Off => self.disable::<F>(&mut state, load),
            ShadowControlOp::EnableTest => self.enable::<F>(&mut state, Mode::Test, load)?,
            ShadowControlOp::EnableLogdirty => self.enable::<F>(&mut state, Mode::Log, load)?,
            ShadowControlOp::EnableTranslate => return Err(ControlError::Unsupported),
            ShadowControlOp::Flush => {
                on()?;
                self.reclaim_all::<F>(&mut state);
                self.host.hw.flush_if_older(self.host.hw.stamp());
                self.dom.log.record.lock().stats = Stats::default();
            }
            ShadowControlOp::Clean => {
                on()?;
                return self.clean::<F>(&state, room).map(Some);
            }
            ShadowControlOp::Peek => {
                on()?;
                let record = self.dom.log.record.lock();
                let bitmap = copy(&record, room)?;
                return Ok(Some(Report { stats: record.stats, pages: record.pages, bitmap }));
            }
        }
        Ok(None)
    }

    /// Begins to watch, with a clean record.
    fn enable<F: Format>(
        &self,
        state: &mut PagingState,
        mode: Mode,
        load: impl FnOnce(Mfn),
    ) -> Result<(), ControlError> {
        let pages = if mode == Mode::Log { self.pages() } else { 0 };
        let mut clean = Vec::new();
        let words = pages.div_ceil(64) as usize;
        clean.try_reserve_exact(words).map_err(|_| ControlError::NoMemory)?;
        clean.resize(words, 0);
        let was_on = self.dom.log.is_on();
        *self.dom.log.record.lock() = Record { stats: Stats::default(), pages, bits: clean };
        self.dom.log.mode.store(mode as u8, Relaxed);
        if let Some(base) = state.base {
            let bases = [Some(base), state.user.base];
            if bases.into_iter().flatten().any(|base| self.need_shadow::<F>(state, base).is_err()) {
                // Where it was watched before, a CPU may walk the shadow that there is of one of them.
                match was_on {
                    true => self.disable::<F>(state, load),
                    false => self.forget(),
                }
                if !F::SHADOWED {
                    self.drop_all::<F>(state);
                }
                return Err(ControlError::NoMemory);
            }
            self.hang_shadow(state, Some(base));
            self.hang_user_shadow(state);
            self.dom.roots.of(state.user.mode).map(load);
        }
        if !was_on {
            self.host.watched.fetch_add(1, Relaxed);
        }
        self.close_entries::<F>(state);
        Ok(())
    }

    /// As many pages as the domain may have, or has if that is not said.
    fn pages(&self) -> u32 {
        let max = self.dom.max_pages.load(Relaxed);
        let most = u32::try_from(self.host.frames.len()).unwrap_or(u32::MAX);
        if max == u32::MAX { self.dom.total_pages.load(Relaxed) } else { max }.min(most)
    }

    fn forget(&self) {
        self.dom.log.mode.store(Mode::Off as u8, Relaxed);
        *self.dom.log.record.lock() = Record::default();
    }

    /// Ends the watch. The CPU walks a four-level guest's own tables again; a two-level guest's shadows say again what
    /// they would.
    pub(crate) fn disable<F: Format>(&self, state: &mut PagingState, load: impl FnOnce(Mfn)) {
        if !self.dom.log.is_on() {
            return;
        }
        self.forget();
        self.host.watched.fetch_sub(1, Relaxed);
        if F::SHADOWED {
            return self.each_l1(state, |table, _| {
                for index in 0..F::ENTRIES {
                    self.shadow_entry::<F>(1, table, index, F::load(&self.host.hw, table, index));
                }
            });
        }
        // The CPU is to walk the bases themselves again.
        (state.root, state.user.root) = (None, None);
        self.note_roots(state);
        self.dom.roots.of(state.user.mode).map(load);
        self.host.hw.flush_if_older(self.host.hw.stamp());
        self.drop_all::<F>(state);
    }

    /// Does something with each L1 table that has a shadow, and that shadow.
    fn each_l1(&self, state: &PagingState, mut action: impl FnMut(Mfn, Mfn)) {
        for (first, table) in self.shadows(state, 1) {
            if self.part(first, table) == Part::Shadow(1) {
                action(table, first);
            }
        }
    }

    /// Takes the right to write from all shadows, so that the next write to each frame is noticed.
    fn close_entries<F: Format>(&self, state: &PagingState) {
        if self.dom.log.record.lock().pages == 0 {
            return;
        }
        let hw = &self.host.hw;
        self.each_l1(state, |_, shadow| {
            for at in (0..512 << order::<F>(1)).map(|index| slot(shadow, index)) {
                let entry = hw.load64(at);
                // What maps no frame of the domain's is not noticed, and may stay.
                let shown = self.unless_logged_at_all(entry);
                if shown != entry {
                    hw.store64(at, shown);
                }
            }
        });
        hw.flush_if_older(hw.stamp());
    }

    /// An L1 shadow entry as it is when no bit is set.
    fn unless_logged_at_all(&self, shadow: u64) -> u64 {
        let covered = |pfn: u64| pfn < self.dom.log.record.lock().pages.into();
        let closed = shadow & bits::RW != 0 && self.recorded_as(Pte(shadow).mfn()).is_some_and(covered);
        if closed { shadow & !(bits::RW | bits::D) } else { shadow }
    }

    /// Reads the record away. The entries are closed, and no TLB has an open one, before the bits are taken: what is
    /// written meanwhile is in this record or in the next.
    fn clean<F: Format>(&self, state: &PagingState, room: Room) -> Result<Report, ControlError> {
        self.close_entries::<F>(state);
        let mut record = self.dom.log.record.lock();
        let bitmap = copy(&record, room)?;
        let stats = core::mem::take(&mut record.stats);
        if bitmap.is_some() {
            record.bits.fill(0);
        }
        Ok(Report { stats, pages: record.pages, bitmap })
    }
}

/// The bits of a record, if there are any, and room for them.
fn copy(record: &Record, room: Room) -> Result<Option<Vec<u64>>, ControlError> {
    if record.pages == 0 || u64::from(record.pages) > room.0 {
        return Ok(None);
    }
    let mut bits = Vec::new();
    bits.try_reserve_exact(record.bits.len()).map_err(|_| ControlError::NoMemory)?;
    bits.extend_from_slice(&record.bits);
    Ok(Some(bits))
}
