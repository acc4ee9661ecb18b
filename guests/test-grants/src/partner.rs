//! What a domain can be asked to do with grants, of its own or of others': by itself if it is domain 0, which asks, or
//! through a page that it has granted to domain 0.

use crate::{call, frame, map, set_up};
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use proxenos_guest::abi::arch::Padded;
use proxenos_guest::abi::grant_table::{GrantFlags, GrantMapFlags, GrantTableCommand, MapGrantRef, UnmapGrantRef};
use proxenos_guest::abi::hypercall::DomMemOp;
use proxenos_guest::abi::mmu::MmuUpdate;
use proxenos_guest::abi::{DomId, Errno, GrantRef, GuestVirt, GuestWord, MachineAddr, Mfn};
use proxenos_guest::arch::LEVEL_BITS;
use proxenos_guest::memory::{self, Frame, Range, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::shutdown::{Reason, shutdown};
use proxenos_guest::{Arch, Word, check_eq, hypercall, probe};

/// The grant of the page that domain 0 asks through.
const MAILBOX: u16 = 511;
/// Why a partner shuts down.
const REASON: Reason = Reason(4);

/// What can be asked; the arguments, and what is answered. A page is named by its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Request {
    /// A page of its own: its address, and its frame.
    Fresh,
    /// Grant, flags, domain, frame: writes the entry.
    Grant,
    /// Grant: the entry's flags, and its frame.
    Look,
    /// Grant: withdraws it as the header says; 1 if that could be done.
    Withdraw,
    /// Page: its first word, or -1.
    Load,
    /// Page, value: 1 if that could be written.
    Store,
    /// Page, frame, flags of the page-table entry: maps it, by `update_va_mapping`.
    Remap,
    /// Page, frame, flags of the page-table entry: the same by `mmu_update`.
    Rewrite,
    /// Page: the flags of its entry.
    EntryFlags,
    /// Level, frame: makes it a table.
    Pin,
    /// Frame: undoes that.
    Unpin,
    /// Frame: gives it back; how many went.
    GiveBack,
    /// Page, domain, grant, flags: maps a grant; its handle, and the address for devices.
    Map,
    /// Address, address for devices, handle: unmaps it; the status.
    Unmap,
    /// Frame, domain, grant: gives it away.
    Transfer,
    /// Frame: what the machine-to-physical table says of it.
    PfnOf,
    /// Nothing: the address of a page in a range with a page table of its own, and how many bytes that spans. Behind it
    /// is nothing.
    Range,
    /// Page, another that is as far into its range, or 0: hangs the first one's page table in there instead, or
    /// nowhere.
    Move,
    /// Nothing: shuts down.
    End,
}

impl Request {
    const ALL: [Self; 19] = [
        Self::Fresh,
        Self::Grant,
        Self::Look,
        Self::Withdraw,
        Self::Load,
        Self::Store,
        Self::Remap,
        Self::Rewrite,
        Self::EntryFlags,
        Self::Pin,
        Self::Unpin,
        Self::GiveBack,
        Self::Map,
        Self::Unmap,
        Self::Transfer,
        Self::PfnOf,
        Self::Range,
        Self::Move,
        Self::End,
    ];
}

/// A request on its way, or its answer.
#[repr(C)]
struct Mailbox {
    asked: AtomicU32,
    answered: AtomicU32,
    request: AtomicU32,
    values: [[AtomicU32; 2]; 4],
}

impl Mailbox {
    fn put<const N: usize>(&self, values: [u64; N]) {
        for (to, value) in self.values.iter().zip(values) {
            to[0].store(value as u32, Ordering::Relaxed);
            to[1].store((value >> 32) as u32, Ordering::Relaxed);
        }
    }

    fn get(&self, index: usize) -> u64 {
        let [low, high] = &self.values[index];
        u64::from(low.load(Ordering::Relaxed)) | u64::from(high.load(Ordering::Relaxed)) << 32
    }
}

/// A domain that can be asked.
#[derive(Clone, Copy)]
pub struct Partner {
    /// Its number.
    pub domain: DomId,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    /// This domain, whose table is mapped there.
    Own(Frame),
    /// Another one.
    Mailbox(&'static Mailbox),
}

impl Partner {
    /// Domain 0 itself.
    pub fn own() -> Self {
        Self { domain: DomId::DOM0, way: Way::Own(table()) }
    }

    /// Another domain, as soon as it has granted a page to be asked through.
    pub fn meet(domain: DomId) -> Self {
        let page = frame();
        check_eq!(map(page.virt(), Pte::NONE), Ok(()));
        let arguments = [page.virt().raw(), domain.raw().into(), MAILBOX.into(), GrantMapFlags::HOST_MAP.bits().into()];
        while map_grant(arguments).0 < 0 {
            check_eq!(hypercall::sched_yield(), Ok(()));
        }
        Self { domain, way: Way::Mailbox(mailbox(page)) }
    }

    /// Asks for something.
    pub fn ask<const N: usize>(&self, request: Request, arguments: [u64; N]) -> (i64, u64) {
        let mut all = [0; 4];
        all[..N].copy_from_slice(&arguments);
        match self.way {
            Way::Own(table) => perform(table, request, all),
            Way::Mailbox(mailbox) => {
                let turn = send(mailbox, request, all);
                while mailbox.answered.load(Ordering::Acquire) != turn {
                    check_yield();
                }
                (mailbox.get(0) as i64, mailbox.get(1))
            }
        }
    }

    /// Asks it to end, which it does not answer.
    pub fn end(&self) {
        if let Way::Mailbox(mailbox) = self.way {
            send(mailbox, Request::End, [0; 4]);
        }
    }
}

fn send(mailbox: &Mailbox, request: Request, arguments: [u64; 4]) -> u32 {
    mailbox.put(arguments);
    mailbox.request.store(request as u32, Ordering::Relaxed);
    let turn = mailbox.asked.load(Ordering::Relaxed).wrapping_add(1);
    mailbox.asked.store(turn, Ordering::Release);
    turn
}

fn check_yield() {
    hypercall::sched_yield().expect("a guest may yield");
}

fn mailbox(page: Frame) -> &'static Mailbox {
    // SAFETY: a page that is for nothing else, of which all is atomic, and any bytes do.
    unsafe { &*page.words().cast::<Mailbox>() }
}

/// This domain's table, mapped.
fn table() -> Frame {
    let (status, list) = set_up(DomId::SELF, 1);
    check_eq!(status, 0);
    let place = frame();
    check_eq!(map(place.virt(), Pte::new(Mfn(list[0].to_u64()), PteFlags::KERNEL_RW)), Ok(()));
    place
}

/// Another domain: does what domain 0 asks.
pub fn serve() {
    let (table, page) = (table(), frame());
    let access = GrantFlags::PERMIT_ACCESS.bits().into();
    perform(table, Request::Grant, [MAILBOX.into(), access, DomId::DOM0.raw().into(), page.mfn().raw()]);
    let mailbox = mailbox(page);
    loop {
        let turn = mailbox.asked.load(Ordering::Acquire);
        if turn == mailbox.answered.load(Ordering::Relaxed) {
            check_yield();
            continue;
        }
        let number = mailbox.request.load(Ordering::Relaxed) as usize;
        let (first, second) = perform(table, Request::ALL[number], [0, 1, 2, 3].map(|index| mailbox.get(index)));
        mailbox.put([first as u64, second]);
        mailbox.answered.store(turn, Ordering::Release);
    }
}

fn code(result: Result<(), Errno>) -> (i64, u64) {
    (result.map_or_else(|errno| -i64::from(errno.raw()), |()| 0), 0)
}

fn perform(table: Frame, request: Request, arguments: [u64; 4]) -> (i64, u64) {
    let [first, second, third, fourth] = arguments;
    let at = GuestVirt(first);
    // Whether a kernel's pages are for ring 3 too depends on whose kernel it is.
    let entry = || {
        let flags = PteFlags::from_bits_truncate(third as u32).difference(PteFlags::USER);
        let own = if flags.is_empty() { flags } else { PteFlags::KERNEL_RO.intersection(PteFlags::USER) };
        Pte::new(Mfn(second), flags | own)
    };
    // SAFETY: the table is mapped there, a grant's number is less than 512, and everybody uses atomics.
    let words = unsafe {
        let flags = table.words().cast::<[AtomicU32; 2]>().add(first as usize % 512);
        &*flags
    };
    match request {
        Request::Fresh => {
            let page = frame();
            (page.virt().raw() as i64, page.mfn().raw())
        }
        Request::Grant => {
            words[1].store(fourth as u32, Ordering::Relaxed);
            words[0].store(second as u32 | (third as u32) << 16, Ordering::Release);
            (0, 0)
        }
        Request::Look => {
            let (flags, frame) = (words[0].load(Ordering::Acquire), words[1].load(Ordering::Relaxed));
            (i64::from(flags & 0xffff), frame.into())
        }
        Request::Withdraw => {
            // SAFETY: the flags are the lower half of the word, which nobody refers to meanwhile.
            let flags = unsafe { AtomicU16::from_ptr(words[0].as_ptr().cast()) };
            let seen = flags.load(Ordering::Relaxed);
            let in_use = GrantFlags::from_bits_retain(seen).intersects(GrantFlags::READING | GrantFlags::WRITING);
            let withdrawn = !in_use && flags.compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok();
            (withdrawn.into(), 0)
        }
        Request::Load => (probe::load(at).map_or(-1, |word| word.to_u64() as i64), 0),
        // SAFETY: a page that is for nothing else.
        Request::Store => (unsafe { probe::store(at, second as Word) }.into(), 0),
        Request::Remap => code(map(at, entry())),
        Request::Rewrite => {
            let (place, _) = memory::entry_of(at).expect("a page of this domain's numbering");
            // SAFETY: a page that is for nothing else.
            let result = unsafe { memory::write_entry(place, entry()) };
            code(result.and(memory::flush_tlb()))
        }
        Request::EntryFlags => (memory::pte_of(at).map_or(0, |entry| entry.flags().bits().into()), 0),
        Request::Pin => code(memory::pin(first as u32, Mfn(second))),
        Request::Unpin => code(memory::unpin(Mfn(first))),
        Request::GiveBack => {
            let mut extent = [first as Word];
            // SAFETY: a frame that is for nothing else.
            let given = unsafe { hypercall::dom_mem_op(DomMemOp::DecreaseReservation, &mut extent, 0, DomId::SELF) };
            (given.map_or(-1, |count| count as i64), 0)
        }
        Request::Map => map_grant(arguments),
        Request::Unmap => {
            let address = |raw| Padded::from_u64(raw).expect("an address of its architecture");
            let (host_virt_addr, dev_bus_addr) = (address(first), address(second));
            let mut op = [UnmapGrantRef::<Arch> {
                host_virt_addr,
                dev_bus_addr,
                handle: third as u16,
                status: 77,
                ..UnmapGrantRef::default()
            }];
            check_eq!(call(GrantTableCommand::UnmapGrantRef, &mut op), Ok(0));
            (op[0].status.into(), 0)
        }
        Request::Transfer => {
            let (frame, to, grant) = (MachineAddr(first << 12), DomId(second as u16), GrantRef(third as u16));
            let request = MmuUpdate::<Arch>::transfer_page(frame, to, grant).expect("a frame of its architecture");
            // SAFETY: a frame that is for nothing else.
            code(unsafe { memory::update(request) })
        }
        Request::PfnOf => (memory::machine_to_phys(Mfn(first)).map_or(-1, |word| word.to_u64() as i64), 0),
        Request::Range => {
            static RANGES: AtomicU32 = AtomicU32::new(0);
            let number = RANGES.load(Ordering::Relaxed);
            RANGES.store(number + 2, Ordering::Relaxed);
            (Range::new(number.into()).page(7).raw() as i64, 1 << (12 + LEVEL_BITS))
        }
        Request::Move => {
            let above = |at: u64| tables::entry_at(GuestVirt(at), 2).expect("a range of this domain's");
            let (from, entry) = above(first);
            // SAFETY: ranges that are for nothing else.
            let hung = if second == 0 { Ok(()) } else { unsafe { memory::write_entry(above(second).0, entry) } };
            // SAFETY: as above.
            code(hung.and_then(|()| unsafe { memory::write_entry(from, Pte::NONE) }).and(memory::flush_tlb()))
        }
        Request::End => shutdown(REASON),
    }
}

fn map_grant([at, domain, grant, flags]: [u64; 4]) -> (i64, u64) {
    let mut op = [MapGrantRef::<Arch> {
        host_virt_addr: Padded::from_u64(at).expect("an address of its architecture"),
        dom: DomId(domain as u16),
        grant: GrantRef(grant as u16),
        flags: flags as u16,
        handle: 77,
        dev_bus_addr: Padded::default(),
    }];
    check_eq!(call(GrantTableCommand::MapGrantRef, &mut op), Ok(0));
    (op[0].handle.into(), op[0].dev_bus_addr.to_u64())
}
