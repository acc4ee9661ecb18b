//! The local APIC of this CPU: its timer, and the end of interrupts.
//!
//! Registers are MSRs where there is an x2APIC and memory else. The timer compares with the TSC where it can
//! (TSC-deadline mode); otherwise it counts down at a rate that [`super::tsc`] measures. (Intel SDM vol. 3, chapter
//! 11.)
//!
//! What this module remembers is the same for all CPUs and written at boot; the registers are each CPU's own.

use super::tsc::{self, Hz};
use super::{Ratio, now_ns};
use crate::cpu::features;
use crate::cpu::idt::Vector;
use crate::cpu::percpu::{Cpu, CpuId};
use crate::mm::ioremap::{self, Access};
use proxenos_abi::{MachineAddr, Mfn};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::Msr;

const IA32_APIC_BASE: Msr = Msr::new(0x1b);
const IA32_TSC_DEADLINE: Msr = Msr::new(0x6e0);
/// Bits of IA32_APIC_BASE.
const X2APIC: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;
const BASE: u64 = 0x000f_ffff_ffff_f000;
/// Bits of a local vector table entry.
const MASKED: u32 = 1 << 16;
const DELIVER_NMI: u32 = 4 << 8;
const TSC_DEADLINE: u32 = 2 << 17;
/// Bits of the interrupt command register (Intel SDM vol. 3, 11.6.1): how it is delivered, that it is asserted, and
/// that it is still under way.
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_STARTUP: u32 = 6 << 8;
const ASSERT: u32 = 1 << 14;
const PENDING: u32 = 1 << 12;
/// How often a command is looked at that is under way. It takes microseconds; what has not gone by then never will.
const PATIENCE: u32 = 1_000_000;
/// Bit of the spurious-interrupt register that turns the APIC on.
const SOFTWARE_ENABLE: u32 = 1 << 8;
/// Divide configuration: by 1.
const DIVIDE_BY_1: u32 = 0xb;
/// The timer counts down from here to be measured.
const MAX_COUNT: u32 = u32::MAX;

/// A register, by its offset in memory; its MSR is 800h plus a sixteenth of that.
#[derive(Clone, Copy)]
enum Register {
    Id = 0x20,
    Version = 0x30,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xb0,
    Spurious = 0xf0,
    ErrorStatus = 0x280,
    Command = 0x300,
    CommandTo = 0x310,
    LvtTimer = 0x320,
    LvtThermal = 0x330,
    LvtPerformance = 0x340,
    Lvt0 = 0x350,
    Lvt1 = 0x360,
    LvtError = 0x370,
    InitialCount = 0x380,
    CurrentCount = 0x390,
    DivideConfiguration = 0x3e0,
}

/// How the registers are reached.
#[derive(Clone, Copy)]
enum Mode {
    Memory(VirtAddr),
    Msrs,
}

/// How the timer is armed.
#[derive(Clone, Copy)]
enum Timer {
    TscDeadline,
    Count(Ratio),
}

static MODE: Once<Mode> = Once::new();
static RATE: Once<Hz> = Once::new();
static TIMER: Once<Timer> = Once::new();

/// The APIC's number, which interrupts are addressed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApicId(pub u32);

#[inline]
fn mode() -> Mode {
    *MODE.get().expect("the APIC is set up")
}

#[inline]
fn read(register: Register) -> u32 {
    // SAFETY: `init` enabled the APIC in this mode; reading the registers above changes nothing.
    unsafe {
        match mode() {
            Mode::Memory(base) => (base + register as u64).as_ptr::<u32>().read_volatile(),
            Mode::Msrs => Msr::new(0x800 + register as u32 / 16).read() as u32,
        }
    }
}

#[inline]
fn write(register: Register, value: u32) {
    // SAFETY: `init` enabled the APIC in this mode. The interrupts that writes lead to have vectors of the
    // hypervisor's, whose gates are in place.
    unsafe {
        match mode() {
            Mode::Memory(base) => (base + register as u64).as_mut_ptr::<u32>().write_volatile(value),
            Mode::Msrs => Msr::new(0x800 + register as u32 / 16).write(value.into()),
        }
    }
}

/// Turns this CPU's APIC on, with everything masked but NMI.
///
/// # Panics
/// When its registers cannot be mapped.
pub fn init() {
    // SAFETY: the register exists on every 64-bit CPU.
    let base = unsafe { IA32_APIC_BASE.read() };
    let x2apic = features::get().x2apic.is_there();
    // Once in x2APIC mode it cannot be left but by a reset of the APIC.
    let mode = *MODE.call_once(|| {
        if x2apic {
            return Mode::Msrs;
        }
        let registers = ioremap::map(MachineAddr(base & BASE), 4096, Access::Device);
        Mode::Memory(registers.expect("room for the APIC's registers"))
    });
    let wanted = match mode {
        Mode::Msrs => ENABLE | X2APIC,
        Mode::Memory(_) => ENABLE,
    };
    let mut base = IA32_APIC_BASE;
    // SAFETY: enables the APIC where it is. x2APIC mode is only entered from enabled mode, and only where CPUID has it.
    unsafe {
        let old = base.read();
        base.write(old | ENABLE);
        base.write(old | wanted);
    }
    write(Register::TaskPriority, 0);
    write(Register::LvtTimer, MASKED | u32::from(Vector::TIMER.0));
    let last_entry = read(Register::Version) >> 16 & 0xff;
    if last_entry >= 4 {
        write(Register::LvtPerformance, MASKED | u32::from(Vector::SPURIOUS.0));
    }
    if last_entry >= 5 {
        write(Register::LvtThermal, MASKED | u32::from(Vector::SPURIOUS.0));
    }
    write(Register::Lvt0, MASKED | u32::from(Vector::SPURIOUS.0));
    // The NMIs of devices: one CPU is enough to be told.
    write(Register::Lvt1, if Cpu::current().id == CpuId::BOOT { DELIVER_NMI } else { MASKED | DELIVER_NMI });
    write(Register::LvtError, Vector::APIC_ERROR.0.into());
    write(Register::Spurious, SOFTWARE_ENABLE | u32::from(Vector::SPURIOUS.0));
    write(Register::EndOfInterrupt, 0);
    write(Register::DivideConfiguration, DIVIDE_BY_1);
    write(Register::InitialCount, MAX_COUNT);
    Cpu::current().set_apic_id(id());
    let kind = match mode {
        Mode::Msrs => "x2APIC",
        Mode::Memory(_) => "xAPIC",
    };
    log::debug!("{kind} {}", id().0);
}

/// This CPU's APIC number.
#[must_use]
pub fn id() -> ApicId {
    let raw = read(Register::Id);
    ApicId(match mode() {
        Mode::Memory(_) => raw >> 24,
        Mode::Msrs => raw,
    })
}

/// Whether interrupts can be addressed to an APIC: those that are reached by memory know numbers of eight bits, of
/// which 255 means all.
#[must_use]
pub fn can_reach(to: ApicId) -> bool {
    matches!(mode(), Mode::Msrs) || to.0 < 0xff
}

/// What one CPU sends another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// An interrupt.
    Interrupt(Vector),
    /// A non-maskable one.
    Nmi,
    /// Reset, and wait for [`Signal::Startup`].
    Init,
    /// Begin, in real mode, at the start of a frame of the first MiB.
    Startup(Mfn),
}

/// Sends a signal to a CPU. All that was stored before can be seen by whoever receives it.
pub fn send(to: ApicId, signal: Signal) {
    let command = ASSERT
        | match signal {
            Signal::Interrupt(vector) => vector.0.into(),
            Signal::Nmi => DELIVER_NMI,
            Signal::Init => DELIVER_INIT,
            Signal::Startup(at) => DELIVER_STARTUP | at.0 as u32,
        };
    match mode() {
        Mode::Memory(_) => {
            (0..PATIENCE).find(|_| read(Register::Command) & PENDING == 0);
            write(Register::CommandTo, to.0 << 24);
            write(Register::Command, command);
        }
        Mode::Msrs => {
            // Such a write is ordered with nothing (Intel SDM vol. 3, 11.12.3).
            // SAFETY: fences; then the register exists in this mode, and what is sent is the hypervisor's to send.
            unsafe {
                core::arch::x86_64::_mm_mfence();
                core::arch::x86_64::_mm_lfence();
                Msr::new(0x800 + Register::Command as u32 / 16).write(u64::from(to.0) << 32 | u64::from(command));
            }
        }
    }
}

/// Whether the timer counts at a rate that nobody knows.
pub(super) fn needs_measuring() -> bool {
    !features::get().tsc_deadline.is_there()
}

/// The timer's counter, which counts down.
pub(super) fn count() -> u64 {
    read(Register::CurrentCount).into()
}

/// Says how fast the timer counts.
pub(super) fn set_rate(rate: Hz) {
    assert!(rate.0 >= 1_000_000, "the APIC's timer cannot count at {} Hz", rate.0);
    RATE.call_once(|| rate);
}

/// Makes this CPU's timer ready for [`set_deadline`].
pub fn init_timer() {
    write(Register::InitialCount, 0);
    let is_first = TIMER.get().is_none();
    let timer = *TIMER.call_once(|| match RATE.get() {
        None => Timer::TscDeadline,
        Some(rate) => Timer::Count(Ratio::new(rate.0, 1_000_000_000)),
    });
    match timer {
        Timer::TscDeadline => {
            write(Register::LvtTimer, TSC_DEADLINE | u32::from(Vector::TIMER.0));
            // The mode must be set before the first write to the deadline (Intel SDM vol. 3, 11.5.4.1).
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        }
        Timer::Count(_) => {
            write(Register::LvtTimer, Vector::TIMER.0.into());
        }
    }
    match timer {
        _ if !is_first => {}
        Timer::TscDeadline => log::info!("timer: TSC deadline"),
        Timer::Count(_) => log::info!("timer: APIC count, {} kHz", RATE.get().map_or(0, |rate| rate.0 / 1000)),
    }
}

/// Arms this CPU's timer: it interrupts when [`now_ns`] is `ns`, or as soon as interrupts are enabled if that is past.
/// One deadline a CPU: the last one counts. One that is seconds away may interrupt early, so the clock has the last
/// word.
pub fn set_deadline(ns: u64) {
    let now = now_ns();
    let delay = ns.saturating_sub(now).min(MAX_DELAY_NS);
    Cpu::current().set_deadline(now + delay);
    match *TIMER.get().expect("the timer is set up") {
        // 0 would disarm it.
        // SAFETY: the timer is in this mode, so the register exists.
        Timer::TscDeadline => unsafe { { IA32_TSC_DEADLINE }.write(tsc::from_ns(now + delay).0.max(1)) },
        Timer::Count(per_ns) => {
            let ticks = per_ns.apply(delay);
            write(Register::InitialCount, u32::try_from(ticks).unwrap_or(MAX_COUNT).max(1));
        }
    }
}

/// Delays beyond a minute are cut: the products with any real rate fit.
const MAX_DELAY_NS: u64 = 60_000_000_000;

/// Disarms this CPU's timer.
pub fn cancel_deadline() {
    Cpu::current().set_deadline(u64::MAX);
    match *TIMER.get().expect("the timer is set up") {
        // SAFETY: as for `set_deadline`.
        Timer::TscDeadline => unsafe { { IA32_TSC_DEADLINE }.write(0) },
        Timer::Count(_) => write(Register::InitialCount, 0),
    }
}

/// Tells the APIC that the interrupt it delivered is dealt with.
#[inline]
pub fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// Logs and forgets the errors the APIC has collected.
pub fn report_error() {
    // A write makes the collected errors readable.
    write(Register::ErrorStatus, 0);
    log::warn!("APIC error, status {:#x}", read(Register::ErrorStatus));
}
