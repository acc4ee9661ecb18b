//! The scripts.

use super::*;
use proxenos_rpc::{ConsoleEnd, DomainId, ExitReason, ShutdownReason, State, Subject};

type Script = fn(&World) -> Result<()>;

/// A script by its name.
pub fn find(name: &str) -> Option<Script> {
    let scripts: [(&str, Script); 4] = [("hello", hello), ("life", life), ("session", session), ("cost", cost)];
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

/// What it takes from the order to make a guest until it runs, in instructions, where each takes a nanosecond: the
/// guest says what time it was when it had a clock, a little after its first one.
fn cost(world: &World) -> Result<()> {
    const LIMIT: u64 = 5_000_000;
    let mut session = world.session(0)?;
    for arch in Arch::ALL {
        // The first of each kind uploads its image and has tables grow.
        for number in 0..2 {
            let running = Config { start: Start::Running, ..config(&format!("cost-{number}"), 4, "when")? };
            let info = session.create(running, &world.guest("echo", arch)?)?;
            let subject = Subject::Name(info.name.clone());
            let (replay, credit, mode) = (u32::MAX, 32 << 10, ConsoleMode::ReadOnly);
            let console = session.begin(Request::ConsoleAttach { domain: subject.clone(), replay, credit, mode })?;
            let (mut output, until) = (String::new(), Instant::now() + PATIENCE);
            let began: u64 = loop {
                match session.next(until)?.with_context(|| format!("no time in {output:?}"))? {
                    FromControl::Event(to, Event::Output { bytes, .. }) if to == console => {
                        output.push_str(&String::from_utf8_lossy(&bytes));
                    }
                    FromControl::Reply(to, reply) if to == console => bail!("its console ended: {reply:?}"),
                    _ => {}
                }
                let time = output.split_once("began at ").and_then(|(_, rest)| rest.split_once('\n'));
                if let Some((time, _)) = time {
                    break time.parse()?;
                }
            };
            let took = began.checked_sub(info.created_at.0).context("it ran before it was ordered")?;
            println!("{arch:?}: {took} instructions from the order to the first of a guest's");
            ensure!(number == 0 || took <= LIMIT, "{arch:?}: {took} instructions to a guest's first");
            session.ask(Request::Destroy(subject))?;
        }
    }
    session.ask(Request::HostStop).map(drop)
}

/// A guest whose console is attached.
struct Attached {
    session: Session,
    console: CallId,
    subject: Subject,
    output: String,
}

impl Attached {
    /// Makes a guest that converses, and waits until it is ready.
    fn start(world: &World, channel: usize, config: Config, arch: Arch) -> Result<Self> {
        let mut session = world.session(channel)?;
        let info = session.create(config, &world.guest("echo", arch)?)?;
        let subject = Subject::Name(info.name);
        let (replay, credit, mode) = (0, 48 << 10, ConsoleMode::ReadWrite);
        let console = session.begin(Request::ConsoleAttach { domain: subject.clone(), replay, credit, mode })?;
        let mut guest = Self { session, console, subject, output: String::new() };
        let unpause = Request::Unpause(guest.subject.clone());
        guest.session.ask(unpause)?;
        guest.wait_for("ready")?;
        Ok(guest)
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        let input = proxenos_rpc::Note::Input(proxenos_rpc::Bytes::new(text)?);
        self.session.send(&ToControl::Note(self.console, input))
    }

    /// Waits until the console has shown a text, which it then has not any more.
    fn wait_for(&mut self, text: &str) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.output.contains(text) {
            let message = self.session.next(until)?.with_context(|| format!("no {text:?} in {:?}", self.output))?;
            match message {
                FromControl::Event(_, Event::Output { bytes, .. }) => {
                    self.output.push_str(&String::from_utf8_lossy(&bytes));
                }
                FromControl::Reply(call, reply) if call == self.console => bail!("its console ended: {reply:?}"),
                _ => {}
            }
        }
        self.output.clear();
        Ok(())
    }

    /// Waits for the console's end: the domain's.
    fn end(&mut self) -> Result<ExitReason> {
        match self.session.end(self.console, |_| {})? {
            Ok(Reply::ConsoleEnd(ConsoleEnd::Ended(exit))) => Ok(exit.reason),
            other => bail!("{other:?} at the console's end"),
        }
    }
}

/// Free memory, and how many domains there are.
fn free(session: &mut Session) -> Result<(Kib, u32)> {
    match session.ask(Request::HostInfo)? {
        Reply::Host(info) => Ok((info.memory_free, info.domains)),
        other => bail!("{other:?} to a question for the host"),
    }
}

fn describe(session: &mut Session, subject: &Subject) -> Result<Info> {
    match session.ask(Request::Describe(subject.clone()))? {
        Reply::Domain(info) => Ok(*info),
        other => bail!("{other:?} to a question for a domain"),
    }
}

/// Guests that are talked to, paused, rebooted, crashed and looked into, beside two that flood and corrupt their rings;
/// then twenty more. In the end no frame of theirs is missing.
fn session(world: &World) -> Result<()> {
    let mut control = world.session(0)?;
    // The hypervisor's own tables grow with the most domains that there are at one time, and stay: frames are counted
    // from here on.
    many(world, &mut control)?;
    let before = free(&mut control)?;
    same("domains", before.1, 1)?;
    for (name, line) in [("flood", "flood"), ("corrupt", "corrupt")] {
        let unruly = Config { start: Start::Running, ..config(name, 4, line)? };
        control.create(unruly, &world.guest("echo", Arch::X86_64)?)?;
    }
    for arch in Arch::ALL {
        let name = if arch == Arch::X86_32 { "echo-32" } else { "echo-64" };
        let reboots = Config { restart: Restart::OnReboot, ..config(name, 4, "")? };
        let mut guest = Attached::start(world, 1, reboots, arch)?;
        guest.type_in("how are you\n")?;
        guest.wait_for("you said: how are you")?;
        control.ask(Request::Pause(guest.subject.clone()))?;
        same("its state", describe(&mut control, &guest.subject)?.state, State::Paused)?;
        guest.type_in("still there\n")?;
        control.ask(Request::Unpause(guest.subject.clone()))?;
        guest.wait_for("you said: still there")?;
        guest.type_in("exit 1\n")?;
        guest.wait_for("ready")?;
        same("restarts", describe(&mut control, &guest.subject)?.restarts, 1)?;
        guest.type_in("crash\n")?;
        same("its end", guest.end()?, ExitReason::Crashed)?;
        same("its state", describe(&mut control, &guest.subject)?.state, State::Crashed)?;
        look_into(&mut control, &guest.subject, arch)?;
        control.ask(Request::Destroy(guest.subject.clone()))?;

        let mut guest = Attached::start(world, 2, config(name, 4, "")?, arch)?;
        guest.type_in("exit 5\n")?;
        same("its end", guest.end()?, ExitReason::ShutDown(ShutdownReason(5)))?;
    }
    many(world, &mut control)?;
    for name in ["flood", "corrupt"] {
        let subject = Subject::Name(Name::new(name).map_err(|error| anyhow!("{error}"))?);
        ensure!(!matches!(describe(&mut control, &subject)?.state, State::Crashed), "{name} has crashed");
        control.ask(Request::Destroy(subject))?;
    }
    let after = free(&mut control)?;
    // A number that no domain had before may need a page table for where its descriptor tables go: one for 16 numbers,
    // of which this took 28.
    ensure!(
        after.1 == 1 && after.0.0 + 2 * 4 >= before.0.0,
        "free memory and domains: {after:?}, and {before:?} before"
    );
    control.ask(Request::HostStop).map(drop)
}

/// The registers of a crashed guest, and what lies where it crashed: the instruction that it was.
fn look_into(control: &mut Session, subject: &Subject, arch: Arch) -> Result<()> {
    let Reply::Context(context) = control.ask(Request::Context(subject.clone()))? else { bail!("no context") };
    // `layout.json`: 32 bits: flags 0, registers from 4, eip at 48 of them; 64: from 8, rip at 120.
    let at = if arch == Arch::X86_32 { 4 + 48 } else { 8 + 120 };
    let width = if arch == Arch::X86_32 { 4 } else { 8 };
    let address = context.raw[at..at + width].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let space = proxenos_rpc::AddressSpace::Virtual;
    let read = Request::ReadMemory { domain: subject.clone(), space, address, len: 2 };
    match control.ask(read)? {
        Reply::Bytes(bytes) => same("the instruction", &bytes[..], &[0x0f, 0x0b][..]),
        other => bail!("{other:?} for memory"),
    }
}

/// Twenty guests, listed and ended.
fn many(world: &World, control: &mut Session) -> Result<()> {
    let mut names = Vec::new();
    for number in 0..20 {
        let arch = Arch::ALL[number % 2];
        let info = control.create(config(&format!("many-{number}"), 4, "")?, &world.guest("echo", arch)?)?;
        control.ask(Request::Unpause(Subject::Id(info.id)))?;
        names.push(info.name);
    }
    let Reply::Domains { domains, more, .. } = control.ask(Request::List { from: DomainId(1) })? else {
        bail!("no list");
    };
    same("more than one list", more, None)?;
    let listed: Vec<_> = domains.iter().map(|info| info.name.clone()).filter(|name| names.contains(name)).collect();
    same("the list", listed.len(), names.len())?;
    for name in names {
        control.ask(Request::Destroy(Subject::Name(name)))?;
    }
    Ok(())
}
