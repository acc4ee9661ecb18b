//! The command line against a real host: tests of package `proxenos-cli` that need built images, which are made here.

use anyhow::Result;

use super::{Report, Verdict};
use crate::compile::{self, Hypervisor, Profile};
use crate::guest_meta::Arch;
use crate::process::{self, End};
use crate::toolchain::Toolchain;
use crate::workspace::{CONTROL, Guest, Workspace};
use crate::{cargo, qemu};

/// A test, and the guest that it runs.
pub struct Row {
    /// The row's name.
    pub name: &'static str,
    test: &'static str,
    guest: &'static str,
}

/// All of them.
pub const ROWS: [Row; 2] = [
    Row { name: "cli/session", test: "session", guest: "hello" },
    Row { name: "cli/many", test: "many", guest: "echo" },
];

/// Runs one.
pub fn run(
    row: &Row,
    report: &mut Report,
    workspace: &Workspace,
    toolchain: &Toolchain,
    hypervisor: &Hypervisor,
    guests: &[Guest],
) -> Result<()> {
    if process::interrupted() {
        return Ok(());
    }
    qemu::need()?;
    let images = workspace.target_subdir("session-images")?;
    let named = |name: &str| guests.iter().filter(|guest| guest.name == name).collect::<Vec<_>>();
    let mut command = cargo::host();
    command.current_dir(workspace.root()).args(["test", "--color", "never", "-p", "proxenos-cli", "--test", row.test]);
    command.args(["--", "--ignored", "--nocapture"]).env("PROXENOS_IMAGES", &images);
    let control = compile::guests(toolchain, workspace, Profile::Release, Arch::X86_64, &named(CONTROL))?;
    std::fs::copy(&hypervisor.multiboot, images.join("proxenos.multiboot"))?;
    for built in &control {
        std::fs::copy(&built.path, images.join("control"))?;
    }
    for (arch, name) in [(Arch::X86_64, "X86_64"), (Arch::X86_32, "X86_32")] {
        let variable = format!("PROXENOS_{}_{name}", row.guest.to_uppercase());
        for built in compile::guests(toolchain, workspace, Profile::Release, arch, &named(row.guest))? {
            command.env(&variable, built.path);
        }
    }
    let capture = crate::console::Capture::default();
    let (end, errors) = process::stream(&mut command, None, capture.clone())?;
    let output = capture.text();
    std::fs::write(report.log(row.name), format!("{errors}{output}"))?;
    let verdict = match end {
        End::Exited(status) if status.success() && output.contains(" 1 passed") => Verdict::Pass,
        End::Exited(_) => Verdict::Fail("see below".to_owned()),
        _ => Verdict::Fail("interrupted".to_owned()),
    };
    report.add(row.name, &verdict, None);
    Ok(())
}
