//! A domain: a guest, its memory and its channels, apart from the virtual CPU that executes it ([`crate::vcpu`]).
//!
//! A domain is shared between CPUs and changed through the locks inside it: [`Domain::paging`] for page tables, the
//! mutex within [`Domain::channels`] for ports, those within [`Domain::grants`]; what has no lock is atomic or never
//! changes. Lock order: paging locks, then port mutexes (both by domain number), then grants', then the frame
//! allocator's.

pub use crate::run_state::RunState;

use crate::addr::{DomId, Mfn};
use crate::event::{EventChannels, EventDomain, EventError, PirqSharing};
use crate::frame::WritableOf;
use crate::grant::Grants;
use crate::life::Ending;
use crate::paging::PagingState;
use crate::paging::log_dirty::DirtyLog;
use crate::paging::user_base::Roots;
use crate::physdev::{Granted, Sizing};
use crate::pirq::Pirqs;
use crate::run_state::RunWord;
use crate::sched::Home;
use crate::sync::Mutex;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use proxenos_abi::Pirq;
use proxenos_abi::hypercall::VmAssistType;
use spin::Once;

pub use proxenos_abi::Arch;

bitflags::bitflags! {
    /// What a domain may do beyond its own affairs.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Privileges: u32 {
        /// Controls other domains (SIF_PRIVILEGED).
        const CONTROL = 1 << 0;
        /// Touches I/O memory and devices.
        const DEVICES = 1 << 1;
        /// May write lines to the machine's console, for whoever looks for a fault in it (option `guest-console`).
        /// (Domain 0 has that console anyway.)
        const LOG = 1 << 2;
    }
}

/// What whoever schedules a domain is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// It waited, and need not any more.
    Woken,
    /// It has an event to take an upcall for, and did not wait.
    Event,
    /// It is to stop, or may go on, as its run state says.
    RunState,
}

/// Who schedules a domain. It may be called with port mutexes held, and from interrupts.
pub type Scheduler = fn(&Domain, News);

/// A domain.
pub struct Domain {
    /// Its number.
    pub id: DomId,
    /// Its architecture.
    pub arch: Arch,
    /// Its privileges.
    pub privileges: Privileges,
    /// The frame of its shared_info page, which stays its own as long as it lives.
    pub shared_info: Mfn,
    /// The hypervisor's copy of the first page of its GDT, where the reserved descriptors are.
    pub gdt_page: Mfn,
    /// How its frames look that are writable memory.
    pub(crate) own_writable: WritableOf,
    /// Its page tables.
    pub paging: Mutex<PagingState>,
    /// What a CPU walks when it runs.
    pub roots: Roots,
    /// A page table of its may be open, or its writes to one be counted: there may be something to do for who takes the
    /// paging lock, under which this is written. What its kernel does becomes busy, and that runs on one CPU, which
    /// therefore need not take the lock to know.
    pub(crate) busy_tables: AtomicBool,
    /// What it has written to, while it is watched.
    pub log: DirtyLog,
    /// Its event channels.
    pub channels: EventChannels,
    /// What it grants, and what it has mapped of others' grants.
    pub grants: Grants,
    /// Frames it has been given.
    pub total_pages: AtomicU32,
    /// Pages that the hypervisor shared with it and that it has given up, but others still map.
    pub(crate) lent_pages: AtomicU32,
    /// Where its frames lie: none below the first number, none from the second on.
    span: [AtomicU64; 2],
    /// It has nothing of its own any more, the pages named above included.
    pub(crate) over: AtomicBool,
    /// How far its end has come, once it has begun.
    pub ending: Mutex<Ending>,
    /// The most frames that it may ask for (`dom_mem_op`); `u32::MAX` is no limit. It can have more, if they are forced
    /// upon it (MMUEXT_REASSIGN_PAGE).
    pub max_pages: AtomicU32,
    /// Tables of its stand half validated (`paging::partial`); written under the paging lock.
    pub(crate) unsettled: AtomicBool,
    /// A mapping of one of its descriptor pages is gone, so its LDT may lie elsewhere: see
    /// [`Domain::ldt_may_have_moved`].
    ldt_moved: AtomicBool,
    /// What it has turned on with `vm_assist`, a bit each.
    assists: AtomicU32,
    /// The lines of devices, once it may have any.
    pub pirqs: Once<&'static Pirqs>,
    /// Base addresses whose size it is finding out.
    pub(crate) sizing: Sizing,
    /// Devices that it was given, where it does not have them all.
    pub granted: Granted,
    pub(crate) run: RunWord,
    /// Where it is scheduled ([`Home::to_bits`]).
    home: AtomicU32,
    /// Who is told when that changes which the scheduler goes by.
    scheduler: Once<Scheduler>,
    /// Why it shut down, once it has (SCHEDOP_shutdown's reason).
    reason: AtomicU32,
}

impl Domain {
    /// A domain without memory or page tables.
    #[must_use]
    pub fn new(id: DomId, arch: Arch, privileges: Privileges, shared_info: Mfn, gdt_page: Mfn) -> Self {
        Self {
            id,
            arch,
            privileges,
            shared_info,
            gdt_page,
            own_writable: WritableOf::domain(id),
            paging: Mutex::new(PagingState::new()),
            roots: Roots::new(),
            busy_tables: AtomicBool::new(false),
            log: DirtyLog::new(),
            channels: EventChannels::new(),
            grants: Grants::new(),
            total_pages: AtomicU32::new(0),
            lent_pages: AtomicU32::new(0),
            span: [AtomicU64::new(u64::MAX), AtomicU64::new(0)],
            over: AtomicBool::new(false),
            ending: Mutex::new(Ending::NotYet),
            max_pages: AtomicU32::new(u32::MAX),
            unsettled: AtomicBool::new(false),
            ldt_moved: AtomicBool::new(false),
            assists: AtomicU32::new(0),
            pirqs: Once::new(),
            sizing: Sizing::new(),
            granted: Granted::new(),
            run: RunWord::new(),
            home: AtomicU32::new(u32::MAX),
            scheduler: Once::new(),
            reason: AtomicU32::new(0),
        }
    }

    /// Whether it controls other domains.
    #[must_use]
    pub const fn is_privileged(&self) -> bool {
        self.privileges.contains(Privileges::CONTROL)
    }

    /// Whether it drives devices, all of them or some that it was given: who does may have what their drivers need,
    /// memory in one piece and caches written back (2.0's DF_PHYSDEV).
    #[must_use]
    pub fn drives_devices(&self) -> bool {
        self.privileges.contains(Privileges::DEVICES) || self.granted.has_any()
    }

    /// Counts frames that it is about to be given as its own; false, and nothing is counted, if those were more than it
    /// may have.
    #[must_use]
    pub fn reserve_pages(&self, pages: u32) -> bool {
        let max = self.max_pages.load(Ordering::Relaxed);
        let more = |total: u32| total.checked_add(pages).filter(|&total| total <= max);
        self.total_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Notes that a frame is about to be its own.
    pub fn expect_frame(&self, mfn: Mfn) {
        self.span[0].fetch_min(mfn.0, Ordering::Relaxed);
        self.span[1].fetch_max(mfn.0 + 1, Ordering::Relaxed);
    }

    /// Among which frames all of its own are.
    pub fn span(&self) -> Range<u64> {
        let [start, end] = [0, 1].map(|edge| self.span[edge].load(Ordering::Relaxed));
        start.min(end)..end
    }

    /// Whether tables of its stand half validated, which a request may be refused for.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed)
    }

    /// Notes that a mapping of one of its descriptor pages is gone. Which addresses its LDT lies at, and so which
    /// mapping counts, only its virtual CPU knows: it forgets all the LDT's pages when it next looks
    /// ([`Segments::drop_moved_ldt`](crate::segments::Segments::drop_moved_ldt)).
    pub fn ldt_may_have_moved(&self) {
        self.ldt_moved.store(true, Ordering::Release);
    }

    /// Whether that was noted, and not yet acted upon.
    pub fn has_ldt_moved(&self) -> bool {
        self.ldt_moved.load(Ordering::Relaxed)
    }

    /// Takes the note back, or takes note of having acted upon it.
    pub fn ldt_has_not_moved(&self) {
        self.ldt_moved.store(false, Ordering::Relaxed);
    }

    /// Whether it has turned on an assistance.
    #[inline]
    #[must_use]
    pub fn is_assisted(&self, kind: VmAssistType) -> bool {
        self.assists.load(Ordering::Relaxed) & 1 << kind.raw() != 0
    }

    /// Records that an assistance is on.
    pub(crate) fn assist(&self, kind: VmAssistType) {
        self.assists.fetch_or(1 << kind.raw(), Ordering::Relaxed);
    }

    /// Records that an assistance is off.
    pub(crate) fn do_not_assist(&self, kind: VmAssistType) {
        self.assists.fetch_and(!(1 << kind.raw()), Ordering::Relaxed);
    }

    /// Its run state, now.
    pub fn run_state(&self) -> RunState {
        self.run.get()
    }

    /// It shuts itself down, for a reason of its own.
    pub fn shut_down(&self, reason: u8) {
        self.reason.store(reason.into(), Ordering::Relaxed);
        self.set_state(RunState::SHUTDOWN);
    }

    /// The reason it gave, once it has shut down.
    pub fn shutdown_reason(&self) -> Option<u8> {
        self.run_state().contains(RunState::SHUTDOWN).then(|| self.reason.load(Ordering::Relaxed) as u8)
    }

    /// Adds to its run state: for whoever runs it, and looks.
    pub fn set_state(&self, state: RunState) {
        self.run.set(state);
    }

    /// Removes from its run state: for tests, which schedule nobody.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn clear_state(&self, state: RunState) {
        self.run.clear(state);
    }

    /// Another domain stops it.
    pub fn pause(&self) {
        self.run.set(RunState::PAUSED);
        self.tell(News::RunState);
    }

    /// It may go on, as far as [`pause`](Self::pause) is concerned.
    pub fn unpause(&self) {
        self.run.clear(RunState::PAUSED);
        self.tell(News::RunState);
    }

    /// It is built, and may run.
    pub(crate) fn complete(&self) {
        self.run.clear(RunState::UNBUILT);
        self.tell(News::RunState);
    }

    /// It is to end: it does not run, and is given nothing, from now on.
    pub(crate) fn condemn(&self) {
        self.max_pages.store(0, Ordering::Relaxed);
        self.run.set(RunState::DYING);
        self.tell(News::RunState);
    }

    /// Where it is scheduled, once it is.
    #[inline]
    pub fn home(&self) -> Option<Home> {
        Home::from_bits(self.home.load(Ordering::Relaxed))
    }

    /// Whether there may be something to do for who takes the paging lock, because of what its kernel wrote to its page
    /// tables: exact on the CPU it runs on.
    #[inline]
    #[must_use]
    pub fn has_busy_tables(&self) -> bool {
        self.busy_tables.load(Ordering::Acquire)
    }

    /// It has been given a place in a run queue, or another one. From now on that scheduler is told.
    pub fn set_home(&self, home: Home, scheduler: Scheduler) {
        self.home.store(home.to_bits(), Ordering::Relaxed);
        self.scheduler.call_once(|| scheduler);
    }

    /// It has no place in a run queue any more.
    pub fn leave_home(&self) {
        self.home.store(u32::MAX, Ordering::Relaxed);
    }

    /// The hypervisor stops it for a moment.
    pub fn hold(&self) {
        self.run.set(RunState::HELD);
        self.tell(News::RunState);
    }

    /// It may go on, as far as [`hold`](Self::hold) is concerned.
    pub fn let_go(&self) {
        self.run.clear(RunState::HELD);
        self.tell(News::RunState);
    }

    fn tell(&self, news: News) {
        if let Some(scheduler) = self.scheduler.get() {
            scheduler(self, news);
        }
    }
}

impl EventDomain for Domain {
    fn id(&self) -> DomId {
        self.id
    }

    fn is_privileged(&self) -> bool {
        Self::is_privileged(self)
    }

    fn events(&self) -> &EventChannels {
        &self.channels
    }

    fn shared_info(&self) -> Mfn {
        self.shared_info
    }

    fn notify(&self) {
        let was_blocked = self.run.take(RunState::BLOCKED).contains(RunState::BLOCKED);
        self.tell(if was_blocked { News::Woken } else { News::Event });
    }

    #[inline]
    fn notify_self(&self) {
        self.run.clear(RunState::BLOCKED);
    }

    fn route_pirq(&self, pirq: Pirq, sharing: PirqSharing) -> Result<(), EventError> {
        if !self.privileges.contains(Privileges::DEVICES) && !self.granted.has_line(pirq) {
            return Err(EventError::NotPermitted);
        }
        self.pirqs.get().ok_or(EventError::NoSuchInterrupt)?.bind(self.id, pirq, sharing)
    }

    fn unroute_pirq(&self, pirq: Pirq) {
        if let Some(pirqs) = self.pirqs.get() {
            pirqs.unbind(self.id, pirq);
        }
    }
}
