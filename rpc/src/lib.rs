//! The protocol between `proxenos` on the host and the control domain.
//!
//! # The channel
//!
//! A byte stream each way, which loses nothing but may be cut anywhere and taken up by another client: on the host a
//! unix socket, in the control domain a virtio console. There are several such channels, and each serves one client at
//! a time. [`frame`] cuts the stream into messages: postcard, a CRC-32, COBS, and a zero byte behind each.
//!
//! # A session
//!
//! 1. The client sends a zero byte (it ends whatever a client before it left half sent), then [`ToControl::Hello`]
//!    with a nonce. The control domain drops what that channel had going on: open calls, streams and uploads.
//! 2. It answers [`FromControl::Welcome`] with the nonce. The client drops every frame before that one: they were for
//!    somebody else. Majors of the [`Version`]s must agree, else the client stops there; a call that it makes all the
//!    same is answered [`Cause::NotSupported`], unread.
//! 3. The client makes [calls](ToControl::Call), each with a number of its own choice and a [`Deadline`]. Every call
//!    gets exactly one [`FromControl::Reply`], behind any number of [events](FromControl::Event).
//! 4. The client hangs up whenever it likes, without a word.
//!
//! Calls of a channel are begun in the order in which they come. Up to [`MAX_OPEN_CALLS`] may be unanswered; one more
//! is refused with [`Cause::Busy`]. A call that waits for something ([`Request::ConsoleAttach`],
//! [`Request::WaitExit`], [`Request::CreateFinish`], [`Request::Shutdown`] with a wait) keeps nothing else waiting.
//! [`ToControl::Note`] speaks to such a call while it is open; it is never answered, and one for a call that is not
//! open is dropped: it may have crossed the reply.
//!
//! # Deadlines
//!
//! Each call carries how long it may take, counted from its arrival. When that has passed the call ends with
//! [`Cause::Deadline`], and what it had begun is undone where that is possible (a domain that is half built is
//! destroyed; a guest that was asked to shut down stays asked). A note to a call begins its deadline anew: streams
//! live for as long as their client shows that it does, which is how the control domain learns of one that died. The
//! client waits for a little longer than it said, then takes the control domain for dead.
//!
//! # Flow
//!
//! A virtio console drops what its host side has no room for, so nothing may be sent that is not expected: a reply a
//! call; [`Event::Progress`], at most [`MAX_PROGRESS`] a call; and console output within the credit that the client
//! gave, where each chunk costs its length and [`CHUNK_COST`]. What comes before the credit is used up stays in the
//! scroll-back, and is lost from its old end: [`Event::Output`] has offsets that show it. Input is under credit the
//! other way.
//!
//! # Versions
//!
//! [`VERSION`] is this crate's. A minor step only adds variants behind those there are; who does not know one answers
//! [`Cause::NotSupported`], which is also what an unreadable call gets, as far as its number can be read. All else is a
//! major step. [`Hello`] and [`Welcome`] never change.
//!
//! No lock guards anything here: these are values.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bounded;
pub mod config;
pub mod domain;
pub mod dump;
pub mod failure;
pub mod frame;
pub mod host;
pub mod message;
pub mod sched;
pub mod units;

pub use bounded::{Bytes, List, Text, TooLong};
pub use config::{Checksum, Config, Digest, Image, OnCrash, Part, Restart, Start, UploadId};
pub use domain::{Arch, BadName, DomainId, Exit, ExitReason, Info, Name, ShutdownReason, State, Subject};
pub use dump::{AddressSpace, Context};
pub use failure::{Cause, Failure};
pub use frame::{Decoder, FrameError, encode};
pub use host::{ControlMemory, HostInfo, Log, LogPart, TraceCpu, TracePart, TraceRecord};
pub use message::{
    Attached, Call, CallId, ConsoleEnd, ConsoleMode, Event, FromControl, Hello, Note, Reply, Request, Stage, ToControl,
    Unreadable, Version, Welcome,
};
pub use sched::{DomainSched, HostSched, Scheduler};
pub use units::{Deadline, Kib, Micros, Millis, Nanos};

/// The version of the protocol that this crate describes.
pub const VERSION: Version = Version { major: 1, minor: 1 };

/// The most bytes of an image, a console or a memory that one message carries.
pub const MAX_CHUNK: usize = 16 * 1024;

/// The most bytes a message takes as postcard.
pub const MAX_MESSAGE: usize = MAX_CHUNK + 1024;

/// The most bytes between two zeros of the stream: a message, its CRC, and what COBS adds (one byte in 254, and one).
pub const MAX_FRAME: usize = MAX_MESSAGE + 4 + (MAX_MESSAGE + 4) / 254 + 1;

/// The most bytes of a domain's name.
pub const MAX_NAME: usize = 63;

/// The most bytes of a kernel's command line: the interface's 256 with their NUL (`MAX_CMDLINE`).
pub const MAX_CMDLINE: usize = 255;

/// The most bytes of a text for people: a failure's reason, a version, the path of an image.
pub const MAX_TEXT: usize = 200;

/// The most domains in one [`Reply::Domains`].
pub const MAX_LIST: usize = 32;

/// The most trace records in one [`Reply::Trace`].
pub const MAX_RECORDS: usize = 256;

/// The most CPUs in one answer.
pub const MAX_CPUS: usize = 256;

/// The most bytes of a kernel or a ramdisk.
pub const MAX_IMAGE: u64 = 1 << 30;

/// The most unanswered calls of a channel.
pub const MAX_OPEN_CALLS: usize = 8;

/// The most [`Event::Progress`] of one call.
pub const MAX_PROGRESS: u32 = 64;

/// What a chunk of console output costs of the credit beside its length: small pieces take room in a socket's buffer
/// far beyond their length.
pub const CHUNK_COST: u32 = 1024;

/// The most credit a client may have open on a console: a socket's buffer on Linux holds three times as much.
pub const MAX_CREDIT: u32 = 64 * 1024;
