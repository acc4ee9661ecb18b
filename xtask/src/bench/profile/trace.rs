//! The execution log: which instruction was executed when.
//!
//! QEMU translates one instruction a block (`-singlestep`) and logs each block that it enters. The log is switched on
//! by QEMU's machine protocol when the guest is about to measure, which waits for it and for a line on its console:
//! booting takes millions of instructions.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::bench::measure::Images;
use crate::console::Capture;
use crate::process;
use crate::qemu::{Clock, Outcome};

/// What the guest says when it is about to measure.
const WAITS: &str = "bench waits";
/// How often its console is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Measures one operation with the log on: the console, and the addresses of what was executed.
pub fn run(images: &Images, operation: &str) -> Result<(String, Vec<u64>)> {
    let scratch = tempfile::tempdir()?;
    let (socket, log) = (scratch.path().join("qmp"), scratch.path().join("log"));
    let vm = images.usual(Clock::Instructions, &format!("only={operation} profile=yes rounds=3"));
    let mut command = vm.command(scratch.path())?;
    command.args(["-singlestep", "-D"]).arg(&log);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    let (keys, mut keyboard) = std::io::pipe().context("no pipe")?;
    command.stdin(keys);
    let (capture, ended) = (Capture::default(), AtomicBool::new(false));
    let (ran, switched) = std::thread::scope(|scope| {
        let switch = scope.spawn(|| {
            while !capture.text().contains(WAITS) {
                if ended.load(Ordering::Relaxed) {
                    return Ok(());
                }
                std::thread::sleep(POLL);
            }
            switch_on(&socket)?;
            keyboard.write_all(b"\n").context("the machine reads no key")
        });
        let ran = process::stream(&mut command, None, capture.clone());
        ended.store(true, Ordering::Relaxed);
        (ran, switch.join().unwrap_or_else(|_| Err(anyhow!("who switches the log on has panicked"))))
    });
    let (end, errors) = ran?;
    switched?;
    let console = capture.text();
    let outcome = Outcome::read(end, &console, &errors);
    ensure!(outcome == Outcome::Shutdown(0), "the benchmark ended as {outcome:?}:\n{console}{errors}");
    let executed = parse(BufReader::new(File::open(&log).context("QEMU wrote no log")?))?;
    Ok((console, executed))
}

/// Has QEMU log what it executes from now on.
fn switch_on(socket: &Path) -> Result<()> {
    let mut writer = UnixStream::connect(socket).context("QEMU's monitor cannot be reached")?;
    let mut reader = BufReader::new(writer.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line).context("QEMU's monitor does not greet")?;
    let log = serde_json::json!({
        "execute": "human-monitor-command",
        "arguments": { "command-line": "log exec,nochain" },
    });
    for command in [serde_json::json!({ "execute": "qmp_capabilities" }), log] {
        writeln!(writer, "{command}")?;
        // Events come in between.
        loop {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "QEMU's monitor has gone");
            let answer: serde_json::Value = serde_json::from_str(&line).context("QEMU's monitor")?;
            match (answer.get("return"), answer.get("error")) {
                (Some(said), _) => {
                    // What the human's command complains of comes back as text.
                    let said = said.as_str().unwrap_or_default();
                    ensure!(said.is_empty(), "QEMU's monitor: {said}");
                    break;
                }
                (None, Some(error)) => bail!("QEMU refuses {command}: {error}"),
                (None, None) => {}
            }
        }
    }
    Ok(())
}

/// Reads a log: `Trace CPU: HOST [SEGMENT/ADDRESS/FLAGS/..] NAME` for each block that is entered. One that an interrupt
/// kept from being executed is taken back by the line that follows.
fn parse(log: impl BufRead) -> Result<Vec<u64>> {
    let mut executed = Vec::new();
    for line in log.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("Stopped execution") {
            executed.pop();
        } else if line.starts_with("Trace ") {
            let address = line.split_once('[').and_then(|(_, rest)| rest.split('/').nth(1));
            let address = address.and_then(|text| u64::from_str_radix(text, 16).ok());
            executed.push(address.with_context(|| format!("not a line of QEMU's log: `{line}`"))?);
        }
    }
    Ok(executed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_off_the_log() {
        let log = "Trace 0: 0x7f5e0c000340 [0000000000000000/ffffff8000101234/0040c0b3/ff000201] some::name\n\
                   cpu_io_recompile: rewound execution of TB to 0000000000000000\n\
                   Trace 0: 0x7f5e0c000500 [0000000000000000/00000000c0100010/0040c0b3/ff000201] \n\
                   Stopped execution of TB chain before 0x7f5e0c000500 [00000000c0100010] \n\
                   Trace 0: 0x7f5e0c000600 [0000000000000000/ffffff8000200000/0040c0b3/ff000201] \n";
        let executed = parse(log.as_bytes()).expect("a log");
        assert_eq!(executed, [0xffff_ff80_0010_1234, 0xffff_ff80_0020_0000]);
    }

    #[test]
    fn a_line_of_another_form_is_an_error() {
        assert!(parse("Trace 0: 0x7f5e0c000340 nothing\n".as_bytes()).is_err());
        assert!(parse("Trace 0: 0x7f5e0c000340 [0/xyz/0]\n".as_bytes()).is_err());
    }
}
