//! The runs: what is booted for a figure, and how figures are read off it.
//!
//! An architecture takes four: the operations where time is counted in instructions, whose figures are judged; the same
//! where time is the emulator's, whose cycles are for the eye; and two machines of different size, whose guest looks
//! only at what memory there is for domains: the rest is the hypervisor's. The smaller of the two also gives the time
//! of the boot.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use regex_lite::Regex;

use super::figures::{self, Figures};
use crate::accel::Accel;
use crate::compile::Hypervisor;
use crate::console::Capture;
use crate::further::Module;
use crate::guest_meta::Machine;
use crate::process;
use crate::qemu::{Boot, Clock, Debugger, Outcome, Vm};

/// Memory of the machine that operations are measured on, in MiB.
pub const MEMORY: u32 = 128;
/// Memory of the machines whose sizes are compared, in MiB.
const SIZES: [u32; 2] = [1024, 3072];
/// What the hypervisor is told: domain 0 is the same in each machine, and leaves room for domains that are created.
const OPTIONS: &str = "dom0_mem=64M";
/// The guest's command line where it looks at memory alone.
const MEMORY_ONLY: &str = "only=memory";
/// Where the hypervisor says how long it took to boot.
const BOOT: &str = r"boot: (\d+) TSC cycles";
/// Where the guest says how many bytes domains have or can have.
const FOR_DOMAINS: &str = r"(?m)^memory (\d+)$";
/// Names of figures that come from the machines of different size.
const MACHINE_ROWS: [&str; 4] = ["boot", "boot-hypervisor", "memory-fixed", "memory-per-gib"];

/// What is booted to measure on one architecture.
#[derive(Clone, Debug)]
pub struct Images {
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// The guest.
    pub guest: PathBuf,
}

impl Images {
    /// A machine with the guest twice: as domain 0, and as the domain that turns and events go to.
    pub fn vm(&self, memory: u32, clock: Clock, cmdline: &str) -> Vm {
        Vm {
            machine: Machine::Pc,
            memory,
            accel: Accel::Tcg,
            boot: Boot::Multiboot {
                hypervisor: self.hypervisor.multiboot.clone(),
                kernel: self.guest.clone(),
                initrd: None,
                further: vec![Module { kernel: self.guest.clone(), line: "domain mem=8M".to_owned() }],
            },
            hv_args: OPTIONS.to_owned(),
            cmdline: cmdline.to_owned(),
            clock,
            debugger: Debugger::None,
        }
    }

    /// The usual machine.
    pub fn usual(&self, clock: Clock, cmdline: &str) -> Vm {
        self.vm(MEMORY, clock, cmdline)
    }

    /// What operations take, those that `wanted` names.
    pub fn operations(&self, clock: Clock, wanted: impl Fn(&str) -> bool) -> Result<Figures> {
        let mut figures = figures::parse(&run(&self.usual(clock, ""))?)?;
        figures.retain(|name, _| wanted(name));
        Ok(figures)
    }

    /// What the machine itself takes: booting it, and the hypervisor's memory. Nothing is booted if nothing of it is
    /// wanted.
    pub fn machine(&self, wanted: impl Fn(&str) -> bool) -> Result<Figures> {
        if !MACHINE_ROWS.into_iter().any(&wanted) {
            return Ok(Figures::new());
        }
        let [small, large] = SIZES.map(|memory| run(&self.vm(memory, Clock::Instructions, MEMORY_ONLY)));
        let mut figures = machine_figures(&small?, &large?)?;
        figures.retain(|name, _| wanted(name));
        Ok(figures)
    }
}

/// Boots a machine until it ends by itself: what its console showed.
fn run(vm: &Vm) -> Result<String> {
    let links = tempfile::tempdir()?;
    let capture = Capture::default();
    let (end, errors) = process::stream(&mut vm.command(links.path())?, None, capture.clone())?;
    let console = capture.text();
    let outcome = Outcome::read(end, &console, &errors);
    ensure!(outcome == Outcome::Shutdown(0), "the benchmark ended as {outcome:?}:\n{console}{errors}");
    Ok(console)
}

/// The number that a pattern's group finds.
fn number(console: &str, pattern: &str) -> Result<u64> {
    let found =
        Regex::new(pattern)?.captures(console).with_context(|| format!("nothing like `{pattern}`:\n{console}"))?;
    Ok(found[1].parse()?)
}

/// What two consoles, of machines of both sizes, tell of the machine.
fn machine_figures(small: &str, large: &str) -> Result<Figures> {
    let [used, used_large] = [(small, SIZES[0]), (large, SIZES[1])].map(|(console, mib)| {
        let there_is = u64::from(mib) << 20;
        let known = number(console, FOR_DOMAINS)?;
        there_is.checked_sub(known).with_context(|| format!("{known} bytes in a machine of {mib} MiB"))
    });
    let (used, used_large) = (used?, used_large?);
    let more = used_large.checked_sub(used).context("a larger machine takes less memory")?;
    let per_gib = (more << 10) / u64::from(SIZES[1] - SIZES[0]);
    let fixed = used.saturating_sub((per_gib * u64::from(SIZES[0])) >> 10);
    let mut figures = figures::parse(small)?;
    figures.retain(|name, _| name == "boot");
    figures.insert("boot-hypervisor".to_owned(), number(small, BOOT)?);
    figures.insert("memory-fixed".to_owned(), fixed);
    figures.insert("memory-per-gib".to_owned(), per_gib);
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(memory: u64) -> String {
        format!("(px) boot: 77 TSC cycles from\nbench boot 99\nmemory {memory}\nbench done\n")
    }

    #[test]
    fn what_grows_with_the_machine_is_told_from_what_does_not() {
        // 3 MiB, and 8 for each GiB.
        let figures = machine_figures(&console((1024 - 3 - 8) << 20), &console((3072 - 3 - 24) << 20)).expect("both");
        let of = |name: &str| figures[name];
        assert_eq!((of("memory-fixed"), of("memory-per-gib")), (3 << 20, 8 << 20));
        assert_eq!((of("boot"), of("boot-hypervisor")), (99, 77));
        assert_eq!(figures.len(), MACHINE_ROWS.len());
    }

    #[test]
    fn more_memory_than_there_is_is_no_figure() {
        assert!(machine_figures(&console(1025 << 20), &console(3000 << 20)).is_err());
        assert!(machine_figures("bench done\n", &console(3000 << 20)).is_err());
    }
}
