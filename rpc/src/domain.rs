//! Domains: how they are called, and what is known of one.

use alloc::string::String;
use core::fmt;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::{OnCrash, Restart};
use crate::{Kib, MAX_NAME, MAX_TEXT, Nanos, Text};

/// The hypervisor's number of a domain (`domid_t`). Numbers are given again after their domain has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomainId(pub u16);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A domain's name: 1 to [`MAX_NAME`] ASCII letters, digits, `-`, `_`, `.` and `+`, of which the first is a letter, so
/// that no name looks like a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

/// Why a text is no [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    /// There is none.
    Empty,
    /// It is longer than [`MAX_NAME`].
    TooLong,
    /// It does not begin with a letter.
    First,
    /// This is in it.
    Character(char),
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong => write!(f, "it is longer than {MAX_NAME} characters"),
            Self::First => f.write_str("it does not begin with a letter"),
            Self::Character(c) => {
                write!(f, "{c:?} is in it, which is none of letters (without accents), digits, '-', '_', '.' and '+'")
            }
        }
    }
}

impl core::error::Error for BadName {}

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn new(name: &str) -> Result<Self, BadName> {
        let first = name.chars().next().ok_or(BadName::Empty)?;
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if let Some(c) = name.chars().find(|c| !is_fine(*c)) {
            return Err(BadName::Character(c));
        }
        if !first.is_ascii_alphabetic() {
            return Err(BadName::First);
        }
        if name.len() > MAX_NAME { Err(BadName::TooLong) } else { Ok(Self(name.into())) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(<&str>::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Which domain a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// By number.
    Id(DomainId),
    /// By name.
    Name(Name),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "domain {id}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

/// A guest's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// 32 bits, two-level page tables.
    X86_32,
    /// 64 bits.
    X86_64,
}

/// The reason that a guest gave when it shut down (`SHUTDOWN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShutdownReason(pub u8);

impl ShutdownReason {
    /// Done.
    pub const POWER_OFF: Self = Self(0);
    /// Wants to be started again.
    pub const REBOOT: Self = Self(1);
    /// Has written its suspend record.
    pub const SUSPEND: Self = Self(2);
}

/// What a domain is doing (`DOMFLAGS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is being built.
    Building,
    /// It runs at this moment.
    Running,
    /// It could run, and another does.
    Ready,
    /// It waits for an event.
    Blocked,
    /// It was paused.
    Paused,
    /// It has shut itself down, and its memory is still there.
    ShutDown(ShutdownReason),
    /// It has crashed, and is kept as it was.
    Crashed,
    /// It is being destroyed.
    Dying,
}

/// All that there is to know of a domain at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its number.
    pub id: DomainId,
    /// Its name.
    pub name: Name,
    /// Its architecture.
    pub arch: Arch,
    /// What it does.
    pub state: State,
    /// Memory that it has (`tot_pages`).
    pub memory: Kib,
    /// Memory that it may have (`max_pages`).
    pub memory_limit: Kib,
    /// The physical CPU that its virtual CPU is on.
    pub cpu: u32,
    /// Whether it stays there.
    pub pinned: bool,
    /// How long it has run.
    pub cpu_time: Nanos,
    /// Machine frame number of its shared page.
    pub shared_info_frame: u64,
    /// When its making began.
    pub created_at: Nanos,
    /// How often it was started again.
    pub restarts: u32,
    /// What to do when it ends.
    pub restart: Restart,
    /// What to do when it crashes.
    pub on_crash: OnCrash,
    /// Bytes it has written to its console.
    pub console_written: u64,
    /// How many clients are attached to its console.
    pub console_clients: u32,
    /// What its kernel was called by whoever made it.
    pub image: Text<MAX_TEXT>,
}

/// How a domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// It shut itself down.
    ShutDown(ShutdownReason),
    /// It crashed.
    Crashed,
    /// It was destroyed by a request.
    Destroyed,
}

/// The end of a domain. The control domain remembers the last 64 by number and name, so that nobody has to be there
/// when it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Which domain it was.
    pub id: DomainId,
    /// Its name.
    pub name: Name,
    /// Why.
    pub reason: ExitReason,
    /// When.
    pub at: Nanos,
    /// How long it had run by then.
    pub cpu_time: Nanos,
    /// Whether it is started again, or was.
    pub restarted: bool,
}
