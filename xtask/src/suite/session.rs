//! The command line against a real host: a test of package `proxenos-cli` that needs built images, which are made here.

use anyhow::Result;

use super::{Report, Verdict};
use crate::compile::{self, Hypervisor, Profile};
use crate::guest_meta::Arch;
use crate::process::{self, End};
use crate::toolchain::Toolchain;
use crate::workspace::{CONTROL, Guest, Workspace};
use crate::{cargo, qemu};

/// The row's name.
pub const NAME: &str = "cli/session";

/// The guest that the session runs, and the variables that say where it is.
const GUEST: &str = "hello";
const VARIABLES: [(Arch, &str); 2] = [(Arch::X86_64, "PROXENOS_HELLO_X86_64"), (Arch::X86_32, "PROXENOS_HELLO_X86_32")];

/// Runs the session.
pub fn run(
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
    command.current_dir(workspace.root()).args(["test", "--color", "never", "-p", "proxenos-cli", "--test", "session"]);
    command.args(["--", "--ignored"]).env("PROXENOS_IMAGES", &images);
    let control = compile::guests(toolchain, workspace, Profile::Release, Arch::X86_64, &named(CONTROL))?;
    std::fs::copy(&hypervisor.multiboot, images.join("proxenos.multiboot"))?;
    for built in &control {
        std::fs::copy(&built.path, images.join("control"))?;
    }
    for (arch, variable) in VARIABLES {
        for built in compile::guests(toolchain, workspace, Profile::Release, arch, &named(GUEST))? {
            command.env(variable, built.path);
        }
    }
    let capture = crate::console::Capture::default();
    let (end, errors) = process::stream(&mut command, None, capture.clone())?;
    let output = capture.text();
    std::fs::write(report.log(NAME), format!("{errors}{output}"))?;
    let verdict = match end {
        End::Exited(status) if status.success() && output.contains(" 1 passed") => Verdict::Pass,
        End::Exited(_) => Verdict::Fail("see below".to_owned()),
        _ => Verdict::Fail("interrupted".to_owned()),
    };
    report.add(NAME, &verdict, None);
    Ok(())
}
