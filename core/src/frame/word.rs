//! A frame's word: all that is counted and known of a frame, in 64 bits that change at once.
//!
//! | bits | what | while the frame is free |
//! |---|---|---|
//! | 0..18 | type count; of a partial table, entries done (its count is 1) | log2 of the block's size, in its first frame |
//! | 18..21 | type | [`FrameType::Free`] in the first frame of a block |
//! | 21..24 | state of the type | [`ZEROED`], or nothing |
//! | 24..47 | references | 0 |
//! | 47..62 | owner | nobody |
//! | 62 | the owner holds its own reference | 0 |
//! | 63 | the hypervisor's, shared with the owner | 0 |
//!
//! States: nothing (not validated), [`VALIDATED`], `VALIDATED | MARKED` (pinned), [`PARTIAL`] (suspended),
//! `PARTIAL | MARKED` (condemned). At type count zero the state is nothing, so a validated type has a count.

use super::FrameType;
use crate::addr::DomId;

/// One reference.
pub(super) const ONE_REF: u64 = 1 << REFS_SHIFT;
/// The references.
pub(super) const REFS: u64 = ((1 << 23) - 1) << REFS_SHIFT;
const REFS_SHIFT: u32 = 24;
/// One use of the type.
pub(super) const ONE_TYPE: u64 = 1 << TYPES_SHIFT;
/// The type count.
pub(super) const TYPES: u64 = ((1 << 18) - 1) << TYPES_SHIFT;
/// Where the type count begins.
pub(super) const TYPES_SHIFT: u32 = 0;
/// The type.
pub(super) const KIND: u64 = 7 << KIND_SHIFT;
const KIND_SHIFT: u32 = 18;
/// The type is what it says: whoever finds it may rely on it.
pub(super) const VALIDATED: u64 = 1 << 21;
/// Of a validated table: pinned. Of a partial one: condemned.
pub(super) const MARKED: u64 = 1 << 22;
/// A table of which only the first entries hold references.
pub(super) const PARTIAL: u64 = 1 << 23;
/// Of a frame that nobody owns: it holds zeroes.
pub(super) const ZEROED: u64 = VALIDATED;
/// The state of the type.
pub(super) const STATE: u64 = VALIDATED | MARKED | PARTIAL;
/// All that a type is.
pub(super) const TYPE_FIELDS: u64 = TYPES | KIND | STATE;
/// The owner.
pub(super) const OWNER: u64 = 0x7fff << OWNER_SHIFT;
const OWNER_SHIFT: u32 = 47;
/// The owner still holds the reference that owning is.
pub(super) const ALLOCATED: u64 = 1 << 62;
/// The hypervisor's, but shared with its owner.
pub(super) const SHARED: u64 = 1 << 63;
/// The upper half of either count: where neither bit is set, both have room.
pub(super) const CROWDED: u64 = 1 << 46 | 1 << 17;

/// The owner's field. A number that does not fit (no domain has one) spoils other bits, so it equals no frame's owner.
#[inline]
pub(super) const fn owner_field(owner: DomId) -> u64 {
    (owner.0 as u64) << OWNER_SHIFT
}

/// The type's field.
#[inline]
pub(super) const fn kind_field(kind: FrameType) -> u64 {
    (kind as u64) << KIND_SHIFT
}

/// The type count; that of a partial table is 1.
#[inline]
pub(super) const fn type_count(word: u64) -> u32 {
    if word & PARTIAL != 0 { 1 } else { ((word & TYPES) >> TYPES_SHIFT) as u32 }
}

/// The type.
#[inline]
pub(super) const fn kind_of(word: u64) -> FrameType {
    FrameType::from_bits(word >> KIND_SHIFT)
}

/// What a snapshot of a frame's word says of its references.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refs(pub(super) u64);

impl Refs {
    /// How many references there are; a domain's ownership itself is one.
    #[inline]
    #[must_use]
    pub const fn count(self) -> u32 {
        ((self.0 & REFS) >> REFS_SHIFT) as u32
    }

    /// Who owns the frame.
    #[inline]
    #[must_use]
    pub const fn owner(self) -> DomId {
        DomId(((self.0 & OWNER) >> OWNER_SHIFT) as u16)
    }

    /// Whether the owner still holds the reference that owning it gives.
    #[must_use]
    pub const fn is_allocated(self) -> bool {
        self.0 & ALLOCATED != 0
    }

    /// Whether the frame is the hypervisor's but shared with its owner (shared_info): it is not part of the domain's
    /// reservation.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        self.0 & SHARED != 0
    }
}

/// What a snapshot of a frame's word says of its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TypeWord(pub(super) u64);

impl TypeWord {
    /// How many references rely on the type.
    #[inline]
    #[must_use]
    pub const fn count(self) -> u32 {
        type_count(self.0)
    }

    /// The type. At count zero it says only what the frame was last.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> FrameType {
        kind_of(self.0)
    }

    /// Whether every entry holds its references.
    #[inline]
    #[must_use]
    pub const fn is_validated(self) -> bool {
        self.0 & VALIDATED != 0
    }

    /// Whether the guest pinned the table.
    #[inline]
    #[must_use]
    pub const fn is_pinned(self) -> bool {
        self.0 & (MARKED | PARTIAL) == MARKED
    }
}
