//! Linear page tables: a directory (a two-level guest's L2 table) hung into a directory as if it were an L1 table, so
//! that the guest reads its own tables at addresses of its own (NetBSD's recursive slots). Only to be read, and only
//! under shadows: a four-level guest's entries are walked by the CPU as they are, and lead one level down each.
//!
//! | entry of directory T names | reference it holds |
//! |---|---|
//! | T itself | none: it would keep T alive for ever |
//! | another directory, validated before and for another reason | the frame, as an L2 table |
//!
//! An L2 entry that may be an ordinary one is: a frame that nobody uses as a directory yet is taken as an L1 table.
//!
//! **The view.** What the CPU is to walk in place of a directory read as an L1 table is a second shadow of it, of two
//! frames: each present entry maps the frame of the table it names, for reading only, under the entry's US, PCD and
//! PWT. The hypervisor's slots are not in it. It is made with the first linear entry that names the directory, written
//! with every change of it, and freed with the last such entry. Accessed and dirty bits of a directory's entries are
//! never the hypervisor's to set, whichever way they are reached: the view counts as accessed, and nothing in it is
//! writable.
//!
//! The view holds no references: a frame it maps is held by the very entry that the view shows, and a stamp is taken
//! when that lets go, as for any table. The hypervisor itself reads no table through such a mapping, so a translation
//! that outlives a change shows a guest its own past, as on a CPU that walks these tables; the INVLPG that drops it is
//! that of the address where the guest reads.
//!
//! **Where it is noted.** A frame's free-list links are idle while it is in use. Of a validated directory's, `prev` is
//! the view's first frame and `next` counts the linear entries that lead to it (of one that is half validated, both are
//! a list's links, [`super::partial`]'s). The view itself may be absent, as any shadow ([`super::pool`]).
//!
//! **Taking down.** The last reference to a directory may be an entry of another that is being taken down itself, and
//! so on, as many times as there are frames. So that the hypervisor's stack is not the limit (Xen's XSA-240), tables
//! that lose their last reference on the way are put on a list and seen to one after the other ([`super::partial`]).
//! Directories that name each other live until one of the entries is cleared; when a domain ends,
//! [`Pager::unlink_directory`] does that.

use super::format::{Format, Pte, bits};
use super::pool::{Need, Part};
use super::shadow::slot;
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::Mfn;
use crate::frame::{FrameInfo, FrameType, RefError};
use crate::host::Hardware;
use core::sync::atomic::Ordering::Relaxed;

/// log2 of the frames of a view.
pub(crate) const VIEW_ORDER: u32 = 1;

/// Links of a frame that is in use, under the paging lock of its owner.
impl FrameInfo {
    /// First frame of a directory's view. Meaningless for any other frame, and while the directory is not validated.
    pub(crate) fn view(&self) -> Option<Mfn> {
        match self.prev.load(Relaxed) {
            0 => None,
            mfn => Some(Mfn(mfn.into())),
        }
    }

    /// Records a directory's view, or that it has none.
    pub(super) fn set_view(&self, view: Option<Mfn>) {
        self.prev.store(view.map_or(0, |mfn| mfn.0 as u32), Relaxed);
    }

    /// How many linear entries lead to a directory. Meaningless while it is not validated, or for any other frame.
    pub(crate) fn linear_uses(&self) -> u32 {
        self.next.load(Relaxed)
    }

    fn set_linear_uses(&self, uses: u32) {
        self.next.store(uses, Relaxed);
    }

    /// Whether the frame is in use as a directory, be it that its entries are still being looked at.
    pub(crate) fn is_directory(&self) -> bool {
        let word = self.type_word();
        word.kind() == FrameType::L2 && word.count() > 0
    }
}

/// What the CPU is to see of a directory's entry where the directory is read as an L1 table.
pub(super) const fn view_entry(entry: Pte) -> u64 {
    if !entry.present() {
        return 0;
    }
    entry.0 & (bits::FRAME | bits::US | bits::PCD | bits::PWT) | bits::P | bits::A
}

impl<H: Hardware> Pager<'_, H> {
    fn record(&self, mfn: Mfn) -> &'static FrameInfo {
        self.host.frames.info(mfn).expect("a table is RAM")
    }

    /// Takes what a present entry of the directory `table` needs that names a directory.
    pub(super) fn get_linear<F: Format>(
        &self,
        state: &mut PagingState,
        table: Mfn,
        entry: Pte,
    ) -> Result<(), PagingError> {
        if entry.writable() {
            return Err(RefError::WrongType.into());
        }
        let target = entry.mfn();
        if target == table {
            // Those of a table under validation are counted when that is over.
            if self.record(table).type_word().is_validated() {
                self.open_view::<F>(state, table);
            }
            return Ok(());
        }
        let info = self.host.frames.get(target, self.dom.id)?;
        match info.get_held_type(FrameType::L2) {
            Ok(()) => {
                self.open_view::<F>(state, target);
                Ok(())
            }
            Err(error) => {
                self.host.put_frame(target, info);
                Err(error.into())
            }
        }
    }

    /// Gives back the view that an entry of the directory `table` uses, if it is a linear one. True when that is all:
    /// the entry names its own table, and holds no reference.
    pub(super) fn put_linear(&self, state: &mut PagingState, table: Mfn, entry: Pte) -> bool {
        let target = entry.mfn();
        let info = self.record(target);
        if !info.is_directory() {
            return false;
        }
        // One that is not validated is a table whose validation has failed, or that is being taken down: it has no
        // view.
        if info.type_word().is_validated() {
            self.close_view(state, info);
        }
        target == table
    }

    /// A directory has been validated: nothing leads to it yet but its own entries.
    pub(super) fn begin_view<F: Format>(&self, state: &mut PagingState, table: Mfn) {
        let names_itself = |&index: &usize| {
            let entry = F::load(&self.host.hw, table, index);
            F::is_guest_slot(2, index) && entry.present() && entry.mfn() == table
        };
        let info = self.record(table);
        info.set_view(None);
        info.set_linear_uses(0);
        for _ in (0..F::ENTRIES).filter(names_itself) {
            self.open_view::<F>(state, table);
        }
    }

    /// One more linear entry leads to a directory. The first makes its view, if there is room.
    fn open_view<F: Format>(&self, state: &mut PagingState, table: Mfn) {
        let info = self.record(table);
        info.set_linear_uses(info.linear_uses() + 1);
        if info.view().is_none() && self.build_view::<F>(state, table, Need::Later).is_none() {
            state.pool.note_absence();
        }
    }

    /// Makes the view of a directory that has none.
    pub(super) fn build_view<F: Format>(&self, state: &mut PagingState, table: Mfn, need: Need) -> Option<Mfn> {
        let hw = &self.host.hw;
        let view = self.take_shadow::<F>(state, table, Part::View, need)?;
        for index in (0..F::ENTRIES).filter(|&index| F::is_guest_slot(2, index)) {
            hw.store64(slot(view, index), view_entry(F::load(hw, table, index)));
        }
        self.record(table).set_view(Some(view));
        Some(view)
    }

    /// One linear entry less: the last frees the view. The allocator flushes the TLBs before its frames are used again.
    fn close_view(&self, state: &mut PagingState, info: &FrameInfo) {
        let uses = info.linear_uses() - 1;
        info.set_linear_uses(uses);
        if uses == 0 {
            self.destroy_view(state, info);
        }
    }

    /// Frees a directory's view, if it has one: nothing uses it any more, or only the directory itself, which goes.
    pub(super) fn destroy_view(&self, state: &mut PagingState, info: &FrameInfo) {
        if let Some(view) = info.view() {
            info.set_view(None);
            self.release_view(state, view);
        }
    }

    /// Clears the entries of a directory that name other directories, if the frame is one of the domain's. Done to all
    /// of a domain's frames when it ends, it leaves no cycle of directories behind that would keep them from being
    /// freed; pins and the base are other matters.
    pub fn unlink_directory<F: Format>(&self, state: &mut PagingState, table: Mfn) {
        let Ok(info) = self.host.frames.get(table, self.dom.id) else { return };
        for index in (0..F::ENTRIES).filter(|&index| F::LINEAR && F::is_guest_slot(2, index)) {
            // What an entry kept may have been what kept this table.
            if !info.is_directory() || !info.type_word().is_validated() {
                break;
            }
            let entry = F::load(&self.host.hw, table, index);
            if entry.present() && entry.mfn() != table && self.record(entry.mfn()).is_directory() {
                let cleared = self.update_entry::<F>(state, 2, table, index, Pte(0), Target::Own);
                debug_assert!(cleared.is_ok(), "clearing an entry is never refused");
            }
        }
        self.host.put_frame(table, info);
    }
}
