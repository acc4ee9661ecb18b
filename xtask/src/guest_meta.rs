//! `[package.metadata.proxenos]`: what a guest's manifest says about building, running and judging it.
//!
//! The package's own keys describe its plain run and are the defaults of every other; each
//! `[[package.metadata.proxenos.run]]` table is one more run with some keys of its own. Unknown keys are refused,
//! so that a misspelt expectation cannot pass for a met one. CONTRIBUTING.md lists the keys for authors of guests.

use std::fmt;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::further::Further;

/// A guest architecture of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Deserialize, Serialize)]
pub enum Arch {
    /// 32 bits, two-level page tables.
    #[value(name = "x86_32")]
    #[serde(rename = "x86_32")]
    X86_32,
    /// 64 bits, four-level page tables.
    #[value(name = "x86_64")]
    #[serde(rename = "x86_64")]
    X86_64,
}

impl Arch {
    /// Both, in the order they are built and tested.
    pub const ALL: [Self; 2] = [Self::X86_32, Self::X86_64];
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_32 => "x86_32",
            Self::X86_64 => "x86_64",
        })
    }
}

/// A machine that QEMU makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// i440FX, the PC of 1996.
    Pc,
    /// Q35, with PCI Express.
    Q35,
    /// No PCI and no BIOS to speak of, as in cloud monitors.
    #[value(name = "microvm")]
    Microvm,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        })
    }
}

/// How the hypervisor is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// QEMU's `-kernel` by the PVH note.
    Pvh,
    /// QEMU's `-kernel` by Multiboot 1.
    Multiboot,
    /// GRUB, from an ISO image, by Multiboot 2.
    Iso,
}

/// What a guest is for, and so how a run of it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Judged by exit status and `expect` alone.
    Example,
    /// Must also print its `Test result:` line.
    Test,
}

/// A bound on a number the console shows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Max {
    /// Regular expression whose first group is the number, which may hold `_` or `,` between its digits.
    pub pattern: String,
    /// Largest number that passes.
    pub value: u64,
}

/// What is typed at the serial console, and when.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// A text that the console must have shown before, once for every input that waits for the same text.
    pub after: String,
    /// The bytes.
    pub send: String,
}

/// Non-maskable interrupts that the machine gets while it runs, one after the other until it ends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nmis {
    /// A text that the console must have shown before the first.
    pub after: String,
    /// How many the hypervisor must have taken.
    pub least: u64,
    /// What port 61h of the PC says of their cause, in place of what the machine has there. What is written to it is
    /// kept.
    pub reason: Option<u8>,
    /// The first byte that must have been written to that port.
    pub answer: Option<u8>,
}

/// A change made to a copy of the guest's ELF file before it is booted: how bad images are made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Spoil {
    /// Keep only so many bytes.
    Truncate(u64),
    /// Write these bytes at this offset.
    Write {
        /// Offset in the file.
        at: u64,
        /// What to write there.
        bytes: Vec<u8>,
    },
    /// Replace every occurrence of a text by another of the same length.
    Replace {
        /// What must occur.
        from: String,
        /// What takes its place.
        to: String,
    },
    /// Write these bytes at an offset in the program header of the nth PT_LOAD segment.
    Segment {
        /// Which PT_LOAD, from 0.
        load: usize,
        /// Offset in its program header.
        at: u64,
        /// What to write there.
        bytes: Vec<u8>,
    },
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// The keys of a run, as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawRun {
    name: Option<String>,
    arch: Option<Vec<Arch>>,
    timeout: Option<u64>,
    memory: Option<u32>,
    cpus: Option<u16>,
    cpu_model: Option<String>,
    machine: Option<Machine>,
    boot: Option<Boot>,
    hv_args: Option<String>,
    cmdline: Option<String>,
    initrd: Option<String>,
    domains: Option<OneOrMany>,
    expect: Option<OneOrMany>,
    forbid: Option<OneOrMany>,
    expect_status: Option<u8>,
    icount: Option<bool>,
    devices: Option<OneOrMany>,
    input: Option<Vec<Input>>,
    nmi: Option<Nmis>,
    max: Option<Vec<Max>>,
    script: Option<String>,
    uploads: Option<OneOrMany>,
    spoil: Option<Vec<Spoil>>,
}

/// The keys that only the package has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawOuter {
    kind: Option<Kind>,
    plain: Option<bool>,
    run: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// One run of a guest, all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// The run's name; none for the plain one.
    pub name: Option<String>,
    /// Architectures it is made for.
    pub arch: Vec<Arch>,
    /// Seconds after which QEMU is killed and the run has failed.
    pub timeout: u64,
    /// The machine's memory in MiB.
    pub memory: u32,
    /// Its CPUs.
    pub cpus: u16,
    /// What they are, as `-cpu` of QEMU has it; all that the emulator can without it.
    pub cpu_model: Option<String>,
    /// The machine.
    pub machine: Machine,
    /// The way in.
    pub boot: Boot,
    /// Options for the hypervisor.
    pub hv_args: String,
    /// The guest's command line.
    pub cmdline: String,
    /// Initial RAM disk, relative to the package.
    pub initrd: Option<String>,
    /// Further domains.
    pub domains: Vec<Further>,
    /// Texts the console must show, in this order.
    pub expect: Vec<String>,
    /// Texts it must not show.
    pub forbid: Vec<String>,
    /// The exit status that passes.
    pub expect_status: u8,
    /// Whether time is counted in instructions.
    pub icount: bool,
    /// Devices that the machine has besides, as `-device` of QEMU has them.
    pub devices: Vec<String>,
    /// What is typed, in this order.
    pub input: Vec<Input>,
    /// Its non-maskable interrupts.
    pub nmi: Option<Nmis>,
    /// Bounds on numbers the console shows.
    pub max: Vec<Max>,
    /// What talks to the control domain (`suite/talk`), if the guest is that.
    pub script: Option<String>,
    /// Guests that the script may upload.
    pub uploads: Vec<Further>,
    /// Changes to the guest's image.
    pub spoil: Vec<Spoil>,
}

/// A guest's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMeta {
    /// What it is for.
    pub kind: Kind,
    /// Architectures it can be built for.
    pub arch: Vec<Arch>,
    /// Its runs under `cargo xtask test`.
    pub runs: Vec<RunSpec>,
}

const OUTER_KEYS: [&str; 3] = ["kind", "plain", "run"];
const RUN_KEYS: [&str; 23] = [
    "name",
    "arch",
    "timeout",
    "memory",
    "cpus",
    "cpu-model",
    "machine",
    "boot",
    "hv-args",
    "cmdline",
    "initrd",
    "domains",
    "expect",
    "forbid",
    "expect-status",
    "icount",
    "devices",
    "input",
    "nmi",
    "max",
    "script",
    "uploads",
    "spoil",
];

impl GuestMeta {
    /// Reads the `proxenos` key of a package's metadata; an absent one makes an example with all defaults.
    pub fn from_package_metadata(metadata: &serde_json::Value) -> Result<Self> {
        let own = match metadata.get("proxenos") {
            None => serde_json::Map::new(),
            Some(serde_json::Value::Object(map)) => map.clone(),
            Some(_) => bail!("must be a table"),
        };
        for key in own.keys() {
            ensure!(
                key != "name" && (OUTER_KEYS.contains(&key.as_str()) || RUN_KEYS.contains(&key.as_str())),
                "unknown key `{key}`"
            );
        }
        let outer: RawOuter = serde_json::from_value(serde_json::Value::Object(own.clone()))?;
        let base: RawRun = serde_json::from_value(serde_json::Value::Object(own.clone()))?;
        let arch = base.arch.clone().unwrap_or_else(|| Arch::ALL.to_vec());
        let mut runs = Vec::new();
        if outer.plain.unwrap_or(true) {
            runs.push(RunSpec::new(base)?);
        }
        for table in outer.run {
            // A run's keys over the package's: whole keys, never parts of one.
            let mut merged = own.clone();
            OUTER_KEYS.iter().for_each(|key| drop(merged.remove(*key)));
            for (key, value) in table {
                ensure!(RUN_KEYS.contains(&key.as_str()), "unknown key `{key}` in a run");
                merged.insert(key, value);
            }
            let raw: RawRun = serde_json::from_value(serde_json::Value::Object(merged))?;
            let spec = RunSpec::new(raw)?;
            let Some(name) = &spec.name else { bail!("a run needs a `name`") };
            ensure!(spec.arch.iter().all(|a| arch.contains(a)), "run `{name}` is for an architecture the guest is not");
            ensure!(runs.iter().all(|r: &RunSpec| r.name != spec.name), "two runs are named `{name}`");
            runs.push(spec);
        }
        Ok(Self { kind: outer.kind.unwrap_or(Kind::Example), arch, runs })
    }
}

impl RunSpec {
    fn new(raw: RawRun) -> Result<Self> {
        let domains = raw.domains.map(OneOrMany::into_vec).unwrap_or_default();
        let domains = domains.iter().map(|text| text.parse()).collect::<Result<Vec<Further>>>()?;
        let uploads = raw.uploads.map(OneOrMany::into_vec).unwrap_or_default();
        let uploads = uploads.iter().map(|text| text.parse()).collect::<Result<Vec<Further>>>()?;
        let has_modules = raw.initrd.is_some() || !domains.is_empty();
        let spec = Self {
            name: raw.name,
            arch: raw.arch.unwrap_or_else(|| Arch::ALL.to_vec()),
            timeout: raw.timeout.unwrap_or(60),
            memory: raw.memory.unwrap_or(128),
            cpus: raw.cpus.unwrap_or(1),
            cpu_model: raw.cpu_model,
            machine: raw.machine.unwrap_or(Machine::Pc),
            boot: raw.boot.unwrap_or(if has_modules { Boot::Multiboot } else { Boot::Pvh }),
            hv_args: raw.hv_args.unwrap_or_default(),
            cmdline: raw.cmdline.unwrap_or_default(),
            initrd: raw.initrd,
            domains,
            expect: raw.expect.map(OneOrMany::into_vec).unwrap_or_default(),
            forbid: raw.forbid.map(OneOrMany::into_vec).unwrap_or_default(),
            expect_status: raw.expect_status.unwrap_or(0),
            icount: raw.icount.unwrap_or(false),
            devices: raw.devices.map(OneOrMany::into_vec).unwrap_or_default(),
            input: raw.input.unwrap_or_default(),
            nmi: raw.nmi,
            max: raw.max.unwrap_or_default(),
            script: raw.script,
            uploads,
            spoil: raw.spoil.unwrap_or_default(),
        };
        ensure!(spec.cpus > 0, "a machine has at least one CPU");
        ensure!(
            !(spec.boot == Boot::Pvh && has_modules),
            "PVH in QEMU carries one module: an initrd or a further domain needs boot = \"multiboot\" or \"iso\""
        );
        let answers = spec.nmi.as_ref().is_none_or(|nmi| nmi.answer.is_none() || nmi.reason.is_some());
        ensure!(answers, "what is written to port 61h is seen only where `reason` says what is read there");
        for max in &spec.max {
            let regex = regex_lite::Regex::new(&max.pattern)?;
            ensure!(regex.captures_len() == 2, "`{}` must have exactly one group", max.pattern);
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(toml_as_json: &str) -> Result<GuestMeta> {
        GuestMeta::from_package_metadata(&serde_json::from_str(toml_as_json).expect("the test's own JSON"))
    }

    #[test]
    fn nothing_said_is_an_example_on_both_architectures() {
        let meta = parse("null").expect("defaults");
        assert_eq!(meta.kind, Kind::Example);
        assert_eq!(meta.arch, Arch::ALL);
        assert_eq!(meta.runs.len(), 1);
        let run = &meta.runs[0];
        assert_eq!((run.timeout, run.memory, run.cpus, run.machine, run.boot), (60, 128, 1, Machine::Pc, Boot::Pvh));
    }

    #[test]
    fn runs_inherit_and_override_whole_keys() {
        let meta = parse(
            r#"{"proxenos": {"kind": "test", "arch": ["x86_64"], "expect": ["a", "b"], "memory": 64, "cpus": 2,
                "run": [{"name": "big", "memory": 512, "expect": "c"}, {"name": "bad", "expect-status": 125,
                         "spoil": [{"truncate": 100}, {"replace": {"from": "ab", "to": "cd"}},
                                   {"write": {"at": 4, "bytes": [1]}},
                                   {"segment": {"load": 1, "at": 16, "bytes": [0, 0]}}]}]}}"#,
        )
        .expect("valid");
        assert_eq!(meta.kind, Kind::Test);
        assert_eq!(meta.runs.len(), 3);
        assert_eq!((meta.runs[1].memory, meta.runs[1].cpus), (512, 2));
        assert_eq!(meta.runs[1].expect, ["c"]);
        assert_eq!(meta.runs[2].expect, ["a", "b"]);
        assert_eq!(meta.runs[2].arch, [Arch::X86_64]);
        assert_eq!(meta.runs[2].expect_status, 125);
        assert_eq!(meta.runs[2].spoil[0], Spoil::Truncate(100));
        assert_eq!(meta.runs[2].spoil.len(), 4);
    }

    #[test]
    fn the_plain_run_can_be_left_out() {
        let meta = parse(r#"{"proxenos": {"plain": false, "run": [{"name": "x"}]}}"#).expect("valid");
        assert_eq!(meta.runs.len(), 1);
        assert_eq!(meta.runs[0].name.as_deref(), Some("x"));
    }

    #[test]
    fn an_initrd_chooses_multiboot() {
        let meta = parse(r#"{"proxenos": {"initrd": "disk.img"}}"#).expect("valid");
        assert_eq!(meta.runs[0].boot, Boot::Multiboot);
        assert!(parse(r#"{"proxenos": {"initrd": "disk.img", "boot": "pvh"}}"#).is_err());
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [
            r#"{"proxenos": 3}"#,
            r#"{"proxenos": {"expcet": "x"}}"#,
            r#"{"proxenos": {"name": "x"}}"#,
            r#"{"proxenos": {"run": [{"expect": "x"}]}}"#,
            r#"{"proxenos": {"run": [{"name": "x", "kind": "test"}]}}"#,
            r#"{"proxenos": {"run": [{"name": "x"}, {"name": "x"}]}}"#,
            r#"{"proxenos": {"arch": ["x86_32"], "run": [{"name": "x", "arch": ["x86_64"]}]}}"#,
            r#"{"proxenos": {"arch": ["arm"]}}"#,
            r#"{"proxenos": {"max": [{"pattern": "no group", "value": 1}]}}"#,
            r#"{"proxenos": {"cpus": 0}}"#,
            r#"{"proxenos": {"spoil": [{"burn": 1}]}}"#,
            r#"{"proxenos": {"nmi": {"after": "x", "least": 1, "answer": 5}}}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
