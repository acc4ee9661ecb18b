//! `dmesg`, `trace`.

use std::time::Duration;

use proxenos_rpc::{Cause, Log, Reply, Request, TraceCpu, TracePart, TraceRecord};
use serde_json::json;

use super::{QUICK, open};
use crate::args::{Cli, DmesgArgs, TraceArgs};
use crate::problem::{Problem, Result, Status};
use crate::session::Session;
use crate::upload::unexpected;
use crate::view;

/// How often to look for more.
const POLL: Duration = Duration::from_millis(500);

/// `dmesg`.
pub fn dmesg(cli: &Cli, args: &DmesgArgs) -> Result<u8> {
    let mut session = open(cli)?;
    let log = if args.control { Log::Control } else { Log::Hypervisor };
    let (mut from, mut text) = (0, Vec::new());
    loop {
        let Reply::Log(part) = session.call("cannot read the log", Request::Log { log, from }, cli.deadline(QUICK))?
        else {
            return Err(unexpected());
        };
        if part.from < from {
            return Err(unexpected());
        }
        let is_empty = part.bytes.is_empty();
        from = part.from + part.bytes.len() as u64;
        if cli.json {
            text.extend_from_slice(&part.bytes);
        } else {
            view::print(&String::from_utf8_lossy(&part.bytes))?;
        }
        if is_empty || from >= part.end {
            if !args.follow {
                break;
            }
            std::thread::sleep(POLL);
        }
    }
    if cli.json {
        let text = String::from_utf8_lossy(&text);
        view::print_json(&text.lines().collect::<Vec<_>>())?;
    }
    Ok(0)
}

/// `trace`.
pub fn trace(cli: &Cli, args: &TraceArgs) -> Result<u8> {
    let mut session = open(cli)?;
    let first = read(cli, &mut session, 0, 0)?;
    // To read makes records too: without --follow the end is where it was at first.
    let end = |cpu: &TraceCpu| if args.follow { u64::MAX } else { cpu.next };
    let mut cpus: Vec<(u32, u64, u64)> = first.cpus.iter().map(|cpu| (cpu.cpu, cpu.first, end(cpu))).collect();
    if let Some(only) = args.cpu {
        cpus.retain(|(cpu, ..)| *cpu == only);
        if cpus.is_empty() {
            return Err(Problem::new(Status::Missing, format!("there is no CPU {only}")).hint("`proxenos info`"));
        }
    }
    let mut all = Vec::new();
    loop {
        let mut is_more = false;
        for (cpu, next, end) in &mut cpus {
            if next >= end {
                continue;
            }
            let part = read(cli, &mut session, *cpu, *next)?;
            if part.from < *next {
                return Err(unexpected());
            }
            if part.from > *next && !cli.json {
                eprintln!("cpu {cpu}: {} records were overwritten", part.from - *next);
            }
            *next = part.from + part.records.len() as u64;
            is_more |= !part.records.is_empty();
            let numbered = (part.from..).zip(part.records.iter());
            if cli.json && !args.follow {
                all.extend(numbered.map(|(number, record)| value(*cpu, number, record)));
                continue;
            }
            for (number, record) in numbered {
                view::print(&if cli.json { format!("{}\n", value(*cpu, number, record)) } else { line(*cpu, record) })?;
            }
        }
        if !is_more {
            if !args.follow {
                break;
            }
            std::thread::sleep(POLL);
        }
    }
    if cli.json && !args.follow {
        view::print_json(&all)?;
    }
    Ok(0)
}

fn read(cli: &Cli, session: &mut Session, cpu: u32, from: u64) -> Result<TracePart> {
    match session.call_with(Request::Trace { cpu, from }, cli.deadline(QUICK), |_| {})? {
        Ok(Reply::Trace(part)) => Ok(part),
        Ok(_) => Err(unexpected()),
        Err(failure) => {
            let problem = Problem::refused("cannot read the trace", &failure);
            let is_off = failure.cause == Cause::WrongState;
            Err(if is_off { problem.hint("`proxenos host start --hv-args tbuf_size=16`") } else { problem })
        }
    }
}

fn value(cpu: u32, number: u64, record: &TraceRecord) -> serde_json::Value {
    json!({ "cpu": cpu, "number": number, "cycles": record.cycles, "event": record.event, "data": record.data })
}

fn line(cpu: u32, record: &TraceRecord) -> String {
    let [a, b, c, d, e] = record.data;
    format!("{cpu:3} {:20} {:08x}  {a:08x} {b:08x} {c:08x} {d:08x} {e:08x}\n", record.cycles, record.event)
}
