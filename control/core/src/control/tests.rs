//! Both rings against guests that behave and guests that do not.

use super::*;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;
use proxenos_abi::io::domain_controller::MessageType;
use std::rc::Rc;
use std::vec::Vec;

/// A guest's control interface, in memory. Whoever has a copy has the same one.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) bytes: Rc<RefCell<Vec<u8>>>,
    pub(crate) events: Rc<Cell<u32>>,
    /// A message is written for each that is answered.
    pub(crate) writes_on: Rc<Cell<bool>>,
}

impl Page {
    pub(crate) fn new() -> Self {
        let bytes = std::vec![0; size_of::<ControlIf>()];
        Self { bytes: Rc::new(RefCell::new(bytes)), events: Rc::default(), writes_on: Rc::default() }
    }

    /// As the guest: puts a message into its ring.
    pub(crate) fn put(&self, kind: u8, subtype: u8, body: &[u8]) {
        let produced = self.load(ControlIf::TX_REQ_PROD);
        let at = slot(ControlIf::TX_RING, produced);
        self.write(at, &[kind, subtype, 7, body.len() as u8]);
        self.write(at + 4, body);
        self.store(ControlIf::TX_REQ_PROD, produced.wrapping_add(1));
    }

    /// As the guest: takes a message from the controller, and answers it with nothing.
    pub(crate) fn take(&self) -> Option<ControlMsg> {
        let answered = self.load(ControlIf::RX_RESP_PROD);
        if answered == self.load(ControlIf::RX_REQ_PROD) {
            return None;
        }
        let mut message = ControlMsg::new_zeroed();
        self.read(slot(ControlIf::RX_RING, answered), message.as_mut_bytes());
        self.write(slot(ControlIf::RX_RING, answered) + 3, &[0]);
        self.store(ControlIf::RX_RESP_PROD, answered.wrapping_add(1));
        Some(message)
    }
}

impl Link for Page {
    fn load(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes.borrow()[offset..][..4].try_into().unwrap())
    }

    fn store(&self, offset: usize, value: u32) {
        self.bytes.borrow_mut()[offset..][..4].copy_from_slice(&value.to_le_bytes());
        if offset == ControlIf::TX_RESP_PROD && self.writes_on.get() {
            self.put(CONSOLE, 0, b"more");
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes.borrow()[offset..][..into.len()]);
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.bytes.borrow_mut()[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    fn notify(&self) {
        self.events.set(self.events.get() + 1);
    }
}

const CONSOLE: u8 = MessageType::Console.raw();

fn nothing(message: &ControlMsg) -> ControlMsg {
    ControlMsg { length: 0, ..*message }
}

#[test]
fn messages_are_answered_in_their_slots() {
    let (page, mut rings) = (Page::new(), Rings::default());
    for round in 0..20u8 {
        page.put(CONSOLE, 0, &[round; 5]);
        page.put(CONSOLE, 0, &[round; 60]);
        let mut seen = Vec::new();
        let polled = rings.poll(&page, 8, |message| {
            seen.push(message.bytes().to_vec());
            nothing(message)
        });
        assert_eq!((polled, seen), (Polled::Empty, std::vec![std::vec![round; 5], std::vec![round; 60]]));
        assert_eq!(page.load(ControlIf::TX_RESP_PROD), 2 * (u32::from(round) + 1));
        let mut answer = [0; 4];
        page.read(slot(ControlIf::TX_RING, 2 * u32::from(round)), &mut answer);
        assert_eq!(answer, [CONSOLE, 0, 7, 0], "type, subtype and number are the message's");
    }
    assert_eq!(page.events.get(), 20, "one event for all that a look answered");
    assert_eq!(rings.poll(&page, 8, nothing), Polled::Empty);
    assert_eq!(page.events.get(), 20, "and none for nothing");
}

#[test]
fn a_flood_takes_turns() {
    let (page, mut rings) = (Page::new(), Rings::default());
    (0..8).for_each(|_| page.put(CONSOLE, 0, b"x"));
    let mut seen = 0;
    let mut answer = |message: &ControlMsg| {
        seen += 1;
        // It goes on writing while it is listened to.
        page.put(CONSOLE, 0, b"y");
        nothing(message)
    };
    assert_eq!(rings.poll(&page, 3, &mut answer), Polled::More);
    assert_eq!(rings.poll(&page, 3, &mut answer), Polled::More);
    assert_eq!(seen, 6);
}

#[test]
fn an_index_that_makes_no_sense_stops_its_ring_only() {
    let (page, mut rings) = (Page::new(), Rings::default());
    for bad in [9, 100, u32::MAX] {
        page.store(ControlIf::TX_REQ_PROD, bad);
        assert_eq!(rings.poll(&page, 8, |_| unreachable!()), Polled::Corrupt, "{bad}");
    }
    assert!(rings.queue(ControlMsg::default()));
    assert_eq!(rings.exchange(&page, |_| {}), Polled::Empty);
    assert_eq!(page.load(ControlIf::RX_REQ_PROD), 1, "the other goes on");
    page.store(ControlIf::RX_RESP_PROD, 2);
    assert_eq!(rings.exchange(&page, |_| unreachable!()), Polled::Corrupt, "more answers than messages");
    page.store(ControlIf::RX_RESP_PROD, 1);
    let mut answers = 0;
    assert_eq!(rings.exchange(&page, |_| answers += 1), Polled::Empty);
    assert_eq!(answers, 1);
    page.store(ControlIf::TX_REQ_PROD, 1);
    assert_eq!(rings.poll(&page, 8, nothing), Polled::Empty, "and this one too when it makes sense again");
}

#[test]
fn a_guest_that_answers_nothing_gets_nothing_more() {
    let (page, mut rings) = (Page::new(), Rings::default());
    let mut queued = 0;
    for _ in 0..100 {
        queued += usize::from(rings.queue(ControlMsg::default()));
        rings.exchange(&page, |_| {});
    }
    assert_eq!((queued, page.load(ControlIf::RX_REQ_PROD)), (8 + MOST_WAITING, 8));
    while page.take().is_some() {
        rings.exchange(&page, |_| {});
    }
    assert_eq!(page.load(ControlIf::RX_REQ_PROD), queued as u32, "all have come, in the end");
}

/// What a guest does to its page.
#[derive(Clone, Debug)]
enum Deed {
    Byte(usize, u8),
    Index(usize, u32),
    Message,
    Answer,
}

fn deed() -> impl Strategy<Value = Deed> {
    let index = prop::sample::select(std::vec![
        ControlIf::TX_REQ_PROD,
        ControlIf::TX_RESP_PROD,
        ControlIf::RX_REQ_PROD,
        ControlIf::RX_RESP_PROD,
    ]);
    prop_oneof![
        (0..size_of::<ControlIf>(), any::<u8>()).prop_map(|(at, byte)| Deed::Byte(at, byte)),
        (index, prop_oneof![0u32..20, any::<u32>()]).prop_map(|(at, value)| Deed::Index(at, value)),
        Just(Deed::Message),
        Just(Deed::Answer),
    ]
}

proptest! {
    /// Whatever a guest writes, a look does bounded work and answers no more than there are slots.
    #[test]
    fn any_guest(deeds in prop::collection::vec(deed(), 0..200), most in 1usize..10) {
        let (page, mut rings) = (Page::new(), Rings::default());
        for deed in deeds {
            match deed {
                Deed::Byte(at, byte) => page.write(at, &[byte]),
                Deed::Index(at, value) => page.store(at, value),
                Deed::Message => page.put(CONSOLE, 0, b"text"),
                Deed::Answer => drop(page.take()),
            }
            let mut looks = 0;
            rings.poll(&page, most, |message| {
                looks += 1;
                nothing(message)
            });
            prop_assert!(looks <= most.min(8));
            rings.queue(ControlMsg::default());
            let mut answers = 0;
            rings.exchange(&page, |_| answers += 1);
            prop_assert!(answers <= 8 && rings.waiting.len() <= MOST_WAITING && rings.free_slots() <= 8);
        }
    }
}
