//! Rows: what is known of one operation on one architecture, and the verdict.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figures::{Baseline, Figures};
use super::reference::{Catalogue, Peers, Unit};
use crate::guest_meta::Arch;

/// Percent above the baseline from which on a figure is a failure.
pub const TOLERANCE: f64 = 2.0;

/// What is known of one operation on one architecture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The operation.
    pub name: String,
    /// The guest's architecture.
    pub arch: Arch,
    /// What is counted.
    pub unit: Unit,
    /// Instructions (or bytes), now.
    pub now: u64,
    /// What the baseline says, if it was made with this compiler.
    pub baseline: Option<u64>,
    /// What it may cost.
    pub budget: Option<u64>,
    /// What the same costs under Xen 2.0.
    pub xen_2_0: Option<u64>,
    /// What the same costs under Xen 4.17.
    pub xen_4_17: Option<u64>,
    /// Cycles of the other run.
    pub cycles: Option<u64>,
}

impl Row {
    /// Whether it costs more than it may.
    pub fn breaks_budget(&self) -> bool {
        self.budget.is_some_and(|budget| self.now > budget)
    }

    /// Whether it has become dearer than the baseline allows.
    pub fn regressed(&self) -> bool {
        self.baseline.is_some_and(|before| self.now as f64 > before as f64 * (1.0 + TOLERANCE / 100.0))
    }

    /// How many times what we need the peer needs that serves such guests: Xen 2.0 where both do.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.xen_2_0.or(self.xen_4_17)? as f64 / self.now.max(1) as f64)
    }
}

/// Brings together what is known, in the catalogue's order.
pub fn rows(
    now: &BTreeMap<Arch, Figures>,
    cycles: &BTreeMap<Arch, Figures>,
    catalogue: &Catalogue,
    peers: &Peers,
    baseline: Option<&Baseline>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (&arch, figures) in now {
        for operation in catalogue.operations() {
            let name = &operation.name;
            let Some(&now) = figures.get(name) else { continue };
            let cycles = cycles.get(&arch).and_then(|cycles| cycles.get(name).copied());
            rows.push(Row {
                name: name.clone(),
                arch,
                unit: operation.unit,
                now,
                baseline: baseline.and_then(|baseline| baseline.figure(arch, name)),
                budget: operation.budget.get(&arch).copied(),
                xen_2_0: peers.xen2.figure(arch, name),
                xen_4_17: peers.xen4.figure(arch, name),
                cycles: cycles.filter(|_| operation.unit == Unit::Instructions),
            });
        }
    }
    rows
}

/// Whether figures become the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// They do: nothing can have become dearer than it.
    Yes,
    /// They are only compared with it.
    No,
}

/// How many rows are not as they should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Those above their budget.
    pub broken: usize,
    /// Those that became dearer than the baseline allows.
    pub regressed: usize,
}

impl Verdict {
    /// Judges.
    pub fn of(rows: &[Row]) -> Self {
        Self {
            broken: rows.iter().filter(|row| row.breaks_budget()).count(),
            regressed: rows.iter().filter(|row| row.regressed()).count(),
        }
    }

    /// The exit status: 0 if all is well.
    pub fn status(self, saved: Saved) -> u8 {
        u8::from(self.broken > 0 || self.regressed > 0 && saved == Saved::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::reference::PeerFigures;

    fn row(now: u64, baseline: Option<u64>, budget: Option<u64>) -> Row {
        Row {
            name: "null".to_owned(),
            arch: Arch::X86_32,
            unit: Unit::Instructions,
            now,
            baseline,
            budget,
            xen_2_0: None,
            xen_4_17: None,
            cycles: None,
        }
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
    fn the_exit_status_tells_of_either() {
        let status = |rows: &[Row], saved| Verdict::of(rows).status(saved);
        let (fine, dear, dearer) = (row(60, Some(60), Some(60)), row(61, None, Some(60)), row(103, Some(100), None));
        assert_eq!(status(&[], Saved::No), 0);
        assert_eq!(status(std::slice::from_ref(&fine), Saved::No), 0);
        assert_eq!(status(&[fine.clone(), dear.clone()], Saved::No), 1);
        assert_eq!(status(&[fine.clone(), dearer.clone()], Saved::No), 1);
        // What becomes the baseline is no regression; a budget stays one.
        assert_eq!(status(&[fine.clone(), dearer], Saved::Yes), 0);
        assert_eq!(status(&[fine, dear], Saved::Yes), 1);
    }

    #[test]
    fn rows_bring_together_what_is_known() {
        let figures = |value| BTreeMap::from([(Arch::X86_32, Figures::from([("null".to_owned(), value)]))]);
        let catalogue = Catalogue::parse(
            "[[group]]\ntitle = \"g\"\n[[group.operation]]\nname = \"null\"\ntitle = \"n\"\nbudget = { x86_32 = 45 }",
        );
        let peers = Peers {
            xen2: PeerFigures { source: String::new(), instructions: figures(76) },
            xen4: PeerFigures::default(),
        };
        let baseline = Baseline { compiler: "c".to_owned(), instructions: figures(50) };
        let rows = rows(&figures(38), &figures(900), &catalogue.expect("valid"), &peers, Some(&baseline));
        let [row] = rows.as_slice() else { panic!("one figure, one row: {rows:?}") };
        assert_eq!((row.now, row.baseline, row.budget), (38, Some(50), Some(45)));
        assert_eq!((row.xen_2_0, row.xen_4_17, row.cycles), (Some(76), None, Some(900)));
        assert_eq!(row.ratio(), Some(2.0));
    }
}
