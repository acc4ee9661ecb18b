//! QEMU's process: whether it is still the one that was started, and its end.
//!
//! Numbers of processes are given again. With the moment of its beginning a process has an identity; a descriptor of
//! the process, taken before that is compared, makes a signal reach that one or none.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Record;
use crate::problem::{Problem, Result};

/// When a process began, in ticks since boot: field 22 of its `stat`, counted behind the name, which may hold
/// anything. `None` if there is no such process, or nothing left of it but its status.
pub fn began(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

/// Whether the process that was started is there.
pub fn lives(record: &Record) -> bool {
    began(record.pid) == Some(record.began)
}

/// Sends a signal to that process and waits for its end, or for a time. Whether it has ended.
pub fn signal(record: &Record, signal: Option<Signal>, patience: Duration) -> Result<bool> {
    let gone = |error: rustix::io::Errno| Problem::system("cannot end QEMU", error);
    let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw) else { return Ok(true) };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(gone(error)),
    };
    if !lives(record) {
        return Ok(true);
    }
    if let Some(signal) = signal {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            Err(error) => return Err(gone(error)),
        }
    }
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(gone(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_beginning() {
        let own = std::process::id();
        let began = began(own).expect("we are there");
        let record = |pid, began| Record {
            pid,
            began,
            accel: String::new(),
            cpus: 1,
            memory_mib: 1,
            channels: 1,
            hypervisor: "h".into(),
            control: "c".into(),
            started: 0,
        };
        assert!(lives(&record(own, began)));
        assert!(!lives(&record(own, began + 1)));
        // Were it signalled, this test would end here.
        assert!(signal(&record(own, began + 1), Some(Signal::KILL), Duration::ZERO).expect("looked"));
    }

    #[test]
    fn the_named_process_ends_and_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("there is a sleep");
        let record = Record {
            pid: child.id(),
            began: began(child.id()).expect("it runs"),
            accel: String::new(),
            cpus: 1,
            memory_mib: 1,
            channels: 1,
            hypervisor: "h".into(),
            control: "c".into(),
            started: 0,
        };
        assert!(!signal(&record, None, Duration::from_millis(20)).expect("looked"));
        assert!(signal(&record, Some(Signal::TERM), Duration::from_secs(10)).expect("sent"));
        assert!(!lives(&record), "what is left is a status");
        child.wait().expect("it has ended");
    }
}
