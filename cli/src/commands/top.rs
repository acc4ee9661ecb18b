//! `top`: what the domains do, again and again, or once where nobody watches.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crossterm::event::{Event, KeyCode, KeyModifiers, poll, read};
use proxenos_rpc::{DomainId, HostInfo, Info, Nanos};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};
use serde_json::{Value, json};

use super::{domains, open, place, show};
use crate::args::{Cli, TopArgs};
use crate::problem::{Problem, Result};
use crate::session::Session;
use crate::units::{seconds, size};
use crate::view;

/// What was seen at one moment.
struct Sample {
    at: Nanos,
    host: HostInfo,
    domains: Vec<Info>,
    /// Parts of a CPU, in percent, since the sample before.
    shares: HashMap<DomainId, f64>,
}

fn sample(cli: &Cli, session: &mut Session, before: Option<&Sample>) -> Result<Sample> {
    let host = show::host_info(cli, session)?;
    let (at, domains) = domains(cli, session)?;
    let shares = before.map(|before| shares(before, at, &domains)).unwrap_or_default();
    Ok(Sample { at, host, domains, shares })
}

fn shares(before: &Sample, at: Nanos, domains: &[Info]) -> HashMap<DomainId, f64> {
    let span = at.0.saturating_sub(before.at.0).max(1) as f64;
    let earlier: HashMap<DomainId, &Info> = before.domains.iter().map(|info| (info.id, info)).collect();
    domains
        .iter()
        .map(|info| {
            // A number that was given again began at nothing.
            let old = earlier.get(&info.id).filter(|old| old.created_at == info.created_at);
            let used = info.cpu_time.0.saturating_sub(old.map_or(0, |old| old.cpu_time.0));
            (info.id, used as f64 * 100.0 / span)
        })
        .collect()
}

/// `top`.
pub fn command(cli: &Cli, args: &TopArgs) -> Result<u8> {
    let mut session = open(cli)?;
    let interval = Duration::from_nanos(args.interval.0.max(100_000_000));
    if cli.json || !std::io::stdout().is_terminal() {
        let first = sample(cli, &mut session, None)?;
        std::thread::sleep(interval);
        let second = sample(cli, &mut session, Some(&first))?;
        once(cli, &second)?;
        return Ok(0);
    }
    let mut terminal = ratatui::try_init().map_err(|error| Problem::system("cannot take the terminal over", error))?;
    let result = watch(cli, &mut session, &mut terminal, interval);
    ratatui::restore();
    result?;
    Ok(0)
}

fn once(cli: &Cli, sample: &Sample) -> Result<()> {
    if cli.json {
        let rows: Vec<Value> = sample
            .domains
            .iter()
            .map(|info| {
                let mut value = view::domain(info);
                value["cpu_percent"] = json!(sample.shares.get(&info.id));
                value
            })
            .collect();
        let host = view::host(place(cli)?.name(), &sample.host);
        return view::print_json(&json!({ "at_ns": sample.at.0, "host": host, "domains": rows }));
    }
    view::print(&format!("{}\n", headline(sample)))?;
    let mut table = view::table(&COLUMNS);
    for info in by_use(sample) {
        table.add_row(cells(sample, info));
    }
    view::print_table(&table)
}

const COLUMNS: [&str; 7] = ["ID", "NAME", "STATE", "CPU%", "TIME", "MEM", "CONSOLE"];

fn cells(sample: &Sample, info: &Info) -> [String; 7] {
    let share = sample.shares.get(&info.id).map_or_else(|| "-".to_owned(), |share| format!("{share:.1}"));
    let console = size(proxenos_rpc::Kib(info.console_written.div_ceil(1024)));
    let (state, time) = (view::state(info.state).to_owned(), seconds(info.cpu_time));
    [info.id.to_string(), info.name.to_string(), state, share, time, size(info.memory), console]
}

/// Who uses most comes first.
fn by_use(sample: &Sample) -> Vec<&Info> {
    let share = |info: &Info| sample.shares.get(&info.id).copied().unwrap_or(0.0);
    let mut domains: Vec<&Info> = sample.domains.iter().collect();
    domains.sort_by(|a, b| share(b).total_cmp(&share(a)).then(a.id.cmp(&b.id)));
    domains
}

fn headline(sample: &Sample) -> String {
    let HostInfo { cpus, memory, memory_free, uptime, scheduler, .. } = &sample.host;
    format!(
        "{} domains, {cpus} CPUs ({}), {} of {} free, up {}",
        sample.domains.len(),
        view::scheduler(*scheduler),
        size(*memory_free),
        size(*memory),
        seconds(*uptime)
    )
}

fn watch(cli: &Cli, session: &mut Session, terminal: &mut ratatui::DefaultTerminal, interval: Duration) -> Result<()> {
    let lost = |error: std::io::Error| Problem::system("the terminal has gone", error);
    let mut now = sample(cli, session, None)?;
    let mut first = 0;
    loop {
        let next = Instant::now() + interval;
        loop {
            terminal.draw(|frame| draw(frame, &now, first)).map_err(lost)?;
            if !poll(next.saturating_duration_since(Instant::now())).map_err(lost)? {
                break;
            }
            // Anything else, a new size among it, is drawn anew.
            if let Event::Key(key) = read().map_err(lost)? {
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Down => first = (first + 1).min(now.domains.len().saturating_sub(1)),
                    KeyCode::Up => first = first.saturating_sub(1),
                    _ => {}
                }
            }
        }
        now = sample(cli, session, Some(&now))?;
    }
}

fn draw(frame: &mut ratatui::Frame<'_>, sample: &Sample, first: usize) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Line::from(headline(sample)).bold(), head);
    let rows: Vec<Row<'_>> =
        by_use(sample).into_iter().skip(first).map(|info| Row::new(cells(sample, info).map(Cell::from))).collect();
    let widths = [5, 24, 9, 7, 10, 8, 8].map(Constraint::Length);
    let table = Table::new(rows, widths).header(Row::new(COLUMNS).style(Style::new().reversed()));
    frame.render_widget(table, body);
    frame.render_widget(Line::from("q: leave, up and down: scroll").dim(), foot);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxenos_rpc::{Arch, Kib, Name, OnCrash, Restart, Scheduler, State, Text};
    use ratatui::{Terminal, backend::TestBackend};

    fn info(id: u16, cpu_time: u64, created_at: u64) -> Info {
        Info {
            id: DomainId(id),
            name: Name::new(&format!("guest{id}")).expect("a name"),
            arch: Arch::X86_64,
            state: State::Blocked,
            memory: Kib(4096),
            memory_limit: Kib(4096),
            cpu: 0,
            pinned: false,
            cpu_time: Nanos(cpu_time),
            shared_info_frame: 1,
            created_at: Nanos(created_at),
            restarts: 0,
            restart: Restart::Never,
            on_crash: OnCrash::Keep,
            console_written: 0,
            console_clients: 0,
            image: Text::default(),
        }
    }

    fn sample(at: u64, domains: Vec<Info>) -> Sample {
        let host = HostInfo {
            hypervisor: Text::default(),
            control: Text::default(),
            interface: (2, 0),
            cpus: 1,
            cpu_khz: 1,
            memory: Kib(1 << 19),
            memory_free: Kib(1 << 18),
            control_memory: Kib(1),
            uptime: Nanos(at),
            scheduler: Scheduler::Bvt,
            domains: 2,
        };
        Sample { at: Nanos(at), host, domains, shares: HashMap::new() }
    }

    #[test]
    fn a_share_is_what_was_used_of_the_time_between() {
        let before = sample(1_000, vec![info(1, 100, 5), info(2, 900, 5)]);
        // Number 2 was given again.
        let after = vec![info(1, 350, 5), info(2, 500, 1_200)];
        let shares = shares(&before, Nanos(2_000), &after);
        assert_eq!(shares[&DomainId(1)], 25.0);
        assert_eq!(shares[&DomainId(2)], 50.0);
        let same = super::shares(&before, Nanos(1_000), &before.domains);
        assert_eq!(same[&DomainId(1)], 0.0);
    }

    #[test]
    fn who_uses_most_stands_first_on_the_screen() {
        let mut now = sample(2_000, vec![info(1, 0, 0), info(7, 0, 0)]);
        now.shares = HashMap::from([(DomainId(1), 1.0), (DomainId(7), 80.0)]);
        let mut terminal = Terminal::new(TestBackend::new(80, 6)).expect("a screen");
        terminal.draw(|frame| draw(frame, &now, 0)).expect("drawn");
        let screen = terminal.backend().to_string();
        let line = |number: usize| screen.lines().nth(number).expect("a line");
        assert!(line(0).contains("2 domains") && line(1).contains("CPU%"), "{screen}");
        assert!(line(2).contains("guest7") && line(3).contains("guest1"), "{screen}");
    }
}
