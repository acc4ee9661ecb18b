//! What `run` and `create` are pointed at: a kernel, a configuration, or a guest crate of this workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proxenos_rpc::Restart;
use serde::Deserialize;

use crate::args::{ArchArg, GuestArgs};
use crate::config::{self, Spec};
use crate::images;
use crate::problem::{Problem, Result, Status};
use crate::upload::spinner;

/// Reads what a path describes.
///
/// # Errors
/// There is nothing, or it makes no sense, or does not build.
pub fn read(path: &Path, arch: ArchArg) -> Result<Spec> {
    let missing =
        |error: std::io::Error| Problem::new(Status::Missing, format!("cannot find {}", path.display())).because(error);
    let meta = std::fs::metadata(path).map_err(missing)?;
    if meta.is_dir() {
        return crate_dir(path, arch);
    }
    let mut start = [0; 4];
    let len = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut start)).map_err(missing)?;
    let is_image = start[..len].starts_with(b"\x7fELF") || start[..len].starts_with(&[0x1f, 0x8b]);
    // What is no text is no configuration either; a kernel's own check says what is wrong with it.
    if is_image || std::fs::read(path).is_ok_and(|bytes| std::str::from_utf8(&bytes).is_err()) {
        return Ok(Spec { kernel: Some(path.to_owned()), ..Spec::default() });
    }
    Spec::read(path)
}

/// What the command line adds.
///
/// # Errors
/// It contradicts itself.
pub fn overrides(args: &GuestArgs, cmdline: &[String]) -> Result<Spec> {
    let sched = args.weight.map(config::weight).transpose();
    Ok(Spec {
        name: args.name.clone(),
        kernel: None,
        ramdisk: args.ramdisk.clone(),
        memory: args.memory,
        memory_limit: args.max_memory,
        cpu: args.cpu,
        cmdline: (!cmdline.is_empty()).then(|| cmdline.join(" ")),
        restart: args.restart.map(Restart::from),
        on_crash: args.on_crash.map(Into::into),
        sched: sched.map_err(|why| Problem::new(Status::Usage, "--weight makes no sense").because(why))?,
    })
}

#[derive(Deserialize)]
struct Manifest {
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    proxenos: Option<Guest>,
}

/// The part of xtask's metadata that is the guest's own.
#[derive(Deserialize)]
struct Guest {
    #[serde(default)]
    cmdline: String,
    #[serde(default)]
    arch: Vec<String>,
}

/// Builds a guest crate by xtask, which knows how.
fn crate_dir(dir: &Path, arch: ArchArg) -> Result<Spec> {
    let no_guest = |why: String| {
        Problem::new(Status::Data, format!("{} is no guest crate", dir.display()))
            .because(why)
            .hint("name an ELF file, a configuration, or a directory below guests/")
    };
    let text =
        std::fs::read_to_string(dir.join("Cargo.toml")).map_err(|error| no_guest(format!("Cargo.toml: {error}")))?;
    let manifest: Manifest = toml::from_str(&text).map_err(|error| no_guest(error.to_string()))?;
    let guest = manifest.package.metadata.proxenos;
    let guest = guest.ok_or_else(|| no_guest("its manifest has no [package.metadata.proxenos]".to_owned()))?;
    let name = manifest.package.name;
    if !guest.arch.is_empty() && !guest.arch.iter().any(|a| a == arch.name()) {
        return Err(Problem::new(Status::Usage, format!("{name} is not for {}", arch.name()))
            .hint(format!("--arch {}", guest.arch[0])));
    }
    let root = workspace_of(dir).ok_or_else(|| no_guest("it is in no workspace with an xtask".to_owned()))?;
    let kernel = build(&root, &name, arch)?;
    Ok(Spec { kernel: Some(kernel), cmdline: Some(guest.cmdline).filter(|line| !line.is_empty()), ..Spec::default() })
}

fn workspace_of(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    let above = dir.ancestors().find(|dir| dir.join("xtask/Cargo.toml").is_file());
    above.map(Path::to_owned).or_else(images::workspace)
}

fn build(root: &Path, name: &str, arch: ArchArg) -> Result<PathBuf> {
    let spinner = spinner(&format!("building {name} for {}", arch.name()));
    let output = Command::new("cargo")
        .current_dir(root)
        .args(["xtask", "build", "--arch", arch.name(), name])
        .stdin(Stdio::null())
        .output();
    spinner.finish_and_clear();
    let output = output.map_err(|error| {
        Problem::new(Status::System, "cannot run cargo").because(error).hint("name the guest's ELF file instead")
    })?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let built = printed.lines().map(Path::new).find(|path| path.file_name().is_some_and(|file| file == name));
    match built {
        Some(path) if output.status.success() => Ok(path.to_owned()),
        _ => Err(Problem::new(Status::Data, format!("{name} does not build"))
            .because(String::from_utf8_lossy(&output.stderr).trim())
            .hint(format!("`cargo xtask build --arch {} {name}` shows it again", arch.name()))),
    }
}
