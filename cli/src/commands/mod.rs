//! What each command does.

mod console;
mod create;
mod dump;
mod hosts;
mod life;
mod logs;
mod sched;
mod show;
mod top;

use std::time::Duration;

use clap::CommandFactory;
use proxenos_rpc::{DomainId, Info, Nanos, Reply, Request, ShutdownReason};

use crate::args::{Cli, Command};
use crate::host::Place;
use crate::problem::{Problem, Result, Status};
use crate::session::Session;
use crate::upload::unexpected;

/// How long calls that only look or set take, in seconds.
pub const QUICK: u32 = 10;
/// A guest's shutdown.
pub const SHUTDOWN: u32 = 60;
/// Making a domain.
pub const BUILD: u32 = 120;

/// How long to wait for a free channel and for the control domain's hello, unless the user says otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// Executes the command; the value is the exit status.
///
/// # Errors
/// What went wrong.
pub fn execute(cli: &Cli) -> Result<u8> {
    match &cli.command {
        Command::Run(args) => create::run(cli, args),
        Command::Create(args) => create::create(cli, args),
        Command::List => show::list(cli),
        Command::Info(args) => show::info(cli, args.domain.as_ref()),
        Command::Console(args) => console::command(cli, args),
        Command::Pause(args) => life::each(cli, args, "cannot pause", Request::Pause),
        Command::Unpause(args) => life::each(cli, args, "cannot unpause", Request::Unpause),
        Command::Shutdown(args) => life::shutdown(cli, args),
        Command::Reboot(args) if args.force => life::each(cli, &args.domains, "cannot restart", Request::Reset),
        Command::Reboot(args) => life::each(cli, &args.domains, "cannot reboot", |domain| Request::Shutdown {
            domain,
            reason: ShutdownReason::REBOOT,
            wait: false,
        }),
        Command::Destroy(args) => life::each(cli, args, "cannot destroy", Request::Destroy),
        Command::Wait(args) => life::wait(cli, &args.domain),
        Command::MemSet(args) => life::mem_set(cli, args),
        Command::MemMax(args) => life::mem_max(cli, args),
        Command::Pin(args) => life::pin(cli, args),
        Command::Dmesg(args) => logs::dmesg(cli, args),
        Command::Trace(args) => logs::trace(cli, args),
        Command::Top(args) => top::command(cli, args),
        Command::Sched(args) => sched::command(cli, args),
        Command::Dump(args) => dump::command(cli, args),
        Command::Host(command) => hosts::command(cli, command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "proxenos", &mut script);
            crate::view::print(&String::from_utf8_lossy(&script))?;
            Ok(0)
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
                .map_err(|error| Problem::system(format!("cannot write to {}", dir.display()), error))?;
            Ok(0)
        }
    }
}

/// The place of the host that is meant.
pub fn place(cli: &Cli) -> Result<Place> {
    Place::of(&cli.host)
}

/// A session with the host that is meant, which must run.
pub fn open(cli: &Cli) -> Result<Session> {
    let patience = cli.timeout.map_or(PATIENCE, |seconds| Duration::from_secs(seconds.into()));
    Session::open(&place(cli)?, patience)
}

/// All domains, in the order of their numbers, and when that was.
pub fn domains(cli: &Cli, session: &mut Session) -> Result<(Nanos, Vec<Info>)> {
    let mut all = Vec::new();
    let mut from = DomainId(0);
    loop {
        let Reply::Domains { at, domains, more } =
            session.call("cannot list the domains", Request::List { from }, cli.deadline(QUICK))?
        else {
            return Err(unexpected());
        };
        all.extend(domains.into_vec());
        match more {
            // Only ever forward: whoever answers nonsense does not keep us here.
            Some(next) if next > from => from = next,
            Some(_) => return Err(Problem::new(Status::Protocol, "the list of domains does not end")),
            None => return Ok((at, all)),
        }
    }
}
