//! The control domain as a whole: turns of work, and the life of domains.
//!
//! Whoever drives it feeds what has come on the channels ([`Server::receive`]), says which guests have rung
//! ([`Server::rang`]) and that something has become of one ([`Server::domains_changed`]), and calls [`Server::turn`] as
//! long as there is work, and when [`Server::next_deadline`] has come.

mod requests;

use crate::channel::{Channel, Client, Wait};
use crate::control::Polled;
use crate::domain::{Answer, Domain, Life};
use crate::host::{Host, Status};
use crate::images::Images;
use crate::making::Making;
use crate::scrollback::Scrollback;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::vec::Vec;
use proxenos_abi::DomId;
use proxenos_abi::dom0_ops::args::DomainFlags;
use proxenos_abi::io::domain_controller::CONTROL_RING_SIZE;
use proxenos_rpc::{
    Bytes, CHUNK_COST, Call, Cause, ConsoleEnd, DomainId, Event, Exit, ExitReason, Failure, FromControl, Hello,
    MAX_CHUNK, Nanos, OnCrash, Reply, Restart, ShutdownReason, ToControl, Unreadable, VERSION, Version, Welcome,
};

/// Our own number of a domain, which it keeps when it is started again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Serial(u64);

/// Ends that are remembered, and domains that have ended whose console is.
const MOST_EXITS: usize = 64;
const MOST_ENDED: usize = 8;
/// What is kept of the logs.
const LOG: usize = 64 << 10;
/// A domain runs at least so long between two starts: one that ends at once must not keep everybody busy.
const START_INTERVAL: u64 = 1_000_000_000;

/// Whether there is work left after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// There is.
    Left,
    /// All is done, until something happens.
    Done,
}

/// The control domain.
pub struct Server<H: Host> {
    pub(crate) host: H,
    pub(crate) channels: Vec<Channel>,
    images: Images,
    pub(crate) domains: BTreeMap<Serial, Domain<H::Link>>,
    /// Domains that are being built, in turn.
    pub(crate) makings: Vec<Making<H>>,
    last_serial: u64,
    /// Guests whose control interface is to be looked at, in turn.
    rung: VecDeque<Serial>,
    exits: VecDeque<(Serial, Exit)>,
    /// Something may have become of a domain.
    is_changed: bool,
    hypervisor_log: Scrollback,
    own_log: Scrollback,
    stops: bool,
}

impl<H: Host> Server<H> {
    /// Messages of one guest's that are looked at before another's turn comes.
    pub const MESSAGES_A_TURN: usize = 4;
    /// Guests that get a turn before the channels do.
    const GUESTS_A_TURN: usize = 32;

    /// One with so many channels, whose images take so many bytes at most.
    pub fn new(host: H, channels: usize, images: usize) -> Self {
        Self {
            host,
            channels: (0..channels).map(|_| Channel::default()).collect(),
            images: Images::new(images),
            domains: BTreeMap::new(),
            makings: Vec::new(),
            last_serial: 0,
            rung: VecDeque::new(),
            exits: VecDeque::new(),
            is_changed: false,
            hypervisor_log: Scrollback::new(LOG),
            own_log: Scrollback::new(LOG),
            stops: false,
        }
    }

    /// The machine.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// A channel, to be asked what is to be sent on it.
    pub fn channel(&mut self, channel: usize) -> &mut Channel {
        &mut self.channels[channel]
    }

    /// Takes what has come on a channel, which [wants](Channel::wants_input) it.
    pub fn receive(&mut self, channel: usize, bytes: &[u8]) {
        self.channels[channel].feed(bytes);
    }

    /// A guest has sent an event.
    pub fn rang(&mut self, id: DomId) {
        let found = self.domains.iter().find(|(_, domain)| domain.id == id && domain.link.is_some());
        if let Some((&serial, _)) = found {
            self.ring(serial);
        }
    }

    pub(crate) fn ring(&mut self, serial: Serial) {
        if !self.rung.contains(&serial) {
            self.rung.push_back(serial);
        }
    }

    /// A domain has shut down, crashed or gone (`VIRQ_DOM_EXC`).
    pub fn domains_changed(&mut self) {
        self.is_changed = true;
    }

    /// When a turn is due though nothing has happened.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let calls = self.channels.iter().flat_map(|channel| &channel.open).map(|call| call.ends);
        let starts = self.domains.values().filter_map(|domain| match domain.life {
            Life::Restarting(at, _) => Some(at),
            _ => None,
        });
        calls.chain(starts).min()
    }

    /// Does some work of every kind that there is.
    pub fn turn(&mut self) -> Work {
        if core::mem::take(&mut self.is_changed) {
            self.look_at_domains();
        }
        for _ in 0..self.rung.len().min(Self::GUESTS_A_TURN) {
            let Some(serial) = self.rung.pop_front() else { break };
            if self.serve(serial) == Polled::More {
                self.ring(serial);
            }
        }
        self.start_again();
        self.make();
        for channel in 0..self.channels.len() {
            self.listen(channel);
            self.show_consoles(channel);
        }
        self.pass_deadlines();
        self.forget_ended();
        let unheard = self.channels.iter().any(|channel| !channel.wants_input() && channel.has_room_for_output());
        let is_left = unheard || self.is_changed || !self.rung.is_empty() || !self.makings.is_empty();
        if is_left { Work::Left } else { Work::Done }
    }

    /// Whether the machine is to end when all has been sent.
    pub fn stops(&self) -> bool {
        self.stops && self.channels.iter().all(|channel| channel.unsent().is_empty())
    }

    /// Looks at a guest's control interface.
    fn serve(&mut self, serial: Serial) -> Polled {
        let Some(domain) = self.domains.get_mut(&serial) else { return Polled::Empty };
        let polled = domain.poll(Self::MESSAGES_A_TURN);
        self.exchange(serial);
        polled
    }

    /// Takes a guest's answers, and hands it what waits.
    fn exchange(&mut self, serial: Serial) {
        let Some(domain) = self.domains.get_mut(&serial) else { return };
        let (mut answers, mut gone_on) = (Vec::new(), Vec::new());
        domain.exchange(|answer| answers.push(answer), |whose, len| gone_on.push((whose, len)));
        for ((channel, id), len) in gone_on {
            let Some(channel) = self.channels.get_mut(channel) else { continue };
            let viewer = channel.open.iter_mut().find(|call| call.id == id);
            if let Some(Wait::Console(viewer)) = viewer.map(|call| &mut call.wait)
                && viewer.domain == serial
            {
                viewer.input_credit += len;
                channel.event(id, Event::InputCredit(len));
            }
        }
        for answer in answers {
            self.guest_answered(serial, answer);
        }
    }

    /// Answers calls that waited for this.
    fn guest_answered(&mut self, serial: Serial, answer: Answer) {
        let id = self.domains[&serial].id;
        let memory = self.status(id).map_or(proxenos_rpc::Kib(0), |status| status.memory);
        for channel in &mut self.channels {
            channel.close(|call| match (&call.wait, answer) {
                (Wait::ShutdownAnswer(whose), Answer::Shutdown) if *whose == serial => Some(Ok(Reply::Done)),
                (Wait::Memory(whose), Answer::Memory(0)) if *whose == serial => Some(Ok(Reply::Memory(memory))),
                (Wait::Memory(whose), Answer::Memory(errno)) if *whose == serial => {
                    let message = format!("the guest refuses to change its size (error {errno})");
                    Some(Err(Failure::new(Cause::Invalid, &message)))
                }
                _ => None,
            });
        }
    }

    /// What the hypervisor says of a domain.
    fn status(&self, id: DomId) -> Option<Status> {
        self.host.status_from(id).filter(|status| status.id == id)
    }

    /// Finds out what has become of domains, and does what is to be done about it.
    fn look_at_domains(&mut self) {
        let serials: Vec<_> = self.domains.iter().filter(|(_, domain)| domain.life == Life::Live).collect();
        let serials: Vec<_> = serials.into_iter().map(|(&serial, domain)| (serial, domain.id)).collect();
        for (serial, id) in serials {
            let reason = match self.status(id) {
                None => ExitReason::Destroyed,
                Some(status) if status.flags.contains(DomainFlags::CRASHED) => ExitReason::Crashed,
                Some(status) if status.flags.contains(DomainFlags::SHUTDOWN) => {
                    ExitReason::ShutDown(ShutdownReason(status.flags.shutdown_reason()))
                }
                Some(_) => continue,
            };
            self.ended(serial, reason);
        }
    }

    /// A domain has ended: whoever waits is told, and it is kept, forgotten or started again as its owner wished.
    fn ended(&mut self, serial: Serial, reason: ExitReason) -> Option<Exit> {
        let now = self.host.now();
        let id = self.domains.get(&serial)?.id;
        let cpu_time = self.status(id).map_or(Nanos(0), |status| status.cpu_time);
        let domain = self.domains.get_mut(&serial)?;
        // Its last words: what is in its ring. One that is destroyed may be adding to them on another CPU.
        domain.poll(CONTROL_RING_SIZE);
        let config = &domain.config;
        let restarted = match reason {
            ExitReason::ShutDown(ShutdownReason::REBOOT) => config.restart != Restart::Never,
            // Not an end, but a state that its memory is in.
            ExitReason::ShutDown(ShutdownReason::SUSPEND) => false,
            ExitReason::ShutDown(_) => config.restart == Restart::Always,
            ExitReason::Crashed => config.on_crash == OnCrash::Restart,
            ExitReason::Destroyed => false,
        };
        let keep = match reason {
            ExitReason::Crashed => config.on_crash == OnCrash::Keep,
            ExitReason::ShutDown(reason) => reason == ShutdownReason::SUSPEND,
            ExitReason::Destroyed => false,
        };
        let name = config.name.clone();
        let exit = Exit { id: DomainId(id.0), name, reason, at: now, cpu_time, restarted };
        domain.input.clear();
        domain.life = if keep {
            Life::Kept(exit.clone())
        } else {
            let ready = Nanos(now.0.max(domain.started_at.0.saturating_add(START_INTERVAL)));
            domain.link = None;
            let life = if restarted { Life::Restarting(ready, exit.clone()) } else { Life::Ended(exit.clone()) };
            if let Err(failure) = self.host.destroy(id)
                && reason != ExitReason::Destroyed
            {
                domain.console.push(format!("\r\n[proxenos: not destroyed: {failure}]\r\n").as_bytes());
            }
            life
        };
        if self.exits.len() == MOST_EXITS {
            self.exits.pop_front();
        }
        self.exits.push_back((serial, exit.clone()));
        for channel in &mut self.channels {
            channel.close(|call| match &call.wait {
                Wait::Exit(whose) if *whose == serial => Some(Ok(Reply::Exit(exit.clone()))),
                Wait::ShutdownAnswer(whose) if *whose == serial => Some(Ok(Reply::Done)),
                Wait::Memory(whose) if *whose == serial => {
                    Some(Err(Failure::new(Cause::WrongState, "the domain has ended")))
                }
                _ => None,
            });
        }
        Some(exit)
    }

    /// Starts domains again whose time it is.
    fn start_again(&mut self) {
        let now = self.host.now();
        let due = |(&serial, domain): (&Serial, &Domain<H::Link>)| match &domain.life {
            Life::Restarting(at, exit) if *at <= now => Some((serial, exit.clone())),
            _ => None,
        };
        let due: Vec<_> = self.domains.iter().filter_map(due).collect();
        for (serial, exit) in due {
            if let Err(failure) = self.begin_making(serial, Some(exit)) {
                self.finish_making(serial, Err(failure));
            }
        }
    }

    /// A domain that was to be started again is not: how it ended.
    pub(crate) fn stay_down(&mut self, serial: Serial) -> Option<Exit> {
        let domain = self.domains.get_mut(&serial)?;
        let (Life::Restarting(_, exit) | Life::Building(Some(exit))) = &domain.life else { return None };
        let exit = Exit { restarted: false, ..exit.clone() };
        domain.life = Life::Ended(exit.clone());
        if let Some((_, told)) = self.exits.iter_mut().rev().find(|(whose, _)| *whose == serial) {
            *told = exit.clone();
        }
        Some(exit)
    }

    /// Looks at what clients have sent, as long as there is room for answers.
    fn listen(&mut self, number: usize) {
        while let Some(message) = self.channels[number].next() {
            match message {
                Ok(ToControl::Hello(Hello { nonce, version })) => {
                    self.images.abort_all(number);
                    let channel = &mut self.channels[number];
                    channel.begin(version);
                    channel.send(&FromControl::Welcome(Welcome { version: VERSION, nonce }));
                }
                Ok(ToControl::Note(id, note)) => self.note(number, id, note),
                Ok(ToControl::Call(call)) if self.channels[number].client() == Client::Known => {
                    self.call(number, call);
                }
                Ok(ToControl::Call(Call { id, .. })) | Err(Unreadable::Call(id)) => {
                    let channel = &mut self.channels[number];
                    match channel.client() {
                        // There is nobody to answer.
                        Client::Nobody => {}
                        Client::Known => channel.decline(id, "this control domain does not know the request"),
                        Client::Foreign(Version { major, .. }) => {
                            let ours = VERSION.major;
                            let why = format!("this control domain speaks version {ours} of the protocol, not {major}");
                            channel.decline(id, &why);
                        }
                    }
                }
                // It is no message at all.
                Err(Unreadable::Other) => {}
            }
        }
    }

    /// Sends the consoles' viewers of a channel what is new, as far as it is welcome.
    fn show_consoles(&mut self, number: usize) {
        let channel = &mut self.channels[number];
        let mut open = core::mem::take(&mut channel.open);
        open.retain_mut(|call| {
            let Wait::Console(viewer) = &mut call.wait else { return true };
            let Some(domain) = self.domains.get(&viewer.domain) else {
                channel.reply(call.id, Err(Failure::new(Cause::NoSuchDomain, "the domain is gone")));
                return false;
            };
            while viewer.next < domain.console.end() && viewer.credit > CHUNK_COST && channel.has_room_for_output() {
                let most = ((viewer.credit - CHUNK_COST) as usize).min(MAX_CHUNK);
                let (from, bytes) = domain.console.read(viewer.next, most);
                viewer.next = from + bytes.len() as u64;
                viewer.credit -= CHUNK_COST + bytes.len() as u32;
                if let Ok(bytes) = Bytes::new(bytes) {
                    channel.event(call.id, Event::Output { from, bytes });
                }
            }
            match domain.exit() {
                Some(exit) if viewer.next >= domain.console.end() => {
                    channel.reply(call.id, Ok(Reply::ConsoleEnd(ConsoleEnd::Ended(exit.clone()))));
                    false
                }
                _ => true,
            }
        });
        channel.open = open;
    }

    /// Ends calls that have taken too long.
    fn pass_deadlines(&mut self) {
        let now = self.host.now();
        for channel in &mut self.channels {
            channel.close(|call| {
                let passed = || Err(Failure::new(Cause::Deadline, "the call has taken longer than it may"));
                (call.ends <= now).then(passed)
            });
        }
    }

    /// Forgets domains that have ended, but for the last few, whose output somebody may yet want.
    fn forget_ended(&mut self) {
        let ended = |domain: &Domain<H::Link>| matches!(domain.life, Life::Ended(_));
        let ended: Vec<_> =
            self.domains.iter().filter(|(_, domain)| ended(domain)).map(|(&serial, _)| serial).collect();
        for serial in ended.iter().take(ended.len().saturating_sub(MOST_ENDED)) {
            self.domains.remove(serial);
        }
    }
}
