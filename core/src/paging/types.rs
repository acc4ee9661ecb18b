//! Taking and giving back frames as what they are used for, and validating a frame as a table.
//!
//! A reference to a frame *as a table* means that every entry of it has been checked and holds a reference of its own
//! (invariant I2). The first such reference walks the entries; the last one walks them again to give theirs back. A
//! walk that fails gives back what it took (I7).

use super::format::{Format, HYPERVISOR_L4_FIRST, Pte, bits};
use super::log_dirty;
use super::partial::Drained;
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::{DomId, FIRST_RAM_FRAME, MachineAddr, Mfn, PAGE_SIZE};
use crate::descriptor;
use crate::domain::Domain;
use crate::event::EventDomains;
use crate::frame::{Condition, FrameType, RefError, TypeGrant, TypeRest};
use crate::host::{Hardware, Host};
use crate::preempt::cost;

impl<H: Hardware> Pager<'_, H> {
    /// Takes a frame of `owner`'s as `kind`, validating it if this is the first such use.
    pub fn get_frame_and_type<F: Format>(
        &self,
        state: &mut PagingState,
        mfn: Mfn,
        owner: DomId,
        kind: FrameType,
    ) -> Result<(), PagingError> {
        let info = self.host.frames.get(mfn, owner)?;
        let taken = info.get_type(kind, |stamp| self.host.hw.flush_if_older(stamp));
        // Whether all that a failure undoes is what was done here.
        let mut untouched = false;
        let result = match taken {
            Ok(TypeGrant::Held) => return Ok(()),
            Ok(TypeGrant::MustValidate) => {
                untouched = state.condemned.is_none() && state.suspended.is_empty();
                if info.take_uncached() {
                    self.host.hw.flush_frame(mfn);
                }
                self.validate::<F>(state, mfn, kind, 0)
            }
            Err(error) => match self.adopt(state, mfn, kind) {
                Some(done) => {
                    // It comes with a reference to the frame: that is one too many.
                    self.host.put_frame(mfn, info);
                    self.validate::<F>(state, mfn, kind, done)
                }
                None => {
                    self.host.put_frame(mfn, info);
                    return Err(error.into());
                }
            },
        };
        match result {
            Ok(()) => {
                info.set_validated();
                Ok(())
            }
            Err(error) => {
                match info.type_word().partial() {
                    Some((_, Condition::Suspended)) => {}
                    Some((_, Condition::Condemned)) => {
                        let _: Drained = if untouched {
                            self.mapped_nothing(|| self.drain::<F>(state))
                        } else {
                            self.drain::<F>(state)
                        };
                    }
                    None => {
                        info.abandon_type();
                        self.host.put_frame(mfn, info);
                    }
                }
                Err(error)
            }
        }
    }

    /// Gives back what [`get_frame_and_type`](Self::get_frame_and_type) took.
    pub fn put_frame_and_type<F: Format>(&self, state: &mut PagingState, mfn: Mfn) {
        let info = self.host.frames.info(mfn).expect("a counted reference names a frame of the table");
        let word = info.type_word();
        // The entries' references go first: at type count zero the frame may become anything.
        if word.count() == 1 {
            match word.kind().level() {
                Some(level @ 2..) => {
                    self.condemn::<F>(state, mfn, level);
                    let _: Drained = self.drain::<F>(state);
                    return;
                }
                Some(_) => self.devalidate_l1::<F>(state, mfn),
                None => {}
            }
        }
        let _: TypeRest = info.put_type(|| self.host.hw.stamp());
        self.host.put_frame(mfn, info);
    }

    /// Takes the reference that a present L1 entry needs: to I/O memory, or to a frame of whom `target` says, as
    /// writable memory if the entry allows writes.
    #[inline]
    pub fn get_l1_target<F: Format>(&self, entry: Pte, target: Target) -> Result<(), PagingError> {
        if !entry.present() || target == Target::Own && get_own_target::<F, H>(self.host, self.dom, entry) {
            return Ok(());
        }
        self.get_any_target::<F>(entry, target)
    }

    #[cold]
    #[inline(never)]
    fn get_any_target<F: Format>(&self, entry: Pte, target: Target) -> Result<(), PagingError> {
        if entry.0 & F::REFUSED != 0 || entry.mfn().0 >= self.host.machine_frames {
            return Err(PagingError::RefusedBits);
        }
        let mfn = entry.mfn();
        let owner = match target {
            Target::Own => self.dom.id,
            Target::Io => DomId::IO,
            Target::Hypervisor => DomId::XEN,
            Target::Domain(id) => id,
        };
        let Some(info) = self.host.frames.info(mfn).filter(|_| self.host.is_ram(mfn)) else {
            let allowed = target != Target::Hypervisor && self.host.may_map_io(self.dom, mfn, target);
            return if allowed { Ok(()) } else { Err(PagingError::NoRight) };
        };
        // Of the hypervisor's own frames only those it shares can be mapped, and those only to be read.
        if owner == DomId::XEN && (entry.writable() || !info.refs().is_shared()) {
            return Err(PagingError::NoRight);
        }
        info.get(owner)?;
        if entry.writable()
            && let Err(error) = info.get_type(FrameType::Writable, |stamp| self.host.hw.flush_if_older(stamp))
        {
            self.host.put_frame(mfn, info);
            return Err(error.into());
        }
        if entry.writable() && self.host.is_any_watched() {
            log_dirty::foreign_writer(self.host, self.dom.id, mfn, info);
        }
        if entry.0 & bits::UNCACHED != 0 {
            self.host.hw.flush_frame(mfn);
            if entry.writable() {
                info.mark_uncached();
            }
        }
        Ok(())
    }

    /// Gives back the reference of an L1 entry that is gone.
    #[inline]
    pub fn put_l1_target(&self, entry: Pte) {
        if entry.present() {
            self.put_mapping(entry, self.host.hw.stamp());
        }
    }

    /// As [`put_l1_target`](Self::put_l1_target), of a present entry that no CPU could walk to any more when the TLB
    /// clock stood at `stamp`.
    #[inline]
    pub(super) fn put_mapping(&self, entry: Pte, stamp: u32) {
        let mfn = entry.mfn();
        let Some(info) = self.host.frames.above_first_mib(mfn) else { return };
        let was_last = if entry.writable() {
            if self.host.is_any_watched() {
                log_dirty::foreign_writer(self.host, self.dom.id, mfn, info);
            }
            info.put_writable(stamp)
        } else {
            let word = info.type_word();
            if word.kind() == FrameType::Descriptor && word.count() > 0 {
                self.descriptors_unmapped(info.refs().owner());
            }
            info.put_readable(stamp)
        };
        if was_last {
            self.host.free_frame(mfn, info);
        }
    }

    /// A mapping of a descriptor page is gone, perhaps the one at which its owner's LDT was found.
    #[cold]
    fn descriptors_unmapped(self, owner: DomId) {
        if owner == self.dom.id {
            self.dom.ldt_may_have_moved();
        } else if let Some(owner) = self.host.domains.find(owner) {
            owner.ldt_may_have_moved();
        }
    }

    /// Takes the reference that a present entry of `table`, above L1, needs: to a table of the next level, the domain's
    /// own (or to a directory, where [`super::linear`] allows it).
    #[inline]
    pub(super) fn get_child<F: Format>(
        &self,
        state: &mut PagingState,
        level: u8,
        table: Mfn,
        entry: Pte,
    ) -> Result<(), PagingError> {
        if !entry.present() {
            return Ok(());
        }
        if entry.0 & F::REFUSED_ABOVE != 0 {
            return Err(PagingError::RefusedBits);
        }
        match self.get_frame_and_type::<F>(state, entry.mfn(), self.dom.id, FrameType::table(level - 1)) {
            Err(PagingError::Frame(RefError::WrongType)) if F::LINEAR => self.get_linear::<F>(state, table, entry),
            result => result,
        }
    }

    /// Gives back the reference of an entry above L1 that is gone from `table`.
    #[inline]
    pub(super) fn put_child<F: Format>(&self, state: &mut PagingState, table: Mfn, entry: Pte) {
        if entry.present() && !(F::LINEAR && self.put_linear(state, table, entry)) {
            self.put_frame_and_type::<F>(state, entry.mfn());
        }
    }

    /// Checks a frame as `kind`, taking a reference for each entry from the one on that is named. When it fails, or has
    /// to make way, a table above the lowest level is left partial.
    fn validate<F: Format>(
        &self,
        state: &mut PagingState,
        mfn: Mfn,
        kind: FrameType,
        from: usize,
    ) -> Result<(), PagingError> {
        let Some(level) = kind.level() else {
            return self.validate_descriptors(mfn);
        };
        if level > F::TOP {
            return Err(PagingError::Frame(RefError::WrongType));
        }
        if level == 1 {
            return self.validate_l1::<F>(state, mfn);
        }
        let mut done = from;
        let result = (from..F::ENTRIES).try_for_each(|index| {
            if state.poll.is_due(&self.host.hw) {
                return Err(PagingError::Preempted);
            }
            if F::is_guest_slot(level, index) {
                let entry = F::load(&self.host.hw, mfn, index);
                self.get_child::<F>(state, level, mfn, entry)?;
                self.note_parent::<F>(level, entry, mfn, index);
                state.poll.step(if entry.present() { cost::ENTRY } else { cost::EMPTY });
            }
            done = index + 1;
            Ok(())
        });
        if F::SHADOWED && result.is_ok() {
            self.create_shadow::<F>(state, mfn, level);
        }
        if let Err(error) = result {
            let preempted = error == PagingError::Preempted;
            self.set_aside(state, mfn, done, if preempted { Condition::Suspended } else { Condition::Condemned });
        } else if level == 4 {
            for (slot, entry) in self.host.hypervisor_slots.iter().enumerate() {
                let at = F::entry_addr(mfn, HYPERVISOR_L4_FIRST + slot);
                self.host.hw.store64(at, *entry);
            }
            self.mark_dirty(mfn);
        }
        result
    }

    /// Gives back references of a table that has never been one, so that what it named was mapped by none of them.
    pub(super) fn mapped_nothing<R>(&self, give_back: impl FnOnce() -> R) -> R {
        let moved = self.dom.has_ldt_moved();
        let result = give_back();
        if !moved {
            self.dom.ldt_has_not_moved();
        }
        result
    }

    /// Checks a page of descriptors, then brings them into the form they are kept in: a page that is refused stays as
    /// it was. (One that is good keeps the new form even if its request then fails for another reason.)
    fn validate_descriptors(&self, mfn: Mfn) -> Result<(), PagingError> {
        let slots = || (0..PAGE_SIZE as u64).step_by(8).map(|offset| MachineAddr(mfn.addr().0 + offset));
        let checked =
            |at| descriptor::check(self.dom.arch, self.host.hw.load64(at)).map_err(|_| PagingError::Descriptor);
        slots().try_for_each(|at| checked(at).map(|_| ()))?;
        // Nobody else writes to the frame now: it is typed, and its old mappings are gone from the TLBs.
        slots().try_for_each(|at| {
            let (raw, kept) = (self.host.hw.load64(at), checked(at)?);
            if kept != raw {
                self.host.hw.store64(at, kept);
                self.mark_dirty(mfn);
            }
            Ok(())
        })
    }
}

/// [`Pager::get_l1_target`] for what most entries are: a mapping of a frame of the domain's own, writable only if the
/// frame was writable memory last. What a domain owns is RAM, and known to the frame table. False says nothing.
#[inline(always)]
pub(super) fn get_own_target<F: Format, H: Hardware>(host: &Host<H>, dom: &Domain, entry: Pte) -> bool {
    let Some(info) = host.frames.above_first_mib(entry.mfn()) else { return false };
    if entry.0 & (F::REFUSED | bits::UNCACHED) != 0 {
        return false;
    }
    if entry.writable() {
        info.get_writable_quickly(dom.own_writable) || info.get_writable_again(dom.id)
    } else {
        info.get(dom.id).is_ok()
    }
}

/// Whether a frame lies in the PC's first MiB, which counts as I/O memory though part of it is RAM.
#[must_use]
pub fn is_low_io(mfn: Mfn) -> bool {
    mfn < FIRST_RAM_FRAME
}

/// Bits of an entry that say what its reference is: the frame, and whether it is writable.
pub const REFERENCE_BITS: u64 = bits::P | bits::RW | bits::FRAME;
