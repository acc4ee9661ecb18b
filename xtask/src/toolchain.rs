//! Which cargo and rustc build for bare metal, and with which linker.
//!
//! `core` and `alloc` are built from source, so a toolchain qualifies when its sysroot holds them. In this order:
//! 1. the active toolchain, if it has the sources (`rust-src`);
//! 2. Debian's, if its sources are installed;
//! 3. the active one of rustup, after `rustup component add rust-src`; a failure is remembered below the target
//!    directory, and not tried again until `cargo xtask clean`;
//! 4. Debian's, after installing it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{apt, cargo, console, process};

/// How long rustup may take to fetch the sources (about 3 MB) before it is given up.
const RUSTUP_LIMIT: Duration = Duration::from_secs(120);

/// The oldest rustc that builds this workspace, as in `rust-version`.
const OLDEST: (u32, u32) = (1, 88);

/// A toolchain that can build for bare metal.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The cargo to call.
    pub cargo: PathBuf,
    /// The rustc it must use.
    pub rustc: PathBuf,
    /// The linker, by name or path.
    pub linker: &'static str,
}

impl Toolchain {
    /// Chooses a toolchain, installing what is missing.
    pub fn bare_metal(workspace: &Workspace) -> Result<Self> {
        let active = Candidate::active();
        if let Some(found) = active.as_ref().filter(|c| c.has_sources()).and_then(Candidate::complete) {
            return Ok(found);
        }
        let debian = Candidate::debian();
        if let Some(found) = debian.as_ref().filter(|c| c.has_sources()).and_then(Candidate::complete) {
            return Ok(found);
        }
        if let Some(found) = active.as_ref().and_then(|c| c.with_rustup_sources(workspace)) {
            return Ok(found);
        }
        install_debian().context(
            "building for bare metal needs the sources of Rust's core library: `rustup component add rust-src` \
             brings them, or on Debian 12 `apt-get install rustc-web cargo-web rust-web-src lld`",
        )?;
        Candidate::debian()
            .filter(Candidate::has_sources)
            .and_then(|c| c.complete())
            .context("Debian's toolchain is installed but has no sources or is too old")
    }

    /// What its compiler says of itself: `rustc --version`.
    pub fn compiler(&self) -> Result<String> {
        let rustc = self.rustc.display();
        let output =
            Command::new(&self.rustc).arg("--version").output().with_context(|| format!("cannot run {rustc}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whether it has clippy; Debian's is a package of its own, which is installed if it can be.
    pub fn need_clippy(&self) -> bool {
        let beside = self.rustc.with_file_name("clippy-driver");
        if beside.exists() {
            return true;
        }
        if self.rustc.starts_with("/usr/bin") && apt::available() {
            let package = if apt::knows("rust-web-clippy") { "rust-web-clippy" } else { "rust-clippy" };
            if let Err(error) = apt::install(&[package], "lints for the bare-metal packages") {
                console::note(&format!("{error:#}"));
            }
        }
        beside.exists()
    }
}

/// A cargo and the rustc that belongs to it.
#[derive(Debug)]
struct Candidate {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
}

impl Candidate {
    /// The toolchain that runs this tool.
    fn active() -> Option<Self> {
        let cargo = cargo::host_cargo();
        let beside = cargo.with_file_name("rustc");
        let rustc = if cargo.is_absolute() && beside.exists() { beside } else { which::which("rustc").ok()? };
        Self::new(cargo, rustc)
    }

    fn debian() -> Option<Self> {
        Self::new("/usr/bin/cargo".into(), "/usr/bin/rustc".into())
    }

    /// None if the files are missing or rustc is too old.
    fn new(cargo: PathBuf, rustc: PathBuf) -> Option<Self> {
        let say = |args: &[&str]| -> Option<String> {
            let mut command = Command::new(&rustc);
            cargo::scrub(&mut command);
            let output = command.args(args).stderr(Stdio::null()).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        if version_of(&say(&["--version"])?)? < OLDEST || !cargo.exists() {
            return None;
        }
        let sysroot = say(&["--print", "sysroot"])?.into();
        Some(Self { cargo, rustc, sysroot })
    }

    fn has_sources(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    }

    /// With a linker: rustup's toolchains bring theirs, for Debian's there is a package.
    fn complete(&self) -> Option<Toolchain> {
        let toolchain = |linker| Some(Toolchain { cargo: self.cargo.clone(), rustc: self.rustc.clone(), linker });
        if own_linker(&self.sysroot) {
            return toolchain("rust-lld");
        }
        match apt::need_program("ld.lld", &["lld"], "linking for bare metal") {
            Ok(()) => toolchain("ld.lld"),
            Err(error) => {
                console::note(&format!("{error:#}"));
                None
            }
        }
    }

    /// Has rustup fetch the sources, if this is one of rustup's toolchains and that did not fail before.
    fn with_rustup_sources(&self, workspace: &Workspace) -> Option<Toolchain> {
        let name = rustup_name(&self.sysroot)?;
        let rustup = which::which("rustup").ok()?;
        let memory = workspace.target_subdir("xtask-state").ok()?.join("rustup-failed");
        if std::fs::read_to_string(&memory).is_ok_and(|failed| failed == name) {
            return None;
        }
        console::step(&format!("rustup component add rust-src ({name}: the sources of core, for bare metal)"));
        let mut command = Command::new(rustup);
        cargo::scrub(&mut command);
        command.args(["component", "add", "rust-src", "--toolchain", &name]).stdin(Stdio::null());
        let fetched = process::succeeds_within(&mut command, RUSTUP_LIMIT) && self.has_sources();
        if !fetched {
            console::note("rustup could not fetch it; trying Debian's toolchain");
            // Only a convenience: without the file the next run merely asks rustup again.
            drop(std::fs::write(&memory, &name));
            return None;
        }
        self.complete()
    }
}

/// Whether the sysroot has its own `rust-lld`.
fn own_linker(sysroot: &Path) -> bool {
    std::fs::read_dir(sysroot.join("lib/rustlib"))
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("bin/rust-lld").exists()))
}

/// The toolchain's name if it is one of rustup's: those live in `toolchains/NAME`.
fn rustup_name(sysroot: &Path) -> Option<String> {
    let parent = sysroot.parent()?;
    (parent.file_name()? == "toolchains").then(|| sysroot.file_name())?.map(|n| n.to_string_lossy().into_owned())
}

/// Debian 12 keeps a current Rust in packages named `-web`; later releases have it under the plain names.
fn install_debian() -> Result<()> {
    if !apt::available() {
        bail!("this system has no apt-get");
    }
    apt::refresh_if_stale()?;
    let packages = if apt::knows("rust-web-src") {
        ["rustc-web", "cargo-web", "rust-web-src", "lld"]
    } else {
        ["rustc", "cargo", "rust-src", "lld"]
    };
    apt::install(&packages, "a Rust that can build core for bare metal")
}

/// (major, minor) of `rustc 1.95.0 (...)`.
fn version_of(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version_of("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some((1, 96)));
        assert_eq!(version_of("rustc 1.98.0-nightly (0123 2026-07-01)"), Some((1, 98)));
        assert_eq!(version_of("gcc"), None);
    }

    #[test]
    fn rustup_toolchains_are_told_by_their_place() {
        assert_eq!(rustup_name(Path::new("/home/u/.rustup/toolchains/stable-x")).as_deref(), Some("stable-x"));
        assert_eq!(rustup_name(Path::new("/usr")), None);
    }
}
