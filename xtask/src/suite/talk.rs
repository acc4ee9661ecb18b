//! Runs whose domain 0 is the control domain: a script that speaks its protocol over the host's channels, as the command line
//! does, beside a machine that runs.
//!
//! A manifest names the script (`script`) and the guests it may upload (`uploads`).

use std::collections::HashMap;
use std::fmt::Debug;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use proxenos_rpc::{
    Call, CallId, Checksum, Config, ConsoleMode, Deadline, Decoder, Digest, Event, FromControl, Hello, Image, Info,
    Kib, MAX_CHUNK, Name, OnCrash, Part, Reply, Request, Restart, Start, Text, ToControl, VERSION, encode,
};

use crate::guest_meta::Arch;

mod scripts;

/// Channels that the machine has.
const CHANNELS: usize = 4;
/// How long anything may take: far longer than it does, since a run that is stuck ends by its own time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Guests that can be uploaded.
pub type Guests = HashMap<(String, Arch), PathBuf>;

/// Adds the channels to a machine; where their sockets are.
pub fn add_channels(command: &mut Command, scratch: &Path) -> Vec<PathBuf> {
    (0..CHANNELS)
        .map(|channel| {
            let socket = scratch.join(format!("channel{channel}"));
            let path = socket.display();
            command.args(["-chardev", &format!("socket,id=channel{channel},path={path},server=on,wait=off")]);
            command.args(["-device", &format!("virtio-serial-pci,id=bus{channel},max_ports=1")]);
            command.args(["-device", &format!("virtconsole,bus=bus{channel}.0,chardev=channel{channel}")]);
            socket
        })
        .collect()
}

/// A script that runs beside a machine.
pub struct Talk {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Talk {
    /// Starts a script.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn start(script: &str, sockets: Vec<PathBuf>, guests: Guests) -> Result<Self> {
        let run = scripts::find(script).with_context(|| format!("there is no script `{script}`"))?;
        let over = Arc::new(AtomicBool::new(false));
        let world = World { sockets, guests, over: over.clone() };
        Ok(Self { over, thread: std::thread::spawn(move || run(&world)) })
    }

    /// What came of it, once the machine has ended.
    ///
    /// # Errors
    /// What the script found.
    pub fn finish(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the script panicked"))?
    }
}

/// What a script has.
struct World {
    sockets: Vec<PathBuf>,
    guests: Guests,
    /// The machine has ended.
    over: Arc<AtomicBool>,
}

impl World {
    /// A session on a channel.
    fn session(&self, channel: usize) -> Result<Session> {
        let until = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&self.sockets[channel]) {
                Ok(stream) => return Session::greet(stream, self.over.clone()),
                Err(error) if Instant::now() > until || self.over.load(Ordering::Relaxed) => {
                    return Err(error).context("no channel");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn guest(&self, name: &str, arch: Arch) -> Result<Vec<u8>> {
        let path = self.guests.get(&(name.to_owned(), arch)).with_context(|| format!("{name} was not built"))?;
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// A client.
struct Session {
    stream: UnixStream,
    decoder: Decoder,
    unread: Vec<u8>,
    last: u32,
    over: Arc<AtomicBool>,
}

impl Session {
    fn greet(stream: UnixStream, over: Arc<AtomicBool>) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut session = Self { stream, decoder: Decoder::new(), unread: Vec::new(), last: 0, over };
        let nonce = u64::from(std::process::id()) << 32 | u64::from(Instant::now().elapsed().subsec_nanos());
        // What is sent before domain 0 has set its device up is lost: asked again until there is an answer.
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            session.stream.write_all(&[0])?;
            session.send(&ToControl::Hello(Hello { version: VERSION, nonce }))?;
            let patience = Instant::now() + Duration::from_secs(3);
            while let Some(message) = session.next(patience)? {
                if let FromControl::Welcome(welcome) = message
                    && welcome.nonce == nonce
                {
                    ensure!(welcome.version == VERSION, "it speaks {:?}", welcome.version);
                    return Ok(session);
                }
            }
        }
        bail!("the control domain does not say welcome")
    }

    fn send(&mut self, message: &ToControl) -> Result<()> {
        let frame = encode(message)?;
        self.stream.write_all(&frame).context("the channel is broken")
    }

    /// The next message, if one comes in time.
    fn next(&mut self, until: Instant) -> Result<Option<FromControl>> {
        let mut buffer = [0; 16 << 10];
        loop {
            let mut input = self.unread.as_slice();
            let message = self.decoder.next::<FromControl>(&mut input);
            self.unread = input.to_vec();
            match message {
                Some(Ok(message)) => return Ok(Some(message)),
                Some(Err(error)) => bail!("a damaged message: {error}"),
                None => {}
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            ensure!(!self.over.load(Ordering::Relaxed), "the machine has ended");
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the channel was closed"),
                Ok(len) => self.unread.extend_from_slice(&buffer[..len]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error).context("the channel is broken"),
            }
        }
    }

    fn begin(&mut self, request: Request) -> Result<CallId> {
        self.last += 1;
        let id = CallId(self.last);
        let deadline = Deadline(PATIENCE.as_millis() as u32);
        self.send(&ToControl::Call(Call { id, deadline, request }))?;
        Ok(id)
    }

    /// The answer to a call; what happens meanwhile goes to `events`.
    fn end(&mut self, id: CallId, mut events: impl FnMut(Event)) -> Result<Result<Reply, proxenos_rpc::Failure>> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.next(until)?.context("no answer")? {
                FromControl::Reply(to, reply) if to == id => return Ok(reply),
                FromControl::Event(to, event) if to == id => events(event),
                _ => {}
            }
        }
    }

    /// Asks, and must not be refused.
    fn ask(&mut self, request: Request) -> Result<Reply> {
        let what = format!("{request:?}");
        let id = self.begin(request)?;
        self.end(id, |_| {})?.map_err(|failure| anyhow!("{}: {failure} ({:?})", brief(&what), failure.cause))
    }

    /// Uploads a kernel and makes a domain of it.
    fn create(&mut self, config: Config, kernel: &[u8]) -> Result<Info> {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&Checksum::of(kernel).0.to_le_bytes());
        digest[4..12].copy_from_slice(&(kernel.len() as u64).to_le_bytes());
        let image = Image { len: kernel.len() as u64, checksum: Checksum::of(kernel), digest: Digest(digest) };
        let begin = Request::CreateBegin { config: Box::new(config), kernel: image, ramdisk: None };
        let (upload, wanted) = match self.ask(begin)? {
            Reply::Upload { upload, kernel, .. } => (upload, kernel),
            other => bail!("{other:?} to the beginning of a creation"),
        };
        if wanted {
            for (index, chunk) in kernel.chunks(MAX_CHUNK).enumerate() {
                let offset = (index * MAX_CHUNK) as u64;
                let bytes = proxenos_rpc::Bytes::new(chunk)?;
                self.ask(Request::Upload { upload, part: Part::Kernel, offset, bytes })?;
            }
        }
        match self.ask(Request::CreateFinish { upload })? {
            Reply::Domain(info) => Ok(*info),
            other => bail!("{other:?} to a creation"),
        }
    }
}

fn brief(text: &str) -> &str {
    text.split(['{', '(']).next().unwrap_or(text).trim()
}

/// A domain's configuration, with what most want.
fn config(name: &str, memory_mib: u64, line: &str) -> Result<Config> {
    Ok(Config {
        name: Name::new(name).map_err(|error| anyhow!("{error}"))?,
        memory: Kib(memory_mib << 10),
        memory_limit: None,
        cpu: None,
        sched: None,
        cmdline: Text::new(line)?,
        restart: Restart::Never,
        on_crash: OnCrash::Keep,
        start: Start::Paused,
        image: Text::cut(name),
    })
}

fn same<T: PartialEq + Debug>(what: &str, found: T, wanted: T) -> Result<()> {
    ensure!(found == wanted, "{what}: {found:?}, not {wanted:?}");
    Ok(())
}
