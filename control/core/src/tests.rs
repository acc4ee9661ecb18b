//! The server against a host that the test plays, and clients and guests of every kind.

mod guests;
mod hostile;
mod making;
mod random;

use super::*;
use crate::control::tests::Page;
use alloc::rc::Rc;
use core::cell::RefCell;
use proxenos_abi::DomId;
use proxenos_abi::dom0_ops::args::DomainFlags;
use proxenos_abi::io::domain_controller::MessageType;
use proxenos_rpc::*;
use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

/// A domain of the played host.
struct Fake {
    flags: DomainFlags,
    memory: Kib,
    limit: Kib,
    page: Page,
}

/// A host that does as it is told.
#[derive(Default)]
struct World {
    now: u64,
    domains: BTreeMap<u16, Fake>,
    last: u16,
    /// Why nothing can be built.
    no_build: Option<Cause>,
    /// Nothing can be let run.
    no_unpause: bool,
}

#[derive(Clone, Default)]
struct Played(Rc<RefCell<World>>);

fn missing() -> Failure {
    Failure::new(Cause::NoSuchDomain, "there is no such domain")
}

impl Played {
    fn with<T>(&self, id: DomId, change: impl FnOnce(&mut Fake) -> T) -> Result<T, Failure> {
        self.0.borrow_mut().domains.get_mut(&id.0).map(change).ok_or_else(missing)
    }

    fn page(&self, id: u16) -> Page {
        self.0.borrow().domains[&id].page.clone()
    }

    fn pass(&self, ms: u64) {
        self.0.borrow_mut().now += ms * 1_000_000;
    }
}

/// A domain of the played host that is being built.
struct Build {
    host: Played,
    /// 0 when it is built.
    id: u16,
    pieces: u64,
}

/// Pieces in which domains are built.
const PIECES: u64 = 200;

impl Drop for Build {
    fn drop(&mut self) {
        if self.id != 0 {
            self.host.0.borrow_mut().domains.remove(&self.id);
        }
    }
}

impl Host for Played {
    type Link = Page;
    type Build = Build;

    fn now(&self) -> Nanos {
        Nanos(self.0.borrow().now)
    }

    fn machine(&self) -> Result<Machine, Failure> {
        let (cpus, cpu_khz, memory) = (2, 1_000_000, Kib(1 << 20));
        let (interface, scheduler) = ((2, 0), Scheduler::Bvt);
        Ok(Machine { cpus, cpu_khz, memory, memory_free: Kib(1 << 19), interface, scheduler })
    }

    fn status_from(&self, first: DomId) -> Option<Status> {
        let world = self.0.borrow();
        let (id, fake) = world.domains.range(first.0..).next()?;
        let (flags, memory, memory_limit) = (fake.flags, fake.memory, fake.limit);
        Some(Status { id: DomId(*id), flags, memory, memory_limit, cpu_time: Nanos(5), shared_info_frame: 9 })
    }

    fn begin_build(&mut self, order: &Order<'_>) -> Result<Begun<Build>, Failure> {
        let mut world = self.0.borrow_mut();
        if let Some(cause) = world.no_build {
            return Err(Failure::new(cause, "no"));
        }
        world.last += 1;
        let (id, page) = (world.last, Page::new());
        let fake = Fake { flags: DomainFlags::PAUSED, memory: order.memory, limit: order.memory_limit, page };
        world.domains.insert(id, fake);
        let build = Build { host: self.clone(), id, pieces: 0 };
        Ok(Begun { id: DomId(id), arch: Arch::X86_64, build })
    }

    fn go_on(&mut self, build: &mut Build, _: &Order<'_>) -> Result<Step<Page>, Failure> {
        if let Some(cause) = self.0.borrow().no_build {
            return Err(Failure::new(cause, "no"));
        }
        if build.pieces == PIECES {
            let page = self.page(build.id);
            build.id = 0;
            return Ok(Step::Built(page));
        }
        build.pieces += 1;
        Ok(Step::More { stage: Stage::Copy, done: build.pieces, total: PIECES })
    }

    fn own_memory(&self) -> ControlMemory {
        ControlMemory { used: 1, heap: 2, left: 3 }
    }

    fn pause(&mut self, id: DomId) -> Result<(), Failure> {
        self.with(id, |fake| fake.flags.insert(DomainFlags::PAUSED))
    }

    fn unpause(&mut self, id: DomId) -> Result<(), Failure> {
        if self.0.borrow().no_unpause {
            return Err(Failure::new(Cause::WrongState, "no"));
        }
        self.with(id, |fake| fake.flags.remove(DomainFlags::PAUSED))
    }

    fn destroy(&mut self, id: DomId) -> Result<(), Failure> {
        self.0.borrow_mut().domains.remove(&id.0).map(drop).ok_or_else(missing)
    }

    fn set_memory_limit(&mut self, id: DomId, limit: Kib) -> Result<(), Failure> {
        self.with(id, |fake| fake.limit = limit)
    }

    fn pin(&mut self, id: DomId, _: Option<u32>) -> Result<(), Failure> {
        self.with(id, |_| ())
    }

    fn host_sched(&self) -> Result<HostSched, Failure> {
        Ok(HostSched::Bvt { context_allowance: Nanos(5) })
    }

    fn set_host_sched(&mut self, _: HostSched) -> Result<(), Failure> {
        Ok(())
    }

    fn domain_sched(&self, id: DomId) -> Result<DomainSched, Failure> {
        self.with(id, |_| DomainSched::RoundRobin)
    }

    fn set_domain_sched(&mut self, id: DomId, _: DomainSched) -> Result<(), Failure> {
        self.with(id, |_| ())
    }

    fn read_log(&mut self) -> Vec<u8> {
        b"(px) a line\n".to_vec()
    }

    fn read_own_log(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn trace(&mut self, _: u32, _: u64, _: usize) -> Result<(Vec<TraceCpu>, u64, Vec<TraceRecord>), Failure> {
        Ok((Vec::new(), 0, Vec::new()))
    }

    fn context(&self, id: DomId, _: Arch) -> Result<Vec<u8>, Failure> {
        self.with(id, |_| vec![1; 5048])
    }

    fn read_memory(&mut self, id: DomId, _: Arch, _: AddressSpace, _: u64, len: usize) -> Result<Vec<u8>, Failure> {
        self.with(id, |_| vec![2; len])
    }
}

/// A server with a client on channel 0.
struct Bench {
    host: Played,
    server: Server<Played>,
    decoders: Vec<Decoder>,
    arrived: VecDeque<(usize, FromControl)>,
    last: u32,
}

const CHANNELS: usize = 3;
/// Bytes that images may take.
const IMAGES: usize = 1 << 20;

impl Bench {
    fn new() -> Self {
        let host = Played::default();
        let own = Fake { flags: DomainFlags::RUNNING, memory: Kib(1 << 16), limit: Kib(1 << 16), page: Page::new() };
        host.0.borrow_mut().domains.insert(0, own);
        let server = Server::new(host.clone(), CHANNELS, IMAGES);
        let decoders = (0..CHANNELS).map(|_| Decoder::new()).collect();
        let mut bench = Self { host, server, decoders, arrived: VecDeque::new(), last: 0 };
        for channel in 0..CHANNELS {
            bench.hello(channel, 77 + channel as u64);
        }
        bench
    }

    fn hello(&mut self, channel: usize, nonce: u64) {
        self.say(channel, &ToControl::Hello(Hello { version: VERSION, nonce }));
        let welcome = FromControl::Welcome(Welcome { version: VERSION, nonce });
        assert!(self.arrived.iter().any(|(from, message)| *from == channel && *message == welcome));
        self.arrived.clear();
    }

    fn say(&mut self, channel: usize, message: &ToControl) {
        let frame = encode(message).unwrap();
        self.feed(channel, &frame);
    }

    fn feed(&mut self, channel: usize, bytes: &[u8]) {
        self.server.receive(channel, bytes);
        self.run();
    }

    /// Turns until there is nothing left to do, with everything sent at once.
    fn run(&mut self) {
        for turns in 0.. {
            assert!(turns < 10_000, "there is always work");
            let work = self.server.turn();
            self.take_all();
            if work == Work::Done {
                break;
            }
        }
    }

    /// Takes everything that is to be sent.
    fn take_all(&mut self) {
        for (channel, decoder) in self.decoders.iter_mut().enumerate() {
            loop {
                let bytes = self.server.channel(channel).unsent().to_vec();
                if bytes.is_empty() {
                    break;
                }
                self.server.channel(channel).sent(bytes.len());
                let mut input = &bytes[..];
                while let Some(message) = decoder.next::<FromControl>(&mut input) {
                    self.arrived.push_back((channel, message.expect("a whole message")));
                }
            }
        }
    }

    fn begin(&mut self, channel: usize, request: Request) -> CallId {
        self.last += 1;
        let id = CallId(self.last);
        self.say(channel, &ToControl::Call(Call { id, deadline: Deadline(5000), request }));
        id
    }

    /// The answer to a call, if it is there, with the events before it.
    fn answer(&mut self, id: CallId) -> (Vec<Event>, Option<Result<Reply, Failure>>) {
        let (mut events, mut reply) = (Vec::new(), None);
        self.arrived.retain(|(_, message)| match message {
            FromControl::Event(to, event) if *to == id => {
                assert!(reply.is_none(), "an event behind the reply");
                events.push(event.clone());
                false
            }
            FromControl::Reply(to, result) if *to == id => {
                assert!(reply.is_none(), "two replies");
                reply = Some(result.clone());
                false
            }
            _ => true,
        });
        (events, reply)
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        let id = self.begin(0, request);
        self.answer(id).1.expect("an answer at once")
    }

    fn cause(&mut self, request: Request) -> Cause {
        self.ask(request).expect_err("a refusal").cause
    }

    fn create(&mut self, config: Config) -> Result<Info, Failure> {
        let kernel = vec![7; 20_000];
        let image = Image { len: 20_000, checksum: Checksum::of(&kernel), digest: Digest([7; 32]) };
        let begin = Request::CreateBegin { config: Box::new(config), kernel: image, ramdisk: None };
        let Reply::Upload { upload, kernel: wanted, .. } = self.ask(begin)? else { panic!("no upload") };
        if wanted {
            for (index, chunk) in kernel.chunks(MAX_CHUNK).enumerate() {
                let (offset, bytes) = ((index * MAX_CHUNK) as u64, Bytes::new(chunk).unwrap());
                self.ask(Request::Upload { upload, part: Part::Kernel, offset, bytes })?;
            }
        }
        match self.ask(Request::CreateFinish { upload })? {
            Reply::Domain(info) => Ok(*info),
            other => panic!("{other:?}"),
        }
    }

    fn attach(&mut self, channel: usize, name: &str, credit: u32) -> CallId {
        let (domain, replay, mode) = (subject(name), u32::MAX, ConsoleMode::ReadWrite);
        self.begin(channel, Request::ConsoleAttach { domain, replay, credit, mode })
    }

    /// A guest writes to its console.
    fn write(&mut self, id: u16, text: &[u8]) {
        let page = self.host.page(id);
        for piece in text.chunks(60) {
            page.put(MessageType::Console.raw(), 0, piece);
            self.server.rang(DomId(id));
            self.run();
        }
    }

    fn end(&mut self, id: u16, flags: DomainFlags) {
        self.host.with(DomId(id), |fake| fake.flags |= flags).unwrap();
        self.server.domains_changed();
        self.run();
    }
}

fn config(name: &str) -> Config {
    Config {
        name: Name::new(name).unwrap(),
        memory: Kib(8192),
        memory_limit: None,
        cpu: None,
        sched: None,
        cmdline: Text::cut(""),
        restart: Restart::OnReboot,
        on_crash: OnCrash::Keep,
        start: Start::Running,
        image: Text::cut("kernel"),
    }
}

fn subject(name: &str) -> Subject {
    Subject::Name(Name::new(name).unwrap())
}

/// The output among events, with a mark for what was lost.
fn output(events: &[Event]) -> String {
    let (mut text, mut next) = (String::new(), None);
    for event in events {
        if let Event::Output { from, bytes } = event {
            if next.is_some_and(|next| next != *from) {
                text.push('|');
            }
            text.push_str(core::str::from_utf8(bytes).unwrap());
            next = Some(from + bytes.len() as u64);
        }
    }
    text
}

#[test]
fn a_domain_is_made_listed_and_ended() {
    let mut bench = Bench::new();
    let info = bench.create(config("one")).unwrap();
    assert_eq!((info.id, info.state, info.memory, info.restarts), (DomainId(1), State::Ready, Kib(8192), 0));
    assert_eq!(bench.create(config("one")).unwrap_err().cause, Cause::NameTaken);
    assert_eq!(bench.create(config("two")).unwrap().id, DomainId(2), "its image is there already");
    let Ok(Reply::Domains { domains, more, .. }) = bench.ask(Request::List { from: DomainId(0) }) else { panic!() };
    let names: Vec<_> = domains.iter().map(|info| info.name.to_string()).collect();
    assert_eq!((names, more), (vec!["Domain-0".into(), "one".into(), "two".into()], None));

    let waiting = bench.begin(1, Request::WaitExit(subject("one")));
    assert_eq!(bench.answer(waiting).1, None);
    let Ok(Reply::Exit(exit)) = bench.ask(Request::Destroy(subject("one"))) else { panic!() };
    assert_eq!((exit.reason, exit.restarted), (ExitReason::Destroyed, false));
    assert_eq!(bench.answer(waiting).1, Some(Ok(Reply::Exit(exit.clone()))));
    assert_eq!(bench.ask(Request::WaitExit(subject("one"))), Ok(Reply::Exit(exit)), "it is remembered");
    assert_eq!(bench.cause(Request::Describe(subject("one"))), Cause::NoSuchDomain);
    assert_eq!(bench.host.0.borrow().domains.keys().copied().collect::<Vec<_>>(), [0, 2]);
    for request in [Request::Pause(subject("Domain-0")), Request::Destroy(Subject::Id(DomainId(0)))] {
        assert_eq!(bench.cause(request), Cause::Invalid, "the control domain itself");
    }
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let mut bench = Bench::new();
    bench.host.0.borrow_mut().no_build = Some(Cause::OutOfMemory);
    assert_eq!(bench.create(config("one")).unwrap_err().cause, Cause::OutOfMemory);
    bench.host.0.borrow_mut().no_build = None;
    let bad = Config { cpu: Some(2), ..config("one") };
    assert_eq!(bench.create(bad).unwrap_err().cause, Cause::Invalid);
    let bad = Config { memory_limit: Some(Kib(4096)), ..config("one") };
    assert_eq!(bench.create(bad).unwrap_err().cause, Cause::Invalid);
    assert_eq!(bench.host.0.borrow().domains.len(), 1);
    assert!(bench.create(config("one")).is_ok(), "the name is free");
}

#[test]
fn uploads_are_checked_and_bounded() {
    let mut bench = Bench::new();
    let image = Image { len: 10, checksum: Checksum::of(b"0123456789"), digest: Digest([1; 32]) };
    let begin = |bench: &mut Bench, channel, name: &str| {
        let request = Request::CreateBegin { config: Box::new(config(name)), kernel: image, ramdisk: Some(image) };
        let id = bench.begin(channel, request);
        bench.answer(id).1.unwrap()
    };
    let Ok(Reply::Upload { upload, kernel: true, ramdisk: true }) = begin(&mut bench, 0, "a") else { panic!() };
    let chunk = |part, offset, bytes: &[u8]| {
        let bytes = Bytes::new(bytes).unwrap();
        Request::Upload { upload, part, offset, bytes }
    };
    assert_eq!(bench.cause(chunk(Part::Kernel, 1, b"1")), Cause::BadUpload, "a gap");
    assert_eq!(bench.cause(chunk(Part::Kernel, 0, b"0123456789a")), Cause::BadUpload, "too much");
    assert_eq!(bench.ask(chunk(Part::Kernel, 0, b"01234")), Ok(Reply::Done));
    assert_eq!(bench.cause(chunk(Part::Kernel, 5, b"56780")), Cause::BadUpload, "damaged");
    assert_eq!(bench.ask(chunk(Part::Kernel, 0, b"0123456789")), Ok(Reply::Done), "it begins anew");
    assert_eq!(bench.cause(chunk(Part::Kernel, 10, b"")), Cause::BadUpload, "not wanted any more");
    assert_eq!(bench.cause(Request::CreateFinish { upload }), Cause::BadUpload, "the ramdisk is missing");
    assert_eq!(bench.cause(Request::CreateFinish { upload }), Cause::Invalid, "the creation is over");

    for name in ["b", "c", "d", "e"] {
        assert!(begin(&mut bench, 1, name).is_ok());
    }
    assert_eq!(begin(&mut bench, 0, "f").unwrap_err().cause, Cause::Busy);
    assert_eq!(begin(&mut bench, 0, "b").unwrap_err().cause, Cause::NameTaken);
    // Another client takes the channel: what was under way is over.
    bench.hello(1, 5);
    assert!(begin(&mut bench, 0, "b").is_ok());
    let huge = Image { len: MAX_IMAGE + 1, ..image };
    let huge = Image { digest: Digest([9; 32]), ..huge };
    let request = Request::CreateBegin { config: Box::new(config("g")), kernel: huge, ramdisk: None };
    assert_eq!(bench.cause(request), Cause::Invalid);
}

#[test]
fn policies_decide_who_is_started_again() {
    let reboot = DomainFlags::empty().with_shutdown_reason(1);
    let off = DomainFlags::empty().with_shutdown_reason(0);
    let crash = DomainFlags::CRASHED;
    let cases = [
        (Restart::Never, OnCrash::Keep, reboot, false),
        (Restart::OnReboot, OnCrash::Keep, reboot, true),
        (Restart::OnReboot, OnCrash::Keep, off, false),
        (Restart::Always, OnCrash::Keep, off, true),
        (Restart::Always, OnCrash::Destroy, crash, false),
        (Restart::Never, OnCrash::Restart, crash, true),
    ];
    for (restart, on_crash, flags, restarted) in cases {
        let mut bench = Bench::new();
        bench.create(Config { restart, on_crash, ..config("one") }).unwrap();
        let console = bench.attach(0, "one", 0);
        let waiting = bench.begin(1, Request::WaitExit(subject("one")));
        bench.end(1, flags);
        let Some(Ok(Reply::Exit(exit))) = bench.answer(waiting).1 else { panic!() };
        assert_eq!(exit.restarted, restarted, "{restart:?} {on_crash:?} {flags:?}");
        assert_eq!(bench.host.0.borrow().domains.len(), 1, "not at once: it has hardly begun");
        bench.host.pass(1000);
        bench.run();
        let (events, reply) = bench.answer(console);
        if restarted {
            assert!(events.contains(&Event::Restarted(DomainId(2))) && reply.is_none());
            let Ok(Reply::Domain(info)) = bench.ask(Request::Describe(subject("one"))) else { panic!() };
            assert_eq!((info.id, info.restarts, info.state), (DomainId(2), 1, State::Ready));
            bench.write(2, b"again");
            bench.say(0, &ToControl::Note(console, Note::Credit(2 * CHUNK_COST)));
            assert_eq!(output(&bench.answer(console).0), "again");
        } else {
            assert!(matches!(reply, Some(Ok(Reply::ConsoleEnd(ConsoleEnd::Ended(_))))));
            assert_eq!(bench.host.0.borrow().domains.len(), 1);
        }
    }
}

#[test]
fn a_domain_that_waits_for_its_start_can_be_kept_down() {
    let mut bench = Bench::new();
    bench.create(Config { restart: Restart::Always, ..config("one") }).unwrap();
    bench.end(1, DomainFlags::empty().with_shutdown_reason(0));
    assert_eq!(bench.create(config("one")).unwrap_err().cause, Cause::NameTaken, "it is only away");
    let Ok(Reply::Exit(exit)) = bench.ask(Request::Destroy(subject("one"))) else { panic!() };
    assert!(!exit.restarted);
    bench.host.pass(2000);
    bench.run();
    assert_eq!(bench.host.0.borrow().domains.len(), 1, "it stays away");
    assert!(bench.create(config("one")).is_ok(), "and its name is free");
}

#[test]
fn a_crashed_domain_is_kept_for_whoever_looks() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    let console = bench.attach(0, "one", 0);
    bench.end(1, DomainFlags::CRASHED);
    assert!(matches!(bench.answer(console).1, Some(Ok(Reply::ConsoleEnd(ConsoleEnd::Ended(_))))));
    let Ok(Reply::Domain(info)) = bench.ask(Request::Describe(subject("one"))) else { panic!() };
    assert_eq!(info.state, State::Crashed);
    let Ok(Reply::Context(context)) = bench.ask(Request::Context(subject("one"))) else { panic!() };
    assert_eq!(context.raw.len(), 5048);
    let read = Request::ReadMemory { domain: subject("one"), space: AddressSpace::Virtual, address: 0, len: u32::MAX };
    let Ok(Reply::Bytes(bytes)) = bench.ask(read) else { panic!() };
    assert_eq!(bytes.len(), MAX_CHUNK);
    let domain = subject("one");
    let ask = Request::Shutdown { domain, reason: ShutdownReason::POWER_OFF, wait: true };
    assert_eq!(bench.cause(ask), Cause::WrongState);
    assert!(bench.ask(Request::Destroy(subject("one"))).is_ok());
    assert_eq!(bench.host.0.borrow().domains.len(), 1);
}

#[test]
fn calls_are_counted_and_notes_keep_them_alive() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    let calls: Vec<_> = (0..9).map(|_| bench.begin(2, Request::WaitExit(subject("one")))).collect();
    let (last, open) = calls.split_last().unwrap();
    assert_eq!(bench.answer(*last).1.unwrap().unwrap_err().cause, Cause::Busy);
    bench.host.pass(3000);
    bench.say(2, &ToControl::Note(open[0], Note::Alive));
    bench.say(2, &ToControl::Note(open[1], Note::Cancel));
    assert_eq!(bench.answer(open[1]).1.unwrap().unwrap_err().cause, Cause::Cancelled);
    bench.host.pass(2000);
    bench.run();
    assert_eq!(bench.answer(open[0]).1, None);
    assert_eq!(bench.answer(open[2]).1.unwrap().unwrap_err().cause, Cause::Deadline);
}

#[test]
fn a_client_that_reads_nothing_is_not_listened_to() {
    let mut bench = Bench::new();
    let call = encode(&ToControl::Call(Call {
        id: CallId(1),
        deadline: Deadline(1000),
        request: Request::Log { log: Log::Hypervisor, from: 0 },
    }))
    .unwrap();
    let mut fed = 0;
    while bench.server.channel(0).wants_input() {
        bench.server.receive(0, &call);
        bench.server.turn();
        fed += 1;
        assert!(fed < 100_000, "everything is taken, for ever");
    }
    // Others are.
    let id = bench.begin_quietly(1, Request::HostInfo);
    bench.server.turn();
    assert!(!bench.server.channel(1).unsent().is_empty(), "{id:?} is answered");
}

impl Bench {
    fn begin_quietly(&mut self, channel: usize, request: Request) -> CallId {
        let id = CallId(1000);
        let frame = encode(&ToControl::Call(Call { id, deadline: Deadline(1000), request })).unwrap();
        self.server.receive(channel, &frame);
        id
    }
}
