//! Format and lints: rustfmt and clippy on the whole workspace, warnings denied.

use std::process::Command;

use anyhow::Result;

use crate::compile::{self, Kind, Profile};
use crate::toolchain::Toolchain;
use crate::workspace::{HYPERVISOR, Workspace};
use crate::{apt, cargo, console};

/// One thing to check.
pub struct Check {
    /// Its name among the tests.
    pub name: String,
    /// The command that fails when something is wrong.
    pub command: Command,
}

/// What is checked, or why not.
pub enum Planned {
    /// This.
    Check(Check),
    /// The named check cannot be made here, for that reason.
    Skip(String, String),
}

/// Format, and the lints of what runs on the host.
pub fn host(workspace: &Workspace) -> Vec<Planned> {
    let mut planned = Vec::new();
    planned.push(if need_component("fmt", ["rustfmt-web", "rustfmt"], "to check the format") {
        let mut command = cargo::host();
        command.current_dir(workspace.root()).args(["fmt", "--all", "--check"]);
        Planned::Check(Check { name: "format".to_owned(), command })
    } else {
        Planned::Skip("format".to_owned(), "no rustfmt: type `rustup component add rustfmt`".to_owned())
    });
    planned.push(if need_component("clippy", ["rust-web-clippy", "rust-clippy"], "lints") {
        let mut command = cargo::host();
        command.current_dir(workspace.root()).args(["clippy", "--quiet", "--all-targets", "--", "-Dwarnings"]);
        Planned::Check(Check { name: "clippy/host".to_owned(), command })
    } else {
        Planned::Skip("clippy/host".to_owned(), "no clippy: type `rustup component add clippy`".to_owned())
    });
    planned.push(Planned::Check(fuzz_target(workspace)));
    planned
}

/// The fuzz target is in no workspace of ours, and takes a nightly toolchain to run. That it compiles can be seen
/// without; what it calls is run by core's tests.
fn fuzz_target(workspace: &Workspace) -> Check {
    let mut command = cargo::host();
    let (manifest, target) = (workspace.root().join("fuzz/Cargo.toml"), workspace.root().join("target/fuzz-check"));
    command.args(["check", "--quiet", "--locked", "--no-default-features", "--manifest-path"]).arg(manifest);
    command.arg("--target-dir").arg(target);
    Check { name: "fuzz/check".to_owned(), command }
}

/// The lints of the bare-metal packages.
pub fn bare_metal(workspace: &Workspace, toolchain: &Toolchain) -> Result<Vec<Planned>> {
    let has_clippy = toolchain.need_clippy();
    let guests = workspace.guests()?;
    let mut planned = Vec::new();
    for kind in Kind::ALL {
        let packages: Vec<&str> = match kind {
            Kind::Hypervisor => vec![HYPERVISOR],
            Kind::Guest(arch) => {
                guests.iter().filter(|g| g.meta.arch.contains(&arch)).map(|g| g.name.as_str()).collect()
            }
        };
        let name = format!("clippy/{}", kind.dir());
        if packages.is_empty() {
            continue;
        }
        if !has_clippy {
            planned.push(Planned::Skip(name, "the bare-metal toolchain has no clippy".to_owned()));
            continue;
        }
        let mut command = compile::cargo_command("clippy", toolchain, workspace, kind, Profile::Release);
        command.arg("--quiet");
        for package in packages {
            command.args(["-p", package]);
        }
        command.args(["--", "-Dwarnings"]);
        planned.push(Planned::Check(Check { name, command }));
    }
    Ok(planned)
}

/// Whether the host's cargo has a subcommand; Debian's are packages of their own, which are installed if they can be.
fn need_component(subcommand: &str, packages: [&str; 2], why: &str) -> bool {
    let has = || {
        let mut command = cargo::host();
        command.args([subcommand, "--version"]);
        command.output().is_ok_and(|output| output.status.success())
    };
    if has() {
        return true;
    }
    if cargo::host_cargo().starts_with("/usr/bin") && apt::available() {
        let package = packages.into_iter().find(|package| apt::knows(package));
        if let Some(Err(error)) = package.map(|package| apt::install(&[package], why)) {
            console::note(&format!("{error:#}"));
        }
    }
    has()
}

/// `cargo xtask lint`; the value is the exit status.
pub fn command() -> Result<u8> {
    let workspace = Workspace::load()?;
    let toolchain = Toolchain::bare_metal(&workspace)?;
    let mut status = 0;
    for planned in host(&workspace).into_iter().chain(bare_metal(&workspace, &toolchain)?) {
        match planned {
            Planned::Check(mut check) => {
                console::step(&check.name);
                if !check.command.status()?.success() {
                    status = 1;
                }
            }
            Planned::Skip(name, why) => console::note(&format!("{name}: {why}")),
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// As wide as code may be (`rustfmt.toml`).
    const WIDTH: usize = 120;

    /// All Rust files of ours below a directory.
    fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    /// rustfmt does not see to comments.
    #[test]
    fn comments_are_no_wider_than_code() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut files);
        assert!(files.len() > 300, "{} files", files.len());
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let comment = line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!', ' ']));
                // A row of a table is one line.
                let is_prose = comment.is_some_and(|comment| !comment.starts_with('|'));
                assert!(!is_prose || line.chars().count() <= WIDTH, "{}:{}: {line}", file.display(), number + 1);
            }
        }
    }
}
