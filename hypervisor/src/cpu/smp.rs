//! The other CPUs: found in the MADT, started one after the other, left out if they cannot be trusted.
//!
//! The boot CPU builds an area for each ([`percpu`]), sends it INIT and two STARTUPs (Intel SDM vol. 3, 9.4.4.1), and
//! hears how far it has come by one word, [`STAGE`]. What a CPU must have to be one of ours: the same features as the
//! boot CPU, since guests use them wherever they run; and a time stamp counter that nobody can tell from the boot
//! CPU's, since time must not go back for a domain that moves or hears from another. A counter that is off is set by
//! IA32_TSC_ADJUST, where there is one. A CPU that does not come up, or may not, is told of, reset, and left out.
//!
//! They are numbered as they come, without gaps; [`cpus`] are those that run. A CPU that has been started waits in
//! `hlt`, with no timer armed, until [`release`] sends it where domains are run. No lock: only the boot CPU starts
//! others, one at a time.

use super::percpu::{self, Cpu, CpuId};
use super::tlb;
use super::trampoline::Trampoline;
use super::{features, ipi};
use crate::options::Provocation;
use crate::time::apic::{self, ApicId, Signal};
use crate::time::{now_ns, tsc};
use crate::{acpi, boot, guest, provoke};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use proxenos_core::sync;
use proxenos_core::tsc_sync::{Difference, Verdict};
use spin::Once;

/// The most CPUs that are used.
pub const MAX_CPUS: usize = 256;

/// How many CPUs run.
static RUNNING: AtomicU32 = AtomicU32::new(1);

/// Whether the boot CPU is the only one.
#[inline(always)]
#[must_use]
pub fn is_alone() -> bool {
    RUNNING.load(Ordering::Relaxed) == 1
}

/// How many CPUs run.
#[must_use]
pub fn count() -> u32 {
    RUNNING.load(Ordering::Acquire)
}

/// Those that run, by their numbers.
pub fn cpus() -> impl Iterator<Item = &'static Cpu> {
    (0..count()).map(|id| Cpu::of(CpuId(id)))
}

/// How far the CPU has come that is being started, and what it is asked.
static STAGE: AtomicU32 = AtomicU32::new(0);
/// It has been told to start.
const CALLED: u32 = 1;
/// It has other features than the boot CPU.
const DIFFERS: u32 = 2;
/// It is ready to be one of ours.
const READY: u32 = 3;
/// It is asked for its time.
const ASKED: u32 = 4;
/// It has answered.
const ANSWERED: u32 = 5;
/// It is to move its counter.
const ADJUST: u32 = 6;
/// It is one of ours.
const TAKEN: u32 = 7;

/// What it answered, or is to move its counter by.
static VALUE: AtomicU64 = AtomicU64::new(0);

/// The features that each must have, and the boot CPU's IA32_TSC_ADJUST where there is one.
static MODEL: Once<(features::Fingerprint, Option<u64>)> = Once::new();

/// For how long a CPU is waited for. One that works needs a millisecond, but may have to share a core of a busy host's.
const PATIENCE_NS: u64 = 2_000_000_000;
const INIT_NS: u64 = 10_000_000;
const STARTUP_NS: u64 = 200_000;
/// How often the time is asked for.
const ROUNDS: u32 = 24;

/// Why a CPU is left out.
enum Missing {
    Silent,
    Differs,
    Time(Verdict),
}

impl core::fmt::Display for Missing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Silent => write!(f, "it does not start"),
            Self::Differs => write!(f, "it has not the same features as the boot CPU"),
            Self::Time(Verdict::Apart(ticks)) => {
                write!(f, "its time stamp counter is {ticks} ticks off, and cannot be set")
            }
            Self::Time(_) => write!(f, "its time stamp counter does not keep up with the boot CPU's"),
        }
    }
}

/// Starts all CPUs that there are, as far as the options let it.
pub fn start() {
    let wanted = boot::options().max_cpus.map_or(MAX_CPUS, |most| usize::from(most.get())).min(MAX_CPUS);
    let found = &acpi::machine().cpus;
    let here = Cpu::current().apic_id();
    if wanted == 1 || found.iter().all(|&cpu| cpu == here) {
        log::info!("CPUs: 1 of {}", found.len().max(1));
        return;
    }
    let Some(trampoline) = Trampoline::new() else {
        log::warn!("no RAM below 1 MiB to start other CPUs from: they are left out");
        return;
    };
    MODEL.call_once(|| (features::fingerprint(), tsc::adjustment()));
    // From now on a lock may be held by somebody else.
    sync::serve_while_waiting(tlb::serve);
    for &apic in found.iter().filter(|&&cpu| cpu != here) {
        if count() as usize == wanted {
            break;
        }
        if !apic::can_reach(apic) {
            log::warn!("the CPU with APIC number {} is left out: interrupts cannot be sent to it", apic.0);
            continue;
        }
        let id = CpuId(count());
        match start_one(&trampoline, id, apic) {
            Ok(()) => log::debug!("CPU {}: APIC number {}", id.0, apic.0),
            Err(why) => {
                // Whatever it does, it stops doing that.
                apic::send(apic, Signal::Init);
                pause(INIT_NS);
                log::warn!("the CPU with APIC number {} is left out: {why}", apic.0);
            }
        }
    }
    trampoline.remove();
    log::info!("CPUs: {} of {}", count(), found.len());
}

fn start_one(trampoline: &Trampoline, id: CpuId, apic: ApicId) -> Result<(), Missing> {
    let area = percpu::build(id);
    trampoline.lead_to(arrive, area.cpu());
    STAGE.store(CALLED, Ordering::Release);
    apic::send(apic, Signal::Init);
    pause(INIT_NS);
    if boot::options().provoke != Some(Provocation::LostCpu) {
        apic::send(apic, Signal::Startup(trampoline.frame()));
        pause(STARTUP_NS);
        if STAGE.load(Ordering::Acquire) == CALLED {
            apic::send(apic, Signal::Startup(trampoline.frame()));
        }
    }
    if leave_stage(CALLED)? == DIFFERS {
        return Err(Missing::Differs);
    }
    agree_on_time()?;
    // It takes its place before anybody can see it there.
    RUNNING.store(id.0 + 1, Ordering::Release);
    STAGE.store(TAKEN, Ordering::Release);
    Ok(())
}

/// Waits until the stage is another.
fn leave_stage(old: u32) -> Result<u32, Missing> {
    let start = now_ns();
    while now_ns() - start < PATIENCE_NS {
        match STAGE.load(Ordering::Acquire) {
            stage if stage == old => sync::wait_a_little(),
            stage => return Ok(stage),
        }
    }
    Err(Missing::Silent)
}

fn pause(ns: u64) {
    let start = now_ns();
    while now_ns() - start < ns {
        core::hint::spin_loop();
    }
}

/// Compares the clocks, and has the other CPU set its own if they differ.
fn agree_on_time() -> Result<(), Missing> {
    let verdict = compare()?;
    let Verdict::Apart(ticks) = verdict else {
        return if verdict == Verdict::Alike { Ok(()) } else { Err(Missing::Time(verdict)) };
    };
    if tsc::adjustment().is_none() {
        return Err(Missing::Time(verdict));
    }
    VALUE.store(ticks.wrapping_neg() as u64, Ordering::Relaxed);
    ask(ADJUST)?;
    match compare()? {
        Verdict::Alike => Ok(()),
        verdict => Err(Missing::Time(verdict)),
    }
}

fn compare() -> Result<Verdict, Missing> {
    let mut difference = Difference::UNKNOWN;
    for _ in 0..ROUNDS {
        let before = tsc::read();
        ask(ASKED)?;
        let theirs = VALUE.load(Ordering::Relaxed);
        difference.add(before.0, theirs, tsc::read().0);
    }
    Ok(difference.verdict())
}

fn ask(what: u32) -> Result<(), Missing> {
    STAGE.store(what, Ordering::Release);
    leave_stage(what).map(drop)
}

/// Where a CPU comes from the trampoline, on its own stack: takes over its tables and registers, answers questions, and
/// waits.
extern "C" fn arrive() -> ! {
    let cpu = Cpu::current();
    tlb::rest();
    // SAFETY: the boot CPU built it for this one.
    unsafe { percpu::take_over(cpu.area()) };
    apic::init();
    let &(fingerprint, adjustment) = MODEL.get().expect("the boot CPU has looked at itself");
    if own_fingerprint() != fingerprint {
        STAGE.store(DIFFERS, Ordering::Release);
        crate::power::halt_this_cpu()
    }
    apic::init_timer();
    guest::init_cpu();
    // What firmware did to one counter and not to the other.
    if let Some(adjustment) = adjustment {
        tsc::set_adjustment(adjustment);
    }
    STAGE.store(READY, Ordering::Release);
    loop {
        match STAGE.load(Ordering::Acquire) {
            ASKED => {
                VALUE.store(own_time(), Ordering::Relaxed);
                STAGE.store(ANSWERED, Ordering::Release);
            }
            ADJUST => {
                let ticks = VALUE.load(Ordering::Relaxed);
                tsc::set_adjustment(tsc::adjustment().unwrap_or(0).wrapping_add(ticks));
                STAGE.store(ANSWERED, Ordering::Release);
            }
            TAKEN => break,
            _ => core::hint::spin_loop(),
        }
    }
    wait_for_work(cpu)
}

fn own_fingerprint() -> features::Fingerprint {
    let own = features::fingerprint();
    if boot::options().provoke == Some(Provocation::FeaturesApart) { own.of_another_model() } else { own }
}

fn own_time() -> u64 {
    /// What a provoked counter is ahead by: an hour at 1 GHz.
    const AHEAD: u64 = 3_600_000_000_000;
    let ahead = if boot::options().provoke == Some(Provocation::TscApart) { AHEAD } else { 0 };
    tsc::read().0.wrapping_add(ahead)
}

/// What the CPUs that wait are to do: one of the following.
static TASK: AtomicU32 = AtomicU32::new(WAIT);
const WAIT: u32 = 0;
const CHECK: u32 = 1;
const PANIC: u32 = 2;
const RUN: u32 = 3;

/// Where domains are run.
static DISPATCH: Once<fn() -> !> = Once::new();

fn set_task(task: u32) {
    TASK.store(task, Ordering::Release);
    cpus().filter(|cpu| cpu.id != CpuId::BOOT).for_each(|cpu| ipi::send(cpu.id, ipi::Message::Look));
}

/// Sends the other CPUs to where domains are run.
pub fn release(dispatch: fn() -> !) {
    DISPATCH.call_once(|| dispatch);
    set_task(RUN);
}

/// Has the last CPU panic, and the others be anywhere.
pub fn panic_elsewhere() -> ! {
    set_task(PANIC);
    provoke_panic(CpuId::BOOT)
}

/// The last CPU panics, the first spins with interrupts off, and those between sleep.
fn provoke_panic(here: CpuId) -> ! {
    if here.0 == count() - 1 {
        provoke::panic_on(here);
    }
    if here == CpuId::BOOT {
        loop {
            core::hint::spin_loop();
        }
    }
    loop {
        let _nothing_of_a_guest = Cpu::current().wait_for_interrupt();
    }
}

/// Runs a check on all CPUs, this one included, and returns when all have done it.
pub fn check() {
    DONE.store(0, Ordering::Relaxed);
    set_task(CHECK);
    super::check::run(CpuId::BOOT);
    DONE.fetch_add(1, Ordering::AcqRel);
    while DONE.load(Ordering::Acquire) != count() {
        sync::wait_a_little();
    }
    set_task(WAIT);
}

/// How many have done the check.
static DONE: AtomicU32 = AtomicU32::new(0);

fn wait_for_work(cpu: &Cpu) -> ! {
    let mut last = WAIT;
    loop {
        let task = TASK.load(Ordering::Acquire);
        match task {
            RUN => DISPATCH.get().expect("it was set before the task")(),
            PANIC => provoke_panic(cpu.id),
            CHECK if last != CHECK => {
                super::check::run(cpu.id);
                DONE.fetch_add(1, Ordering::AcqRel);
            }
            _ => {
                let _nothing_of_a_guest = cpu.wait_for_interrupt();
            }
        }
        last = task;
    }
}
