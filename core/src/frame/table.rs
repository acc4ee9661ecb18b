//! The table of all frames.

use super::{FrameInfo, RefError};
use crate::addr::{DomId, FIRST_RAM_FRAME, Mfn};

/// The table of all frames, indexed by machine frame number.
#[derive(Clone, Copy)]
pub struct FrameTable {
    frames: &'static [FrameInfo],
    /// All but the first MiB's, so that one comparison tells what may be RAM.
    above_first_mib: &'static [FrameInfo],
}

impl FrameTable {
    /// Takes over the frames' records, all of them [`FrameInfo::reserved`].
    #[must_use]
    pub const fn new(frames: &'static [FrameInfo]) -> Self {
        let first = FIRST_RAM_FRAME.0 as usize;
        let above_first_mib = if frames.len() > first { frames.split_at(first).1 } else { &[] };
        Self { frames, above_first_mib }
    }

    /// How many frames the table knows: one more than the highest frame number of RAM.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Whether the table is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The record of a frame, if the table knows it.
    #[inline]
    #[must_use]
    pub fn info(&self, mfn: Mfn) -> Option<&'static FrameInfo> {
        self.frames.get(usize::try_from(mfn.0).ok()?)
    }

    /// The record of a frame, if the table knows it and it does not lie in the first MiB, which counts as I/O memory.
    /// If the owner is a domain or the hypervisor, it is RAM.
    #[inline]
    #[must_use]
    pub fn above_first_mib(&self, mfn: Mfn) -> Option<&'static FrameInfo> {
        self.above_first_mib.get(usize::try_from(mfn.0.wrapping_sub(FIRST_RAM_FRAME.0)).ok()?)
    }

    /// The first frame from `from` on that `owner` owns, of so many; if none is, the one behind those, or behind all
    /// there are.
    #[must_use]
    pub fn next_of(&self, owner: DomId, from: Mfn, most: u64) -> Mfn {
        let end = from.0.saturating_add(most).min(self.len());
        let range = usize::try_from(from.0).ok().zip(usize::try_from(end).ok());
        let looked_at = range.and_then(|(from, end)| self.frames.get(from..end)).unwrap_or_default();
        let found = looked_at.iter().position(|info| info.refs().owner() == owner);
        Mfn(from.0 + found.unwrap_or(looked_at.len()) as u64)
    }

    /// Takes a reference to a frame owned by `owner`.
    #[inline]
    pub fn get(&self, mfn: Mfn, owner: DomId) -> Result<&'static FrameInfo, RefError> {
        let info = self.info(mfn).ok_or(RefError::NoSuchFrame)?;
        info.get(owner)?;
        Ok(info)
    }

    /// Whether the frame is RAM that domains or the hypervisor use: anything else is I/O memory (or nothing at all).
    #[inline]
    #[must_use]
    pub fn is_ram(&self, mfn: Mfn) -> bool {
        self.info(mfn).is_some_and(|info| info.refs().owner() != DomId::IO)
    }
}
