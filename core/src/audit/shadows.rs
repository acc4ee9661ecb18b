//! Shadows against the tables that they stand for (invariant I6), worked out anew from the rules that
//! [`crate::paging::shadow`] states, not by its code.

use super::{Audit, Invariant};
use crate::addr::{DomId, MachineAddr, Mfn};
use crate::domain::{Arch, Domain};
use crate::frame::FrameType;
use crate::host::Hardware;
use crate::paging::Pager;
use crate::paging::format::{Format, FourLevel, HYPERVISOR_L4_FIRST, HYPERVISOR_L4_SLOTS, Pte, TwoLevel, bits};

/// Entries of a table that the CPU walks.
const ENTRIES: u64 = 512;
/// Present, accessed, and all rights: what the tables above the shadows say.
const OPEN: u64 = bits::P | bits::RW | bits::US | bits::A;
/// Bits of an entry that its shadow takes over as they are.
const COPIED: u64 = bits::FRAME | bits::US | bits::PWT | bits::PCD | bits::NX;
/// The first 2 MiB of the machine-to-physical table, in units of 2 MiB.
const MACHINE_TO_PHYS: u64 = 0xfc00_0000 >> 21;

impl<H: Hardware> Audit<'_, H> {
    /// Whether a domain has ever had too little room for its shadows. Only then may one be absent.
    fn may_lack_shadows(&self, id: DomId) -> bool {
        self.subjects.iter().position(|subject| subject.dom.id == id).is_some_and(|at| self.states[at].pool.was_short())
    }

    /// Frames of a table's shadow.
    fn shadow_frames<F: Format>(level: u8) -> u64 {
        match level {
            _ if !F::SHADOWED => 1,
            1 => 2,
            _ => 4,
        }
    }

    /// Checks the shadow of a table: of a two-level guest's, or of any that is watched.
    pub(super) fn check_shadow<F: Format>(&mut self, table: Mfn, level: u8) {
        let frames = Self::shadow_frames::<F>(level);
        let owner = self.info(table).refs().owner();
        // Those that the CPU could do without are made by faults only.
        let may_lack = !F::SHADOWED || self.may_lack_shadows(owner);
        let dom = self.subject(owner).map(|subject| subject.dom).expect("of a domain under audit");
        if let Some(view) = self.info(table).view().filter(|_| F::SHADOWED && level == 2) {
            self.check_view::<F>(table, view);
        }
        let Some(first) = self.info(table).shadow() else {
            if !may_lack && self.afresh {
                self.report(Invariant::ShadowFollows, table, "a shadow", 1, 0);
            }
            return;
        };
        self.claim_shadow(table, first, frames);
        // But for what it claims, a shadow is looked at once.
        if !self.afresh {
            return;
        }
        for slot in 0..frames * ENTRIES {
            let expected = match level {
                1 => self.l1_slot::<F>(table, slot),
                _ if F::SHADOWED => self.l2_slot::<F>(table, slot),
                _ => self.upper_slot::<F>(table, level, slot),
            };
            let found = self.slot(first, slot);
            // What leads to a shadow that was made again need not be there yet.
            let guests = F::is_guest_slot(level, if F::SHADOWED { slot / 2 } else { slot } as usize);
            let absent = found == 0 && level > 1 && may_lack && guests;
            if level == 1 && dom.log.is_on() && !self.is_open_at(table, slot as usize) {
                self.check_logged(table, dom, expected, found);
            } else if !absent {
                self.expect(Invariant::ShadowFollows, table, "an entry of its shadow", expected, found);
            }
        }
    }

    /// An entry that allows writes names a frame that is recorded; one that allows none may yet come to.
    fn check_logged(&mut self, table: Mfn, dom: &Domain, expected: u64, found: u64) {
        const WRITE: u64 = bits::RW | bits::D;
        let what = "an entry of a watched shadow";
        self.expect(Invariant::ShadowFollows, table, what, expected & !WRITE, found & !WRITE);
        if found & WRITE != 0 {
            self.expect(Invariant::ShadowFollows, table, what, expected, found);
            let pfn = Pager::new(self.host, dom).recorded_as(Pte(found).mfn());
            let open = pfn.is_none_or(|pfn| dom.log.is_open(pfn));
            self.expect(Invariant::ShadowFollows, table, "record of what may be written to", 1, open.into());
        }
    }

    /// An upper entry of a four-level guest's that is watched.
    fn upper_slot<F: Format>(&self, table: Mfn, level: u8, slot: u64) -> u64 {
        if !F::is_guest_slot(level, slot as usize) {
            return self.host.hypervisor_slots[slot as usize - HYPERVISOR_L4_FIRST];
        }
        let entry = F::load(&self.host.hw, table, slot as usize);
        let used = Some(entry).filter(|entry| entry.has(bits::P | bits::A));
        let below = used.and_then(|entry| self.host.frames.info(entry.mfn())?.shadow());
        below.map_or(0, |first| first.addr().0 | entry.0 & (bits::RW | bits::US | bits::NX) | bits::P | bits::A)
    }

    /// The frames of a table's shadow or view, which the first of them names.
    fn claim_shadow(&mut self, table: Mfn, first: Mfn, frames: u64) {
        for mfn in first.0..first.0 + frames {
            self.claim_own(Mfn(mfn), "claims on a shadow");
            self.census.shadows += u64::from(self.afresh);
        }
        if !self.afresh {
            return;
        }
        let named = self.info(first).shadow().map_or(0, |mfn| mfn.0);
        self.expect(Invariant::ShadowFollows, first, "table of a shadow", table.0, named);
        let owner = self.info(table).refs().owner();
        if let Some(index) = self.subjects.iter().position(|subject| subject.dom.id == owner) {
            self.shadows[index] += frames;
        }
    }

    /// A domain's shadows are those that are on the lists of their levels, and their frames are counted, with those of
    /// the two tables above.
    pub(super) fn check_pool(&mut self, dom: &Domain, index: usize) {
        let frames = |list: u8, first: Mfn, table: Mfn| {
            let info = self.info(table);
            let level = info.type_word().kind().level();
            match (info.shadow() == Some(first), level) {
                (true, Some(level)) if level != list => 0xffff,
                (true, Some(level)) if dom.arch == Arch::X86_32 => Self::shadow_frames::<TwoLevel>(level),
                (true, Some(level)) => Self::shadow_frames::<FourLevel>(level),
                (false, Some(2)) if info.view() == Some(first) && list == 1 => 2,
                _ => 0xffff,
            }
        };
        let pager = Pager::new(self.host, dom);
        let on_list =
            |level| pager.shadows(&self.states[index], level).map(move |(first, table)| (level, first, table));
        let listed: u64 = (1..=4).flat_map(on_list).map(|(list, first, table)| frames(list, first, table)).sum();
        let at = Mfn(dom.id.0.into());
        let claimed = self.shadows[index];
        self.expect(Invariant::ShadowFollows, at, "frames of the shadows listed", claimed, listed);
        let upper = if self.states[index].upper.is_some() { 2 } else { 0 };
        let used = self.states[index].pool.used().0.into();
        self.expect(Invariant::ShadowFollows, at, "frames of shadows counted", claimed + upper, used);
    }

    /// Checks what is shown of a directory where it is read as an L1 table: the tables that it names, and those only to
    /// be read.
    fn check_view<F: Format>(&mut self, table: Mfn, view: Mfn) {
        self.claim_shadow(table, view, 2);
        if !self.afresh {
            return;
        }
        for slot in 0..2 * ENTRIES {
            let entry = F::load(&self.host.hw, table, slot as usize);
            let shown = entry.present() && F::is_guest_slot(2, slot as usize);
            let expected = if shown { entry.0 & COPIED | bits::P | bits::A } else { 0 };
            self.expect(Invariant::ShadowFollows, table, "an entry of its view", expected, self.slot(view, slot));
        }
    }

    /// A directory has a view exactly while entries lead to it, and knows how many.
    pub(super) fn check_linear_uses(&mut self, mfn: Mfn, counted: u32) {
        let info = self.info(mfn);
        let (refs, word) = (info.refs(), info.type_word());
        let directory = word.count() > 0 && word.kind() == FrameType::L2;
        let shadowed = self.subject(refs.owner()).is_some_and(|subject| subject.dom.arch == Arch::X86_32);
        if !(directory && shadowed && word.is_validated()) {
            return self.expect(Invariant::TypeIsHeld, mfn, "linear entries that lead here", 0, counted.into());
        }
        let found = info.linear_uses();
        self.expect(Invariant::TypeIsHeld, mfn, "linear entries that lead here", counted.into(), found.into());
        let absent = info.view().is_none() && self.may_lack_shadows(refs.owner());
        if !absent {
            self.expect(Invariant::ShadowFollows, mfn, "a view", (counted > 0).into(), info.view().is_some().into());
        }
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

    /// Each entry is two, for the two halves of the table below; behind the guest's part, the machine-to-physical
    /// table.
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
        if dom.arch == Arch::X86_64 {
            let users = state.user.base.filter(|_| dom.log.is_on()).and_then(|base| self.info(base).shadow());
            let (found, expected) = (state.user.root.map_or(0, |root| root.0), users.map_or(0, |root| root.0));
            let at = state.user.base.unwrap_or(Mfn(0));
            self.expect(Invariant::ShadowFollows, at, "shadow of the user base of a watched domain", expected, found);
            let state = &self.states[index];
            let watched = state.base.filter(|_| dom.log.is_on());
            let expected = watched.and_then(|base| self.info(base).shadow()).map_or(0, |root| root.0);
            let found = state.root.map_or(0, |root| root.0);
            let at = state.base.unwrap_or(Mfn(0));
            self.expect(Invariant::ShadowFollows, at, "shadow of the base of a watched domain", expected, found);
            let missing = watched.is_some() && expected == 0;
            return self.expect(Invariant::ShadowFollows, at, "base without a shadow", 0, missing.into());
        }
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
