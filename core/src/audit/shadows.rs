//! Shadows against the tables that they stand for (invariant I6), worked out anew from the rules that
//! [`crate::paging::shadow`] states, not by its code.

use super::{Audit, Invariant};
use crate::addr::{MachineAddr, Mfn};
use crate::domain::{Arch, Domain};
use crate::frame::FrameType;
use crate::host::Hardware;
use crate::paging::format::{Format, HYPERVISOR_L4_FIRST, HYPERVISOR_L4_SLOTS, Pte, bits};

/// Entries of a table that the CPU walks.
const ENTRIES: u64 = 512;
/// Present, accessed, and all rights: what the tables above the shadows say.
const OPEN: u64 = bits::P | bits::RW | bits::US | bits::A;
/// Bits of an entry that its shadow takes over as they are.
const COPIED: u64 = bits::FRAME | bits::US | bits::PWT | bits::PCD;
/// The first 2 MiB of the machine-to-physical table, in units of 2 MiB.
const MACHINE_TO_PHYS: u64 = 0xfc00_0000 >> 21;

impl<H: Hardware> Audit<'_, H> {
    /// Checks the shadow of a two-level guest's table.
    pub(super) fn check_shadow<F: Format>(&mut self, table: Mfn, level: u8) {
        let frames = if level == 1 { 2 } else { 4 };
        let Some(first) = self.info(table).shadow() else {
            return self.report(Invariant::ShadowFollows, table, "a shadow", 1, 0);
        };
        for mfn in first.0..first.0 + frames {
            self.claim_own(Mfn(mfn), "claims on a shadow");
            self.census.shadows += u64::from(self.afresh);
        }
        if !self.afresh {
            // But for what it claims, a view is looked at once, as the shadow is.
            let view = self.info(table).view().filter(|_| level == 2);
            return view.into_iter().for_each(|view| self.claim_view(view));
        }
        for slot in 0..frames * ENTRIES {
            let expected = if level == 1 { self.l1_slot::<F>(table, slot) } else { self.l2_slot::<F>(table, slot) };
            let found = self.slot(first, slot);
            self.expect(Invariant::ShadowFollows, table, "an entry of its shadow", expected, found);
        }
        if let Some(view) = self.info(table).view().filter(|_| level == 2) {
            self.check_view::<F>(table, view);
        }
    }

    /// Checks what is shown of a directory where it is read as an L1 table: the tables that it names, and those only to be read.
    fn check_view<F: Format>(&mut self, table: Mfn, view: Mfn) {
        self.claim_view(view);
        for slot in 0..2 * ENTRIES {
            let entry = F::load(&self.host.hw, table, slot as usize);
            let shown = entry.present() && F::is_guest_slot(2, slot as usize);
            let expected = if shown { entry.0 & COPIED | bits::P | bits::A } else { 0 };
            self.expect(Invariant::ShadowFollows, table, "an entry of its view", expected, self.slot(view, slot));
        }
    }

    fn claim_view(&mut self, view: Mfn) {
        for mfn in [view, Mfn(view.0 + 1)] {
            self.claim_own(mfn, "claims on a view");
            self.census.shadows += u64::from(self.afresh);
        }
    }

    /// A directory has a view exactly while entries lead to it, and knows how many.
    pub(super) fn check_linear_uses(&mut self, mfn: Mfn, counted: u32) {
        let info = self.info(mfn);
        let (refs, word) = (info.refs(), info.type_word());
        let directory = word.count() > 0 && word.kind() == FrameType::L2;
        let shadowed = self.subject(refs.owner()).is_some_and(|subject| subject.dom.arch == Arch::X86_32);
        let view = info.view().filter(|_| directory && shadowed && info.shadow().is_some());
        let uses = view.map_or(0, |view| self.info(view).view_uses());
        self.expect(Invariant::TypeIsHeld, mfn, "linear entries that lead here", counted.into(), uses.into());
        self.expect(Invariant::ShadowFollows, mfn, "a view", (counted > 0).into(), view.is_some().into());
    }

    fn slot(&self, first: Mfn, slot: u64) -> u64 {
        self.host.hw.load64(MachineAddr(first.addr().0 + 8 * slot))
    }

    /// Not present until accessed, not writable until dirty.
    fn l1_slot<F: Format>(&self, table: Mfn, slot: u64) -> u64 {
        let entry = self.entry::<F>(table, slot as usize);
        let opened = if self.is_open_at(table, slot as usize) { bits::A | bits::RW | bits::D } else { 0 };
        let entry = Pte(entry.0 | opened);
        match (entry.has(bits::P | bits::A), entry.has(bits::RW | bits::D)) {
            (false, _) => 0,
            (true, false) => entry.0 & COPIED | bits::P | bits::A,
            (true, true) => entry.0 & COPIED | bits::P | bits::A | bits::RW | bits::D,
        }
    }

    /// Each entry is two, for the two halves of the table below; behind the guest's part, the machine-to-physical table.
    fn l2_slot<F: Format>(&self, table: Mfn, slot: u64) -> u64 {
        let index = (slot / 2) as usize;
        if !F::is_guest_slot(2, index) {
            let half = slot.wrapping_sub(MACHINE_TO_PHYS);
            let mapped = self.host.m2p.narrow().filter(|_| half < 2);
            return mapped
                .map_or(0, |m2p| (m2p.addr().0 + (half << 21)) | bits::P | bits::A | bits::PAT_OR_PS | bits::NX);
        }
        let entry = F::load(&self.host.hw, table, index);
        let shadow = |entry: Pte| {
            let child = self.host.frames.info(entry.mfn())?;
            if child.type_word().kind() == FrameType::L2 { child.view() } else { child.shadow() }
        };
        let below = Some(entry).filter(|entry| entry.present()).and_then(shadow);
        below.map_or(0, |first| Mfn(first.0 + slot % 2).addr().0 | entry.0 & (bits::RW | bits::US) | bits::P | bits::A)
    }

    /// Checks the two tables that a domain's shadows hang in.
    pub(super) fn check_upper(&mut self, dom: &Domain, index: usize) {
        let state = &self.states[index];
        let (base, Some((l4, l3))) = (state.base, state.upper) else {
            if let Some(base) = state.base.filter(|_| dom.arch == Arch::X86_32) {
                self.report(Invariant::ShadowFollows, base, "tables above the shadow of a base", 1, 0);
            }
            return;
        };
        if !self.afresh {
            return;
        }
        let shadow = base.and_then(|base| self.info(base).shadow());
        for slot in 0..ENTRIES {
            let reserved = (slot as usize).wrapping_sub(HYPERVISOR_L4_FIRST);
            let expected = match slot {
                0 => l3.addr().0 | OPEN,
                _ if reserved < HYPERVISOR_L4_SLOTS => self.host.hypervisor_slots[reserved],
                _ => 0,
            };
            self.expect(Invariant::ShadowFollows, l4, "an entry of an upper L4", expected, self.slot(l4, slot));
            let expected = shadow.filter(|_| slot < 4).map_or(0, |first| Mfn(first.0 + slot).addr().0 | OPEN);
            self.expect(Invariant::ShadowFollows, l3, "an entry of an upper L3", expected, self.slot(l3, slot));
        }
    }
}
