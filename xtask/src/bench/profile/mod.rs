//! `cargo xtask bench --profile OP`: where the instructions of one operation go.
//!
//! QEMU logs each instruction that it executes while the guest measures this operation alone ([`trace`]). Between two
//! reads of the time-stamp counter by the guest lies a round; the one that took what the guest says it took is looked
//! at ([`window`]). Each of its instructions belongs to a symbol, and by the debug information to functions that were
//! inlined into it ([`code`]); [`report`] adds them up. Nothing is sampled: the sums are the figure, to the digit.

mod code;
mod report;
mod trace;
mod window;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::figures;
use super::measure::Images;
use crate::console;
use crate::guest_meta::Arch;
use code::Code;

/// Profiles one operation on each architecture that has it.
pub fn command(operation: &str, images: &BTreeMap<Arch, Images>, listing: bool) -> Result<()> {
    let mut found = false;
    for (arch, images) in images {
        let (console, executed) = trace::run(images, operation)?;
        let (figures, overhead) = (figures::parse(&console)?, figures::overhead(&console));
        let Some(&figure) = figures.get(operation) else {
            console::note(&format!("{arch}: the guest measures no `{operation}`"));
            continue;
        };
        found = true;
        let code = Code::read(&images.hypervisor.debug, &images.guest)?;
        let round = window::find(&executed, figure + overhead, |address| code.reads_counter(address))
            .context("QEMU's log has no round of the operation")?;
        let steps: Vec<_> = round.iter().map(|&address| code.step(address)).collect();
        println!("{operation}, {arch}: {figure} instructions (a measurement of nothing is {overhead} more)\n");
        println!("{}", report::tables(&steps));
        if listing {
            println!("{}", report::listing(&steps));
        }
        if round.len() as u64 != figure + overhead {
            console::note(&format!("the guest counted {}, the log has {}", figure + overhead, round.len()));
        }
    }
    ensure!(
        found,
        "`{operation}` is nothing that the guest measures by reading the counter twice: there is nothing to look at"
    );
    Ok(())
}
