//! `cargo xtask bench --peer xen`: what the same operations cost a guest of Debian's own Xen, measured here and now.
//!
//! The package is fetched by apt and unpacked below the target directory; nothing of it is installed. Its Xen is booted
//! by QEMU on the machine of every benchmark, with `guests/bench-xen` as its domain 0, and time is counted in
//! instructions: the figures repeat to the digit. docs/peer-xen.md says what is compared, and where the comparison is
//! not exact.
//!
//! There is x86_64 only: Debian builds this Xen without 32-bit paravirtual guests.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};

use super::figures::{self, Figures};
use crate::accel::Accel;
use crate::compile::{self, Profile};
use crate::console::{self, Capture};
use crate::guest_meta::{Arch, Machine};
use crate::process;
use crate::qemu::{Boot, Clock, Debugger, Outcome, Vm};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;
use crate::{apt, qemu};

/// The guest that measures.
const GUEST: &str = "bench-xen";
/// What it can be built for, and Debian's Xen can run.
const ARCH: Arch = Arch::X86_64;
/// Debian's package.
const PACKAGE: &str = "xen-hypervisor-4.17-amd64";
/// The file in it that is booted: an ELF32 file with a Multiboot 1 header, compressed.
const IMAGE: &str = "boot/xen-4.17-amd64.gz";
/// Its place below the target directory.
const DIR: &str = "peer-xen-4.17";
/// Memory of the machine that operations are measured on, in MiB.
const MEMORY: u32 = super::MEMORY;
/// Memory of the machines whose sizes are compared, in MiB. The smaller also gives the time of the boot.
const SIZES: [u32; 2] = [1024, 3072];
/// The guest's command line where it looks at memory alone.
const MEMORY_ONLY: &str = "only=memory";
/// Names of what is found so.
const MACHINE_ROWS: [&str; 3] = ["boot", "memory-fixed", "memory-per-gib"];
/// How the line begins that says how many bytes domains have or can have.
const FOR_DOMAINS: &str = "memory ";
/// Xen's options. All else is as Xen chooses it by itself on this CPU, its mitigations included. `smap=0` is for QEMU,
/// not for speed: its `iretq` in ring 3 reads the stack as ring 0 would, which SMAP forbids (the figures are the same).
const OPTIONS: &str = "console=com1 com1=115200,8n1 dom0_mem=32M smap=0";
/// More than it ever takes. A Xen that panics resets the machine, and does not hang.
const LIMIT: Duration = Duration::from_secs(900);
/// How the names end of what is also measured with the hypercall `iret`, in the place of the instruction.
const BY_IRET: &str = "-iret";
/// What Xen's first line begins with: its version follows.
const BANNER: &str = "(XEN) Xen version ";

/// The committed figures.
const COMMITTED: &str = "xen-4.17.json";

/// What is committed.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Committed {
    source: String,
    instructions: BTreeMap<Arch, Figures>,
}

/// Whom we compare ourselves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Xen 4.17, Debian 12's
    Xen,
}

/// What a run of a peer brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The peer's version, as it says it itself.
    pub version: String,
    /// The architecture of its guest.
    pub arch: Arch,
    /// What each operation took, by the names of `guests/bench`.
    pub figures: Figures,
    /// What those take that return to the interrupted kernel, where it does so by the hypercall `iret`, as Linux does.
    pub by_iret: Figures,
}

/// Boots a peer and reads its figures.
///
/// # Errors
/// Where the peer cannot be had, does not boot, or the guest does not come to its end.
pub fn measure(peer: Peer, workspace: &Workspace, toolchain: &Toolchain, filter: Option<&str>) -> Result<Run> {
    let Peer::Xen = peer;
    qemu::need()?;
    let hypervisor = image(workspace)?;
    let guests = workspace.guests()?;
    let guest = guests.iter().find(|guest| guest.name == GUEST).context("the workspace has no guest `bench-xen`")?;
    let built = compile::guests(toolchain, workspace, Profile::Release, ARCH, &[guest])?;
    let kernel = built.into_iter().next().context("cargo made no executable for the guest")?.path;
    let boot = |memory: u32, cmdline: &str| {
        run(&Vm {
            machine: Machine::Pc,
            memory,
            accel: Accel::Tcg,
            boot: Boot::Peer { hypervisor: hypervisor.clone(), kernel: kernel.clone() },
            hv_args: OPTIONS.to_owned(),
            cmdline: cmdline.to_owned(),
            clock: Clock::Instructions,
            debugger: Debugger::None,
        })
    };
    console::step("measuring Debian's Xen");
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    let mut run = read(&boot(MEMORY, "")?)?;
    if MACHINE_ROWS.into_iter().any(wanted) {
        let [small, large] = SIZES.map(|memory| boot(memory, MEMORY_ONLY));
        run.figures.extend(machine_figures(&small?, &large?)?);
    }
    for figures in [&mut run.figures, &mut run.by_iret] {
        figures.retain(|name, _| wanted(name));
    }
    Ok(run)
}

/// Boots a machine until it ends by itself: what its console showed.
fn run(vm: &Vm) -> Result<String> {
    let links = tempfile::tempdir()?;
    let capture = Capture::default();
    let (end, errors) = process::stream(&mut vm.command(links.path())?, Some(LIMIT), capture.clone())?;
    let console = capture.text();
    let outcome = Outcome::read(end, &console, &errors);
    if outcome == Outcome::Interrupted {
        bail!("interrupted");
    }
    ensure!(outcome == Outcome::PowerOff, "the peer's benchmark ended as {outcome:?}:\n{console}{errors}");
    // Serial lines end as terminals want it.
    Ok(console.lines().flat_map(|line| [line.trim_end(), "\n"]).collect())
}

impl Run {
    /// Makes these the committed figures, beside the manifest of `guests/bench`; what was not measured stays.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(COMMITTED);
        let mut file = Committed::default();
        if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            file = serde_json::from_str(&text).with_context(|| format!("{} is not as it should be", path.display()))?;
        }
        file.source = format!(
            "Xen {} in QEMU with -icount shift=0, options `{OPTIONS}`; made by `cargo xtask bench --peer xen --save`",
            self.version
        );
        file.instructions.entry(self.arch).or_default().extend(self.figures.clone());
        let text = serde_json::to_string_pretty(&file)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// One line about what is not in the table.
    pub fn remark(&self) -> String {
        let by_iret: Vec<_> = self.by_iret.iter().map(|(name, value)| format!("{name} {value}")).collect();
        format!(
            "the peer is Xen {}; to kernels that return by the hypercall iret: {}",
            self.version,
            by_iret.join(", ")
        )
    }
}

/// Reads version and figures off a console.
fn read(console: &str) -> Result<Run> {
    let version = console.lines().find_map(version).with_context(|| format!("this is no Xen:\n{console}"))?;
    let mut figures = figures::parse(console)?;
    let by_iret = figures.iter().filter_map(|(name, value)| Some((name.strip_suffix(BY_IRET)?.to_owned(), *value)));
    let by_iret = by_iret.collect();
    figures.retain(|name, _| !name.ends_with(BY_IRET));
    Ok(Run { version, arch: ARCH, figures, by_iret })
}

/// What consoles of machines of both sizes tell: the time of the boot, and what memory is the hypervisor's.
fn machine_figures(small: &str, large: &str) -> Result<Figures> {
    let used = |console: &str, mib: u32| -> Result<u64> {
        let told = console.lines().find_map(|line| line.strip_prefix(FOR_DOMAINS));
        let told: u64 = told.with_context(|| format!("no word of memory:\n{console}"))?.parse()?;
        (u64::from(mib) << 20).checked_sub(told).with_context(|| format!("{told} bytes in a machine of {mib} MiB"))
    };
    let (least, most) = (used(small, SIZES[0])?, used(large, SIZES[1])?);
    let more = most.checked_sub(least).context("a larger machine takes less memory")?;
    let per_gib = (more << 10) / u64::from(SIZES[1] - SIZES[0]);
    let fixed = least.saturating_sub((per_gib * u64::from(SIZES[0])) >> 10);
    let mut figures = figures::parse(small)?;
    figures.retain(|name, _| name == "boot");
    figures.extend([("memory-fixed".to_owned(), fixed), ("memory-per-gib".to_owned(), per_gib)]);
    Ok(figures)
}

/// The version in Xen's first line: its own, and in parentheses its packager's.
fn version(line: &str) -> Option<String> {
    let rest = line.strip_prefix(BANNER)?;
    let end = rest.find(')').map_or(rest.len(), |end| end + 1);
    Some(rest[..end].to_owned())
}

/// The file to boot. It is fetched if it is not there; `cargo xtask clean` forgets it.
fn image(workspace: &Workspace) -> Result<PathBuf> {
    let dir = workspace.target().join(DIR);
    let image = dir.join("xen");
    if !image.exists() {
        let fresh = tempfile::Builder::new().prefix(DIR).tempdir_in(workspace.target_subdir("")?)?;
        apt::unpack(PACKAGE, fresh.path(), "bench --peer xen")?;
        decompress(&fresh.path().join(IMAGE), &fresh.path().join("xen"))?;
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        // Whole, or not at all.
        std::fs::rename(fresh.keep(), &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(image)
}

fn decompress(from: &Path, to: &Path) -> Result<()> {
    let packed = std::fs::File::open(from).with_context(|| format!("{PACKAGE} has no {}", from.display()))?;
    let mut bytes = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut bytes).with_context(|| format!("cannot unpack {}", from.display()))?;
    std::fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "(XEN) Xen version 4.17.7 (Debian 4.17.7+13-g2445b30a44-0+deb12u1) (team@example) (gcc) debug=n\n\
        (XEN) bench null 1\nxen 4.17.7\nbench overhead 4\nbench null 280\nbench int3 342\nbench int3-iret 655\n";

    #[test]
    fn version_and_figures_are_read_off_a_console() {
        let run = read(&format!("{BOOT}bench done\n(XEN) Hardware Dom0 shutdown\n")).expect("whole");
        assert_eq!(run.version, "4.17.7 (Debian 4.17.7+13-g2445b30a44-0+deb12u1)");
        assert_eq!(run.figures, Figures::from([("null".to_owned(), 280), ("int3".to_owned(), 342)]));
        assert_eq!(run.by_iret, Figures::from([("int3".to_owned(), 655)]));
    }

    #[test]
    fn a_benchmark_that_did_not_end_is_refused() {
        assert!(read(BOOT).is_err());
    }

    #[test]
    fn what_grows_with_the_machine_is_told_from_what_does_not() {
        let console = |memory: u64| format!("(XEN) memory 1\nbench boot 99\nmemory {memory}\nbench done\n");
        // 3 MiB, and 8 for each GiB.
        let figures = machine_figures(&console((1024 - 11) << 20), &console((3072 - 27) << 20)).expect("both");
        let of = |name: &str| figures[name];
        assert_eq!((of("memory-fixed"), of("memory-per-gib"), of("boot")), (3 << 20, 8 << 20, 99));
        assert_eq!(figures.len(), MACHINE_ROWS.len());
        assert!(machine_figures(&console(1025 << 20), &console(3000 << 20)).is_err());
        assert!(machine_figures("bench done\n", &console(3000 << 20)).is_err());
    }

    #[test]
    fn another_hypervisor_is_refused() {
        assert!(read("(px) boot\nbench null 47\nbench done\n").is_err());
    }

    #[test]
    fn committed_figures_keep_what_was_not_measured() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = |name: &str, value| Run {
            version: "4.17.7".to_owned(),
            arch: Arch::X86_64,
            figures: Figures::from([(name.to_owned(), value)]),
            by_iret: Figures::new(),
        };
        for (name, value) in [("a", 1), ("b", 2), ("a", 3)] {
            run(name, value).save(dir.path()).expect("writable");
        }
        let text = std::fs::read_to_string(dir.path().join(COMMITTED)).expect("just written");
        let read: Committed = serde_json::from_str(&text).expect("as it was written");
        assert!(read.source.contains("4.17.7"));
        assert_eq!(read.instructions[&Arch::X86_64], Figures::from([("a".to_owned(), 3), ("b".to_owned(), 2)]));
        std::fs::write(dir.path().join(COMMITTED), "{").expect("writable");
        assert!(run("a", 4).save(dir.path()).is_err());
    }

    #[test]
    fn the_image_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let (packed, image) = (dir.path().join("xen.gz"), dir.path().join("xen"));
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, b"\x7fELF and more").expect("memory");
        std::fs::write(&packed, encoder.finish().expect("memory")).expect("writable");
        decompress(&packed, &image).expect("whole");
        assert_eq!(std::fs::read(&image).expect("just written"), b"\x7fELF and more");
        std::fs::write(&packed, b"no gzip").expect("writable");
        assert!(decompress(&packed, &image).is_err());
        assert!(decompress(&dir.path().join("missing"), &image).is_err());
    }
}
