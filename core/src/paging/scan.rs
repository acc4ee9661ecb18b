//! Whole tables of the lowest level: becoming one, ceasing to be one.
//!
//! Both are a scan of the table by lines of 64 bytes. A line in which nothing is present costs a few instructions; of
//! an entry that maps a frame of the domain's own, writable memory already, each costs one exchange and, under shadows,
//! one store: the shadow is written and cleared in the same pass, and comes and goes as frames of zeroes. One that maps
//! such a frame to be read costs a call besides. Everything else goes the way of single entries ([`super::types`]), so
//! that a scan comes to the same as entry by entry.
//!
//! **Nobody changes the table meanwhile.** A frame that is being validated is no longer writable memory, and its
//! mappings for writing are gone from the TLBs; one that ceases to be a table is typed until the scan is over. No CPU
//! walks either. So an entry is what it was when its line was looked at, and what is given back is what was taken.
//! (Were it not so, the hypervisor would lose count, but touch no memory that is not RAM: each entry is read once a
//! pass.)
//!
//! Lock: the owner's paging lock. Neither scan makes way in between.

use super::format::{Format, PlainNumbers, Pte, bits};
use super::{Pager, PagingError, PagingState, Target};
use crate::addr::{Mfn, PAGE_SIZE};
use crate::frame::WritableOf;
use crate::host::Hardware;
use crate::preempt::cost;

/// What is looked at in one go, bytes.
const LINE: usize = 64;

/// What is passed on where a format has no shadows.
const NO_SHADOW: Mfn = Mfn(0);

/// Does something with each entry of a line, written out: a loop would cost as much as a tenth of what it does.
macro_rules! each_of_line {
    ($format:ident: $first:expr => |$index:ident| $what:expr) => {
        each_of_line!($format $first, $index, $what; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($format:ident $first:expr, $index:ident, $what:expr; $($offset:literal)*) => {
        const { assert!($format::ENTRIES * LINE / PAGE_SIZE <= [$($offset),*].len()) };
        $(if $offset < $format::ENTRIES * LINE / PAGE_SIZE {
            let $index = $first + $offset;
            $what;
        })*
    };
}

impl<H: Hardware> Pager<'_, H> {
    /// Checks a frame as a table of the lowest level, taking a reference for each entry; when that fails, none is
    /// taken.
    pub(super) fn validate_l1<F: Format>(&self, state: &mut PagingState, table: Mfn) -> Result<(), PagingError> {
        state.poll.step(cost::TABLE);
        let shadow = self.create_empty_shadow::<F>(state, table);
        if F::SHADOWED && shadow.is_none() {
            return self.get_one_by_one::<F>(table);
        }
        let shadow = shadow.unwrap_or(NO_SHADOW);
        self.get_l1_entries::<F>(table, shadow).map_err(|(done, error)| {
            self.mapped_nothing(|| self.put_l1_entries::<F>(table, done, shadow));
            if F::SHADOWED {
                self.destroy_cleared_shadow::<F>(state, table);
            }
            error
        })
    }

    /// Gives back the references of a table of the lowest level that ceases to be one.
    pub(super) fn devalidate_l1<F: Format>(&self, state: &mut PagingState, table: Mfn) {
        state.poll.step(cost::TABLE);
        let shadow = self.host.frames.info(table).and_then(|info| info.shadow()).filter(|_| F::SHADOWED);
        // Who is watched is to know of each foreign mapping that goes ([`super::log_dirty`]).
        if self.host.is_any_watched() || F::SHADOWED && shadow.is_none() {
            self.put_one_by_one::<F>(table, F::ENTRIES);
            return self.destroy_shadow::<F>(state, table, 1);
        }
        // By invariant I6 no other slot of the shadow is in use than those of present entries.
        self.put_l1_entries::<F>(table, F::ENTRIES, shadow.unwrap_or(NO_SHADOW));
        if F::SHADOWED {
            self.destroy_cleared_shadow::<F>(state, table);
        }
    }

    /// As the scan, of a table for whose shadow there is no room.
    #[cold]
    fn get_one_by_one<F: Format>(&self, table: Mfn) -> Result<(), PagingError> {
        for index in 0..F::ENTRIES {
            let taken = self.get_l1_target::<F>(F::load(&self.host.hw, table, index), Target::Own);
            taken.inspect_err(|_| self.mapped_nothing(|| self.put_one_by_one::<F>(table, index)))?;
        }
        Ok(())
    }

    #[cold]
    fn put_one_by_one<F: Format>(&self, table: Mfn, count: usize) {
        for index in 0..count {
            self.put_l1_target(F::load(&self.host.hw, table, index));
        }
    }

    /// Takes the references of all entries and writes their shadow. When one is refused, says which: those before it
    /// hold theirs.
    #[inline(never)]
    fn get_l1_entries<F: Format>(&self, table: Mfn, shadow: Mfn) -> Result<(), (usize, PagingError)> {
        let per_line = F::ENTRIES * LINE / PAGE_SIZE;
        let (own, numbers) = (self.dom.own_writable.kept(), PlainNumbers::kept());
        for first in (0..F::ENTRIES).step_by(per_line) {
            if !self.has_entries::<F>(table, first) {
                continue;
            }
            each_of_line!(F: first => |index| self.get_quickly::<F>(own, numbers, table, index, shadow)?);
        }
        Ok(())
    }

    /// Whether anything is present in the line that begins with an entry. (Most lines have nothing, or something at
    /// their beginning.)
    #[inline(always)]
    fn has_entries<F: Format>(&self, table: Mfn, first: usize) -> bool {
        let hw = &self.host.hw;
        F::load(hw, table, first).present() || hw.bits_of_line(F::entry_addr(table, first)) & F::PRESENT != 0
    }

    /// An entry that maps a frame of the domain's own, which is writable memory already, for writing; under shadows one
    /// that the guest has used.
    #[inline(always)]
    fn get_quickly<F: Format>(
        &self,
        own: WritableOf,
        numbers: PlainNumbers,
        table: Mfn,
        index: usize,
        shadow: Mfn,
    ) -> Result<(), (usize, PagingError)> {
        let used = bits::P | bits::RW | if F::SHADOWED { bits::A | bits::D } else { 0 };
        let entry = F::load(&self.host.hw, table, index);
        // What a domain owns is RAM, and none of the first MiB is a domain's. Of the bits that are refused, those above
        // the frame's number make it one that no frame has.
        const { assert!((F::REFUSED | bits::UNCACHED) & bits::NX == 0) };
        if entry.0 as u32 & (used | F::REFUSED | bits::UNCACHED) as u32 == used as u32
            && let Some(info) = self.host.frames.info(number::<F>(entry, numbers))
            && info.get_writable_quickly(own)
        {
            if F::SHADOWED {
                self.write_used_l1_shadow(shadow, index, entry);
            }
            return Ok(());
        }
        if entry.present() { self.get_one::<F>(entry, index, shadow) } else { Ok(()) }
    }

    /// Any other entry. What is written out for each entry of a line is what most tables are full of; an entry that
    /// maps a frame of the domain's own to be read is not far behind.
    #[cold]
    #[inline(never)]
    fn get_one<F: Format>(&self, entry: Pte, index: usize, shadow: Mfn) -> Result<(), (usize, PagingError)> {
        if entry.0 & (bits::RW | F::REFUSED | bits::UNCACHED) == 0
            && let Some(info) = self.host.frames.above_first_mib(entry.mfn())
            && info.get_readable_quickly(self.dom.own_writable)
        {
            if F::SHADOWED {
                self.write_l1_shadow(shadow, index, entry);
            }
            return Ok(());
        }
        self.get_one_at_length::<F>(entry, index, shadow)
    }

    #[cold]
    #[inline(never)]
    fn get_one_at_length<F: Format>(&self, entry: Pte, index: usize, shadow: Mfn) -> Result<(), (usize, PagingError)> {
        self.get_l1_target::<F>(entry, Target::Own).map_err(|error| (index, error))?;
        if F::SHADOWED {
            self.write_l1_shadow(shadow, index, entry);
        }
        Ok(())
    }

    /// Gives back the references of the first `count` entries, and clears the slots of their shadow.
    #[inline(never)]
    fn put_l1_entries<F: Format>(&self, table: Mfn, count: usize, shadow: Mfn) {
        // No CPU that flushes after this walks to the table, so that the stamp speaks for all of its entries.
        let stamp = self.host.hw.stamp();
        let numbers = PlainNumbers::kept();
        let per_line = F::ENTRIES * LINE / PAGE_SIZE;
        let whole = count - count % per_line;
        for first in (0..whole).step_by(per_line) {
            if !self.has_entries::<F>(table, first) {
                continue;
            }
            each_of_line!(F: first => |index| self.put_quickly::<F>(numbers, table, index, shadow, stamp));
        }
        for index in whole..count {
            self.put_quickly::<F>(numbers, table, index, shadow, stamp);
        }
    }

    /// An entry whose frame others refer to as well.
    #[inline(always)]
    fn put_quickly<F: Format>(&self, numbers: PlainNumbers, table: Mfn, index: usize, shadow: Mfn, stamp: u32) {
        let entry = F::load(&self.host.hw, table, index);
        if !entry.present() {
            return;
        }
        if F::SHADOWED {
            self.clear_l1_shadow(shadow, index);
        }
        // Of I/O memory nothing is counted, nor are there others that map the hypervisor's frames in the first MiB.
        if entry.writable()
            && let Some(info) = self.host.frames.info(number::<F>(entry, numbers))
            && info.put_writable_quickly(stamp)
        {
            return;
        }
        self.put_one(entry, stamp);
    }

    #[inline(never)]
    fn put_one(&self, entry: Pte, stamp: u32) {
        let quickly = !entry.writable()
            && self.host.frames.above_first_mib(entry.mfn()).is_some_and(|info| info.put_readable_quickly(stamp));
        if !quickly {
            self.put_one_at_length(entry, stamp);
        }
    }

    #[cold]
    #[inline(never)]
    fn put_one_at_length(&self, entry: Pte, stamp: u32) {
        self.put_mapping(entry, stamp);
    }
}

/// The frame that an entry names; a number that no frame has, if a bit above it is set that entries of this format may
/// not have.
#[inline(always)]
fn number<F: Format>(entry: Pte, numbers: PlainNumbers) -> Mfn {
    // Entries of 32 bits have no bits above.
    if F::SHADOWED { entry.mfn() } else { entry.plain_mfn(numbers) }
}
