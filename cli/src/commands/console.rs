//! `console`, and the console of `run`.

use std::time::Instant;

use proxenos_rpc::{
    Bytes, CHUNK_COST, CallId, ConsoleEnd, ConsoleMode, Deadline, Event, Exit, FromControl, Kib, MAX_CREDIT, Note,
    Reply, Request, Subject,
};

use super::life::ALIVE;
use super::open;
use crate::args::{Cli, ConsoleArgs};
use crate::problem::{Problem, Result, status_of};
use crate::session::{Arrival, Session, answer_by, no_answer};
use crate::terminal::{Terminal, Typed};
use crate::upload::unexpected;
use crate::view;

/// For how long the control domain keeps a console whose client says nothing.
const LEASE: Deadline = Deadline(30_000);

/// Credit is given back in pieces of at least this size.
const PIECE: u32 = MAX_CREDIT / 4;

/// `console`.
pub fn command(cli: &Cli, args: &ConsoleArgs) -> Result<u8> {
    let replay = if args.no_replay { 0 } else { args.replay.0.saturating_mul(1024).try_into().unwrap_or(u32::MAX) };
    let mode = if args.read_only { ConsoleMode::ReadOnly } else { ConsoleMode::ReadWrite };
    let mut console = Console::attach(open(cli)?, &args.domain.domain, replay, mode)?;
    let end = console.converse()?;
    finish(cli, &args.domain.domain, end)
}

/// Says how it ended; the value is the exit status.
pub fn finish(cli: &Cli, domain: &Subject, end: ConsoleEnd) -> Result<u8> {
    match end {
        ConsoleEnd::Detached => {
            eprintln!("left the console of {domain}; `proxenos console {}` comes back", plain(domain));
            Ok(0)
        }
        ConsoleEnd::Ended(exit) => {
            report(cli, &exit);
            Ok(status_of(exit.reason))
        }
    }
}

fn report(cli: &Cli, exit: &Exit) {
    use proxenos_rpc::{ExitReason, ShutdownReason};
    if cli.json {
        // The console has standard output.
        eprintln!("{}", view::exit(exit));
        return;
    }
    match exit.reason {
        ExitReason::ShutDown(ShutdownReason::POWER_OFF) => {}
        ExitReason::ShutDown(reason) => eprintln!("{} has shut down: {}", exit.name, view::reason(reason)),
        ExitReason::Crashed => {
            eprintln!("{} has crashed; if it was kept, `proxenos dump {}` shows it", exit.name, exit.name);
        }
        ExitReason::Destroyed => eprintln!("{} was destroyed", exit.name),
    }
}

fn plain(domain: &Subject) -> String {
    match domain {
        Subject::Id(id) => id.to_string(),
        Subject::Name(name) => name.to_string(),
    }
}

/// An attached console.
pub struct Console {
    session: Session,
    call: CallId,
    mode: ConsoleMode,
    /// Where output is expected to go on.
    next: u64,
    /// How much may be typed.
    input_credit: u32,
    /// What has been read of the credit and not been given back.
    owed: u32,
}

/// So much of the scroll-back at most, when all is wanted.
pub const ALL: Kib = Kib(1 << 20);

impl Console {
    /// Asks for a console and waits until it is there.
    ///
    /// # Errors
    /// It is refused, or nobody answers.
    pub fn attach(mut session: Session, domain: &Subject, replay: u32, mode: ConsoleMode) -> Result<Self> {
        let request = Request::ConsoleAttach { domain: domain.clone(), replay, credit: MAX_CREDIT, mode };
        let call = session.begin(request, LEASE)?;
        let until = answer_by(LEASE);
        loop {
            match session.wait(Some(until), None)? {
                Arrival::Message(FromControl::Event(to, Event::Attached(attached))) if to == call => {
                    let (next, input_credit) = (attached.from, attached.input_credit);
                    return Ok(Self { session, call, mode, next, input_credit, owed: 0 });
                }
                Arrival::Message(FromControl::Reply(to, reply)) if to == call => {
                    let doing = format!("cannot attach to the console of {domain}");
                    return Err(reply.map_or_else(|failure| Problem::refused(doing, &failure), |_| unexpected()));
                }
                Arrival::Message(_) | Arrival::Other => {}
                Arrival::Nothing => return Err(no_answer()),
            }
        }
    }

    /// The session, for calls whose replies nobody waits for.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Passes what is typed and what is written until the domain ends or the user leaves.
    ///
    /// # Errors
    /// The console cannot go on.
    pub fn converse(&mut self) -> Result<ConsoleEnd> {
        let mut terminal = Terminal::take()?;
        let mut is_typing = self.mode == ConsoleMode::ReadWrite || terminal.is_raw();
        let mut said = Instant::now();
        loop {
            if said.elapsed() >= ALIVE {
                self.session.note(self.call, Note::Alive)?;
                said = Instant::now();
            }
            // What cannot be passed on is left where it is.
            let typing = Some(terminal.fd()).filter(|_| is_typing && (self.input_credit > 0 || terminal.is_raw()));
            match self.session.wait(Some(said + ALIVE), typing)? {
                Arrival::Nothing => {}
                Arrival::Message(FromControl::Reply(to, reply)) if to == self.call => {
                    return match reply.map_err(|f| Problem::refused("the console has ended", &f))? {
                        Reply::ConsoleEnd(end) => Ok(end),
                        _ => Err(unexpected()),
                    };
                }
                // To something that was begun beside the console, such as the guest's start.
                Arrival::Message(FromControl::Reply(_, Err(failure))) => {
                    return Err(Problem::refused("the domain cannot be started", &failure));
                }
                Arrival::Message(FromControl::Event(to, event)) if to == self.call => self.event(&terminal, event)?,
                Arrival::Message(_) => {}
                // A signal wakes this too, with nothing to read.
                Arrival::Other if typing_is_ready(&terminal, is_typing) => match terminal.read(self.input_room()) {
                    Typed::Bytes(bytes) => self.input(bytes)?,
                    Typed::Leave(bytes) => {
                        self.input(bytes)?;
                        self.session.note(self.call, Note::Cancel)?;
                        // The reply says that it is over; what is typed until then is nobody's.
                        is_typing = false;
                    }
                    Typed::End => is_typing = false,
                },
                Arrival::Other => {}
            }
        }
    }

    fn input_room(&self) -> usize {
        // Ctrl-] is looked for in what a guest has no room for, too.
        self.input_credit.max(1) as usize
    }

    fn input(&mut self, bytes: Vec<u8>) -> Result<()> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if bytes.is_empty() || self.mode == ConsoleMode::ReadOnly || len > self.input_credit {
            return Ok(());
        }
        self.input_credit -= len;
        match Bytes::new(bytes) {
            Ok(bytes) => self.session.note(self.call, Note::Input(bytes)),
            Err(_) => Ok(()),
        }
    }

    fn event(&mut self, terminal: &Terminal, event: Event) -> Result<()> {
        match event {
            Event::Output { from, bytes } => {
                if from > self.next {
                    terminal.write(format!("\n[{} bytes were lost]\n", from - self.next).as_bytes())?;
                }
                terminal.write(&bytes)?;
                self.next = from + bytes.len() as u64;
                self.owed = self.owed.saturating_add(CHUNK_COST + u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                if self.owed >= PIECE {
                    self.session.note(self.call, Note::Credit(self.owed))?;
                    self.owed = 0;
                }
            }
            Event::InputCredit(more) => self.input_credit = self.input_credit.saturating_add(more),
            Event::Restarted(_) | Event::Attached(_) | Event::Progress { .. } => {}
        }
        Ok(())
    }
}

fn typing_is_ready(terminal: &Terminal, is_typing: bool) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut files = [PollFd::from_borrowed_fd(terminal.fd(), PollFlags::IN)];
    is_typing && poll(&mut files, Some(&now)).is_ok_and(|count| count > 0)
}
