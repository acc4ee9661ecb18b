//! The other domain, and what domain 0 does to it: peeks, pokes, and watches what it writes.

use crate::ports::{self, Ports, configuration};
use crate::{NOBODY, SUBJECT, ask};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::dom0_ops::Dom0Op;
use proxenos_guest::abi::dom0_ops::args::{
    DebugOp, DomainFlags, GetDomainInfo, SchedId, ShadowControl, ShadowControlOp,
};
use proxenos_guest::abi::zerocopy::IntoBytes;
use proxenos_guest::abi::{DomId, Errno, GuestVirt, GuestWord, Padded, Port, Virq};
use proxenos_guest::memory;
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check, check_eq, events, hypercall, time};

/// What stands at the beginning of the subject's page.
const MAGIC: u64 = 0x5ab1_ec75_0a9e_1234;
/// Words of the page, by their offsets: what is poked, what it was when the last event came, and how often the subject
/// went round.
const POKED: u64 = 8;
const SEEN: u64 = 16;
const ROUNDS: u64 = 24;
/// The seconds of the date that it is shown.
const DATE: u64 = 32;
/// Commands of `dom0_op`, and some past the last.
const COMMANDS: u32 = 64;

/// Values of [`POKED`]: what the subject is to do. By any other it waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Wish {
    /// Goes round without waiting.
    Busy = 0xb054,
    /// Does so, and has the machine audited each time.
    Audits = 0xa0d1,
    /// Tries ports when the next event comes: it has none, or those of a device, or all.
    NoPorts = 0x9000,
    PortsOfDevice = 0x9001,
    AllPorts = 0x9002,
    /// Ends when the next event comes.
    End = 0xe7d,
}
/// Where programs of this SDK begin, of one architecture and of the other.
const BASES: [u64; 2] = [0x40_0000, 0xc000_0000];
/// Pages that the subject has.
const PAGES: u64 = 2048;

static RECEIVED: AtomicU32 = AtomicU32::new(0);

fn received() -> u32 {
    RECEIVED.load(Ordering::Relaxed)
}

fn count(_: Port) {
    RECEIVED.store(received() + 1, Ordering::Relaxed);
}

/// Whatever it asks for is refused, before it is looked at, and the request stays as it is.
fn refused() {
    for cmd in (0..COMMANDS).chain([u32::MAX]) {
        for interface_version in [0xaaaa_0019, 0xaaaa_001a, 0] {
            for domain in [0_u32, 1, 0x7ff0, 77] {
                let mut op = Dom0Op { cmd, interface_version, ..Dom0Op::new(SchedId { sched_id: domain }) };
                let before = op;
                // SAFETY: it is refused.
                let result = unsafe { hypercall::dom0_op(&mut op) };
                check_eq!(result, Err(Errno::EPERM), "command {cmd}, version {interface_version:#x}, domain {domain}");
                check!(op.as_bytes() == before.as_bytes(), "command {cmd}");
            }
        }
    }
}

/// The subject: answers events.
pub fn run() {
    section("the subject");
    refused();
    check_eq!(configuration(0, 0, 0), Err(Errno::EPERM), "it has no device yet");
    check!(!ports::flushes_caches());
    let page = memory::alloc_frame().expect("memory").virt().raw() as usize;
    // SAFETY: words of a frame of our own, which is mapped for good.
    let word = |offset: u64| unsafe { &*((page + offset as usize) as *const AtomicU32) };
    word(4).store((MAGIC >> 32) as u32, Ordering::SeqCst);
    word(0).store(MAGIC as u32, Ordering::SeqCst);
    let port = Port(1);
    events::set_handler(port, count);
    events::unmask(port);
    let (mut answered, mut last) = (0, 0);
    loop {
        // Whichever CPU it is moved to.
        let now = time::system_time();
        if now < last {
            check!(false, "time went back from {last} to {now}");
        }
        last = now;
        let poked = word(POKED).load(Ordering::SeqCst);
        word(ROUNDS).fetch_add(1, Ordering::SeqCst);
        word(DATE).store(time::wall_clock().seconds, Ordering::SeqCst);
        if poked == Wish::Audits as u32 {
            check_eq!(hypercall::audit(), Ok(()));
        }
        if poked != Wish::Busy as u32 && poked != Wish::Audits as u32 {
            events::wait_until(|| received() > answered);
        } else if received() == answered {
            continue;
        }
        let poked = word(POKED).load(Ordering::SeqCst);
        word(SEEN).store(poked, Ordering::SeqCst);
        word(DATE).store(time::wall_clock().seconds, Ordering::SeqCst);
        for (wish, has) in
            [(Wish::NoPorts, Ports::None), (Wish::PortsOfDevice, Ports::OfDevice), (Wish::AllPorts, Ports::All)]
        {
            if poked == wish as u32 {
                ports::look(has);
            }
        }
        answered += 1;
        check_eq!(events::send(port), Ok(()));
        if poked == Wish::End as u32 {
            check!(configuration(0, 0, 0).is_ok(), "the device that it was given");
            check!(ports::flushes_caches(), "which goes with devices");
            check_eq!(configuration(1, 0, 0), Err(Errno::EPERM), "another one");
            return;
        }
    }
}

/// The other domain, as domain 0 knows it.
pub struct Subject {
    page: u64,
    base: u64,
    port: Port,
}

/// A debugger's request: the status, and what it gave.
fn debug(opcode: u8, at: u64, in2: u32, in3: u32) -> (u32, u64) {
    let request =
        DebugOp { domain: SUBJECT, opcode, in1: at as u32, in2, in3, in4: (at >> 32) as u32, ..DebugOp::default() };
    let (result, answer) = ask(request);
    check_eq!(result, Ok(0));
    (answer.status, u64::from(answer.out2) << 32 | u64::from(answer.out1))
}

impl Subject {
    /// Finds the subject's page, once it is there, and connects to it.
    pub fn meet() -> Self {
        section("the other domain");
        let (port, _) = events::bind_interdomain(DomId::SELF, SUBJECT).expect("domain 0 may");
        events::set_handler(port, count);
        events::unmask(port);
        loop {
            for base in BASES {
                let found = (0..PAGES).map(|page| base + 4096 * page).find(|&at| debug(b'r', at, 8, 0) == (0, MAGIC));
                if let Some(page) = found {
                    return Self { page, base, port };
                }
            }
        }
    }

    fn peek(&self, offset: u64) -> u32 {
        let (status, value) = debug(b'r', self.page + offset, 4, 0);
        check_eq!(status, 0, "peek at {offset}");
        value as u32
    }

    fn poke(&self, offset: u64, value: u32) {
        check_eq!(debug(b'w', self.page + offset, 4, value).0, 0, "poke at {offset}");
    }

    /// An event there and back.
    pub fn exchange(&self) {
        let before = received();
        check_eq!(events::send(self.port), Ok(()));
        events::wait_until(|| received() > before);
        check_eq!(received(), before + 1);
    }

    /// The same, until the subject waits again: on another CPU it may still be writing when its answer is here.
    fn exchange_and_wait(&self) {
        self.exchange();
        let asked = GetDomainInfo::<Arch> { domain: SUBJECT, ..GetDomainInfo::default() };
        while !DomainFlags::from_bits_retain(ask(asked).1.flags).contains(DomainFlags::BLOCKED) {
            check_eq!(hypercall::sched_yield(), Ok(()));
        }
    }

    /// An event there and back, while domain 0 computes: how long that takes, in nanoseconds.
    pub fn answer_while_busy(&self) -> u64 {
        let (before, from) = (received(), time::system_time());
        check_eq!(events::send(self.port), Ok(()));
        while received() == before {
            core::hint::spin_loop();
        }
        time::system_time() - from
    }

    /// From now on it goes round and round, or waits.
    pub fn keep_busy(&self, busy: bool) {
        self.poke(POKED, if busy { Wish::Busy as u32 } else { 0 });
        self.exchange();
    }

    /// From now on it does this.
    pub fn wish(&self, wish: Wish) {
        self.poke(POKED, wish as u32);
        self.exchange();
    }

    /// It tries ports, once.
    pub fn try_ports(&self, wish: Wish) {
        self.wish(wish);
        self.keep_busy(false);
    }

    /// The seconds of the date that it was shown last.
    pub fn date(&self) -> u32 {
        self.peek(DATE)
    }

    /// Something becomes true, within a while in which others run.
    pub fn eventually(&self, mut what: impl FnMut() -> bool) -> bool {
        let until = time::system_time() + 2_000_000_000;
        while time::system_time() < until {
            if what() {
                return true;
            }
            check_eq!(hypercall::sched_yield(), Ok(()));
        }
        false
    }

    /// How often it went round.
    pub fn rounds(&self) -> u32 {
        self.peek(ROUNDS)
    }

    /// Whether it goes round, within a while.
    pub fn gets_on(&self) -> bool {
        let (before, until) = (self.rounds(), time::system_time() + 2_000_000_000);
        while time::system_time() < until {
            if self.rounds() != before {
                return true;
            }
            // Where there is one CPU, it needs that.
            check_eq!(hypercall::sched_yield(), Ok(()));
        }
        false
    }

    /// What a debugger does.
    pub fn debug(&self) {
        section("peek and poke");
        for value in [1, 0x8765_4321] {
            self.poke(POKED, value);
            self.exchange();
            check_eq!(self.peek(SEEN), value, "the subject has seen it");
        }
        check_eq!(debug(b'r', self.page, 4096, 0).1, MAGIC);
        check_eq!(debug(b'r', 0x1000, 4, 0).0, 4, "no memory there");
        check_eq!(debug(b'x', 0, 0, 0).0, 3, "no such request");
        check_eq!(ask(DebugOp { domain: NOBODY, opcode: b'r', ..DebugOp::default() }).1.status, 2);
        check_eq!(ask(DebugOp { domain: DomId::DOM0, opcode: b's', ..DebugOp::default() }).1.status, 1);
        self.keep_busy(true);
        check!(self.gets_on());
        check_eq!(debug(b's', 0, 0, 0).0, 0);
        let (rounds, ip) = (self.rounds(), debug(b'g', 16, 0, 0));
        check!((self.base..self.base + 4096 * PAGES).contains(&ip.1), "it stands at {:#x}", ip.1);
        let until = time::system_time() + 30_000_000;
        while time::system_time() < until {
            check_eq!(hypercall::sched_yield(), Ok(()));
        }
        check_eq!((self.rounds(), debug(b'g', 16, 0, 0)), (rounds, ip), "it stands still");
        check_eq!(debug(b'c', 0, 0, 0).0, 0);
        check!(self.gets_on());
        self.keep_busy(false);
    }

    /// What it writes is recorded.
    pub fn shadows(&self) {
        section("what the subject writes");
        let mut bitmap = [0_u32; 64];
        let mut control = |op: ShadowControlOp| {
            let at = Padded::new(bitmap.as_mut_ptr() as Word);
            let pages = Padded::new(Word::from_u64_truncating(PAGES));
            let request = ShadowControl::<Arch> {
                domain: SUBJECT,
                op: op.raw(),
                dirty_bitmap: at,
                pages,
                ..ShadowControl::<Arch>::default()
            };
            let (result, answer) = ask(request);
            let page = ((self.page - self.base) / 4096) as usize;
            let stats = answer.stats;
            (result, bitmap[page / 32] >> (page % 32) & 1 != 0, stats.dirty_count)
        };
        use ShadowControlOp::*;
        check_eq!(control(Peek).0, Err(Errno::EINVAL), "it is not watched");
        for round in 0..3 {
            self.exchange_and_wait();
            check_eq!(control(EnableLogdirty).0, Ok(0), "round {round}");
            check!(!control(Peek).1);
            self.exchange_and_wait();
            let (result, is_dirty, count) = control(Peek);
            check_eq!((result, is_dirty), (Ok(0), true), "its page is recorded");
            check!(count > 0);
            check!(control(Clean).1);
            check!(!control(Peek).1, "read away");
            self.exchange();
            check!(control(Clean).1, "and recorded again");
            check_eq!(control(Flush).0, Ok(0));
            self.exchange();
            check!(control(Peek).1);
            self.keep_busy(true);
            check_eq!(control(Clean).0, Ok(0), "while it runs");
            check!(self.gets_on());
            check!(control(Clean).1);
            check_eq!(control(Off).0, Ok(0));
            self.keep_busy(false);
        }
        check_eq!(control(EnableTest).0, Ok(0));
        self.exchange();
        check_eq!(control(Off).0, Ok(0));
        self.exchange();
    }

    /// Lets it end.
    pub fn dismiss(self) {
        static ENDED: AtomicU32 = AtomicU32::new(0);
        events::handle_virq(Virq::DomExc, |_| ENDED.store(1, Ordering::Relaxed)).expect("domain 0 may");
        self.poke(POKED, Wish::End as u32);
        check_eq!(events::send(self.port), Ok(()));
        events::wait_until(|| ENDED.load(Ordering::Relaxed) != 0);
        let _ = GuestVirt(self.page);
    }
}
