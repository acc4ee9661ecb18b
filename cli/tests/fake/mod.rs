//! A control domain of lies: it speaks the protocol over unix sockets where a host's channels would be, and keeps what
//! it was told.
//!
//! Its guests do what their command lines say: `print=TEXT` (with `_` for spaces), `flood=BYTES`, `exit=REASON`,
//! `crash`, `echo` (until a `q` comes).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use proxenos_rpc::*;

/// How it behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    #[default]
    Proper,
    /// Says nothing at all.
    Silent,
    /// Says hello, and then nothing.
    SilentAfterHello,
    /// Begins with noise, and with answers to others.
    Noisy,
    /// Speaks the next major version.
    Newer,
    /// Answers every call with what was not asked.
    Absurd,
}

pub struct Domain {
    pub info: Info,
    pub config: Config,
    pub sched: DomainSched,
}

#[derive(Default)]
pub struct State {
    pub domains: BTreeMap<u16, Domain>,
    pub ended: Vec<Exit>,
    pub host_sched: Option<HostSched>,
    pub known: Vec<Digest>,
    pub uploaded: usize,
    pub traced: u64,
    pub requests: Vec<String>,
}

pub struct Fake {
    pub dir: tempfile::TempDir,
    pub state: Arc<Mutex<State>>,
}

/// A host without control domain: only its directory.
pub fn host_dir(root: &Path) -> PathBuf {
    let dir = root.join("proxenos/default");
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700).create(&dir).unwrap();
    dir
}

/// Says that this process is the host's machine.
pub fn record(dir: &Path, pid: u32) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let began: u64 = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    let text = format!(
        r#"{{"pid":{pid},"began":{began},"accel":"tcg","cpus":1,"memory_mib":64,"channels":1,
        "hypervisor":"h","control":"c","started":1}}"#
    );
    std::fs::write(dir.join("host.json"), text).unwrap();
}

impl Fake {
    pub fn start(manner: Manner, channels: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = host_dir(dir.path());
        record(&host, std::process::id());
        let state = Arc::new(Mutex::new(State::default()));
        state.lock().unwrap().host_sched = Some(HostSched::Bvt { context_allowance: Nanos(5_000_000) });
        let own = Config {
            name: Name::new("Domain-0").unwrap(),
            memory: Kib(131_072),
            memory_limit: None,
            cpu: None,
            sched: None,
            cmdline: Text::default(),
            restart: Restart::Never,
            on_crash: OnCrash::Keep,
            start: Start::Running,
            image: Text::cut("control"),
        };
        state.lock().unwrap().make(own);
        let fake = Self { dir, state };
        fake.listen(manner, &host, channels);
        fake
    }

    /// A control domain whose host is still to be started.
    pub fn without_host() -> Self {
        let fake = Self::start(Manner::Proper, 0);
        std::fs::remove_dir_all(fake.dir.path().join("proxenos")).unwrap();
        fake
    }

    /// Answers at the sockets of a host.
    pub fn listen(&self, manner: Manner, host: &Path, channels: u32) {
        for channel in 0..channels {
            let listener = UnixListener::bind(host.join(format!("channel-{channel}.sock"))).unwrap();
            let state = self.state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    // One client after the other, as a console has it.
                    let _ = Client { stream, state: state.clone(), console: None, upload: None }.serve(manner);
                }
            });
        }
    }

    pub fn proxenos(&self, args: &[&str]) -> Command {
        proxenos(self.dir.path(), args)
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.proxenos(args).stdin(Stdio::null()).output().unwrap()
    }

    /// What a command that must succeed prints.
    pub fn text(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.text(&[&["--json"], args].concat())).unwrap()
    }

    /// What a command that must fail says, and its status.
    pub fn failure(&self, args: &[&str]) -> (i32, String) {
        failed(&self.output(args))
    }
}

pub fn failed(output: &Output) -> (i32, String) {
    assert!(!output.status.success(), "{output:?}");
    (output.status.code().expect("an exit"), String::from_utf8_lossy(&output.stderr).into_owned())
}

pub fn proxenos(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxenos"));
    command.args(args).env("XDG_RUNTIME_DIR", root).env_remove("PROXENOS_HOST").env_remove("PROXENOS_IMAGES");
    command
}

impl State {
    fn make(&mut self, config: Config) -> Info {
        let id = (0..).find(|id| !self.domains.contains_key(id)).unwrap();
        let info = Info {
            id: DomainId(id),
            name: config.name.clone(),
            arch: Arch::X86_64,
            state: if config.start == Start::Paused {
                proxenos_rpc::State::Paused
            } else {
                proxenos_rpc::State::Blocked
            },
            memory: config.memory,
            memory_limit: config.memory_limit.unwrap_or(config.memory),
            cpu: config.cpu.unwrap_or(0),
            pinned: config.cpu.is_some(),
            cpu_time: Nanos(1_500_000_000),
            shared_info_frame: 0x1234,
            created_at: Nanos(7),
            restarts: 0,
            restart: config.restart,
            on_crash: config.on_crash,
            console_written: 0,
            console_clients: 0,
            image: config.image.clone(),
        };
        let sched = config.sched.unwrap_or(DomainSched::Bvt {
            advance: 10,
            warping: false,
            warp: 0,
            warp_limit: Millis(2000),
            unwarp: Millis(1000),
        });
        self.domains.insert(id, Domain { info: info.clone(), config, sched });
        info
    }

    fn find(&mut self, subject: &Subject) -> Result<&mut Domain, Failure> {
        let found = match subject {
            Subject::Id(id) => self.domains.get_mut(&id.0),
            Subject::Name(name) => self.domains.values_mut().find(|d| d.info.name == *name),
        };
        found.ok_or_else(|| Failure::new(Cause::NoSuchDomain, &format!("there is no {subject}")))
    }

    fn end(&mut self, subject: &Subject, reason: ExitReason) -> Result<Exit, Failure> {
        let info = self.find(subject)?.info.clone();
        self.domains.remove(&info.id.0);
        let (id, name) = (info.id, info.name);
        let exit = Exit { id, name, reason, at: Nanos(9), cpu_time: Nanos(8), restarted: false };
        self.ended.push(exit.clone());
        Ok(exit)
    }
}

struct Upload {
    config: Config,
    images: Vec<(Part, Image, Vec<u8>)>,
}

struct Console {
    call: CallId,
    domain: Subject,
    credit: u32,
    waiting: Vec<u8>,
    sent: u64,
    /// When all is out.
    end: Option<ExitReason>,
}

struct Client {
    stream: UnixStream,
    state: Arc<Mutex<State>>,
    console: Option<Console>,
    upload: Option<Upload>,
}

impl Client {
    fn send(&mut self, message: &FromControl) -> std::io::Result<()> {
        self.stream.write_all(&encode(message).unwrap())
    }

    fn serve(mut self, manner: Manner) -> std::io::Result<()> {
        let mut decoder = Decoder::new();
        let mut buffer = [0; 4096];
        if manner == Manner::Noisy {
            self.stream.write_all(&[7, 1, 0, 0, 255, 254, 3, 0, 9, 9, 9])?;
            self.send(&FromControl::Welcome(Welcome { version: VERSION, nonce: 1 }))?;
            self.send(&FromControl::Reply(CallId(1), Ok(Reply::Memory(Kib(666)))))?;
            self.stream.write_all(&[5; 40_000])?;
            self.stream.write_all(&[0])?;
        }
        loop {
            let len = self.stream.read(&mut buffer)?;
            if len == 0 {
                return Ok(());
            }
            let mut input = &buffer[..len];
            while let Some(message) = decoder.next::<ToControl>(&mut input) {
                match message.expect("the command line speaks clearly") {
                    _ if manner == Manner::Silent => {}
                    ToControl::Hello(hello) => {
                        let major = VERSION.major + u16::from(manner == Manner::Newer);
                        let version = Version { major, ..VERSION };
                        self.send(&FromControl::Welcome(Welcome { version, nonce: hello.nonce }))?;
                    }
                    _ if manner == Manner::SilentAfterHello => {}
                    ToControl::Call(call) if manner == Manner::Absurd => {
                        self.send(&FromControl::Reply(call.id, Ok(Reply::Memory(Kib(1)))))?;
                    }
                    ToControl::Call(call) => self.call(call)?,
                    ToControl::Note(id, note) => self.note(id, note)?,
                }
            }
        }
    }

    fn call(&mut self, call: Call) -> std::io::Result<()> {
        let words = format!("{:?}", call.request);
        self.state.lock().unwrap().requests.push(words);
        assert!(call.deadline.0 > 0 && call.deadline <= Deadline::MAX);
        if let Request::ConsoleAttach { domain, credit, .. } = call.request {
            return self.attach(call.id, domain, credit);
        }
        if matches!(call.request, Request::CreateFinish { .. }) {
            let progress = Event::Progress { stage: Stage::Copy, done: 1, total: 2 };
            self.send(&FromControl::Event(call.id, progress))?;
        }
        let reply = self.answer(call.request);
        self.send(&FromControl::Reply(call.id, reply))?;
        self.pump()
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Failure> {
        let state = self.state.clone();
        let mut state = state.lock().unwrap();
        let done = |()| Reply::Done;
        Ok(match request {
            Request::HostInfo => Reply::Host(Box::new(HostInfo {
                hypervisor: Text::cut("Proxenos 0.1"),
                control: Text::cut("fake"),
                interface: (2, 0),
                cpus: 2,
                cpu_khz: 3_000_000,
                memory: Kib(524_288),
                memory_free: Kib(262_144),
                control_memory: Kib(131_072),
                uptime: Nanos(60_000_000_000),
                scheduler: state.host_sched.unwrap().scheduler(),
                domains: state.domains.len() as u32,
            })),
            Request::List { from } => {
                let mut all = state.domains.range(from.0..).map(|(_, d)| d.info.clone());
                // Short answers, to see that the rest is asked for.
                let domains = List::new(all.by_ref().take(3).collect()).unwrap();
                Reply::Domains { at: Nanos(1), domains, more: all.next().map(|info| info.id) }
            }
            Request::Describe(domain) => Reply::Domain(Box::new(state.find(&domain)?.info.clone())),
            Request::CreateBegin { config, kernel, ramdisk } => {
                if state.domains.values().any(|d| d.info.name == config.name) {
                    return Err(Failure::new(Cause::NameTaken, &format!("there is a {} already", config.name)));
                }
                let wants = |image: &Image| !state.known.contains(&image.digest);
                let reply = Reply::Upload {
                    upload: UploadId(3),
                    kernel: wants(&kernel),
                    ramdisk: ramdisk.as_ref().is_some_and(wants),
                };
                let parts = [(Part::Kernel, Some(kernel)), (Part::Ramdisk, ramdisk)];
                let images = parts.into_iter().filter_map(|(part, i)| i.map(|i| (part, i, Vec::new()))).collect();
                self.upload = Some(Upload { config: *config, images });
                reply
            }
            Request::Upload { upload: UploadId(3), part, offset, bytes } => {
                let upload = self.upload.as_mut().unwrap();
                let (_, _, so_far) = upload.images.iter_mut().find(|(p, _, _)| *p == part).unwrap();
                if so_far.len() as u64 != offset {
                    return Err(Failure::new(Cause::BadUpload, "a gap"));
                }
                so_far.extend_from_slice(&bytes);
                state.uploaded += bytes.len();
                Reply::Done
            }
            Request::CreateFinish { upload: UploadId(3) } => {
                let upload = self.upload.take().unwrap();
                for (_, image, bytes) in upload.images {
                    let is_whole = Checksum::of(&bytes) == image.checksum && bytes.len() as u64 == image.len;
                    if !is_whole && !state.known.contains(&image.digest) {
                        return Err(Failure::new(Cause::BadUpload, "the kernel arrived damaged"));
                    }
                    state.known.push(image.digest);
                }
                Reply::Domain(Box::new(state.make(upload.config)))
            }
            Request::Pause(domain) => {
                state.find(&domain).map(|d| d.info.state = proxenos_rpc::State::Paused).map(done)?
            }
            Request::Unpause(domain) => {
                state.find(&domain)?.info.state = proxenos_rpc::State::Running;
                drop(state);
                self.go();
                Reply::Done
            }
            Request::Shutdown { domain, reason, wait } => {
                let exit = state.end(&domain, ExitReason::ShutDown(reason))?;
                if wait { Reply::Exit(exit) } else { Reply::Done }
            }
            Request::Destroy(domain) => Reply::Exit(state.end(&domain, ExitReason::Destroyed)?),
            Request::Reset(domain) => {
                let domain = state.find(&domain)?;
                domain.info.restarts += 1;
                Reply::Domain(Box::new(domain.info.clone()))
            }
            Request::SetMemory { domain, memory } => {
                let domain = state.find(&domain)?;
                if memory > domain.info.memory_limit {
                    return Err(Failure::new(Cause::Invalid, "that is more than its limit"));
                }
                domain.info.memory = memory;
                Reply::Memory(memory)
            }
            Request::SetMemoryLimit { domain, limit } => {
                state.find(&domain).map(|d| d.info.memory_limit = limit).map(done)?
            }
            Request::GetHostSched => Reply::HostSched(state.host_sched.unwrap()),
            Request::SetHostSched(sched) => {
                state.host_sched = Some(sched);
                Reply::Done
            }
            Request::GetDomainSched(domain) => Reply::DomainSched(state.find(&domain)?.sched),
            Request::SetDomainSched(domain, sched) => state.find(&domain).map(|d| d.sched = sched).map(done)?,
            Request::Pin { domain, cpu } => {
                let info = &mut state.find(&domain)?.info;
                info.pinned = cpu.is_some();
                info.cpu = cpu.unwrap_or(0);
                Reply::Done
            }
            Request::Log { log, from } => {
                let text = if log == Log::Control { "control: up\n" } else { "(px) one\n(px) two\n" };
                let part = text.as_bytes().get(from as usize..).unwrap_or(b"");
                let bytes = Bytes::new(&part[..part.len().min(5)]).unwrap();
                Reply::Log(LogPart { from, bytes, end: text.len() as u64 })
            }
            Request::Trace { cpu, from } => {
                let from = from.max(2);
                let record = |n: u64| TraceRecord { cycles: n * 100, event: cpu, data: [n as u32; 5] };
                // To read makes more of them.
                state.traced += 1;
                let next = 4 + state.traced;
                let records = (from..next).take(2).map(record).collect();
                let cpus = (0..2).map(|cpu| TraceCpu { cpu, first: 2, next }).collect();
                let (cpus, records) = (List::new(cpus).unwrap(), List::new(records).unwrap());
                Reply::Trace(TracePart { cpus, from, records })
            }
            Request::Context(domain) => {
                let info = state.find(&domain)?.info.clone();
                let mut raw = vec![0; 5048];
                raw[8 + 120..][..8].copy_from_slice(&0xffff_8800_0000_1234_u64.to_le_bytes());
                raw[8 + 144..][..8].copy_from_slice(&0x7000_u64.to_le_bytes());
                Reply::Context(Box::new(Context { info, arch: Arch::X86_64, raw: Bytes::new(raw).unwrap() }))
            }
            Request::ReadMemory { address, len, space, .. } => match (space, address) {
                (AddressSpace::Virtual, 0x7000) => Reply::Bytes(Bytes::new(&b"stack of a guest"[..]).unwrap()),
                // One frame is missing, and no answer crosses a page.
                (AddressSpace::PseudoPhysical, address) if address / 4096 != 2 => {
                    let len = u64::from(len).min(4096 - address % 4096) as usize;
                    Reply::Bytes(Bytes::new(vec![(address / 4096) as u8; len]).unwrap())
                }
                _ => return Err(Failure::new(Cause::BadAddress, "not mapped")),
            },
            Request::WaitExit(domain) => {
                let ended = state.ended.iter().find(|exit| match &domain {
                    Subject::Id(id) => exit.id == *id,
                    Subject::Name(name) => exit.name == *name,
                });
                Reply::Exit(ended.cloned().ok_or_else(|| Failure::new(Cause::NoSuchDomain, "never heard of it"))?)
            }
            Request::HostStop => Reply::Done,
            other => return Err(Failure::new(Cause::NotSupported, &format!("{other:?}"))),
        })
    }

    fn attach(&mut self, call: CallId, domain: Subject, credit: u32) -> std::io::Result<()> {
        let info = self.state.lock().unwrap().find(&domain).map(|d| d.info.clone());
        let info = match info {
            Ok(info) => info,
            Err(failure) => return self.send(&FromControl::Reply(call, Err(failure))),
        };
        let is_running = info.state != proxenos_rpc::State::Paused;
        let attached = Attached { info, from: 100, input_credit: 8 };
        self.console = Some(Console { call, domain, credit, waiting: Vec::new(), sent: 100, end: None });
        self.send(&FromControl::Event(call, Event::Attached(Box::new(attached))))?;
        if is_running {
            self.go();
        }
        self.pump()
    }

    /// The guest runs.
    fn go(&mut self) {
        let Some(console) = &mut self.console else { return };
        let line = self.state.lock().unwrap().find(&console.domain).map(|d| d.config.cmdline.to_string());
        for word in line.unwrap_or_default().split(' ') {
            match word.split_once('=').unwrap_or((word, "")) {
                ("print", text) => {
                    console.waiting.extend_from_slice(format!("{}\n", text.replace('_', " ")).as_bytes())
                }
                ("flood", len) => {
                    console.waiting.extend((0..len.parse::<usize>().unwrap()).map(|n| b'a' + (n % 26) as u8))
                }
                ("exit", reason) => console.end = Some(ExitReason::ShutDown(ShutdownReason(reason.parse().unwrap()))),
                ("crash", _) => console.end = Some(ExitReason::Crashed),
                _ => {}
            }
        }
    }

    /// Sends what the credit allows.
    fn pump(&mut self) -> std::io::Result<()> {
        while let Some(console) = &mut self.console {
            if console.waiting.is_empty() {
                let Some(reason) = console.end else { return Ok(()) };
                let (call, domain) = (console.call, console.domain.clone());
                let exit = self.state.lock().unwrap().end(&domain, reason);
                self.console = None;
                let reply = exit.map(|exit| Reply::ConsoleEnd(ConsoleEnd::Ended(exit)));
                return self.send(&FromControl::Reply(call, reply));
            }
            let room = console.credit.saturating_sub(CHUNK_COST) as usize;
            let len = console.waiting.len().min(MAX_CHUNK).min(room);
            if len == 0 {
                return Ok(());
            }
            let bytes: Vec<u8> = console.waiting.drain(..len).collect();
            console.credit -= CHUNK_COST + len as u32;
            let event = Event::Output { from: console.sent, bytes: Bytes::new(bytes).unwrap() };
            console.sent += len as u64;
            let call = console.call;
            self.send(&FromControl::Event(call, event))?;
        }
        Ok(())
    }

    fn note(&mut self, id: CallId, note: Note) -> std::io::Result<()> {
        let Some(console) = self.console.as_mut().filter(|console| console.call == id) else { return Ok(()) };
        match note {
            Note::Alive => {}
            Note::Cancel => {
                self.console = None;
                self.send(&FromControl::Reply(id, Ok(Reply::ConsoleEnd(ConsoleEnd::Detached))))?;
            }
            Note::Credit(more) => {
                console.credit += more;
                assert!(console.credit <= MAX_CREDIT, "more credit than a socket has room for");
            }
            Note::Input(bytes) => {
                assert!(bytes.len() <= 8, "input within the credit");
                console.waiting.extend_from_slice(&bytes);
                if bytes.contains(&b'q') {
                    console.end = Some(ExitReason::ShutDown(ShutdownReason(0)));
                }
                self.send(&FromControl::Event(id, Event::InputCredit(bytes.len() as u32)))?;
            }
        }
        self.pump()
    }
}
