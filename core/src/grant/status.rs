//! The entries of a grant table, which a guest changes at the same time: what the hypervisor reads of them and what it
//! writes into them.
//!
//! An entry is two words of 32 bits: flags and the grantee's number in the first, a frame in the second. Nothing in an
//! entry is relied upon: what is pinned, for whom and how often, the hypervisor knows by itself ([`super::table`]). The
//! flags tell the *guest*. Promises, to a guest that keeps to the header's protocol:
//!
//! - A guest that has withdrawn a grant, by compare-and-exchange while neither `GTF_reading` nor `GTF_writing` was set,
//!   has its frame to itself: nobody has it pinned, and nobody pins it by that grant any more. One that made it
//!   read-only, while `GTF_writing` was not set, is not written to.
//! - What is pinned by a grant is the frame that was granted with it, to that domain.
//! - `GTF_transfer_committed` is set only if a frame comes, and `GTF_transfer_completed` when its number is in the
//!   entry.
//!
//! So flags are *set* by compare-and-exchange of the whole first word, before the frame's number is read and before
//! anything is pinned; and they are *cleared* when nothing is pinned any more, by an instruction that touches no other
//! bit. A guest that changes an entry as fast as it can harms itself: after a few attempts its grant is as good as
//! none.
//!
//! No lock of its own: calls for one entry are made under its table's lock. `core/grant-model` compiles this file over
//! a model checker's atomics, with a guest beside it.

use crate::addr::{DomId, MachineAddr};
use crate::machine::MachineMemory;
use proxenos_abi::grant_table::GrantFlags;

/// How a frame is granted or pinned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// To be read.
    Read,
    /// To be written to as well.
    Write,
}

/// Why an entry does not serve. The guest sees `GNTST_general_error`, whatever the reason, as in 2.0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// It grants nothing of the kind, or not to this domain.
    NotGranted,
    /// It may only be read.
    ReadOnly,
    /// Its guest keeps changing it.
    Unstable,
}

/// How often a change is tried: a guest may change its own part once or twice meanwhile, and has the right to.
const ATTEMPTS: u32 = 5;

/// Address of the word that holds the frame.
const fn frame_word(entry: MachineAddr) -> MachineAddr {
    MachineAddr(entry.0 + 4)
}

const fn flags_of(word: u32) -> GrantFlags {
    GrantFlags::from_bits_retain(word as u16)
}

const fn domid_of(word: u32) -> DomId {
    DomId((word >> 16) as u16)
}

/// Sets flags in an entry that `fits`, whatever the guest does to it meanwhile.
fn mark<M: MachineMemory>(
    memory: &M,
    entry: MachineAddr,
    flags: GrantFlags,
    fits: impl Fn(GrantFlags, DomId) -> Result<(), Unfit>,
) -> Result<(), Unfit> {
    let mut seen = memory.load32(entry);
    for _ in 0..ATTEMPTS {
        fits(flags_of(seen), domid_of(seen))?;
        match memory.cas32(entry, seen, seen | u32::from(flags.bits())) {
            Ok(()) => return Ok(()),
            Err(now) => seen = now,
        }
    }
    Err(Unfit::Unstable)
}

/// Notes in an entry that `grantee` is about to have the frame pinned; the number of the frame granted. (What it really
/// has, [`end`] is told then.)
///
/// # Errors
/// The entry does not grant that, and is unchanged.
pub fn begin<M: MachineMemory>(memory: &M, entry: MachineAddr, grantee: DomId, access: Access) -> Result<u32, Unfit> {
    let noted = match access {
        Access::Read => GrantFlags::READING,
        Access::Write => GrantFlags::READING.union(GrantFlags::WRITING),
    };
    mark(memory, entry, noted, |flags, domid| {
        if flags.intersection(GrantFlags::TYPE_MASK) != GrantFlags::PERMIT_ACCESS || domid != grantee {
            return Err(Unfit::NotGranted);
        }
        if access == Access::Write && flags.contains(GrantFlags::READONLY) {
            return Err(Unfit::ReadOnly);
        }
        Ok(())
    })?;
    // Only now: until the flag is set, the guest may withdraw the grant and make another of it.
    Ok(memory.load32(frame_word(entry)))
}

/// Something that was pinned by this entry is no more: only this is left. Nobody can reach the frame by what has ended.
pub fn end<M: MachineMemory>(memory: &M, entry: MachineAddr, left: Option<Access>) {
    let over = match left {
        None => GrantFlags::READING.union(GrantFlags::WRITING),
        Some(Access::Read) => GrantFlags::WRITING,
        Some(Access::Write) => return,
    };
    memory.and32(entry, !u32::from(over.bits()));
}

/// Commits a frame of `giver`'s to an entry that waits for one; what the guest says of the place that it is to fill (a
/// pfn, or 0). From here on the guest waits, so [`complete`] follows.
///
/// # Errors
/// The entry waits for nothing of the kind, and is unchanged.
pub fn commit<M: MachineMemory>(memory: &M, entry: MachineAddr, giver: DomId) -> Result<u32, Unfit> {
    mark(memory, entry, GrantFlags::TRANSFER_COMMITTED, |flags, domid| {
        if flags == GrantFlags::ACCEPT_TRANSFER && domid == giver { Ok(()) } else { Err(Unfit::NotGranted) }
    })?;
    Ok(memory.load32(frame_word(entry)))
}

/// The frame has come. It is the guest's already.
pub fn complete<M: MachineMemory>(memory: &M, entry: MachineAddr, frame: u32) {
    memory.store32(frame_word(entry), frame);
    memory.or32(entry, u32::from(GrantFlags::TRANSFER_COMPLETED.bits()));
}
