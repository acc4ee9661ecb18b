//! What a guest is to be: from a TOML file, from one of xm's, and from the command line.

pub mod classic;
mod toml;

use std::path::{Path, PathBuf};

use proxenos_rpc::{Config, DomainSched, Kib, Millis, Name, Nanos, OnCrash, Restart, Start, Text};

use crate::problem::{Problem, Result, Status};

/// A guest's description. What is not given is chosen when it is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// Its name.
    pub name: Option<String>,
    /// Its kernel.
    pub kernel: Option<PathBuf>,
    /// Its ramdisk.
    pub ramdisk: Option<PathBuf>,
    /// Its memory.
    pub memory: Option<Kib>,
    /// The memory it may grow to.
    pub memory_limit: Option<Kib>,
    /// The CPU it stays on.
    pub cpu: Option<u32>,
    /// Its command line.
    pub cmdline: Option<String>,
    /// When it is started again.
    pub restart: Option<Restart>,
    /// What happens when it crashes.
    pub on_crash: Option<OnCrash>,
    /// Its scheduling.
    pub sched: Option<DomainSched>,
}

/// A weight of 100 is what a new domain has under borrowed virtual time, where it is an advance of 10.
pub const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=1000;

/// A share of the CPU, in relation to others', as the parameters of borrowed virtual time.
///
/// # Errors
/// It is not within [`WEIGHTS`].
pub fn weight(weight: u32) -> std::result::Result<DomainSched, String> {
    if !WEIGHTS.contains(&weight) {
        return Err(format!("{weight} is no weight: they go from 1 to 1000, and a new domain has 100"));
    }
    Ok(DomainSched::Bvt {
        advance: 1000 / weight,
        warping: false,
        warp: 0,
        warp_limit: Millis(2000),
        unwarp: Millis(1000),
    })
}

/// Memory of a guest that asks for none in particular.
pub const DEFAULT_MEMORY: Kib = Kib(32 << 10);

impl Spec {
    /// Reads a description. Paths in it count from the directory of the file.
    ///
    /// # Errors
    /// The file cannot be read or makes no sense; the message has the line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let status = if error.kind() == std::io::ErrorKind::NotFound { Status::Missing } else { Status::System };
            Problem::new(status, format!("cannot read {}", path.display())).because(error)
        })?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let spec = if path.extension().is_some_and(|ext| ext == "toml") {
            toml::parse(&text)
        } else {
            classic::parse(&text).map_err(|error| error.to_string())
        };
        let mut spec = spec.map_err(|why| {
            Problem::new(Status::Usage, format!("{} makes no sense", path.display()))
                .because(why)
                .hint("README.md has an example; a file that ends in .toml is read as TOML, any other as one of xm's")
        })?;
        for file in [&mut spec.kernel, &mut spec.ramdisk].into_iter().flatten() {
            *file = dir.join(&*file);
        }
        Ok(spec)
    }

    /// What is given in `other` counts instead.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            name: other.name.or(self.name),
            kernel: other.kernel.or(self.kernel),
            ramdisk: other.ramdisk.or(self.ramdisk),
            memory: other.memory.or(self.memory),
            memory_limit: other.memory_limit.or(self.memory_limit),
            cpu: other.cpu.or(self.cpu),
            cmdline: other.cmdline.or(self.cmdline),
            restart: other.restart.or(self.restart),
            on_crash: other.on_crash.or(self.on_crash),
            sched: other.sched.or(self.sched),
        }
    }

    /// The kernel, and the description as the protocol has it.
    ///
    /// # Errors
    /// Something is missing, or longer than it may be.
    pub fn finish(&self, start: Start) -> Result<(PathBuf, Config)> {
        let wrong = |what: &str| Problem::new(Status::Usage, what);
        let kernel =
            self.kernel.clone().ok_or_else(|| wrong("there is no kernel").hint("name one: `kernel = \"FILE\"`"))?;
        let name = match &self.name {
            Some(name) => {
                Name::new(name).map_err(|why| wrong(&format!("{name:?} is no name for a domain")).because(why))?
            }
            None => name_after(&kernel),
        };
        let memory = self.memory.unwrap_or(DEFAULT_MEMORY);
        if self.memory_limit.is_some_and(|limit| limit < memory) {
            return Err(wrong("the memory is more than its limit"));
        }
        let cmdline = Text::new(self.cmdline.as_deref().unwrap_or_default())
            .map_err(|why| wrong("the command line is too long").because(why))?;
        Ok((
            kernel.clone(),
            Config {
                name,
                memory,
                memory_limit: self.memory_limit,
                cpu: self.cpu,
                sched: self.sched,
                cmdline,
                restart: self.restart.unwrap_or_default(),
                on_crash: self.on_crash.unwrap_or_default(),
                start,
                image: Text::cut(&kernel.to_string_lossy()),
            },
        ))
    }
}

/// A name made of a file's, with a number that tells guests of one file apart.
fn name_after(file: &Path) -> Name {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let stem: String = stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(40).collect();
    let stem = stem.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let stem = if stem.is_empty() { "guest" } else { stem };
    let name = format!("{stem}-{}", std::process::id());
    Name::new(&name).unwrap_or_else(|why| unreachable!("{name:?} is made of what names are made of: {why}"))
}

/// `restart` by the words of TOML and of xm.
fn restart(word: &str) -> std::result::Result<Restart, String> {
    match word {
        "never" => Ok(Restart::Never),
        "on-reboot" | "onreboot" => Ok(Restart::OnReboot),
        "always" => Ok(Restart::Always),
        _ => Err(format!("restart is never, on-reboot or always, not {word:?}")),
    }
}

/// Atropos' parameters of a new domain, but for what is given.
///
/// # Errors
/// The slice is longer than its period.
pub fn atropos(
    period: Nanos,
    slice: Nanos,
    latency: Option<Nanos>,
    extra: bool,
) -> std::result::Result<DomainSched, String> {
    if slice > period {
        return Err("the slice is longer than its period".to_owned());
    }
    Ok(DomainSched::Atropos { period, slice, latency: latency.unwrap_or(period), extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_wrong_is_said() {
        let spec = Spec { kernel: Some("a/b c.elf".into()), ..Spec::default() };
        let (kernel, config) = spec.finish(Start::Paused).expect("fine");
        assert_eq!(kernel, Path::new("a/b c.elf"));
        assert!(config.name.as_str().starts_with("bc-"), "{}", config.name);
        assert_eq!(config.memory, DEFAULT_MEMORY);
        assert!(Spec::default().finish(Start::Running).is_err());
        let bad = [
            Spec { name: Some("7up".into()), ..spec.clone() },
            Spec { memory_limit: Some(Kib(1024)), ..spec.clone() },
            Spec { cmdline: Some("x".repeat(256)), ..spec.clone() },
        ];
        for bad in bad {
            assert!(bad.finish(Start::Running).is_err(), "{bad:?}");
        }
        assert!(Spec { kernel: Some("42".into()), ..Spec::default() }.finish(Start::Running).is_ok());
    }

    #[test]
    fn a_weight_is_an_inverse_advance() {
        assert!(matches!(weight(100), Ok(DomainSched::Bvt { advance: 10, .. })));
        assert!(weight(0).is_err() && weight(1001).is_err());
    }
}
