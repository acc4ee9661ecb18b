//! Writable page tables (`VMASST_TYPE_writable_pagetables`): a guest's stores to its own L1 tables.
//!
//! The tables stay what they are, mapped read-only, so each store faults. Such a fault is answered in one of two ways:
//!
//! - the store is *carried out here*, as the validated change of an entry that it is (`store_entry`, driven by
//!   [`crate::assist`]). That suits a kernel that sets one entry and goes on.
//! - when the guest writes to the same table again and again, the table is *opened* ([`super::window`]): the guest
//!   writes to it unhindered until something needs to know what is there, then all that changed is checked at once.
//!
//! Counted in instructions, opening costs as much as six or seven stores that are carried out (copying the table and
//! comparing it later is most of it), and a store to an open table an eighth of one. A guest that has stored three
//! times in a row to one table is likely to go on, so it is opened at the fourth ([`PATIENCE`]); whatever shows that
//! the guest has turned to something else (a fault of its own, a request on memory) begins the count anew. Two tables
//! are counted, and may be open, at a time: a kernel that copies an address space writes to two in turn.
//!
//! **Who looks at tables sees none open.** [`Pager::lock`] closes what is open before it gives out the state, and every
//! request takes the lock through it. The exceptions are in this module and the next: they look at tables that are not
//! involved in a window ([`WritableTables::involves`]) or at nothing a guest could have changed.
//!
//! An entry that is not allowed, however it was written, ends the domain, as in 2.0: a store has no result to say it in
//! ([`WritableTables::refused`] says what it was). Lock: the owner's paging lock.

use super::format::{Format, FourLevel, Pte, TwoLevel, bits};
use super::shadow::Access;
use super::window::{Changes, Window};
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::{GuestVirt, Mfn};
use crate::bounce::Mode;
use crate::domain::{Arch, RunState};
use crate::frame::FrameType;
use crate::host::Hardware;
use crate::sync::MutexGuard;
use core::sync::atomic::Ordering;
use proxenos_abi::hypercall::VmAssistType;

/// Tables that may be open at a time.
pub const WINDOWS: usize = 2;
/// Stores in a row to a table that are carried out here before it is opened.
pub const PATIENCE: i32 = 3;
/// Stores by which a table is later opened that was closed again before the guest had written to it: it is likely that
/// the guest cannot do without it.
const PENALTY: i32 = 64;

/// What a guest's writes to its tables have come to.
#[derive(Debug)]
pub struct WritableTables {
    /// Tables written to lately, the last one first, and how often in a row.
    recent: [(Mfn, i32); 2],
    pub(super) windows: [Option<Window>; WINDOWS],
    /// What the open tables held, a frame for each window that was ever in use.
    pub(super) snapshots: [Option<Mfn>; WINDOWS],
    /// The window to be closed when another is needed.
    pub(super) oldest: usize,
    /// The last store for which a table was opened because it could not be carried out: where it is, where it writes
    /// to.
    opened_for: Option<(u64, GuestVirt)>,
    /// The entry for which the domain was ended.
    pub refused: Option<RefusedEntry>,
}

/// An entry that a guest wrote and may not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefusedEntry {
    /// The L1 table.
    pub table: Mfn,
    /// The slot in it.
    pub index: usize,
    /// What it wrote.
    pub entry: Pte,
    /// What is wrong with it.
    pub error: PagingError,
}

/// An entry of an L1 table that a guest wants to write to, and how it got there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Where it writes.
    pub at: GuestVirt,
    /// The table it writes to.
    pub table: Mfn,
    /// The L1 table that maps it.
    pub mapper: Mfn,
    /// The slot there.
    pub mapper_index: usize,
    /// The entry there.
    pub mapping: Pte,
}

/// What a fault has to do with writable tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableFault {
    /// Nothing: it is for others to look at.
    Other,
    /// Something was amiss that is right now: the access is to be tried again.
    TryAgain,
    /// It is a store to a table, which must be carried out or the table opened.
    Store(Written),
}

impl WritableTables {
    pub(super) const fn new() -> Self {
        Self {
            recent: [(Mfn(0), 0); 2],
            windows: [None; WINDOWS],
            snapshots: [None; WINDOWS],
            oldest: 0,
            opened_for: None,
            refused: None,
        }
    }

    /// Whether a table is open.
    #[inline]
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.windows[0].is_some() || self.windows[1].is_some()
    }

    /// The open tables, each with the frame that holds what was in it.
    pub fn windows(&self) -> impl Iterator<Item = (&Window, Mfn)> {
        self.windows.iter().zip(self.snapshots).filter_map(|(window, snapshot)| Some((window.as_ref()?, snapshot?)))
    }

    /// The frames that are kept for copies.
    pub fn snapshots(&self) -> impl Iterator<Item = Mfn> {
        self.snapshots.into_iter().flatten()
    }

    /// Whether a table is open, or maps one that is.
    #[must_use]
    #[inline]
    pub fn involves(&self, table: Mfn) -> bool {
        self.windows.iter().flatten().any(|window| window.table == table || window.mapper == table)
    }

    /// The guest does something else.
    #[inline]
    pub(super) fn forget_recent(&mut self) {
        self.recent[0].1 = 0;
        self.recent[1].1 = 0;
    }

    /// The guest writes to a table once more: true when the table should be opened.
    #[inline]
    fn count(&mut self, table: Mfn) -> bool {
        if self.recent[0].0 != table {
            self.recent.swap(0, 1);
            if self.recent[0].0 != table {
                self.recent[0] = (table, 0);
            }
        }
        let writes = &mut self.recent[0].1;
        *writes += 1;
        *writes > PATIENCE
    }

    /// The table should not be opened soon.
    fn penalise(&mut self, table: Mfn) {
        for recent in self.recent.iter_mut().filter(|recent| recent.0 == table) {
            recent.1 = -PENALTY;
        }
    }
}

impl<'a, H: Hardware> Pager<'a, H> {
    /// Takes the domain's paging lock, for a request: no table is open then.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'a, PagingState> {
        let mut state = self.dom.paging.lock();
        self.settle(&mut state);
        state
    }

    /// The same, if nobody has the lock: whoever may wait for one here keeps more in registers for it than who need
    /// not.
    #[inline(always)]
    pub(crate) fn lock_at_once(&self) -> Option<MutexGuard<'a, PagingState>> {
        let mut state = self.dom.paging.try_lock()?;
        self.settle(&mut state);
        Some(state)
    }

    /// Closes all tables and begins to count anew.
    #[inline]
    pub fn settle(&self, state: &mut PagingState) {
        if self.dom.has_busy_tables() {
            self.settle_busy(state);
        }
    }

    #[cold]
    fn settle_busy(self, state: &mut PagingState) {
        state.writable.forget_recent();
        if state.writable.is_open() {
            self.close_all(state);
            state.writable.opened_for = None;
        }
        // Behind that: who does not wait for the lock is to find all done, and the domain's end noted if it was that.
        self.dom.busy_tables.store(false, Ordering::Release);
    }

    #[cold]
    fn close_all(&self, state: &mut PagingState) {
        for which in 0..WINDOWS {
            match self.dom.arch {
                Arch::X86_32 => self.close::<TwoLevel>(state, which),
                Arch::X86_64 => self.close::<FourLevel>(state, which),
            };
        }
    }

    /// Closes all tables and gives back what they needed: the guest does without, or ends.
    pub fn release_writable_tables(&self) {
        let mut state = self.lock();
        for snapshot in state.writable.snapshots.iter_mut().filter_map(Option::take) {
            self.host.free_hypervisor(snapshot, 0);
        }
    }

    /// Notes where the last reference to an L1 table of a four-level guest's came from: the CPU walks those, so to open
    /// one its slot must be known.
    #[inline]
    pub(super) fn note_parent<F: Format>(&self, level: u8, entry: Pte, table: Mfn, index: usize) {
        if !F::SHADOWED
            && level == 2
            && entry.present()
            && let Some(info) = self.host.frames.info(entry.mfn())
        {
            info.note_parent(table, index);
        }
    }

    /// Looks whether a fault of the guest's, or of the hypervisor's at a guest's address, has to do with writable
    /// tables. An access by a guest's applications never has.
    #[inline(always)]
    pub fn table_fault<F: Format>(&self, state: &mut PagingState, at: GuestVirt, access: Access) -> TableFault {
        let by_kernel = if F::SHADOWED { !access.user } else { state.user.mode == Mode::Kernel };
        let written = if access.write && by_kernel && self.dom.is_assisted(VmAssistType::WritablePagetables) {
            self.written_table::<F>(state, at)
        } else {
            None
        };
        let Some(written) = written else {
            state.writable.forget_recent();
            if !state.writable.is_open() {
                return TableFault::Other;
            }
            // The guest's tables may say something else than what the CPU has seen.
            self.close_all_in_the_way(state);
            return TableFault::TryAgain;
        };
        let open = &state.writable;
        if open.is_open() && (open.involves(written.table) || self.is_open_table(state, written.mapper)) {
            self.close_all_in_the_way(state);
            return TableFault::TryAgain;
        }
        TableFault::Store(written)
    }

    fn is_open_table(&self, state: &PagingState, table: Mfn) -> bool {
        state.writable.windows.iter().flatten().any(|window| window.table == table)
    }

    /// Closes all tables because the guest touched what it cannot while they are open.
    #[cold]
    fn close_all_in_the_way(&self, state: &mut PagingState) {
        for which in 0..WINDOWS {
            let table = state.writable.windows[which].map(|window| window.table);
            let changes = match self.dom.arch {
                Arch::X86_32 => self.close::<TwoLevel>(state, which),
                Arch::X86_64 => self.close::<FourLevel>(state, which),
            };
            match table {
                Some(table) if changes == Changes::None => self.penalise(state, table),
                // Whatever it was opened for has been done.
                Some(_) => state.writable.opened_for = None,
                None => {}
            }
        }
    }

    /// The L1 table that lies at an address, if the guest's tables would let it write there but for what the frame is.
    #[inline(always)]
    fn written_table<F: Format>(&self, state: &PagingState, at: GuestVirt) -> Option<Written> {
        // Bits above the format's reach would be dropped by the walk.
        if F::SHADOWED && at.0 >> 32 != 0 {
            return None;
        }
        let found = self.walk::<F>(state, at)?;
        // A four-level guest's kernel runs in ring 3.
        let rights = bits::RW | if F::SHADOWED { 0 } else { bits::US & found.entry.0 };
        let reachable = found.entry.present() && found.rights & rights == rights;
        if !reachable || !F::SHADOWED && !found.entry.has(bits::US) {
            return None;
        }
        let table = found.entry.mfn();
        self.is_own_l1(table).then_some(Written {
            at,
            table,
            mapper: found.table,
            mapper_index: found.index,
            mapping: found.entry,
        })
    }

    /// Whether a frame is a validated L1 table of the domain's.
    #[inline]
    pub(super) fn is_own_l1(&self, mfn: Mfn) -> bool {
        self.host.frames.above_first_mib(mfn).is_some_and(|info| info.is_held(self.dom.id, FrameType::L1))
    }

    /// Counts a store to a table and opens it, if it is written to often; true when the guest can go on by itself.
    #[inline]
    pub fn open_if_busy<F: Format>(&self, state: &mut PagingState, written: &Written) -> bool {
        self.dom.busy_tables.store(true, Ordering::Relaxed);
        state.writable.count(written.table) && self.open_busy::<F>(state, written)
    }

    fn penalise(&self, state: &mut PagingState, table: Mfn) {
        self.dom.busy_tables.store(true, Ordering::Relaxed);
        state.writable.penalise(table);
    }

    #[cold]
    fn open_busy<F: Format>(&self, state: &mut PagingState, written: &Written) -> bool {
        let opened = self.open::<F>(state, written).is_ok();
        if !opened {
            self.penalise(state, written.table);
        }
        opened
    }

    /// Opens a table for a copy of the hypervisor's to it; true when the copy can go on.
    pub fn open_for_copy<F: Format>(&self, state: &mut PagingState, written: &Written) -> bool {
        self.open::<F>(state, written).is_ok()
    }

    /// Opens a table for a store, by the instruction at `ip`, that cannot be carried out here; true when the guest can
    /// go on by itself. The same one is not helped twice if a fault closed the table before anything was written: it
    /// would fault for ever.
    pub fn open_for<F: Format>(&self, state: &mut PagingState, written: &Written, ip: u64) -> bool {
        if state.writable.opened_for == Some((ip, written.at)) {
            state.writable.opened_for = None;
            return false;
        }
        let opened = self.open::<F>(state, written).is_ok();
        state.writable.opened_for = opened.then_some((ip, written.at));
        opened
    }

    /// Carries out a store of `bytes` bytes: `compute` makes of what is there what is to be there. False when there is
    /// no such table any more, or the store is not within one entry of it.
    #[inline]
    pub fn store_entry<F: Format>(
        &self,
        state: &mut PagingState,
        written: &Written,
        bytes: u64,
        compute: impl FnOnce(u64) -> u64,
    ) -> bool {
        let width = F::entry_addr(Mfn(0), 1).0;
        let within = written.at.0 % width;
        let table = self.own_l1_table::<F>(written.table);
        if within + bytes > width
            || table.is_none() && !self.is_own_l1(written.table)
            || state.writable.is_open() && state.writable.involves(written.table)
        {
            return false;
        }
        let index = written.at.page_offset() / width as usize;
        let old = F::load(&self.host.hw, written.table, index);
        let (shift, mask) = (8 * within, u64::MAX >> (64 - 8 * bytes));
        let value = compute(old.0 >> shift & mask);
        let new =
            if bytes == width { Pte(value) } else { F::truncate(old.0 & !(mask << shift) | (value & mask) << shift) };
        if new != old
            && !table.is_some_and(|table| self.update_l1_quickly::<F>(&table, F::entry_addr(written.table, index), new))
            && let Err(error) = self.update_l1::<F>(written.table, index, new, Target::Own)
        {
            self.refuse(state, RefusedEntry { table: written.table, index, entry: new, error });
        }
        true
    }

    /// Ends the domain for an entry that it wrote. The one place where that is decided.
    #[cold]
    pub(super) fn refuse(&self, state: &mut PagingState, refused: RefusedEntry) {
        state.writable.refused.get_or_insert(refused);
        self.dom.set_state(RunState::CRASHED);
    }
}
