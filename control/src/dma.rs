//! Memory that devices reach: pages of their own, by their machine addresses.
//!
//! The drivers here only ever share memory of single pages ([`Page`], and the queues of up to a page), so nothing has to be
//! contiguous in the machine. What is given back is kept for the next one.

use crate::map;
use alloc::vec::Vec;
use core::ptr::NonNull;
use proxenos_guest::abi::{GuestVirt, MachineAddr, PAGE_SIZE};
use proxenos_guest::memory;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// Pages that were given back, by address.
static SPARE: spin::Mutex<Vec<usize>> = spin::Mutex::new(Vec::new());

/// A page that a device reads or writes. Whoever holds it argues when the device does.
pub struct Page(NonNull<[u8; PAGE_SIZE]>);

impl Page {
    /// A page of zeroes; `None` when there is no more memory.
    pub fn new() -> Option<Self> {
        take().map(Self)
    }

    /// What is in it.
    pub fn bytes(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: the page is this value's alone; that no device uses it now is what the holder argues.
        unsafe { self.0.as_mut() }
    }
}

/// A page of zeroes that is nobody's.
fn take() -> Option<NonNull<[u8; PAGE_SIZE]>> {
    let spare = SPARE.lock().pop();
    let at = match spare {
        Some(at) => at,
        None => memory::alloc_frame()?.virt().raw() as usize,
    };
    let page = NonNull::new(at as *mut [u8; PAGE_SIZE])?;
    // SAFETY: a mapped frame of ours that nobody has.
    unsafe { page.write([0; PAGE_SIZE]) };
    Some(page)
}

/// What `virtio-drivers` needs of its machine.
pub struct Machine;

fn machine_address(at: *const u8) -> MachineAddr {
    memory::machine_of(GuestVirt(at as usize as u64))
}

// SAFETY: pages handed out are mapped, zeroed, aligned and nobody else's until they are given back; device memory is mapped at
// addresses of its own.
unsafe impl Hal for Machine {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // Address 0 is how a failure is told.
        let failed = (0, NonNull::dangling());
        if pages != 1 {
            return failed;
        }
        take().map_or(failed, |page| (machine_address(page.cast().as_ptr()).raw(), page.cast()))
    }

    unsafe fn dma_dealloc(_: PhysAddr, at: NonNull<u8>, _: usize) -> i32 {
        SPARE.lock().push(at.as_ptr() as usize);
        0
    }

    unsafe fn mmio_phys_to_virt(at: PhysAddr, size: usize) -> NonNull<u8> {
        map::device_memory(MachineAddr(at), size).expect("a device's registers can be mapped")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let start = buffer.cast::<u8>().as_ptr() as usize;
        assert!(start % PAGE_SIZE + buffer.len() <= PAGE_SIZE, "what a device reaches lies in one page");
        machine_address(start as *const u8).raw()
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
