//! Changing one entry of a validated table.
//!
//! The order is always: check and take the new entry's reference, exchange the entries atomically, write the shadow, give
//! the old entry's reference back. So a refused request leaves the entry and every count as they were (invariant I7),
//! and at no time does a present entry lack its reference.

use super::format::{Format, Pte};
use super::types::{get_own_target, is_low_io};
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::{MachineAddr, Mfn};
use crate::frame::FrameType;
use crate::host::Hardware;

/// A validated L1 table of the domain's own, found while the domain's paging lock is held: it stays one until the lock is
/// released. For type references to a table are taken and given back under that lock only, and each comes with a
/// reference to the frame; as long as there is one, neither the type nor the frame goes. So to change entries of the table
/// takes no reference of one's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct L1Table {
    mfn: Mfn,
    /// First frame of its shadow.
    shadow: Option<Mfn>,
}

impl L1Table {
    /// A table that the CPU walks itself.
    #[inline]
    pub const fn unshadowed(mfn: Mfn) -> Self {
        Self { mfn, shadow: None }
    }

    /// Its frame.
    #[inline]
    pub const fn mfn(&self) -> Mfn {
        self.mfn
    }
}

impl<H: Hardware> Pager<'_, H> {
    /// Looks whether a frame is an L1 table of the domain's. The caller holds the paging lock.
    #[inline(always)]
    pub(crate) fn own_l1_table<F: Format>(&self, mfn: Mfn) -> Option<L1Table> {
        let info = self.host.frames.info(mfn)?;
        let word = info.type_word();
        let is_table = word.kind() == FrameType::L1 && word.is_validated();
        if !is_table || info.refs().owner() != self.dom.id || is_low_io(mfn) {
            return None;
        }
        Some(L1Table { mfn, shadow: if F::SHADOWED { info.shadow() } else { None } })
    }

    /// [`update_l1`](Self::update_l1) for what most changes are: to nothing, to a frame of the domain's own that needs no new
    /// type, or to what differs harmlessly. False says nothing, and nothing has changed. The caller holds the paging lock.
    #[inline(always)]
    pub(crate) fn update_l1_quickly<F: Format>(&self, table: &L1Table, index: usize, new: Pte) -> bool {
        let hw = &self.host.hw;
        let mut old = F::load(hw, table.mfn, index);
        let same_reference = new.present() && old.differs_harmlessly(new);
        if new.present() && !same_reference && !get_own_target::<F, H>(self.host, self.dom.id, new) {
            return false;
        }
        // As in `update_l1`: what the CPU changes meanwhile is not what the reference depends on.
        while let Err(seen) = F::cas(hw, table.mfn, index, old, new) {
            old = seen;
        }
        if let Some(shadow) = table.shadow {
            self.write_l1_shadow(shadow, index, new);
        }
        if !same_reference {
            self.put_l1_target(old);
        }
        true
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
                if target != Target::Own || !get_own_target::<F, H>(self.host, self.dom.id, new) {
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
        if new.present() && new.0 & F::REFUSED != 0 {
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
