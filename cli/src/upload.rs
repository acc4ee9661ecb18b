//! Making a domain: its images are announced, uploaded where the control domain has not got them, and built.
//!
//! Promises: the bytes that are sent are those that were announced, since a file is read once; at most [`AHEAD`]
//! chunks are unanswered; progress goes to standard error, and only to a terminal.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proxenos_rpc::{
    Bytes, Checksum, Config, Deadline, Digest, Event, FromControl, Image, Info, MAX_CHUNK, MAX_IMAGE, Part, Reply,
    Request, Stage, UploadId,
};
use sha2::{Digest as _, Sha256};

use crate::problem::{Problem, Result, Status};
use crate::session::{Arrival, Session, answer_by, no_answer};

/// Chunks that may be unanswered.
const AHEAD: usize = 4;

/// Images below this are up before a bar could be read.
const WORTH_A_BAR: u64 = 1 << 20;

/// A file that becomes part of a domain.
pub struct File {
    bytes: Vec<u8>,
    image: Image,
}

impl File {
    /// Reads a kernel, and sees that it may be one.
    ///
    /// # Errors
    /// It cannot be read, or is neither ELF nor gzip.
    pub fn kernel(path: &Path) -> Result<Self> {
        let file = Self::read(path)?;
        if file.bytes.starts_with(b"\x7fELF") || file.bytes.starts_with(&[0x1f, 0x8b]) {
            return Ok(file);
        }
        Err(Problem::new(Status::Data, format!("{} is no kernel", path.display()))
            .because("it is neither an ELF file nor one packed by gzip")
            .hint("configurations are for `proxenos create`, or end in .toml or .conf"))
    }

    /// Reads any image.
    ///
    /// # Errors
    /// It cannot be read, or is too big.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| {
            let is_missing = error.kind() == std::io::ErrorKind::NotFound;
            let status = if is_missing { Status::Missing } else { Status::System };
            Problem::new(status, format!("cannot read {}", path.display())).because(error)
        })?;
        let len = bytes.len() as u64;
        if len > MAX_IMAGE {
            return Err(Problem::new(Status::Data, format!("{} is too big", path.display()))
                .because(format!("an image has at most {} MiB", MAX_IMAGE >> 20)));
        }
        let digest = Digest(Sha256::digest(&bytes).into());
        Ok(Self { image: Image { len, checksum: Checksum::of(&bytes), digest }, bytes })
    }
}

/// Makes a domain.
///
/// # Errors
/// It is refused, or the control domain does not answer.
pub fn create(
    session: &mut Session,
    config: Config,
    kernel: &File,
    ramdisk: Option<&File>,
    deadline: Deadline,
) -> Result<Info> {
    let doing = format!("cannot create {}", config.name);
    let begin = Request::CreateBegin {
        config: Box::new(config),
        kernel: kernel.image,
        ramdisk: ramdisk.map(|file| file.image),
    };
    let Reply::Upload { upload, kernel: wants_kernel, ramdisk: wants_ramdisk } =
        session.call(&doing, begin, deadline)?
    else {
        return Err(unexpected());
    };
    let parts = [(Part::Kernel, Some(kernel), wants_kernel), (Part::Ramdisk, ramdisk, wants_ramdisk)];
    for (part, file, _) in parts.into_iter().filter(|(_, _, wanted)| *wanted) {
        if let Some(file) = file {
            send(session, &doing, upload, part, &file.bytes, deadline)?;
        }
    }
    let spinner = spinner("building");
    let finished = session.call_with(Request::CreateFinish { upload }, deadline, |event| {
        if let Event::Progress { stage, done, total } = event {
            spinner.set_message(format!("building: {} {}%", stage_name(stage), percent(done, total)));
        }
    });
    spinner.finish_and_clear();
    match finished?.map_err(|failure| Problem::refused(&doing, &failure))? {
        Reply::Domain(info) => Ok(*info),
        _ => Err(unexpected()),
    }
}

fn percent(done: u64, total: u64) -> u64 {
    (u128::from(done.min(total)) * 100).checked_div(total.into()).unwrap_or(100) as u64
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Image => "unpacking the kernel",
        Stage::Memory => "handing out memory",
        Stage::Copy => "copying",
        Stage::Tables => "writing page tables",
    }
}

/// What shows that something is under way.
pub fn spinner(message: &str) -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    spinner.set_message(message.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn send(
    session: &mut Session,
    doing: &str,
    upload: UploadId,
    part: Part,
    bytes: &[u8],
    deadline: Deadline,
) -> Result<()> {
    let len = bytes.len() as u64;
    let bar = if len < WORTH_A_BAR { ProgressBar::hidden() } else { ProgressBar::new(len) };
    if let Ok(style) = ProgressStyle::with_template("uploading {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    let mut chunks = bytes.chunks(MAX_CHUNK).enumerate();
    let mut open = std::collections::VecDeque::new();
    loop {
        while open.len() < AHEAD {
            let Some((number, chunk)) = chunks.next() else { break };
            let offset = (number * MAX_CHUNK) as u64;
            let bytes = Bytes::new(chunk).map_err(|why| Problem::new(Status::Internal, "a chunk").because(why))?;
            open.push_back((session.begin(Request::Upload { upload, part, offset, bytes }, deadline)?, chunk.len()));
        }
        let Some(&(id, length)) = open.front() else { break };
        let until = answer_by(deadline);
        let reply = loop {
            match session.wait(Some(until), None)? {
                Arrival::Message(FromControl::Reply(to, reply)) if to == id => break reply,
                Arrival::Message(_) | Arrival::Other => {}
                Arrival::Nothing => return Err(no_answer()),
            }
        };
        reply.map_err(|failure| Problem::refused(doing, &failure))?;
        open.pop_front();
        bar.inc(length as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// The control domain answered something that was not asked.
pub fn unexpected() -> Problem {
    Problem::new(Status::Protocol, "the control domain gave an answer that fits no question")
        .hint("host and command line may be of different builds: `proxenos host stop`, then `proxenos host start`")
}
