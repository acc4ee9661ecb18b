//! MMUEXT_TRANSFER_PAGE: a domain gives a frame away to a grant that accepts one.
//!
//! In this order, so that each step either can be taken back or cannot fail: the receiver's reservation is counted; the
//! frame is taken from its owner, if nothing refers to it, and is nobody's for a moment; it is gone from every TLB and
//! cache (I5); the grant is committed; the frame is the receiver's; its number is written, and the grant completed. The
//! contents go with it. A frame that comes has the pfn that the grant's entry named, if it named one, and none
//! otherwise.
//!
//! Lock: the receiver's table, from commitment to completion, so that a receiver that ends meanwhile has the frame
//! when it gives up its memory, or never.

use super::table::Committed;
use crate::addr::{DomId, FRAMES_BELOW_4G, Mfn, Pfn};
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::host::{Hardware, Host};
use crate::paging::Pager;
use core::sync::atomic::Ordering::Relaxed;
use proxenos_abi::GrantRef;

/// The request was refused, and has changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// Gives a frame of `from`'s, to which nothing refers, to the domain `to`, whose grant accepts it.
///
/// # Errors
/// The frame is not `from`'s to give, is in use, or cannot be named by the receiver's page tables; there is no such
/// receiver, it is the giver, it has as much as it may have, or its grant accepts no frame of `from`'s.
pub fn transfer<H: Hardware>(
    host: &Host<H>,
    from: &Domain,
    frame: Mfn,
    to: DomId,
    grant: GrantRef,
) -> Result<(), Refused> {
    let receiver = host.domains.find(to).filter(|receiver| receiver.id != from.id).ok_or(Refused)?;
    let info = host.frames.info(frame).filter(|_| host.is_ram(frame)).ok_or(Refused)?;
    if receiver.arch == Arch::X86_32 && frame.0 >= FRAMES_BELOW_4G || !receiver.reserve_pages(1) {
        return Err(Refused);
    }
    receiver.expect_frame(frame);
    let mut committed = None;
    let given = info.hand_on(from.id, to, |stamp| {
        host.hw.flush_if_older(stamp);
        if info.take_uncached() {
            host.hw.flush_frame(frame);
        }
        committed = Committed::new(host, receiver.grants.table.lock(), grant, from.id).ok();
        committed.is_some()
    });
    let Some(committed) = committed.filter(|_| given) else {
        receiver.total_pages.fetch_sub(1, Relaxed);
        return Err(Refused);
    };
    from.total_pages.fetch_sub(1, Relaxed);
    match committed.place {
        0 => host.m2p.forget(&host.hw, frame),
        place => host.m2p.set(&host.hw, frame, Pfn(place.into())),
    }
    // Under that number there is another frame now, as far as a copy of the receiver is concerned.
    Pager::new(host, &receiver).mark_dirty(frame);
    committed.complete(host, frame);
    Ok(())
}
