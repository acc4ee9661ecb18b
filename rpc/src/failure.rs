//! Why a call failed.

use core::fmt;
use serde::{Deserialize, Serialize};

use crate::{MAX_TEXT, Text};

/// What kind of failure it is: what a program decides by. What has failed has changed nothing, unless a cause says
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// There is no such domain.
    NoSuchDomain,
    /// Another domain has that name.
    NameTaken,
    /// The domain is not in a state for that.
    WrongState,
    /// The request contradicts itself or the machine (a CPU that does not exist, a limit below the memory).
    Invalid,
    /// The image is no kernel for this interface.
    BadImage,
    /// What arrived has another checksum than was said, or a chunk was not the next one.
    BadUpload,
    /// The machine has not enough memory left.
    OutOfMemory,
    /// There are as many domains as there can be.
    TooManyDomains,
    /// Another scheduler runs.
    OtherScheduler,
    /// The address is not mapped, or not the domain's.
    BadAddress,
    /// Its images are gone, so it cannot be started again.
    NoImage,
    /// Too many calls are open, or too many uploads under way on all channels.
    Busy,
    /// The guest did not do as it was asked, or not in time; it stays asked.
    GuestSilent,
    /// The deadline has passed. The guest may have been asked for something, which is not taken back.
    Deadline,
    /// A note cancelled the call.
    Cancelled,
    /// This control domain does not know the request, or could not read it.
    NotSupported,
    /// The hypervisor refused, with this error (a positive `errno`) for which there is no better cause.
    Hypervisor(i32),
    /// The control domain made a mistake.
    Internal,
}

/// A failure, with words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub cause: Cause,
    /// What happened and why, for people: begins in lower case and has no full stop.
    pub message: Text<MAX_TEXT>,
}

impl Failure {
    /// A failure; the text is cut if it is too long.
    pub fn new(cause: Cause, message: &str) -> Self {
        Self { cause, message: Text::cut(message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for Failure {}
