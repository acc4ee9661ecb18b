//! Slots in a circle: each has a neighbour on both sides, and one is first.
//!
//! All operations are O(1). Only [`Ring::reserve`] allocates. No lock.

use super::{SchedError, Slot};
use alloc::vec::Vec;

/// The neighbours of a slot; itself on both sides if it is not in the ring.
#[derive(Clone, Copy)]
struct Link {
    next: Slot,
    previous: Slot,
}

/// The circle.
pub(super) struct Ring {
    links: Vec<Link>,
    first: Option<Slot>,
}

impl Ring {
    pub const fn new() -> Self {
        Self { links: Vec::new(), first: None }
    }

    /// Makes room for slots below `slots`.
    pub fn reserve(&mut self, slots: usize) -> Result<(), SchedError> {
        let missing = slots.saturating_sub(self.links.len());
        self.links.try_reserve(missing).map_err(|_| SchedError::OutOfMemory)?;
        for index in self.links.len()..slots {
            let slot = Slot(index as u16);
            self.links.push(Link { next: slot, previous: slot });
        }
        Ok(())
    }

    #[inline]
    pub const fn first(&self) -> Option<Slot> {
        self.first
    }

    /// Whether it has at most one slot.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.first.is_none_or(|first| self.links[first.index()].next == first)
    }

    #[inline]
    pub fn contains(&self, slot: Slot) -> bool {
        self.first == Some(slot) || self.links[slot.index()].next != slot
    }

    /// Adds a slot that is not in the ring, as the last.
    pub fn push_last(&mut self, slot: Slot) {
        debug_assert!(!self.contains(slot));
        let Some(first) = self.first else {
            self.first = Some(slot);
            return;
        };
        let last = self.links[first.index()].previous;
        self.links[slot.index()] = Link { next: first, previous: last };
        self.links[last.index()].next = slot;
        self.links[first.index()].previous = slot;
    }

    /// Removes a slot, if it is in the ring.
    pub fn remove(&mut self, slot: Slot) {
        let Link { next, previous } = self.links[slot.index()];
        if self.first == Some(slot) {
            self.first = (next != slot).then_some(next);
        }
        self.links[previous.index()].next = next;
        self.links[next.index()].previous = previous;
        self.links[slot.index()] = Link { next: slot, previous: slot };
    }

    /// The first becomes the last.
    #[inline]
    pub fn rotate(&mut self) {
        self.first = self.first.map(|first| self.links[first.index()].next);
    }
}
