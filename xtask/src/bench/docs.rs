//! What shows the committed figures: the plot `docs/bench.svg`, and the tables of SPECIFICATION.md, between two marks.
//!
//! Both are made of the committed files alone, so a test can tell whether they are true: `cargo xtask bench --save`
//! rewrites them with the baseline, `--redraw` without measuring.

use std::path::Path;

use anyhow::{Context, Result};

use super::figures::Baseline;
use super::plot;
use super::reference::{Catalogue, Operation, Peers, Unit};
use crate::guest_meta::Arch;

/// The plot.
const PLOT: &str = "docs/bench.svg";
/// Where the tables are.
const SPECIFICATION: &str = "SPECIFICATION.md";
/// What stands before them.
const BEGIN: &str = "<!-- begin of what `cargo xtask bench --save` writes -->\n";
/// What stands behind them.
const END: &str = "<!-- end of what `cargo xtask bench --save` writes -->\n";

/// All that is committed.
pub struct Committed {
    /// The operations.
    pub catalogue: Catalogue,
    /// Our figures.
    pub baseline: Baseline,
    /// Those of others.
    pub peers: Peers,
}

impl Committed {
    /// Reads it from the guest's directory.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(Self { catalogue: Catalogue::read(dir)?, baseline: Baseline::read(dir)?, peers: Peers::read(dir)? })
    }
}

/// Makes both anew.
pub fn redraw(root: &Path, dir: &Path) -> Result<()> {
    let committed = Committed::read(dir)?;
    let write = |name: &str, text: &str| {
        let path = root.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let specification = root.join(SPECIFICATION);
    let old =
        std::fs::read_to_string(&specification).with_context(|| format!("cannot read {}", specification.display()))?;
    write(SPECIFICATION, &with_tables(&old, &tables(&committed))?)?;
    write(PLOT, &plot::svg(&committed)?)
}

/// The specification with other tables.
fn with_tables(text: &str, tables: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{SPECIFICATION} has no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{SPECIFICATION} has no line {END}"))?;
    Ok(format!("{before}{BEGIN}{tables}{END}{after}"))
}

/// The tables, one a group.
fn tables(committed: &Committed) -> String {
    let mut text = String::new();
    for group in &committed.catalogue.groups {
        text += &format!("\n| {} | budget | x86_32 | Xen 2.0 | x86_64 | Xen 4.17 |\n", group.title);
        text += "|---|---|---|---|---|---|\n";
        for operation in &group.operations {
            if let Some(line) = line(operation, committed) {
                text += &line;
            }
        }
    }
    text + "\n"
}

/// An operation's line; none if there is no figure of it.
fn line(operation: &Operation, committed: &Committed) -> Option<String> {
    let name = &operation.name;
    let ours = |arch| committed.baseline.figure(arch, name);
    Arch::ALL.into_iter().find_map(ours)?;
    let shown = |figure: Option<u64>| figure.map(|figure| amount(figure, operation.unit)).unwrap_or_default();
    let judged = |arch| {
        let over = ours(arch).zip(operation.budget.get(&arch)).is_some_and(|(figure, budget)| figure > *budget);
        if over { format!("**{}**", shown(ours(arch))) } else { shown(ours(arch)) }
    };
    let [narrow, wide] = Arch::ALL;
    let budget = match (operation.budget.get(&narrow), operation.budget.get(&wide)) {
        (Some(one), Some(other)) if one != other => format!("{}; {}", shown(Some(*one)), shown(Some(*other))),
        (one, other) => shown(one.or(other).copied()),
    };
    let cells = [
        operation.title.clone(),
        budget,
        judged(narrow),
        shown(committed.peers.xen2.figure(narrow, name)),
        judged(wide),
        shown(committed.peers.xen4.figure(wide, name)),
    ];
    Some(format!("| {} |\n", cells.join(" | ")))
}

/// A figure as people read it.
pub fn amount(figure: u64, unit: Unit) -> String {
    match unit {
        Unit::Instructions => thousands(figure),
        Unit::Bytes if figure < 10 << 10 => format!("{} bytes", thousands(figure)),
        Unit::Bytes if figure < 10 << 20 => format!("{} KiB", thousands(figure.div_ceil(1 << 10))),
        Unit::Bytes => format!("{} MiB", thousands(figure.div_ceil(1 << 20))),
    }
}

/// Digits in groups of three.
fn thousands(figure: u64) -> String {
    let digits = figure.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn committed() -> Committed {
        Committed::read(&root().join("guests/bench")).expect("committed files are well-formed")
    }

    #[test]
    fn what_is_shown_is_what_the_committed_figures_give() {
        let read = |name: &str| std::fs::read_to_string(root().join(name)).expect("it is committed");
        let committed = committed();
        let hint = "type `cargo xtask bench --redraw`";
        let specification = read(SPECIFICATION);
        assert!(specification == with_tables(&specification, &tables(&committed)).expect("marks"), "{hint}");
        assert!(read(PLOT) == plot::svg(&committed).expect("it can be drawn"), "{hint}");
    }

    #[test]
    fn every_committed_figure_is_in_the_catalogue() {
        let Committed { catalogue, baseline, peers } = committed();
        let all = [&baseline.instructions, &peers.xen2.instructions, &peers.xen4.instructions];
        for figures in all.into_iter().flat_map(|by_arch| by_arch.values()) {
            catalogue.knows(figures).expect("each");
        }
        assert!(!peers.xen2.source.is_empty() && !peers.xen4.source.is_empty());
    }

    #[test]
    fn a_line_says_what_is_known_and_marks_what_is_above_its_budget() {
        let catalogue = Catalogue::parse(
            "[[group]]\ntitle = \"g\"\n[[group.operation]]\nname = \"a\"\ntitle = \"A\"\nbudget = { x86_32 = 9, x86_64 = 10 }\n\
             [[group.operation]]\nname = \"b\"\ntitle = \"B\"",
        )
        .expect("valid");
        let figures = |value| super::super::Figures::from([("a".to_owned(), value)]);
        let mut committed = Committed { catalogue, baseline: Baseline::default(), peers: Peers::default() };
        committed.baseline.instructions = [(Arch::X86_32, figures(10)), (Arch::X86_64, figures(10))].into();
        committed.peers.xen4.instructions = [(Arch::X86_64, figures(1234))].into();
        let text = tables(&committed);
        assert!(text.contains("\n| A | 9; 10 | **10** |  | 10 | 1,234 |\n"), "{text}");
        assert!(!text.contains("| B |"), "{text}");
    }

    #[test]
    fn tables_take_the_place_of_tables() {
        let old = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(with_tables(&old, "new\n").expect("marks"), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(with_tables("a\nb\n", "new\n").is_err());
    }

    #[test]
    fn amounts_are_readable() {
        assert_eq!(amount(1_234_567, Unit::Instructions), "1,234,567");
        assert_eq!(amount(123, Unit::Instructions), "123");
        assert_eq!(amount(5000, Unit::Bytes), "5,000 bytes");
        assert_eq!(amount(18 << 10, Unit::Bytes), "18 KiB");
        assert_eq!(amount((20 << 20) + 1, Unit::Bytes), "21 MiB");
    }
}
