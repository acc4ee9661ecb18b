//! Figures: what the guest prints, and the committed baseline.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::guest_meta::Arch;

/// The committed baseline, beside the guest's manifest.
const BASELINE: &str = "baseline.json";
/// How the guest's lines begin: a name and a number follow.
const PREFIX: &str = "bench ";
/// The guest's last line.
const DONE: &str = "bench done";
/// What a measurement of nothing takes. It is no operation.
const OVERHEAD: &str = "overhead";

/// What each operation took.
pub type Figures = BTreeMap<String, u64>;

/// Reads the figures off a console.
///
/// # Errors
/// If the guest did not come to its end, or a line of its own is not a name and a number.
pub fn parse(console: &str) -> Result<Figures> {
    ensure!(console.lines().any(|line| line == DONE), "the benchmark did not come to its end:\n{console}");
    let mut figures = Figures::new();
    for line in console.lines().filter(|&line| line != DONE) {
        let Some((name, value)) = line.strip_prefix(PREFIX).and_then(|rest| rest.split_once(' ')) else { continue };
        let value = value.parse().with_context(|| format!("not a figure: `{line}`"))?;
        if name != OVERHEAD {
            ensure!(figures.insert(name.to_owned(), value).is_none(), "`{name}` was measured twice");
        }
    }
    Ok(figures)
}

/// What a measurement of nothing took; 0 if the guest does not say.
pub fn overhead(console: &str) -> u64 {
    let line = console.lines().find_map(|line| line.strip_prefix(PREFIX)?.strip_prefix(OVERHEAD));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Reads a committed file; none if it is not there.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} is not as it should be", path.display()))
}

/// Writes one.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What figures were when somebody was content with them.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Baseline {
    /// What `rustc --version` said of the compiler.
    pub compiler: String,
    /// The figures.
    pub instructions: BTreeMap<Arch, Figures>,
}

impl Baseline {
    /// Reads it; an empty one if there is none.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(read_json(&dir.join(BASELINE))?.unwrap_or_default())
    }

    /// Writes it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(BASELINE), self)
    }

    /// What it says of an operation.
    pub fn figure(&self, arch: Arch, name: &str) -> Option<u64> {
        self.instructions.get(&arch)?.get(name).copied()
    }

    /// With new figures in the place of old ones; what was not measured stays, if the compiler is the same.
    pub fn updated(self, compiler: String, new: BTreeMap<Arch, Figures>) -> Self {
        let mut instructions = if self.compiler == compiler { self.instructions } else { BTreeMap::new() };
        for (arch, figures) in new {
            instructions.entry(arch).or_default().extend(figures);
        }
        Self { compiler, instructions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_off_a_console() {
        let figures = parse("(px) boot\nbench overhead 3\nbench null 63\nother\nbench done\n").expect("whole");
        assert_eq!(figures, Figures::from([("null".to_owned(), 63)]));
        assert_eq!(overhead("(px) boot\nbench overhead 3\n"), 3);
        assert!(parse("bench null 63\n").is_err(), "it did not end");
        assert!(parse("bench null x\nbench done\n").is_err());
        assert!(parse("bench null 1\nbench null 2\nbench done\n").is_err());
    }

    #[test]
    fn a_baseline_keeps_what_was_not_measured() {
        let of = |list: &[(&str, u64)]| list.iter().map(|&(name, value)| (name.to_owned(), value)).collect::<Figures>();
        let old = || Baseline {
            compiler: "a".to_owned(),
            instructions: BTreeMap::from([(Arch::X86_32, of(&[("x", 1), ("y", 2)]))]),
        };
        let new = BTreeMap::from([(Arch::X86_32, of(&[("y", 3)]))]);
        let kept = old().updated("a".to_owned(), new.clone());
        assert_eq!((kept.figure(Arch::X86_32, "x"), kept.figure(Arch::X86_32, "y")), (Some(1), Some(3)));
        let other = old().updated("b".to_owned(), new);
        assert_eq!((other.figure(Arch::X86_32, "x"), other.figure(Arch::X86_32, "y")), (None, Some(3)));
    }

    #[test]
    fn a_baseline_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Baseline::read(dir.path()).expect("none").instructions.is_empty());
        let figures = BTreeMap::from([(Arch::X86_64, Figures::from([("null".to_owned(), 60)]))]);
        Baseline::default().updated("c".to_owned(), figures).write(dir.path()).expect("writable");
        let read = Baseline::read(dir.path()).expect("just written");
        assert_eq!((read.compiler.as_str(), read.figure(Arch::X86_64, "null")), ("c", Some(60)));
    }
}
