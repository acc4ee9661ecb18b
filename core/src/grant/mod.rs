//! Grants: what a domain lets others do with single frames of its own (`grant_table.h`, `grant_table_op`).
//!
//! A domain has a table of grants in frames that it shares with the hypervisor ([`table`], [`status`]). Another domain
//! *maps* a grant, for its CPUs, for devices or both, and is given a handle; it *unmaps* by handle ([`mappings`],
//! [`ops`]). Or it gives a frame away to a grant that waits for one ([`transfer`]).
//!
//! # Who holds which reference
//!
//! | holder | refers to the frame | as writable memory | until |
//! |---|---|---|---|
//! | a mapping (handle) | once | once, if it allows writes | all that it is for is unmapped, or its domain ends |
//! | the page-table entry of a host mapping | once | once, if it allows writes | that entry is gone, by whatever way |
//!
//! The entry is written by the validated machinery of [`crate::paging`], as if the mapping domain had the grantor for a
//! foreign domain, and from then on is an entry like any other. So whatever its domain does to it (overwrites it by
//! `mmu_update` or through writable page tables, drops the table that it is in) gives back the entry's references
//! and nothing else; the handle keeps its own, the frame stays its owner's, and the grantor's flags stay set.
//! That is where 2.0 lost count: there one reference stood for both.
//!
//! # No page-table entry without a handle
//!
//! Nobody but the hypervisor makes an entry for another domain's frame (a privileged domain apart, which has the right
//! without any grant): an entry cannot be copied, moved, or given back the right to write, since each new one is
//! checked as if it were of a frame of the domain's own. So a granted frame is mapped at most at the places, table and
//! slot, that handles remember; and each way in which a host mapping's handle ends clears its place, if the frame is
//! (still) there. An unmap whose address is not the mapping's is refused, before anything is done. One whose entry is
//! gone, because its domain has overwritten it, succeeds: there is nothing left to clear, and the handle would be held
//! for good. That several handles remember one place (each overwrote the last one's entry) does no harm: the first
//! unmap clears it. The audit looks for a handle for each such entry (invariant I4).
//!
//! # Order
//!
//! *Map:* flags are set in the grantor's table; then the frame is referred to; then the entry is written. *Unmap:*
//! entries are cleared; the TLB is flushed; then references are given back; then the flags are cleared. Between the
//! steps no lock is held. So at no moment can a grantor see its flags clear while its frame can still be reached, by a
//! TLB or by the hypervisor in the name of the other domain. A batch flushes once for each 32 unmaps. The mapping
//! domain's one virtual CPU is in the hypervisor meanwhile. *Relied upon:* what another CPU's TLB remembers of that
//! domain is of no use, since a CPU that begins to run a domain which ran elsewhere in between loads its tables anew.
//!
//! # The end of either side
//!
//! Of the grantor: its table is closed first, then what is its own goes as always. Frames that are mapped stay its
//! until they are unmapped; the mappings keep its [`Domain`], so no later domain of the same number is taken for it. Of
//! the mapping domain: page tables go first, and when nothing is a table any more the handles.
//!
//! Locks: the grantor's table, the mapping domain's list, and the paging lock of the mapping domain, one at a time.
//! Only the audit, for which all CPUs stand still, and transfers (which hold the table for as long as a frame is on its
//! way) take others with them; both of these locks come behind paging locks and ports, and before the frame
//! allocator's.

pub mod mappings;
pub mod ops;
pub mod status;
pub mod table;
#[cfg(test)]
mod tests;
pub mod transfer;

use crate::addr::{DomId, Mfn};
use crate::domain::{Domain, Privileges};
use crate::frame::{FrameType, RefError};
use crate::host::{Hardware, Host};
use crate::paging::log_dirty;
use crate::preempt::{Poll, cost};
use crate::sync::Mutex;
use mappings::{Limit, Mapping, Mappings};
use proxenos_abi::GrantRef;
use proxenos_abi::grant_table::GrantStatus;
use status::Access;
use table::Table;

/// What a domain grants and what it has mapped of others' grants.
pub struct Grants {
    pub(crate) table: Mutex<Table>,
    pub(crate) mappings: Mutex<Mappings>,
}

impl Default for Grants {
    fn default() -> Self {
        Self::new()
    }
}

impl Grants {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { table: Mutex::new(Table::new()), mappings: Mutex::new(Mappings::new()) }
    }
}

/// How many mappings a domain may have.
fn limit(dom: &Domain) -> Limit {
    if dom.privileges.intersects(Privileges::DEVICES | Privileges::CONTROL) { Limit::BACK_END } else { Limit::ORDINARY }
}

/// Begins a mapping of one of `owner`'s grants: the frame, to which the mapping has its references.
fn pin<H: Hardware>(
    host: &Host<H>,
    owner: &Domain,
    grant: GrantRef,
    grantee: DomId,
    access: Access,
) -> Result<Mfn, GrantStatus> {
    let frame = owner.grants.table.lock().begin(host, grant, grantee, access)?;
    if refer(host, owner.id, grantee, frame, access).is_err() {
        owner.grants.table.lock().end(host, grant, access);
        return Err(GrantStatus::GeneralError);
    }
    Ok(frame)
}

/// Takes a mapping's references.
fn refer<H: Hardware>(
    host: &Host<H>,
    owner: DomId,
    grantee: DomId,
    frame: Mfn,
    access: Access,
) -> Result<(), RefError> {
    if !host.is_ram(frame) {
        return Err(RefError::NoSuchFrame);
    }
    let info = host.frames.get(frame, owner)?;
    if access == Access::Write {
        if let Err(error) = info.get_type(FrameType::Writable, |stamp| host.hw.flush_if_older(stamp)) {
            host.put_frame(frame, info);
            return Err(error);
        }
        if host.is_any_watched() {
            log_dirty::foreign_writer(host, grantee, frame, info);
        }
    }
    Ok(())
}

/// Ends a mapping of a domain's, which is for nothing any more: no page-table entry and no TLB leads to the frame by
/// it.
fn unpin<H: Hardware>(host: &Host<H>, grantee: DomId, mapping: &Mapping) {
    let Mapping { owner, grant, access, frame, .. } = mapping;
    let info = host.frames.info(*frame).expect("a counted reference names a frame of the table");
    let stamp = host.hw.stamp();
    let was_last = match access {
        Access::Read => info.put_readable(stamp),
        Access::Write => {
            if host.is_any_watched() {
                log_dirty::foreign_writer(host, grantee, *frame, info);
            }
            info.put_writable(stamp)
        }
    };
    if was_last {
        host.free_frame(*frame, info);
    }
    owner.grants.table.lock().end(host, *grant, *access);
}

/// A domain ends: nobody maps its grants any more, nor gives it frames. What is mapped stays so.
pub fn close<H: Hardware>(host: &Host<H>, dom: &Domain) {
    let frames = dom.grants.table.lock().close();
    for frame in frames {
        host.give_up_shared(frame, host.frames.info(frame).expect("a frame of the table's"));
    }
}

/// Whether all was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Released {
    /// It was.
    Wholly,
    /// There was no time for all.
    Partly,
}

/// A domain has ended, and none of its frames is a page table any more: gives up what it has mapped of others' grants.
pub fn release<H: Hardware>(host: &Host<H>, dom: &Domain, poll: &mut Poll) -> Released {
    loop {
        if poll.is_due(&host.hw) {
            return Released::Partly;
        }
        let Some(mapping) = dom.grants.mappings.lock().pop() else { return Released::Wholly };
        unpin(host, dom.id, &mapping);
        poll.step(cost::ENTRY);
    }
}
