//! What clients ask for.

use super::{Serial, Server};
use crate::channel::{Open, Viewer, Wait};
use crate::domain::{Domain, Input, Life};
use crate::host::{Host, Status};
use crate::images::Complete;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use proxenos_abi::DomId;
use proxenos_abi::dom0_ops::args::DomainFlags;
use proxenos_abi::io::domain_controller::ShutdownMessage;
use proxenos_rpc::{
    Attached, Bytes, Call, CallId, Cause, Config, ConsoleEnd, ConsoleMode, Context, Deadline, DomainId, Event, Exit,
    ExitReason, Failure, HostInfo, Image, Info, Kib, List, Log, LogPart, MAX_CHUNK, MAX_CREDIT, MAX_LIST, MAX_RECORDS,
    Name, Nanos, Note, OnCrash, Reply, Request, Restart, ShutdownReason, State, Subject, Text, TracePart, UploadId,
};

/// What a viewer may send before it hears of credit.
const INPUT_CREDIT: u32 = 512;
/// The name by which the control domain is listed.
const OWN_NAME: &str = "Domain-0";

/// What a request comes to at once.
enum Outcome {
    /// It is answered.
    Now(Reply),
    /// It waits.
    Wait(Wait),
}

/// Which domain a request is about.
struct Target {
    id: DomId,
    /// If it is one of ours.
    serial: Option<Serial>,
}

fn failure(cause: Cause, message: &str) -> Failure {
    Failure::new(cause, message)
}

impl<H: Host> Server<H> {
    /// Begins a call.
    pub(super) fn call(&mut self, number: usize, call: Call) {
        let Call { id, deadline, request } = call;
        let channel = &mut self.channels[number];
        if channel.open.iter().any(|open| open.id == id) {
            // Two calls of one number: the client cannot tell them apart, whatever is said.
            return;
        }
        if !channel.has_room_for_call() {
            channel.reply(id, Err(failure(Cause::Busy, "too many calls are open on this channel")));
            return;
        }
        let limit = Nanos(u64::from(deadline.min(Deadline::MAX).0) * 1_000_000);
        match self.begin(number, id, request) {
            Ok(Outcome::Now(reply)) => self.channels[number].reply(id, Ok(reply)),
            Err(failure) => self.channels[number].reply(id, Err(failure)),
            Ok(Outcome::Wait(wait)) => {
                let ends = Nanos(self.host.now().0.saturating_add(limit.0));
                self.channels[number].open.push(Open { id, limit, ends, wait });
            }
        }
    }

    fn begin(&mut self, number: usize, id: CallId, request: Request) -> Result<Outcome, Failure> {
        Ok(Outcome::Now(match request {
            Request::HostInfo => self.host_info()?,
            Request::List { from } => self.list(from),
            Request::Describe(subject) => Reply::Domain(Box::new(self.describe(&subject)?)),
            Request::CreateBegin { config, kernel, ramdisk } => self.create_begin(number, *config, &kernel, ramdisk)?,
            Request::Upload { upload, part, offset, bytes } => {
                self.images.take(number, upload, part, offset, &bytes).map(|()| Reply::Done)?
            }
            Request::CreateFinish { upload } => return self.create_finish(number, upload),
            Request::CreateAbort { upload } => self.images.abort(number, upload).map(|()| Reply::Done)?,
            Request::ConsoleAttach { domain, replay, credit, mode } => {
                return self.attach(number, id, &domain, replay, credit, mode);
            }
            Request::Pause(subject) => {
                let target = self.other(&subject)?;
                self.host.pause(target.id).map(|()| Reply::Done)?
            }
            Request::Unpause(subject) => {
                let target = self.other(&subject)?;
                self.host.unpause(target.id).map(|()| Reply::Done)?
            }
            Request::Shutdown { domain, reason, wait } => return self.shut_down(&domain, reason, wait),
            Request::Destroy(subject) => Reply::Exit(self.destroy(&subject)?),
            Request::Reset(subject) => return self.reset(&subject),
            Request::SetMemory { domain, memory } => return self.set_memory(&domain, memory),
            Request::SetMemoryLimit { domain, limit } => {
                let target = self.find(&domain)?;
                self.host.set_memory_limit(target.id, limit)?;
                if let Some(domain) = target.serial.and_then(|serial| self.domains.get_mut(&serial)) {
                    domain.config.memory_limit = Some(limit);
                }
                Reply::Done
            }
            Request::GetHostSched => Reply::HostSched(self.host.host_sched()?),
            Request::SetHostSched(sched) => self.host.set_host_sched(sched).map(|()| Reply::Done)?,
            Request::GetDomainSched(subject) => Reply::DomainSched(self.host.domain_sched(self.find(&subject)?.id)?),
            Request::SetDomainSched(subject, sched) => {
                let target = self.find(&subject)?;
                self.host.set_domain_sched(target.id, sched)?;
                if let Some(domain) = target.serial.and_then(|serial| self.domains.get_mut(&serial)) {
                    domain.config.sched = Some(sched);
                }
                Reply::Done
            }
            Request::Pin { domain, cpu } => {
                let target = self.find(&domain)?;
                self.host.pin(target.id, cpu)?;
                if let Some(domain) = target.serial.and_then(|serial| self.domains.get_mut(&serial)) {
                    domain.config.cpu = cpu;
                }
                Reply::Done
            }
            Request::Log { log, from } => self.log(log, from),
            Request::Trace { cpu, from } => self.trace(cpu, from)?,
            Request::Context(subject) => self.context(&subject)?,
            Request::ReadMemory { domain, space, address, len } => {
                let target = self.find(&domain)?;
                let arch = self.arch(&target)?;
                let len = (len as usize).min(MAX_CHUNK);
                let bytes = self.host.read_memory(target.id, arch, space, address, len)?;
                Reply::Bytes(Bytes::new(bytes).map_err(|_| failure(Cause::Internal, "more memory than was asked for"))?)
            }
            Request::WaitExit(subject) => return self.wait_exit(&subject),
            Request::HostStop => self.stop(),
            Request::ControlMemory => Reply::ControlMemory(self.host.own_memory()),
        }))
    }

    /// A client says something to an open call.
    pub(super) fn note(&mut self, number: usize, id: CallId, note: Note) {
        let now = self.host.now();
        let channel = &mut self.channels[number];
        let Some(at) = channel.open.iter().position(|call| call.id == id) else { return };
        let call = &mut channel.open[at];
        call.ends = Nanos(now.0.saturating_add(call.limit.0));
        match (note, &mut call.wait) {
            (Note::Cancel, Wait::Console(_)) => {
                channel.open.remove(at);
                channel.reply(id, Ok(Reply::ConsoleEnd(ConsoleEnd::Detached)));
            }
            (Note::Cancel, _) => {
                channel.open.remove(at);
                channel.reply(id, Err(failure(Cause::Cancelled, "the call was cancelled")));
            }
            (Note::Credit(more), Wait::Console(viewer)) => {
                viewer.credit = viewer.credit.saturating_add(more).min(MAX_CREDIT);
            }
            (Note::Input(bytes), Wait::Console(viewer)) => {
                let len = bytes.len().min(viewer.input_credit as usize);
                viewer.input_credit -= len as u32;
                let serial = viewer.domain;
                let Some(domain) = self.domains.get_mut(&serial).filter(|domain| domain.life == Life::Live) else {
                    return;
                };
                if len == 0 {
                    return;
                }
                if domain.has_room_for_input(len) {
                    let bytes = bytes[..len].to_vec();
                    domain.input.push_back(Input { from: (number, id), bytes, taken: 0 });
                    self.exchange(serial);
                } else {
                    // Too much lies there already that the guest has not read: this is lost.
                    viewer.input_credit += len as u32;
                    channel.event(id, Event::InputCredit(len as u32));
                }
            }
            (Note::Alive | Note::Credit(_) | Note::Input(_), _) => {}
        }
    }

    /// The domain that is meant.
    fn find(&self, subject: &Subject) -> Result<Target, Failure> {
        let is_meant = |domain: &Domain<H::Link>| match subject {
            Subject::Id(id) => domain.id.0 == id.0,
            Subject::Name(name) => domain.config.name == *name,
        };
        let ours = self.domains.iter().find(|(_, domain)| domain.is_there() && is_meant(domain));
        if let Some((&serial, domain)) = ours {
            return Ok(Target { id: domain.id, serial: Some(serial) });
        }
        match subject {
            Subject::Id(id) if self.status(DomId(id.0)).is_some() => Ok(Target { id: DomId(id.0), serial: None }),
            Subject::Name(name) if name.as_str() == OWN_NAME => Ok(Target { id: DomId::DOM0, serial: None }),
            Subject::Id(id) => Err(failure(Cause::NoSuchDomain, &format!("there is no domain {id}"))),
            Subject::Name(name) => Err(failure(Cause::NoSuchDomain, &format!("there is no domain named {name}"))),
        }
    }

    /// The domain that is meant, which is not the control domain.
    fn other(&self, subject: &Subject) -> Result<Target, Failure> {
        let target = self.find(subject)?;
        if target.id == DomId::DOM0 {
            return Err(failure(Cause::Invalid, "domain 0 is the control domain itself"));
        }
        Ok(target)
    }

    /// The domain that is meant, one that was made here.
    fn ours(&self, subject: &Subject) -> Result<Serial, Failure> {
        let foreign = || failure(Cause::WrongState, "this domain was not made by the control domain");
        self.other(subject)?.serial.ok_or_else(foreign)
    }

    fn arch(&self, target: &Target) -> Result<proxenos_rpc::Arch, Failure> {
        match target.serial.and_then(|serial| self.domains.get(&serial)) {
            Some(domain) => Ok(domain.arch),
            None if target.id == DomId::DOM0 => Ok(proxenos_rpc::Arch::X86_64),
            None => Err(failure(Cause::WrongState, "this domain was not made by the control domain")),
        }
    }

    fn host_info(&mut self) -> Result<Reply, Failure> {
        let machine = self.host.machine()?;
        let own = self.status(DomId::DOM0).map_or(Kib(0), |status| status.memory);
        Ok(Reply::Host(Box::new(HostInfo {
            hypervisor: Text::cut(concat!("Proxenos ", env!("CARGO_PKG_VERSION"))),
            control: Text::cut(concat!("Proxenos control ", env!("CARGO_PKG_VERSION"))),
            interface: machine.interface,
            cpus: machine.cpus,
            cpu_khz: machine.cpu_khz,
            memory: machine.memory,
            memory_free: machine.memory_free,
            control_memory: own,
            uptime: self.host.now(),
            scheduler: machine.scheduler,
            domains: self.statuses(DomId::DOM0).count() as u32,
        })))
    }

    /// All domains from a number on.
    fn statuses(&self, from: DomId) -> impl Iterator<Item = Status> {
        let mut next = Some(from);
        core::iter::from_fn(move || {
            let status = self.host.status_from(next?)?;
            next = status.id.0.checked_add(1).map(DomId);
            Some(status)
        })
    }

    fn list(&self, from: DomainId) -> Reply {
        let mut domains = List::empty();
        let mut more = None;
        for status in self.statuses(DomId(from.0)) {
            if domains.push(self.info(&status)).is_err() {
                more = Some(DomainId(status.id.0));
                break;
            }
        }
        debug_assert!(domains.len() <= MAX_LIST);
        Reply::Domains { at: self.host.now(), domains, more }
    }

    pub(crate) fn describe(&self, subject: &Subject) -> Result<Info, Failure> {
        let target = self.find(subject)?;
        let gone = || failure(Cause::NoSuchDomain, "the domain is gone");
        self.status(target.id).map(|status| self.info(&status)).ok_or_else(gone)
    }

    /// All that is known of a domain.
    fn info(&self, status: &Status) -> Info {
        let is_it = |domain: &Domain<H::Link>| domain.id == status.id && domain.has_number();
        let serial = self.domains.iter().find(|(_, domain)| is_it(domain));
        let ours = serial.map(|(_, domain)| domain);
        let is_building = ours.is_some_and(|domain| matches!(domain.life, Life::Building(_)));
        let is_viewer = |call: &&Open| match (&call.wait, serial) {
            (Wait::Console(viewer), Some((serial, _))) => viewer.domain == *serial,
            _ => false,
        };
        let viewers = self.channels.iter().flat_map(|channel| &channel.open).filter(is_viewer).count();
        // Whoever was there before us, or is us, has no name of ours.
        let other = if status.id == DomId::DOM0 { OWN_NAME.into() } else { format!("Domain-{}", status.id.0) };
        let name = ours.map_or_else(|| Name::new(&other).ok(), |domain| Some(domain.config.name.clone()));
        Info {
            id: DomainId(status.id.0),
            name: name.unwrap_or_else(|| Name::new("unnamed").expect("a name")),
            arch: ours.map_or(proxenos_rpc::Arch::X86_64, |domain| domain.arch),
            state: if is_building { State::Building } else { state(status.flags) },
            memory: status.memory,
            memory_limit: status.memory_limit,
            cpu: status.flags.cpu().into(),
            pinned: ours.is_some_and(|domain| domain.config.cpu.is_some()),
            cpu_time: status.cpu_time,
            shared_info_frame: status.shared_info_frame,
            created_at: ours.map_or(Nanos(0), |domain| domain.created_at),
            restarts: ours.map_or(0, |domain| domain.restarts),
            restart: ours.map_or(Restart::Never, |domain| domain.config.restart),
            on_crash: ours.map_or(OnCrash::Keep, |domain| domain.config.on_crash),
            console_written: ours.map_or(0, |domain| domain.console.end()),
            console_clients: viewers as u32,
            image: ours.map_or_else(|| Text::cut(""), |domain| domain.config.image.clone()),
        }
    }

    fn create_begin(
        &mut self,
        number: usize,
        config: Config,
        kernel: &Image,
        ramdisk: Option<Image>,
    ) -> Result<Reply, Failure> {
        let name = config.name.as_str();
        let is_taken =
            |domain: &Domain<H::Link>| domain.config.name.as_str() == name && !matches!(domain.life, Life::Ended(_));
        if name == OWN_NAME || self.images.has_name(name) || self.domains.values().any(is_taken) {
            return Err(failure(Cause::NameTaken, &format!("there is a domain named {name} already")));
        }
        if config.memory_limit.is_some_and(|limit| limit < config.memory) {
            return Err(failure(Cause::Invalid, "the memory's limit is below the memory"));
        }
        if let Some(cpu) = config.cpu {
            let cpus = self.host.machine()?.cpus;
            if cpu >= cpus {
                return Err(failure(Cause::Invalid, &format!("there is no CPU {cpu}: the machine has {cpus}")));
            }
        }
        let (upload, kernel, ramdisk) = self.images.begin(number, config, kernel, ramdisk.as_ref())?;
        Ok(Reply::Upload { upload, kernel, ramdisk })
    }

    fn create_finish(&mut self, number: usize, upload: UploadId) -> Result<Outcome, Failure> {
        let Complete { config, kernel, ramdisk } = self.images.finish(number, upload)?;
        let now = self.host.now();
        self.last_serial += 1;
        let serial = Serial(self.last_serial);
        self.domains.insert(serial, Domain::new(config, kernel, ramdisk, now));
        if let Err(failure) = self.begin_making(serial, None) {
            self.domains.remove(&serial);
            return Err(failure);
        }
        Ok(Outcome::Wait(Wait::Creation(serial)))
    }

    fn attach(
        &mut self,
        number: usize,
        id: CallId,
        subject: &Subject,
        replay: u32,
        credit: u32,
        mode: ConsoleMode,
    ) -> Result<Outcome, Failure> {
        // The console of a domain that has ended lately can still be read.
        let ended = |domain: &Domain<H::Link>| match subject {
            Subject::Id(id) => domain.id.0 == id.0,
            Subject::Name(name) => domain.config.name == *name,
        };
        let serial = match self.ours(subject) {
            Ok(serial) => serial,
            Err(failure) => {
                let found = self.domains.iter().rev().find(|(_, domain)| ended(domain));
                found.map(|(&serial, _)| serial).ok_or(failure)?
            }
        };
        let domain = &self.domains[&serial];
        let status = self.status(domain.id).unwrap_or(Status {
            id: domain.id,
            flags: DomainFlags::DYING,
            memory: Kib(0),
            memory_limit: Kib(0),
            cpu_time: Nanos(0),
            shared_info_frame: 0,
        });
        let from = domain.console.start().max(domain.console.end().saturating_sub(replay.into()));
        let input_credit = if mode == ConsoleMode::ReadWrite { INPUT_CREDIT } else { 0 };
        let mut info = self.info(&status);
        info.name = domain.config.name.clone();
        let attached = Attached { info, from, input_credit };
        self.channels[number].event(id, Event::Attached(Box::new(attached)));
        let viewer = Viewer { domain: serial, next: from, credit: credit.min(MAX_CREDIT), input_credit };
        Ok(Outcome::Wait(Wait::Console(viewer)))
    }

    fn shut_down(&mut self, subject: &Subject, reason: ShutdownReason, wait: bool) -> Result<Outcome, Failure> {
        let serial = self.ours(subject)?;
        let how = match reason {
            ShutdownReason::POWER_OFF => ShutdownMessage::Poweroff,
            ShutdownReason::REBOOT => ShutdownMessage::Reboot,
            ShutdownReason::SUSPEND => ShutdownMessage::Suspend,
            ShutdownReason(other) => {
                return Err(failure(Cause::Invalid, &format!("a guest cannot be asked to end for reason {other}")));
            }
        };
        let domain = self.live(serial)?;
        if !domain.ask_to_shut_down(how) {
            return Err(failure(Cause::GuestSilent, "the guest has answered none of the last requests"));
        }
        self.exchange(serial);
        Ok(Outcome::Wait(if wait { Wait::Exit(serial) } else { Wait::ShutdownAnswer(serial) }))
    }

    fn live(&mut self, serial: Serial) -> Result<&mut Domain<H::Link>, Failure> {
        let domain = self.domains.get_mut(&serial).filter(|domain| domain.life == Life::Live);
        domain.ok_or_else(|| failure(Cause::WrongState, "the domain does not run any more"))
    }

    fn set_memory(&mut self, subject: &Subject, memory: Kib) -> Result<Outcome, Failure> {
        let target = self.other(subject)?;
        let serial = self.ours(subject)?;
        let limit = self.status(target.id).map_or(Kib(0), |status| status.memory_limit);
        if memory > limit {
            let message = format!("the domain may have {limit} at most; raise its limit first");
            return Err(failure(Cause::Invalid, &message));
        }
        let too_large = |_| failure(Cause::Invalid, "that is more than a domain can have");
        let pages = u32::try_from(memory.0 / 4).map_err(too_large)?;
        let domain = self.live(serial)?;
        if !domain.ask_for_size(pages) {
            return Err(failure(Cause::GuestSilent, "the guest has answered none of the last requests"));
        }
        self.exchange(serial);
        Ok(Outcome::Wait(Wait::Memory(serial)))
    }

    fn destroy(&mut self, subject: &Subject) -> Result<Exit, Failure> {
        if let Some(exit) = self.keep_down(subject) {
            return Ok(exit);
        }
        let target = self.other(subject)?;
        let Some(serial) = target.serial else {
            self.host.destroy(target.id)?;
            let name =
                Name::new(&format!("Domain-{}", target.id.0)).map_err(|_| failure(Cause::Internal, "no name"))?;
            let (at, reason) = (self.host.now(), ExitReason::Destroyed);
            let id = DomainId(target.id.0);
            return Ok(Exit { id, name, reason, at, cpu_time: Nanos(0), restarted: false });
        };
        self.ended(serial, ExitReason::Destroyed).ok_or_else(|| failure(Cause::NoSuchDomain, "the domain is gone"))
    }

    /// Has a domain that is gone not started again, if it was to be; how it ended.
    fn keep_down(&mut self, subject: &Subject) -> Option<Exit> {
        let is_meant = |domain: &Domain<H::Link>| match subject {
            Subject::Id(id) => domain.id.0 == id.0,
            Subject::Name(name) => domain.config.name == *name,
        };
        let waits = |domain: &Domain<H::Link>| matches!(domain.life, Life::Restarting(..) | Life::Building(Some(_)));
        let (&serial, _) = self.domains.iter().find(|(_, domain)| waits(domain) && is_meant(domain))?;
        self.makings.retain(|making| making.serial != serial);
        self.stay_down(serial)
    }

    fn reset(&mut self, subject: &Subject) -> Result<Outcome, Failure> {
        let serial = self.ours(subject)?;
        let ended = self.ended(serial, ExitReason::Destroyed);
        let exit = ended.ok_or_else(|| failure(Cause::NoSuchDomain, "the domain is gone"))?;
        let exit = Exit { restarted: true, ..exit };
        if let Some(domain) = self.domains.get_mut(&serial) {
            domain.life = Life::Restarting(exit.at, exit.clone());
        }
        if let Err(why) = self.begin_making(serial, Some(exit)) {
            self.unmade(serial, &why);
            return Err(failure(why.cause, &format!("it was ended, and not started again: {why}")));
        }
        Ok(Outcome::Wait(Wait::Creation(serial)))
    }

    fn log(&mut self, log: Log, from: u64) -> Reply {
        let (kept, fresh) = match log {
            Log::Hypervisor => (&mut self.hypervisor_log, self.host.read_log()),
            Log::Control => (&mut self.own_log, self.host.read_own_log()),
        };
        kept.push(&fresh);
        let (from, bytes) = kept.read(from, MAX_CHUNK);
        Reply::Log(LogPart { from, bytes: Bytes::new(bytes).unwrap_or_default(), end: kept.end() })
    }

    fn trace(&mut self, cpu: u32, from: u64) -> Result<Reply, Failure> {
        let (cpus, from, records) = self.host.trace(cpu, from, MAX_RECORDS)?;
        let too_many = |_| failure(Cause::Internal, "more than a message holds");
        Ok(Reply::Trace(TracePart {
            cpus: List::new(cpus).map_err(too_many)?,
            from,
            records: List::new(records).map_err(too_many)?,
        }))
    }

    fn context(&mut self, subject: &Subject) -> Result<Reply, Failure> {
        let target = self.find(subject)?;
        let arch = self.arch(&target)?;
        let info = self.describe(subject)?;
        let raw = self.host.context(target.id, arch)?;
        let raw = Bytes::new(raw).map_err(|_| failure(Cause::Internal, "a context larger than a message"))?;
        Ok(Reply::Context(Box::new(Context { info, arch, raw })))
    }

    fn wait_exit(&mut self, subject: &Subject) -> Result<Outcome, Failure> {
        match self.ours(subject) {
            Ok(serial) => match &self.domains[&serial].life {
                Life::Kept(exit) | Life::Ended(exit) => Ok(Outcome::Now(Reply::Exit(exit.clone()))),
                Life::Building(_) | Life::Live | Life::Restarting(..) => Ok(Outcome::Wait(Wait::Exit(serial))),
            },
            Err(failure) => {
                let is_meant = |exit: &Exit| match subject {
                    Subject::Id(id) => exit.id == *id,
                    Subject::Name(name) => exit.name == *name,
                };
                let known = self.exits.iter().rev().map(|(_, exit)| exit).find(|exit| is_meant(exit));
                known.map(|exit| Outcome::Now(Reply::Exit(exit.clone()))).ok_or(failure)
            }
        }
    }

    fn stop(&mut self) -> Reply {
        let serials: Vec<_> =
            self.domains.iter().filter(|(_, domain)| domain.is_there()).map(|(&serial, _)| serial).collect();
        self.makings.clear();
        for serial in serials {
            self.ended(serial, ExitReason::Destroyed);
        }
        self.stops = true;
        Reply::Done
    }
}

/// What a domain does, by its flags.
fn state(flags: DomainFlags) -> State {
    let states = [
        (DomainFlags::DYING, State::Dying),
        (DomainFlags::CRASHED, State::Crashed),
        (DomainFlags::SHUTDOWN, State::ShutDown(ShutdownReason(flags.shutdown_reason()))),
        (DomainFlags::PAUSED, State::Paused),
        (DomainFlags::RUNNING, State::Running),
        (DomainFlags::BLOCKED, State::Blocked),
    ];
    states.into_iter().find(|(flag, _)| flags.contains(*flag)).map_or(State::Ready, |(_, state)| state)
}
