//! Write-through shadows: what the CPU walks in place of a two-level guest's tables, and in place of any guest's while
//! it is watched ([`super::log_dirty`]).
//!
//! A guest's L1 table (1024 entries, 4 MiB) has a shadow of two frames, one for each 2 MiB; its L2 table (4 GiB) one of
//! four, one for each GiB. They are made when the frame is validated as a table, written with every validated change of
//! it, and freed when it ceases to be a table, or earlier if room is short ([`super::pool`]): then they are made again
//! when they are needed. Above them hang one L3 and one L4 table a *domain*: a new page-table base rewrites four
//! entries of that L3, which is why a base costs no frames of its own.
//!
//! Accessed and dirty bits are the guest's to see. A shadow entry is present only if the guest's has A, and writable
//! only if it also has D (and, while [`super::log_dirty`] watches, only if the frame's bit is set); the fault that
//! follows sets the bit in the guest's entry, then in the shadow ([`Pager::resolve_shadow_fault`]). L2 entries are
//! shadowed as if accessed: a CPU may set A in those at any time.

use super::format::{Format, HYPERVISOR_L4_FIRST, Pte, bits};
use super::linear::view_entry;
use super::pool::{Need, Part};
use super::{Pager, PagingError, PagingState};
use crate::addr::{GuestVirt, MachineAddr, Mfn};
use crate::domain::RunState;
use crate::frame_alloc::Zone;
use crate::host::Hardware;

/// log2 of the frames that shadow an L1 table.
const L1_ORDER: u32 = 1;
/// log2 of the frames that shadow an L2 table.
const L2_ORDER: u32 = 2;
/// What an upper shadow entry carries besides its frame: as much as possible, the level below decides.
const OPEN: u64 = bits::P | bits::RW | bits::US | bits::A;

/// log2 of the frames that shadow a table of a level.
pub(super) const fn order<F: Format>(level: u8) -> u32 {
    match level {
        _ if !F::SHADOWED => 0,
        1 => L1_ORDER,
        _ => L2_ORDER,
    }
}

/// Slots of a shadow that an upper entry of the guest's takes.
const fn slots<F: Format>() -> usize {
    if F::SHADOWED { 2 } else { 1 }
}

/// How a guest's access failed, as far as page tables are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// It was a write.
    pub write: bool,
    /// It came from ring 3.
    pub user: bool,
}

/// What the CPU is to see of a guest's L1 entry.
fn l1_shadow(entry: Pte) -> u64 {
    if !entry.has(bits::P | bits::A) {
        return 0;
    }
    let shadow = entry.0 & (bits::FRAME | bits::US | bits::PCD | bits::PWT | bits::NX) | bits::P | bits::A;
    if entry.has(bits::RW | bits::D) { shadow | bits::RW | bits::D } else { shadow }
}

impl<H: Hardware> Pager<'_, H> {
    /// Gives a table of the lowest level a shadow in which nothing is present yet, if there is room. (While the domain
    /// is watched it gets one when it is used.)
    pub(super) fn create_empty_shadow<F: Format>(&self, state: &mut PagingState, table: Mfn) -> Option<Mfn> {
        let wanted = F::SHADOWED && !self.dom.log.is_on();
        let first = wanted.then(|| self.take_shadow::<F>(state, table, Part::Shadow(1), Need::Later)).flatten();
        match first {
            Some(_) => self.host.frames.info(table).expect("a table is RAM").set_shadow(first),
            None if F::SHADOWED => state.pool.note_absence(),
            None => {}
        }
        first
    }

    /// Makes the shadow of a table above the lowest level whose entries have just been validated, if there is room.
    pub(super) fn create_shadow<F: Format>(&self, state: &mut PagingState, table: Mfn, level: u8) {
        if F::LINEAR && level == 2 {
            self.begin_view::<F>(state, table);
        }
        if self.build_shadow::<F>(state, table, level, Need::Later).is_none() {
            state.pool.note_absence();
        }
    }

    /// Makes the shadow of a table that has none.
    pub(super) fn build_shadow<F: Format>(
        &self,
        state: &mut PagingState,
        table: Mfn,
        level: u8,
        need: Need,
    ) -> Option<Mfn> {
        debug_assert!(!state.writable.involves(table), "what is in an open table has not been looked at");
        let first = self.take_shadow::<F>(state, table, Part::Shadow(level), need)?;
        self.host.frames.info(table).expect("a table is RAM").set_shadow(Some(first));
        for index in 0..F::ENTRIES {
            let entry = F::load(&self.host.hw, table, index);
            if entry.present() && F::is_guest_slot(level, index) {
                self.shadow_entry::<F>(level, table, index, entry);
            }
        }
        if F::SHADOWED && level == 2 {
            self.map_machine_to_phys(first);
        }
        if level == 4 {
            for (index, entry) in self.host.hypervisor_slots.iter().enumerate() {
                self.host.hw.store64(slot(first, HYPERVISOR_L4_FIRST + index), *entry);
            }
        }
        Some(first)
    }

    /// Frees the shadow of a table that is none any more, and its view. The allocator flushes the TLBs before they are
    /// used again.
    pub(super) fn destroy_shadow<F: Format>(&self, state: &mut PagingState, table: Mfn, level: u8) {
        let info = self.host.frames.info(table).expect("a table is RAM");
        if F::LINEAR && level == 2 {
            self.destroy_view(state, info);
        }
        if let Some(first) = info.shadow() {
            info.set_shadow(None);
            self.release_shadow::<F>(state, first, level);
        }
    }

    /// Frees the shadow of an L1 table that is none any more, all of whose slots its caller has cleared that were in
    /// use. It goes back as zeroes: only the CPU has ever seen it.
    pub(super) fn destroy_cleared_shadow<F: Format>(&self, state: &mut PagingState, table: Mfn) {
        let info = self.host.frames.info(table).expect("a table is RAM");
        if let Some(first) = info.shadow() {
            info.set_shadow(None);
            self.release_zeroed_shadow::<F>(state, first);
        }
    }

    /// As [`write_l1_shadow`](Self::write_l1_shadow), of an entry that is present, writable, accessed and dirty.
    #[inline(always)]
    pub(super) fn write_used_l1_shadow(&self, shadow: Mfn, index: usize, entry: Pte) {
        const KEPT: u64 = bits::FRAME | bits::US | bits::PCD | bits::PWT | bits::P | bits::RW | bits::A | bits::D;
        debug_assert_eq!(l1_shadow(entry), entry.0 & KEPT);
        self.host.hw.store64(slot(shadow, index), entry.0 & KEPT);
    }

    /// Clears a slot of an L1 table's shadow, of which this is the first frame.
    #[inline]
    pub(super) fn clear_l1_shadow(&self, shadow: Mfn, index: usize) {
        self.host.hw.store64(slot(shadow, index), 0);
    }

    /// What an upper entry leads to, if that is there: the shadow of the table below, or a directory's view.
    #[inline]
    pub(super) fn shadow_below<F: Format>(&self, entry: Pte) -> Option<Mfn> {
        let child = if entry.present() { self.host.frames.info(entry.mfn())? } else { return None };
        if F::LINEAR && child.is_directory() { child.view() } else { child.shadow() }
    }

    /// An entry has changed: writes its shadow; nothing to do where the CPU walks the table itself.
    #[inline]
    pub(super) fn write_shadow<F: Format>(&self, level: u8, table: Mfn, index: usize, entry: Pte) {
        if self.dom.log.is_on() {
            self.write_logged_shadow::<F>(level, table, index, entry);
        } else if F::SHADOWED {
            self.shadow_entry::<F>(level, table, index, entry);
        }
    }

    #[cold]
    #[inline(never)]
    fn write_logged_shadow<F: Format>(&self, level: u8, table: Mfn, index: usize, entry: Pte) {
        self.mark_dirty(table);
        self.shadow_entry::<F>(level, table, index, entry);
    }

    /// Writes the shadow of an entry as it is.
    #[inline]
    pub(super) fn shadow_entry<F: Format>(&self, level: u8, table: Mfn, index: usize, entry: Pte) {
        let info = self.host.frames.info(table).expect("a table is RAM");
        if level == 1 {
            let Some(shadow) = info.shadow() else { return };
            let mut shown = l1_shadow(entry);
            if self.dom.log.is_on() {
                shown = self.unless_logged(entry, shown);
            }
            self.host.hw.store64(slot(shadow, index), shown);
            return;
        }
        if let Some(shadow) = info.shadow() {
            if F::SHADOWED
                && let Some(below) = self.shadow_below::<F>(entry)
            {
                self.note_hung(below);
            }
            for half in 0..slots::<F>() {
                self.host.hw.store64(slot(shadow, slots::<F>() * index + half), self.upper_shadow::<F>(entry, half));
            }
        }
        // The view does not depend on there being a shadow.
        if F::LINEAR
            && let Some(view) = info.view()
        {
            self.host.hw.store64(slot(view, index), view_entry(entry));
        }
    }

    /// One L2 entry of a two-level guest spans 4 MiB: two slots of the shadow, one for each half of the L1's shadow (or
    /// of a directory's view). One of a four-level guest's is one, and not present until it has been used.
    fn upper_shadow<F: Format>(&self, entry: Pte, half: usize) -> u64 {
        if !F::SHADOWED && !entry.has(bits::A) {
            return 0;
        }
        let flags = entry.0 & (bits::RW | bits::US | bits::NX) | bits::P | bits::A;
        self.shadow_below::<F>(entry).map_or(0, |first| Mfn(first.0 + half as u64).addr().0 | flags)
    }

    /// Writes an entry of an L1 table's shadow, of which this is the first frame.
    #[inline]
    pub(super) fn write_l1_shadow(&self, shadow: Mfn, index: usize, entry: Pte) {
        self.host.hw.store64(slot(shadow, index), l1_shadow(entry));
    }

    /// Writes the shadow of an L1 entry so that the CPU may write through it, whatever the guest's own entry says.
    pub(super) fn open_shadow(&self, table: Mfn, index: usize, entry: Pte) {
        let Some(shadow) = self.host.frames.info(table).and_then(|info| info.shadow()) else { return };
        let writable = Pte(entry.0 | bits::A | bits::RW | bits::D);
        self.host.hw.store64(slot(shadow, index), l1_shadow(writable));
    }

    /// Maps the machine-to-physical table into an L2 shadow, at 0xFC000000: readable in ring 1, not in ring 3.
    fn map_machine_to_phys(&self, shadow: Mfn) {
        const FIRST_SLOT: usize = 0xfc00_0000 >> 21;
        let Some(table) = self.host.m2p.narrow() else { return };
        for half in 0..2 {
            let value = (table.addr().0 + (half << 21)) | bits::P | bits::A | bits::PAT_OR_PS | bits::NX;
            self.host.hw.store64(slot(shadow, FIRST_SLOT + half as usize), value);
        }
    }

    /// Gives a two-level domain the two tables that its shadows hang in.
    pub fn create_upper_tables(&self, state: &mut PagingState) -> Result<(), PagingError> {
        let hw = &self.host.hw;
        let mut alloc = self.host.alloc.lock();
        let l4 = alloc.alloc_hypervisor(0, Zone::Any, hw).ok_or(PagingError::NoMemory)?;
        let Some(l3) = alloc.alloc_hypervisor(0, Zone::Any, hw) else {
            drop(alloc);
            self.host.free_hypervisor(l4, 0);
            return Err(PagingError::NoMemory);
        };
        hw.store64(slot(l4, 0), l3.addr().0 | OPEN);
        for (index, entry) in self.host.hypervisor_slots.iter().enumerate() {
            hw.store64(slot(l4, HYPERVISOR_L4_FIRST + index), *entry);
        }
        state.upper = Some((l4, l3));
        self.note_roots(state);
        state.pool.count(2);
        Ok(())
    }

    /// Frees those two tables.
    pub fn destroy_upper_tables(&self, state: &mut PagingState) {
        if let Some((l4, l3)) = state.upper.take() {
            self.host.free_hypervisor(l4, 0);
            self.host.free_hypervisor(l3, 0);
            state.pool.discount(2);
            self.note_roots(state);
        }
    }

    /// Hangs the shadow of an L2 table, or none, into the domain's L3; of a four-level guest's L4 it is what the CPU
    /// walks. The caller reloads the CPU's base.
    pub(super) fn hang_shadow(&self, state: &mut PagingState, table: Option<Mfn>) {
        self.hang(state, table.and_then(|table| self.host.frames.info(table)?.shadow()));
    }

    /// Hangs a shadow, or none, where [`hang_shadow`](Self::hang_shadow) does.
    #[inline]
    pub(super) fn hang(&self, state: &mut PagingState, shadow: Option<Mfn>) {
        let Some((_, l3)) = state.upper else {
            state.root = shadow;
            self.note_roots(state);
            return;
        };
        for gib in 0..4 {
            let value = shadow.map_or(0, |first| Mfn(first.0 + gib).addr().0 | OPEN);
            self.host.hw.store64(slot(l3, gib as usize), value);
        }
    }

    /// Deals with a page fault that exists only because of shadowing: the guest's tables, as they are now, allow the
    /// access, but A or D was not set yet, or what the CPU is to walk is not there. Sets and makes it, and returns true
    /// when the access can be tried again; false when the fault is the guest's.
    ///
    /// Where nothing had to be set and the shadow allows the access, the CPU went by what it remembered of other
    /// tables: a guest that swaps a table and does not flush may see the old one, but must not meet a fault that the
    /// old one did not make on hardware either (its A was not set, which only its shadow shows). The fault has made the
    /// CPU forget (SDM vol. 3 §4.10.4.1), so trying again ends. (A four-level guest's fault may be an instruction's,
    /// which no right that is looked at here would explain, so trying again might not end; and what it meets is what
    /// hardware may show it.)
    pub fn resolve_shadow_fault<F: Format>(&self, state: &mut PagingState, at: GuestVirt, access: Access) -> bool {
        if F::SHADOWED && at.0 >> 32 != 0 {
            return false;
        }
        let resolved = self.resolve::<F>(state, at, access);
        if resolved {
            self.count_fault();
        }
        resolved
    }

    fn resolve<F: Format>(&self, state: &mut PagingState, at: GuestVirt, access: Access) -> bool {
        let Some(found) = self.walk_as_cpu::<F>(state, at) else { return false };
        let needed = bits::P | if access.user { bits::US } else { 0 } | if access.write { bits::RW } else { 0 };
        if !Pte(found.rights & found.entry.0 | found.entry.0 & bits::P).has(needed) {
            return false;
        }
        let info = self.host.frames.info(found.table).expect("a table is RAM");
        let shown = |shadow: Option<Mfn>| {
            F::SHADOWED && shadow.is_some_and(|first| Pte(self.host.hw.load64(slot(first, found.index))).has(needed))
        };
        // A directory's entries are shadowed as if accessed, and show nothing to be written to.
        if found.level != 1 {
            return !access.write && (self.fill_path::<F>(state, at) || shown(info.view()));
        }
        let used = bits::A | if access.write { bits::D } else { 0 };
        let mut old = found.entry;
        loop {
            if old.has(used) {
                let logged = self.dom.log.is_on() && access.write;
                return self.fill_path::<F>(state, at) || logged && self.log_write::<F>(&found) || shown(info.shadow());
            }
            let new = Pte(old.0 | used);
            match F::cas(&self.host.hw, found.table, found.index, old, new) {
                Ok(()) => {
                    if access.write {
                        self.mark_dirty(new.mfn());
                    }
                    self.write_shadow::<F>(1, found.table, found.index, new);
                    return true;
                }
                Err(seen) => old = seen,
            }
        }
    }

    /// Makes what shadows are missing on the way to `at`, and hangs them in. False if none was missing, or if there is
    /// no memory even now: then the domain ends.
    #[cold]
    pub(super) fn fill_path<F: Format>(&self, state: &mut PagingState, at: GuestVirt) -> bool {
        let Some(mut table) = state.walked_base() else { return false };
        let mut changed = false;
        for level in (2..=F::TOP).rev() {
            let index = F::index(level, at);
            let mut entry = F::load(&self.host.hw, table, index);
            if !entry.present() || !F::is_guest_slot(level, index) {
                break;
            }
            while !F::SHADOWED && !entry.has(bits::A) {
                let used = Pte(entry.0 | bits::A);
                match F::cas(&self.host.hw, table, index, entry, used) {
                    Ok(()) => {
                        entry = used;
                        self.mark_dirty(table);
                    }
                    Err(seen) => entry = seen,
                }
            }
            if self.shadow_below::<F>(entry).is_none() {
                if self.build_below::<F>(state, entry.mfn(), level - 1).is_none() {
                    self.dom.set_state(RunState::CRASHED);
                    // Not to be tried again: the hypervisor's own access would fault for ever.
                    return false;
                }
                changed = true;
            }
            // The making of one may have dropped what is above; then the next fault makes that.
            if let Some(shadow) = self.host.frames.info(table).and_then(|info| info.shadow()) {
                let hung = (0..slots::<F>()).all(|half| {
                    self.host.hw.load64(slot(shadow, slots::<F>() * index + half))
                        == self.upper_shadow::<F>(entry, half)
                });
                if !hung {
                    self.shadow_entry::<F>(level, table, index, entry);
                    changed = true;
                }
            }
            table = entry.mfn();
        }
        changed
    }

    fn build_below<F: Format>(&self, state: &mut PagingState, table: Mfn, level: u8) -> Option<Mfn> {
        let info = self.host.frames.info(table).expect("a table is RAM");
        if F::LINEAR && info.is_directory() {
            self.build_view::<F>(state, table, Need::Now)
        } else {
            self.build_shadow::<F>(state, table, level, Need::Now)
        }
    }

    /// Sees to it that a top-level table has a shadow, if it needs one.
    pub(super) fn need_shadow<F: Format>(&self, state: &mut PagingState, table: Mfn) -> Result<(), PagingError> {
        let info = self.host.frames.info(table).expect("a table is RAM");
        if self.walks_shadows::<F>() && info.shadow().is_none() {
            self.build_shadow::<F>(state, table, F::TOP, Need::Now).ok_or(PagingError::NoMemory)?;
        }
        Ok(())
    }
}

/// Machine address of a slot in a shadow of several frames (or of one).
pub(super) fn slot(first: Mfn, index: usize) -> MachineAddr {
    MachineAddr(first.addr().0 + 8 * index as u64)
}
