//! Two domains on two CPUs: what one has in its TLB when another takes the frame for something else, events and sleep
//! across CPUs, and time.
//!
//! The same program is both domains. Domain 1 ([`peer`]) leaves a page that names itself and its frames ([`letter`]);
//! domain 0, which may map any domain's frames, looks for that page and tells it what to do.
#![no_std]
#![no_main]

mod letter;
mod peer;

use core::sync::atomic::{AtomicU32, Ordering};
use letter::{Field, Letter, Task};
use proxenos_guest::abi::event_channel::EvtchnBindInterdomain;
use proxenos_guest::abi::mmu::{MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::{DomId, Errno, Mfn, Port, Virq};
use proxenos_guest::arch::read_tsc;
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, boot, check, check_eq, events, hypercall, probe};

proxenos_guest::test_guest!(main);

/// The other domain.
const PEER: DomId = DomId(1);
/// How often each thing is tried.
const ROUNDS: u32 = 12;
const EVENTS: u32 = 30;
const MESSAGES: u32 = 20;
/// Looks at a frame that must not change.
const LOOKS: u32 = 2_000;

fn main(_: &StartInfo) {
    proxenos_guest::init();
    if !boot::is_initial_domain() {
        peer::run();
    }
    let window = frame();
    let letter = find(window);
    stale_writers(letter);
    stale_readers(letter);
    wakeups(letter);
    clocks(letter);
    contention(letter);
    the_end(letter);
}

/// A fresh frame.
pub fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

/// Maps a frame of the other domain's in place of one of ours.
fn map_theirs(window: Frame, theirs: Mfn, flags: PteFlags) -> Result<(), Errno> {
    let entry = Pte::new(theirs, flags);
    // SAFETY: no reference is held to the page.
    unsafe { hypercall::update_va_mapping_otherdomain(window.virt(), entry, UpdateVaFlags::INVLPG, PEER) }
}

/// Looks for the other domain's letter, frame by frame. It may not be written yet.
fn find(window: Frame) -> Letter {
    section("the other domain");
    const LAST: u64 = 1 << 16;
    loop {
        for theirs in (256..LAST).map(Mfn) {
            if map_theirs(window, theirs, PteFlags::KERNEL_RO).is_err() || !Letter::at(window.virt()).is_of(theirs) {
                continue;
            }
            check_eq!(map_theirs(window, theirs, PteFlags::KERNEL_RW), Ok(()));
            return Letter::at(window.virt());
        }
    }
}

/// A frame of the other domain's is made a page table, while the other CPU still writes to it by a translation of old.
fn stale_writers(letter: Letter) {
    section("a frame that becomes a page table while another CPU writes to it");
    let window = frame();
    let target = Mfn(letter.get(Field::Target).into());
    check_eq!(map_theirs(window, target, PteFlags::KERNEL_RO), Ok(()));
    let of_peer = memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(PEER.0) << 8);
    let request = |command| [of_peer, memory::extended(command, target.addr().raw(), 0)];
    let mut caught = 0;
    for round in 0..ROUNDS {
        let faults = letter.get(Field::Faults);
        letter.set(Field::Count, 0);
        letter.begin(Task::WriteStale);
        // It has let go of the page, and writes on, unless its CPU has forgotten the translation by itself.
        letter.wait_for(|letter| letter.get(Field::Count) > 100 || letter.get(Field::Faults) != faults);
        let still_writes = letter.get(Field::Faults) == faults;
        // SAFETY: a frame that no code of ours depends on.
        check_eq!(unsafe { hypercall::mmu_update(&request(MmuExtCommand::PinL1Table)) }, Ok(2), "round {round}");
        let first = probe::load(window.virt());
        check!(first.is_some());
        let changed = (0..LOOKS).find(|_| probe::load(window.virt()) != first);
        check!(changed.is_none(), "round {round}: a page table was written to");
        letter.wait_for(|letter| letter.get(Field::Faults) != faults);
        letter.finish();
        // SAFETY: as above.
        check_eq!(unsafe { hypercall::mmu_update(&request(MmuExtCommand::UnpinTable)) }, Ok(2));
        caught += u32::from(still_writes);
        if round % 6 == 0 {
            check_eq!(hypercall::audit(), Ok(()));
        }
    }
    check!(caught > 0, "no translation was stale, so nothing was tried");
    check_eq!(map_theirs(window, Mfn(letter.get(Field::Letter).into()), PteFlags::KERNEL_RO), Ok(()));
}

/// A frame of the other domain's is freed and given out anew there, while this CPU still has a translation of old.
fn stale_readers(letter: Letter) {
    section("a frame that is freed while another CPU has it in its TLB");
    let window = frame();
    let mut reused = 0;
    for round in 0..ROUNDS {
        letter.begin(Task::Offer);
        letter.finish();
        let offered = Mfn(letter.get(Field::Offered).into());
        check_eq!(map_theirs(window, offered, PteFlags::KERNEL_RO), Ok(()));
        check!(probe::is_readable(window.virt()));
        // Not flushed: from here on the translation is stale, if it lasts.
        // SAFETY: no reference is held to the page.
        let unmapped = unsafe { hypercall::update_va_mapping(window.virt(), Pte::NONE, UpdateVaFlags::empty()) };
        check_eq!(unmapped, Ok(()));
        letter.begin(Task::Exchange);
        letter.finish();
        if letter.get(Field::Offered) == offered.raw() as u32 {
            reused += 1;
            check!(!probe::is_readable(window.virt()), "round {round}: a frame was given out that this CPU could read");
        }
    }
    check!(reused > 0, "no frame was given out anew, so nothing was tried");
}

/// How many events have come.
static CAME: AtomicU32 = AtomicU32::new(0);

fn count(_: Port) {
    CAME.fetch_add(1, Ordering::SeqCst);
}

/// Each domain sleeps until the other's event wakes it.
fn wakeups(letter: Letter) {
    section("events that wake a domain on another CPU");
    let request = EvtchnBindInterdomain { dom1: DomId::SELF, dom2: PEER, port1: Port(0), port2: Port(0) };
    let bound = hypercall::event_channel_op(request).expect("domain 0 may connect any two");
    events::set_handler(bound.port1, count);
    events::unmask(bound.port1);
    letter.set(Field::Port, bound.port2.raw());
    letter.set(Field::Count, EVENTS);
    letter.begin(Task::Answer);
    for sent in 0..EVENTS {
        check_eq!(events::send(bound.port1), Ok(()));
        events::wait_until(|| CAME.load(Ordering::SeqCst) > sent);
    }
    letter.finish();
    check_eq!(CAME.load(Ordering::SeqCst), EVENTS, "an answer for each");
    check_eq!(events::close(bound.port1), Ok(()));
}

/// Time does not go back from one CPU to the other, whichever way a message goes.
fn clocks(letter: Letter) {
    section("time on two CPUs");
    letter.set(Field::Count, MESSAGES);
    letter.begin(Task::TellTime);
    for message in 0..MESSAGES {
        letter.set_time(read_tsc(), proxenos_guest::time::system_time());
        letter.set(Field::Turn, 1);
        letter.wait_for(|letter| letter.get(Field::Turn) == 0);
        check!(letter.is_past(read_tsc(), proxenos_guest::time::system_time()), "message {message}");
    }
    letter.finish();
    check_eq!(letter.get(Field::Errors), 0, "messages from the future, to the other");
}

/// Both CPUs work on the page tables of one domain, and the machine is audited meanwhile.
fn contention(letter: Letter) {
    section("two CPUs at the page tables of one domain");
    let spare = Mfn(letter.get(Field::Spare).into());
    let of_peer = memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(PEER.0) << 8);
    letter.begin(Task::Remap);
    for round in 0..10 * ROUNDS {
        let pin = memory::extended(MmuExtCommand::PinL1Table, spare.addr().raw(), 0);
        let unpin = memory::extended(MmuExtCommand::UnpinTable, spare.addr().raw(), 0);
        // SAFETY: a frame that nothing depends on.
        check_eq!(unsafe { hypercall::mmu_update(&[of_peer, pin, unpin]) }, Ok(3), "round {round}");
        if round % 40 == 0 {
            check_eq!(hypercall::audit(), Ok(()));
        }
    }
    letter.set(Field::Turn, 1);
    letter.finish();
    check_eq!(letter.get(Field::Errors), 0, "updates that were refused");
    check!(letter.get(Field::Count) > 0, "nothing happened meanwhile");
}

/// The other domain ends, on its own CPU.
fn the_end(letter: Letter) {
    section("an end on another CPU");
    static ENDED: AtomicU32 = AtomicU32::new(0);
    let bound = events::handle_virq(Virq::DomExc, |_| {
        ENDED.fetch_add(1, Ordering::SeqCst);
    });
    check!(bound.is_ok());
    letter.begin(Task::End);
    events::wait_until(|| ENDED.load(Ordering::SeqCst) != 0);
    check_eq!(hypercall::audit(), Ok(()));
}
