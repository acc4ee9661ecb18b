//! The scripts.

use super::*;
use proxenos_rpc::{ConsoleEnd, DomainId, ExitReason, ShutdownReason, State, Subject};

type Script = fn(&World) -> Result<()>;

/// A script by its name.
pub fn find(name: &str) -> Option<Script> {
    let scripts: [(&str, Script); 2] = [("hello", hello), ("life", life)];
    scripts.into_iter().find(|(known, _)| *known == name).map(|(_, script)| script)
}

/// Sessions on several channels, and what the host says of itself.
fn hello(world: &World) -> Result<()> {
    for channel in 0..world.sockets.len() {
        let mut session = world.session(channel)?;
        match session.ask(Request::HostInfo)? {
            Reply::Host(info) => {
                ensure!(info.memory_free > Kib(0) && info.cpus >= 1 && info.domains >= 1, "{info:?}");
                same("the interface", info.interface, (2, 0))?;
            }
            other => bail!("{other:?} to a question for the host"),
        }
        // Another client on the same channel, where the one before left half a message.
        session.stream.write_all(&[1, 2, 3])?;
        let again = Session::greet(session.stream, world.over.clone())?;
        drop(again);
    }
    let mut session = world.session(0)?;
    let found = session.begin(Request::Describe(Subject::Id(DomainId(77))))?;
    let failure = session.end(found, |_| {})?.expect_err("there is no domain 77");
    same("its failure", failure.cause, proxenos_rpc::Cause::NoSuchDomain)?;
    session.ask(Request::HostStop).map(drop)
}

/// A guest of each architecture: made, listened to, and its end.
fn life(world: &World) -> Result<()> {
    let mut session = world.session(0)?;
    for arch in Arch::ALL {
        let kernel = world.guest("hello", arch)?;
        let name = format!("hello-{}", if arch == Arch::X86_32 { 32 } else { 64 });
        let info = session.create(config(&name, 8, "a line of its own")?, &kernel)?;
        same("its state", info.state, State::Paused)?;
        same("its memory", info.memory, Kib(8 << 10))?;
        let subject = Subject::Name(info.name.clone());
        let (replay, credit, mode) = (0, 32 << 10, ConsoleMode::ReadWrite);
        let console = session.begin(Request::ConsoleAttach { domain: subject.clone(), replay, credit, mode })?;
        session.ask(Request::Unpause(subject.clone()))?;
        let mut output = Vec::new();
        let end = session.end(console, |event| {
            if let Event::Output { bytes, .. } = event {
                output.extend_from_slice(&bytes);
            }
        })?;
        let output = String::from_utf8_lossy(&output);
        ensure!(output.contains("Hello"), "{name} wrote {output:?}");
        match end.map_err(|failure| anyhow!("{failure}"))? {
            Reply::ConsoleEnd(ConsoleEnd::Ended(exit)) => {
                same("its end", exit.reason, ExitReason::ShutDown(ShutdownReason::POWER_OFF))?;
            }
            other => bail!("{other:?} at the console's end"),
        }
        match session.ask(Request::WaitExit(subject))? {
            Reply::Exit(exit) => same("its end", exit.reason, ExitReason::ShutDown(ShutdownReason::POWER_OFF))?,
            other => bail!("{other:?} to a wait for the end"),
        }
    }
    session.ask(Request::HostStop).map(drop)
}
