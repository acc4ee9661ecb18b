//! `dom_mem_op`: a domain asks for frames, or gives them back.
//!
//! Frames come and go in *extents* of 2^order contiguous frames, aligned to their number, each named by its first frame
//! in a list of the guest's words. The result is how many extents were done, from the beginning of the list, as in 2.0:
//! a list that cannot be read or written, a frame that is not the domain's, a limit that is reached end the request
//! where they are met.
//!
//! - An extent is taken or given back whole or not at all (2.0 gave back part of one).
//! - What is pinned of an extent is unpinned first, which can take long and makes way; an extent that is half unpinned
//!   has not been given back. Then all of its frames go at once.
//! - A frame that is given back is unpinned. While something else refers to it (a mapping, a table, a page-table base)
//!   it stays the domain's and counts against its limit; with the last reference it is scrubbed, loses its
//!   machine-to-physical entry and is free. Giving it back twice is refused, and so is giving back what only looks like
//!   the domain's memory: the page it shares with the hypervisor.
//! - A domain of two-level tables gets frames that it can name: below 4 GiB.
//! - More than one frame at a time needs I/O privilege, since what large extents are good for is DMA.
//!
//! Locks: the paging lock of the domain whose frames these are, to unpin; never while guest memory is touched.

use crate::addr::{DomId, GuestVirt, Mfn};
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::frame_alloc::MAX_ORDER;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::life::{keep_alive, zone};
use crate::mmu::{self, Abandoned};
use crate::paging::Pager;
use crate::paging::format::{FourLevel, TwoLevel};
use crate::paging::partial::Drained;
use crate::personality::Personality;
use crate::preempt::{Poll, Progress, Stop, cost};
use alloc::sync::Arc;
use proxenos_abi::hypercall::DomMemOp;
use proxenos_abi::zerocopy::IntoBytes;
use proxenos_abi::{Errno, GuestWord, Hypercall};

/// log2 of an extent's frames, at most [`MAX_ORDER`].
#[derive(Clone, Copy)]
struct Order(u32);

impl Order {
    const fn frames(self) -> u64 {
        1 << self.0
    }
}

/// A list of extents in the guest's memory.
#[derive(Clone, Copy)]
struct List {
    at: GuestVirt,
    count: u64,
}

impl List {
    fn slot<P: Personality>(self, index: u64) -> GuestVirt {
        self.at.offset(index * P::Word::BYTES as u64)
    }
}

/// `dom_mem_op(op, extent list, count, order, domain)`: how many extents were done.
///
/// # Errors
/// EPERM for another domain than DOMID_SELF without the right to it, ESRCH when there is none, ENOSYS for an unknown
/// operation.
pub fn dom_mem_op<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    op: u32,
    list: GuestVirt,
    count: u64,
    order: u32,
    id: DomId,
) -> Result<u64, Stop> {
    let other: Arc<Domain>;
    let subject = match id {
        DomId::SELF => caller.dom,
        _ if !caller.dom.is_privileged() => return Err(Errno::EPERM.into()),
        _ => {
            other = caller.host.domains.find(id).ok_or(Errno::ESRCH)?;
            &other
        }
    };
    let op = DomMemOp::from_raw(op).ok_or(Errno::ENOSYS)?;
    let bytes = count.checked_mul(P::Word::BYTES as u64);
    if order > MAX_ORDER || !bytes.is_some_and(|bytes| P::in_guest_range(list, bytes)) {
        return Ok(0);
    }
    let args = [u64::from(op.raw()), list.0, count, order.into(), id.0.into()];
    let call = caller.recognised(Hypercall::DomMemOp, args);
    let mut done = match caller.vcpu.unfinished.take(&call) {
        Some(Progress::Reservation(done)) => done,
        _ => 0,
    };
    let (list, order) = (List { at: list, count }, Order(order));
    let mut poll = Poll::begin();
    // What an extent's unpinning has condemned is undone before the next one, and before the call is over.
    let mut preempted = mmu::settle(caller.host, subject, &mut poll, Abandoned::Keep) == Drained::Partly;
    while !preempted && done < list.count {
        preempted = poll.is_due(&caller.host.hw);
        if preempted {
            break;
        }
        let result = match op {
            DomMemOp::IncreaseReservation => increase::<P, H>(caller, subject, list, done, order).ok_or(Unfit::Refused),
            DomMemOp::DecreaseReservation => decrease::<P, H>(caller, subject, list, done, order, &mut poll),
        };
        match result {
            Ok(()) => done += 1,
            Err(Unfit::Refused) => break,
            Err(Unfit::NotYet) => {
                preempted = true;
                break;
            }
        }
        poll.step(cost::FRAME.saturating_mul(order.frames() as u32));
        preempted = mmu::settle(caller.host, subject, &mut poll, Abandoned::Keep) == Drained::Partly;
    }
    caller.vcpu.segments.refresh_ldt::<P, H>(caller.host, caller.dom);
    if preempted {
        caller.vcpu.unfinished.keep(call, Progress::Reservation(done));
        return Err(Stop::Preempted);
    }
    Ok(done)
}

/// Takes one extent and writes it into the list; `None` when that cannot be.
fn increase<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    subject: &Domain,
    list: List,
    index: u64,
    order: Order,
) -> Option<()> {
    if order.0 > 0 && !caller.dom.drives_devices() {
        return None;
    }
    let host = caller.host;
    let _kept = match subject.id == caller.dom.id {
        true => None,
        false => Some(keep_alive(subject)?),
    };
    let first = take(host, subject, order)?;
    let word = P::Word::from_u64_truncating(first.0);
    if host.hw.copy_to_guest(list.slot::<P>(index), word.as_bytes()).is_ok() {
        return Some(());
    }
    // Frames that nobody knows of would be lost to everybody.
    for mfn in frames_of(first, order) {
        let info = host.frames.info(mfn).expect("just taken");
        host.give_up_frame(mfn, info);
    }
    None
}

/// Takes an extent for a domain, within its limit.
fn take<H: Hardware>(host: &Host<H>, subject: &Domain, order: Order) -> Option<Mfn> {
    use core::sync::atomic::Ordering::Relaxed;
    let pages = order.frames() as u32;
    if !subject.reserve_pages(pages) {
        return None;
    }
    let zone = zone(subject.arch);
    // Nobody can refer to the frames before they are the domain's, so what is in them is dealt with first.
    let mut alloc = host.alloc.lock();
    let first = alloc.alloc_memory(order.0, zone, &host.hw);
    drop(alloc);
    let Some(first) = first else {
        subject.total_pages.fetch_sub(pages, Relaxed);
        return None;
    };
    for mfn in frames_of(first, order) {
        host.hand_over(mfn, subject);
    }
    Some(first)
}

/// Why an extent was not given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unfit {
    /// It cannot be had from the list, or not all of it is the domain's to give.
    Refused,
    /// There was no time to unpin all of it.
    NotYet,
}

/// Gives back the extent that the list names.
fn decrease<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    subject: &Domain,
    list: List,
    index: u64,
    order: Order,
    poll: &mut Poll,
) -> Result<(), Unfit> {
    let mut word = P::Word::ZERO;
    caller.host.hw.copy_from_guest(list.slot::<P>(index), word.as_mut_bytes()).map_err(|_| Unfit::Refused)?;
    give_back(caller.host, subject, Mfn(word.to_u64()), order, poll)
}

fn give_back<H: Hardware>(
    host: &Host<H>,
    subject: &Domain,
    first: Mfn,
    order: Order,
    poll: &mut Poll,
) -> Result<(), Unfit> {
    first.0.checked_add(order.frames()).filter(|&end| end <= host.frames.len()).ok_or(Unfit::Refused)?;
    for mfn in frames_of(first, order) {
        let refs = host.frames.info(mfn).ok_or(Unfit::Refused)?.refs();
        if refs.owner() != subject.id || !refs.is_allocated() || refs.is_shared() {
            return Err(Unfit::Refused);
        }
    }
    for mfn in frames_of(first, order) {
        if host.frames.info(mfn).is_some_and(|info| info.type_word().is_pinned()) {
            // Only after that: each go is to get something done.
            unpin(host, subject, mfn, poll);
            if poll.is_due(&host.hw) {
                return Err(Unfit::NotYet);
            }
        }
    }
    for mfn in frames_of(first, order) {
        // Another CPU may have given the frame away meanwhile. Then the rest stays.
        let info = host.frames.get(mfn, subject.id).map_err(|_| Unfit::Refused)?;
        host.give_up_frame(mfn, info);
        host.put_frame(mfn, info);
    }
    Ok(())
}

fn unpin<H: Hardware>(host: &Host<H>, subject: &Domain, mfn: Mfn, poll: &mut Poll) {
    let pager = Pager::new(host, subject);
    let mut state = pager.lock();
    state.poll = *poll;
    // Somebody else may have unpinned it first, which is as good.
    let _ = match subject.arch {
        Arch::X86_32 => pager.unpin::<TwoLevel>(&mut state, mfn),
        Arch::X86_64 => pager.unpin::<FourLevel>(&mut state, mfn),
    };
    *poll = core::mem::replace(&mut state.poll, Poll::NEVER);
}

fn frames_of(first: Mfn, order: Order) -> impl Iterator<Item = Mfn> {
    (first.0..first.0 + order.frames()).map(Mfn)
}
