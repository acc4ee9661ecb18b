//! Figures: what the guest prints, the committed baseline, and what they are compared with.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::guest_meta::Arch;

/// The committed baseline, beside the guest's manifest.
const BASELINE: &str = "baseline.json";
/// Budgets and peers, there too.
const REFERENCE: &str = "reference.toml";
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
        let path = dir.join(BASELINE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no baseline", path.display()))
    }

    /// Writes it.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(BASELINE);
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
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

/// Budgets and peers.
#[derive(Debug)]
pub struct Reference(BTreeMap<String, Operation>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    #[serde(default)]
    budget: BTreeMap<Arch, u64>,
    #[serde(default)]
    xen: BTreeMap<Arch, u64>,
}

impl Reference {
    /// Reads the file.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(REFERENCE);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not as it should be", path.display()))
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self(toml::from_str(text)?))
    }

    /// What an operation may cost.
    pub fn budget(&self, arch: Arch, name: &str) -> Option<u64> {
        self.0.get(name)?.budget.get(&arch).copied()
    }

    /// What it costs under the Xen that has such guests.
    pub fn xen(&self, arch: Arch, name: &str) -> Option<u64> {
        self.0.get(name)?.xen.get(&arch).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_off_a_console() {
        let figures = parse("(px) boot\nbench overhead 3\nbench null 63\nother\nbench done\n").expect("whole");
        assert_eq!(figures, Figures::from([("null".to_owned(), 63)]));
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

    #[test]
    fn a_misspelt_reference_is_refused() {
        assert!(Reference::parse("[null]\nbudgte = { x86_32 = 1 }").is_err());
        let reference = Reference::parse("[a]\nbudget = { x86_64 = 2 }\nxen = { x86_64 = 9 }").expect("valid");
        assert_eq!(reference.budget(Arch::X86_64, "a"), Some(2));
        assert_eq!(reference.budget(Arch::X86_32, "a"), None);
        assert_eq!((reference.xen(Arch::X86_64, "a"), reference.xen(Arch::X86_32, "a")), (Some(9), None));
    }
}
