//! A guest's control interface, from the controller's side (`io/domain_controller.h`): two rings of eight messages in its shared
//! page.
//!
//! The guest can write anything there at any time. What counts is what is kept here: how far each ring has been worked off. Of
//! the guest's indices only those are believed that a correct guest could have written; while one is not, that ring stands
//! still, which is the guest's own loss.

use alloc::collections::VecDeque;
use proxenos_abi::io::domain_controller::{CONTROL_RING_SIZE, ControlIf, ControlMsg, control_slot};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};

/// The way to a guest: its control interface, and the event channel that goes with it.
///
/// Offsets count from the beginning of `control_if_t`. The guest may change the memory at any time.
pub trait Link {
    /// Reads an index; what is read afterwards is not older.
    fn load(&self, offset: usize) -> u32;
    /// Writes an index, after everything that was written before.
    fn store(&self, offset: usize, value: u32);
    /// Reads bytes, once each.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// Writes bytes.
    fn write(&self, offset: usize, bytes: &[u8]);
    /// Sends the guest an event.
    fn notify(&self);
}

/// Messages that wait for a slot, at most: what one guest can make the control domain keep for it.
const MOST_WAITING: usize = 16;
const SLOTS: u32 = CONTROL_RING_SIZE as u32;
const SLOT: usize = size_of::<ControlMsg>();

/// What looking at a guest's messages came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polled {
    /// There are no more.
    Empty,
    /// There are more, for another turn.
    More,
    /// The guest's index makes no sense.
    Corrupt,
}

/// The controller's side of both rings.
#[derive(Debug, Default)]
pub struct Rings {
    /// Messages of the guest's that have been answered.
    answered: u32,
    /// Messages to the guest, and how many of them it has answered.
    sent: u32,
    acknowledged: u32,
    /// What waits for a slot.
    waiting: VecDeque<ControlMsg>,
}

fn slot(ring: usize, index: u32) -> usize {
    ring + control_slot(index) * SLOT
}

impl Rings {
    /// Looks at up to `most` messages of the guest's; each is replaced by what `answer` makes of it.
    pub fn poll(&mut self, link: &impl Link, most: usize, mut answer: impl FnMut(&ControlMsg) -> ControlMsg) -> Polled {
        let mut handled = 0;
        let result = loop {
            let waiting = link.load(ControlIf::TX_REQ_PROD).wrapping_sub(self.answered);
            match waiting {
                0 => break Polled::Empty,
                1..=SLOTS if handled < most => {}
                1..=SLOTS => break Polled::More,
                _ => break Polled::Corrupt,
            }
            let at = slot(ControlIf::TX_RING, self.answered);
            let mut message = ControlMsg::new_zeroed();
            link.read(at, message.as_mut_bytes());
            link.write(at, answer(&message).as_bytes());
            self.answered = self.answered.wrapping_add(1);
            link.store(ControlIf::TX_RESP_PROD, self.answered);
            handled += 1;
        };
        if handled > 0 {
            link.notify();
        }
        result
    }

    /// Whether another message can wait.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MOST_WAITING
    }

    /// How many bytes of input would find a slot at once, were each message full.
    pub fn free_slots(&self) -> usize {
        ((SLOTS - self.sent.wrapping_sub(self.acknowledged)) as usize).saturating_sub(self.waiting.len())
    }

    /// Queues a message. `false`, and it is dropped, when too many wait: a guest that answers nothing gets nothing more.
    pub fn queue(&mut self, message: ControlMsg) -> bool {
        let has_room = self.has_room();
        if has_room {
            self.waiting.push_back(message);
        }
        has_room
    }

    /// Takes the guest's answers, and fills the slots that they free.
    pub fn exchange(&mut self, link: &impl Link, mut answered: impl FnMut(&ControlMsg)) -> Polled {
        let under_way = self.sent.wrapping_sub(self.acknowledged);
        let fresh = link.load(ControlIf::RX_RESP_PROD).wrapping_sub(self.acknowledged);
        if fresh > under_way {
            return Polled::Corrupt;
        }
        for _ in 0..fresh {
            let mut message = ControlMsg::new_zeroed();
            link.read(slot(ControlIf::RX_RING, self.acknowledged), message.as_mut_bytes());
            self.acknowledged = self.acknowledged.wrapping_add(1);
            answered(&message);
        }
        let mut written = false;
        while self.sent.wrapping_sub(self.acknowledged) < SLOTS
            && let Some(message) = self.waiting.pop_front()
        {
            link.write(slot(ControlIf::RX_RING, self.sent), message.as_bytes());
            self.sent = self.sent.wrapping_add(1);
            link.store(ControlIf::RX_REQ_PROD, self.sent);
            written = true;
        }
        if written {
            link.notify();
        }
        Polled::Empty
    }
}

#[cfg(test)]
pub(crate) mod tests;
