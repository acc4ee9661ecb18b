//! What is printed of a round: how many instructions each symbol, and each function within, took.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::{CellAlignment, Table};

use super::code::{Side, Step};

/// Sums by whose code it is, by symbol, and by function and line of the source.
pub fn tables(steps: &[Step]) -> String {
    let side = |step: &Step| match step.side {
        Some(Side::Hypervisor) => "the hypervisor",
        Some(Side::Guest) => "the guest",
        None => "in neither file",
    };
    let mut text = String::new();
    text += &table("by whom", &sums(steps, |step| side(step).to_owned()));
    text += &table("by symbol", &sums(steps, |step| step.symbol.clone()));
    let inlined =
        |step: &Step| format!("{}  {}", step.function, step.place.rsplit_once(':').map_or("", |(file, _)| file));
    text += &table("by function, those that were inlined apart", &sums(steps, inlined));
    text += &table("by line", &sums(steps, |step| format!("{}  {}", step.place, step.function)));
    text
}

/// Every instruction, in the order of execution, with a heading where the function changes.
pub fn listing(steps: &[Step]) -> String {
    let mut text = String::new();
    let mut last = "";
    for step in steps {
        if step.function != last {
            last = &step.function;
            writeln!(text, "{last}").expect("a string takes all");
        }
        writeln!(text, "    {:016x}  {:<56} {}", step.address, step.text, step.place).expect("a string takes all");
    }
    text
}

/// Sums, the greatest first, equals by name.
fn sums(steps: &[Step], key: impl Fn(&Step) -> String) -> Vec<(usize, String)> {
    let mut sums = BTreeMap::<String, usize>::new();
    for step in steps {
        *sums.entry(key(step)).or_default() += 1;
    }
    let mut sums: Vec<_> = sums.into_iter().map(|(name, count)| (count, name)).collect();
    sums.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    sums
}

fn table(title: &str, sums: &[(usize, String)]) -> String {
    let all: usize = sums.iter().map(|(count, _)| count).sum();
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["", "%", title]);
    for (count, name) in sums {
        let percent = 100.0 * *count as f64 / all.max(1) as f64;
        table.add_row([count.to_string(), format!("{percent:.1}"), name.clone()]);
    }
    for column in table.column_iter_mut().take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(address: u64, symbol: &str, function: &str) -> Step {
        Step {
            address,
            side: Some(Side::Hypervisor),
            symbol: symbol.to_owned(),
            function: function.to_owned(),
            place: "core/src/a.rs:7".to_owned(),
            text: "nop".to_owned(),
        }
    }

    #[test]
    fn sums_are_the_number_of_instructions() {
        let steps = [step(1, "s", "a::b::f"), step(2, "s", "g"), step(3, "t", "g"), step(4, "s", "g")];
        let named = |count, name: &str| (count, name.to_owned());
        assert_eq!(sums(&steps, |step| step.symbol.clone()), [named(3, "s"), named(1, "t")]);
        assert_eq!(sums(&steps, |step| step.function.clone()), [named(3, "g"), named(1, "a::b::f")]);
        let text = tables(&steps);
        for part in ["75.0", "25.0", "100.0", "the hypervisor", "core/src/a.rs:7  a::b::f", "g  core/src/a.rs"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_listing_has_a_heading_where_the_function_changes() {
        let text = listing(&[step(1, "s", "f"), step(2, "s", "g"), step(3, "s", "g")]);
        let headings: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(headings, ["f", "g"]);
        assert_eq!(text.lines().count(), 5);
    }
}
