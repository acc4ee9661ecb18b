//! A check of what CPUs do to one another (option `check-cpus`), before there is any guest: each in turn moves a page
//! that all have in their TLBs, and has them flush; all do so at once, with a lock that the others wait for; all have
//! the others stand still.
//!
//! A CPU that still sees the page where it was, or two that both believe the others to stand still, are a panic. A
//! deadlock shows as what it is. Runs on all CPUs at the same time ([`super::smp::check`]).

use super::ipi::{self, Message};
use super::percpu::{Cpu, CpuId};
use super::{smp, tlb};
use crate::mm::layout::{self, PAGE_SIZE};
use crate::mm::paging::{self, Flags};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use proxenos_core::sync::{self, Mutex};
use x86_64::VirtAddr;

/// Where the page is: far from all else in its slot.
const PAGE: VirtAddr = VirtAddr::new_truncate(layout::FRAME_TABLE + (256 << 30));
/// How often all do the same at once.
const TIMES: u32 = 3;

/// A frame that says which it is.
#[repr(C, align(4096))]
struct Frame(AtomicU64, [u8; PAGE_SIZE as usize - 8]);

static FRAMES: [Frame; 2] = [const { Frame(AtomicU64::new(0), [0; PAGE_SIZE as usize - 8]) }; 2];

/// How many have come to a meeting, of all meetings so far.
static MET: AtomicU32 = AtomicU32::new(0);
/// The page has been moved so often.
static MOVED: AtomicU32 = AtomicU32::new(0);
/// Two take turns under it, and flush.
static LOCK: Mutex<()> = Mutex::new(());
/// How many believe that the others stand still.
static ALONE: AtomicU32 = AtomicU32::new(0);

/// This CPU's part.
pub fn run(here: CpuId) {
    let mut meetings = 0;
    let mut meet = || {
        meetings += 1;
        meet(here, meetings);
    };
    if here == CpuId::BOOT {
        (0..).zip(&FRAMES).for_each(|(number, frame)| frame.0.store(number, Ordering::Relaxed));
        map(0);
    }
    tlb::begin_to_walk();
    meet();
    for turn in 0..smp::count() {
        look(here, turn);
        meet();
        if here.0 == turn {
            paging::unmap(PAGE..PAGE + PAGE_SIZE);
            map(turn + 1);
            tlb::flush_if_older(tlb::CLOCK.stamp());
            MOVED.store(turn + 1, Ordering::Release);
            wake_others(here);
        }
        // Some are asleep, and some wait with interrupts off.
        while MOVED.load(Ordering::Acquire) <= turn {
            if here.0 % 2 == 1 { sleep() } else { sync::wait_a_little() }
        }
        look(here, turn + 1);
        meet();
    }
    for _ in 0..TIMES {
        tlb::flush_if_older(tlb::CLOCK.stamp());
        let _guard = LOCK.lock();
        tlb::flush_if_older(tlb::CLOCK.stamp());
    }
    meet();
    for _ in 0..TIMES {
        ipi::while_others_stand_still(|| {
            let others = ALONE.fetch_add(1, Ordering::AcqRel);
            assert!(others == 0, "CPU {} and another believe that all others stand still", here.0);
            ALONE.fetch_sub(1, Ordering::AcqRel);
        });
    }
    meet();
    tlb::rest();
    if here == CpuId::BOOT {
        paging::unmap(PAGE..PAGE + PAGE_SIZE);
        log::info!("CPUs: {} have flushed for one another", smp::count());
    }
}

fn map(turn: u32) {
    let frame = layout::image_to_machine(VirtAddr::from_ptr(&FRAMES[turn as usize % 2]));
    paging::map(PAGE..PAGE + PAGE_SIZE, frame, Flags::RODATA);
}

/// Looks where the page is.
fn look(here: CpuId, turn: u32) {
    // SAFETY: the page is mapped, to one frame or the other.
    let seen = unsafe { PAGE.as_ptr::<u64>().read_volatile() };
    assert!(seen == u64::from(turn % 2), "CPU {} sees a page where it is no more, after {turn} moves", here.0);
}

/// Waits for all.
fn meet(here: CpuId, meetings: u32) {
    MET.fetch_add(1, Ordering::AcqRel);
    wake_others(here);
    while MET.load(Ordering::Acquire) < meetings * smp::count() {
        sleep();
    }
}

fn sleep() {
    let _nothing_of_a_guest = Cpu::current().wait_for_interrupt();
}

fn wake_others(here: CpuId) {
    smp::cpus().filter(|cpu| cpu.id != here).for_each(|cpu| ipi::send(cpu.id, Message::Look));
}
