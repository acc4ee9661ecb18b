//! `run`, `create`.

use clap::Parser;
use proxenos_rpc::{ConsoleMode, Deadline, Info, Request, Restart, Start, Subject};

use super::console::{ALL, Console, finish};
use super::{BUILD, QUICK, hosts, open, place};
use crate::args::{Cli, CreateArgs, OnDemand, RunArgs};
use crate::config::Spec;
use crate::host::Life;
use crate::problem::{Problem, Result, Status};
use crate::session::Session;
use crate::upload::{self, File};
use crate::{source, view};

/// `create`.
pub fn create(cli: &Cli, args: &CreateArgs) -> Result<u8> {
    let spec = source::read(&args.file, args.guest.arch)?.with(source::overrides(&args.guest, &args.cmdline)?);
    let start = if args.paused { Start::Paused } else { Start::Running };
    let (_, info) = make(cli, &spec, start)?;
    told(cli, &info)?;
    Ok(0)
}

/// `run`.
pub fn run(cli: &Cli, args: &RunArgs) -> Result<u8> {
    let mut spec = source::read(&args.path, args.guest.arch)?.with(source::overrides(&args.guest, &args.cmdline)?);
    // Who watches wants to see the end.
    if !args.detach {
        spec.restart = spec.restart.or(Some(Restart::Never));
    }
    if args.detach {
        let (_, info) = make(cli, &spec, Start::Running)?;
        told(cli, &info)?;
        return Ok(0);
    }
    let (session, info) = make(cli, &spec, Start::Paused)?;
    let domain = Subject::Id(info.id);
    let replay = u32::try_from(ALL.0 * 1024).unwrap_or(u32::MAX);
    let mut console = Console::attach(session, &domain, replay, ConsoleMode::ReadWrite)?;
    console.session().begin(Request::Unpause(domain), Deadline(QUICK * 1000))?;
    let end = console.converse()?;
    finish(cli, &Subject::Name(info.name), end)
}

fn told(cli: &Cli, info: &Info) -> Result<()> {
    if cli.json { view::print_json(&view::domain(info)) } else { view::print(&format!("{}\t{}\n", info.id, info.name)) }
}

/// Makes a domain, on a host that is started if it must be.
fn make(cli: &Cli, spec: &Spec, start: Start) -> Result<(Session, Info)> {
    // What is wrong with files is said before anything is started.
    let (path, config) = spec.finish(start)?;
    let kernel = File::kernel(&path)?;
    let ramdisk = spec.ramdisk.as_deref().map(File::read).transpose()?;
    let place = place(cli)?;
    if !matches!(place.life(), Life::Running(_)) {
        let args = OnDemand::try_parse_from([""; 0])
            .map_err(|error| Problem::new(Status::Usage, "cannot start a host").because(error))?;
        eprintln!("starting {place}; `proxenos --host {} host stop` ends it", place.name());
        hosts::start(cli, &args.args)?;
    }
    let mut session = open(cli)?;
    let info = upload::create(&mut session, config, &kernel, ramdisk.as_ref(), cli.deadline(BUILD))?;
    Ok((session, info))
}
