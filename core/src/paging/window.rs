//! Open tables: an L1 table that its guest may write to for a while.
//!
//! What makes it sound is that while a table is open nobody relies on what is in it:
//!
//! - **The CPU does not walk it.** It never walks a two-level guest's tables, nor those of a guest that is watched, and
//!   the shadow stays as it was, which to the guest is what a TLB is: it holds the old entries until the guest flushes
//!   (by a request, which closes the table) or faults (which does as well). A four-level guest's table is taken out of
//!   the one L2 slot that leads to it, whose entry is not present meanwhile, as in 2.0; so it must have one slot only,
//!   or none and a pin. An INVLPG then drops whatever the CPU has cached of the way to it (Intel SDM vol. 3 §4.10.4.1;
//!   AMD64 APM vol. 2 §5.5.2).
//! - **The references of its entries are those of the copy** that is made when it opens. The frame keeps its type and
//!   count, so nobody can take it for anything else or map it writable a second time: the window is the one
//!   exception to invariant I1.
//! - **The hypervisor does not look.** [`Pager::lock`] closes what is open.
//!
//! Closing makes the window read-only, *then flushes every TLB that may hold it* (the table that maps it may hang in
//! several slots, so other addresses than the one that faulted may show it), and only then compares with the copy and
//! checks what differs. What differs goes through the checks of every update. At the first entry that is refused the
//! rest is put back as it was, so that all counts are right, and the domain ends.
//!
//! Lock: the owner's paging lock.

use super::format::{Format, Pte, bits};
use super::log_dirty;
use super::types::get_own_target;
use super::writable::{RefusedEntry, WINDOWS, Written};
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::{GuestVirt, Mfn, PAGE_SIZE};
use crate::frame::{FrameType, TypeRest};
use crate::frame_alloc::Zone;
use crate::host::Hardware;
use core::ops::Range;
use core::sync::atomic::Ordering;

/// An open table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// The table.
    pub table: Mfn,
    /// Where the guest writes to it.
    pub at: GuestVirt,
    /// The L1 table that maps it there, the slot and the entry, which allows no writes.
    pub mapper: Mfn,
    /// See [`mapper`](Self::mapper).
    pub mapper_index: usize,
    /// See [`mapper`](Self::mapper).
    pub mapping: Pte,
    /// Of a four-level guest's table: the L2 table it was taken out of, the slot and the entry.
    pub parent: Option<(Mfn, usize, Pte)>,
}

/// What a guest did to an open table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Changes {
    /// Nothing.
    None,
    /// It is not what it was.
    Some,
}

/// A table cannot be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NotOpened;

impl<H: Hardware> Pager<'_, H> {
    /// Opens a table. `written` is as [`table_fault`](Self::table_fault) found it, or older: it is looked at again.
    pub(super) fn open<F: Format>(&self, state: &mut PagingState, written: &Written) -> Result<(), NotOpened> {
        let &Written { at, table, mapper, mapper_index, .. } = written;
        // A table that maps itself would vanish with itself.
        if mapper == table || !self.is_own_l1(table) || !self.is_own_l1(mapper) {
            return Err(NotOpened);
        }
        let windows = state.writable.windows;
        if state.writable.involves(table) || windows.iter().flatten().any(|window| window.table == mapper) {
            return Err(NotOpened);
        }
        let mapping = F::load(&self.host.hw, mapper, mapper_index);
        if !mapping.present() || mapping.writable() || mapping.mfn() != table {
            return Err(NotOpened);
        }
        // What the guest wrote past the caches would not be what is checked (`frame::caching`).
        if mapping.0 & bits::UNCACHED != 0 {
            return Err(NotOpened);
        }
        let parent = if self.walks_shadows::<F>() { None } else { self.only_slot::<F>(table)? };
        if self.walks_shadows::<F>() {
            // The window is in a shadow, which must be there.
            self.fill_path::<F>(state, at);
            self.host.frames.info(mapper).and_then(|info| info.shadow()).ok_or(NotOpened)?;
        }
        let which = windows.iter().position(Option::is_none).unwrap_or(state.writable.oldest);
        if windows[which].is_some() {
            self.close::<F>(state, which);
        }
        let snapshot = match state.writable.snapshots[which] {
            Some(snapshot) => snapshot,
            None => self.host.alloc.lock().alloc_hypervisor(0, Zone::Any, &self.host.hw).ok_or(NotOpened)?,
        };
        state.writable.snapshots[which] = Some(snapshot);
        state.writable.oldest = (which + 1) % WINDOWS;

        if let Some((l2, slot, _)) = parent {
            self.change::<F>(l2, slot, |entry| entry & !bits::P);
        }
        self.host.hw.copy_frame(table, snapshot);
        self.mark_dirty(table);
        if self.walks_shadows::<F>() {
            self.open_shadow(mapper, mapper_index, mapping);
        } else {
            // With A and D set, the CPU has nothing to write to the entry.
            self.change::<F>(mapper, mapper_index, |entry| entry | bits::RW | bits::A | bits::D);
            self.host.hw.flush_page(at);
        }
        self.dom.busy_tables.store(true, Ordering::Relaxed);
        state.writable.windows[which] = Some(Window { table, at, mapper, mapper_index, mapping, parent });
        Ok(())
    }

    /// The one L2 slot that leads to a table; or none, if nothing but a pin makes it one.
    fn only_slot<F: Format>(&self, table: Mfn) -> Result<Option<(Mfn, usize, Pte)>, NotOpened> {
        let info = self.host.frames.info(table).ok_or(NotOpened)?;
        let word = info.type_word();
        if word.count() != 1 {
            return Err(NotOpened);
        }
        if word.is_pinned() {
            return Ok(None);
        }
        // What was noted may be long past: it counts only if it is true now, and then it is the only one.
        let (l2, slot) = info.noted_parent();
        let above = self.host.frames.info(l2).filter(|_| self.host.is_ram(l2)).ok_or(NotOpened)?;
        let word = above.type_word();
        let is_table = word.kind() == FrameType::L2 && word.is_validated() && word.count() > 0;
        if !is_table || above.refs().owner() != self.dom.id || slot >= F::ENTRIES {
            return Err(NotOpened);
        }
        let entry = F::load(&self.host.hw, l2, slot);
        if entry.present() && entry.mfn() == table { Ok(Some((l2, slot, entry))) } else { Err(NotOpened) }
    }

    fn change<F: Format>(&self, table: Mfn, index: usize, new: impl Fn(u64) -> u64) {
        let mut old = F::load(&self.host.hw, table, index);
        while let Err(seen) = F::cas(&self.host.hw, table, index, old, Pte(new(old.0))) {
            old = seen;
        }
    }

    /// Closes a table, if it is open, and checks what the guest did to it. Says whether it did anything.
    pub(super) fn close<F: Format>(&self, state: &mut PagingState, which: usize) -> Changes {
        let Some(window) = state.writable.windows[which].take() else { return Changes::None };
        let snapshot = state.writable.snapshots[which].expect("an open table has a copy");
        if self.walks_shadows::<F>() {
            let mapping = F::load(&self.host.hw, window.mapper, window.mapper_index);
            self.shadow_entry::<F>(1, window.mapper, window.mapper_index, mapping);
        } else {
            self.change::<F>(window.mapper, window.mapper_index, |entry| window.mapping.0 | entry & bits::A);
        }
        self.host.hw.flush_if_older(self.host.hw.stamp());
        let changes = self.check_changes::<F>(state, window.table, snapshot);
        if let Some((l2, slot, _)) = window.parent {
            self.change::<F>(l2, slot, |entry| entry | bits::P);
        }
        changes
    }

    /// Checks the entries in which a table differs from its copy. Nobody else can write to the table now.
    fn check_changes<F: Format>(&self, state: &mut PagingState, table: Mfn, snapshot: Mfn) -> Changes {
        const LINE: usize = 64;
        let hw = &self.host.hw;
        let per_line = F::ENTRIES * LINE / PAGE_SIZE;
        let mut changes = Changes::None;
        for line in 0..PAGE_SIZE / LINE {
            let first = line * per_line;
            // Most of a table is usually as it was.
            if hw.is_same_line(F::entry_addr(table, first), F::entry_addr(snapshot, first)) {
                continue;
            }
            changes = Changes::Some;
            if let Err((index, error)) = self.check_line::<F>(table, snapshot, first, per_line) {
                let entry = F::load(hw, table, index);
                self.put_back::<F>(table, snapshot, index);
                self.refuse(state, RefusedEntry { table, index, entry, error });
                break;
            }
        }
        changes
    }

    /// Checks the entries that differ among some. Most of what a guest writes to an open table is something where
    /// nothing was: that has the short way here.
    #[inline(never)]
    fn check_line<F: Format>(
        &self,
        table: Mfn,
        snapshot: Mfn,
        first: usize,
        count: usize,
    ) -> Result<(), (usize, PagingError)> {
        let plain = F::SHADOWED && !self.dom.log.is_on();
        let shadow = if plain { self.host.frames.info(table).and_then(|info| info.shadow()) } else { None };
        match shadow {
            Some(shadow) => self.check_entries::<F>(table, snapshot, first..first + count, |index, new| {
                self.write_l1_shadow(shadow, index, new);
            }),
            None if self.dom.log.is_on() => {
                self.check_entries::<F>(table, snapshot, first..first + count, |index, new| {
                    self.shadow_entry::<F>(1, table, index, new);
                })
            }
            None => self.check_entries::<F>(table, snapshot, first..first + count, |_, _| ()),
        }
    }

    #[inline(always)]
    fn check_entries<F: Format>(
        &self,
        table: Mfn,
        snapshot: Mfn,
        indices: Range<usize>,
        shadow: impl Fn(usize, Pte),
    ) -> Result<(), (usize, PagingError)> {
        let (host, hw, dom) = (self.host, &self.host.hw, self.dom);
        for index in indices {
            let (old, new) = (F::load(hw, snapshot, index), F::load(hw, table, index));
            if old == new {
                continue;
            }
            if !old.present() && new.present() && get_own_target::<F, H>(host, dom, new) {
                shadow(index, new);
            } else {
                self.check_change::<F>(table, index, old, new).map_err(|error| (index, error))?;
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn check_change<F: Format>(&self, table: Mfn, index: usize, old: Pte, new: Pte) -> Result<(), PagingError> {
        if new.present() {
            if new.0 & F::REFUSED != 0 {
                return Err(PagingError::RefusedBits);
            }
            if old.present() {
                return self.check_replacement::<F>(table, index, old, new);
            }
            self.get_l1_target::<F>(new, Target::Own)?;
        }
        self.write_shadow::<F>(1, table, index, new);
        self.put_l1_target(old);
        Ok(())
    }

    fn check_replacement<F: Format>(&self, table: Mfn, index: usize, old: Pte, new: Pte) -> Result<(), PagingError> {
        if old.differs_harmlessly(new) {
            self.write_shadow::<F>(1, table, index, new);
            return Ok(());
        }
        // What a fork does to most entries: less than before, of the same frame, whosever that is.
        if old.differs_harmlessly(Pte(new.0 | bits::RW)) && self.host.is_ram(new.mfn()) {
            self.write_shadow::<F>(1, table, index, new);
            let info = self.host.frames.info(new.mfn()).expect("RAM is in the frame table");
            if self.host.is_any_watched() {
                log_dirty::foreign_writer(self.host, self.dom.id, new.mfn(), info);
            }
            let _: TypeRest = info.put_type(|| self.host.hw.stamp());
            return Ok(());
        }
        self.get_l1_target::<F>(new, Target::Own)?;
        self.write_shadow::<F>(1, table, index, new);
        self.put_l1_target(old);
        Ok(())
    }

    /// The entries from `from` on become again what they were.
    #[cold]
    fn put_back<F: Format>(&self, table: Mfn, snapshot: Mfn, from: usize) {
        for index in from..F::ENTRIES {
            let old = F::load(&self.host.hw, snapshot, index);
            self.change::<F>(table, index, |_| old.0);
        }
    }
}
