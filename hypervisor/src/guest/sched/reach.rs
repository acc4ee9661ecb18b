//! How requests reach domains that run elsewhere, or nowhere: [`VirtualCpus`] over seats and queues.
//!
//! A parked domain is held in its seat while it is worked with, and its CPU waits for that if its turn comes meanwhile.
//! One that runs elsewhere is held ([`RunState::HELD`](proxenos_core::domain::RunState::HELD)), and its CPU told, which
//! parks it as soon as it comes round. That is waited for until this CPU's own timer is due at the longest, and whoever
//! waits serves flushes meanwhile. Whatever comes of it, the domain is let go again.
//!
//! A place is given up while the domain is held, which its CPU waits for if it has picked it; and the queue does not
//! let go of the one picked last. So who leaves is in nobody's hands.

use super::{Held, Running, id, now, place, reserve, scheduler, scheduling};
use crate::console;
use crate::cpu::entry::TrapFrame;
use crate::cpu::gdt::{self, Flavour};
use crate::cpu::ipi;
use crate::cpu::percpu::Cpu;
use crate::guest::faults::data_selectors;
use crate::guest::host;
use crate::guest::hw::Hw;
use crate::guest::switch::{Bases, Context};
use crate::time;
use alloc::boxed::Box;
use alloc::sync::Arc;
use proxenos_abi::Selector;
use proxenos_abi::arch::NR_RESERVED_GDT_ENTRIES;
use proxenos_core::bounce::DataSegments;
use proxenos_core::domain::{Arch, Domain};
use proxenos_core::others::{MachineState, Registers, Stopped, Unreached, VirtualCpus};
use proxenos_core::sched::{Affinity, Params, SchedError, Span};
use proxenos_core::sync;
use proxenos_core::vcpu::Vcpu;
use x86_64::VirtAddr;

/// A domain that is parked, held; `None` if it is not, or has just been moved.
fn hold(dom: &Domain) -> Option<Held<'static>> {
    scheduling().seat(dom.home()?).hold().filter(|held| core::ptr::eq(&*held.dom, dom))
}

/// Does something with a domain that is parked.
fn with_parked<R>(dom: &Domain, work: &mut Option<impl FnOnce(Stopped<'_>) -> R>) -> Option<R> {
    let mut running = hold(dom)?;
    let running = &mut *running;
    let mut state = state_of(&running.context);
    let result = work.take()?(Stopped { vcpu: &mut running.vcpu, state: &mut state });
    set_state(&mut running.context, &state);
    running.note_change();
    Some(result)
}

/// Tries something until it succeeds, or this CPU has something else to do. The caller holds no lock: where another CPU
/// has all of them stand still, this one does, for the domain that it waits for may be who wants that, and would else
/// not be stopped before this CPU has given up.
pub(super) fn attempt<R>(what: impl FnMut() -> Option<R>) -> Option<R> {
    attempt_while(what, ipi::stand_still)
}

/// Tries something until it succeeds, or this CPU has something else to do, with a pause each time.
fn attempt_while<R>(mut what: impl FnMut() -> Option<R>, pause: impl Fn()) -> Option<R> {
    loop {
        if let Some(result) = what() {
            return Some(result);
        }
        if time::deadline_has_passed() {
            return None;
        }
        pause();
        sync::wait_a_little();
    }
}

impl VirtualCpus for Hw {
    fn with_stopped<R>(&self, dom: &Domain, work: impl FnOnce(Stopped<'_>) -> R) -> Result<R, Unreached> {
        let home = dom.home().ok_or(Unreached::None)?;
        let mut work = Some(work);
        if let Some(result) = with_parked(dom, &mut work) {
            return Ok(result);
        }
        // Who is not parked here is the caller, whom this CPU cannot wait for.
        if home.cpu == id(Cpu::current()) {
            return Err(Unreached::None);
        }
        dom.hold();
        let result = attempt(|| with_parked(dom, &mut work));
        dom.let_go();
        result.ok_or(Unreached::Running)
    }

    fn caller_state(&self, _: &Vcpu) -> MachineState {
        // SAFETY: this CPU's own frame, which the entry that made the call has filled as far as it is read here; nobody
        // else has a reference that is used meanwhile.
        let frame = unsafe { Cpu::current().guest_frame().read() };
        // The entry has not stored those that compiled code preserves.
        let known = TrapFrame { rbp: 0, r12: 0, r13: 0, r14: 0, r15: 0, ..frame };
        // Its data selectors are in the CPU, since nothing on the way here loads any.
        MachineState { registers: registers_of(&known, data_selectors(), [0; 3]), fpu: [0; 512] }
    }

    fn is_running(&self, dom: &Domain) -> bool {
        dom.home().is_some() && hold(dom).is_none()
    }

    fn cpu_time(&self, dom: &Domain) -> Span {
        let Some(home) = dom.home() else { return Span::ZERO };
        let mut queue = scheduling().queue(home.cpu);
        queue.charge(now());
        queue.ran(home.slot).unwrap_or(Span::ZERO)
    }

    fn admit(&self, dom: &Arc<Domain>, affinity: Affinity) -> Result<(), SchedError> {
        let host = host::get().expect("domains are made when the machine is known");
        let home = reserve(Params::of_new_domain(scheduler(), dom.id), affinity)?;
        place(home, Running::unbuilt(host, dom.clone()));
        Ok(())
    }

    fn dismiss(&self, dom: &Domain) -> Result<Box<Vcpu>, Unreached> {
        dom.home().ok_or(Unreached::None)?;
        // It is not to run any more: its CPU puts it to sleep as soon as it has seen that, be it after this has been
        // given up. (The caller has the lock of its end.)
        let running = attempt_while(|| leave_seat(dom), || ()).ok_or(Unreached::Running)?;
        dom.leave_home();
        console::domains::finish(dom.id);
        Ok(Box::new(running.vcpu))
    }

    fn reserved_descriptors(&self, arch: Arch) -> [u64; NR_RESERVED_GDT_ENTRIES as usize] {
        gdt::reserved_gdt(if arch == Arch::X86_32 { Flavour::X86_32 } else { Flavour::X86_64 })
    }
}

/// Takes a domain out of its seat and out of the queue, unless it runs or was picked to.
fn leave_seat(dom: &Domain) -> Option<Box<Running>> {
    let (all, home) = (scheduling(), dom.home()?);
    let mut places = all.of(home.cpu).places.lock();
    let held = hold(dom)?;
    if dom.home() != Some(home) || all.schedulers.remove(home).is_err() {
        return None;
    }
    places.alarms.cancel(home.slot);
    places.taken -= 1;
    Some(held.take())
}

fn state_of(context: &Context) -> MachineState {
    let bases = [context.bases.fs, context.bases.gs, context.bases.other_gs].map(VirtAddr::as_u64);
    MachineState { registers: registers_of(&context.frame, context.data, bases), fpu: *context.fpu.image() }
}

fn registers_of(frame: &TrapFrame, data: DataSegments, bases: [u64; 3]) -> Registers {
    Registers {
        general: [
            frame.rax, frame.rbx, frame.rcx, frame.rdx, frame.rsi, frame.rdi, frame.rbp, frame.r8, frame.r9, frame.r10,
            frame.r11, frame.r12, frame.r13, frame.r14, frame.r15,
        ],
        ip: frame.rip,
        sp: frame.rsp,
        flags: frame.rflags,
        code: Selector(frame.cs as u16),
        stack: Selector(frame.ss as u16),
        data,
        bases,
    }
}

fn set_state(context: &mut Context, state: &MachineState) {
    let Registers { general, ip, sp, flags, code, stack, data, bases } = state.registers;
    let [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15] = general;
    let TrapFrame { vector, error_code, .. } = context.frame;
    context.frame = TrapFrame {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        vector,
        error_code,
        rip: ip,
        cs: code.0.into(),
        rflags: flags,
        rsp: sp,
        ss: stack.0.into(),
    };
    context.data = data;
    let [fs, gs, other_gs] = bases.map(VirtAddr::new_truncate);
    context.bases = Bases { fs, gs, other_gs };
    *context.fpu.image_mut() = state.fpu;
}
