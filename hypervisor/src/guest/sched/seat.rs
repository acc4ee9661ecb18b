//! Where domains are between their turns: a seat for each slot of a queue.
//!
//! A seat is one word, which says who sits there: nobody, a parked domain, or one that somebody [holds](Seat::hold) for
//! a moment, to look at it or to take it away. It is a lock of its own, the innermost: whoever holds a domain waits for
//! no lock of a queue's or its places' that the domain's CPU may have while it waits for that very domain, and for no
//! other seat.
//!
//! Nobody sits there while the domain runs, which is its CPU's own then, and while the slot is not in use. Two never
//! claim one seat: the slot is one domain's from its [place](super::place) to its end, and that domain is parked only
//! where it ran.
//!
//! `hypervisor/seat-model` compiles this file over a model checker's atomics and tries the orders out.

use super::Running;
use super::atomics::{AtomicPtr, Ordering, wait_a_little};
use alloc::boxed::Box;
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};

/// What a slot of a queue has in it. If that is a pointer, it is a box's, and the seat's own.
pub struct Seat(AtomicPtr<Running>);

/// Somebody holds the domain. (No box is at such an address.)
const HELD: *mut Running = ptr::without_provenance_mut(1);

impl Seat {
    /// Nobody's.
    pub fn empty() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// A domain's turn begins: takes it out, if it is there, behind whoever holds it.
    #[inline(always)]
    pub fn take(&self) -> Option<Box<Running>> {
        let who = self.claim(ptr::null_mut())?;
        // SAFETY: it was the seat's box, and is no more.
        Some(unsafe { Box::from_raw(who.as_ptr()) })
    }

    /// A domain's turn has ended, or its first is still to come. It is its own seat, which nobody has claimed
    /// meanwhile.
    #[inline(always)]
    pub fn put(&self, running: Box<Running>) {
        debug_assert!(self.0.load(Ordering::Relaxed).is_null(), "somebody sits there");
        self.0.store(Box::into_raw(running), Ordering::Release);
    }

    /// Holds who sits there: its turn does not begin meanwhile, and nobody else holds it. `None` if nobody does.
    pub fn hold(&self) -> Option<Held<'_>> {
        self.claim(HELD).map(|who| Held { seat: self, who })
    }

    /// Puts something else into the place of a parked domain.
    #[inline(always)]
    fn claim(&self, instead: *mut Running) -> Option<NonNull<Running>> {
        loop {
            let who = self.0.load(Ordering::Relaxed);
            if who.addr() > HELD.addr() {
                if self.0.compare_exchange(who, instead, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return NonNull::new(who);
                }
            } else if who.is_null() {
                return None;
            }
            wait_a_little();
        }
    }
}

/// A parked domain that is held. It sits there again when this is dropped.
pub struct Held<'a> {
    seat: &'a Seat,
    who: NonNull<Running>,
}

impl Held<'_> {
    /// Takes it away. Its seat is empty then.
    pub fn take(self) -> Box<Running> {
        let (seat, who) = (self.seat, self.who);
        core::mem::forget(self);
        seat.0.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: it was the seat's box, which is held, and so nobody else's.
        unsafe { Box::from_raw(who.as_ptr()) }
    }
}

impl Deref for Held<'_> {
    type Target = Running;

    fn deref(&self) -> &Running {
        // SAFETY: the seat's box, which nobody else claims while it is held.
        unsafe { self.who.as_ref() }
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Running {
        // SAFETY: as in `deref`; and this is the only reference to what is held.
        unsafe { self.who.as_mut() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.seat.0.store(self.who.as_ptr(), Ordering::Release);
    }
}
