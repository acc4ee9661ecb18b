//! A domain's shared_info page and its run state under several CPUs, for the model checker (loom).
//!
//! What the hypervisor does is `core`'s own code, compiled here over loom's atomics. What the guest does is written
//! here, as the interface asks for it and kernels of 2004 do it. A CPU that sends may be anywhere in its steps when
//! the guest's CPU is anywhere in its own. The page is a few words: the first two of the 32 words of ports, which is
//! all that the models use.
//!
//! A locked instruction of x86 is a full barrier, which the checker must be told ([`locked`]); plain loads and stores
//! are in order but for a load that overtakes a store, as acquire and release have it.

#[allow(dead_code, unused_imports)]
#[path = "../../src/addr.rs"]
mod addr;
#[allow(dead_code, unused_imports)]
#[path = "../../src/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../../src/event/page.rs"]
mod page;
#[allow(dead_code)]
#[path = "../../src/run_state.rs"]
mod run_state;

/// The atomics that the run state is compiled over.
mod atomics {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
}

/// What `machine` asks for, and no model uses.
mod debugreg {
    /// None.
    pub struct DebugRegisters;
}

use addr::{MachineAddr, Mfn};
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use loom::sync::atomic::{AtomicU32, fence};
use machine::MachineMemory;
use proxenos_abi::Port;
use proxenos_abi::shared_info::SharedInfo;
use run_state::{RunState, RunWord};

/// The page's frame.
const SHARED_INFO: Mfn = Mfn(0);
/// Words of ports that there are.
const WORDS: usize = 2;

/// The fields of the page that matter. The two flags are bytes of one word, and each is changed without a change of
/// the other.
#[derive(Default)]
struct Page {
    upcall_pending: AtomicU32,
    upcall_mask: AtomicU32,
    pending: [AtomicU32; WORDS],
    selector: AtomicU32,
    mask: [AtomicU32; WORDS],
}

/// Runs one of the processor's locked instructions: nothing passes it, in either direction.
fn locked(change: impl FnOnce() -> u32) -> u32 {
    fence(SeqCst);
    let before = change();
    fence(SeqCst);
    before
}

impl Page {
    fn cell(&self, at: MachineAddr) -> &AtomicU32 {
        const PENDING: usize = SharedInfo::EVTCHN_PENDING;
        const PENDING_1: usize = SharedInfo::EVTCHN_PENDING + 4;
        const MASK: usize = SharedInfo::EVTCHN_MASK;
        const MASK_1: usize = SharedInfo::EVTCHN_MASK + 4;
        match at.0 as usize {
            SharedInfo::EVTCHN_UPCALL_PENDING => &self.upcall_pending,
            SharedInfo::EVTCHN_UPCALL_MASK => &self.upcall_mask,
            PENDING => &self.pending[0],
            PENDING_1 => &self.pending[1],
            SharedInfo::EVTCHN_PENDING_SEL => &self.selector,
            MASK => &self.mask[0],
            MASK_1 => &self.mask[1],
            other => unreachable!("the page has nothing at {other}"),
        }
    }
}

/// The page as the hypervisor reaches it.
impl MachineMemory for Page {
    fn load8(&self, at: MachineAddr) -> u8 {
        self.cell(at).load(Acquire) as u8
    }
    fn store8(&self, at: MachineAddr, value: u8) {
        self.cell(at).store(value.into(), Release);
    }
    fn load32(&self, at: MachineAddr) -> u32 {
        self.cell(at).load(Acquire)
    }
    fn store32(&self, at: MachineAddr, value: u32) {
        self.cell(at).store(value, Release);
    }
    fn or32(&self, at: MachineAddr, bits: u32) -> u32 {
        locked(|| self.cell(at).fetch_or(bits, AcqRel))
    }
    fn load64(&self, _: MachineAddr) -> u64 {
        unreachable!()
    }
    fn store64(&self, _: MachineAddr, _: u64) {
        unreachable!()
    }
    fn cas32(&self, _: MachineAddr, _: u32, _: u32) -> Result<(), u32> {
        unreachable!()
    }
    fn cas64(&self, _: MachineAddr, _: u64, _: u64) -> Result<(), u64> {
        unreachable!()
    }
    fn clear_frame(&self, _: Mfn) {
        unreachable!()
    }
    fn read(&self, _: MachineAddr, _: &mut [u8]) {
        unreachable!()
    }
    fn write(&self, _: MachineAddr, _: &[u8]) {
        unreachable!()
    }
}

/// One domain, and those who send to it.
#[derive(Default)]
pub struct Machine {
    page: Page,
    run: RunWord,
    /// The domain's CPU is to be interrupted: it leaves the guest, and comes back by [`Machine::leave`].
    interrupt: AtomicU32,
    /// The ports that the guest's handlers were called for, a bit each as in the page. Only the guest's CPU has them.
    handled: [AtomicU32; WORDS],
}

const fn place(port: Port) -> (usize, u32) {
    (port.0 as usize / 32, 1 << (port.0 % 32))
}

/// The hypervisor.
impl Machine {
    /// A CPU sends to a port.
    pub fn send(&self, port: Port) {
        page::signal(&self.page, SHARED_INFO, port, || self.notify());
    }

    /// What `EventDomain::notify` promises: the domain is woken if it sleeps, its CPU interrupted if it does not.
    fn notify(&self) {
        self.run.clear(RunState::BLOCKED);
        locked(|| self.interrupt.swap(1, AcqRel));
    }

    /// The guest waits (`SCHEDOP_block`). False if it sleeps now; else it has gone on.
    pub fn block(&self) -> bool {
        page::block(&self.page, SHARED_INFO, &self.run);
        let goes_on = self.run.get().is_empty();
        if goes_on {
            self.leave();
        }
        goes_on
    }

    /// The way back to the guest, through its callback if an upcall is due.
    pub fn leave(&self) {
        if page::upcall_is_due(&self.page, SHARED_INFO) {
            self.page.upcall_mask.store(1, Release);
            self.callback();
        }
    }

    /// The guest's CPU takes an interrupt, if there is one.
    pub fn take_interrupt(&self) {
        if locked(|| self.interrupt.swap(0, AcqRel)) != 0 {
            self.leave();
        }
    }

    /// What still comes when all who send are done: whoever sleeps and was woken goes on, an interrupt is taken.
    pub fn settle(&self, sleeps: bool) {
        if sleeps {
            assert!(self.run.get().is_empty(), "an event came, and nobody woke the domain");
            self.leave();
        }
        self.take_interrupt();
    }
}

/// The guest.
impl Machine {
    /// Before anything happens: a port is masked.
    pub fn mask(&self, port: Port) {
        let (word, bit) = place(port);
        self.page.mask[word].fetch_or(bit, AcqRel);
    }

    /// Before anything happens, or in a handler: upcalls are masked.
    pub fn mask_upcalls(&self) {
        self.page.upcall_mask.store(1, Release);
    }

    /// Unmasks a port, and looks whether an event came while it was masked: its edge was lost.
    pub fn unmask(&self, port: Port) {
        let (word, bit) = place(port);
        let page = &self.page;
        locked(|| page.mask[word].fetch_and(!bit, AcqRel));
        if page.pending[word].load(Acquire) & bit != 0
            && locked(|| page.selector.fetch_or(1 << word, AcqRel)) & 1 << word == 0
        {
            page.upcall_pending.store(1, Release);
            if page.upcall_mask.load(Acquire) == 0 {
                self.leave();
            }
        }
    }

    /// Unmasks upcalls, and looks whether one was missed. There is no barrier in between: what comes just then
    /// interrupts.
    pub fn unmask_upcalls(&self) {
        self.page.upcall_mask.store(0, Release);
        if self.page.upcall_pending.load(Acquire) != 0 {
            self.leave();
        }
    }

    /// The callback, entered with upcalls masked: handles what the selector leads to, until the flag stays clear.
    fn callback(&self) {
        let page = &self.page;
        while page.upcall_pending.load(Acquire) != 0 {
            page.upcall_pending.store(0, Release);
            let selected = locked(|| page.selector.swap(0, AcqRel));
            for word in (0..WORDS).filter(|word| selected & 1 << word != 0) {
                loop {
                    let ready = page.pending[word].load(Acquire) & !page.mask[word].load(Acquire);
                    if ready == 0 {
                        break;
                    }
                    let first = ready & ready.wrapping_neg();
                    locked(|| page.pending[word].fetch_and(!first, AcqRel));
                    self.handled[word].fetch_or(first, AcqRel);
                }
            }
        }
        self.unmask_upcalls();
    }

    /// Whether the port's handler was called.
    pub fn is_handled(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        self.handled[word].load(Acquire) & bit != 0
    }
}
