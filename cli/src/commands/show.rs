//! `list`, `info`.

use proxenos_rpc::{HostInfo, Info, Reply, Request, ShutdownReason, State, Subject};
use serde_json::Value;

use super::{QUICK, domains, open, place};
use crate::args::Cli;
use crate::problem::Result;
use crate::session::Session;
use crate::units::{seconds, size};
use crate::upload::unexpected;
use crate::view;

/// `list`.
pub fn list(cli: &Cli) -> Result<u8> {
    let (_, all) = domains(cli, &mut open(cli)?)?;
    if cli.json {
        view::print_json(&all.iter().map(view::domain).collect::<Vec<Value>>())?;
        return Ok(0);
    }
    let mut table = view::table(&["ID", "NAME", "ARCH", "STATE", "MEM", "CPU", "TIME", "RESTARTS"]);
    for info in &all {
        let state = match info.state {
            State::ShutDown(reason) if reason != ShutdownReason::SUSPEND => {
                format!("shutdown ({})", view::reason(reason))
            }
            state => view::state(state).to_owned(),
        };
        let cpu = if info.pinned { format!("{}!", info.cpu) } else { info.cpu.to_string() };
        let (id, restarts) = (info.id.to_string(), info.restarts.to_string());
        let (name, arch) = (info.name.to_string(), view::arch(info.arch).to_owned());
        table.add_row([id, name, arch, state, size(info.memory), cpu, seconds(info.cpu_time), restarts]);
    }
    view::print_table(&table)?;
    Ok(0)
}

/// What the host says of itself.
pub fn host_info(cli: &Cli, session: &mut Session) -> Result<HostInfo> {
    match session.call("cannot ask the host", Request::HostInfo, cli.deadline(QUICK))? {
        Reply::Host(info) => Ok(*info),
        _ => Err(unexpected()),
    }
}

/// What the control domain says of a domain.
pub fn describe(cli: &Cli, session: &mut Session, subject: &Subject) -> Result<Info> {
    let doing = format!("cannot look at {subject}");
    match session.call(&doing, Request::Describe(subject.clone()), cli.deadline(QUICK))? {
        Reply::Domain(info) => Ok(*info),
        _ => Err(unexpected()),
    }
}

/// `info`.
pub fn info(cli: &Cli, subject: Option<&Subject>) -> Result<u8> {
    let mut session = open(cli)?;
    let value = match subject {
        Some(subject) => view::domain(&describe(cli, &mut session, subject)?),
        None => {
            let mut value = view::host(place(cli)?.name(), &host_info(cli, &mut session)?);
            // An older control domain does not tell.
            if let Ok(Reply::ControlMemory(memory)) =
                session.call_with(Request::ControlMemory, cli.deadline(QUICK), |_| {})?
            {
                value["control_used_bytes"] = memory.used.into();
                value["control_heap_bytes"] = memory.heap.into();
                value["control_left_bytes"] = memory.left.into();
            }
            value
        }
    };
    if cli.json {
        view::print_json(&value)?;
    } else {
        view::print(&lines(&value))?;
    }
    Ok(0)
}

/// An object's members, one a line.
pub fn lines(value: &Value) -> String {
    let Value::Object(members) = value else { return format!("{value}\n") };
    let width = members.keys().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in members {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        text += format!("{name:width$}  {value}").trim_end();
        text.push('\n');
    }
    text
}
