//! Non-maskable interrupts for a machine that runs: one after the other, by QEMU's machine protocol (QMP), as fast as
//! it takes them.
//!
//! QEMU's own port 61h has no reasons of NMIs. Where a run names one, a device is laid over it that reads as that,
//! always, and writes down what is written to it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use regex_lite::Regex;

use super::Verdict;
use crate::console::Capture;
use crate::guest_meta::Nmis;

/// Where the hypervisor says how many it took.
const TAKEN: &str = r"CPU 0: NMIs: (\d+)";

/// Who injects them.
pub struct Injector {
    nmis: Nmis,
    port: PathBuf,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

/// What was injected.
pub struct Injected {
    nmis: Nmis,
    count: u64,
    written: Vec<u8>,
}

impl Injector {
    /// Adds to QEMU's command what this takes, and waits for it to run. Files are made in `scratch`.
    pub fn new(command: &mut Command, nmis: &Nmis, scratch: &Path, console: &Capture) -> Self {
        let (socket, port) = (scratch.join("qmp"), scratch.join("port61"));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        if let Some(reason) = nmis.reason {
            command.arg("-chardev").arg(format!("file,id=port61,path={}", port.display()));
            command.args(["-device", &format!("isa-debugcon,iobase=0x61,readback={reason},chardev=port61")]);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (after, stop, console) = (nmis.after.clone(), stop.clone(), console.clone());
            move || {
                while !console.text().contains(&after) {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(0);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                inject(&socket, &stop)
            }
        });
        Self { nmis: nmis.clone(), port, stop, thread }
    }

    /// The machine has ended.
    pub fn stop(self) -> Result<Injected> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(count) = self.thread.join() else { bail!("who injects NMIs has panicked") };
        let written = if self.nmis.reason.is_some() { std::fs::read(&self.port)? } else { Vec::new() };
        Ok(Injected { nmis: self.nmis, count: count?, written })
    }
}

/// Injects until the machine ends: how many it was.
fn inject(socket: &Path, stop: &AtomicBool) -> Result<u64> {
    let mut writer = UnixStream::connect(socket).context("QEMU's monitor cannot be reached")?;
    let mut reader = BufReader::new(writer.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line).context("QEMU's monitor does not greet")?;
    let mut count = 0;
    for command in std::iter::once("qmp_capabilities").chain(std::iter::repeat("inject-nmi")) {
        let asked = writeln!(writer, "{}", serde_json::json!({ "execute": command }));
        if stop.load(Ordering::Relaxed) || asked.is_err() {
            break;
        }
        // Events come in between; an end of the connection is the machine's.
        loop {
            line.clear();
            if !matches!(reader.read_line(&mut line), Ok(1..)) {
                return Ok(count);
            }
            let answer: serde_json::Value = serde_json::from_str(&line).context("QEMU's monitor")?;
            match (answer.get("return"), answer.get("error")) {
                (Some(_), _) => break,
                (None, Some(error)) => bail!("QEMU refuses {command}: {error}"),
                (None, None) => {}
            }
        }
        count += u64::from(command == "inject-nmi");
    }
    Ok(count)
}

impl Injected {
    /// Whether as many came, and were answered, as the run asks for; all else about the run is found good.
    pub fn judge(&self, console: &str) -> Verdict {
        let taken = Regex::new(TAKEN).expect("it is one").captures(console).and_then(|found| found[1].parse().ok());
        let taken: u64 = taken.unwrap_or(0);
        if taken < self.nmis.least {
            let least = self.nmis.least;
            return Verdict::Fail(format!("{taken} NMIs taken of {} injected, at least {least} expected", self.count));
        }
        match (self.nmis.answer, self.written.first()) {
            (Some(answer), first) if first != Some(&answer) => {
                Verdict::Fail(format!("{first:x?} was written to port 61h, {answer:#x} expected"))
            }
            (None, Some(first)) => Verdict::Fail(format!("{first:#x} was written to port 61h, nothing expected")),
            _ => Verdict::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injected(least: u64, answer: Option<u8>, written: &[u8]) -> Injected {
        let nmis = Nmis { after: String::new(), least, reason: Some(0x80), answer };
        Injected { nmis, count: 600, written: written.to_vec() }
    }

    #[test]
    fn enough_must_be_taken_and_answered() {
        let console = "(px) CPU 0: NMIs: 500\n";
        assert_eq!(injected(500, Some(4), &[4, 4]).judge(console), Verdict::Pass);
        assert_eq!(injected(500, None, &[]).judge(console), Verdict::Pass);
        for bad in [injected(501, Some(4), &[4]), injected(500, Some(4), &[]), injected(500, Some(4), &[8, 4])] {
            assert!(matches!(bad.judge(console), Verdict::Fail(_)));
        }
        assert!(matches!(injected(500, None, &[4]).judge(console), Verdict::Fail(_)));
        assert!(matches!(injected(1, None, &[]).judge(""), Verdict::Fail(_)));
    }
}
