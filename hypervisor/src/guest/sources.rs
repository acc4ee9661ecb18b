//! What interrupts and NMIs left to be told to guests, or to be done for whoever types at the console.
//!
//! The console's interrupt and the NMI's handler only note what there is ([`Pending`]); it is dealt with here, on the
//! way back to a guest or in the idle loop. Which virtual interrupt goes to whom is [`proxenos_core::virq`]'s to say.

use super::hw::Hw;
use super::{Running, end, host, sched};
use crate::cpu::entry::TrapFrame;
use crate::cpu::percpu::{Cpu, Pending};
use crate::{console, power};
use core::sync::atomic::Ordering;
use proxenos_abi::shared_info::SharedInfo;
use proxenos_core::console_keys::{Command, Listener};
use proxenos_core::domain::RunState;
use proxenos_core::host::Host;
use proxenos_core::machine::MachineMemory;
use proxenos_core::virq::{self, HardwareErrors};

/// The serial port has interrupted.
pub fn console_interrupted() {
    let arrived = console::fetch_input();
    if arrived.commands {
        Cpu::current().set_pending(Pending::COMMAND);
    }
    if let Some(listener) = arrived.switched {
        let (who, other) = match listener {
            Listener::Domain0 => ("domain 0", "the hypervisor"),
            Listener::Hypervisor => ("the hypervisor, which lists its keys for h", "domain 0"),
        };
        log::info!("what is typed is for {who} (Ctrl-A three times: for {other})");
    }
    if let Some(host) = host::get().filter(|_| arrived.for_domain0) {
        virq::console_input(host);
    }
}

/// Deals with what is pending of this. `runs` is the domain that is interrupted, if one is, and what it goes on with.
#[inline]
pub fn serve(host: &Host<Hw>, runs: Option<(&Running, &TrapFrame)>, pending: Pending) {
    if pending.intersects(Pending::COMMAND | Pending::PARITY_ERROR | Pending::IO_ERROR) {
        serve_some(host, runs, pending);
    }
}

#[cold]
#[inline(never)]
fn serve_some(host: &Host<Hw>, runs: Option<(&Running, &TrapFrame)>, pending: Pending) {
    if pending.contains(Pending::COMMAND) {
        while let Some(command) = console::take_command() {
            carry_out(host, runs, command);
        }
    }
    let errors =
        HardwareErrors { parity: pending.contains(Pending::PARITY_ERROR), io: pending.contains(Pending::IO_ERROR) };
    errors.report(host);
}

fn carry_out(host: &Host<Hw>, runs: Option<(&Running, &TrapFrame)>, command: Command) {
    match command {
        Command::Help => {
            for (key, _, what) in Command::ALL {
                log::info!("{}: {what}", key as char);
            }
        }
        Command::Registers => {
            if let Some((run, frame)) = runs {
                log::info!("domain {} is interrupted", run.dom.id.0);
                end::print_registers(log::Level::Info, frame);
            }
            sched::with_all_parked(|parked, _| {
                for run in parked {
                    log::info!("domain {} does not run", run.dom.id.0);
                    end::print_registers(log::Level::Info, &run.context.frame);
                }
            });
        }
        Command::Domains => {
            for dom in host.domains.all() {
                let flag = |offset: usize| {
                    let at = dom.shared_info.addr().0 + offset as u64;
                    host.hw.load8(proxenos_core::addr::MachineAddr(at))
                };
                let state = match dom.run_state() {
                    RunState::BLOCKED => "waits for an event",
                    state if state.is_empty() => "can run",
                    state if !state.intersects(RunState::SHUTDOWN | RunState::CRASHED) => "is paused",
                    _ => "has ended",
                };
                log::info!(
                    "domain {}: {state}, {} frames, upcall pending {}, masked {}; sent VIRQ_DEBUG",
                    dom.id.0,
                    dom.total_pages.load(Ordering::Relaxed),
                    flag(SharedInfo::EVTCHN_UPCALL_PENDING),
                    flag(SharedInfo::EVTCHN_UPCALL_MASK)
                );
                virq::debug(host, &dom);
            }
        }
        Command::Reboot => {
            log::info!("the machine starts again: it was asked to at the console");
            power::restart()
        }
    }
}
