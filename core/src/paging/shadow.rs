//! Write-through shadows: what the CPU walks in place of a two-level guest's tables.
//!
//! A guest's L1 table (1024 entries, 4 MiB) has a shadow of two frames, one for each 2 MiB; its L2 table (4 GiB) one of
//! four, one for each GiB. They are made when the frame is validated as a table, written with every validated change of
//! it, and freed when it ceases to be a table. Above them hang one L3 and one L4 table a *domain*: a new page-table base
//! rewrites four entries of that L3, which is why a base costs no frames of its own.
//!
//! Accessed and dirty bits are the guest's to see. A shadow entry is present only if the guest's has A, and writable
//! only if it also has D; the fault that follows sets the bit in the guest's entry, then in the shadow
//! ([`Pager::resolve_shadow_fault`]). L2 entries are shadowed as if accessed: a CPU may set A in those at any time.

use super::format::{Format, HYPERVISOR_L4_FIRST, Pte, TwoLevel, bits};
use super::linear::view_entry;
use super::{Pager, PagingError, PagingState};
use crate::addr::{GuestVirt, MachineAddr, Mfn};
use crate::frame::FrameInfo;
use crate::frame_alloc::Zone;
use crate::host::{Hardware, Walked};
use core::sync::atomic::Ordering::Relaxed;

/// log2 of the frames that shadow an L1 table.
const L1_ORDER: u32 = 1;
/// log2 of the frames that shadow an L2 table.
const L2_ORDER: u32 = 2;
/// What an upper shadow entry carries besides its frame: as much as possible, the level below decides.
const OPEN: u64 = bits::P | bits::RW | bits::US | bits::A;

const fn order(level: u8) -> u32 {
    if level == 1 { L1_ORDER } else { L2_ORDER }
}

/// Whether a shadow was ever hung into another, where a CPU walks to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hung {
    Never,
    Once,
}

/// Of a shadow's first frame (or a view's), whose free-list links are idle while it is in use; under the owner's paging lock.
impl FrameInfo {
    fn set_hung(&self, hung: Hung) {
        self.prev.store((hung == Hung::Once).into(), Relaxed);
    }

    fn was_hung(&self) -> bool {
        self.prev.load(Relaxed) != 0
    }
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
    let shadow = entry.0 & (bits::FRAME | bits::US | bits::PCD | bits::PWT) | bits::P | bits::A;
    if entry.has(bits::RW | bits::D) { shadow | bits::RW | bits::D } else { shadow }
}

impl<H: Hardware> Pager<'_, H> {
    /// Gives a table that is to have one a shadow, in which nothing is present yet.
    pub(super) fn create_empty_shadow(&self, table: Mfn, level: u8) -> Result<Mfn, PagingError> {
        let first = self.host.alloc.lock().alloc_for_guest(order(level), &self.host.hw).ok_or(PagingError::NoMemory)?;
        self.host.frames.info(table).expect("a table is RAM").set_shadow(Some(first));
        self.host.frames.info(first).expect("the allocator's are RAM").set_hung(Hung::Never);
        Ok(first)
    }

    /// Makes the shadow of a table above the lowest level whose entries have just been validated.
    pub(super) fn create_shadow<F: Format>(&self, table: Mfn, level: u8) -> Result<(), PagingError> {
        let first = self.create_empty_shadow(table, level)?;
        let info = self.host.frames.info(table).expect("a table is RAM");
        if F::LINEAR && level == 2 {
            info.set_view(None);
        }
        for index in 0..F::ENTRIES {
            let entry = F::load(&self.host.hw, table, index);
            if entry.present() && F::is_guest_slot(level, index) {
                if F::LINEAR && level == 2 && entry.mfn() == table {
                    // Its first entry that names itself: nothing but memory can be missing.
                    self.open_view::<F>(table).inspect_err(|_| self.destroy_shadow(table, level))?;
                }
                self.write_shadow::<F>(level, table, index, entry);
            }
        }
        if level == 2 {
            self.map_machine_to_phys(first);
        }
        Ok(())
    }

    /// Frees the shadow of a table that is none any more, and its view. The allocator flushes the TLBs before they are used
    /// again.
    pub(super) fn destroy_shadow(&self, table: Mfn, level: u8) {
        let info = self.host.frames.info(table).expect("a table is RAM");
        if let Some(first) = info.shadow() {
            if level == 2 {
                self.destroy_view(info);
            }
            info.set_shadow(None);
            self.host.free_hypervisor(first, order(level));
        }
    }

    /// Frees the shadow of an L1 table that is none any more, all of whose slots its caller has cleared that were in use. It
    /// goes back as zeroes: only the CPU has ever seen it.
    pub(super) fn destroy_cleared_shadow(&self, table: Mfn) {
        let info = self.host.frames.info(table).expect("a table is RAM");
        if let Some(first) = info.shadow() {
            info.set_shadow(None);
            let seen = self.host.frames.info(first).is_none_or(|info| info.was_hung());
            self.host.free_zeroed(first, L1_ORDER, if seen { Walked::Perhaps } else { Walked::Never });
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

    /// Writes the shadow of one entry; nothing to do for formats that the CPU walks itself.
    #[inline]
    pub(super) fn write_shadow<F: Format>(&self, level: u8, table: Mfn, index: usize, entry: Pte) {
        if !F::SHADOWED {
            return;
        }
        let info = self.host.frames.info(table).expect("a table is RAM");
        let Some(shadow) = info.shadow() else { return };
        let hw = &self.host.hw;
        if level == 1 {
            hw.store64(slot(shadow, index), l1_shadow(entry));
            return;
        }
        // One guest L2 entry spans 4 MiB: two slots of the shadow, one for each half of the L1's shadow (or of a
        // directory's view).
        let child = if entry.present() { self.host.frames.info(entry.mfn()) } else { None };
        let child =
            child.and_then(|child| if F::LINEAR && child.is_directory() { child.view() } else { child.shadow() });
        let flags = entry.0 & (bits::RW | bits::US) | bits::P | bits::A;
        for half in 0..2 {
            let value = child.map_or(0, |first| Mfn(first.0 + half).addr().0 | flags);
            hw.store64(slot(shadow, 2 * index + half as usize), value);
        }
        if let Some(child) = child.and_then(|first| self.host.frames.info(first)) {
            child.set_hung(Hung::Once);
        }
        if F::LINEAR
            && let Some(view) = info.view()
        {
            hw.store64(slot(view, index), view_entry(entry));
        }
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
        Ok(())
    }

    /// Frees those two tables.
    pub fn destroy_upper_tables(&self, state: &mut PagingState) {
        if let Some((l4, l3)) = state.upper.take() {
            self.host.free_hypervisor(l4, 0);
            self.host.free_hypervisor(l3, 0);
        }
    }

    /// Hangs the shadow of an L2 table, or none, into the domain's L3. The caller reloads the CPU's base.
    pub(super) fn hang_shadow(&self, state: &PagingState, table: Option<Mfn>) {
        let Some((_, l3)) = state.upper else { return };
        let shadow = table.and_then(|table| self.host.frames.info(table)?.shadow());
        for gib in 0..4 {
            let value = shadow.map_or(0, |first| Mfn(first.0 + gib).addr().0 | OPEN);
            self.host.hw.store64(slot(l3, gib as usize), value);
        }
    }

    /// Deals with a page fault that exists only because of shadowing: the guest's tables allow the access, but A or D was
    /// not set yet. Sets it, and returns true when the access can be tried again; false when the fault is the guest's.
    pub fn resolve_shadow_fault(&self, state: &PagingState, at: GuestVirt, access: Access) -> bool {
        if at.0 >> 32 != 0 {
            return false;
        }
        let Some(found) = self.walk::<TwoLevel>(state, at) else { return false };
        // A directory's entries are shadowed as if accessed, and show nothing to be written to.
        if found.level != 1 {
            return false;
        }
        let needed = bits::P | if access.user { bits::US } else { 0 } | if access.write { bits::RW } else { 0 };
        if !Pte(found.rights & found.entry.0 | found.entry.0 & bits::P).has(needed) {
            return false;
        }
        let used = bits::A | if access.write { bits::D } else { 0 };
        let mut old = found.entry;
        loop {
            if old.has(used) {
                return false;
            }
            let new = Pte(old.0 | used);
            match TwoLevel::cas(&self.host.hw, found.table, found.index, old, new) {
                Ok(()) => {
                    self.write_shadow::<TwoLevel>(1, found.table, found.index, new);
                    return true;
                }
                Err(seen) => old = seen,
            }
        }
    }
}

/// Machine address of a slot in a shadow of several frames (or of one).
pub(super) fn slot(first: Mfn, index: usize) -> MachineAddr {
    MachineAddr(first.addr().0 + 8 * index as u64)
}
