//! The way to a guest: its shared page, mapped here, and an event channel.

use crate::map::Window;
use crate::wake;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use proxenos_guest::abi::event_channel::NR_EVENT_CHANNELS;
use proxenos_guest::abi::shared_info::CONTROL_IF_OFFSET;
use proxenos_guest::abi::{DomId, Errno, Mfn, Port};
use proxenos_guest::events;

/// Which guest is at the other end of each port.
static GUESTS: [AtomicU16; NR_EVENT_CHANNELS] = [const { AtomicU16::new(0) }; NR_EVENT_CHANNELS];
/// Ports on which an event has come.
static RUNG: [AtomicU32; NR_EVENT_CHANNELS / 32] = [const { AtomicU32::new(0) }; NR_EVENT_CHANNELS / 32];

/// The guests that have sent events since this was last asked.
pub fn rung() -> Vec<DomId> {
    let mut guests = Vec::new();
    for (index, word) in RUNG.iter().enumerate() {
        let mut bits = word.swap(0, Ordering::AcqRel);
        while bits != 0 {
            let port = index * 32 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            guests.push(DomId(GUESTS[port].load(Ordering::Relaxed)));
        }
    }
    guests
}

/// A guest's control interface.
pub struct GuestLink {
    port: Port,
    /// Keeps the page mapped.
    _window: Window,
    at: NonNull<u8>,
}

impl GuestLink {
    /// Connects this domain and a new one, and maps that one's shared page; the new domain's port.
    ///
    /// # Errors
    /// As the hypervisor has them.
    pub fn new(id: DomId, shared_info: Mfn) -> Result<(Self, Port), Errno> {
        let mut window = Window::new()?;
        let page = window.show(id, shared_info)?;
        let (port, theirs) = events::bind_interdomain(DomId::SELF, id)?;
        GUESTS[port.raw() as usize].store(id.raw(), Ordering::Relaxed);
        events::set_handler(port, |port| {
            RUNG[port.raw() as usize / 32].fetch_or(1 << (port.raw() % 32), Ordering::AcqRel);
            wake();
        });
        events::unmask(port);
        Ok((Self { port, _window: window, at: page.cast() }, theirs))
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        let offset = CONTROL_IF_OFFSET + offset;
        assert!(offset < proxenos_guest::abi::PAGE_SIZE);
        // SAFETY: inside the page, which is mapped as long as this value lives; the guest writes to it as well, which atomics allow.
        unsafe { &*self.at.as_ptr().add(offset).cast::<AtomicU8>() }
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        let offset = CONTROL_IF_OFFSET + offset;
        assert!(offset.is_multiple_of(4) && offset < proxenos_guest::abi::PAGE_SIZE);
        // SAFETY: as above, and aligned.
        unsafe { &*self.at.as_ptr().add(offset).cast::<AtomicU32>() }
    }
}

impl proxenos_control_core::Link for GuestLink {
    fn load(&self, offset: usize) -> u32 {
        self.index(offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u32) {
        self.index(offset).store(value, Ordering::Release);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        for (at, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(offset + at).load(Ordering::Relaxed);
        }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            self.byte(offset + at).store(*byte, Ordering::Relaxed);
        }
    }

    fn notify(&self) {
        // A guest that is gone needs no event.
        let _ = events::send(self.port);
    }
}

impl Drop for GuestLink {
    fn drop(&mut self) {
        events::mask(self.port);
        events::clear(self.port);
        let _ = events::close(self.port);
        let (index, bit) = (self.port.raw() as usize / 32, 1 << (self.port.raw() % 32));
        RUNG[index].fetch_and(!bit, Ordering::AcqRel);
    }
}
