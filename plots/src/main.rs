//! Draws the shares of the CPU that each scheduler gives to the same kind of loads, and prints them as a table.
//!
//! The loads run on `core`'s simulated machine, so the picture repeats to the digit. A panel shows, for each load, what
//! it had of each window of time; the table, what it was to have, had, and how long it waited.

mod scenarios;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use proxenos_core::sched::Span;
use proxenos_core::sched::sim::{Load, Machine, Outcome};

use crate::scenarios::{Scenario, scenarios};

/// What is averaged over.
const WINDOW: Span = Span::millis(500);
/// How long the loads run.
const END: Span = Span::seconds(30);
/// Size of a panel, in pixels.
const PANEL: (u32, u32) = (960, 300);
/// Width of the part of it that says which line is whose.
const LEGEND: i32 = 310;

fn main() -> Result<()> {
    let file = env::args_os().nth(1).map(PathBuf::from).context("usage: proxenos-plots FILE.svg")?;
    picture(&file, &scenarios())
}

/// Draws a panel for each scenario, one below the other, and prints their tables.
fn picture(file: &Path, scenarios: &[Scenario]) -> Result<()> {
    let root = SVGBackend::new(file, (PANEL.0, PANEL.1 * scenarios.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, scenario) in root.split_evenly((scenarios.len(), 1)).iter().zip(scenarios) {
        let (windows, outcomes) = run(scenario);
        print_table(scenario, &outcomes);
        draw(area, scenario, &windows)?;
    }
    root.present().with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}

/// What each load had of each window, in per cent, and what became of it.
fn run(scenario: &Scenario) -> (Vec<Vec<f64>>, Vec<Outcome>) {
    let loads: Vec<Load> = scenario.loads.iter().map(|named| named.load.clone()).collect();
    let mut windows = vec![vec![0.0; (END.0 / WINDOW.0) as usize]; loads.len()];
    let machine = Machine { scheduler: scenario.scheduler, cpus: 1, lateness: Span::micros(5) };
    let outcomes = machine.run(&loads, proxenos_core::sched::Time(END.0), |run| {
        let mut from = run.from.0;
        while from < run.to.0 {
            let window = from / WINDOW.0;
            let to = run.to.0.min((window + 1) * WINDOW.0);
            windows[run.load][window as usize] += (to - from) as f64 * 100.0 / WINDOW.0 as f64;
            from = to;
        }
    });
    (windows, outcomes)
}

fn print_table(scenario: &Scenario, outcomes: &[Outcome]) {
    println!("{}", scenario.title);
    println!("  {:<44} {:>9} {:>17} {:>17}", "load", "CPU time", "mean wake latency", "longest wait");
    for (named, outcome) in scenario.loads.iter().zip(outcomes) {
        let share = outcome.ran.0 as f64 * 100.0 / END.0 as f64;
        let wakes = outcome.latencies.len().max(1) as u64;
        let latency = outcome.latencies.iter().map(|latency| latency.0).sum::<u64>() / wakes;
        let wait = outcome.longest_wait.0;
        let (latency, wait) = (latency as f64 / 1e6, wait as f64 / 1e6);
        println!("  {:<44} {share:>7.2} % {latency:>14.3} ms {wait:>14.3} ms", named.name);
    }
    println!();
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, scenario: &Scenario, windows: &[Vec<f64>]) -> Result<()> {
    let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
    let mut chart = ChartBuilder::on(area)
        .caption(scenario.title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(44)
        .margin_right(LEGEND)
        .build_cartesian_2d(0.0..seconds(END.0), 0.0..100.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("seconds")
        .y_desc("% of the CPU")
        .y_labels(11)
        .draw()?;
    for (index, (named, shares)) in scenario.loads.iter().zip(windows).enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let middle = |window: usize| seconds(window as u64 * WINDOW.0 + WINDOW.0 / 2);
        let points = shares.iter().enumerate().map(|(window, &share)| (middle(window), share));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(named.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::Coordinate(PANEL.0 as i32 - LEGEND - 44, 10))
        .label_font(("sans-serif", 12))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The windows of a second, by its number.
    fn second(shares: &[f64], number: usize) -> &[f64] {
        let each = shares.len() / (END.0 / Span::seconds(1).0) as usize;
        &shares[number * each..][..each]
    }

    fn had(shares: &[f64], seconds: std::ops::Range<usize>) -> f64 {
        let all: Vec<f64> = seconds.flat_map(|number| second(shares, number)).copied().collect();
        all.iter().sum::<f64>() / all.len() as f64
    }

    #[test]
    fn what_is_drawn_is_what_each_is_to_have() {
        let [bvt, equal, reserved] = <[Scenario; 3]>::try_from(scenarios()).ok().expect("three schedulers");
        let (windows, _) = run(&bvt);
        let [four, two, one] = [0, 1, 2].map(|load| had(&windows[load], 11..19));
        assert!((four / two - 2.0).abs() < 0.04 && (two / one - 2.0).abs() < 0.04, "{four} : {two} : {one}");
        let [before, after] = [0..10, 20..30].map(|seconds| had(&windows[2], seconds));
        assert_eq!((before, after), (0.0, 0.0), "who is not there has nothing");
        let (windows, _) = run(&equal);
        let [first, second, third] = [0, 1, 2].map(|load| had(&windows[load], 11..19));
        assert!((first - second).abs() < 0.5 && (first - third).abs() < 0.5, "{first}, {second}, {third}");
        let (windows, outcomes) = run(&reserved);
        for ((named, shares), outcome) in reserved.loads.iter().zip(&windows).zip(&outcomes) {
            let proxenos_core::sched::Params::Atropos(params) = named.load.params else { panic!("{}", named.name) };
            let least = params.slice.0 as f64 * 100.0 / params.period.0 as f64;
            let spins = matches!(named.load.behaviour, proxenos_core::sched::sim::Behaviour::Spins);
            let window = shares.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(!spins || window > least - 1.0, "{}: {window} % of a window, {least} % reserved", named.name);
            assert!(outcome.ran.0 > 0, "{} has run", named.name);
        }
    }

    #[test]
    fn every_load_has_its_line() {
        let file = env::temp_dir().join(format!("proxenos-shares-{}.svg", std::process::id()));
        let scenarios = scenarios();
        let drawn = picture(&file, &scenarios).and_then(|()| Ok(std::fs::read_to_string(&file)?));
        let _ = std::fs::remove_file(&file);
        let drawn = drawn.expect("it can be drawn");
        assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
        for scenario in &scenarios {
            assert!(drawn.contains(scenario.title), "{}", scenario.title);
            for named in &scenario.loads {
                assert!(drawn.contains(named.name), "{}", named.name);
            }
        }
        let lines = drawn.matches("stroke-width=\"2\"").count();
        let loads: usize = scenarios.iter().map(|scenario| scenario.loads.len()).sum();
        assert!(lines >= loads, "{lines} lines for {loads} loads");
    }
}
