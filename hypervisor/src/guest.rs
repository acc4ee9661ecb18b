//! Guests on this CPU: who runs, what becomes of its traps, and what happens on every way back to it.
//!
//! [`trap`] takes whatever a guest's code did, hands it to `core` or back to the guest, and [`leave`] then looks at
//! what is due before the guest goes on: time, its end, its sleep, another domain's turn, an upcall. The domain that
//! runs belongs to this CPU until it stops: its virtual CPU is owned here ([`Running`]), so none of this takes a lock.
//!
//! | module | what |
//! |---|---|
//! | [`start`] | which domains there are at first |
//! | [`build`] | makes a domain from an image |
//! | [`host`] | the machine's memory as `core` knows it |
//! | [`sched`] | who runs, and until when |
//! | [`switch`] | the context switch |
//! | [`hand_over`] | the short way of a yield |
//! | [`calls`] | hypercalls: the fast path of `int 0x82` and `syscall` |
//! | [`syscall`] | where `syscall` arrives |
//! | [`user`] | x86_64 applications: the way to them, and back by `syscall` |
//! | [`quick`] | the short ways into a guest's kernel: exceptions, upcalls |
//! | [`int80`] | the shortest one: `int 0x80` of x86_32 guests |
//! | [`faults`] | page faults, #GP, #NM: which are the guest's own |
//! | [`deliver`] | pushes frames on the guest's stack: exceptions, events, failsafe |
//! | [`timer`] | ticks, timer events, the clock guests read |
//! | [`control`] | the machine, as `dom0_op` has it |
//! | [`hw`], [`memory`], [`fpu`] | the machine as `core` sees it |
//! | [`audit`] | the check of the whole machine's memory, where it is asked for |
//! | [`trace`] | what is recorded in the trace buffers, where there are any |
//! | [`sources`] | what interrupts and NMIs left to be told, and commands typed at the console |
//! | [`ports`] | `in` and `out` of those that may |
//! | [`end`] | a domain that shuts down or has to be stopped |

mod audit;
mod build;
mod calls;
mod control;
mod deliver;
mod end;
mod faults;
mod fpu;
mod hand_over;
mod host;
mod hw;
mod int80;
mod memory;
mod ports;
mod quick;
mod sched;
mod sources;
mod start;
mod switch;
mod syscall;
mod timer;
mod trace;
mod user;

pub use calls::enters_guest;
pub use end::stop_lawless;
pub use host::line_interrupted;
pub use sources::console_interrupted;
pub use start::start;

use crate::cpu::entry::{TrapFrame, resume_guest};
use crate::cpu::idt::Vector;
use crate::cpu::percpu::{Cpu, Pending};
use crate::cpu::smp;
use crate::mm::layout;
use crate::time::{self, Now};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use hw::Hw;
use proxenos_abi::hypercall::VmAssistType;
use proxenos_abi::shared_info::SharedInfo;
use proxenos_core::addr::{GuestVirt, MachineAddr};
use proxenos_core::assist;
use proxenos_core::domain::{Arch, Domain, RunState};
use proxenos_core::event;
use proxenos_core::host::Host;
use proxenos_core::hypercall::Caller;
use proxenos_core::paging::Pager;
use proxenos_core::preempt::Place;
use proxenos_core::trace::{Event, IDLE};
use proxenos_core::vcpu::Vcpu;
use proxenos_image::builder::InitialState;
use sched::Turn;
use switch::Context;
use timer::Timer;
use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;

/// The domain that runs on a CPU, with its virtual CPU.
pub struct Running {
    host: &'static Host<Hw>,
    dom: Arc<Domain>,
    vcpu: Vcpu,
    /// The page that it shares with us.
    shared: VirtAddr,
    timer: Timer,
    /// The rest of its state: while it runs, what of that is not in the CPU.
    context: Context,
    /// What the entries want to know of it, as of when it ran last, or as it is to begin.
    notes: Notes,
}

/// What the entries in assembly want to know of who runs: it is at hand in [`CpuLocal`], and kept with who does not
/// run.
#[derive(Debug)]
struct Notes {
    /// Where `syscall` goes on: it depends on the mode of an x86_64 guest (see [`user`]).
    syscall_to: Cell<unsafe extern "C" fn()>,
    /// Whose exceptions come.
    traps_of: Cell<quick::TrapsOf>,
    /// The error code that a store of its kernel's to a page table faults with; no code if writable page tables are
    /// off. A hint: whether it is one is for the long way to find out.
    table_store: Cell<u8>,
}

impl Notes {
    /// Nobody runs.
    const fn of_nobody() -> Self {
        Self {
            syscall_to: Cell::new(user::nobody),
            traps_of: Cell::new(quick::TrapsOf::Kernel),
            table_store: Cell::new(NO_CODE),
        }
    }

    /// They become those of a domain.
    fn renew(&self, dom: &Domain, vcpu: &Vcpu) {
        match dom.arch {
            Arch::X86_32 => self.traps_of.set(quick::TrapsOf::X86_32),
            Arch::X86_64 => self.note_mode(vcpu.mode),
        }
        self.note_assists(dom);
    }

    /// To be called when the domain that runs here may have turned an assistance on or off.
    fn note_assists(&self, dom: &Domain) {
        let user = if dom.arch == Arch::X86_64 { faults::USER } else { 0 };
        let code = (faults::PRESENT | faults::WRITE | user) as u8;
        let assisted = dom.is_assisted(VmAssistType::WritablePagetables);
        self.table_store.set(if assisted { code } else { NO_CODE });
    }

    #[inline(always)]
    fn copy_from(&self, other: &Self) {
        self.syscall_to.set(other.syscall_to.get());
        self.traps_of.set(other.traps_of.get());
        self.table_store.set(other.table_store.get());
    }
}

/// What guest code keeps per CPU, in [`Cpu::local`].
pub struct CpuLocal {
    /// Who runs here. Only its own CPU touches it, with interrupts disabled.
    running: UnsafeCell<Option<Box<Running>>>,
    /// The same domain, for traps that come while the hypervisor works on `running`.
    domain: Cell<Option<NonNull<Domain>>>,
    /// The machine, once this CPU runs domains.
    host: Cell<Option<&'static Host<Hw>>>,
    /// The first two bytes of the page that it shares with us: upcall pending, upcall mask.
    shared: Cell<VirtAddr>,
    /// What else the entries in assembly want to know of it.
    notes: Notes,
    /// Its virtual CPU, for them too. Rust code reaches it through `running` only.
    vcpu: Cell<*const Vcpu>,
    /// Not zero: a call left something to do before its guest goes on (see [`calls`]).
    attention: AtomicU32,
    /// When the turn of the domain that runs here ends, in nanoseconds of system time; `u64::MAX`: not by itself.
    turn_ends: Cell<u64>,
    /// When the first alarm of those that wait rings; `u64::MAX`: none does.
    alarm: Cell<u64>,
    /// Nobody else can run here.
    alone: Cell<bool>,
    /// Its run queue, once there is one.
    queue: Cell<Option<sched::Own>>,
    /// For whose [`Arch`] `syscall` was last opened or closed, as a number; [`NO_ARCH`] at first.
    syscall: Cell<u8>,
    /// How many entries the LDT has that was last loaded; 0: none is.
    ldt_entries: Cell<u16>,
    /// DR7 as it was last loaded for a domain: whose breakpoints are armed.
    breakpoints: Cell<u64>,
}

/// No [`Arch`].
const NO_ARCH: u8 = 0xff;
/// No page fault has this code.
const NO_CODE: u8 = 0xff;

impl Default for CpuLocal {
    fn default() -> Self {
        Self {
            running: UnsafeCell::new(None),
            domain: Cell::new(None),
            host: Cell::new(None),
            shared: Cell::new(VirtAddr::zero()),
            notes: Notes::of_nobody(),
            vcpu: Cell::new(core::ptr::null()),
            attention: AtomicU32::new(0),
            turn_ends: Cell::new(u64::MAX),
            alarm: Cell::new(u64::MAX),
            alone: Cell::new(true),
            queue: Cell::new(None),
            syscall: Cell::new(NO_ARCH),
            ldt_entries: Cell::new(0),
            breakpoints: Cell::new(0),
        }
    }
}

impl CpuLocal {
    /// Who runs here.
    ///
    /// # Safety
    /// At most one reference at a time: taken by [`trap`], by a call's handler or behind it, once for each entry from a
    /// guest (interrupts are disabled and the hypervisor's own traps never come here, but through [`Self::domain`]).
    /// Where another domain's turn begins, that reference ends, and [`install`](Self::install) gives the next.
    #[expect(clippy::mut_from_ref, reason = "the contents of a cell, exclusive by this function's contract")]
    unsafe fn running(&self) -> Option<&mut Running> {
        // SAFETY: as the caller promises; the CPU's own data is touched by no other CPU.
        unsafe { (*self.running.get()).as_deref_mut() }
    }

    /// Makes a domain the one that runs here.
    #[expect(clippy::mut_from_ref, reason = "the contents of a cell, to which nobody else has a reference yet")]
    fn install(&self, running: Box<Running>) -> &mut Running {
        self.note_running(&running);
        // SAFETY: nothing of a guest's runs on this CPU, so there is no other reference, and nothing to be dropped.
        unsafe {
            let place = self.running.get();
            debug_assert!((*place).is_none());
            place.write(Some(running));
            (*place).as_deref_mut().expect("it has just been put there")
        }
    }

    /// [`uninstall`](Self::uninstall) and [`install`](Self::install): makes a domain the one that runs here in place of
    /// another, which is given back.
    ///
    /// # Safety
    /// `old` is the one that runs here, the only reference to it.
    #[expect(clippy::mut_from_ref, reason = "the contents of a cell, to which nobody else has a reference yet")]
    #[inline(always)]
    unsafe fn exchange(&self, old: &mut Running, running: Box<Running>) -> (&mut Running, Box<Running>) {
        old.notes.copy_from(&self.notes);
        self.note_running(&running);
        // SAFETY: as the caller promises: the box of `old` is the one in the cell. It is written over, not dropped, and
        // so taken from there.
        unsafe {
            let place = self.running.get();
            place.write(Some(running));
            ((*place).as_deref_mut().unwrap_unchecked(), Box::from_raw(core::ptr::from_mut(old)))
        }
    }

    /// What the entries and the traps in between want to know of who is to run here.
    #[inline(always)]
    fn note_running(&self, running: &Running) {
        self.domain.set(Some(NonNull::from(&*running.dom)));
        self.shared.set(running.shared);
        self.notes.copy_from(&running.notes);
        self.vcpu.set(&raw const running.vcpu);
    }

    /// Takes back the domain that runs here.
    ///
    /// # Safety
    /// No reference to it is used any more.
    unsafe fn uninstall(&self) -> Option<Box<Running>> {
        self.domain.set(None);
        self.vcpu.set(core::ptr::null());
        // SAFETY: as the caller promises.
        let mut old = unsafe { (*self.running.get()).take() };
        if let Some(old) = &mut old {
            old.notes.copy_from(&self.notes);
        }
        old
    }

    /// Masks the upcalls of the domain that runs here.
    #[inline]
    fn mask_upcalls(&self) {
        const _: () = assert!(SharedInfo::EVTCHN_UPCALL_MASK == 1);
        // SAFETY: set with the domain, whose shared page it stays for as long as that is installed; all access to it is
        // atomic. (The sum is no `VirtAddr`: it would be looked at whether it is still one.)
        let mask = unsafe { AtomicU8::from_ptr(self.shared.get().as_mut_ptr::<u8>().wrapping_add(1)) };
        mask.store(1, Ordering::Release);
    }

    /// Whose page tables are loaded, for a trap that came while the hypervisor ran: it needs the domain only.
    fn domain(&self) -> Option<(&'static Host<Hw>, &Domain)> {
        // SAFETY: `running` holds a count on the domain for as long as it is installed, and domains are changed through
        // their locks and atomics only.
        let domain = self.domain.get().map(|domain| unsafe { domain.as_ref() });
        self.host.get().zip(domain)
    }
}

/// What each CPU but the boot CPU needs before it can run guests. ([`start`] does this for that one.)
pub fn init_cpu() {
    syscall::init();
}

/// The domains that run on the other CPUs.
///
/// # Safety
/// Those CPUs stand still, for as long as the result is used ([`crate::cpu::ipi::while_others_stand_still`]).
unsafe fn running_elsewhere<'a>() -> impl Iterator<Item = &'a Running> {
    let here = Cpu::current().id;
    let others = smp::cpus().filter(move |cpu| cpu.id != here);
    // SAFETY: a CPU stands still in the handler of an interrupt from a guest or the idle loop, where it has no
    // reference to this, or where it waits for another CPU, and nobody uses the reference that the call it waits in
    // has.
    others.filter_map(|cpu| unsafe { (*cpu.local.running.get()).as_deref() })
}

/// A trap from a guest.
pub fn trap(frame: &mut TrapFrame) {
    let cpu = Cpu::current();
    // SAFETY: the one reference of this entry.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    match frame.vector() {
        Vector::TIMER => {}
        Vector::PAGE_FAULT => faults::page_fault(run, frame),
        Vector::GENERAL_PROTECTION => faults::general_protection(run, frame),
        Vector::DEVICE_NOT_AVAILABLE => faults::device_not_available(run, frame),
        Vector::DEBUG => faults::debug(run, frame),
        vector if vector.0 < 32 => deliver::exception(run, frame, vector, frame.error_code as u32, None),
        Vector::SYSTEM_CALL => deliver::system_call(run, frame),
        // No other gate above 31 is open to guests and no device interrupts: nothing is meant by it.
        _ => {}
    }
    leave(cpu, run, frame);
}

impl Running {
    /// A domain that has not run yet.
    fn at_start(host: &'static Host<Hw>, dom: Arc<Domain>, state: &InitialState) -> Box<Self> {
        let mut running = Self::with(host, dom, Context::at_start(state));
        running.vcpu.set_kernel_stack(state.kernel_ss, state.kernel_sp);
        running
    }

    /// A domain that has no registers yet.
    fn unbuilt(host: &'static Host<Hw>, dom: Arc<Domain>) -> Box<Self> {
        Self::with(host, dom, Context::zero())
    }

    fn with(host: &'static Host<Hw>, dom: Arc<Domain>, context: Context) -> Box<Self> {
        let shared = layout::direct_frame(dom.shared_info);
        let vcpu = Vcpu::new();
        let mut running =
            Box::new(Self { host, dom, vcpu, shared, timer: Timer::new(), context, notes: Notes::of_nobody() });
        running.note_change();
        running
    }

    /// The guest as it makes a call: `frame` is where it stands behind it.
    fn caller(&mut self, frame: &TrapFrame) -> Caller<'_, Hw> {
        let place = Place { ip: frame.rip, sp: frame.rsp, entry: None };
        Caller { host: self.host, dom: &self.dom, vcpu: &mut self.vcpu, place }
    }

    /// A field of the page that the domain shares with us.
    fn shared(&self, offset: usize) -> MachineAddr {
        MachineAddr(self.dom.shared_info.addr().0 + offset as u64)
    }

    /// Giving up the CPU changes nothing where there is nobody to have it.
    #[inline]
    fn yield_to_others(&mut self, cpu: &Cpu) {
        if cpu.local.alone.get() {
            self.vcpu.reschedule = false;
        }
    }

    /// Its virtual CPU is new, or was changed while it did not run: what is kept at hand of it is worked out anew.
    fn note_change(&mut self) {
        self.vcpu.segments.place(self.host, &self.dom);
        self.notes.renew(&self.dom, &self.vcpu);
    }

    /// Whether an event waits for the guest, and it wants to hear of it.
    fn upcall_is_due(&self) -> bool {
        event::upcall_is_due(&self.host.hw, self.dom.shared_info)
    }
}

/// What is due before a guest goes on. When this returns, `frame` is what it goes on with; it may be another's than
/// before.
#[inline]
fn leave(cpu: &'static Cpu, mut run: &'static mut Running, frame: &mut TrapFrame) {
    loop {
        if cpu.has_pending() || run.vcpu.timer_changed || run.vcpu.reschedule || !run.dom.run_state().is_empty() {
            run = attend(cpu, run, frame);
        }
        if !run.upcall_is_due() {
            return;
        }
        deliver::event(run, frame);
        if !run.dom.run_state().contains(RunState::CRASHED) {
            return;
        }
    }
}

/// Time has come for something, or the domain does not go on by itself. Returns who runs then.
#[cold]
#[inline(never)]
fn attend(cpu: &'static Cpu, mut run: &'static mut Running, frame: &mut TrapFrame) -> &'static mut Running {
    let local = &cpu.local;
    let mut is_armed = true;
    let now = loop {
        let pending = cpu.take_pending();
        let now = time::now();
        // Before it waits, it is looked what it asks for in its page.
        let waits = run.dom.run_state() == RunState::BLOCKED;
        let changed = core::mem::take(&mut run.vcpu.timer_changed);
        if pending.contains(Pending::TIMER) || changed || waits {
            timer::serve(run, &now);
            is_armed = false;
        }
        if local.alarm.get() <= now.ns {
            sched::sound_alarms(cpu, &now);
        }
        sources::serve(run.host, Some((run, frame)), pending);
        let is_due = sched::is_due(cpu, run, pending, now.ns);
        if is_due {
            // Another domain's turn may come: no table stays open then. What is found in one may be the domain's end.
            drop(Pager::new(run.host, &run.dom).lock());
        }
        if run.dom.run_state().intersects(RunState::SHUTDOWN | RunState::CRASHED) {
            end::explain(run, frame);
            end::ended(run);
        }
        if is_due {
            is_armed = false;
            if let Turn::Next(next) = sched::reconsider(cpu, run, now.ns) {
                run = change(cpu, frame, next, &now);
            }
        }
        if !cpu.has_pending() && !run.must_stop() {
            break now;
        }
    };
    if !is_armed {
        timer::program_for(cpu, run, &now);
    }
    local.attention.store(0, Ordering::Relaxed);
    run
}

/// The turn of the domain that runs here has ended. Returns who runs next: at once, or when there is somebody.
///
/// No reference to the domain that ran is used any more.
#[expect(clippy::mut_from_ref, reason = "what is returned is in the CPU's cell, by `install`")]
fn change(cpu: &'static Cpu, frame: &mut TrapFrame, next: Option<Box<Running>>, now: &Now) -> &'static mut Running {
    // SAFETY: the caller's reference has ended.
    let mut old = unsafe { cpu.local.uninstall() }.expect("a domain runs here");
    switch::save(&mut old, frame);
    timer::pause(&mut old, now.ns);
    match next {
        Some(next) => {
            let run = cpu.local.install(next);
            trace::event(|| Event::Switched { to: run.dom.id });
            switch::load(cpu, run, frame);
            sched::park(cpu, old);
            timer::resume(run, now);
            run
        }
        None => {
            trace::event(|| Event::Switched { to: IDLE });
            switch::unload(cpu);
            let host = old.host;
            sched::park(cpu, old);
            idle(cpu, host, frame)
        }
    }
}

/// Waits, with nothing of any domain's in this CPU, until there is somebody to run.
fn idle(cpu: &'static Cpu, host: &Host<Hw>, frame: &mut TrapFrame) -> &'static mut Running {
    let mut pending = Pending::SCHEDULE;
    loop {
        let now = time::now();
        if cpu.local.alarm.get() <= now.ns {
            sched::sound_alarms(cpu, &now);
        }
        sources::serve(host, None, pending);
        if let Some(next) = sched::pick(cpu, now.ns) {
            let run = cpu.local.install(next);
            trace::event(|| Event::Switched { to: run.dom.id });
            switch::load(cpu, run, frame);
            timer::resume(run, &now);
            return run;
        }
        timer::program_for_nobody(&cpu.local);
        pending = cpu.wait_for_interrupt();
    }
}

/// A CPU is ready to run domains: it does so from now on.
fn enter(cpu: &'static Cpu, host: &'static Host<Hw>) -> ! {
    sched::enter(cpu);
    cpu.local.host.set(Some(host));
    // Nobody's values are in the FPU yet.
    fpu::trap_next_use();
    let mut frame = TrapFrame::default();
    let run = idle(cpu, host, &mut frame);
    timer::program_for(cpu, run, &time::now());
    leave(cpu, run, &mut frame);
    // SAFETY: page tables and descriptor tables are the domain's, validated; the frame is that of a guest at its start,
    // or as it was when it was last interrupted. Nothing on the stack below it is needed.
    unsafe {
        cpu.guest_frame().write(frame);
        resume_guest()
    }
}

/// A page fault while the hypervisor ran: one at an address of the guest's, that shadowing or an open page table
/// caused, is repaired, and the access tried again. No paging lock is held (see [`memory`]).
pub fn repair_access(fault: &TrapFrame) -> Repair {
    let at = GuestVirt(Cr2::read_raw());
    let cpu = Cpu::current();
    let Some((host, dom)) = cpu.local.domain() else { return Repair::None };
    // A four-level guest's tables are the CPU's own, unless it is watched: else nothing but writable ones can be in the
    // way.
    if dom.arch == Arch::X86_64 && !dom.is_assisted(VmAssistType::WritablePagetables) && !dom.log.is_on() {
        return Repair::None;
    }
    let repaired = assist::repair_access(host, dom, at, faults::access(fault.error_code));
    // What was found in a page table that had to be closed may be the domain's end, which whoever makes the access does
    // not look for.
    if dom.run_state().contains(RunState::CRASHED) {
        cpu.local.attention.store(1, Ordering::Relaxed);
        return Repair::None;
    }
    if repaired { Repair::TryAgain } else { Repair::None }
}

/// The `iretq` to a guest faulted. A page of its LDT may have been missing, and the way back is tried again; else the
/// guest is told, or stopped.
pub fn return_faulted(fault: &mut TrapFrame) {
    let cpu = Cpu::current();
    // SAFETY: the entry that led here has ended, and with it its reference.
    if let Some(run) = unsafe { cpu.local.running() }
        && fault.vector() == Vector::PAGE_FAULT
        && faults::map_ldt_page(run, Cr2::read_raw())
    {
        return;
    }
    deliver::return_failed(fault)
}

/// What became of [`repair_access`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repair {
    /// The access will succeed now, or fail differently.
    TryAgain,
    /// Nothing was amiss but the access itself.
    None,
}
