//! One of the host's channels: bytes in, bytes out, and the calls that are open.
//!
//! What is to be sent is bounded by not listening: while more than [`MOST_UNSENT`] bytes wait, nothing that came is
//! looked at, and whoever feeds the channel keeps the rest to itself ([`Channel::wants_input`]).

use crate::server::Serial;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use proxenos_rpc::{
    CallId, Cause, Decoder, Event, Failure, FromControl, MAX_OPEN_CALLS, Nanos, Reply, ToControl, Unreadable, VERSION,
    Version, encode,
};

/// Bytes that wait to be sent, at most, before the client is not listened to any more. One message more may come on
/// top.
const MOST_UNSENT: usize = 64 << 10;

/// A call that waits for something.
pub(crate) struct Open {
    pub(crate) id: CallId,
    /// How long it may take, and when that has passed.
    pub(crate) limit: Nanos,
    pub(crate) ends: Nanos,
    pub(crate) wait: Wait,
}

/// What a call waits for.
pub(crate) enum Wait {
    /// The call is a console.
    Console(Viewer),
    /// A domain's end.
    Exit(Serial),
    /// A domain that is being built.
    Creation(Serial),
    /// A guest's answer to a request to shut down.
    ShutdownAnswer(Serial),
    /// A guest's answer to a request to change its size.
    Memory(Serial),
}

/// Somebody who looks at a console.
pub(crate) struct Viewer {
    pub(crate) domain: Serial,
    /// What comes next, as a place in the output.
    pub(crate) next: u64,
    /// How much output is welcome.
    pub(crate) credit: u32,
    /// How much input is.
    pub(crate) input_credit: u32,
}

/// Who is at the other end.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) enum Client {
    /// Nobody has said hello.
    #[default]
    Nobody,
    /// Somebody who speaks this protocol.
    Known,
    /// Somebody who speaks another version of it.
    Foreign(Version),
}

/// A channel and its client.
#[derive(Default)]
pub struct Channel {
    decoder: Decoder,
    /// Who has said hello.
    client: Client,
    /// What has come and was not looked at yet.
    inbox: VecDeque<u8>,
    out: VecDeque<u8>,
    pub(crate) open: Vec<Open>,
}

impl Channel {
    /// Takes bytes that have come.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.inbox.extend(bytes);
    }

    /// Whether more bytes are welcome.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.inbox.is_empty()
    }

    /// What is to be sent next, in one piece, though perhaps not all of it.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        self.out.as_slices().0
    }

    /// Says that so many bytes of it have been sent.
    pub fn sent(&mut self, bytes: usize) {
        self.out.drain(..bytes);
    }

    /// The next message, while there is room for what it leads to.
    pub(crate) fn next(&mut self) -> Option<Result<ToControl, Unreadable>> {
        while self.out.len() <= MOST_UNSENT && !self.inbox.is_empty() {
            let mut piece = self.inbox.as_slices().0;
            let before = piece.len();
            let message = self.decoder.next_frame(&mut piece);
            let taken = before - piece.len();
            self.inbox.drain(..taken);
            if let Some(message) = message {
                return Some(message.map_err(|_| Unreadable::Other).and_then(|message| ToControl::read(&message)));
            }
        }
        None
    }

    /// A client begins: whatever was before is forgotten.
    pub(crate) fn begin(&mut self, version: Version) {
        self.out.clear();
        // It ends a frame of which only a part was sent.
        self.out.push_back(0);
        self.open.clear();
        self.client = if version.major == VERSION.major { Client::Known } else { Client::Foreign(version) };
    }

    pub(crate) fn client(&self) -> Client {
        self.client
    }

    /// Answers a call that is not understood, unless another of its number is open.
    pub(crate) fn decline(&mut self, id: CallId, why: &str) {
        if self.open.iter().all(|open| open.id != id) {
            self.reply(id, Err(Failure::new(Cause::NotSupported, why)));
        }
    }

    pub(crate) fn send(&mut self, message: &FromControl) {
        // Messages are made of bounded parts, and all fit.
        if let Ok(frame) = encode(message) {
            self.out.extend(frame);
        }
    }

    pub(crate) fn reply(&mut self, id: CallId, result: Result<Reply, Failure>) {
        self.send(&FromControl::Reply(id, result));
    }

    pub(crate) fn event(&mut self, id: CallId, event: Event) {
        self.send(&FromControl::Event(id, event));
    }

    /// Sends an event to all open calls that wait for this.
    pub(crate) fn tell(&mut self, is_meant: impl Fn(&Wait) -> bool, event: &Event) {
        let calls: Vec<CallId> = self.open.iter().filter(|call| is_meant(&call.wait)).map(|call| call.id).collect();
        for call in calls {
            self.event(call, event.clone());
        }
    }

    pub(crate) fn has_room_for_call(&self) -> bool {
        self.open.len() < MAX_OPEN_CALLS
    }

    /// Whether output of consoles may be added.
    pub(crate) fn has_room_for_output(&self) -> bool {
        self.out.len() <= MOST_UNSENT
    }

    /// Closes all open calls that `result` answers.
    pub(crate) fn close(&mut self, mut result: impl FnMut(&Open) -> Option<Result<Reply, Failure>>) {
        let open = core::mem::take(&mut self.open);
        for call in open {
            match result(&call) {
                Some(result) => self.reply(call.id, result),
                None => self.open.push(call),
            }
        }
    }
}
