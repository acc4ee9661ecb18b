//! Tables that are half validated: how a tree of tables is taken down or put up in several goes.
//!
//! A top-level table can lead to hundreds of thousands of others. To make it one, or to make it none, takes long, so
//! both stop when they should make way ([`Poll`](crate::preempt::Poll)). What stands then, stands in the frames, not in
//! the request:
//!
//! - A *partial* table has a type, of which it holds the one reference itself (and the frame's reference that goes with
//!   it), it is not validated, and so many of its first entries hold their references: how many is in its type word. It
//!   is nobody's table: no entry leads to it, no CPU walks it, none of its entries can be changed; and it can become
//!   nothing else.
//! - Entries are taken from the first upwards and dropped from the last downwards, so a table that is going up and one
//!   that is going down look the same.
//! - A *suspended* table waits for the request to be made again: whoever wants the table as what it is becoming takes
//!   its reference over and goes on ([`Pager::adopt`]). Nothing says who began, so nothing can be confused.
//! - A *condemned* one has failed, or lost its last use, and waits for its entries to be dropped ([`Pager::drain`]). A
//!   child that loses its last use in this is condemned in turn. So no recursion goes deep, and each step leaves
//!   everything counted.
//!
//! Only tables above the lowest level are ever partial: one of the lowest is done in one go.
//!
//! Each domain has a list of either kind, linked through the frames' records. A request drains what it has condemned
//! before it returns to the guest for good. What a guest suspends and never comes back for stays suspended, accounted
//! for, until a request is refused: that may be its fault, so all of it is *abandoned*, and drained before the request
//! is tried again.
//!
//! A guest can make very many of these tables, so nothing here walks a list in one go. The suspended are linked both
//! ways, to be taken out wherever they stand, the youngest first; one of them and all that are older are abandoned, so
//! that to abandon is to note which. They go the oldest first, and so what hung together from below. An abandoned table
//! is suspended like any other (it may still be gone on with) until it is condemned in its turn. Each table that is
//! drained counts as a step, whether it had entries or not.
//!
//! The links are the record's `next` and, of the suspended, `prev`. A directory's `prev` is its view, and its `next`
//! how many entries lead there ([`super::linear`]), only while it is validated. Tables are dropped only with none open
//! ([`Pager::lock`]).
//!
//! Lock: the owner's paging lock.

use super::format::Format;
use super::{Pager, PagingState};
use crate::addr::Mfn;
use crate::frame::{Condition, FrameType, TypeRest};
use crate::host::Hardware;
use crate::preempt::cost;
use core::sync::atomic::Ordering::Relaxed;

/// The end of a list.
const NIL: u32 = u32::MAX;

/// How many links were followed, for tests that see to it that nobody walks a list: by threads, as tests have one each.
#[cfg(test)]
pub(crate) mod followed {
    extern crate std;
    use core::cell::Cell;

    std::thread_local! {
        static LINKS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        LINKS.set(LINKS.get() + 1);
    }

    /// Since the last call.
    pub fn links() -> usize {
        LINKS.take()
    }
}

/// What a link says.
fn link(word: u32) -> Option<Mfn> {
    (word != NIL).then_some(Mfn(word.into()))
}

fn word(link: Option<Mfn>) -> u32 {
    link.map_or(NIL, |mfn| mfn.0 as u32)
}

/// The list of the suspended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Suspended {
    youngest: Option<Mfn>,
    oldest: Option<Mfn>,
    /// For this one and all that are older nobody is waited for any more.
    abandoned: Option<Mfn>,
}

impl Suspended {
    /// None.
    pub const NONE: Self = Self { youngest: None, oldest: None, abandoned: None };

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.youngest.is_none()
    }

    /// The youngest for which nobody is waited for any more.
    pub const fn abandoned(&self) -> Option<Mfn> {
        self.abandoned
    }
}

/// What [`Pager::drain`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Nothing is condemned any more.
    Wholly,
    /// It had to make way.
    Partly,
}

impl<H: Hardware> Pager<'_, H> {
    /// A table that is being validated, and whose first `done` entries hold their references, becomes partial.
    pub(super) fn set_aside(&self, state: &mut PagingState, mfn: Mfn, done: usize, condition: Condition) {
        let info = self.host.frames.info(mfn).expect("a table is RAM");
        info.set_partial(done, condition);
        let list = match condition {
            Condition::Suspended => {
                match state.suspended.youngest {
                    Some(next) => self.set_prev(next, Some(mfn)),
                    None => state.suspended.oldest = Some(mfn),
                }
                self.set_prev(mfn, None);
                &mut state.suspended.youngest
            }
            Condition::Condemned => &mut state.condemned,
        };
        info.next.store(word(*list), Relaxed);
        *list = Some(mfn);
        self.note_unsettled(state);
    }

    /// Takes a table off the list of the suspended, on which it is.
    fn unlink_suspended(&self, state: &mut PagingState, mfn: Mfn) {
        let (prev, next) = (self.prev(mfn), self.next(mfn));
        match prev {
            Some(prev) => self.set_next(prev, next),
            None => state.suspended.youngest = next,
        }
        match next {
            Some(next) => self.set_prev(next, prev),
            None => state.suspended.oldest = prev,
        }
        if state.suspended.abandoned == Some(mfn) {
            state.suspended.abandoned = next;
        }
    }

    /// A table that is suspended on its way to be `kind`: takes its references over, and says how many entries are
    /// done.
    pub(super) fn adopt(&self, state: &mut PagingState, mfn: Mfn, kind: FrameType) -> Option<usize> {
        let info = self.host.frames.info(mfn)?;
        let word = info.type_word();
        // What is suspended is on its owner's list.
        let (done, _) = word.partial().filter(|&(_, how)| {
            how == Condition::Suspended && word.kind() == kind && info.refs().owner() == self.dom.id
        })?;
        self.unlink_suspended(state, mfn);
        info.resume_validation();
        self.note_unsettled(state);
        Some(done)
    }

    /// The last use of a validated table is gone: its entries are to be dropped.
    pub(super) fn condemn<F: Format>(&self, state: &mut PagingState, mfn: Mfn, level: u8) {
        if self.walks_shadows::<F>() {
            self.destroy_shadow::<F>(state, mfn, level);
        }
        self.set_aside(state, mfn, F::ENTRIES, Condition::Condemned);
    }

    /// Nobody comes back for what is suspended now: [`drain`](Self::drain) sees to it.
    pub const fn abandon_suspended(&self, state: &mut PagingState) {
        state.suspended.abandoned = state.suspended.youngest;
    }

    /// Drops the entries of all tables that are condemned or abandoned, and then the tables.
    pub fn drain<F: Format>(&self, state: &mut PagingState) -> Drained {
        while let Some(mfn) = state.condemned.or(state.suspended.abandoned.and(state.suspended.oldest)) {
            if state.poll.is_due(&self.host.hw) {
                return Drained::Partly;
            }
            let info = self.host.frames.info(mfn).expect("a table is RAM");
            let (mut done, condition) = info.type_word().partial().expect("what is on a list is partial");
            match condition {
                Condition::Condemned => state.condemned = self.next(mfn),
                // From here on it is on no list, as one that is being validated.
                Condition::Suspended => self.unlink_suspended(state, mfn),
            }
            let level = info.type_word().kind().level().unwrap_or_default();
            while done > 0 {
                if state.poll.is_due(&self.host.hw) {
                    self.set_aside(state, mfn, done, Condition::Condemned);
                    return Drained::Partly;
                }
                done -= 1;
                self.drop_child::<F>(state, mfn, level, done);
            }
            let _: TypeRest = info.put_type(|| self.host.hw.stamp());
            self.host.put_frame(mfn, info);
            state.poll.step(cost::ENTRY);
        }
        self.note_unsettled(state);
        Drained::Wholly
    }

    fn drop_child<F: Format>(&self, state: &mut PagingState, table: Mfn, level: u8, index: usize) {
        let entry = F::load(&self.host.hw, table, index);
        if !entry.present() || !F::is_guest_slot(level, index) {
            return state.poll.step(cost::EMPTY);
        }
        state.poll.step(cost::ENTRY);
        if F::LINEAR && self.put_linear(state, table, entry) {
            return;
        }
        let word = self.host.frames.info(entry.mfn()).expect("an entry names a table").type_word();
        match word.kind().level() {
            Some(below @ 2..) if word.count() == 1 => self.condemn::<F>(state, entry.mfn(), below),
            _ => self.put_frame_and_type::<F>(state, entry.mfn()),
        }
    }

    fn next(&self, mfn: Mfn) -> Option<Mfn> {
        #[cfg(test)]
        followed::count();
        link(self.host.frames.info(mfn)?.next.load(Relaxed))
    }

    fn prev(&self, mfn: Mfn) -> Option<Mfn> {
        #[cfg(test)]
        followed::count();
        link(self.host.frames.info(mfn)?.prev.load(Relaxed))
    }

    fn set_next(&self, mfn: Mfn, next: Option<Mfn>) {
        if let Some(info) = self.host.frames.info(mfn) {
            info.next.store(word(next), Relaxed);
        }
    }

    fn set_prev(&self, mfn: Mfn, prev: Option<Mfn>) {
        if let Some(info) = self.host.frames.info(mfn) {
            info.prev.store(word(prev), Relaxed);
        }
    }

    /// The domain's partial tables: those suspended, then those condemned.
    pub(crate) fn partial_tables(&self, state: &PagingState) -> impl Iterator<Item = (Mfn, Condition)> {
        let list =
            |head, condition| core::iter::successors(head, |&mfn| self.next(mfn)).map(move |mfn| (mfn, condition));
        list(state.suspended.youngest, Condition::Suspended).chain(list(state.condemned, Condition::Condemned))
    }

    /// For the audit: which table links to a suspended one, or `None` if it is the first.
    pub(crate) fn suspended_before(&self, mfn: Mfn) -> Option<Mfn> {
        self.prev(mfn)
    }

    /// Says where it can be read without the lock whether anything is half done.
    fn note_unsettled(&self, state: &PagingState) {
        self.dom.unsettled.store(!state.suspended.is_empty() || state.condemned.is_some(), Relaxed);
    }
}
