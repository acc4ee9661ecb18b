//! Further domains, which the hypervisor builds beside domain 0: how `--domain` and manifests name them.
//!
//! `GUEST[/ARCH] [options] [-- command line]`: a package under `guests/`, its architecture (`same` as domain 0's, which
//! is the default, `other`, or by name), the hypervisor's options for it (`hypervisor/src/domain_options.rs`), and what
//! is the guest's own. In place of a package, a path to an ELF file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::guest_meta::Arch;

/// A further domain, as it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Further {
    /// A package, or a file.
    kernel: String,
    arch: Choice,
    /// What follows the word `domain` in its module's command line.
    line: String,
}

/// Which architecture, seen from domain 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Same,
    Other,
    Named(Arch),
}

/// A further domain, ready to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its module's command line, without the file's name.
    pub line: String,
}

impl FromStr for Further {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (kernel, line) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        ensure!(!kernel.is_empty() && !kernel.starts_with('-'), "a domain begins with its guest: `{text}`");
        let line = line.trim().to_owned();
        let as_it_is = |arch| Self { kernel: kernel.to_owned(), arch, line: line.clone() };
        if Path::new(kernel).is_file() {
            return Ok(as_it_is(Choice::Same));
        }
        let Some((package, arch)) = kernel.rsplit_once('/') else { return Ok(as_it_is(Choice::Same)) };
        let arch = match arch {
            "same" => Choice::Same,
            "other" => Choice::Other,
            name => Choice::Named(
                Arch::from_str(name, false).ok().with_context(|| format!("no file, and no guest: `{kernel}`"))?,
            ),
        };
        Ok(Self { kernel: package.to_owned(), arch, line })
    }
}

impl Further {
    /// The package it is built from, and for which architecture; none if it is a file.
    pub fn package(&self, domain0: Arch) -> Option<(&str, Arch)> {
        let arch = match self.arch {
            Choice::Same => domain0,
            Choice::Other if domain0 == Arch::X86_32 => Arch::X86_64,
            Choice::Other => Arch::X86_32,
            Choice::Named(arch) => arch,
        };
        (!Path::new(&self.kernel).is_file()).then_some((&self.kernel, arch))
    }

    /// What is booted; `built` is its package's executable, if it has one.
    pub fn module(&self, built: Option<&Path>) -> Module {
        let kernel = built.map_or_else(|| self.kernel.clone().into(), Path::to_owned);
        Module { kernel, line: format!("domain {}", self.line).trim_end().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Further {
        text.parse().expect("valid")
    }

    #[test]
    fn a_guest_its_architecture_and_its_line() {
        let plain = parse("hello");
        assert_eq!(plain.package(Arch::X86_32), Some(("hello", Arch::X86_32)));
        assert_eq!(plain.module(Some(Path::new("x"))), Module { kernel: "x".into(), line: "domain".to_owned() });
        let other = parse(" hello/other  mem=8M -- a  b ");
        assert_eq!(other.package(Arch::X86_32), Some(("hello", Arch::X86_64)));
        assert_eq!(other.package(Arch::X86_64), Some(("hello", Arch::X86_32)));
        assert_eq!(other.module(None).line, "domain mem=8M -- a  b");
        assert_eq!(parse("hello/x86_32").package(Arch::X86_64), Some(("hello", Arch::X86_32)));
        let file = parse(&format!("{} -- x", file!().strip_prefix("xtask/").unwrap_or(file!())));
        assert_eq!(file.package(Arch::X86_64), None);
    }

    #[test]
    fn what_is_no_domain() {
        for bad in ["", "  ", "-- x", "no/such/file", "hello/arm"] {
            assert!(bad.parse::<Further>().is_err(), "{bad:?}");
        }
    }
}
