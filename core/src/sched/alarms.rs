//! When those that wait are to be told of the time they asked for: what a CPU's one timer is set to while they do not
//! run.
//!
//! Promises: at most one alarm a slot, the last one set; O(log n); only [`Alarms::reserve`] allocates. No lock: they go
//! with a CPU's run queue.

use super::heap::Heap;
use super::{SchedError, Slot, Time};

/// A CPU's alarms.
pub struct Alarms(Heap<Time>);

impl Default for Alarms {
    fn default() -> Self {
        Self::new()
    }
}

impl Alarms {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Heap::new())
    }

    /// Makes room for slots up to and with this one.
    ///
    /// # Errors
    /// [`SchedError::OutOfMemory`].
    pub fn reserve(&mut self, last: Slot) -> Result<(), SchedError> {
        self.0.reserve(last.index() + 1)
    }

    /// Sets the alarm of a slot that there is room for.
    pub fn set(&mut self, slot: Slot, at: Time) {
        self.0.remove(slot);
        self.0.insert(slot, at);
    }

    /// Cancels a slot's alarm, if it has one.
    #[inline]
    pub fn cancel(&mut self, slot: Slot) {
        self.0.remove(slot);
    }

    /// When the first is due.
    #[inline]
    #[must_use]
    pub fn first(&self) -> Option<Time> {
        self.0.first().map(|(at, _)| at)
    }

    /// Takes one that is due, the earliest first.
    pub fn take_due(&mut self, now: Time) -> Option<Slot> {
        let (_, slot) = self.0.first().filter(|&(at, _)| at <= now)?;
        self.0.remove(slot);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_ring_in_order_and_once() {
        let mut alarms = Alarms::new();
        alarms.reserve(Slot(9)).unwrap();
        for (slot, at) in [(3, 50), (9, 20), (0, 30), (3, 10), (5, 40)] {
            alarms.set(Slot(slot), Time(at));
        }
        alarms.cancel(Slot(0));
        alarms.cancel(Slot(1));
        assert_eq!(alarms.first(), Some(Time(10)));
        assert_eq!(alarms.take_due(Time(9)), None);
        assert_eq!(alarms.take_due(Time(25)), Some(Slot(3)));
        assert_eq!(alarms.take_due(Time(25)), Some(Slot(9)));
        assert_eq!(alarms.take_due(Time(25)), None);
        assert_eq!((alarms.first(), alarms.take_due(Time(40)), alarms.first()), (Some(Time(40)), Some(Slot(5)), None));
    }
}
