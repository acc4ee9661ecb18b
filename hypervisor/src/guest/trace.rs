//! The trace buffers of this machine (`proxenos_core::trace`), if the option `tbuf_size=` asks for them, and the way to
//! them.
//!
//! Where there are none, [`event`] is a comparison with a constant of the boot's, and what would be recorded is not
//! even looked at. Hypercalls do not pay for that either: they are recorded by handlers of their own
//! (`calls::trace_all`).
//!
//! No lock: a buffer belongs to its CPU, which comes here with interrupts off.

use super::calls;
use super::hw::Hw;
use crate::boot;
use crate::cpu::percpu::Cpu;
use crate::cpu::smp;
use crate::mm::early::{self, Zone};
use crate::time::tsc;
use core::sync::atomic::{AtomicBool, Ordering};
use proxenos_core::addr::Mfn;
use proxenos_core::domain::Arch;
use proxenos_core::trace::{Event, TraceBuffers};
use spin::Once;

static FRAMES: Once<Mfn> = Once::new();
static BUFFERS: Once<TraceBuffers> = Once::new();
/// Something is to be recorded. Set once, before any guest runs.
static ON: AtomicBool = AtomicBool::new(false);

/// Takes the frames of the buffers, before the allocator has them: the first, and how many. They are zeroed, and lie
/// where a guest of either architecture can name them. None if no buffers are wanted, or there is no memory for them.
pub(super) fn reserve() -> Option<(Mfn, u64)> {
    let pages = boot::options().trace?;
    let count = TraceBuffers::frames(smp::count(), pages.0.get().into());
    let Some(first) = early::try_boot_pages(count, 1, Zone::Low) else {
        log::warn!("no {} KiB of memory for trace buffers: there are none", count * 4);
        return None;
    };
    FRAMES.call_once(|| first);
    Some((first, count))
}

/// Begins to record, if that is wanted, for a reader of domain 0's architecture.
pub(super) fn init(reader: Arch) {
    let (Some(pages), Some(&first)) = (boot::options().trace, FRAMES.get()) else { return };
    BUFFERS.call_once(|| TraceBuffers::new(&Hw, first, smp::count(), pages.0.get().into(), reader));
    calls::trace_all();
    ON.store(true, Ordering::Relaxed);
    log::info!("trace buffers: {} pages for each CPU, at {:#x}", pages.0, first.addr().0);
}

/// The buffers, if there are any.
pub(super) fn buffers() -> Option<&'static TraceBuffers> {
    BUFFERS.get()
}

/// Records what has happened on this CPU, if anything is recorded.
#[inline(always)]
pub(super) fn event<E: Into<Option<Event>>>(event: impl FnOnce() -> E) {
    if ON.load(Ordering::Relaxed) {
        record(event().into());
    }
}

#[cold]
#[inline(never)]
fn record(event: Option<Event>) {
    if let (Some(event), Some(buffers)) = (event, buffers()) {
        buffers.record(&Hw, Cpu::current().id.0, tsc::read().0, event);
    }
}
