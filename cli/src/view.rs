//! What is shown of domains and hosts: as JSON, whose names and units stay as they are, and in words.

use proxenos_rpc::{Arch, Exit, ExitReason, HostInfo, Info, OnCrash, Restart, Scheduler, ShutdownReason, State};
use serde::Serialize;
use serde_json::{Value, json};

use crate::problem::{Problem, Result, Status};

/// Prints a value as JSON.
///
/// # Errors
/// Nobody reads it.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Problem::new(Status::Internal, "no JSON").because(e))?;
    print(&format!("{text}\n"))
}

/// Prints a text.
///
/// # Errors
/// Nobody reads it.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Problem::system("cannot write the output", e))
}

/// A table without lines, for the terminal.
pub fn table(heading: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(heading.to_vec());
    table
}

/// Prints a table.
///
/// # Errors
/// Nobody reads it.
pub fn print_table(table: &comfy_table::Table) -> Result<()> {
    let lines: Vec<String> =
        table.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or_default().to_owned()).collect();
    print(&format!("{}\n", lines.join("\n")))
}

/// An architecture's name.
pub fn arch(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_32 => "x86_32",
        Arch::X86_64 => "x86_64",
    }
}

/// The word for a reason.
pub fn reason(reason: ShutdownReason) -> String {
    match reason {
        ShutdownReason::POWER_OFF => "poweroff".to_owned(),
        ShutdownReason::REBOOT => "reboot".to_owned(),
        ShutdownReason::SUSPEND => "suspend".to_owned(),
        ShutdownReason(other) => format!("reason {other}"),
    }
}

/// The word for a state, without the reason.
pub fn state(state: State) -> &'static str {
    match state {
        State::Building => "building",
        State::Running => "running",
        State::Ready => "ready",
        State::Blocked => "blocked",
        State::Paused => "paused",
        State::ShutDown(ShutdownReason::SUSPEND) => "suspended",
        State::ShutDown(_) => "shutdown",
        State::Crashed => "crashed",
        State::Dying => "dying",
    }
}

/// A scheduler, as the option `sched=` calls it.
pub fn scheduler(scheduler: Scheduler) -> &'static str {
    match scheduler {
        Scheduler::Bvt => "bvt",
        Scheduler::Atropos => "atropos",
        Scheduler::RoundRobin => "rrobin",
    }
}

/// The word for a restart policy.
pub fn restart(restart: Restart) -> &'static str {
    match restart {
        Restart::Never => "never",
        Restart::OnReboot => "on-reboot",
        Restart::Always => "always",
    }
}

/// The word for what happens at a crash.
pub fn on_crash(on_crash: OnCrash) -> &'static str {
    match on_crash {
        OnCrash::Destroy => "destroy",
        OnCrash::Keep => "keep",
        OnCrash::Restart => "restart",
    }
}

/// A domain as JSON.
pub fn domain(info: &Info) -> Value {
    let why = match info.state {
        State::ShutDown(why) => Some(why.0),
        _ => None,
    };
    json!({
        "id": info.id.0,
        "name": info.name.as_str(),
        "arch": arch(info.arch),
        "state": state(info.state),
        "shutdown_reason": why,
        "memory_kib": info.memory.0,
        "memory_limit_kib": info.memory_limit.0,
        "cpu": info.cpu,
        "pinned": info.pinned,
        "cpu_time_ns": info.cpu_time.0,
        "shared_info_frame": info.shared_info_frame,
        "created_at_ns": info.created_at.0,
        "restarts": info.restarts,
        "restart": restart(info.restart),
        "on_crash": on_crash(info.on_crash),
        "console_written_bytes": info.console_written,
        "console_clients": info.console_clients,
        "image": info.image.as_str(),
    })
}

/// An end as JSON.
pub fn exit(exit: &Exit) -> Value {
    let why = match exit.reason {
        ExitReason::ShutDown(why) => Some(why.0),
        _ => None,
    };
    json!({
        "id": exit.id.0,
        "name": exit.name.as_str(),
        "end": match exit.reason {
            ExitReason::ShutDown(_) => "shutdown",
            ExitReason::Crashed => "crashed",
            ExitReason::Destroyed => "destroyed",
        },
        "shutdown_reason": why,
        "at_ns": exit.at.0,
        "cpu_time_ns": exit.cpu_time.0,
        "restarted": exit.restarted,
    })
}

/// A host's machine as JSON.
pub fn host(name: &str, info: &HostInfo) -> Value {
    json!({
        "host": name,
        "hypervisor": info.hypervisor.as_str(),
        "control": info.control.as_str(),
        "interface": format!("{}.{}", info.interface.0, info.interface.1),
        "cpus": info.cpus,
        "cpu_khz": info.cpu_khz,
        "memory_kib": info.memory.0,
        "memory_free_kib": info.memory_free.0,
        "control_memory_kib": info.control_memory.0,
        "uptime_ns": info.uptime.0,
        "scheduler": scheduler(info.scheduler),
        "domains": info.domains,
    })
}
