//! Open tables: what the window and its copy say instead of the tables themselves (see [`crate::paging::window`]).

use super::{Audit, Invariant};
use crate::addr::Mfn;
use crate::domain::{Arch, Domain};
use crate::frame::FrameType;
use crate::host::Hardware;
use crate::paging::format::{Format, FourLevel, Pte, TwoLevel, bits};
use crate::paging::window::Window;
use crate::paging::writable::WINDOWS;
use arrayvec::ArrayVec;

impl<H: Hardware> Audit<'_, H> {
    fn windows(&self) -> impl Iterator<Item = (&Window, Mfn)> {
        self.states.iter().flat_map(|state| state.writable.windows())
    }

    /// The entry of a table that counts: of an open one the copy's, and where a window is, the one without it.
    pub(super) fn entry<F: Format>(&self, table: Mfn, index: usize) -> Pte {
        for (window, snapshot) in self.windows() {
            if window.table == table {
                return F::load(&self.host.hw, snapshot, index);
            }
            if (window.mapper, window.mapper_index) == (table, index) {
                return window.mapping;
            }
        }
        F::load(&self.host.hw, table, index)
    }

    /// Whether a table's shadow has a window in this slot.
    pub(super) fn is_open_at(&self, table: Mfn, index: usize) -> bool {
        self.windows().any(|(window, _)| (window.mapper, window.mapper_index) == (table, index))
    }

    /// The frames that a domain has for copies.
    pub(super) fn claim_snapshots(&mut self, index: usize) {
        let snapshots: ArrayVec<_, WINDOWS> = self.states[index].writable.snapshots().collect();
        for snapshot in snapshots {
            self.claim_own(snapshot, "claims on the copy of a table");
        }
    }

    /// Checks a domain's open tables, and counts the reference that each has besides those that others tell of.
    pub(super) fn tally_windows(&mut self, dom: &Domain, index: usize) {
        let windows: ArrayVec<_, WINDOWS> = self.states[index].writable.windows().map(|(window, _)| *window).collect();
        for window in &windows {
            match dom.arch {
                Arch::X86_32 => self.tally_window::<TwoLevel>(dom, window),
                Arch::X86_64 => self.tally_window::<FourLevel>(dom, window),
            }
            let involved = windows.iter().filter(|other| other.table == window.table || other.mapper == window.table);
            let involved = involved.count() as u64;
            self.expect(Invariant::WritableOrTable, window.table, "windows that involve an open table", 1, involved);
        }
    }

    fn tally_window<F: Format>(&mut self, dom: &Domain, window: &Window) {
        for table in [window.table, window.mapper] {
            self.expect_owner(table, dom);
            let word = self.info(table).type_word();
            self.expect(Invariant::TypeIsHeld, table, "type of a table", FrameType::L1 as u64, word.kind() as u64);
            self.expect(Invariant::TypeIsHeld, table, "validated table", 1, word.is_validated().into());
        }
        self.expect(
            Invariant::WritableOrTable,
            window.table,
            "a mapping of it",
            window.table.0,
            window.mapping.mfn().0,
        );
        self.expect(Invariant::WritableOrTable, window.table, "right to write", 0, window.mapping.0 & bits::RW);
        let mapping = F::load(&self.host.hw, window.mapper, window.mapper_index);
        let used = bits::A | bits::D;
        if F::SHADOWED || dom.log.is_on() {
            let what = "an entry where a window is";
            self.expect(Invariant::Unchanged, window.mapper, what, window.mapping.0 & !used, mapping.0 & !used);
            return;
        }
        let expected = window.mapping.0 | bits::RW;
        self.expect(Invariant::WritableOrTable, window.mapper, "a window", expected & !used, mapping.0 & !used);
        // The CPU must not reach it: one reference, and it is that of the slot it was taken out of, or a pin.
        let word = self.info(window.table).type_word();
        self.expect(Invariant::WritableOrTable, window.table, "uses of an open table", 1, word.count().into());
        if let Some((l2, slot, entry)) = window.parent {
            let found = F::load(&self.host.hw, l2, slot);
            let expected = entry.0 & !bits::P;
            self.expect(Invariant::WritableOrTable, l2, "the slot of an open table", expected, found.0);
            self.refer_as(window.table, FrameType::L1);
        }
    }
}
