//! Commands that change a domain: its life, its memory, its CPU.

use proxenos_rpc::{
    CallId, Cause, Deadline, Exit, Failure, FromControl, Note, Reply, Request, ShutdownReason, Subject,
};
use std::time::{Duration, Instant};

use super::{QUICK, SHUTDOWN, open};
use crate::args::{Cli, Domains, MemArgs, PinArgs, ShutdownArgs};
use crate::problem::{Problem, Result, status_of};
use crate::session::{Arrival, Session, no_answer};
use crate::units::size;
use crate::upload::unexpected;
use crate::view;

/// The same for each of some domains, all of which are tried. The first that fails is the command's failure; the
/// others are told of at once.
pub fn each(cli: &Cli, args: &Domains, doing: &str, request: impl Fn(Subject) -> Request) -> Result<u8> {
    let mut session = open(cli)?;
    let mut first = None;
    for domain in &args.domains {
        let doing = format!("{doing} {domain}");
        match session.call_with(request(domain.clone()), cli.deadline(SHUTDOWN), |_| {})? {
            Ok(reply) if cli.json => {
                if let Reply::Exit(exit) = reply {
                    view::print_json(&view::exit(&exit))?;
                }
            }
            Ok(_) => {}
            Err(failure) => {
                let problem = Problem::refused(doing, &failure);
                if first.is_some() {
                    eprintln!("proxenos: {problem}");
                } else {
                    first = Some(problem);
                }
            }
        }
    }
    first.map_or(Ok(0), Err)
}

/// `shutdown`.
pub fn shutdown(cli: &Cli, args: &ShutdownArgs) -> Result<u8> {
    let reason = if args.suspend { ShutdownReason::SUSPEND } else { ShutdownReason::POWER_OFF };
    let wait = args.wait;
    each(cli, &args.domains, "cannot shut down", |domain| Request::Shutdown { domain, reason, wait })
}

/// For how long the control domain keeps a wait whose client says nothing.
const LEASE: Deadline = Deadline(30_000);
/// How often we say that we are there.
pub const ALIVE: Duration = Duration::from_secs(8);

/// `wait`.
pub fn wait(cli: &Cli, domain: &Subject) -> Result<u8> {
    let mut session = open(cli)?;
    let exit = wait_exit(cli, &mut session, domain)?;
    if cli.json {
        view::print_json(&view::exit(&exit))?;
    }
    Ok(status_of(exit.reason))
}

fn wait_exit(cli: &Cli, session: &mut Session, domain: &Subject) -> Result<Exit> {
    let id: CallId = session.begin(Request::WaitExit(domain.clone()), LEASE)?;
    // Without --timeout for as long as it takes.
    let end = cli.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    loop {
        let next = Instant::now() + ALIVE;
        match session.wait(Some(end.map_or(next, |end| end.min(next))), None)? {
            Arrival::Message(FromControl::Reply(to, reply)) if to == id => {
                return match reply.map_err(|f| Problem::refused(format!("cannot wait for {domain}"), &f))? {
                    Reply::Exit(exit) => Ok(exit),
                    _ => Err(unexpected()),
                };
            }
            Arrival::Message(_) | Arrival::Other => {}
            Arrival::Nothing if end.is_some_and(|end| Instant::now() >= end) => {
                return Err(no_answer().because(format!("{domain} has not ended")));
            }
            Arrival::Nothing => session.note(id, Note::Alive)?,
        }
    }
}

/// `mem-set`.
pub fn mem_set(cli: &Cli, args: &MemArgs) -> Result<u8> {
    let domain = &args.domain.domain;
    let request = Request::SetMemory { domain: domain.clone(), memory: args.size };
    let doing = format!("cannot set the memory of {domain}");
    let set = open(cli)?.call_with(request, cli.deadline(QUICK), |_| {})?;
    let refused = |failure: Failure| {
        let problem = Problem::refused(doing, &failure);
        let advice = "`proxenos info` shows what it has and may have; `proxenos mem-max` sets what it may";
        if failure.cause == Cause::Invalid { problem.hint(advice) } else { problem }
    };
    match set.map_err(refused)? {
        Reply::Memory(memory) if cli.json => view::print_json(&serde_json::json!({ "memory_kib": memory.0 }))?,
        Reply::Memory(memory) if memory == args.size => {}
        Reply::Memory(memory) => {
            eprintln!("{domain} has {} by now, on its way to {}", size(memory), size(args.size));
        }
        _ => return Err(unexpected()),
    }
    Ok(0)
}

/// `mem-max`.
pub fn mem_max(cli: &Cli, args: &MemArgs) -> Result<u8> {
    let domain = &args.domain.domain;
    let request = Request::SetMemoryLimit { domain: domain.clone(), limit: args.size };
    open(cli)?.call(&format!("cannot set the memory limit of {domain}"), request, cli.deadline(QUICK))?;
    Ok(0)
}

/// `pin`.
pub fn pin(cli: &Cli, args: &PinArgs) -> Result<u8> {
    let domain = &args.domain.domain;
    let request = Request::Pin { domain: domain.clone(), cpu: args.cpu.0 };
    open(cli)?.call(&format!("cannot pin {domain}"), request, cli.deadline(QUICK))?;
    Ok(0)
}
