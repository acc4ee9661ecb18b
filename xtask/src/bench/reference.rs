//! What the operations are called, what each may cost, and what it costs elsewhere: committed files beside the guest's
//! manifest.
//!
//! `reference.toml` is the catalogue: groups of operations in the order in which they are shown. A figure that is not
//! in it is an error, so nothing is measured that no table or plot would show. `xen-2.0.json` and `xen-4.17.json` are
//! what peers need, each with its source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::figures::{Figures, read_json};
use crate::guest_meta::Arch;

/// The catalogue's file.
const CATALOGUE: &str = "reference.toml";

/// What a figure counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Instructions, as the guest counts them.
    #[default]
    Instructions,
    /// Bytes of memory.
    Bytes,
}

/// What is measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its name: the guest's.
    pub name: String,
    /// What it is called in tables and plots.
    pub title: String,
    /// What it may cost.
    #[serde(default)]
    pub budget: BTreeMap<Arch, u64>,
    /// What is counted.
    #[serde(default)]
    pub unit: Unit,
}

/// Operations of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What they are called together.
    pub title: String,
    /// The operations, in the order in which they are shown.
    #[serde(rename = "operation")]
    pub operations: Vec<Operation>,
}

/// All operations.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// In the order in which they are shown.
    #[serde(rename = "group")]
    pub groups: Vec<Group>,
}

impl Catalogue {
    /// Reads the file.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CATALOGUE);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not as it should be", path.display()))
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Result<Self> {
        let catalogue: Self = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        for operation in catalogue.operations() {
            ensure!(names.insert(&operation.name), "`{}` is there twice", operation.name);
        }
        Ok(catalogue)
    }

    /// Every operation.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.groups.iter().flat_map(|group| &group.operations)
    }

    /// # Errors
    /// If there is no such operation: those that there are.
    pub fn has(&self, name: &str) -> Result<()> {
        let names: Vec<&str> = self.operations().map(|operation| operation.name.as_str()).collect();
        ensure!(names.contains(&name), "{CATALOGUE} has no operation `{name}`; there are: {}", names.join(", "));
        Ok(())
    }

    /// # Errors
    /// If a figure belongs to no operation.
    pub fn knows(&self, figures: &Figures) -> Result<()> {
        figures.keys().try_for_each(|name| self.has(name))
    }
}

/// Another hypervisor whose figures stand beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Xen 2.0, whose interface ours is.
    Xen2,
    /// Xen 4.17, Debian's, whose interface is today's.
    Xen4,
}

impl Peer {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xen2 => "Xen 2.0",
            Self::Xen4 => "Xen 4.17",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Xen2 => "xen-2.0.json",
            Self::Xen4 => "xen-4.17.json",
        }
    }
}

/// What a peer needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PeerFigures {
    /// Where the figures come from.
    pub source: String,
    /// The figures.
    pub instructions: BTreeMap<Arch, Figures>,
}

impl PeerFigures {
    /// Reads the committed ones.
    pub fn read(dir: &Path, peer: Peer) -> Result<Self> {
        let path = dir.join(peer.file());
        read_json(&path)?.with_context(|| format!("there is no {}", path.display()))
    }

    /// What an operation needs.
    pub fn figure(&self, arch: Arch, name: &str) -> Option<u64> {
        self.instructions.get(&arch)?.get(name).copied()
    }
}

/// What both peers need.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// Xen 2.0.
    pub xen2: PeerFigures,
    /// Xen 4.17.
    pub xen4: PeerFigures,
}

impl Peers {
    /// Reads the committed figures.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(Self { xen2: PeerFigures::read(dir, Peer::Xen2)?, xen4: PeerFigures::read(dir, Peer::Xen4)? })
    }

    /// One of them.
    pub fn of(&self, peer: Peer) -> &PeerFigures {
        match peer {
            Peer::Xen2 => &self.xen2,
            Peer::Xen4 => &self.xen4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_catalogue_is_refused() {
        let group = |operation: &str| format!("[[group]]\ntitle = \"g\"\n[[group.operation]]\n{operation}");
        assert!(Catalogue::parse(&group("name = \"a\"\ntitle = \"A\"\nbudgte = { x86_32 = 1 }")).is_err());
        let twice = "name = \"a\"\ntitle = \"A\"\n[[group.operation]]\nname = \"a\"\ntitle = \"B\"";
        assert!(Catalogue::parse(&group(twice)).is_err());
        let valid = group("name = \"a\"\ntitle = \"A\"\nbudget = { x86_64 = 2 }\nunit = \"bytes\"");
        let catalogue = Catalogue::parse(&valid).expect("valid");
        let a = catalogue.operations().next().expect("one");
        assert_eq!((a.budget.get(&Arch::X86_64), a.budget.get(&Arch::X86_32), a.unit), (Some(&2), None, Unit::Bytes));
        assert!(catalogue.knows(&Figures::from([("a".to_owned(), 1)])).is_ok());
        assert!(catalogue.knows(&Figures::from([("b".to_owned(), 1)])).is_err());
        assert!(catalogue.has("b").expect_err("none").to_string().ends_with("there are: a"));
    }
}
