//! What a domain grants: the frames of its table, and for each entry who has it pinned.
//!
//! An entry is *active* while somebody has it pinned. All who do are the one domain that the entry was granted to then,
//! and what they have pinned is the one frame that it named then, whatever the guest has made of the entry since: an
//! entry that no longer says so grants nothing more. The references to the frame are its mappings'
//! ([`super::mappings`]); counted here is only what the entry's flags have to say, and who may come in addition.
//!
//! Lock: the table's own, for one entry at a time. No other lock is taken within it but the frame allocator's.

use super::status::{self, Access, Unfit};
use crate::addr::{DomId, MachineAddr, Mfn};
use crate::host::{Hardware, Host};
use crate::sync::MutexGuard;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use proxenos_abi::grant_table::{GrantEntry, GrantStatus};
use proxenos_abi::{GrantRef, PAGE_SIZE};

/// The most frames that a table has (2.0 had one).
pub const MAX_TABLE_FRAMES: usize = 4;
/// How many grants lie in a frame of a table.
pub const GRANTS_PER_FRAME: usize = PAGE_SIZE / size_of::<GrantEntry>();

/// Who has an entry pinned.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Active {
    /// The domain that all of them are.
    pub(crate) grantee: DomId,
    /// How many mappings there are. A domain has no more than 2^15, and only one has any of this entry.
    pub(crate) mappings: u16,
    /// How many of them allow writes.
    pub(crate) writable: u16,
    /// The frame.
    pub(crate) frame: u32,
}

impl Active {
    /// What is pinned.
    const fn access(&self) -> Option<Access> {
        match (self.mappings, self.writable) {
            (0, _) => None,
            (_, 0) => Some(Access::Read),
            _ => Some(Access::Write),
        }
    }
}

/// Whether a table can still be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It can.
    Open,
    /// Its domain has ended.
    Closed,
}

/// A domain's grants.
#[derive(Debug)]
pub(crate) struct Table {
    state: State,
    /// Its frames, shared with the domain. None until it is set up; that is as good as one full of zeroes.
    frames: ArrayVec<Mfn, MAX_TABLE_FRAMES>,
    /// As many entries as lie in the frames; they outlast those.
    active: Vec<Active>,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { state: State::Open, frames: ArrayVec::new_const(), active: Vec::new() }
    }

    /// Its frames, now.
    pub(crate) fn frames(&self) -> &[Mfn] {
        &self.frames
    }

    /// Its entries' counts, now.
    pub(crate) fn active(&self) -> &[Active] {
        &self.active
    }

    /// Sees to it that there are at least so many frames, which are `owner`'s.
    pub(crate) fn set_up<H: Hardware>(
        &mut self,
        host: &Host<H>,
        owner: DomId,
        frames: usize,
    ) -> Result<(), GrantStatus> {
        if self.state == State::Closed {
            return Err(GrantStatus::BadDomain);
        }
        while self.frames.len() < frames {
            let grants = (self.frames.len() + 1) * GRANTS_PER_FRAME;
            let missing = grants - self.active.len();
            self.active.try_reserve_exact(missing).map_err(|_| GrantStatus::GeneralError)?;
            let frame = host.alloc.lock().alloc_shared_for_guest(owner, &host.hw).ok_or(GrantStatus::GeneralError)?;
            self.active.resize(grants, Active::default());
            self.frames.push(frame);
        }
        Ok(())
    }

    /// The domain ends: nobody pins anything any more, and no entry is written to. The frames are its caller's to give
    /// up.
    pub(crate) fn close(&mut self) -> ArrayVec<Mfn, MAX_TABLE_FRAMES> {
        self.state = State::Closed;
        core::mem::take(&mut self.frames)
    }

    /// Where an entry is.
    fn entry(&self, grant: GrantRef) -> Result<MachineAddr, GrantStatus> {
        let (frame, index) = (usize::from(grant.0) / GRANTS_PER_FRAME, usize::from(grant.0) % GRANTS_PER_FRAME);
        match self.frames.get(frame) {
            _ if self.state == State::Closed => Err(GrantStatus::BadDomain),
            Some(frame) => Ok(MachineAddr(frame.addr().0 + (index * size_of::<GrantEntry>()) as u64)),
            None if frame == 0 => Err(GrantStatus::GeneralError),
            None => Err(GrantStatus::BadGrantRef),
        }
    }

    /// One more mapping of a grant; the frame. What the entry names may be anything: the caller looks at it, and takes
    /// the mapping back with [`end`](Self::end) if it cannot be.
    pub(crate) fn begin<H: Hardware>(
        &mut self,
        host: &Host<H>,
        grant: GrantRef,
        grantee: DomId,
        access: Access,
    ) -> Result<Mfn, GrantStatus> {
        let at = self.entry(grant)?;
        let active = &mut self.active[usize::from(grant.0)];
        if active.mappings != 0 && active.grantee != grantee {
            return Err(GrantStatus::GeneralError);
        }
        let frame = status::begin(&host.hw, at, grantee, access).map_err(refused)?;
        if active.mappings != 0 && active.frame != frame {
            // The guest has changed an entry that is in use. What is pinned stays pinned, and no more comes.
            status::end(&host.hw, at, active.access());
            return Err(GrantStatus::GeneralError);
        }
        (active.grantee, active.frame) = (grantee, frame);
        active.mappings += 1;
        active.writable += u16::from(access == Access::Write);
        Ok(Mfn(frame.into()))
    }

    /// One mapping less. Nobody can reach the frame by it any more, and its references are given back.
    pub(crate) fn end<H: Hardware>(&mut self, host: &Host<H>, grant: GrantRef, access: Access) {
        let at = self.entry(grant);
        let active = &mut self.active[usize::from(grant.0)];
        active.mappings -= 1;
        active.writable -= u16::from(access == Access::Write);
        if let Ok(at) = at {
            status::end(&host.hw, at, active.access());
        }
    }
}

/// An entry that waits for a frame of a domain's, and has one committed to it. The table stays locked, and so open.
pub(crate) struct Committed<'a> {
    table: MutexGuard<'a, Table>,
    grant: GrantRef,
    /// What the guest says of the place that the frame is to fill: a pfn, or 0.
    pub(crate) place: u32,
}

impl<'a> Committed<'a> {
    /// Commits a frame to an entry that accepts one of `giver`'s.
    pub(crate) fn new<H: Hardware>(
        host: &Host<H>,
        table: MutexGuard<'a, Table>,
        grant: GrantRef,
        giver: DomId,
    ) -> Result<Self, GrantStatus> {
        let at = table.entry(grant)?;
        // (Flags of access that is going on share bits with those of a transfer.)
        if table.active[usize::from(grant.0)].mappings != 0 {
            return Err(GrantStatus::GeneralError);
        }
        let place = status::commit(&host.hw, at, giver).map_err(refused)?;
        Ok(Self { table, grant, place })
    }

    /// The frame is the guest's.
    pub(crate) fn complete<H: Hardware>(self, host: &Host<H>, frame: Mfn) {
        let at = self.table.entry(self.grant).expect("it was there, and the table is locked");
        status::complete(&host.hw, at, frame.0 as u32);
    }
}

const fn refused(_: Unfit) -> GrantStatus {
    GrantStatus::GeneralError
}
