//! Grants: every mapping has its references and is counted where it was granted, and every page-table entry for another
//! domain's frame has a mapping behind it.

use super::{Audit, Invariant};
use crate::addr::{DomId, Mfn};
use crate::domain::Domain;
use crate::frame::FrameType;
use crate::grant::mappings::Mapping;
use crate::grant::status::Access;
use crate::host::Hardware;
use crate::paging::format::Pte;

impl<H: Hardware> Audit<'_, H> {
    /// Counts the references of a domain's mappings, and checks its table.
    pub(super) fn tally_grants(&mut self, dom: &Domain) {
        let mappings = dom.grants.mappings.lock();
        for mapping in mappings.iter() {
            match mapping.access {
                Access::Read => self.refer(mapping.frame),
                Access::Write => self.refer_as(mapping.frame, FrameType::Writable),
            }
            self.check_mapping(dom, mapping);
        }
        drop(mappings);
        let table = dom.grants.table.lock();
        for &frame in table.frames() {
            let refs = self.info(frame).refs();
            self.expect(Invariant::Rightful, frame, "owner of a grant table", dom.id.0.into(), refs.owner().0.into());
            let shared = refs.is_shared() && refs.is_allocated();
            self.expect(Invariant::Rightful, frame, "shared, as grant tables are", 1, shared.into());
        }
        let sum = |of: fn(&crate::grant::table::Active) -> u16| {
            table.active().iter().map(|one| u64::from(of(one))).sum::<u64>()
        };
        let (all, writable) = (sum(|active| active.mappings), sum(|active| active.writable));
        drop(table);
        let at = Mfn(dom.id.0.into());
        self.expect(Invariant::Counted, at, "mappings of a domain's grants", self.mappings_of(dom, Access::Read), all);
        let expected = self.mappings_of(dom, Access::Write);
        self.expect(Invariant::Counted, at, "writable mappings of a domain's grants", expected, writable);
    }

    /// A mapping is for something, of another domain's frame, and counted in the entry that it is of.
    fn check_mapping(&mut self, dom: &Domain, mapping: &Mapping) {
        let frame = mapping.frame;
        let used = mapping.device || mapping.host.is_some();
        self.expect(Invariant::Counted, frame, "a mapping that is for something", 1, used.into());
        let owner = self.info(frame).refs().owner();
        self.expect(Invariant::Rightful, frame, "owner of what is granted", mapping.owner.id.0.into(), owner.0.into());
        let table = mapping.owner.grants.table.lock();
        let active = table.active().get(usize::from(mapping.grant.0)).copied().unwrap_or_default();
        drop(table);
        let counted = active.mappings > 0 && active.grantee == dom.id && u64::from(active.frame) == frame.0;
        self.expect(Invariant::Rightful, frame, "a grant that counts a mapping", 1, counted.into());
    }

    /// How many mappings there are of a domain's grants that allow this much.
    fn mappings_of(&self, owner: &Domain, access: Access) -> u64 {
        let of = |dom: &Domain| {
            let mappings = dom.grants.mappings.lock();
            let of_owner = |one: &&Mapping| core::ptr::eq(&*one.owner, owner) && one.access >= access;
            mappings.iter().filter(of_owner).count() as u64
        };
        self.subjects.iter().map(|subject| of(subject.dom)).sum()
    }

    /// Whether a mapping of a grant put an entry for this frame where it is.
    pub(super) fn is_granted(&self, dom: &Domain, owner: DomId, table: Mfn, slot: usize, entry: Pte) -> bool {
        let mappings = dom.grants.mappings.lock();
        mappings.iter().any(|mapping| {
            let here = mapping.host.is_some_and(|host| (host.table, usize::from(host.slot)) == (table, slot));
            here && (mapping.frame, mapping.owner.id) == (entry.mfn(), owner)
                && (mapping.access == Access::Write || !entry.writable())
        })
    }
}
