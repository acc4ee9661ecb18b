//! The plot of shares that the bench ends with: what each scheduler gives to whom, on `core`'s simulated machine. It
//! repeats to the digit, and is judged by `core`'s and `plots`' tests; here it is drawn.

use anyhow::Result;

use crate::plot;
use crate::{BenchArgs, console};

/// Whether the plot is wanted: where all figures are, for people.
fn is_wanted(args: &BenchArgs) -> bool {
    args.filter.is_none() && !args.json
}

/// Draws it, and prints its table and where it is.
pub fn draw(args: &BenchArgs) -> Result<()> {
    if is_wanted(args) {
        console::step("shares of the CPU, by scheduler");
        plot::command(None)?;
    }
    Ok(())
}
