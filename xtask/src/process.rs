//! Child processes with a time limit, and Ctrl-C.
//!
//! An interrupt only sets a flag; whoever waits for a child looks at it, ends the child, and gives up. So no QEMU
//! outlives this tool, and a terminal that QEMU made raw is made usable again by QEMU itself.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::console::Capture;

/// How often a waiting loop looks.
const POLL: Duration = Duration::from_millis(5);

/// How long a child may take to end by itself after an interrupt, which the terminal sends to it as well.
const GRACE: Duration = Duration::from_secs(1);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT, SIGTERM and SIGHUP set the flag. Once, at the start.
pub fn catch_interrupts() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("cannot catch Ctrl-C")
}

/// Whether the user wants to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It took too long and was killed.
    TimedOut,
    /// It said on standard error that it will never go on, and was killed.
    Stuck,
    /// The user stopped it.
    Interrupted,
}

/// What QEMU says when KVM cannot go on. It then stays, stopped, for a debugger to look at.
const STUCK: &str = "KVM internal error";

/// Runs a command, passing all its standard output to `sink` as it comes, and returns how it ended and what it
/// wrote to standard error.
///
/// # Errors
/// Where the command cannot be started or waited for.
pub fn stream(
    command: &mut Command,
    limit: Option<Duration>,
    sink: impl Write + Send + 'static,
) -> Result<(End, String)> {
    let start = Instant::now();
    stream_until(command, || limit.is_some_and(|limit| start.elapsed() > limit), sink)
}

/// As [`stream`], until `over` says that it has taken too long.
///
/// # Errors
/// See [`stream`].
pub fn stream_until(
    command: &mut Command,
    over: impl Fn() -> bool,
    mut sink: impl Write + Send + 'static,
) -> Result<(End, String)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let stdout = child.stdout.take().context("no pipe")?;
    let mut stderr = child.stderr.take().context("no pipe")?;
    let said = Capture::default();
    let copier = std::thread::spawn(move || copy_live(stdout, &mut sink));
    let errors = std::thread::spawn({
        let mut said = said.clone();
        move || copy_live(&mut stderr, &mut said)
    });
    let end = wait(&mut child, over, &said)?;
    // Both threads end with their pipes, whose other ends are closed by now.
    drop(copier.join());
    drop(errors.join());
    Ok((end, said.text()))
}

/// Copies without waiting for a line's end: a prompt must be seen before it is answered.
fn copy_live(mut from: impl Read, to: &mut impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // A sink that fails (a closed terminal) must not stop the child by filling its pipe.
        drop(to.write_all(&buffer[..count]).and_then(|()| to.flush()));
    }
}

fn wait(child: &mut Child, over: impl Fn() -> bool, said: &Capture) -> Result<End> {
    let mut stopping: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            // The terminal sends the interrupt to the child as well, which may be quicker than this loop.
            return Ok(if interrupted() { End::Interrupted } else { End::Exited(status) });
        }
        if over() {
            kill(child)?;
            return Ok(End::TimedOut);
        }
        if said.text().contains(STUCK) {
            kill(child)?;
            return Ok(End::Stuck);
        }
        if interrupted() && stopping.get_or_insert_with(Instant::now).elapsed() > GRACE {
            kill(child)?;
            return Ok(End::Interrupted);
        }
        std::thread::sleep(POLL);
    }
}

fn kill(child: &mut Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Whether a command, run in silence, succeeds within the limit.
pub fn succeeds_within(command: &mut Command, limit: Duration) -> bool {
    match stream(command, Some(limit), std::io::sink()) {
        Ok((End::Exited(status), _)) => status.success(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_come_back() {
        let sink = Capture::default();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 7"]);
        let (end, errors) = stream(&mut command, None, sink.clone()).expect("sh runs");
        let End::Exited(status) = end else { panic!("{end:?}") };
        assert_eq!(status.code(), Some(7));
        assert_eq!(errors, "err\n");
        assert_eq!(sink.text(), "out\n");
    }

    #[test]
    fn a_child_that_never_ends_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let (end, _) = stream(&mut command, Some(Duration::from_millis(50)), std::io::sink()).expect("sleep runs");
        assert_eq!(end, End::TimedOut);
    }

    #[test]
    fn a_child_that_says_it_is_stuck_is_killed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'KVM internal error. Suberror: 1' >&2; exec sleep 1000"]);
        let (end, errors) = stream(&mut command, None, std::io::sink()).expect("sh runs");
        assert_eq!(end, End::Stuck);
        assert!(errors.contains("Suberror"));
    }
}
