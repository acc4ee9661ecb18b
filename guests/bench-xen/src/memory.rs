//! Frames to work on, and page tables.
//!
//! All memory that is needed lies in the image, so Xen has mapped it, writable, at an address that tells its place in
//! the list of frames.

use crate::abi::{self, MmuUpdate, mmuext, shared_info, uvmf};
use crate::hypercall;
use crate::start::{VIRT_BASE, start_info};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Entries of a table.
pub const ENTRIES: usize = 512;
/// Frames that can be had.
const FRAMES: usize = 1024;

/// Present, and seen by the CPU already.
const PRESENT: u64 = 0x21;
/// What a kernel maps: writable and written to, or not.
pub const KERNEL_RW: u64 = PRESENT | 0x42;
pub const KERNEL_RO: u64 = PRESENT;
/// For applications too.
pub const USER: u64 = 4;
/// An entry that names a table.
pub const TABLE: u64 = PRESENT | 0x46;
/// An entry's address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[repr(C, align(4096))]
pub struct Pages<const COUNT: usize>(UnsafeCell<[[u64; ENTRIES]; COUNT]>);

// SAFETY: pages are handed out once each, by number; the shared page is reached through atomics.
unsafe impl<const COUNT: usize> Sync for Pages<COUNT> {}

static POOL: Pages<FRAMES> = Pages(UnsafeCell::new([[0; ENTRIES]; FRAMES]));
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Over it the shared page is mapped.
pub static SHARED: Pages<1> = Pages(UnsafeCell::new([[0; ENTRIES]; 1]));

/// A frame, at its address.
#[derive(Clone, Copy)]
pub struct Frame(usize);

impl Frame {
    /// A fresh one: zeroed, mapped writable.
    pub fn new() -> Self {
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        assert!(number < FRAMES, "no frame is left");
        Self(POOL.0.get() as usize + number * PAGE)
    }

    /// Its address.
    pub fn virt(self) -> u64 {
        self.0 as u64
    }

    /// Its number in the machine.
    pub fn mfn(self) -> u64 {
        mfn_of(self.0)
    }

    /// Writes one of its words. It must be mapped writable, or a table that stores may go to.
    pub fn store(self, index: usize, word: u64) {
        assert!(index < ENTRIES);
        // SAFETY: the page is of the pool, whose words are reached through frames only.
        unsafe { (self.0 as *mut u64).add(index).write_volatile(word) };
    }

    /// Reads one of its words.
    #[inline(always)]
    pub fn load(self, index: usize) -> u64 {
        assert!(index < ENTRIES);
        // SAFETY: as in `store`.
        unsafe { (self.0 as *const u64).add(index).read_volatile() }
    }

    /// Takes the right to write to it away, so that it may become a table.
    pub fn make_read_only(self) {
        self.remap(entry(self.mfn(), KERNEL_RO));
    }

    /// Takes its mapping away.
    pub fn unmap(self) {
        self.remap(0);
    }

    fn remap(self, entry: u64) {
        // SAFETY: no reference to it exists.
        assert!(unsafe { hypercall::update_va_mapping(self.virt(), entry, uvmf::INVLPG) }, "a page of ours");
    }
}

/// Frames, by their numbers.
pub fn frames<const COUNT: usize>() -> [u64; COUNT] {
    core::array::from_fn(|_| Frame::new().mfn())
}

/// An entry of a page table.
pub const fn entry(mfn: u64, flags: u64) -> u64 {
    mfn << 12 | flags
}

/// The frame at an address of the initial mapping.
pub fn mfn_of(at: usize) -> u64 {
    let list = start_info(abi::start_info::MFN_LIST) as *const u64;
    // SAFETY: Xen's list of our frames has one element a page of the initial mapping.
    unsafe { list.add((at - VIRT_BASE) / PAGE).read() }
}

/// Where the initial mapping has a frame.
fn virt_of(mfn: u64) -> usize {
    // SAFETY: Xen maps this table into every domain; the frame is one of the machine's.
    let pfn = unsafe { (abi::MACHINE_TO_PHYS as *const u64).add(mfn as usize).read() };
    VIRT_BASE + pfn as usize * PAGE
}

/// The top table that there was at the start.
pub fn root() -> u64 {
    mfn_of(start_info(abi::start_info::PT_BASE))
}

/// An entry of a table that is in the initial mapping.
pub fn read_entry(table: u64, index: usize) -> u64 {
    assert!(index < ENTRIES);
    // SAFETY: tables are mapped, read-only; Xen changes them in calls only.
    unsafe { (virt_of(table) as *const u64).add(index).read_volatile() }
}

/// Puts a fresh table into an entry of another.
fn attach(entry_at: u64) -> u64 {
    let table = Frame::new();
    table.make_read_only();
    let update = MmuUpdate { ptr: entry_at, val: entry(table.mfn(), TABLE) };
    // SAFETY: the entry was empty.
    assert!(unsafe { hypercall::mmu_update(&[update]) }, "a table can be attached");
    table.mfn()
}

/// Machine address of an address's entry in the lowest table below `root`. Tables that are missing are made.
pub fn entry_of(root: u64, at: u64) -> u64 {
    let mut table = root;
    for level in (1..4).rev() {
        let index = (at >> (12 + 9 * level)) as usize % ENTRIES;
        let next = read_entry(table, index);
        table = if next & 1 == 0 { attach((table << 12) + 8 * index as u64) } else { (next & ADDRESS) >> 12 };
    }
    (table << 12) + 8 * ((at >> 12) % ENTRIES as u64)
}

/// Addresses that nothing else uses, in the reach of an L1 table that is theirs alone.
pub struct Window {
    /// The first address.
    pub at: u64,
    first: u64,
}

impl Window {
    /// The window, with these frames mapped in it.
    pub fn new(frames: &[u64]) -> Self {
        let at = 0x1000_0000;
        let first = entry_of(root(), at);
        for (page, &frame) in frames.iter().enumerate() {
            // SAFETY: nothing refers to the window's pages.
            let done = unsafe {
                hypercall::update_va_mapping(at + (page * PAGE) as u64, entry(frame, KERNEL_RW), uvmf::INVLPG)
            };
            assert!(done, "a frame of ours can be mapped");
        }
        Self { at, first }
    }

    /// The table, at its own address.
    pub fn table(&self) -> Frame {
        Frame(virt_of(self.first >> 12))
    }

    /// Machine address of the entry of one of its pages.
    pub fn entry(&self, page: usize) -> u64 {
        self.first + 8 * page as u64
    }
}

/// Maps the shared page at its place in the image.
pub fn map_shared_page() {
    let frame = start_info(abi::start_info::SHARED_INFO) as u64 >> 12;
    // SAFETY: the page is reserved for this, and no reference to it exists.
    let done = unsafe { hypercall::update_va_mapping(shared_page(), entry(frame, KERNEL_RW), uvmf::INVLPG) };
    assert!(done, "the shared page can be mapped");
}

/// Address of the shared page.
pub fn shared_page() -> u64 {
    SHARED.0.get() as u64
}

fn shared_word(offset: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of the shared page, which is mapped for good, and changed by atomic stores only.
    unsafe { AtomicU64::from_ptr((shared_page() as usize + offset) as *mut u64) }
}

fn shared_byte(offset: usize) -> &'static AtomicU8 {
    // SAFETY: as above.
    unsafe { AtomicU8::from_ptr((shared_page() as usize + offset) as *mut u8) }
}

/// Whether an event is to be told.
pub fn upcall_pending() -> &'static AtomicU8 {
    shared_byte(shared_info::UPCALL_PENDING)
}

/// Whether events are held back.
pub fn upcall_mask() -> &'static AtomicU8 {
    shared_byte(shared_info::UPCALL_MASK)
}

/// Which words of pending bits to look at.
pub fn pending_selector() -> &'static AtomicU64 {
    shared_word(shared_info::PENDING_SEL)
}

/// The first word of pending bits.
pub fn pending() -> &'static AtomicU64 {
    shared_word(shared_info::PENDING)
}

/// The first word of masked ports.
pub fn masked() -> &'static AtomicU64 {
    shared_word(shared_info::MASK)
}

/// The system's time at its last update, in nanoseconds.
pub fn system_time() -> u64 {
    shared_word(shared_info::SYSTEM_TIME).load(Ordering::Relaxed)
}

/// Pins a table, as of that level's, or unpins it.
#[inline(always)]
pub fn pin(command: u32, table: u64) -> bool {
    debug_assert!(command <= mmuext::UNPIN_TABLE);
    // SAFETY: what is mapped does not change.
    unsafe { hypercall::mmuext(command, table) }
}
