//! What page tables and descriptor tables refer to, and whether they may.

use super::{Audit, Invariant};
use crate::addr::{DomId, MachineAddr, Mfn, PAGE_SIZE};
use crate::descriptor;
use crate::domain::{Arch, Domain};
use crate::frame::{Condition, FrameType};
use crate::host::{Hardware, may_reach};
use crate::paging::Pager;
use crate::paging::format::{Format, FourLevel, HYPERVISOR_L4_FIRST, HYPERVISOR_L4_SLOTS, Pte, TwoLevel, bits};
use crate::paging::types::is_low_io;

/// The type of an architecture's top-level table.
pub(super) fn top(arch: Arch) -> FrameType {
    FrameType::table(match arch {
        Arch::X86_32 => TwoLevel::TOP,
        Arch::X86_64 => FourLevel::TOP,
    })
}

impl<H: Hardware> Audit<'_, H> {
    /// Counts what a frame refers to as the table that its type says it is.
    pub(super) fn tally_table(&mut self, mfn: Mfn, owner: DomId, kind: FrameType) {
        let Some(dom) = self.subject(owner).map(|subject| subject.dom) else {
            return self.report(Invariant::Rightful, mfn, "owner of a table", 0, owner.0.into());
        };
        self.census.tables += u64::from(self.afresh);
        match (kind.level(), dom.arch) {
            (None, _) => self.check_descriptors(mfn, dom),
            (Some(level), Arch::X86_32) => self.tally_entries::<TwoLevel>(mfn, dom, level),
            (Some(level), Arch::X86_64) => self.tally_entries::<FourLevel>(mfn, dom, level),
        }
    }

    fn tally_entries<F: Format>(&mut self, table: Mfn, dom: &Domain, level: u8) {
        if level > F::TOP {
            return self.report(Invariant::TypeIsHeld, table, "level at most", F::TOP.into(), level.into());
        }
        // Of a table that is half validated only the first entries refer to anything.
        let partial = self.info(table).type_word().partial();
        for index in 0..partial.map_or(F::ENTRIES, |(done, _)| done) {
            let entry = self.entry::<F>(table, index);
            if !entry.present() || !F::is_guest_slot(level, index) {
                continue;
            }
            self.count(Invariant::TypeIsHeld);
            let refused = entry.0 & if level == 1 { F::REFUSED } else { F::REFUSED_ABOVE };
            if refused != 0 {
                self.report(Invariant::TypeIsHeld, table, "refused bits", 0, refused);
            }
            if level == 1 {
                self.tally_mapping(table, index, dom, entry);
            } else {
                self.tally_child(table, dom, entry, level);
            }
        }
        if partial.is_some() {
            if let Some(shadow) = self.info(table).shadow() {
                self.report(Invariant::ShadowFollows, table, "shadow of what is half a table", 0, shadow.0);
            }
            return;
        }
        if level == 4 {
            for slot in 0..HYPERVISOR_L4_SLOTS {
                let entry = F::load(&self.host.hw, table, HYPERVISOR_L4_FIRST + slot);
                let expected = self.host.hypervisor_slots[slot];
                self.expect(Invariant::TypeIsHeld, table, "a slot of the hypervisor's", expected, entry.0);
            }
        }
        if F::SHADOWED || dom.log.is_on() {
            self.check_shadow::<F>(table, level);
        }
    }

    fn tally_child(&mut self, table: Mfn, dom: &Domain, entry: Pte, level: u8) {
        if !self.host.is_ram(entry.mfn()) {
            return self.report(Invariant::Rightful, table, "child that is RAM", 0, entry.0);
        }
        self.expect_owner(entry.mfn(), dom);
        let child = self.info(entry.mfn()).type_word();
        if dom.arch == Arch::X86_32 && child.kind() == FrameType::L2 && child.count() > 0 {
            return self.tally_linear(table, entry);
        }
        self.refer_as(entry.mfn(), FrameType::table(level - 1));
    }

    /// A directory that is read as an L1 table: never writable, and held, but by no entry of its own.
    fn tally_linear(&mut self, table: Mfn, entry: Pte) {
        if entry.writable() {
            self.report(Invariant::WritableOrTable, table, "writable linear entries", 0, entry.0);
        }
        // A directory that is half validated shows itself to nobody.
        if self.info(entry.mfn()).type_word().is_validated()
            && let Some(tally) = self.tally(entry.mfn())
        {
            tally.linear += 1;
        }
        if entry.mfn() != table {
            self.refer_as(entry.mfn(), FrameType::L2);
        }
    }

    fn tally_mapping(&mut self, table: Mfn, index: usize, dom: &Domain, entry: Pte) {
        let mfn = entry.mfn();
        self.count(Invariant::Rightful);
        if mfn.0 >= self.host.machine_frames {
            return self.report(Invariant::TypeIsHeld, table, "frame at most", self.host.machine_frames - 1, mfn.0);
        }
        let known = self.host.frames.info(mfn).filter(|info| !is_low_io(mfn) && info.refs().owner() != DomId::IO);
        let Some(info) = known else {
            let rights = |dom: &Domain| may_reach(dom, mfn);
            let lent = dom.is_privileged() && self.subjects.iter().any(|other| rights(other.dom));
            if self.host.forbidden_io.contains(&mfn) || !(rights(dom) || lent) {
                self.report(Invariant::Rightful, table, "mapping of I/O memory", 0, entry.0);
            }
            return;
        };
        let owner = info.refs().owner();
        let rightful = match owner {
            _ if owner == dom.id => true,
            DomId::XEN => dom.is_privileged() && info.refs().is_shared() && !entry.writable(),
            _ if self.is_granted(dom, owner, table, index, entry) => true,
            _ => dom.is_privileged() && self.subject(owner).is_some(),
        };
        if !rightful {
            self.report(Invariant::Rightful, table, "mapping of another's frame", dom.id.0.into(), owner.0.into());
        }
        if entry.writable() {
            self.refer_as(mfn, FrameType::Writable);
            if entry.0 & bits::UNCACHED != 0 {
                self.expect(Invariant::Flushed, mfn, "mark of what is mapped uncached", 1, info.is_uncached().into());
            }
        } else {
            self.refer(mfn);
        }
    }

    /// A domain's half-validated tables are its own, above the lowest level, and what their list says.
    pub(super) fn check_partial(&mut self, dom: &Domain, index: usize) {
        let (mut nth, mut before) = (0, None);
        let mut abandoned = self.states[index].suspended.abandoned();
        // One by one: a list of them might make the heap grow.
        while let Some((mfn, condition)) = self.partial_table(dom, index, nth) {
            nth += 1;
            if condition == Condition::Suspended {
                let found = Pager::new(self.host, dom).suspended_before(mfn);
                self.expect(Invariant::TypeIsHeld, mfn, "link back to the one before", number(before), number(found));
                before = Some(mfn);
                abandoned = abandoned.filter(|&first| first != mfn);
            }
            self.expect_owner(mfn, dom);
            let word = self.info(mfn).type_word();
            let found = word.partial().is_some_and(|(_, found)| found == condition);
            self.expect(Invariant::TypeIsHeld, mfn, "condition as its list has it", 1, found.into());
            let upper = word.kind().level().is_some_and(|level| level >= 2);
            self.expect(Invariant::TypeIsHeld, mfn, "half-validated and above the lowest level", 1, upper.into());
        }
        let at = Mfn(dom.id.0.into());
        self.expect(Invariant::TypeIsHeld, at, "the abandoned, which is no suspended one", 0, number(abandoned));
        self.expect(Invariant::TypeIsHeld, at, "unsettled", (nth > 0).into(), dom.is_unsettled().into());
    }

    fn partial_table(&self, dom: &Domain, index: usize, nth: usize) -> Option<(Mfn, Condition)> {
        Pager::new(self.host, dom).partial_tables(&self.states[index]).nth(nth)
    }

    /// Every descriptor is one that the guest may have, in the form in which it is kept.
    fn check_descriptors(&mut self, mfn: Mfn, dom: &Domain) {
        for offset in (0..PAGE_SIZE as u64).step_by(8) {
            self.count(Invariant::TypeIsHeld);
            let raw = self.host.hw.load64(MachineAddr(mfn.addr().0 + offset));
            if descriptor::check(dom.arch, raw) != Ok(raw) {
                self.report(Invariant::TypeIsHeld, mfn, "a descriptor that guests may have, at", offset, raw);
            }
        }
    }

    /// So is every one in the hypervisor's copy of the first page, apart from the reserved ones.
    pub(super) fn check_gdt_copy(&mut self, dom: &Domain) {
        // One at its end has none any more.
        if dom.over.load(core::sync::atomic::Ordering::Relaxed) {
            return;
        }
        for index in (0..512).filter(|index| !descriptor::RESERVED.contains(index)) {
            let raw = self.host.hw.load64(MachineAddr(dom.gdt_page.addr().0 + 8 * u64::from(index)));
            if descriptor::check(dom.arch, raw) != Ok(raw) {
                self.report(
                    Invariant::TypeIsHeld,
                    dom.gdt_page,
                    "a descriptor that guests may have",
                    index.into(),
                    raw,
                );
            }
        }
    }
}

/// For a report. Frame 0 is never a table.
fn number(mfn: Option<Mfn>) -> u64 {
    mfn.map_or(0, |mfn| mfn.0)
}
