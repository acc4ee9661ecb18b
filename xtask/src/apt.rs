//! Installing what is missing, by Debian's package manager: one line says what and why.
//!
//! Where that cannot be done (another system, no root, no network) the error says what to type.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};

use crate::console;

/// Package lists older than this are fetched anew before something is installed.
const LISTS_STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Whether this system has apt.
pub fn available() -> bool {
    which::which("apt-get").is_ok() && Path::new("/var/lib/dpkg").is_dir()
}

/// Whether apt's lists know a package. False where there is no apt.
pub fn knows(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["show", package])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Makes sure that `program` is on the path, by installing `packages` if it is not.
pub fn need_program(program: &str, packages: &[&str], why: &str) -> Result<()> {
    if which::which(program).is_ok() {
        return Ok(());
    }
    install(packages, why)?;
    which::which(program).map(drop).with_context(|| format!("{} did not bring `{program}`", packages.join(" ")))
}

/// Installs packages, after one line on what and why.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    if !available() {
        bail!("{why} needs what Debian calls {list}: install it with your system's package manager");
    }
    let by_hand = format!("type `apt-get update && apt-get install {list}` as root");
    console::step(&format!("installing {list} with apt-get ({why})"));
    let updated = if lists_are_stale() {
        update().with_context(|| by_hand.clone())?;
        true
    } else {
        false
    };
    if let Err(error) = try_install(packages) {
        if updated {
            return Err(error.context(by_hand));
        }
        // Lists of some days may name files that are gone from the mirror.
        update().and_then(|()| try_install(packages)).with_context(|| by_hand)?;
    }
    Ok(())
}

/// Fetches the package lists if there are none, or only old ones, so that [`knows`] can answer.
pub fn refresh_if_stale() -> Result<()> {
    if lists_are_stale() {
        console::step("fetching apt's package lists, which are missing or old");
        update()?;
    }
    Ok(())
}

/// Fetches a package's file into an empty directory, and unpacks it there: nothing of it is installed. Apt chooses
/// version and source.
///
/// # Errors
/// Where there is no apt, or it knows no such package.
pub fn unpack(package: &str, dir: &Path, why: &str) -> Result<()> {
    if !available() {
        bail!("{why} needs the package {package} of Debian, and this system has no apt to fetch it by");
    }
    let lists = refresh_if_stale();
    if !knows(package) {
        let reason = format!("{why} needs the package {package}, which apt's lists do not have");
        return match lists {
            Ok(()) => Err(anyhow!(reason)),
            Err(error) => Err(error.context(reason)),
        };
    }
    console::step(&format!("fetching {package} with apt-get ({why}); it is unpacked, not installed"));
    let mut fetch = Command::new("apt-get");
    fetch.args(["-q", "download", package]).current_dir(dir);
    quietly(&mut fetch).with_context(|| format!("{why} needs the package {package}"))?;
    let files = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let file = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
    let file = file.context("apt-get brought no package")?;
    quietly(Command::new("dpkg-deb").arg("-x").arg(&file).arg(dir))
}

/// Runs a command; what it said is shown when it fails.
fn quietly(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

fn update() -> Result<()> {
    apt_get(&["update"])
}

fn try_install(packages: &[&str]) -> Result<()> {
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend_from_slice(packages);
    apt_get(&args)
}

/// Runs apt-get quietly, as root or through sudo; what it said is shown when it fails.
fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = if is_root() {
        Command::new("apt-get")
    } else if which::which("sudo").is_ok() {
        let mut sudo = Command::new("sudo");
        if !std::io::stdin().is_terminal() {
            sudo.arg("-n");
        }
        sudo.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    } else {
        bail!("this needs root, and there is no sudo");
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["-q", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=120"]).args(args);
    let output = command.stdin(Stdio::inherit()).output().context("cannot run apt-get")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get {} failed:\n{}", args[0], said.trim_end());
    }
    Ok(())
}

/// Asks `id`, because the standard library has no call for it.
fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn lists_are_stale() -> bool {
    let Ok(entries) = std::fs::read_dir("/var/lib/apt/lists") else { return true };
    let newest = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|entry| entry.metadata().and_then(|m| m.modified()).ok())
        .max();
    // A mirror's lists carry the mirror's dates; apt's own stamp tells when they were last fetched.
    let fetched = std::fs::metadata("/var/lib/apt/lists").and_then(|m| m.modified()).ok();
    match newest {
        None => true,
        Some(newest) => age(newest.max(fetched.unwrap_or(newest))) > LISTS_STALE,
    }
}

fn age(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}
