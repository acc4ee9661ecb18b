//! Building for bare metal: targets, flags, target directories, and what follows the hypervisor's link.
//!
//! Each kind of program has a target directory of its own (`hypervisor`, `guest-x86_64`, `guest-x86_32` below
//! cargo's), because cargo would otherwise rebuild `core` whenever the flags alternate. Linker scripts are each
//! package's own affair (its build script).

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cargo_metadata::Message;

use crate::guest_meta::Arch;
use crate::toolchain::Toolchain;
use crate::workspace::{Guest, HYPERVISOR, Workspace};
use crate::{cargo, console, multiboot, symbols};

/// Optimised or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Cargo's `dev`.
    Debug,
    /// Cargo's `release`, or the workspace's own `guest`.
    Release,
}

impl Profile {
    /// Cargo's name for it (root Cargo.toml), where that is not the default.
    fn name(self, kind: Kind) -> Option<&'static str> {
        match (self, kind) {
            (Self::Debug, _) => None,
            (Self::Release, Kind::Hypervisor) => Some("release"),
            (Self::Release, Kind::Guest(_)) => Some("guest"),
        }
    }
}

/// A kind of bare-metal program: what decides target, flags and target directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The hypervisor.
    Hypervisor,
    /// A guest of this architecture.
    Guest(Arch),
}

impl Kind {
    /// Every kind there is.
    pub const ALL: [Self; 3] = [Self::Hypervisor, Self::Guest(Arch::X86_32), Self::Guest(Arch::X86_64)];

    /// Name of the target directory.
    pub fn dir(self) -> &'static str {
        match self {
            Self::Hypervisor => "hypervisor",
            Self::Guest(Arch::X86_32) => "guest-x86_32",
            Self::Guest(Arch::X86_64) => "guest-x86_64",
        }
    }

    /// A built-in target, so that no JSON is needed, whose format changes between versions. The x86_32 one is the
    /// Pentium's: it has no SSE, which the interface's guests of 2004 do not switch on.
    fn target(self) -> &'static str {
        match self {
            Self::Hypervisor | Self::Guest(Arch::X86_64) => "x86_64-unknown-none",
            Self::Guest(Arch::X86_32) => "i586-unknown-linux-gnu",
        }
    }

    fn flags(self, linker: &str) -> Vec<String> {
        let mut flags = vec![format!("-Clinker={linker}"), "-Cforce-frame-pointers=yes".to_owned()];
        let own: &[&str] = match self {
            // Above the lower half and below the top 2 GiB only RIP-relative code reaches its data; the address is
            // nevertheless fixed, so the linker makes a plain executable without relocations.
            Self::Hypervisor => &[
                "-Crelocation-model=pic",
                "-Ccode-model=small",
                "-Clink-arg=--no-pie",
                "-Clink-arg=-static",
                "-Clink-arg=--build-id=sha1",
            ],
            Self::Guest(Arch::X86_64) => &["-Crelocation-model=static", "-Ccode-model=small"],
            // The target's own linker is a C compiler for Linux programs; nothing of that is wanted.
            Self::Guest(Arch::X86_32) => {
                &["-Crelocation-model=static", "-Clinker-flavor=ld.lld", "-Clink-arg=-static", "-Cpanic=abort"]
            }
        };
        flags.extend(own.iter().map(|flag| (*flag).to_owned()));
        flags
    }
}

/// A bare-metal cargo command (`build` or `clippy`) with everything set but the packages.
pub fn cargo_command(
    verb: &str,
    toolchain: &Toolchain,
    workspace: &Workspace,
    kind: Kind,
    profile: Profile,
) -> Command {
    // Cargo would look for its clippy on the path, where it may find another toolchain's.
    let program =
        if verb == "clippy" { toolchain.rustc.with_file_name("cargo-clippy") } else { toolchain.cargo.clone() };
    let mut command = Command::new(program);
    cargo::scrub(&mut command);
    command
        .env("CARGO", &toolchain.cargo)
        .current_dir(workspace.root())
        .env("RUSTC", &toolchain.rustc)
        // build-std is unstable; the hypervisor's own code uses stable Rust only.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", kind.flags(toolchain.linker).join("\x1f"))
        .arg(verb)
        .args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"])
        .args(["--target", kind.target(), "--target-dir"])
        .arg(workspace.target().join(kind.dir()));
    if let Some(name) = profile.name(kind) {
        command.args(["--profile", name]);
    }
    command
}

/// One finished executable.
#[derive(Debug)]
pub struct Executable {
    /// Its package.
    pub package: String,
    /// The ELF file.
    pub path: PathBuf,
}

/// Lines of cargo's that say nothing to somebody who wants a guest to run: builds go on side by side here.
const CHATTER: [&str; 2] = ["Finished", "Blocking waiting for file lock"];

/// Builds packages of one kind. Cargo's progress goes to standard error, but for its chatter.
fn build(
    toolchain: &Toolchain,
    workspace: &Workspace,
    kind: Kind,
    profile: Profile,
    packages: &[&str],
) -> Result<Vec<Executable>> {
    let mut command = cargo_command("build", toolchain, workspace, kind, profile);
    command.arg("--message-format=json-render-diagnostics");
    for package in packages {
        command.args(["-p", package]);
    }
    if std::io::stderr().is_terminal() {
        command.args(["--color", "always"]);
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", toolchain.cargo.display()))?;
    let progress = child.stderr.take().map(|stderr| {
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if !CHATTER.iter().any(|chatter| line.contains(chatter)) {
                    eprintln!("{line}");
                }
            }
        })
    });
    let mut executables = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Message::CompilerArtifact(artifact) = message.context("cannot read cargo's messages")?
                && let Some(path) = artifact.executable
            {
                executables.push(Executable { package: artifact.target.name, path: path.into_std_path_buf() });
            }
        }
    }
    let status = child.wait()?;
    if let Some(progress) = progress {
        // The thread only copies lines; it ends with the pipe.
        drop(progress.join());
    }
    ensure!(status.success(), "building {} failed", packages.join(", "));
    Ok(executables)
}

/// The hypervisor's files after the link.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    /// ELF64 with its symbol table filled in: PVH and Multiboot 2.
    pub elf: PathBuf,
    /// ELF32 for Multiboot 1.
    pub multiboot: PathBuf,
    /// The linker's output, with debug information, for gdb.
    pub debug: PathBuf,
}

/// Builds the hypervisor and makes the files it is booted from.
pub fn hypervisor(toolchain: &Toolchain, workspace: &Workspace, profile: Profile) -> Result<Hypervisor> {
    if !workspace.has_hypervisor() {
        bail!("the workspace has no package `{HYPERVISOR}`");
    }
    let built = build(toolchain, workspace, Kind::Hypervisor, profile, &[HYPERVISOR])?;
    let linked = built.into_iter().find(|e| e.package == HYPERVISOR).context("cargo made no hypervisor")?.path;
    let result = Hypervisor {
        elf: linked.with_extension("elf"),
        multiboot: linked.with_extension("multiboot"),
        debug: linked.clone(),
    };
    if !is_newer(&[&result.elf, &result.multiboot], &linked) {
        let mut image = std::fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
        match symbols::fill(&mut image)? {
            symbols::Filled::All(_) => {}
            symbols::Filled::Shortened { names, .. } => {
                console::note(&format!("the symbol table is full: {names} long function names were cut short"));
            }
            symbols::Filled::NoSection => console::note("the hypervisor has no .symtab_blob: no names in backtraces"),
        }
        let elf32 = multiboot::convert(&image).context("cannot make the Multiboot 1 image")?;
        write_new(&result.elf, &image)?;
        write_new(&result.multiboot, &elf32)?;
    }
    Ok(result)
}

/// Builds guests for one architecture: all that are for it, or those named.
pub fn guests(
    toolchain: &Toolchain,
    workspace: &Workspace,
    profile: Profile,
    arch: Arch,
    guests: &[&Guest],
) -> Result<Vec<Executable>> {
    let packages: Vec<&str> = guests.iter().filter(|g| g.meta.arch.contains(&arch)).map(|g| g.name.as_str()).collect();
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    build(toolchain, workspace, Kind::Guest(arch), profile, &packages)
}

/// A result and how many seconds it took.
pub type Timed<T> = (Result<T>, f32);

/// Everything that was asked for.
pub struct Everything {
    /// The hypervisor.
    pub hypervisor: Timed<Hypervisor>,
    /// Guests of each architecture, in the order of the request.
    pub guests: Vec<(Arch, Timed<Vec<Executable>>)>,
}

/// Builds the hypervisor and guests side by side: most of a first build is `core`, which keeps one CPU busy.
pub fn everything(
    toolchain: &Toolchain,
    workspace: &Workspace,
    profile: Profile,
    wanted: &[(Arch, Vec<&Guest>)],
) -> Everything {
    let start = Instant::now();
    let seconds = || start.elapsed().as_secs_f32();
    let lost = || Err(anyhow!("the build's thread panicked"));
    std::thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .iter()
            .map(|(arch, list)| scope.spawn(move || (guests(toolchain, workspace, profile, *arch, list), seconds())))
            .collect();
        let hypervisor = (hypervisor(toolchain, workspace, profile), seconds());
        let guests = wanted
            .iter()
            .zip(threads)
            .map(|((arch, _), thread)| (*arch, thread.join().unwrap_or_else(|_| (lost(), seconds()))));
        Everything { hypervisor, guests: guests.collect() }
    })
}

/// `cargo xtask build`: everything, or only the packages that are named.
pub fn command(arch: Option<Arch>, profile: Profile, only: &[String]) -> Result<()> {
    let workspace = Workspace::load()?;
    let toolchain = Toolchain::bare_metal(&workspace)?;
    let mut all = workspace.guests()?;
    if let Some(unknown) = only.iter().find(|name| **name != HYPERVISOR && all.iter().all(|guest| guest.name != **name))
    {
        bail!("`{unknown}` is neither a guest's package nor `{HYPERVISOR}`, the hypervisor's");
    }
    all.retain(|guest| only.is_empty() || only.contains(&guest.name));
    let wanted: Vec<(Arch, Vec<&Guest>)> = Arch::ALL
        .into_iter()
        .filter(|a| arch.is_none_or(|only| only == *a))
        .map(|arch| (arch, all.iter().collect()))
        .collect();
    if !only.is_empty() {
        if only.iter().any(|name| name == HYPERVISOR) {
            println!("{}", hypervisor(&toolchain, &workspace, profile)?.elf.display());
        }
        for (arch, list) in &wanted {
            let built = guests(&toolchain, &workspace, profile, *arch, list)?;
            built.iter().for_each(|e| println!("{}", e.path.display()));
        }
        return Ok(());
    }
    let made = everything(&toolchain, &workspace, profile, &wanted);
    println!("{}", made.hypervisor.0?.elf.display());
    for (_, (guests, _)) in made.guests {
        guests?.iter().for_each(|e| println!("{}", e.path.display()));
    }
    Ok(())
}

/// Whether every output is there and newer than the input and than this very tool.
fn is_newer(outputs: &[&Path], input: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let inputs = [modified(input), std::env::current_exe().ok().and_then(|exe| modified(&exe))];
    let Some(newest) = inputs.into_iter().flatten().max() else { return false };
    outputs.iter().all(|path| modified(path).is_some_and(|time| time >= newest))
}

/// Writes by a new file, so that a QEMU that has the old one open keeps it.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().context("no directory")?;
    let everyone_reads = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(everyone_reads).tempfile_in(dir)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
