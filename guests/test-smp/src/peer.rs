//! Domain 1: does what domain 0 asks for.

use crate::frame;
use crate::letter::{Field, Letter, Task};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{DomId, GuestVirt, GuestWord, Mfn, Port, hypercall::DomMemOp};
use proxenos_guest::arch::read_tsc;
use proxenos_guest::memory::{Frame, remap};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Word, events, hypercall, probe, shutdown, time};

/// Its frames.
struct Peer {
    letter: Letter,
    target: Frame,
    offered: Frame,
    /// What is mapped in place of `offered`.
    offered_mfn: Mfn,
    here: Frame,
}

/// Never ends but by shutting down.
pub fn run() -> ! {
    let page = frame();
    let letter = Letter::at(page.virt());
    let (target, spare, offered, here) = (frame(), frame(), frame(), frame());
    // SAFETY: nothing refers to the frame.
    unsafe { remap(spare, PteFlags::KERNEL_RO) }.expect("one's own frame may be read");
    letter.set(Field::Target, target.mfn().raw() as u32);
    letter.set(Field::Spare, spare.mfn().raw() as u32);
    letter.sign(page.mfn());
    let mut peer = Peer { letter, target, offered, offered_mfn: offered.mfn(), here };
    loop {
        letter.wait_for(|letter| letter.get(Field::Task) != 0);
        let task = letter.get(Field::Task);
        letter.set(Field::Task, 0);
        match task {
            task if task == Task::WriteStale as u32 => peer.write_stale(),
            task if task == Task::Offer as u32 => letter.set(Field::Offered, peer.offered_mfn.raw() as u32),
            task if task == Task::Exchange as u32 => peer.exchange(),
            task if task == Task::Answer as u32 => peer.answer(),
            task if task == Task::TellTime as u32 => peer.tell_time(),
            task if task == Task::Remap as u32 => peer.remap(),
            _ => shutdown::shutdown(shutdown::POWEROFF),
        }
        letter.set(Field::Done, 1);
    }
}

fn map(at: GuestVirt, entry: Pte, flags: UpdateVaFlags) -> bool {
    // SAFETY: pages that no reference is held to.
    unsafe { hypercall::update_va_mapping(at, entry, flags) }.is_ok()
}

impl Peer {
    fn error(&self) {
        self.letter.set(Field::Errors, self.letter.get(Field::Errors) + 1);
    }

    fn write_stale(&self) {
        let (at, letter) = (self.target.virt(), self.letter);
        letter.set(Field::Count, 0);
        if !map(at, Pte::new(self.target.mfn(), PteFlags::KERNEL_RW), UpdateVaFlags::INVLPG) {
            self.error();
        }
        // What is written is no page-table entry that is present.
        let write = |value: u32| {
            // SAFETY: a page that nothing depends on.
            unsafe { probe::store(at, (2 * value) as Word) }
        };
        if !write(0) || !map(at, Pte::NONE, UpdateVaFlags::empty()) {
            self.error();
        }
        let mut count = 0;
        while write(count) {
            count += 1;
            letter.set(Field::Count, count);
        }
        letter.set(Field::Faults, letter.get(Field::Faults) + 1);
    }

    /// Gives a frame back and asks for one, which most likely is the same.
    fn exchange(&mut self) {
        let at = self.offered.virt();
        let mut list = [self.offered_mfn.raw() as Word];
        let mut ask = |op| {
            // SAFETY: the frame is mapped nowhere any more.
            unsafe { hypercall::dom_mem_op(op, &mut list, 0, DomId::SELF) }
        };
        let done = map(at, Pte::NONE, UpdateVaFlags::INVLPG)
            && ask(DomMemOp::DecreaseReservation) == Ok(1)
            && ask(DomMemOp::IncreaseReservation) == Ok(1);
        self.offered_mfn = Mfn(list[0].to_u64());
        if !done || !map(at, Pte::new(self.offered_mfn, PteFlags::KERNEL_RW), UpdateVaFlags::INVLPG) {
            self.error();
        }
        self.letter.set(Field::Offered, self.offered_mfn.raw() as u32);
    }

    /// Sleeps until an event comes, and sends one back.
    fn answer(&self) {
        static CAME: AtomicU32 = AtomicU32::new(0);
        let port = Port(self.letter.get(Field::Port));
        events::set_handler(port, |_| {
            CAME.fetch_add(1, Ordering::SeqCst);
        });
        events::unmask(port);
        for answered in 0..self.letter.get(Field::Count) {
            events::wait_until(|| CAME.load(Ordering::SeqCst) > answered);
            if events::send(port).is_err() {
                self.error();
            }
        }
    }

    fn tell_time(&self) {
        let letter = self.letter;
        for _ in 0..letter.get(Field::Count) {
            letter.wait_for(|letter| letter.get(Field::Turn) == 1);
            if !letter.is_past(read_tsc(), time::system_time()) {
                self.error();
            }
            letter.set_time(read_tsc(), time::system_time());
            letter.set(Field::Turn, 0);
        }
    }

    fn remap(&self) {
        let letter = self.letter;
        let mut count = 0;
        letter.set(Field::Count, 0);
        while letter.get(Field::Turn) == 0 {
            for flags in [PteFlags::KERNEL_RO, PteFlags::KERNEL_RW] {
                if !map(self.here.virt(), Pte::new(self.here.mfn(), flags), UpdateVaFlags::INVLPG) {
                    self.error();
                }
            }
            count += 1;
            letter.set(Field::Count, count);
        }
        letter.set(Field::Turn, 0);
    }
}
