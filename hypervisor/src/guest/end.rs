//! The end of a domain: it stays, frozen, until somebody takes it down. Domain 0's is the machine's.

use super::{Running, audit, leave};
use crate::console;
use crate::cpu::entry::TrapFrame;
use crate::cpu::percpu::Cpu;
use crate::power::{self, ExitCode};
use core::sync::atomic::Ordering;
use proxenos_abi::DomId;
use proxenos_core::domain::RunState;
use proxenos_core::virq;

/// The exit code under QEMU when domain 0 had to be stopped. Reasons of a guest's own lie below it.
const CRASHED: ExitCode = ExitCode(0x7e);
/// The shutdown reason that halts the machine; any other starts it again (Xen 2.0's `domain_shutdown`).
const POWEROFF: u8 = 0;

/// Acts on a domain that has shut down or was stopped: domain 0 is told. It stays as it is, and never runs again. The
/// end of domain 0 is the machine's.
#[cold]
pub fn ended(run: &Running) {
    let id = run.dom.id;
    console::domains::finish(id);
    audit::at_end(run);
    let cpu = Cpu::current();
    log::debug!("CPU {}: timer interrupts: {}", cpu.id.0, cpu.timer_count.load(Ordering::Relaxed));
    match cpu.nmi_count.load(Ordering::Relaxed) {
        0 => {}
        count => log::info!("CPU {}: NMIs: {count}", cpu.id.0),
    }
    let reason = run.dom.shutdown_reason().filter(|_| !run.dom.run_state().contains(RunState::CRASHED));
    match (reason, id) {
        (Some(reason), _) => log::info!("domain {} shut down, reason {reason}", id.0),
        (None, DomId::DOM0) => log::error!("domain 0 was stopped, and the machine with it"),
        (None, _) => log::error!("domain {} was stopped", id.0),
    }
    // Last: domain 0 may be running, and act upon it.
    virq::domain_ended(run.host, &run.dom);
    if id == DomId::DOM0 {
        power::debug_exit(ExitCode(reason.map_or(CRASHED.0, |reason| reason.min(CRASHED.0))));
        if reason == Some(POWEROFF) { power::power_off() } else { power::restart() }
    }
}

/// The end of a domain that runs with flags which it cannot have ([`TrapFrame::has_forbidden_flags`]): no return to it
/// would be sound. `frame` becomes another's.
#[cold]
pub fn stop_lawless(frame: &mut TrapFrame) {
    let cpu = Cpu::current();
    // SAFETY: the one reference of this entry, which has just begun and ends here.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(frame) };
    crash(run, frame, format_args!("this CPU let it have flags that no guest may have"));
    leave(cpu, run, frame);
}

/// Says why `core` has stopped a domain, if it has.
pub fn explain(run: &Running, frame: &TrapFrame) {
    let refused = run.dom.paging.lock().writable.refused;
    if let Some(refused) = refused {
        crash(run, frame, format_args!("a page table of its own making cannot be: {refused:x?}"));
    }
}

/// Stops a domain for what it did, and says what that was and where.
pub fn crash(run: &Running, frame: &TrapFrame, why: core::fmt::Arguments<'_>) {
    log::error!("domain {} crashed: {why}", run.dom.id.0);
    print_registers(log::Level::Error, frame);
    log::error!("on CPU {}", Cpu::current().id.0);
    run.dom.set_state(RunState::CRASHED);
}

/// Prints a guest's registers.
pub fn print_registers(level: log::Level, frame: &TrapFrame) {
    log::log!(
        level,
        "rip {:04x}:{:016x} rsp {:04x}:{:016x} flags {:08x}",
        frame.cs,
        frame.rip,
        frame.ss,
        frame.rsp,
        frame.rflags
    );
    log::log!(level, "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", frame.rax, frame.rbx, frame.rcx, frame.rdx);
    log::log!(level, "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", frame.rsi, frame.rdi, frame.rbp, frame.r8);
    log::log!(level, "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", frame.r9, frame.r10, frame.r11, frame.r12);
    log::log!(
        level,
        "r13 {:016x} r14 {:016x} r15 {:016x} vector {:#x} code {:#x}",
        frame.r13,
        frame.r14,
        frame.r15,
        frame.vector,
        if frame.vector().has_error_code() { frame.error_code } else { 0 }
    );
}
