//! Stopping a host: the control domain is asked, then QEMU, then its process is ended.

use std::time::Duration;

use proxenos_rpc::{Deadline, Request};
use rustix::process::Signal;

use super::{Life, Place, process, qmp};
use crate::problem::{Problem, Result, Status};
use crate::session::Session;

/// Whether the control domain is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It ends its guests and the machine.
    Ask,
    /// The machine is ended as it is.
    Now,
}

/// How long QEMU may take to end once it has been told.
const QUIT: Duration = Duration::from_secs(5);

/// Stops a host and removes what it left. Whether there was one that ran.
///
/// # Errors
/// It cannot be ended.
pub fn stop(place: &Place, force: Force, timeout: Deadline) -> Result<bool> {
    let _lock = place.lock()?;
    let record = match place.life() {
        Life::Absent => return Ok(false),
        Life::Dead(_) => {
            clean(place)?;
            return Ok(false);
        }
        Life::Running(record) => record,
    };
    let mut ended = false;
    if force == Force::Ask {
        let patience = Duration::from_millis(timeout.0.into()).min(QUIT);
        // Whoever does not answer is not asked twice: that is what the next steps are for.
        let asked = Session::open(place, patience)
            .and_then(|mut session| session.call("stop the host", Request::HostStop, timeout));
        if asked.is_ok() {
            ended = process::signal(&record, None, QUIT)?;
        }
    }
    if !ended && qmp::quit(&place.qmp()).is_ok() {
        ended = process::signal(&record, None, QUIT)?;
    }
    for signal in [Signal::TERM, Signal::KILL] {
        if !ended {
            ended = process::signal(&record, Some(signal), QUIT)?;
        }
    }
    if !ended {
        return Err(Problem::new(Status::System, format!("{place} does not end"))
            .because(format!("its process {} takes no signal", record.pid)));
    }
    clean(place)?;
    Ok(true)
}

/// Removes what a host that has ended left.
pub fn clean(place: &Place) -> Result<()> {
    match std::fs::remove_dir_all(place.dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Problem::system(format!("cannot remove {}", place.dir().display()), error))
        }
        _ => Ok(()),
    }
}
