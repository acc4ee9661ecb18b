//! `host start|stop|status|list`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{QUICK, place};
use crate::args::{Cli, HostCommand, StartArgs};
use crate::host::{self, Force, Life, Place, Plan, Record};
use crate::problem::{Problem, Result, Status};
use crate::{images, view};

/// How long the control domain may take to come up, in seconds; under translation it is slow.
const BOOT: u32 = 60;

/// `host ...`.
pub fn command(cli: &Cli, command: &HostCommand) -> Result<u8> {
    match command {
        HostCommand::Start(args) => {
            let (place, record, is_new) = start(cli, args)?;
            if cli.json {
                view::print_json(&describe(&place, &Life::Running(record)))?;
            } else if is_new {
                eprintln!("{place} runs ({}, process {})", record.accel, record.pid);
            } else {
                eprintln!("{place} runs already (process {})", record.pid);
            }
            Ok(0)
        }
        HostCommand::Stop { force } => {
            let force = if *force { Force::Now } else { Force::Ask };
            let place = place(cli)?;
            if !host::stop(&place, force, cli.deadline(QUICK))? {
                eprintln!("{place} did not run");
            }
            Ok(0)
        }
        HostCommand::Status => {
            let place = place(cli)?;
            let life = place.life();
            if cli.json {
                view::print_json(&describe(&place, &life))?;
            } else {
                view::print(&super::show::lines(&describe(&place, &life)))?;
            }
            Ok(if matches!(life, Life::Running(_)) { 0 } else { Status::Unavailable as u8 })
        }
        HostCommand::List => {
            let all: Vec<Value> = Place::all()?.iter().map(|place| describe(place, &place.life())).collect();
            if cli.json {
                view::print_json(&all)?;
                return Ok(0);
            }
            let mut table = view::table(&["HOST", "STATE", "PROCESS", "ACCEL", "CPUS", "MEM"]);
            for host in &all {
                let cell = |name: &str| match &host[name] {
                    Value::Null => "-".to_owned(),
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                table.add_row(["host", "state", "pid", "accel", "cpus", "memory_mib"].map(cell));
            }
            view::print_table(&table)?;
            Ok(0)
        }
    }
}

/// Starts the host that is meant, unless it runs; the last value is whether it had to be.
pub fn start(cli: &Cli, args: &StartArgs) -> Result<(Place, Record, bool)> {
    let place = place(cli)?;
    if let Life::Running(record) = place.life() {
        return Ok((place, record, false));
    }
    let mib = |kib: proxenos_rpc::Kib| u32::try_from(kib.0 >> 10).unwrap_or(u32::MAX);
    let (memory_mib, control_mib) = (mib(args.memory), mib(args.control_memory));
    if control_mib.saturating_add(32) > memory_mib {
        return Err(Problem::new(Status::Usage, "the machine's memory leaves nothing for guests")
            .because(format!("the control domain takes {control_mib} MiB of {memory_mib} MiB"))
            .hint("give it more with --memory"));
    }
    let plan = Plan {
        accel: args.accel,
        cpus: args.cpus,
        memory_mib,
        control_mib,
        channels: args.channels,
        scheduler: args.sched,
        options: args.hv_args.clone(),
        control_line: args.control_args.clone(),
        images: images::find(args.images.as_deref())?,
        patience: Duration::from_secs(cli.timeout.unwrap_or(BOOT).into()),
    };
    let spinner = crate::upload::spinner(&format!("starting {place}"));
    let started = host::start(&place, &plan);
    spinner.finish_and_clear();
    let (record, is_new) = started?;
    Ok((place, record, is_new))
}

fn describe(place: &Place, life: &Life) -> Value {
    let (state, record) = match life {
        Life::Running(record) => ("running", Some(record)),
        Life::Dead(record) => ("dead", record.as_ref()),
        Life::Absent => ("absent", None),
    };
    json!({
        "host": place.name(),
        "state": state,
        "pid": record.map(|record| record.pid),
        "accel": record.map(|record| &record.accel),
        "cpus": record.map(|record| record.cpus),
        "memory_mib": record.map(|record| record.memory_mib),
        "channels": record.map(|record| record.channels),
        "started_unix": record.map(|record| record.started),
        "log": place.console_log(),
    })
}
