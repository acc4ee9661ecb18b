//! Starting a host.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::qemu::{Accel, Machine, PROGRAM, Scheduler};
use super::stop::clean;
use super::{Life, Place, Record, process};
use crate::images::Images;
use crate::problem::{Problem, Result, Status};
use crate::session::Session;

/// How a host is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What runs the CPU.
    pub accel: Accel,
    /// CPUs.
    pub cpus: u32,
    /// The machine's memory in MiB.
    pub memory_mib: u32,
    /// The control domain's part of it in MiB.
    pub control_mib: u32,
    /// Channels.
    pub channels: u32,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// Further options of the hypervisor.
    pub options: String,
    /// The control domain's command line.
    pub control_line: String,
    /// What is booted.
    pub images: Images,
    /// How long the control domain may take to answer.
    pub patience: Duration,
}

/// How long a machine that hangs up, or is killed, may take to be gone.
const LAST: Duration = Duration::from_secs(1);

/// Starts a host and waits until its control domain answers. Whether it was started: it may run already.
///
/// # Errors
/// QEMU is missing or refuses, or the machine does not come up; then nothing of it is left but the log.
pub fn start(place: &Place, plan: &Plan) -> Result<(Record, bool)> {
    let _lock = place.lock()?;
    match place.life() {
        Life::Running(record) => return Ok((record, false)),
        // What a machine that has ended left would be in the way.
        Life::Dead(_) => clean(place)?,
        Life::Absent => {}
    }
    let record = match plan.accel {
        Accel::Kvm => boot(place, plan, "kvm")?,
        Accel::Tcg => boot(place, plan, "tcg")?,
        // That a CPU is offered does not mean that it does all that guests need: the control domain's answer does.
        Accel::Auto if may_use_kvm() => match boot(place, plan, "kvm") {
            Ok(record) => record,
            Err(_) => boot(place, plan, "tcg")?,
        },
        Accel::Auto => boot(place, plan, "tcg")?,
    };
    Ok((record, true))
}

fn may_use_kvm() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

fn boot(place: &Place, plan: &Plan, accel: &str) -> Result<Record> {
    let dir = place.dir();
    clean(place)?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(|error| Problem::system(format!("cannot make {}", dir.display()), error))?;
    let result = launch(place, plan, accel).and_then(|record| {
        let Err(problem) = Session::open(place, plan.patience) else { return Ok(record) };
        // A machine that ended is another trouble than one that is silent.
        if process::signal(&record, None, LAST)? {
            return Err(Problem::new(Status::Unavailable, format!("{place} ended while it started")));
        }
        process::signal(&record, Some(Signal::KILL), LAST)?;
        Err(problem)
    });
    result.map_err(|problem| keep_log(place, problem))
}

fn launch(place: &Place, plan: &Plan, accel: &str) -> Result<Record> {
    let dir = place.dir();
    let pid_file = dir.join("qemu.pid");
    let (hypervisor, control) = (real(&plan.images.hypervisor)?, real(&plan.images.control)?);
    // QEMU takes commas and spaces in a module's name for something else.
    let link = dir.join("control");
    std::os::unix::fs::symlink(&control, &link)
        .map_err(|error| Problem::system(format!("cannot link {}", link.display()), error))?;
    let options = format!("dom0_mem={}M sched={} {}", plan.control_mib, plan.scheduler.name(), plan.options)
        .trim_end()
        .to_owned();
    let machine = Machine {
        place,
        accel,
        cpus: plan.cpus,
        memory_mib: plan.memory_mib,
        channels: plan.channels,
        hypervisor: &hypervisor,
        control: &link,
        control_line: &plan.control_line,
        options: &options,
        pid_file: &pid_file,
    };
    let output = machine.command().stdin(std::process::Stdio::null()).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Problem::new(Status::Unavailable, format!("cannot start {place}"))
            .because(format!("{PROGRAM} is not installed"))
            .hint("install QEMU (Debian: apt install qemu-system-x86)"),
        _ => Problem::system(format!("cannot run {PROGRAM}"), error),
    })?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let why = if words.is_empty() { output.status.to_string() } else { words };
        return Err(Problem::new(Status::Unavailable, format!("QEMU refuses to start {place}")).because(why));
    }
    let pid = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
    let identity = pid.and_then(|pid| process::began(pid).map(|began| (pid, began)));
    let Some((pid, began)) = identity else {
        return Err(Problem::new(Status::Unavailable, format!("{place} ended at once")));
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let record = Record {
        pid,
        began,
        accel: accel.to_owned(),
        cpus: plan.cpus,
        memory_mib: plan.memory_mib,
        channels: plan.channels,
        hypervisor,
        control,
        started: now.as_secs(),
    };
    let unwritten = |error: std::io::Error| Problem::system("cannot write host.json", error);
    // By a new file, so that nobody reads half of one.
    let part = dir.join("host.json.part");
    std::fs::write(&part, serde_json::to_vec_pretty(&record).map_err(|error| unwritten(error.into()))?)
        .and_then(|()| std::fs::rename(&part, place.record_file()))
        .map_err(unwritten)?;
    Ok(record)
}

fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|error| Problem::new(Status::Missing, format!("cannot find {}", path.display())).because(error))
}

/// Removes all but the log, whose last lines say most about what went wrong.
fn keep_log(place: &Place, problem: Problem) -> Problem {
    let log = std::fs::read(place.console_log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log).into_owned();
    let kept = place.dir().with_extension("failed.log");
    let removed = clean(place);
    let lines: Vec<&str> = log.lines().collect();
    if lines.is_empty() || removed.is_err() || std::fs::write(&kept, &log).is_err() {
        return problem;
    }
    let last = lines[lines.len().saturating_sub(5)..].join("\n    ");
    let why = problem.why.clone().unwrap_or_else(|| "it said last".to_owned());
    problem.because(format!("{why}:\n    {last}")).hint(format!("the whole log is {}", kept.display()))
}
