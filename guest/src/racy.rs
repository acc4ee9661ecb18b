//! A static that assembly or the hypervisor writes.

use core::cell::UnsafeCell;

/// Memory with a fixed address and no lock: whoever dereferences [`get`](Self::get) argues why nobody else does.
///
/// A guest has one virtual CPU; what can interrupt its code is an upcall or a trap.
#[repr(transparent)]
pub(crate) struct Racy<T>(UnsafeCell<T>);

// SAFETY: `Racy` hands out raw pointers only; each dereference argues for itself.
unsafe impl<T> Sync for Racy<T> {}

impl<T> Racy<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) const fn get(&self) -> *mut T {
        self.0.get()
    }
}
