//! Mappings of what is not RAM: device registers, and firmware tables.
//!
//! The direct map has RAM only, so these get addresses of their own, page by page, in a window of 8 MiB.
//! The lock [`WINDOW`] guards which pages are taken.

use crate::mm::layout::{IOREMAP, IOREMAP_SIZE, PAGE_SIZE};
use crate::mm::paging::{self, Flags};
use proxenos_abi::{MachineAddr, Mfn};
use proxenos_core::sync::Mutex;
use x86_64::VirtAddr;

/// How a mapping is cached and what may be done with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Device registers: uncached, writable.
    Device,
    /// Firmware tables in memory: cached, read-only.
    Table,
}

/// There is no room for a mapping, or the range is nonsense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

const PAGES: usize = (IOREMAP_SIZE / PAGE_SIZE) as usize;

/// A bit a page of the window: set when taken.
static WINDOW: Mutex<[u64; PAGES / 64]> = Mutex::new([0; PAGES / 64]);

fn is_taken(window: &[u64], page: usize) -> bool {
    window[page / 64] >> (page % 64) & 1 != 0
}

/// The pages a range of bytes touches: offset in the first, and their number.
fn pages_of(at: u64, length: u64) -> Option<(u64, u64)> {
    let offset = at % PAGE_SIZE;
    let pages = offset.checked_add(length)?.div_ceil(PAGE_SIZE);
    (length > 0 && pages <= PAGES as u64).then_some((offset, pages))
}

/// The frames of all device registers that are mapped: what must be nobody else's.
#[must_use]
pub fn device_frames() -> alloc::vec::Vec<Mfn> {
    let _guard = WINDOW.lock();
    let pages = (0..PAGES as u64).map(|page| VirtAddr::new_truncate(IOREMAP + page * PAGE_SIZE));
    let device = pages.filter_map(paging::translate).filter(|(_, flags)| flags.contains(Flags::PCD));
    device.map(|(at, _)| at.mfn()).collect()
}

/// Maps `length` bytes of machine memory. The result has the offset in its page that `at` has.
pub fn map(at: MachineAddr, length: u64, access: Access) -> Result<VirtAddr, NoRoom> {
    let (offset, pages) = pages_of(at.0, length).ok_or(NoRoom)?;
    let mut window = WINDOW.lock();
    let mut run = 0;
    let last = (0..PAGES).find(|&page| {
        run = if is_taken(&*window, page) { 0 } else { run + 1 };
        run == pages as usize
    });
    let first = last.ok_or(NoRoom)? + 1 - pages as usize;
    for page in first..first + pages as usize {
        window[page / 64] |= 1 << (page % 64);
    }
    let start = VirtAddr::new_truncate(IOREMAP + first as u64 * PAGE_SIZE);
    let flags = match access {
        Access::Device => Flags::DEVICE,
        Access::Table => Flags::RODATA,
    };
    paging::map(start..start + pages * PAGE_SIZE, MachineAddr(at.0 - offset), flags);
    Ok(start + offset)
}

/// Undoes a [`map`] of `length` bytes that returned `at`.
pub fn unmap(at: VirtAddr, length: u64) {
    let Some((offset, pages)) = pages_of(at.as_u64(), length) else { return };
    let start = at - offset;
    let mut window = WINDOW.lock();
    paging::unmap(start..start + pages * PAGE_SIZE);
    let first = ((start.as_u64() - IOREMAP) / PAGE_SIZE) as usize;
    for page in first..first + pages as usize {
        window[page / 64] &= !(1 << (page % 64));
    }
}
