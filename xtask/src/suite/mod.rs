//! `cargo xtask test`: everything there is to test, one line each, and a count at the end.
//!
//! In this order: format and lints of the host's packages, their tests, the bare-metal builds and their lints, and
//! guests in QEMU, two at a time. Quick checks come first, so that a slip shows early; none stops the others.

mod guests;
mod host;
mod judge;
mod nmi;
mod session;
mod spoil;
mod talk;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::compile::{self, Profile};
use crate::console::{ERROR, GOOD, NOTE};
use crate::guest_meta::{Arch, Boot};
use crate::lint::{self, Planned};
use crate::toolchain::Toolchain;
use crate::workspace::{Guest, Workspace};
use crate::{elf, iso, process, qemu};

/// The hypervisor's loaded image must stay below this (SPECIFICATION.md).
const IMAGE_LIMIT: u64 = 1 << 20;

/// How many lines of a failed test's log are shown.
const TAIL: usize = 25;

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Pass,
    /// It passed for want of something to test, and says so.
    Skip(String),
    /// It failed, and why.
    Fail(String),
}

/// The count, and the way results are shown. Only the main thread has it.
struct Report {
    logs: PathBuf,
    passed: usize,
    failed: Vec<String>,
}

impl Report {
    fn new(workspace: &Workspace) -> Result<Self> {
        Ok(Self { logs: workspace.target_subdir("test-logs")?, passed: 0, failed: Vec::new() })
    }

    /// Where a test's log goes.
    fn log(&self, name: &str) -> PathBuf {
        log_path(&self.logs, name)
    }

    /// Counts a result and prints its line; a failure with the reason and the end of its log.
    fn add(&mut self, name: &str, verdict: &Verdict, seconds: Option<f32>) {
        let time = seconds.map(|s| format!(" ({s:.1} s)")).unwrap_or_default();
        match verdict {
            Verdict::Pass => {
                self.passed += 1;
                anstream::println!("{GOOD}ok{GOOD:#}    {name}{time}");
            }
            Verdict::Skip(why) => {
                self.passed += 1;
                anstream::println!("{NOTE}skip{NOTE:#}  {name}{time}: {why}");
            }
            Verdict::Fail(why) => {
                self.failed.push(name.to_owned());
                anstream::println!("{ERROR}FAIL{ERROR:#}  {name}{time}: {why}");
                let log = self.log(name);
                if let Ok(text) = std::fs::read_to_string(&log) {
                    tail(&text, TAIL).iter().for_each(|line| anstream::println!("      | {line}"));
                    anstream::println!("      log: {}", log.display());
                }
            }
        }
    }

    /// The closing lines; the value is the exit status.
    fn finish(&self) -> u8 {
        if !self.failed.is_empty() {
            println!("\nfailed:");
            self.failed.iter().for_each(|name| println!("    {name}"));
        }
        println!("\n{} passed, {} failed", self.passed, self.failed.len());
        match (process::interrupted(), self.failed.is_empty()) {
            (true, _) => 130,
            (false, true) => 0,
            (false, false) => 1,
        }
    }
}

fn log_path(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{}.log", name.replace(['/', ':'], "-")))
}

fn tail(text: &str, lines: usize) -> Vec<&str> {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}

/// Which tests are wanted.
#[derive(Clone, Copy)]
struct Filter<'a>(Option<&'a str>);

impl Filter<'_> {
    fn takes(self, name: &str) -> bool {
        self.0.is_none_or(|text| name.contains(text))
    }
}

/// Runs what the filter takes; the value is the exit status. A filter that names no lint, build or guest is
/// handed to the host tests.
pub fn command(filter: Option<&str>, list: bool) -> Result<u8> {
    let workspace = Workspace::load()?;
    let filter = Filter(filter);
    let guests = workspace.guests()?;
    let rows: Vec<guests::Row> = guests::plan(&guests).into_iter().filter(|row| filter.takes(&row.name)).collect();
    if list {
        rows.iter().for_each(|row| println!("{}", row.name));
        session::ROWS.iter().filter(|row| filter.takes(row.name)).for_each(|row| println!("{}", row.name));
        return Ok(0);
    }
    let mut report = Report::new(&workspace)?;

    let mut checked = false;
    for planned in lint::host(&workspace) {
        checked |= check(&mut report, filter, planned)?;
    }
    let bare_metal = bare_metal_is_wanted(filter, &rows);
    let packages = workspace.host_packages();
    let named: Vec<&String> = packages.iter().filter(|p| filter.takes(&host::group(p))).collect();
    match filter.0 {
        Some(text) if named.is_empty() && !checked && !bare_metal => {
            for package in &packages {
                host::run(&mut report, &workspace, package, Some(text))?;
            }
        }
        _ => {
            for package in named {
                host::run(&mut report, &workspace, package, None)?;
            }
        }
    }
    if bare_metal && !process::interrupted() {
        bare_metal_tests(&mut report, &workspace, filter, &guests, rows)?;
    }
    Ok(report.finish())
}

const BUILD: &str = "build";
const IMAGE_SIZE: &str = "image-size";

fn bare_metal_is_wanted(filter: Filter<'_>, rows: &[guests::Row]) -> bool {
    let fixed =
        compile::Kind::ALL.into_iter().flat_map(|kind| [BUILD, "clippy"].map(|what| format!("{what}/{}", kind.dir())));
    !rows.is_empty()
        || session::ROWS.iter().map(|row| row.name).chain([IMAGE_SIZE]).any(|name| filter.takes(name))
        || fixed.into_iter().any(|name| filter.takes(&name))
}

/// Everything that needs the bare-metal toolchain.
fn bare_metal_tests(
    report: &mut Report,
    workspace: &Workspace,
    filter: Filter<'_>,
    guests: &[Guest],
    rows: Vec<guests::Row>,
) -> Result<()> {
    let toolchain = match Toolchain::bare_metal(workspace) {
        Ok(toolchain) => toolchain,
        Err(error) => {
            report.add(BUILD, &Verdict::Fail(format!("{error:#}")), None);
            return Ok(());
        }
    };
    let wanted: Vec<(Arch, Vec<&Guest>)> = Arch::ALL
        .into_iter()
        .map(|arch| {
            let of_rows = |guest: &&Guest| {
                rows.iter().flat_map(guests::Row::guests).any(|wanted| wanted == (guest.name.as_str(), arch))
            };
            (arch, guests.iter().filter(of_rows).collect())
        })
        .filter(|(_, list): &(Arch, Vec<&Guest>)| !list.is_empty())
        .collect();
    let made = compile::everything(&toolchain, workspace, Profile::Release, &wanted);
    let (hypervisor, seconds) = made.hypervisor;
    report.add("build/hypervisor", &verdict_of(hypervisor.as_ref().map(drop)), Some(seconds));
    let mut images = guests::Images::new();
    for (arch, (built, seconds)) in made.guests {
        report.add(&format!("{BUILD}/guest-{arch}"), &verdict_of(built.as_ref().map(drop)), Some(seconds));
        images.extend(built.into_iter().flatten().map(|e| ((e.package, arch), e.path)));
    }
    if let Ok(hypervisor) = hypervisor {
        if filter.takes(IMAGE_SIZE) {
            report.add(IMAGE_SIZE, &image_size(&hypervisor.elf), None);
        }
        if !rows.is_empty() {
            qemu::need()?;
        }
        if rows.iter().any(|row| row.spec.boot == Boot::Iso) {
            iso::need()?;
        }
        for row in session::ROWS.iter().filter(|row| filter.takes(row.name)) {
            session::run(row, report, workspace, &toolchain, &hypervisor, guests)?;
        }
        let runner = guests::Runner::new(workspace, hypervisor, images)?;
        runner.run_all(rows, |name, verdict, seconds| report.add(name, verdict, Some(seconds)));
    }
    if filter.0.is_none_or(|text| text.contains("clippy")) {
        for planned in lint::bare_metal(workspace, &toolchain)? {
            check(report, filter, planned)?;
        }
    }
    Ok(())
}

fn verdict_of(result: std::result::Result<(), &anyhow::Error>) -> Verdict {
    match result {
        Ok(()) => Verdict::Pass,
        Err(error) => Verdict::Fail(format!("{error:#}")),
    }
}

/// Makes one check if the filter takes it; tells whether it did.
fn check(report: &mut Report, filter: Filter<'_>, planned: Planned) -> Result<bool> {
    if process::interrupted() {
        return Ok(false);
    }
    match planned {
        Planned::Skip(name, why) if filter.takes(&name) => {
            anstream::println!("{NOTE}skip{NOTE:#}  {name}: {why}");
            Ok(true)
        }
        Planned::Check(mut check) if filter.takes(&check.name) => {
            let start = Instant::now();
            let capture = crate::console::Capture::default();
            let (end, errors) = process::stream(&mut check.command, None, capture.clone())?;
            let log = report.log(&check.name);
            std::fs::write(&log, capture.text() + &errors)
                .with_context(|| format!("cannot write {}", log.display()))?;
            let verdict = match end {
                process::End::Exited(status) if status.success() => Verdict::Pass,
                process::End::Exited(_) => Verdict::Fail("not clean".to_owned()),
                _ => Verdict::Fail("interrupted".to_owned()),
            };
            report.add(&check.name, &verdict, Some(start.elapsed().as_secs_f32()));
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The size check of the hypervisor's image.
fn image_size(path: &Path) -> Verdict {
    let size = std::fs::read(path)
        .map_err(anyhow::Error::from)
        .and_then(|bytes| Ok(elf::Executable::parse(&bytes)?.loaded_size()));
    match size {
        Ok(size) if size < IMAGE_LIMIT => Verdict::Pass,
        Ok(size) => Verdict::Fail(format!("{size} bytes are loaded; the limit is {IMAGE_LIMIT}")),
        Err(error) => Verdict::Fail(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_never_longer_than_the_text() {
        assert_eq!(tail("a\nb\nc", 2), ["b", "c"]);
        assert_eq!(tail("a", 2), ["a"]);
        assert!(tail("", 2).is_empty());
    }

    #[test]
    fn a_filter_takes_parts_of_names() {
        assert!(Filter(Some("x86_32/q35")).takes("hello/x86_32/q35"));
        assert!(!Filter(Some("x86_64")).takes("hello/x86_32"));
        assert!(Filter(None).takes("anything"));
    }

    #[test]
    fn the_image_limit_counts_loaded_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        let write = |size: usize| {
            std::fs::write(&path, crate::multiboot::tests::sample_elf64(&vec![0; size], 0, 0x10_0000))
                .expect("writable");
            image_size(&path)
        };
        assert_eq!(write((1 << 20) - 1), Verdict::Pass);
        assert!(matches!(write(1 << 20), Verdict::Fail(_)));
    }
}
