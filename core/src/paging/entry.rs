//! Changing one entry of a validated table.
//!
//! The order is always: check and take the new entry's reference, exchange the entries atomically, write the shadow,
//! give the old entry's reference back. So a refused request leaves the entry and every count as they were (invariant
//! I7), and at no time does a present entry lack its reference.

use super::format::{Format, Pte};
use super::types::get_own_target;
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::{MachineAddr, Mfn};
use crate::frame::FrameType;
use crate::host::Hardware;

/// A validated L1 table of the domain's own, found while the domain's paging lock is held: it stays one until the lock
/// is released. For type references to a table are taken and given back under that lock only, and each comes with a
/// reference to the frame; as long as there is one, neither the type nor the frame goes. So to change entries of the
/// table takes no reference of one's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct L1Table {
    mfn: Mfn,
    /// First frame of its shadow, in formats that have one.
    shadow: Mfn,
}

impl L1Table {
    /// None: no frame has this number.
    pub const NONE: Self = Self { mfn: Mfn(u64::MAX), shadow: Mfn(0) };

    /// Its frame.
    #[inline]
    pub const fn mfn(&self) -> Mfn {
        self.mfn
    }
}

impl<H: Hardware> Pager<'_, H> {
    /// Looks whether a frame is an L1 table of the domain's, and one that
    /// [`update_l1_quickly`](Self::update_l1_quickly) can change: it has its shadow, and nobody's writes are recorded.
    /// The caller holds the paging lock.
    #[inline(always)]
    pub(crate) fn own_l1_table<F: Format>(&self, mfn: Mfn) -> Option<L1Table> {
        let info = self.host.frames.above_first_mib(mfn)?;
        if !info.is_held(self.dom.id, FrameType::L1) || self.host.is_any_watched() {
            return None;
        }
        Some(L1Table { mfn, shadow: if F::SHADOWED { info.shadow()? } else { Mfn(0) } })
    }

    /// The same for a frame that a validated entry names where an L1 table should be: it is one, or (then this is none)
    /// a directory that is read as one.
    #[inline(always)]
    pub(super) fn walked_l1_table<F: Format>(&self, mfn: Mfn) -> Option<L1Table> {
        if self.host.is_any_watched() {
            return None;
        }
        if !F::LINEAR && !F::SHADOWED {
            return Some(L1Table { mfn, shadow: Mfn(0) });
        }
        let info = self.host.frames.info(mfn)?;
        if info.type_word().kind() != FrameType::L1 {
            return None;
        }
        Some(L1Table { mfn, shadow: info.shadow()? })
    }

    /// [`update_l1`](Self::update_l1) for what most changes are: to nothing, to a frame of the domain's own that needs
    /// no new type, or to what differs harmlessly. `at` is the entry's address in `table`. False says nothing, and
    /// nothing has changed. The caller holds the paging lock.
    #[inline(always)]
    pub(crate) fn update_l1_quickly<F: Format>(&self, table: &L1Table, at: MachineAddr, new: Pte) -> bool {
        let (hw, frames) = (&self.host.hw, &self.host.frames);
        let old = F::load_at(hw, at);
        if old.differs_harmlessly(new) {
            F::swap_at(hw, at, new);
            self.write_l1_shadow_at::<F>(table.shadow, at, new);
            return true;
        }
        if new.present() && !get_own_target::<F, H>(self.host, self.dom, new) {
            return false;
        }
        // The CPU may have set A or D in the old entry meanwhile; its frame and rights cannot have changed, and with
        // them the reference that is given back: we hold the paging lock. The shadow first, so that both are changed
        // behind the exchange.
        self.write_l1_shadow_at::<F>(table.shadow, at, new);
        F::swap_at(hw, at, new);
        if old.present() {
            match frames.above_first_mib(old.mfn()).filter(|_| old.writable()) {
                Some(info) => {
                    if info.put_writable(hw.stamp_behind_exchange()) {
                        self.host.free_frame(old.mfn(), info);
                    }
                }
                None => self.put_l1_target(old),
            }
        }
        true
    }

    /// Writes the shadow of the entry at an address in its table.
    #[inline(always)]
    fn write_l1_shadow_at<F: Format>(&self, shadow: Mfn, at: MachineAddr, new: Pte) {
        if F::SHADOWED {
            self.write_l1_shadow(shadow, at.page_offset() / size_of::<u32>(), new);
        }
    }

    /// Changes an entry of a table that the domain owns: MMU_NORMAL_PT_UPDATE on a frame that is a table now.
    pub fn update_entry<F: Format>(
        &self,
        state: &mut PagingState,
        level: u8,
        table: Mfn,
        index: usize,
        new: Pte,
        target: Target,
    ) -> Result<(), PagingError> {
        if level == 1 {
            self.update_l1::<F>(table, index, new, target)
        } else {
            self.update_upper::<F>(state, level, table, index, new)
        }
    }

    /// Changes an entry of an L1 table.
    pub fn update_l1<F: Format>(&self, table: Mfn, index: usize, new: Pte, target: Target) -> Result<(), PagingError> {
        let mut old = F::load(&self.host.hw, table, index);
        if new.present() {
            if new.0 & F::REFUSED != 0 {
                return Err(PagingError::RefusedBits);
            }
            if !old.differs_harmlessly(new) {
                if target != Target::Own || !get_own_target::<F, H>(self.host, self.dom, new) {
                    self.get_l1_target::<F>(new, target)?;
                }
                // The CPU may set A or D in the old entry meanwhile; its frame and rights cannot change, and with them
                // the reference that is given back: we hold the paging lock.
                while let Err(seen) = F::cas(&self.host.hw, table, index, old, new) {
                    old = seen;
                }
                self.write_shadow::<F>(1, table, index, new);
                self.put_l1_target(old);
                return Ok(());
            }
        }
        while let Err(seen) = F::cas(&self.host.hw, table, index, old, new) {
            old = seen;
        }
        self.write_shadow::<F>(1, table, index, new);
        if !new.present() {
            self.put_l1_target(old);
        }
        Ok(())
    }

    fn update_upper<F: Format>(
        &self,
        state: &mut PagingState,
        level: u8,
        table: Mfn,
        index: usize,
        new: Pte,
    ) -> Result<(), PagingError> {
        if !F::is_guest_slot(level, index) {
            return Err(PagingError::ReservedSlot);
        }
        let mut old = F::load(&self.host.hw, table, index);
        // Even a harmless change is refused when the new entry has a bit that means something else to the CPU.
        if new.present() && new.0 & F::REFUSED_ABOVE != 0 {
            return Err(PagingError::RefusedBits);
        }
        let same_reference = new.present() && old.differs_harmlessly(new);
        if !same_reference {
            self.get_child::<F>(state, level, table, new)?;
            self.note_parent::<F>(level, new, table, index);
        }
        while let Err(seen) = F::cas(&self.host.hw, table, index, old, new) {
            old = seen;
        }
        self.write_shadow::<F>(level, table, index, new);
        if !same_reference {
            self.put_child::<F>(state, table, old);
        }
        Ok(())
    }

    /// Pins a frame of the domain's as a table: it stays one, validated, while nothing uses it.
    pub fn pin<F: Format>(&self, state: &mut PagingState, mfn: Mfn, level: u8) -> Result<(), PagingError> {
        if level > F::TOP {
            return Err(PagingError::NoTable);
        }
        self.get_frame_and_type::<F>(state, mfn, self.dom.id, FrameType::table(level))?;
        let info = self.host.frames.info(mfn).expect("just referred to");
        if info.pin() {
            return Ok(());
        }
        self.put_frame_and_type::<F>(state, mfn);
        Err(PagingError::Pinning)
    }

    /// Undoes a pin.
    pub fn unpin<F: Format>(&self, state: &mut PagingState, mfn: Mfn) -> Result<(), PagingError> {
        let info = self.host.frames.get(mfn, self.dom.id)?;
        let unpinned = info.unpin();
        if unpinned {
            self.put_frame_and_type::<F>(state, mfn);
        }
        self.host.put_frame(mfn, info);
        if unpinned { Ok(()) } else { Err(PagingError::Pinning) }
    }

    /// The entry that a machine address of the guest's names: table, level and slot; `None` when the frame is no page
    /// table (or of a level this format does not have).
    pub fn locate<F: Format>(&self, at: MachineAddr) -> Option<(Mfn, u8, usize)> {
        let mfn = at.mfn();
        let word = self.host.frames.info(mfn)?.type_word();
        let level = word.kind().level().filter(|&level| level <= F::TOP && word.is_validated())?;
        Some((mfn, level, F::entry_index(at)?))
    }
}
