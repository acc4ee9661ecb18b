//! The messages themselves. The module documentation of the crate says in which order they go.

use alloc::boxed::Box;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Image, Part, UploadId};
use crate::domain::{DomainId, Exit, Info, ShutdownReason, Subject};
use crate::dump::{AddressSpace, Context};
use crate::frame;
use crate::host::{ControlMemory, HostInfo, Log, LogPart, TracePart};
use crate::sched::{DomainSched, HostSched};
use crate::{Bytes, Deadline, Failure, Kib, List, MAX_CHUNK, MAX_LIST, MAX_TEXT, Nanos, Text};

/// A version of the protocol. Those with the same major understand each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Steps when something changes its meaning.
    pub major: u16,
    /// Steps when something is added.
    pub minor: u16,
}

/// A client's number of a call; none that is open on its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(pub u32);

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToControl {
    /// A client begins.
    Hello(Hello),
    /// It wants something.
    Call(Call),
    /// It says something to an open call.
    Note(CallId, Note),
}

/// Why the bytes of a message are none of a client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is a call with this number, of which the rest is not known: a later version's.
    Call(CallId),
    /// It is anything.
    Other,
}

impl ToControl {
    /// The variant of a call, which never changes.
    const CALL: u32 = 1;

    /// Reads the bytes of a message that arrived whole ([`Decoder::next_frame`](crate::Decoder::next_frame)).
    ///
    /// # Errors
    /// [`Unreadable`]: of a call its number at least, so that it can be answered.
    pub fn read(message: &[u8]) -> Result<Self, Unreadable> {
        frame::parse(message).map_err(|_| match postcard::take_from_bytes::<(u32, CallId)>(message) {
            Ok(((Self::CALL, id), _)) => Unreadable::Call(id),
            _ => Unreadable::Other,
        })
    }
}

/// What the control domain sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromControl {
    /// Answers [`ToControl::Hello`].
    Welcome(Welcome),
    /// Ends a call.
    Reply(CallId, Result<Reply, Failure>),
    /// Something happened with an open call.
    Event(CallId, Event),
}

/// A client begins: what the channel had going on ends. This never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The client's version.
    pub version: Version,
    /// A number that no client has sent lately: random.
    pub nonce: u64,
}

/// The answer. This never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The control domain's version.
    pub version: Version,
    /// The client's nonce.
    pub nonce: u64,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its number.
    pub id: CallId,
    /// How long it may take.
    pub deadline: Deadline,
    /// What is wanted.
    pub request: Request,
}

/// Who may type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// The client sends input too. Several may; their input is mixed by chunks.
    ReadWrite,
    /// The client only looks on.
    ReadOnly,
}

/// What may be wanted. Unless it says otherwise, the reply is [`Reply::Done`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The host: [`Reply::Host`].
    HostInfo,
    /// Domains in the order of their numbers, from this on: [`Reply::Domains`].
    List {
        /// The first number that is wanted.
        from: DomainId,
    },
    /// One domain: [`Reply::Domain`].
    Describe(Subject),
    /// Begins to make a domain: [`Reply::Upload`]. The name is taken from here on.
    CreateBegin {
        /// What it is to be.
        config: Box<Config>,
        /// Its kernel.
        kernel: Image,
        /// Its ramdisk.
        ramdisk: Option<Image>,
    },
    /// The next bytes of an image that was asked for. Chunks of one part come in order, without gaps.
    Upload {
        /// The creation.
        upload: UploadId,
        /// Which image.
        part: Part,
        /// Where in it the bytes belong.
        offset: u64,
        /// The bytes.
        bytes: Bytes<MAX_CHUNK>,
    },
    /// Makes the domain, all images being there: [`Event::Progress`], then [`Reply::Domain`]. Whether it succeeds or
    /// not, the creation is over.
    CreateFinish {
        /// The creation.
        upload: UploadId,
    },
    /// Gives a creation up.
    CreateAbort {
        /// The creation.
        upload: UploadId,
    },
    /// Attaches to a console: [`Event::Attached`], then [`Event::Output`] and [`Event::InputCredit`] as they
    /// come, at last [`Reply::ConsoleEnd`].
    ConsoleAttach {
        /// Whose.
        domain: Subject,
        /// How many bytes of the scroll-back to begin with, at most.
        replay: u32,
        /// The credit to begin with, at most [`MAX_CREDIT`](crate::MAX_CREDIT).
        credit: u32,
        /// Who may type.
        mode: ConsoleMode,
    },
    /// Stops a domain where it is. Of one that is paused already: nothing.
    Pause(Subject),
    /// Lets it go on.
    Unpause(Subject),
    /// Asks a guest to shut down, by a message of its control interface.
    Shutdown {
        /// Whom.
        domain: Subject,
        /// What for: power off, reboot or suspend.
        reason: ShutdownReason,
        /// Whether the reply waits for the end ([`Reply::Exit`]) or for the guest's answer.
        wait: bool,
    },
    /// Ends a domain without asking it. Replied to when its memory is free again: [`Reply::Exit`].
    Destroy(Subject),
    /// Ends a domain without asking it, and starts it again from its images: [`Reply::Domain`].
    Reset(Subject),
    /// Asks a guest to have this much memory (its balloon driver), within its limit: [`Reply::Memory`].
    SetMemory {
        /// Whom.
        domain: Subject,
        /// How much.
        memory: Kib,
    },
    /// Sets the memory that a domain may have.
    SetMemoryLimit {
        /// Whose.
        domain: Subject,
        /// How much.
        limit: Kib,
    },
    /// The scheduler's own parameters: [`Reply::HostSched`].
    GetHostSched,
    /// Sets them. They must be for the scheduler that runs.
    SetHostSched(HostSched),
    /// A domain's parameters: [`Reply::DomainSched`].
    GetDomainSched(Subject),
    /// Sets them. They must be for the scheduler that runs.
    SetDomainSched(Subject, DomainSched),
    /// Keeps a domain on a CPU, or on none in particular.
    Pin {
        /// Whom.
        domain: Subject,
        /// Where.
        cpu: Option<u32>,
    },
    /// A piece of a log: [`Reply::Log`].
    Log {
        /// Which.
        log: Log,
        /// From where on; what is no longer there is passed over.
        from: u64,
    },
    /// Records of a CPU's trace: [`Reply::Trace`].
    Trace {
        /// Which CPU.
        cpu: u32,
        /// Number of the first record that is wanted.
        from: u64,
    },
    /// A domain's virtual CPU, which had better not run: [`Reply::Context`].
    Context(Subject),
    /// A domain's memory: [`Reply::Bytes`], fewer than asked for where the next page is not there.
    ReadMemory {
        /// Whose.
        domain: Subject,
        /// What the address counts in.
        space: AddressSpace,
        /// Where to begin.
        address: u64,
        /// How many bytes, at most [`MAX_CHUNK`].
        len: u32,
    },
    /// Waits for a domain to end, or says how it did: [`Reply::Exit`].
    WaitExit(Subject),
    /// Ends all domains without asking them, then the host. There is a reply, and then no more of anything.
    HostStop,
    /// What the control domain does with its memory (since 1.1): [`Reply::ControlMemory`].
    ControlMemory,
}

/// What a client says to an open call. Each begins the call's deadline anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// The client is there.
    Alive,
    /// End the call: with [`Cause::Cancelled`](crate::Cause::Cancelled), a console with [`Reply::ConsoleEnd`].
    Cancel,
    /// So much more console output is welcome.
    Credit(u32),
    /// Console input, within the credit that was given; what is beyond is dropped.
    Input(Bytes<MAX_CHUNK>),
}

/// Where a creation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The kernel is unpacked and looked at.
    Image,
    /// Memory is handed out.
    Memory,
    /// Segments and ramdisk are copied.
    Copy,
    /// Page tables and the start-of-day pages are written.
    Tables,
}

/// What a console begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The domain.
    pub info: Info,
    /// Where the first output will begin, in bytes that the domain has written.
    pub from: u64,
    /// How many bytes of input are welcome.
    pub input_credit: u32,
}

/// Something that happens with an open call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// How far a creation is.
    Progress {
        /// Where it is.
        stage: Stage,
        /// How much of that is done.
        done: u64,
        /// How much there is.
        total: u64,
    },
    /// The console is attached.
    Attached(Box<Attached>),
    /// Console output. A gap between this and what came before was lost: written faster than it was read.
    Output {
        /// Where it begins, in bytes that the domain has written.
        from: u64,
        /// The bytes.
        bytes: Bytes<MAX_CHUNK>,
    },
    /// So many more bytes of input are welcome.
    InputCredit(u32),
    /// The domain whose console this is was started again, with this number; its output goes on.
    Restarted(DomainId),
}

/// Why a console ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleEnd {
    /// The client cancelled it.
    Detached,
    /// The domain has ended, is not started again, and its output has all been sent. Of one that crashed and is kept
    /// too.
    Ended(Exit),
}

/// What a call results in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The host.
    Host(Box<HostInfo>),
    /// Domains.
    Domains {
        /// When that was.
        at: Nanos,
        /// They.
        domains: List<Info, MAX_LIST>,
        /// Where to go on, if there are more.
        more: Option<DomainId>,
    },
    /// One domain.
    Domain(Box<Info>),
    /// The creation has begun.
    Upload {
        /// Its number.
        upload: UploadId,
        /// Whether the kernel is to be uploaded, or there already.
        kernel: bool,
        /// Whether the ramdisk is.
        ramdisk: bool,
    },
    /// A console ended.
    ConsoleEnd(ConsoleEnd),
    /// A domain ended.
    Exit(Exit),
    /// The memory that the domain has by now. Its balloon goes on towards what was asked for.
    Memory(Kib),
    /// The scheduler's parameters.
    HostSched(HostSched),
    /// A domain's.
    DomainSched(DomainSched),
    /// A piece of a log.
    Log(LogPart),
    /// Records.
    Trace(TracePart),
    /// A virtual CPU.
    Context(Box<Context>),
    /// Memory.
    Bytes(Bytes<MAX_CHUNK>),
    /// The control domain's own.
    ControlMemory(ControlMemory),
}

/// A text for people, of this protocol's usual bound.
pub type Words = Text<MAX_TEXT>;
