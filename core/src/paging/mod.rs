//! Guest page tables: validated before the CPU may walk them, and never changed but through validation.
//!
//! Guests hold machine addresses. A frame becomes a page table by having every entry checked ([`types`]); from then on
//! it is mapped read-only everywhere, and each change is a request that is checked in the same way ([`entry`]). The CPU
//! walks a four-level guest's own tables. It cannot walk two-level ones in long mode, so those have *write-through
//! shadows* ([`shadow`]): each validated change writes the shadow too, so a shadow is at all times a function of the
//! guest's tables (invariant I6) and never scanned for differences. They take no more memory than they may ([`pool`]).
//!
//! A guest may also write to its L1 tables as if they were memory ([`writable`]): its stores are carried out one by one
//! in the same way, or it is let write for a while and what it did is checked before the CPU may walk it ([`window`]).
//!
//! Everything here is generic over the guest's [`Format`] and dispatched statically; callers choose by
//! [`Domain::arch`](crate::domain::Domain). Lock: the owner's paging lock. Functions that need it take the
//! [`PagingState`] that it guards. Taking and dropping references to frames that are *not* tables needs no lock.

pub mod entry;
pub mod fault;
pub mod format;
pub mod linear;
pub mod log_dirty;
pub mod partial;
pub mod pool;
mod scan;
pub mod shadow;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
pub mod types;
pub mod user_base;
pub mod window;
pub mod writable;

use crate::addr::{DomId, GuestVirt, Mfn};
use crate::bounce::Mode;
use crate::domain::Domain;
use crate::frame::{FrameType, RefError};
use crate::host::{Hardware, Host};
use crate::preempt::Poll;
use entry::L1Table;
use format::{Format, Pte, bits};
use partial::Suspended;
use pool::ShadowPool;
use proxenos_abi::Errno;
use user_base::UserBase;
use writable::WritableTables;

/// Why a paging request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PagingError {
    /// The entry has a bit that guests may not set.
    RefusedBits,
    /// The slot belongs to the hypervisor.
    ReservedSlot,
    /// A frame could not be referred to in this way.
    Frame(RefError),
    /// The frame is I/O memory, or the hypervisor's, and the caller has no right to it.
    NoRight,
    /// There is no page table where the request wants to change one, or the address is not an entry's.
    NoTable,
    /// Pinned already, or not pinned.
    Pinning,
    /// A descriptor table holds a descriptor that guests may not have.
    Descriptor,
    /// No memory for a shadow.
    NoMemory,
    /// The request is not refused: it made way, and is to be made again.
    Preempted,
}

impl From<RefError> for PagingError {
    fn from(error: RefError) -> Self {
        Self::Frame(error)
    }
}

impl From<PagingError> for Errno {
    fn from(error: PagingError) -> Self {
        match error {
            PagingError::NoMemory => Self::ENOMEM,
            _ => Self::EINVAL,
        }
    }
}

/// Whose frames a new L1 entry may map (MMUEXT_SET_FOREIGNDOM, xen.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The caller's own, and I/O memory if it has the right to it.
    Own,
    /// I/O memory only (DOMID_IO).
    Io,
    /// What the hypervisor shares, read-only (DOMID_XEN): the machine-to-physical table.
    Hypervisor,
    /// Another domain's.
    Domain(DomId),
}

/// What a domain's address space hangs on. Guarded by the domain's paging lock.
#[derive(Debug)]
pub struct PagingState {
    /// The guest's current top-level table, of which a type reference is held.
    pub base: Option<Mfn>,
    /// For shadowed guests, the two upper tables that every shadow of theirs is hung into: L4 and L3.
    pub upper: Option<(Mfn, Mfn)>,
    /// For four-level guests that are watched, the shadow of the base ([`log_dirty`]).
    pub(crate) root: Option<Mfn>,
    /// What a four-level guest's applications run on.
    pub user: UserBase,
    /// The half-validated tables that wait for somebody to go on with them ([`partial`]).
    pub(crate) suspended: Suspended,
    /// First of those that wait to be undone.
    pub(crate) condemned: Option<Mfn>,
    /// Whether what is done now may make way: that of the request that holds the lock.
    pub(crate) poll: Poll,
    /// What the guest's writes to its own tables have come to.
    pub writable: WritableTables,
    /// What the CPU walks in place of the guest's tables.
    pub pool: ShadowPool,
}

impl PagingState {
    /// No address space yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            base: None,
            upper: None,
            root: None,
            user: UserBase::new(),
            suspended: Suspended::NONE,
            condemned: None,
            poll: Poll::NEVER,
            writable: WritableTables::new(),
            pool: ShadowPool::new(),
        }
    }

    /// Whether tables wait to be undone.
    #[must_use]
    pub const fn has_condemned(&self) -> bool {
        self.condemned.is_some() || self.suspended.abandoned().is_some()
    }

    /// The guest's table that the CPU walks, or a shadow of.
    #[inline]
    #[must_use]
    pub const fn walked_base(&self) -> Option<Mfn> {
        match self.user.mode {
            Mode::Kernel => self.base,
            Mode::User => self.user.base,
        }
    }

    /// Both bases, where there are two.
    pub(crate) fn bases(&self) -> impl Iterator<Item = Mfn> + use<> {
        [self.base, self.user.base].into_iter().flatten()
    }
}

impl Default for PagingState {
    fn default() -> Self {
        Self::new()
    }
}

/// The paging operations of one domain: a view of host and domain together.
pub struct Pager<'a, H> {
    /// The machine.
    pub host: &'a Host<H>,
    /// Whose tables these are.
    pub dom: &'a Domain,
}

impl<H> Clone for Pager<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for Pager<'_, H> {}

/// Where a virtual address is translated: the frame of the last table, the slot in it and the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The last table.
    pub table: Mfn,
    /// Its level: 1, or that of a directory where the guest has hung one in as an L1 table, to read it there.
    pub level: u8,
    /// The slot.
    pub index: usize,
    /// Its entry.
    pub entry: Pte,
    /// Rights that the levels above leave (RW and US).
    pub rights: u64,
}

impl<'a, H: Hardware> Pager<'a, H> {
    /// The paging operations of a domain.
    #[must_use]
    pub const fn new(host: &'a Host<H>, dom: &'a Domain) -> Self {
        Self { host, dom }
    }

    /// Walks the tables of the guest's kernel down to the L1 slot of `at`. They are validated, so every step leads to a
    /// table of the next level, but where a directory stands in the place of an L1 table.
    #[inline]
    pub fn walk<F: Format>(&self, state: &PagingState, at: GuestVirt) -> Option<Translation> {
        self.walk_from::<F>(state.base?, at)
    }

    /// As [`walk`](Self::walk), from the table that the CPU begins at: what a fault is about.
    #[inline]
    pub fn walk_as_cpu<F: Format>(&self, state: &PagingState, at: GuestVirt) -> Option<Translation> {
        self.walk_from::<F>(state.walked_base()?, at)
    }

    #[inline]
    fn walk_from<F: Format>(&self, base: Mfn, at: GuestVirt) -> Option<Translation> {
        // Below the top, every slot is the guest's.
        if !F::is_guest_slot(F::TOP, F::index(F::TOP, at)) {
            return None;
        }
        let (table, rights) = self.descend::<F>(base, at)?;
        let index = F::index(1, at);
        let level = if F::LINEAR && self.host.frames.info(table)?.is_directory() { 2 } else { 1 };
        // What lies in the hypervisor's slots of a directory has never been looked at.
        if !F::is_guest_slot(level, index) {
            return None;
        }
        Some(Translation { table, level, index, entry: F::load(&self.host.hw, table, index), rights })
    }

    /// The L1 table that translates `at` and the slot in it, for [`update_l1_quickly`](Self::update_l1_quickly). `at`
    /// is an address that the guest may use (`Personality::in_guest_range`), so no slot of the hypervisor's is on the
    /// way.
    #[inline(always)]
    pub(crate) fn l1_entry<F: Format>(&self, state: &PagingState, at: GuestVirt) -> Option<(L1Table, usize)> {
        debug_assert!(F::is_guest_slot(F::TOP, F::index(F::TOP, at)));
        let (table, _) = self.descend::<F>(state.base?, at)?;
        Some((self.walked_l1_table::<F>(table)?, F::index(1, at)))
    }

    /// What stands in the place of the L1 table for `at`, and the rights that the levels above leave.
    #[inline(always)]
    fn descend<F: Format>(&self, base: Mfn, at: GuestVirt) -> Option<(Mfn, u64)> {
        let mut table = base;
        let mut rights = bits::RW | bits::US;
        let mut level = F::TOP;
        while level > 1 {
            let entry = F::load(&self.host.hw, table, F::index(level, at));
            if !entry.present() {
                return None;
            }
            rights &= entry.0;
            table = entry.mfn();
            level -= 1;
        }
        Some((table, rights))
    }

    /// Makes `table` the base of a domain that does not run.
    pub fn set_base<F: Format>(&self, state: &mut PagingState, table: Mfn) -> Result<(), PagingError> {
        self.switch_base::<F>(state, table, |_| ())
    }

    /// Makes `table` the domain's page-table base. `load` is given its [root](user_base::Roots), for the CPU that runs
    /// the domain, *before* the old base is given up: from then on that may become anything, and must not be what a CPU
    /// walks.
    pub fn switch_base<F: Format>(
        &self,
        state: &mut PagingState,
        table: Mfn,
        load: impl FnOnce(Mfn),
    ) -> Result<(), PagingError> {
        if F::SHADOWED && state.upper.is_none() {
            return Err(PagingError::NoMemory);
        }
        self.get_frame_and_type::<F>(state, table, self.dom.id, FrameType::table(F::TOP))?;
        if let Err(error) = self.need_shadow::<F>(state, table) {
            self.put_frame_and_type::<F>(state, table);
            return Err(error);
        }
        if self.walks_shadows::<F>() {
            self.hang_shadow(state, Some(table));
        }
        let old = state.base.replace(table);
        self.note_roots(state);
        load(self.dom.roots.of(state.user.mode).unwrap_or(table));
        if let Some(old) = old {
            self.put_frame_and_type::<F>(state, old);
        }
        Ok(())
    }

    /// [`switch_base`](Self::switch_base), where nothing has to be validated or undone for it: the new base is held as
    /// such a table by something, and the old one by something else. False says nothing, and nothing has changed.
    #[inline]
    pub(crate) fn switch_held_base<F: Format>(
        &self,
        state: &mut PagingState,
        table: Mfn,
        load: impl FnOnce(Mfn),
    ) -> bool {
        let frames = &self.host.frames;
        let Some(old) = state.base.and_then(|old| frames.info(old)) else { return false };
        // Type references to a table are given back under the paging lock: no more go meanwhile.
        if old.type_word().count() < 2 || F::SHADOWED && state.upper.is_none() {
            return false;
        }
        let Some(info) = frames.above_first_mib(table) else { return false };
        // A shadow that is missing must be made first, and one of a base that needs none otherwise is not for here.
        let shadow = if F::SHADOWED { info.shadow() } else { None };
        if F::SHADOWED && shadow.is_none() || !F::SHADOWED && self.dom.log.is_on() {
            return false;
        }
        if !info.get_held(self.dom.id, FrameType::table(F::TOP)) {
            return false;
        }
        if F::SHADOWED {
            self.hang(state, shadow);
        }
        state.base = Some(table);
        if !F::SHADOWED {
            // There is no shadow.
            self.dom.roots.set(Mode::Kernel, Some(table));
        }
        load(self.dom.roots.word(Mode::Kernel));
        old.put_held();
        true
    }

    /// Gives up the page-table bases: the domain is dying, and no CPU has its tables loaded.
    pub fn clear_base<F: Format>(&self, state: &mut PagingState) {
        state.user.mode = Mode::Kernel;
        self.replace_user_base::<F>(state, None);
        if let Some(old) = state.base.take() {
            self.hang_shadow(state, None);
            self.note_roots(state);
            self.put_frame_and_type::<F>(state, old);
        }
    }
}
