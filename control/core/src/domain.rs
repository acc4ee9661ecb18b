//! A domain that this control domain has made: what it is, its console, and what became of it.

use crate::control::{Link, Polled, Rings};
use crate::images::Stored;
use crate::scrollback::Scrollback;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use proxenos_abi::DomId;
use proxenos_abi::io::domain_controller::blkif_msg::{BlkifDriverStatus, BlkifFeDriverStatus, BlkifFeMessage};
use proxenos_abi::io::domain_controller::netif_msg::{NetifDriverStatus, NetifFeDriverStatus, NetifFeMessage};
use proxenos_abi::io::domain_controller::{
    CONTROL_MSG_BYTES, ConsoleMessage, ControlMsg, MemRequest, MemRequestMessage, MessageType, ShutdownMessage,
};
use proxenos_abi::payload::Payload;
use proxenos_rpc::{Arch, CallId, Config, Exit, Nanos};

/// Bytes of output that are kept of each.
const SCROLLBACK: usize = 32 << 10;
/// Bytes of input that wait for a guest to read them, at most, whoever typed them: clients that come, type and go have
/// new credit each time.
const MOST_INPUT: usize = 8 << 10;
/// Pieces of it: each takes room of its own.
const MOST_INPUTS: usize = 512;

/// What has become of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It is being built; again, if it has ended before like this.
    Building(Option<Exit>),
    /// It is there.
    Live,
    /// It has crashed or is suspended, and is kept as it is.
    Kept(Exit),
    /// It is gone, having ended like this, and is to be started again at this time.
    Restarting(Nanos, Exit),
    /// It is gone.
    Ended(Exit),
}

/// Input of one client's, as it came.
pub(crate) struct Input {
    /// Who is told when it has gone on.
    pub(crate) from: (usize, CallId),
    pub(crate) bytes: Vec<u8>,
    /// How much of it has gone on.
    pub(crate) taken: usize,
}

/// A domain.
pub(crate) struct Domain<L> {
    pub(crate) id: DomId,
    pub(crate) arch: Arch,
    pub(crate) config: Config,
    pub(crate) kernel: Rc<Stored>,
    pub(crate) ramdisk: Option<Rc<Stored>>,
    pub(crate) created_at: Nanos,
    pub(crate) started_at: Nanos,
    pub(crate) restarts: u32,
    pub(crate) life: Life,
    /// The way to it, while it is there.
    pub(crate) link: Option<L>,
    pub(crate) rings: Rings,
    pub(crate) console: Scrollback,
    pub(crate) input: VecDeque<Input>,
}

/// What a guest has answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// It will shut down.
    Shutdown,
    /// It will change its size, or an error says that it will not.
    Memory(u32),
}

impl<L: Link> Domain<L> {
    /// One that is to be built. Its number and architecture are known when that has begun.
    pub(crate) fn new(config: Config, kernel: Rc<Stored>, ramdisk: Option<Rc<Stored>>, now: Nanos) -> Self {
        Self {
            // Nobody's, until there is one.
            id: DomId::SELF,
            arch: Arch::X86_64,
            config,
            kernel,
            ramdisk,
            created_at: now,
            started_at: now,
            restarts: 0,
            life: Life::Building(None),
            link: None,
            rings: Rings::default(),
            console: Scrollback::new(SCROLLBACK),
            input: VecDeque::new(),
        }
    }

    /// It has been built, perhaps again.
    pub(crate) fn begin(&mut self, link: L, now: Nanos) {
        self.link = Some(link);
        (self.life, self.started_at, self.rings) = (Life::Live, now, Rings::default());
        self.input.clear();
    }

    /// Looks at up to `most` messages of the guest's.
    pub(crate) fn poll(&mut self, most: usize) -> Polled {
        let Some(link) = &self.link else { return Polled::Empty };
        let console = &mut self.console;
        self.rings.poll(link, most, |message| {
            let kind = (message.message_type().ok(), message.subtype);
            let mut answer = ControlMsg { length: 0, ..*message };
            match kind {
                (Some(MessageType::Console), DATA) => console.push(message.bytes()),
                (Some(MessageType::BlkifFe), BLOCK_STATUS) => {
                    let status = BlkifFeDriverStatus { status: BlkifDriverStatus::Up.raw(), max_handle: 0 };
                    answer = ControlMsg::new(MessageType::BlkifFe, message.subtype, message.id, status);
                }
                (Some(MessageType::NetifFe), NET_STATUS) => {
                    let status = NetifFeDriverStatus { status: NetifDriverStatus::Up.raw(), max_handle: 0 };
                    answer = ControlMsg::new(MessageType::NetifFe, message.subtype, message.id, status);
                }
                // What is not known is answered with nothing: the guest goes on.
                _ => {}
            }
            answer
        })
    }

    /// Takes the guest's answers and hands it what waits: messages, then input. What input has gone on is told.
    pub(crate) fn exchange(
        &mut self,
        mut answered: impl FnMut(Answer),
        mut gone_on: impl FnMut((usize, CallId), u32),
    ) -> Polled {
        let Some(link) = &self.link else { return Polled::Empty };
        let mut note = |message: &ControlMsg| match message.message_type() {
            Ok(MessageType::Shutdown) => answered(Answer::Shutdown),
            Ok(MessageType::MemRequest) => {
                answered(Answer::Memory(message.body::<MemRequest>().map_or(0, |request| request.status)));
            }
            _ => {}
        };
        let polled = self.rings.exchange(link, &mut note);
        let mut written = false;
        while self.rings.free_slots() > 0
            && let Some(input) = self.input.front_mut()
        {
            let piece = &input.bytes[input.taken..];
            let piece = &piece[..piece.len().min(CONTROL_MSG_BYTES)];
            let mut message = ControlMsg {
                msg_type: MessageType::Console.raw(),
                subtype: DATA,
                id: 0xff,
                length: piece.len() as u8,
                msg: Payload::ZERO,
            };
            message.msg.0[..piece.len()].copy_from_slice(piece);
            self.rings.queue(message);
            input.taken += piece.len();
            gone_on(input.from, piece.len() as u32);
            if input.taken == input.bytes.len() {
                self.input.pop_front();
            }
            written = true;
        }
        if written { self.rings.exchange(link, &mut note) } else { polled }
    }

    /// Whether so many bytes more of input may wait.
    pub(crate) fn has_room_for_input(&self, len: usize) -> bool {
        let waiting: usize = self.input.iter().map(|input| input.bytes.len() - input.taken).sum();
        self.input.len() < MOST_INPUTS && waiting + len <= MOST_INPUT
    }

    /// Asks the guest to shut down. Whether there was room for the message.
    pub(crate) fn ask_to_shut_down(&mut self, how: ShutdownMessage) -> bool {
        let message = ControlMsg { msg_type: MessageType::Shutdown.raw(), subtype: how.raw(), ..ControlMsg::default() };
        self.rings.queue(message)
    }

    /// Asks the guest to have so many pages. Whether there was room for the message.
    pub(crate) fn ask_for_size(&mut self, pages: u32) -> bool {
        let request = MemRequest { target: pages, status: 0 };
        self.rings.queue(ControlMsg::new(MessageType::MemRequest, MemRequestMessage::Set.raw(), 0, request))
    }

    /// How it ended, if it did.
    pub(crate) fn exit(&self) -> Option<&Exit> {
        match &self.life {
            Life::Kept(exit) | Life::Ended(exit) => Some(exit),
            Life::Building(_) | Life::Live | Life::Restarting(..) => None,
        }
    }

    /// Whether its number is that of a domain that the hypervisor has, perhaps half built.
    pub(crate) fn has_number(&self) -> bool {
        self.is_there() || matches!(self.life, Life::Building(_))
    }

    /// Whether the hypervisor has a domain for it, built.
    pub(crate) fn is_there(&self) -> bool {
        matches!(self.life, Life::Live | Life::Kept(_))
    }
}

const DATA: u8 = ConsoleMessage::Data.raw();
const BLOCK_STATUS: u8 = BlkifFeMessage::DriverStatus.raw();
const NET_STATUS: u8 = NetifFeMessage::DriverStatus.raw();
