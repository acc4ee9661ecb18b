//! `cargo xtask bench`: what operations cost a guest, beside what they cost before, may cost, and cost elsewhere.
//!
//! The `bench` guest is booted where time is counted in instructions (`-icount`), whose figures repeat to the digit and
//! are judged, and again where it is the emulator's time, whose cycles are for the eye: counting instructions is blind
//! to what an instruction costs ([`measure`]). The figures of the first are held against
//!
//! - the committed baseline (`guests/bench/baseline.json`): more than 2 % above it is a failure. The compiler decides
//!   on instructions as well, so a baseline counts only for the compiler that it was made with;
//! - the budgets in `guests/bench/reference.toml`: above one is a failure.
//!
//! Beside them stand the committed figures of both Xens; those of the newer can be measured in the same run (`--peer`,
//! [`peer`]).
//!
//! `--save` makes the figures the baseline, and draws what shows it: the plot and the table of SPECIFICATION.md
//! ([`docs`]), which always are what the committed figures give. `--profile` says where the instructions of one
//! operation go ([`profile`]).

mod docs;
mod figures;
mod measure;
mod peer;
mod plot;
mod profile;
mod reference;
mod row;
mod shares;
mod table;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

pub use peer::Peer;

use crate::BenchArgs;
use crate::compile::{self, Profile};
use crate::console;
use crate::guest_meta::Arch;
use crate::qemu::{self, Clock};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;
use figures::{Baseline, Figures};
use measure::{Images, MEMORY};
use reference::{Catalogue, Peers};
use row::{Saved, TOLERANCE, Verdict};

/// The guest that measures.
const GUEST: &str = "bench";

/// Measures and tells; the value is the exit status.
pub fn command(args: &BenchArgs) -> Result<u8> {
    let workspace = Workspace::load()?;
    let guests = workspace.guests()?;
    let guest = guests.iter().find(|guest| guest.name == GUEST).context("the workspace has no guest `bench`")?;
    if args.redraw {
        docs::redraw(workspace.root(), &guest.dir)?;
        return Ok(0);
    }
    let catalogue = Catalogue::read(&guest.dir)?;
    if let Some(operation) = &args.profile {
        catalogue.has(operation)?;
    }
    qemu::need()?;
    let archs: Vec<Arch> = args.arch.map_or_else(|| Arch::ALL.to_vec(), |arch| vec![arch]);
    let toolchain = Toolchain::bare_metal(&workspace)?;
    let wanted: Vec<_> = archs.iter().map(|arch| (*arch, vec![guest])).collect();
    let made = compile::everything(&toolchain, &workspace, Profile::Release, &wanted);
    let hypervisor = made.hypervisor.0?;
    let mut images = BTreeMap::new();
    for (arch, (built, _)) in made.guests {
        let guest = built?.pop().context("cargo made no executable for the guest")?.path;
        images.insert(arch, Images { hypervisor: hypervisor.clone(), guest });
    }
    if let Some(operation) = &args.profile {
        return profile::command(operation, &images, args.listing).map(|()| 0);
    }

    let filter = |name: &str| args.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let mut now = BTreeMap::new();
    let mut cycles = BTreeMap::new();
    for (arch, images) in &images {
        let figures = judged(images, filter)?;
        if args.repeat {
            same_digits(&figures, &judged(images, filter)?)?;
            console::step(&format!("{arch}: a second run gave the same {} figures", figures.len()));
        }
        catalogue.knows(&figures)?;
        now.insert(*arch, figures);
        cycles.insert(*arch, images.operations(Clock::Host, filter)?);
    }
    let mut peers = Peers::read(&guest.dir)?;
    let of_peer = |peer| peer::measure(peer, &workspace, &toolchain, args.filter.as_deref());
    if let Some(run) = args.peer.map(of_peer).transpose()? {
        catalogue.knows(&run.figures)?;
        peers.xen4.instructions.entry(run.arch).or_default().extend(run.figures.clone());
        console::note(&run.remark());
        if args.save {
            run.save(&guest.dir)?;
            console::step("the peer's figures are rewritten");
        }
    }
    let compiler = toolchain.compiler()?;
    let old = Baseline::read(&guest.dir)?;
    if old.compiler != compiler {
        let made_with = if old.compiler.is_empty() { "none yet" } else { &old.compiler };
        console::note(&format!("no comparison with the baseline (made with: {made_with}; this is {compiler})"));
    }
    let rows = row::rows(&now, &cycles, &catalogue, &peers, (old.compiler == compiler).then_some(&old));
    if args.save {
        old.updated(compiler, now).write(&guest.dir)?;
        docs::redraw(workspace.root(), &guest.dir)?;
        console::step("the baseline is rewritten, and what shows it is drawn again");
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        table::print(&rows);
    }
    shares::draw(args)?;
    let verdict = Verdict::of(&rows);
    if verdict != Verdict::default() {
        let Verdict { broken, regressed } = verdict;
        console::note(&format!("{broken} over their budget, {regressed} more than {TOLERANCE} % over the baseline"));
    }
    Ok(verdict.status(if args.save { Saved::Yes } else { Saved::No }))
}

/// All that is judged of one architecture.
fn judged(images: &Images, wanted: impl Fn(&str) -> bool + Copy) -> Result<Figures> {
    let mut figures = images.operations(Clock::Instructions, wanted)?;
    figures.extend(images.machine(wanted)?);
    Ok(figures)
}

/// # Errors
/// If two runs did not give the same.
fn same_digits(one: &Figures, other: &Figures) -> Result<()> {
    for name in one.keys().chain(other.keys()) {
        let (first, second) = (one.get(name), other.get(name));
        ensure!(first == second, "two runs differ: {name} took {first:?}, and {second:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_differ_are_told() {
        let of = |list: &[(&str, u64)]| list.iter().map(|&(name, value)| (name.to_owned(), value)).collect::<Figures>();
        assert!(same_digits(&of(&[("a", 1)]), &of(&[("a", 1)])).is_ok());
        assert!(same_digits(&of(&[("a", 1)]), &of(&[("a", 2)])).is_err());
        assert!(same_digits(&of(&[("a", 1)]), &of(&[])).is_err());
        assert!(same_digits(&of(&[]), &of(&[("a", 1)])).is_err());
    }
}
