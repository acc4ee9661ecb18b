//! What went wrong, in a shape that helps: what happened, why, and what to try.
//!
//! # Exit statuses
//!
//! Below 64 a status is a guest's (`run`, `console` and waits: the reason it shut down with, 0 being power-off). Ours
//! are above, most of them those of `sysexits.h`; the table is [`Status`], and `proxenos --help` prints it.

use std::fmt;
use std::process::ExitCode;

use proxenos_rpc::{Cause, ExitReason, Failure};

/// An exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The command line or a configuration makes no sense.
    Usage = 64,
    /// A file is not what it should be.
    Data = 65,
    /// No such domain, host or file.
    Missing = 66,
    /// The host does not run, or could not be started.
    Unavailable = 69,
    /// A mistake of ours, or of the control domain's.
    Internal = 70,
    /// The system refused something.
    System = 71,
    /// Busy, or no answer in time: it may work later.
    TryAgain = 75,
    /// The other side speaks another protocol.
    Protocol = 76,
    /// The control domain or the hypervisor refused.
    Refused = 77,
    /// The guest crashed.
    Crashed = 100,
    /// The guest was destroyed by somebody else.
    Destroyed = 101,
    /// The guest gave a reason of 64 or more.
    OtherReason = 102,
}

/// The table, for `--help`.
pub const STATUSES: &str = "Exit status:
  0    done; of a guest: it powered off
  1    of a guest: it asked for a reboot
  2    of a guest: it suspended; up to 63: its own reason
  64   the command line or a configuration makes no sense
  65   a file is not what it should be
  66   no such domain, host or file
  69   the host does not run, or could not be started
  70   a mistake in proxenos or the control domain
  71   the system refused something
  75   busy, or no answer in time: try again
  76   the control domain speaks another protocol
  77   the control domain or the hypervisor refused
  100  the guest crashed
  101  the guest was destroyed
  102  the guest gave a reason of 64 or more";

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// The status that stands for a guest's end.
pub fn status_of(reason: ExitReason) -> u8 {
    match reason {
        ExitReason::ShutDown(reason) if reason.0 < 64 => reason.0,
        ExitReason::ShutDown(_) => Status::OtherReason as u8,
        ExitReason::Crashed => Status::Crashed as u8,
        ExitReason::Destroyed => Status::Destroyed as u8,
    }
}

/// Something that went wrong.
#[derive(Debug)]
pub struct Problem {
    /// What to exit with.
    pub status: Status,
    /// What happened.
    pub what: String,
    /// Why, as far as that is known.
    pub why: Option<String>,
    /// What to do about it: a command line, or a sentence.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem with neither cause nor advice yet.
    pub fn new(status: Status, what: impl Into<String>) -> Self {
        Self { status, what: what.into(), why: None, hint: None }
    }

    /// Why it happened.
    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why = Some(why.to_string());
        self
    }

    /// What to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The system refused something.
    pub fn system(what: impl Into<String>, error: impl fmt::Display) -> Self {
        Self::new(Status::System, what).because(error)
    }

    /// The control domain refused something.
    pub fn refused(what: impl Into<String>, failure: &Failure) -> Self {
        let (status, hint) = match failure.cause {
            Cause::NoSuchDomain => (Status::Missing, Some("`proxenos list` shows the domains there are")),
            Cause::NameTaken => {
                (Status::Refused, Some("give it another name (--name), or `proxenos destroy` the other"))
            }
            Cause::WrongState => (Status::Refused, Some("`proxenos list` shows its state")),
            Cause::Invalid | Cause::BadAddress => (Status::Refused, None),
            Cause::BadImage => {
                (Status::Data, Some("a kernel is an ELF file with a section __xen_guest, for x86_32 or x86_64"))
            }
            Cause::BadUpload => (Status::Internal, Some("try it again")),
            Cause::OutOfMemory => {
                (Status::Refused, Some("`proxenos info` shows what is free; `proxenos host start --memory` takes more"))
            }
            Cause::TooManyDomains => (Status::Refused, Some("`proxenos destroy` some")),
            Cause::OtherScheduler => (
                Status::Refused,
                Some("`proxenos sched` shows the one that runs; `proxenos host start --sched` chooses"),
            ),
            Cause::NoImage => (Status::Refused, Some("create it anew from its files: `proxenos create`")),
            Cause::Busy => (Status::TryAgain, Some("try it again")),
            Cause::GuestSilent => (
                Status::TryAgain,
                Some("the guest may take no notice of such requests; `proxenos destroy` asks nobody"),
            ),
            Cause::Deadline => (Status::TryAgain, Some("give it longer with --timeout")),
            Cause::Cancelled => (Status::TryAgain, None),
            Cause::NotSupported => (
                Status::Protocol,
                Some("if they are of different builds: `proxenos host stop`, then `proxenos host start`"),
            ),
            Cause::Hypervisor(_) => (Status::Refused, Some("`proxenos dmesg` may say more")),
            Cause::Internal => (Status::Internal, Some("`proxenos dmesg --control` may say more")),
        };
        let why = match failure.cause {
            Cause::Hypervisor(errno) => format!("{failure} (error {errno})"),
            _ => failure.to_string(),
        };
        Self { status, what: what.into(), why: Some(why), hint: hint.map(str::to_owned) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  try: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// What everything here results in.
pub type Result<T> = std::result::Result<T, Problem>;
