//! Whole tables of the lowest level: becoming one, ceasing to be one.
//!
//! Both are a scan of the table by lines of 64 bytes. A line in which nothing is present costs a few instructions; of an
//! entry that maps a frame of the domain's own, writable memory already, each costs one exchange and, under shadows, one
//! store: the shadow is written and cleared in the same pass, and comes and goes as frames of zeroes. Everything else goes
//! the way of single entries ([`super::types`]), so that a scan comes to the same as entry by entry.
//!
//! **Nobody changes the table meanwhile.** A frame that is being validated is no longer writable memory, and its mappings for
//! writing are gone from the TLBs; one that ceases to be a table is typed until the scan is over. No CPU walks either. So an
//! entry is what it was when its line was looked at, and what is given back is what was taken. (Were it not so, the
//! hypervisor would lose count, but touch no memory that is not RAM: each entry is read once a pass.)
//!
//! Lock: the owner's paging lock. Neither scan makes way in between.

use super::format::{Format, Pte};
use super::types::get_own_target;
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::{Mfn, PAGE_SIZE};
use crate::host::Hardware;
use crate::preempt::cost;
use core::ops::Range;

/// What is looked at in one go, bytes.
const LINE: usize = 64;

impl<H: Hardware> Pager<'_, H> {
    /// Checks a frame as a table of the lowest level, taking a reference for each entry; when that fails, none is taken.
    pub(super) fn validate_l1<F: Format>(&self, state: &mut PagingState, table: Mfn) -> Result<(), PagingError> {
        state.poll.step(cost::TABLE);
        let Some(shadow) = self.create_empty_shadow::<F>(state, table) else {
            return self.get_l1_entries::<F>(table, |_, _| ()).map_err(|(done, error)| {
                self.mapped_nothing(|| self.put_l1_entries::<F>(table, done, |_| ()));
                error
            });
        };
        self.get_l1_entries::<F>(table, |index, entry| self.write_l1_shadow(shadow, index, entry)).map_err(
            |(done, error)| {
                let clear = |index| self.clear_l1_shadow(shadow, index);
                self.mapped_nothing(|| self.put_l1_entries::<F>(table, done, clear));
                self.destroy_cleared_shadow::<F>(state, table);
                error
            },
        )
    }

    /// Gives back the references of a table of the lowest level that ceases to be one.
    pub(super) fn devalidate_l1<F: Format>(&self, state: &mut PagingState, table: Mfn) {
        let walks_shadows = self.walks_shadows::<F>();
        let shadow = if walks_shadows { self.host.frames.info(table).and_then(|info| info.shadow()) } else { None };
        match shadow {
            Some(shadow) => {
                // By invariant I6 no other slot of the shadow is in use than those of present entries.
                self.put_l1_entries::<F>(table, F::ENTRIES, |index| self.clear_l1_shadow(shadow, index));
                self.destroy_cleared_shadow::<F>(state, table);
            }
            None => self.put_l1_entries::<F>(table, F::ENTRIES, |_| ()),
        }
        state.poll.step(cost::TABLE);
    }

    /// Takes the references of all entries, and shows each present one to `shadow`. When one is refused, says which: those
    /// before it hold theirs.
    #[inline(always)]
    fn get_l1_entries<F: Format>(&self, table: Mfn, shadow: impl Fn(usize, Pte)) -> Result<(), (usize, PagingError)> {
        let (host, owner) = (self.host, self.dom.id);
        let per_line = F::ENTRIES * LINE / PAGE_SIZE;
        for line in 0..PAGE_SIZE / LINE {
            let first = line * per_line;
            if host.hw.bits_of_line(F::entry_addr(table, first)) & F::PRESENT == 0 {
                continue;
            }
            for index in first..first + per_line {
                let entry = F::load(&host.hw, table, index);
                if !entry.present() {
                    continue;
                }
                if !get_own_target::<F, H>(host, owner, entry) {
                    self.get_l1_target::<F>(entry, Target::Own).map_err(|error| (index, error))?;
                }
                shadow(index, entry);
            }
        }
        Ok(())
    }

    /// Gives back the references of the first `count` entries, and tells `clear` which were present.
    #[inline(always)]
    fn put_l1_entries<F: Format>(&self, table: Mfn, count: usize, clear: impl Fn(usize)) {
        // No CPU that flushes after this walks to the table, so that the stamp speaks for all of its entries.
        let stamp = self.host.hw.stamp();
        let per_line = F::ENTRIES * LINE / PAGE_SIZE;
        let whole = count / per_line;
        for line in 0..whole {
            let first = line * per_line;
            if self.host.hw.bits_of_line(F::entry_addr(table, first)) & F::PRESENT != 0 {
                self.put_some::<F>(table, first..first + per_line, stamp, &clear);
            }
        }
        self.put_some::<F>(table, whole * per_line..count, stamp, &clear);
    }

    #[inline(always)]
    fn put_some<F: Format>(&self, table: Mfn, indices: Range<usize>, stamp: u32, clear: &impl Fn(usize)) {
        for index in indices {
            let entry = F::load(&self.host.hw, table, index);
            if entry.present() {
                clear(index);
                self.put_mapping(entry, stamp);
            }
        }
    }
}
