//! A domain that has ended gives its memory back, in as many goes as it takes.
//!
//! [`Teardown`] says how far that has come, and belongs to whoever takes the domain down. First everything that makes
//! tables tables is given up: descriptor tables, the page-table base, pins; then the domain's own reference to each of
//! its frames. What another domain still maps stays the dead domain's until that ends, as with `dom_mem_op`; everything
//! else is scrubbed and free. The pages that are the hypervisor's (shared_info, the GDT's first page) go with the
//! domain itself; those of its grant table are given up at the beginning, and what it has mapped of other domains'
//! grants when it has no page tables any more.
//!
//! The domain runs nowhere, no CPU has its tables loaded, and nobody makes requests in its name any more. Others may
//! map its frames meanwhile, and may go on to.
//!
//! Lock: its paging lock, for a step at a time.

use crate::addr::Mfn;
use crate::domain::{Arch, Domain};
use crate::grant::{self, Released};
use crate::host::{Hardware, Host};
use crate::mmu::{Abandoned, settle};
use crate::paging::format::{FourLevel, TwoLevel};
use crate::paging::partial::Drained;
use crate::paging::{Pager, PagingState};
use crate::preempt::{Poll, cost};
use crate::segments::Segments;
use proxenos_abi::{X86_32, X86_64};

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Teardown {
    /// Nothing has been done.
    Begun,
    /// Pins are given up, those of frames before this one.
    Pins(Mfn),
    /// Directories that name each other are taken apart, frames before this one.
    Links(Mfn),
    /// Nothing is a table any more. What was mapped of other domains' grants is given up.
    Grants,
    /// Frames are given up, those before this one.
    Frames(Mfn),
    /// The domain has no memory of its own.
    Done,
}

impl Teardown {
    /// Goes on until it is done, or has to make way.
    pub fn go_on<H: Hardware>(&mut self, host: &Host<H>, dom: &Domain, segments: &mut Segments, poll: &mut Poll) {
        loop {
            if settle(host, dom, poll, Abandoned::Undo) == Drained::Partly || poll.is_due(&host.hw) {
                return;
            }
            *self = match *self {
                Self::Begun => {
                    grant::close(host, dom);
                    give_up_roots(host, dom, segments, poll);
                    Self::Pins(Mfn(dom.span().start))
                }
                Self::Pins(mfn) if mfn.0 < dom.span().end => {
                    give_up_pin(host, dom, mfn, poll);
                    Self::Pins(behind(host, dom, mfn, poll))
                }
                Self::Pins(_) => Self::Links(Mfn(dom.span().start)),
                Self::Links(mfn) if dom.arch == Arch::X86_32 && mfn.0 < dom.span().end => {
                    unlink(host, dom, mfn, poll);
                    Self::Links(behind(host, dom, mfn, poll))
                }
                Self::Links(_) => Self::Grants,
                Self::Grants => match grant::release(host, dom, poll) {
                    Released::Wholly => Self::Frames(Mfn(dom.span().start)),
                    Released::Partly => return,
                },
                Self::Frames(mfn) if mfn.0 < dom.span().end => {
                    give_up(host, dom, mfn, poll);
                    Self::Frames(behind(host, dom, mfn, poll))
                }
                Self::Frames(_) => {
                    let pager = Pager::new(host, dom);
                    pager.release_writable_tables();
                    // No CPU has its tables loaded.
                    match dom.arch {
                        Arch::X86_32 => pager.disable::<TwoLevel>(&mut pager.lock(), |_| ()),
                        Arch::X86_64 => pager.disable::<FourLevel>(&mut pager.lock(), |_| ()),
                    }
                    pager.destroy_upper_tables(&mut pager.lock());
                    Self::Done
                }
                Self::Done => return,
            };
        }
    }
}

/// Frames that are passed over at a time, and how many of those cost what a look at one does.
const STRIDE: u64 = 128;
const AS_ONE: u64 = 4;

/// Where to go on behind a frame: the next that is the domain's, unless too many that are others' come first. (A small
/// domain's frames can lie far apart, if others were there before it.)
fn behind<H: Hardware>(host: &Host<H>, dom: &Domain, mfn: Mfn, poll: &mut Poll) -> Mfn {
    let from = Mfn(mfn.0 + 1);
    let next = host.frames.next_of(dom.id, from, STRIDE);
    poll.step(((next.0 - from.0) / AS_ONE) as u32 * cost::EMPTY);
    next
}

/// Descriptor tables and page-table base.
fn give_up_roots<H: Hardware>(host: &Host<H>, dom: &Domain, segments: &mut Segments, poll: &mut Poll) {
    match dom.arch {
        Arch::X86_32 => segments.release::<X86_32, H>(host, dom),
        Arch::X86_64 => segments.release::<X86_64, H>(host, dom),
    }
    in_time(host, dom, poll, |state| match dom.arch {
        Arch::X86_32 => Pager::new(host, dom).clear_base::<TwoLevel>(state),
        Arch::X86_64 => Pager::new(host, dom).clear_base::<FourLevel>(state),
    });
}

fn give_up_pin<H: Hardware>(host: &Host<H>, dom: &Domain, mfn: Mfn, poll: &mut Poll) {
    let info = host.frames.info(mfn).expect("within the table");
    poll.step(cost::EMPTY);
    if info.refs().owner() != dom.id || !info.type_word().is_pinned() {
        return;
    }
    in_time(host, dom, poll, |state| {
        // Only the domain itself and this could unpin it.
        let _ = match dom.arch {
            Arch::X86_32 => Pager::new(host, dom).unpin::<TwoLevel>(state, mfn),
            Arch::X86_64 => Pager::new(host, dom).unpin::<FourLevel>(state, mfn),
        };
    });
}

fn unlink<H: Hardware>(host: &Host<H>, dom: &Domain, mfn: Mfn, poll: &mut Poll) {
    let info = host.frames.info(mfn).expect("within the table");
    poll.step(cost::EMPTY);
    if info.refs().owner() == dom.id && info.is_directory() {
        poll.step(cost::TABLE);
        in_time(host, dom, poll, |state| Pager::new(host, dom).unlink_directory::<TwoLevel>(state, mfn));
    }
}

fn give_up<H: Hardware>(host: &Host<H>, dom: &Domain, mfn: Mfn, poll: &mut Poll) {
    let info = host.frames.info(mfn).expect("within the table");
    poll.step(cost::EMPTY);
    let refs = info.refs();
    if refs.owner() == dom.id && refs.is_allocated() && !refs.is_shared() {
        host.give_up_frame(mfn, info);
        poll.step(cost::FRAME);
    }
}

/// Works with the paging state within the time there is.
fn in_time<H: Hardware>(host: &Host<H>, dom: &Domain, poll: &mut Poll, work: impl FnOnce(&mut PagingState)) {
    let mut state = Pager::new(host, dom).lock();
    state.poll = *poll;
    work(&mut state);
    *poll = core::mem::replace(&mut state.poll, Poll::NEVER);
}
