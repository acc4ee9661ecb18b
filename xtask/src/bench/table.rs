//! The table that `cargo xtask bench` prints.

use comfy_table::{CellAlignment, Table};

use super::reference::{Peer, Unit};
use super::row::Row;

/// Prints all rows.
pub fn print(rows: &[Row]) {
    anstream::println!("{}", table(rows));
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "operation",
        "arch",
        "now",
        "baseline",
        "budget",
        Peer::Xen2.name(),
        Peer::Xen4.name(),
        "Xen/ours",
        "cycles",
        "verdict",
    ]);
    for row in rows {
        table.add_row(cells(row));
    }
    for column in table.column_iter_mut().skip(2).take(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn cells(row: &Row) -> [String; 10] {
    let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    let ratio = row.ratio().map_or_else(String::new, |ratio| format!("{ratio:.1}"));
    let name = match row.unit {
        Unit::Instructions => row.name.clone(),
        Unit::Bytes => format!("{} (bytes)", row.name),
    };
    [
        name,
        row.arch.to_string(),
        row.now.to_string(),
        number(row.baseline),
        number(row.budget),
        number(row.xen_2_0),
        number(row.xen_4_17),
        ratio,
        number(row.cycles),
        verdict(row),
    ]
}

/// What is wrong with a row; else by how much it has changed, if it has.
fn verdict(row: &Row) -> String {
    let mut words = Vec::new();
    if row.breaks_budget() {
        words.push("over budget".to_owned());
    }
    if let Some(before) = row.baseline.filter(|&before| before > 0 && before != row.now) {
        let percent = 100.0 * (row.now as f64 - before as f64) / before as f64;
        let word = if row.regressed() { "regressed " } else { "" };
        words.push(format!("{word}{percent:+.1} %"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_meta::Arch;

    #[test]
    fn a_row_says_all_that_is_known() {
        let row = Row {
            name: "null".to_owned(),
            arch: Arch::X86_64,
            unit: Unit::Instructions,
            now: 66,
            baseline: Some(60),
            budget: Some(60),
            xen_2_0: None,
            xen_4_17: Some(277),
            cycles: None,
        };
        let text = table(&[row]).to_string();
        for part in ["null", "x86_64", "66", "over budget, regressed +10.0 %", "277", "4.2"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
