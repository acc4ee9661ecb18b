//! `cargo xtask plot-shares`: draws what the schedulers do, on `core`'s simulated machine. Nothing is booted.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::workspace::Workspace;

/// The package that draws.
const PLOTS: &str = "proxenos-plots";

/// Runs it. `output` is where the picture goes.
pub fn command(output: Option<&Path>) -> Result<()> {
    let workspace = Workspace::load()?;
    let file = match output {
        Some(file) => std::path::absolute(file).with_context(|| format!("no path: {}", file.display()))?,
        None => workspace.target_subdir("")?.join("sched-shares.svg"),
    };
    let mut command = cargo::host();
    command.current_dir(workspace.root()).args(["run", "--quiet", "--package", PLOTS, "--"]).arg(file);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "{PLOTS} failed");
    Ok(())
}
