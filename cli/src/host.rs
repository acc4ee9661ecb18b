//! Hosts: machines of this user's on this computer, each QEMU with the hypervisor in it.
//!
//! A host is a directory, by its name, in `$XDG_RUNTIME_DIR/proxenos` (else in one of this user's own in the directory
//! for temporary files). In it are the sockets of its channels, QEMU's control socket, the logs, and `host.json`,
//! which says how it was started and which process it is. No process but QEMU's stays.
//!
//! Promises: no process is signalled but the one that `host.json` names, after a look whether it is still that; a
//! directory whose QEMU has gone counts as no host, and is emptied by the next start; `start` and `stop` of one host
//! exclude each other (a lock on a file beside the directory).

mod process;
mod qemu;
mod qmp;
mod start;
mod stop;

pub use qemu::{Accel, Scheduler};
pub use start::{Plan, start};
pub use stop::{Force, stop};

use std::fmt;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::problem::{Problem, Result, Status};

/// What was written down when a host was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// QEMU's process.
    pub pid: u32,
    /// When that began, in the kernel's ticks since boot: with the number it is a process's identity.
    pub began: u64,
    /// What runs the CPU.
    pub accel: String,
    /// CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Channels.
    pub channels: u32,
    /// The hypervisor's image.
    pub hypervisor: PathBuf,
    /// The control domain's.
    pub control: PathBuf,
    /// When it was started, in seconds of Unix time.
    pub started: u64,
}

/// Where a host is, or would be.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    dir: PathBuf,
}

/// Whether a host runs.
#[derive(Clone, Debug)]
pub enum Life {
    /// Its QEMU is there.
    Running(Record),
    /// It left files, and no process.
    Dead(Option<Record>),
    /// There is nothing.
    Absent,
}

/// A socket's path may have so many bytes on Linux.
const SOCKET_PATH: usize = 107;

impl Place {
    /// More channels than this no host has: each takes a slot of the PCI bus.
    pub const MAX_CHANNELS: u32 = 24;

    /// The place of a host.
    ///
    /// # Errors
    /// The name cannot be one of a directory here, or the directory above is not this user's alone.
    pub fn of(name: &str) -> Result<Self> {
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let first = name.chars().next();
        if name.len() > 32 || !first.is_some_and(|c| c.is_ascii_alphanumeric()) || !name.chars().all(is_fine) {
            return Err(Problem::new(Status::Usage, format!("{name:?} is no name for a host")).because(
                "such a name is at most 32 letters, digits, '-', '_' and '.', and begins with a letter or digit",
            ));
        }
        let dir = root()?.join(name);
        let place = Self { name: name.to_owned(), dir };
        let longest = place.channel(Self::MAX_CHANNELS);
        if longest.as_os_str().len() > SOCKET_PATH {
            return Err(Problem::new(Status::System, format!("{} is too long for a socket", longest.display()))
                .hint("set XDG_RUNTIME_DIR to a shorter directory of your own"));
        }
        Ok(place)
    }

    /// All places where there is something, by name.
    ///
    /// # Errors
    /// The directory above cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let root = root()?;
        let unread = |error| Problem::system(format!("cannot read {}", root.display()), error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&root).map_err(unread)? {
            let entry = entry.map_err(unread)?;
            if entry.path().is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names.iter().filter_map(|name| Self::of(name).ok()).collect())
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The socket of a channel.
    pub fn channel(&self, number: u32) -> PathBuf {
        self.dir.join(format!("channel-{number}.sock"))
    }

    /// The file whose lock makes that channel one client's.
    pub fn channel_lock(&self, number: u32) -> PathBuf {
        self.dir.join(format!("channel-{number}.lock"))
    }

    /// QEMU's control socket.
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// The serial console: hypervisor and control domain.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    fn record_file(&self) -> PathBuf {
        self.dir.join("host.json")
    }

    /// Whether it runs.
    pub fn life(&self) -> Life {
        let record = std::fs::read(self.record_file()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match record {
            Some(record) if process::lives(&record) => Life::Running(record),
            Some(record) => Life::Dead(Some(record)),
            None if self.dir.exists() => Life::Dead(None),
            None => Life::Absent,
        }
    }

    /// That it does not run, and what to do.
    pub fn is_not_running(&self) -> Problem {
        let start = if self.name == DEFAULT {
            "`proxenos host start`".to_owned()
        } else {
            format!("`proxenos --host {} host start`", self.name)
        };
        let problem = Problem::new(Status::Unavailable, format!("{self} does not run"));
        match self.life() {
            Life::Absent => problem.hint(start),
            Life::Dead(_) => {
                problem.because("its machine has ended").hint(format!("{start}; {}", self.look_at_the_log()))
            }
            Life::Running(_) => problem
                .because("its machine is there without its channels")
                .hint(format!("`proxenos --host {} host stop --force`, then {start}", self.name)),
        }
    }

    /// Advice to look at the log.
    pub fn look_at_the_log(&self) -> String {
        format!("look at {}", self.console_log().display())
    }

    /// Keeps other starts and stops of this host away until the file is dropped; waits for them first.
    fn lock(&self) -> Result<File> {
        let path = self.dir.with_extension("lock");
        let unlocked = |error: std::io::Error| Problem::system(format!("cannot lock {}", path.display()), error);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(unlocked)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| unlocked(error.into()))?;
        Ok(file)
    }
}

/// The host that is meant when none is named.
pub const DEFAULT: &str = "default";

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}", self.name)
    }
}

/// The directory of all hosts, made if it is missing; nobody else may write there, since what lies in it is believed.
fn root() -> Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let root = match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => Path::new(&dir).join("proxenos"),
        None => std::env::temp_dir().join(format!("proxenos-{uid}")),
    };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root);
    made.map_err(|error| {
        Problem::system(format!("cannot make {}", root.display()), error)
            .hint("set XDG_RUNTIME_DIR to a directory of your own")
    })?;
    let meta = std::fs::symlink_metadata(&root)
        .map_err(|error| Problem::system(format!("cannot look at {}", root.display()), error))?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        return Err(Problem::new(Status::System, format!("{} cannot be trusted", root.display()))
            .because("it is not a directory that you alone may write to")
            .hint("set XDG_RUNTIME_DIR to a directory of your own"));
    }
    Ok(root)
}
