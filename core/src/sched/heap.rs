//! A binary heap of slots, smallest key first, that knows where each slot is: so any can be removed or replaced.
//!
//! All operations are O(log n), the first of the order O(1). Only [`Heap::reserve`] allocates. No lock.

use super::{SchedError, Slot};
use alloc::vec::Vec;

/// Where a slot is that is not in the heap.
const NOWHERE: u16 = u16::MAX;

/// The heap. Of equal keys any may come first, but always the same after the same calls.
pub(super) struct Heap<K> {
    order: Vec<(K, Slot)>,
    /// Of each slot, the index in `order`.
    place: Vec<u16>,
}

impl<K: Ord + Copy> Heap<K> {
    pub const fn new() -> Self {
        Self { order: Vec::new(), place: Vec::new() }
    }

    /// Makes room for slots below `slots`.
    pub fn reserve(&mut self, slots: usize) -> Result<(), SchedError> {
        let missing = slots.saturating_sub(self.order.len());
        self.order.try_reserve(missing).map_err(|_| SchedError::OutOfMemory)?;
        let missing = slots.saturating_sub(self.place.len());
        self.place.try_reserve(missing).map_err(|_| SchedError::OutOfMemory)?;
        self.place.resize(slots.max(self.place.len()), NOWHERE);
        Ok(())
    }

    #[inline]
    pub fn first(&self) -> Option<(K, Slot)> {
        self.order.first().copied()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    #[inline]
    pub fn contains(&self, slot: Slot) -> bool {
        self.place[slot.index()] != NOWHERE
    }

    /// Adds a slot that is not in the heap.
    pub fn insert(&mut self, slot: Slot, key: K) {
        debug_assert!(!self.contains(slot));
        self.order.push((key, slot));
        self.rise(self.order.len() - 1);
    }

    /// Removes a slot, if it is in the heap.
    pub fn remove(&mut self, slot: Slot) {
        let at = self.place[slot.index()];
        if at == NOWHERE {
            return;
        }
        self.place[slot.index()] = NOWHERE;
        let at = usize::from(at);
        self.order.swap_remove(at);
        if at < self.order.len() {
            self.settle(at);
        }
    }

    /// Puts a slot that is not in the heap into the place of one that is.
    #[inline(always)]
    pub fn replace(&mut self, out: Slot, slot: Slot, key: K) {
        let at = core::mem::replace(&mut self.place[out.index()], NOWHERE);
        self.order[usize::from(at)] = (key, slot);
        self.place[slot.index()] = at;
        if self.order.len() > 1 {
            self.settle(at.into());
        }
    }

    /// [`replace`](Self::replace) of the first, which there is.
    #[inline(always)]
    pub fn replace_first(&mut self, slot: Slot, key: K) {
        let Some(first) = self.order.first_mut() else { return };
        let (_, out) = core::mem::replace(first, (key, slot));
        self.place[out.index()] = NOWHERE;
        self.place[slot.index()] = 0;
        if self.order.len() > 1 {
            self.settle(0);
        }
    }

    #[inline(never)]
    fn settle(&mut self, at: usize) {
        if at > 0 && self.order[at].0 < self.order[(at - 1) / 2].0 { self.rise(at) } else { self.sink(at) }
    }

    fn rise(&mut self, mut at: usize) {
        let moved = self.order[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.order[parent].0 <= moved.0 {
                break;
            }
            self.put(at, self.order[parent]);
            at = parent;
        }
        self.put(at, moved);
    }

    fn sink(&mut self, mut at: usize) {
        let moved = self.order[at];
        loop {
            let mut child = 2 * at + 1;
            let Some(&left) = self.order.get(child) else { break };
            let mut least = left;
            if let Some(&right) = self.order.get(child + 1)
                && right.0 < left.0
            {
                (child, least) = (child + 1, right);
            }
            if moved.0 <= least.0 {
                break;
            }
            self.put(at, least);
            at = child;
        }
        self.put(at, moved);
    }

    #[inline]
    fn put(&mut self, at: usize, entry: (K, Slot)) {
        self.order[at] = entry;
        self.place[entry.1.index()] = at as u16;
    }
}
