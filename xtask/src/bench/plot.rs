//! The plot: every operation of the catalogue, ours beside both peers', on a logarithmic scale.
//!
//! A group of operations is a chart an architecture, side by side, with a scale of its own: calls and the life of
//! domains are six orders of magnitude apart. A row has our figure, the peer's and the budget; a line joins what
//! belongs together. The text is a function of the committed figures alone.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::docs::{Committed, amount};
use super::reference::{Group, Operation, Peer};
use crate::guest_meta::Arch;

/// Width of the picture.
const WIDTH: u32 = 1040;
/// Width of the operations' titles.
const TITLES: u32 = 340;
/// Height of a row.
const ROW: u32 = 19;
/// Height of a group's title, and of its scale below.
const HEADER: u32 = 26;
const SCALE: u32 = 26;
/// Height of what stands above all groups.
const TOP: u32 = 64;
/// How far a chart's ends are from its outermost figures' decades, as factors: figures' numbers stand there.
const MARGIN: f64 = 3.0;
/// Longest title, in characters; what is longer is cut.
const LONGEST: usize = 60;

const OURS: RGBColor = RGBColor(0x1f, 0x5f, 0xbf);
const OVER: RGBColor = RGBColor(0xc0, 0x20, 0x20);
const THEIRS: RGBColor = RGBColor(0xd9, 0x7a, 0x0b);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const LINE: RGBColor = RGBColor(0xb0, 0xb0, 0xb0);
const FAINT: RGBColor = RGBColor(0xe6, 0xe6, 0xe6);

/// The peer that serves guests of an architecture.
fn peer_of(arch: Arch) -> Peer {
    match arch {
        Arch::X86_32 => Peer::Xen2,
        Arch::X86_64 => Peer::Xen4,
    }
}

/// What a row shows of one architecture.
struct Figure {
    ours: u64,
    theirs: Option<u64>,
    budget: Option<u64>,
}

impl Figure {
    fn of(committed: &Committed, operation: &Operation, arch: Arch) -> Option<Self> {
        Some(Self {
            ours: committed.baseline.figure(arch, &operation.name)?,
            theirs: committed.peers.of(peer_of(arch)).figure(arch, &operation.name),
            budget: operation.budget.get(&arch).copied(),
        })
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        [Some(self.ours), self.theirs, self.budget].into_iter().flatten()
    }

    fn color(&self) -> RGBColor {
        if self.budget.is_some_and(|budget| self.ours > budget) { OVER } else { OURS }
    }
}

/// The picture.
pub fn svg(committed: &Committed) -> Result<String> {
    let groups: Vec<(&Group, Vec<&Operation>)> = committed
        .catalogue
        .groups
        .iter()
        .map(|group| (group, group.operations.iter().filter(|operation| measured(committed, operation)).collect()))
        .filter(|(_, operations): &(_, Vec<_>)| !operations.is_empty())
        .collect();
    let height = groups.iter().map(|(_, operations)| height(operations.len())).sum::<u32>() + TOP;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (top, mut rest) = root.split_vertically(TOP);
        legend(&top)?;
        for (group, operations) in groups {
            let (area, below) = rest.split_vertically(height_of(&operations));
            draw_group(&area, committed, group, &operations)?;
            rest = below;
        }
        root.present()?;
    }
    Ok(text)
}

fn measured(committed: &Committed, operation: &Operation) -> bool {
    Arch::ALL.into_iter().any(|arch| Figure::of(committed, operation, arch).is_some())
}

fn height(rows: usize) -> u32 {
    HEADER + SCALE + ROW * u32::try_from(rows).unwrap_or(0)
}

fn height_of(operations: &[&Operation]) -> u32 {
    height(operations.len())
}

fn style(size: u32, color: RGBColor, across: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color).pos(Pos::new(across, VPos::Center))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What the marks mean.
fn legend(area: &Area<'_>) -> Result<()> {
    let title = "What operations cost a guest: instructions (bytes where memory is meant), on logarithmic scales";
    area.draw(&Text::new(title, (8, 16), style(16, INK, HPos::Left)))?;
    let says = |x: i32, text: &'static str| Text::new(text, (x + 10, 44), style(12, INK, HPos::Left));
    area.draw(&Circle::new((16, 44), 4, OURS.filled()))?;
    area.draw(&says(16, "Proxenos"))?;
    area.draw(&Circle::new((116, 44), 4, OVER.filled()))?;
    area.draw(&says(116, "above its budget"))?;
    area.draw(&PathElement::new([(256, 38), (256, 50)], INK.stroke_width(2)))?;
    area.draw(&says(256, "budget"))?;
    area.draw(&Circle::new((336, 44), 4, THEIRS.stroke_width(2)))?;
    area.draw(&says(336, "Xen"))?;
    let panel = (WIDTH - TITLES) as i32 / 2;
    for (index, arch) in (0..).zip(Arch::ALL) {
        let middle = TITLES as i32 + panel * index + panel / 2;
        let text = format!("{arch}, beside {}", peer_of(arch).name());
        area.draw(&Text::new(text, (middle, 44), style(14, INK, HPos::Center)))?;
    }
    Ok(())
}

fn draw_group(area: &Area<'_>, committed: &Committed, group: &Group, operations: &[&Operation]) -> Result<()> {
    let (titles, charts) = area.split_horizontally(TITLES);
    titles.draw(&Text::new(group.title.clone(), (8, HEADER as i32 / 2), style(14, INK, HPos::Left)))?;
    for (index, operation) in (0..).zip(operations) {
        let middle = (HEADER + ROW / 2) as i32 + ROW as i32 * index;
        titles.draw(&Text::new(title(operation), (16, middle), style(12, INK, HPos::Left)))?;
    }
    let figure = |operation: &Operation, arch| Figure::of(committed, operation, arch);
    let figures = operations.iter().flat_map(|operation| Arch::ALL.map(|arch| figure(operation, arch))).flatten();
    let scale = Scale::around(figures.flat_map(|figure| figure.all().collect::<Vec<_>>()));
    for (chart, arch) in charts.split_evenly((1, 2)).iter().zip(Arch::ALL) {
        draw_chart(chart, &scale, operations, |operation| figure(operation, arch))?;
    }
    Ok(())
}

/// A title without its markup, and not too long.
fn title(operation: &Operation) -> String {
    let plain = operation.title.replace('`', "");
    match plain.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &plain[..end]),
        None => plain,
    }
}

/// What a group's charts reach from and to.
struct Scale {
    from: f64,
    to: f64,
}

impl Scale {
    /// Whole decades around all figures.
    fn around(figures: impl Iterator<Item = u64>) -> Self {
        let (least, most) =
            figures.fold((u64::MAX, 1), |(least, most), figure| (least.min(figure.max(1)), most.max(figure)));
        let decade = |figure: u64| f64::from(figure.ilog10());
        Self { from: 10_f64.powf(decade(least.min(most))), to: 10_f64.powf(decade(most) + 1.0) }
    }

    /// Its decades.
    fn decades(&self) -> impl Iterator<Item = f64> {
        let (mut at, to) = (self.from, self.to);
        std::iter::from_fn(move || {
            let now = at;
            at *= 10.0;
            (now <= to * 1.5).then_some(now)
        })
    }
}

fn draw_chart(
    area: &Area<'_>,
    scale: &Scale,
    operations: &[&Operation],
    figure: impl Fn(&Operation) -> Option<Figure>,
) -> Result<()> {
    let rows = operations.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin_left(12)
        .margin_right(12)
        .margin_top(HEADER)
        .margin_bottom(SCALE)
        .build_cartesian_2d((scale.from / MARGIN..scale.to * MARGIN).log_scale(), rows..0.0)?;
    for decade in scale.decades() {
        chart.draw_series([PathElement::new([(decade, 0.0), (decade, rows)], FAINT)])?;
        let (x, y) = chart.plotting_area().map_coordinate(&(decade, rows));
        let (left, top) = area.get_base_pixel();
        area.draw(&Text::new(short(decade), (x - left, y - top + 9), style(10, INK, HPos::Center)))?;
    }
    for (index, operation) in operations.iter().enumerate() {
        let Some(figure) = figure(operation) else { continue };
        let y = index as f64 + 0.5;
        let x = |figure: u64| figure.max(1) as f64;
        let (least, most) = (figure.all().min().unwrap_or(1), figure.all().max().unwrap_or(1));
        chart.draw_series([DashedPathElement::new([(x(least), y), (x(most), y)], 2, 2, LINE)])?;
        if let Some(budget) = figure.budget {
            let tick = [(x(budget), y - 0.3), (x(budget), y + 0.3)];
            chart.draw_series([PathElement::new(tick, INK.stroke_width(2))])?;
        }
        if let Some(theirs) = figure.theirs {
            chart.draw_series([Circle::new((x(theirs), y), 4, THEIRS.stroke_width(2))])?;
        }
        chart.draw_series([Circle::new((x(figure.ours), y), 4, figure.color().filled())])?;
        // The numbers stand outside: the lower one's to the left.
        let number = |figure: u64, color, across| {
            let away = if matches!(across, HPos::Right) { -8 } else { 8 };
            let text = amount(figure, operation.unit);
            EmptyElement::at((x(figure), y)) + Text::new(text, (away, 0), style(10, color, across))
        };
        let (ours, theirs) = match figure.theirs {
            Some(theirs) if theirs < figure.ours => (HPos::Left, HPos::Right),
            Some(_) => (HPos::Right, HPos::Left),
            None if figure.budget.is_some_and(|budget| budget >= figure.ours) => (HPos::Right, HPos::Left),
            None => (HPos::Left, HPos::Left),
        };
        chart.draw_series([number(figure.ours, figure.color(), ours)])?;
        if let Some(figure) = figure.theirs {
            chart.draw_series([number(figure, THEIRS, theirs)])?;
        }
    }
    Ok(())
}

/// A decade's name.
fn short(decade: f64) -> String {
    let (value, unit) = match decade {
        _ if decade >= 1e6 => (decade / 1e6, " M"),
        _ if decade >= 1e3 => (decade / 1e3, " k"),
        _ => (decade, ""),
    };
    format!("{value:.0}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_has_whole_decades() {
        let scale = Scale::around([45, 277, 3510].into_iter());
        assert_eq!(scale.decades().collect::<Vec<_>>(), [10.0, 100.0, 1000.0, 10_000.0]);
        let scale = Scale::around([100].into_iter());
        assert_eq!(scale.decades().collect::<Vec<_>>(), [100.0, 1000.0]);
    }

    #[test]
    fn decades_have_short_names() {
        assert_eq!([10.0, 1e3, 1e5, 1e7].map(short), ["10", "1 k", "100 k", "10 M"]);
    }
}
