//! The command line against a real host: tests of package `proxenos-cli` that need built images, which are made here.

use anyhow::Result;

use super::{Report, Verdict};
use crate::compile::{self, Hypervisor, Profile};
use crate::guest_meta::Arch;
use crate::process::{self, End};
use crate::toolchain::Toolchain;
use crate::workspace::{CONTROL, Guest, Workspace};
use crate::{cargo, qemu};

/// A test: its file, and which one of that file it is.
pub struct Row {
    /// The row's name.
    pub name: &'static str,
    file: &'static str,
    test: &'static str,
}

/// All of them.
pub const ROWS: [Row; 7] = [
    Row { name: "cli/session", file: "session", test: "twenty_guests_are_what_was_asked_for" },
    Row { name: "cli/many", file: "many", test: "five_hundred_guests" },
    Row { name: "cli/hello", file: "real", test: "hello_says_hello_within_its_bound" },
    Row { name: "cli/lives", file: "real", test: "guests_live_and_end_as_their_files_say" },
    Row { name: "cli/schedulers", file: "real", test: "three_hosts_have_three_schedulers" },
    Row { name: "cli/looks", file: "real", test: "what_is_listed_is_what_there_is" },
    Row { name: "cli/unruly", file: "real", test: "unruly_guests_harm_only_themselves" },
];

/// Whether one of them is a test of this name, which is ignored where the images are not there.
pub fn runs(test: &str) -> bool {
    ROWS.iter().any(|row| row.test == test)
}

/// The guests that they run.
const GUESTS: [&str; 2] = ["hello", "echo"];

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
    command.current_dir(workspace.root()).args(["test", "--color", "never", "-p", "proxenos-cli", "--test", row.file]);
    command.args(["--", "--ignored", "--nocapture", "--exact", row.test]).env("PROXENOS_IMAGES", &images);
    let control = compile::guests(toolchain, workspace, Profile::Release, Arch::X86_64, &named(CONTROL))?;
    std::fs::copy(&hypervisor.multiboot, images.join("proxenos.multiboot"))?;
    for built in &control {
        std::fs::copy(&built.path, images.join("control"))?;
    }
    for (arch, name) in [(Arch::X86_64, "X86_64"), (Arch::X86_32, "X86_32")] {
        for guest in GUESTS {
            let variable = format!("PROXENOS_{}_{name}", guest.to_uppercase());
            for built in compile::guests(toolchain, workspace, Profile::Release, arch, &named(guest))? {
                command.env(&variable, built.path);
            }
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
