//! Whether KVM really works here.
//!
//! `/dev/kvm` may exist and yet be forbidden, or broken inside another virtual machine: some can run the hypervisor and
//! fail at a guest's first `int` from ring 1 or `syscall`. So the hypervisor is booted under KVM with the hello guest
//! of the same architecture; when that one has said goodbye, KVM has run all that matters. What was found is remembered
//! below the target directory for this boot of the host and this build of the hypervisor.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::console::{self, Capture};
use crate::guest_meta::{Arch, Machine};
use crate::process;
use crate::qemu::{Boot, Clock, Debugger, Outcome, Vm};
use crate::workspace::Workspace;

/// Under KVM the hello guest takes its ten ticks, a second, and little more.
const LIMIT: Duration = Duration::from_secs(10);

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// KVM where it works.
    Auto,
    /// QEMU's translator.
    Tcg,
    /// KVM, works or not.
    Kvm,
}

/// What QEMU runs the CPU with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's translator.
    Tcg,
    /// The host's CPU.
    Kvm,
}

impl Accel {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

impl Choice {
    /// Decides, trying KVM out if that is left open.
    /// `hello` builds the guest for that.
    pub fn resolve(
        self,
        workspace: &Workspace,
        hypervisor: &Path,
        arch: Arch,
        hello: impl FnOnce() -> Result<PathBuf>,
    ) -> Result<Accel> {
        match self {
            Self::Tcg => Ok(Accel::Tcg),
            Self::Kvm => Ok(Accel::Kvm),
            Self::Auto => Ok(match kvm_fault(workspace, hypervisor, arch, hello)? {
                None => Accel::Kvm,
                Some(fault) => {
                    console::step(&format!("{fault}: using TCG"));
                    Accel::Tcg
                }
            }),
        }
    }
}

/// Why KVM is of no use, or none.
fn kvm_fault(
    workspace: &Workspace,
    hypervisor: &Path,
    arch: Arch,
    hello: impl FnOnce() -> Result<PathBuf>,
) -> Result<Option<String>> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        let fault = match error.kind() {
            std::io::ErrorKind::NotFound => "no KVM here".to_owned(),
            std::io::ErrorKind::PermissionDenied => "no right to use /dev/kvm (group kvm)".to_owned(),
            _ => format!("/dev/kvm: {error}"),
        };
        return Ok(Some(fault));
    }
    let memory = workspace.target_subdir("xtask-state")?.join(format!("kvm-{arch}"));
    let key = key(hypervisor);
    if let Some(known) = std::fs::read_to_string(&memory).ok().and_then(|text| recall(&text, &key)) {
        return Ok(known);
    }
    let fault = probe(hypervisor, hello()?)?;
    // Only a convenience: without it the next run tries again.
    drop(std::fs::write(&memory, format!("{key}\n{}", fault.as_deref().unwrap_or_default())));
    Ok(fault)
}

/// This boot of the host, and this file.
fn key(hypervisor: &Path) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let modified = std::fs::metadata(hypervisor).and_then(|m| m.modified()).ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{} {}", boot.trim(), since.as_nanos())
}

/// What was found under that key: the outer option is whether anything was.
#[expect(clippy::option_option, reason = "known to work, known not to, not known")]
fn recall(text: &str, key: &str) -> Option<Option<String>> {
    let (found, fault) = text.split_once('\n')?;
    (found == key).then(|| Some(fault.to_owned()).filter(|fault| !fault.is_empty()))
}

fn probe(hypervisor: &Path, guest: PathBuf) -> Result<Option<String>> {
    let links = tempfile::tempdir()?;
    let vm = Vm {
        machine: Machine::Pc,
        memory: 64,
        accel: Accel::Kvm,
        boot: Boot::Pvh { hypervisor: hypervisor.to_owned(), kernel: Some(guest) },
        hv_args: String::new(),
        cmdline: String::new(),
        clock: Clock::Host,
        debugger: Debugger::None,
    };
    let capture = Capture::default();
    let mut command = vm.command(links.path())?;
    let (end, errors) = process::stream(command.stdin(std::process::Stdio::null()), Some(LIMIT), capture.clone())?;
    Ok(match Outcome::read(end, &capture.text(), &errors) {
        Outcome::Shutdown(0) => None,
        Outcome::Panic | Outcome::Shutdown(_) | Outcome::TimedOut => {
            Some("KVM is there but does not run guests as a CPU would".to_owned())
        }
        _ => Some(format!("KVM does not work here: {}", errors.lines().next().unwrap_or("QEMU gave no reason"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_is_recalled() {
        assert_eq!(recall("k 1\n", "k 1"), Some(None));
        assert_eq!(recall("k 1\nbroken", "k 1"), Some(Some("broken".to_owned())));
        assert_eq!(recall("k 1\nbroken", "k 2"), None);
        assert_eq!(recall("", "k"), None);
    }
}
