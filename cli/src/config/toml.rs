//! Descriptions in TOML:
//!
//! ```toml
//! name = "web"
//! kernel = "web.elf"          # beside this file
//! ramdisk = "initrd.gz"
//! memory = "64M"              # or a number of MiB
//! max-memory = "128M"
//! cpu = 1
//! cmdline = "root=/dev/ram0"
//! restart = "on-reboot"       # never, on-reboot, always
//! on-crash = "keep"           # destroy, keep, restart
//! weight = 200                # borrowed virtual time; or:
//! atropos = { period = "20ms", slice = "5ms", latency = "10ms", extra = true }
//! ```

use std::path::PathBuf;

use proxenos_rpc::{Kib, OnCrash};
use serde::Deserialize;

use super::Spec;
use crate::units::{parse_size, parse_time};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    name: Option<String>,
    kernel: Option<PathBuf>,
    ramdisk: Option<PathBuf>,
    memory: Option<Size>,
    max_memory: Option<Size>,
    cpu: Option<u32>,
    cmdline: Option<String>,
    restart: Option<String>,
    on_crash: Option<Crash>,
    weight: Option<u32>,
    atropos: Option<Atropos>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a size is a number of MiB or a text such as \"64M\"")]
enum Size {
    Mib(u32),
    Text(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Crash {
    Destroy,
    Keep,
    Restart,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Atropos {
    period: String,
    slice: String,
    latency: Option<String>,
    #[serde(default)]
    extra: bool,
}

/// Reads a description.
///
/// # Errors
/// What is wrong, with its line, for people.
pub fn parse(text: &str) -> Result<Spec, String> {
    let file: File = ::toml::from_str(text).map_err(|error| explain(&error.to_string()))?;
    let size = |size: Option<Size>| -> Result<Option<Kib>, String> {
        size.map(|size| match size {
            Size::Mib(mib) => parse_size(&mib.to_string()),
            Size::Text(text) => parse_size(&text),
        })
        .transpose()
    };
    if file.weight.is_some() && file.atropos.is_some() {
        return Err("weight is for one scheduler and atropos for another: give one of them".to_owned());
    }
    let atropos = |a: Atropos| {
        let latency = a.latency.as_deref().map(parse_time).transpose()?;
        super::atropos(parse_time(&a.period)?, parse_time(&a.slice)?, latency, a.extra)
    };
    let sched = match file.weight {
        Some(weight) => Some(super::weight(weight)?),
        None => file.atropos.map(atropos).transpose()?,
    };
    Ok(Spec {
        name: file.name,
        kernel: file.kernel,
        ramdisk: file.ramdisk,
        memory: size(file.memory)?,
        memory_limit: size(file.max_memory)?,
        cpu: file.cpu,
        cmdline: file.cmdline,
        restart: file.restart.as_deref().map(super::restart).transpose()?,
        on_crash: file.on_crash.map(|word| match word {
            Crash::Destroy => OnCrash::Destroy,
            Crash::Keep => OnCrash::Keep,
            Crash::Restart => OnCrash::Restart,
        }),
        sched,
    })
}

/// What else people write, and what it is called here.
const OTHERS: [(&str, &str); 8] = [
    ("`extra`", "`extra` is called cmdline here"),
    ("`append`", "`append` is called cmdline here"),
    ("`initrd`", "`initrd` is called ramdisk here"),
    ("`maxmem`", "`maxmem` is called max-memory here"),
    ("`cpus`", "a domain has one virtual CPU; `cpu` says where it runs"),
    ("`vcpus`", "a domain has one virtual CPU; `cpu` says where it runs"),
    ("`disk`", "there are no block devices yet: pass a ramdisk"),
    ("`vif`", "there are no network devices yet"),
];

fn explain(error: &str) -> String {
    let error = error.trim_end();
    let known = OTHERS.iter().find(|(word, _)| error.contains(&format!("unknown field {word}")));
    known.map_or_else(|| error.to_owned(), |(_, advice)| format!("{error}\n{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proxenos_rpc::{DomainSched, Nanos, Restart};

    #[test]
    fn everything_is_read() {
        let spec = parse(
            "name = 'web'\nkernel = 'k'\nramdisk = 'r'\nmemory = 64\nmax-memory = '1G'\ncpu = 1\ncmdline = 'a b'\n\
             restart = 'always'\non-crash = 'destroy'\natropos = { period = '20ms', slice = '5ms' }\n",
        )
        .expect("fine");
        let period = Nanos(20_000_000);
        let expected = Spec {
            name: Some("web".into()),
            kernel: Some("k".into()),
            ramdisk: Some("r".into()),
            memory: Some(Kib(64 << 10)),
            memory_limit: Some(Kib(1 << 20)),
            cpu: Some(1),
            cmdline: Some("a b".into()),
            restart: Some(Restart::Always),
            on_crash: Some(OnCrash::Destroy),
            sched: Some(DomainSched::Atropos { period, slice: Nanos(5_000_000), latency: period, extra: false }),
        };
        assert_eq!(spec, expected);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_named() {
        for (text, words) in [
            ("kernl = 'x'", "kernl"),
            ("extra = 'x'", "cmdline"),
            ("disk = []", "ramdisk"),
            ("memory = '1T'", "K, M or G"),
            ("memory = true", "number of MiB"),
            ("restart = 'maybe'", "on-reboot"),
            ("on-crash = 'maybe'", "destroy"),
            ("weight = 5000", "1 to 1000"),
            ("weight = 5\natropos = { period = '1s', slice = '1s' }", "one of them"),
            ("atropos = { period = '1s', slice = '2s' }", "longer"),
            ("\n\nname = [", "line 3"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(.|\n){0,200}") {
            let _ = parse(&text);
        }
    }
}
