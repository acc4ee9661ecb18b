//! A session with the control domain over one of a host's channels.
//!
//! Promises: a channel is this process's alone while the session lives (a lock on a file beside the socket, which the
//! system takes back however we end); nothing that was meant for another client is ever read as an answer; nothing
//! waits for longer than it was told to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use proxenos_rpc::{
    Call, CallId, Deadline, Decoder, Event, Failure, FromControl, Hello, Note, Reply, Request, ToControl, VERSION,
    Welcome, encode,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};

use crate::host::Place;
use crate::problem::{Problem, Result, Status};

/// How much longer than the deadline of a call to wait for its answer.
const GRACE: Duration = Duration::from_secs(2);

/// How long a write may take: the control domain reads whenever it lives.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How often to look again for a free channel.
const RETRY: Duration = Duration::from_millis(50);

/// A session.
pub struct Session {
    stream: UnixStream,
    decoder: Decoder,
    arrived: VecDeque<FromControl>,
    last_call: u32,
    /// Keeps other clients off the channel.
    _lock: File,
}

/// What a wait ended with.
pub enum Arrival {
    /// A message.
    Message(FromControl),
    /// The other file that was watched can be read.
    Other,
    /// The time has passed.
    Nothing,
}

impl Session {
    /// Takes a free channel of a host and says hello. Waits for both for as long as `patience`.
    ///
    /// # Errors
    /// The host does not run, all channels are taken, nobody answers, or the protocols differ.
    pub fn open(place: &Place, patience: Duration) -> Result<Self> {
        let until = Instant::now() + patience;
        loop {
            let mut found = 0;
            for channel in 0..Place::MAX_CHANNELS {
                let socket = place.channel(channel);
                if !socket.exists() {
                    break;
                }
                found += 1;
                if let Some(lock) = try_lock(&place.channel_lock(channel))? {
                    let stream = UnixStream::connect(&socket).map_err(|error| match error.kind() {
                        ErrorKind::ConnectionRefused | ErrorKind::NotFound => place.is_not_running(),
                        _ => Problem::system(format!("cannot connect to {}", socket.display()), error),
                    })?;
                    return Self::greet(stream, lock, place, until);
                }
            }
            if found == 0 {
                return Err(place.is_not_running());
            }
            if Instant::now() >= until {
                return Err(Problem::new(Status::TryAgain, format!("all {found} channels of {place} are in use"))
                    .because("each attached console and each command that waits holds one")
                    .hint("end one of them (Ctrl-] leaves a console), or start the host with more --channels"));
            }
            std::thread::sleep(RETRY);
        }
    }

    fn greet(stream: UnixStream, lock: File, place: &Place, until: Instant) -> Result<Self> {
        let io = |error| Problem::system("cannot set up the channel", error);
        stream.set_nonblocking(false).map_err(io)?;
        stream.set_write_timeout(Some(WRITE_PATIENCE)).map_err(io)?;
        let (decoder, arrived) = (Decoder::new(), VecDeque::new());
        let mut session = Self { stream, decoder, arrived, last_call: 0, _lock: lock };
        let nonce = nonce();
        session.write(&[0])?;
        session.send(&ToControl::Hello(Hello { version: VERSION, nonce }))?;
        loop {
            match session.wait(Some(until), None)? {
                Arrival::Message(FromControl::Welcome(Welcome { version, nonce: answer })) if answer == nonce => {
                    return if version.major == VERSION.major {
                        Ok(session)
                    } else {
                        let (theirs, ours) = (version.major, VERSION.major);
                        let problem = Problem::new(Status::Protocol, format!("{place} cannot be spoken to"));
                        Err(problem
                            .because(format!("its control domain speaks version {theirs} of the protocol, we {ours}"))
                            .hint("`proxenos host stop`, then `proxenos host start` with images of this build"))
                    };
                }
                // Meant for whoever had the channel before.
                Arrival::Message(_) | Arrival::Other => {}
                Arrival::Nothing => {
                    return Err(Problem::new(
                        Status::TryAgain,
                        format!("the control domain of {place} does not answer"),
                    )
                    .because("it may still be starting, or be stuck")
                    .hint(format!("{}; or `proxenos host stop --force`", place.look_at_the_log())));
                }
            }
        }
    }

    /// Makes a call and waits for its reply. Events of the call go to `events`.
    ///
    /// # Errors
    /// What the control domain refused (the inner error), or that it could not be asked or did not answer.
    pub fn call_with(
        &mut self,
        request: Request,
        deadline: Deadline,
        mut events: impl FnMut(Event),
    ) -> Result<std::result::Result<Reply, Failure>> {
        let id = self.begin(request, deadline)?;
        let mut until = answer_by(deadline);
        loop {
            match self.wait(Some(until), None)? {
                Arrival::Message(FromControl::Reply(to, reply)) if to == id => return Ok(reply),
                Arrival::Message(FromControl::Event(to, event)) if to == id => {
                    // It lives, and is told that we do.
                    self.note(id, Note::Alive)?;
                    until = answer_by(deadline);
                    events(event);
                }
                Arrival::Message(_) | Arrival::Other => {}
                Arrival::Nothing => return Err(no_answer()),
            }
        }
    }

    /// Makes a call; `doing` says what failed if it is refused.
    ///
    /// # Errors
    /// As [`call_with`](Self::call_with), a refusal included.
    pub fn call(&mut self, doing: &str, request: Request, deadline: Deadline) -> Result<Reply> {
        self.call_with(request, deadline, |_| {})?.map_err(|failure| Problem::refused(doing, &failure))
    }

    /// Sends a call whose reply is awaited elsewhere.
    ///
    /// # Errors
    /// The channel is broken.
    pub fn begin(&mut self, request: Request, deadline: Deadline) -> Result<CallId> {
        self.last_call += 1;
        let id = CallId(self.last_call);
        self.send(&ToControl::Call(Call { id, deadline, request }))?;
        Ok(id)
    }

    /// Says something to an open call.
    ///
    /// # Errors
    /// The channel is broken.
    pub fn note(&mut self, id: CallId, note: Note) -> Result<()> {
        self.send(&ToControl::Note(id, note))
    }

    fn send(&mut self, message: &ToControl) -> Result<()> {
        let frame = encode(message)
            .map_err(|error| Problem::new(Status::Internal, "a message cannot be sent").because(error))?;
        self.write(&frame)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => no_answer(),
            _ => hung_up(),
        })
    }

    /// Waits for a message, for `other` to become readable, or for a moment to pass. Messages first.
    ///
    /// # Errors
    /// The host has gone.
    pub fn wait(&mut self, until: Option<Instant>, other: Option<BorrowedFd<'_>>) -> Result<Arrival> {
        loop {
            if let Some(message) = self.arrived.pop_front() {
                return Ok(Arrival::Message(message));
            }
            let timeout = match until {
                None => None,
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Arrival::Nothing);
                    }
                    Some(rustix::event::Timespec {
                        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                        tv_nsec: i64::from(left.subsec_nanos()),
                    })
                }
            };
            let mut files = vec![PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN)];
            files.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut files, timeout.as_ref()) {
                // A signal that is somebody's business, such as a window's new size.
                Err(rustix::io::Errno::INTR) => return Ok(Arrival::Other),
                Err(error) => return Err(Problem::system("cannot wait for the control domain", error)),
                Ok(_) => {}
            }
            let (ours, others) = (files[0].revents(), files.get(1).map(PollFd::revents));
            if !ours.is_empty() {
                self.read()?;
            } else if others.is_some_and(|events| !events.is_empty()) {
                return Ok(Arrival::Other);
            }
        }
    }

    /// Reads what there is, at most one buffer; frames that are none are passed over.
    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 32 * 1024];
        let mut input = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(hung_up()),
            Ok(len) => &buffer[..len],
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => return Ok(()),
            Err(_) => return Err(hung_up()),
        };
        while let Some(result) = self.decoder.next::<FromControl>(&mut input) {
            self.arrived.extend(result.ok());
        }
        Ok(())
    }
}

/// When to give up waiting for the reply to a call that is made now.
pub fn answer_by(deadline: Deadline) -> Instant {
    Instant::now() + Duration::from_millis(deadline.min(Deadline::MAX).0.into()) + GRACE
}

/// The control domain let a deadline pass.
pub fn no_answer() -> Problem {
    Problem::new(Status::TryAgain, "the control domain did not answer in time")
        .because("it may be busy, or stuck")
        .hint("give it longer with --timeout; `proxenos host status` shows where its log is")
}

/// The host went away.
pub fn hung_up() -> Problem {
    Problem::new(Status::Unavailable, "the host went away in the middle of the conversation")
        .because("its machine has ended, or was stopped")
        .hint("`proxenos host status` shows where its log is; `proxenos host start` starts it again")
}

/// The lock file's lock, unless another process has it.
fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Problem::system(format!("cannot open {}", path.display()), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Problem::system(format!("cannot lock {}", path.display()), error)),
    }
}

/// A number that no client has sent lately: the standard library's hash keys are random for each of these.
fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
