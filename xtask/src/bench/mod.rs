//! `cargo xtask bench`: what operations cost a guest, beside what they cost before, may cost, and cost elsewhere.
//!
//! The `bench` guest is booted twice an architecture: once where time is counted in instructions (`-icount`), whose
//! figures repeat to the digit and are judged, and once where it is the emulator's time, whose cycles are for the eye: counting
//! instructions is blind to what an instruction costs. The figures of the first run are held against
//!
//! - the committed baseline (`guests/bench/baseline.json`, rewritten by `--save`): more than 2 % above it is a failure. The
//!   compiler decides on instructions as well, so a baseline counts only for the compiler that it was made with;
//! - the budgets in `guests/bench/reference.toml`: above one is a failure. The same file says what peers need, but for one that
//!   is measured in the same run (`--peer`).

mod figures;
mod peer;
mod shares;
mod table;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

pub use peer::Peer;

use crate::BenchArgs;
use crate::accel::Accel;
use crate::compile::{self, Hypervisor, Profile};
use crate::console::{self, Capture};
use crate::further::Module;
use crate::guest_meta::{Arch, Machine};
use crate::process;
use crate::qemu::{self, Boot, Clock, Debugger, Outcome, Vm};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;
use figures::{Baseline, Figures, Reference};

/// The guest that measures.
const GUEST: &str = "bench";
/// Memory of the machine, in MiB.
const MEMORY: u32 = 128;
/// Percent above the baseline from which on a figure is a failure.
const TOLERANCE: f64 = 2.0;

/// What is known of one operation on one architecture.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The operation.
    pub name: String,
    /// The guest's architecture.
    pub arch: Arch,
    /// Instructions, now.
    pub instructions: u64,
    /// What the baseline says, if it was made with this compiler.
    pub baseline: Option<u64>,
    /// What it may cost.
    pub budget: Option<u64>,
    /// What the same costs under the Xen that serves this architecture: 2.0 or 4.17.
    pub xen: Option<u64>,
    /// Cycles of the other run.
    pub cycles: Option<u64>,
}

impl Row {
    /// Whether it costs more than it may.
    pub fn breaks_budget(&self) -> bool {
        self.budget.is_some_and(|budget| self.instructions > budget)
    }

    /// Whether it has become dearer than the baseline allows.
    pub fn regressed(&self) -> bool {
        self.baseline.is_some_and(|before| self.instructions as f64 > before as f64 * (1.0 + TOLERANCE / 100.0))
    }
}

/// Measures and tells; the value is the exit status.
pub fn command(args: &BenchArgs) -> Result<u8> {
    let workspace = Workspace::load()?;
    qemu::need()?;
    let guests = workspace.guests()?;
    let guest = guests.iter().find(|guest| guest.name == GUEST).context("the workspace has no guest `bench`")?;
    let archs: Vec<Arch> = args.arch.map_or_else(|| Arch::ALL.to_vec(), |arch| vec![arch]);
    let toolchain = Toolchain::bare_metal(&workspace)?;
    let wanted: Vec<_> = archs.iter().map(|arch| (*arch, vec![guest])).collect();
    let made = compile::everything(&toolchain, &workspace, Profile::Release, &wanted);
    let hypervisor = made.hypervisor.0?;
    let mut now = BTreeMap::new();
    let mut cycles = BTreeMap::new();
    for (arch, (built, _)) in made.guests {
        let kernel = built?.pop().context("cargo made no executable for the guest")?.path;
        now.insert(arch, measure(&hypervisor, &kernel, Clock::Instructions, args)?);
        cycles.insert(arch, measure(&hypervisor, &kernel, Clock::Host, args)?);
    }
    let of_peer = |peer| peer::measure(peer, &workspace, &toolchain, args.filter.as_deref());
    let peer = args.peer.map(of_peer).transpose()?;
    let compiler = toolchain.compiler()?;
    let reference = Reference::read(&guest.dir)?;
    let old = Baseline::read(&guest.dir)?;
    if old.compiler != compiler {
        let made_with = if old.compiler.is_empty() { "none yet" } else { &old.compiler };
        console::note(&format!("no comparison with the baseline (made with: {made_with}; this is {compiler})"));
    }
    let mut rows = rows(&now, &cycles, &reference, (old.compiler == compiler).then_some(&old));
    if let Some(peer) = &peer {
        for row in rows.iter_mut().filter(|row| row.arch == peer.arch) {
            row.xen = peer.figures.get(&row.name).copied();
        }
        console::note(&peer.remark());
        if args.save {
            peer.save(&guest.dir)?;
            console::step("the peer's figures are rewritten");
        }
    }
    if args.save {
        old.updated(compiler, now).write(&guest.dir)?;
        console::step("the baseline is rewritten");
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        table::print(&rows);
    }
    shares::draw(args)?;
    let broken = rows.iter().filter(|row| row.breaks_budget()).count();
    let regressed = rows.iter().filter(|row| row.regressed()).count();
    if broken + regressed > 0 {
        console::note(&format!("{broken} over their budget, {regressed} more than {TOLERANCE} % over the baseline"));
    }
    Ok(u8::from(broken > 0 || regressed > 0 && !args.save))
}

fn rows(
    now: &BTreeMap<Arch, Figures>,
    cycles: &BTreeMap<Arch, Figures>,
    reference: &Reference,
    baseline: Option<&Baseline>,
) -> Vec<Row> {
    let of = |(arch, figures): (&Arch, &Figures)| {
        let arch = *arch;
        let cycles = cycles.get(&arch);
        let row = |(name, instructions): (&String, &u64)| Row {
            name: name.clone(),
            arch,
            instructions: *instructions,
            baseline: baseline.and_then(|baseline| baseline.figure(arch, name)),
            budget: reference.budget(arch, name),
            xen: reference.xen(arch, name),
            cycles: cycles.and_then(|cycles| cycles.get(name).copied()),
        };
        figures.iter().map(row).collect::<Vec<_>>()
    };
    now.iter().flat_map(of).collect()
}

/// Boots the guest and reads its figures.
fn measure(hypervisor: &Hypervisor, kernel: &Path, clock: Clock, args: &BenchArgs) -> Result<Figures> {
    let vm = Vm {
        machine: Machine::Pc,
        memory: MEMORY,
        accel: Accel::Tcg,
        boot: Boot::Multiboot {
            hypervisor: hypervisor.multiboot.clone(),
            kernel: kernel.to_owned(),
            initrd: None,
            further: vec![Module { kernel: kernel.to_owned(), line: "domain mem=8M".to_owned() }],
        },
        hv_args: String::new(),
        cmdline: String::new(),
        clock,
        debugger: Debugger::None,
    };
    let links = tempfile::tempdir()?;
    let capture = Capture::default();
    let (end, errors) = process::stream(&mut vm.command(links.path())?, None, capture.clone())?;
    let console = capture.text();
    let outcome = Outcome::read(end, &console, &errors);
    ensure!(outcome == Outcome::Shutdown(0), "the benchmark ended as {outcome:?}:\n{console}{errors}");
    let mut figures = figures::parse(&console)?;
    figures.retain(|name, _| args.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(instructions: u64, baseline: Option<u64>, budget: Option<u64>) -> Row {
        Row { name: "null".to_owned(), arch: Arch::X86_32, instructions, baseline, budget, xen: None, cycles: None }
    }

    #[test]
    fn a_budget_is_broken_by_one_instruction() {
        assert!(!row(60, None, Some(60)).breaks_budget());
        assert!(row(61, None, Some(60)).breaks_budget());
        assert!(!row(61, None, None).breaks_budget());
    }

    #[test]
    fn two_percent_above_the_baseline_is_allowed() {
        assert!(!row(102, Some(100), None).regressed());
        assert!(row(103, Some(100), None).regressed());
        assert!(!row(103, None, None).regressed());
    }

    #[test]
    fn rows_bring_together_what_is_known() {
        let figures = |value| BTreeMap::from([(Arch::X86_32, Figures::from([("null".to_owned(), value)]))]);
        let reference =
            Reference::parse("[null]\nbudget = { x86_32 = 45 }\nxen = { x86_32 = 76, x86_64 = 277 }").expect("valid");
        let baseline = Baseline { compiler: "c".to_owned(), instructions: figures(50) };
        let rows = rows(&figures(49), &figures(900), &reference, Some(&baseline));
        let [row] = rows.as_slice() else { panic!("one figure, one row: {rows:?}") };
        assert_eq!((row.instructions, row.baseline, row.budget), (49, Some(50), Some(45)));
        assert_eq!((row.xen, row.cycles), (Some(76), Some(900)));
    }
}
