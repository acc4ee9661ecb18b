//! Tables that are half validated: how a tree of tables is taken down or put up in several goes.
//!
//! A top-level table can lead to hundreds of thousands of others. To make it one, or to make it none, takes long, so both stop
//! when they should make way ([`Poll`](crate::preempt::Poll)). What stands then, stands in the frames, not in the request:
//!
//! - A *partial* table has a type, of which it holds the one reference itself (and the frame's reference that goes with it), it
//!   is not validated, and so many of its first entries hold their references: how many is in its type word. It is nobody's
//!   table: no entry leads to it, no CPU walks it, none of its entries can be changed; and it can become nothing else.
//! - Entries are taken from the first upwards and dropped from the last downwards, so a table that is going up and one that is
//!   going down look the same.
//! - A *suspended* table waits for the request to be made again: whoever wants the table as what it is becoming takes its
//!   reference over and goes on ([`Pager::adopt`]). Nothing says who began, so nothing can be confused.
//! - A *condemned* one has failed, or lost its last use, and waits for its entries to be dropped ([`Pager::drain`]). A child that
//!   loses its last use in this is condemned in turn. So no recursion goes deep, and each step leaves everything counted.
//!
//! Only tables above the lowest level are ever partial: one of the lowest is done in one go (about 50,000 instructions).
//!
//! Each domain has a list of either kind, linked through the frames' records. A request drains what it has condemned before it
//! returns to the guest for good. What a guest suspends and never comes back for stays suspended, accounted for, until a request
//! is refused: that may be its fault, so it is condemned and drained, and the request tried again.
//!
//! The list's link is the record's `next`. A directory's `prev` is its view, and its `next` how many entries lead there
//! ([`super::linear`]), only while it is validated. Tables are dropped only with none open ([`Pager::lock`]).
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
            Condition::Suspended => &mut state.suspended,
            Condition::Condemned => &mut state.condemned,
        };
        info.next.store(list.map_or(NIL, |next| next.0 as u32), Relaxed);
        *list = Some(mfn);
        self.note_unsettled(state);
    }

    /// A table that is suspended on its way to be `kind`: takes its references over, and says how many entries are done.
    pub(super) fn adopt(&self, state: &mut PagingState, mfn: Mfn, kind: FrameType) -> Option<usize> {
        let info = self.host.frames.info(mfn)?;
        let word = info.type_word();
        let (done, _) = word.partial().filter(|&(_, how)| how == Condition::Suspended && word.kind() == kind)?;
        let mut last = None;
        let mut at = state.suspended;
        while at != Some(mfn) {
            last = at;
            at = self.next(at?);
        }
        let next = self.next(mfn);
        match last {
            None => state.suspended = next,
            Some(last) => self.set_next(last, next),
        }
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

    /// Nobody comes back for what is suspended.
    pub fn condemn_suspended(&self, state: &mut PagingState) {
        while let Some(mfn) = state.suspended {
            state.suspended = self.next(mfn);
            let info = self.host.frames.info(mfn).expect("a table is RAM");
            let (done, _) = info.type_word().partial().expect("what is on the list is partial");
            self.set_aside(state, mfn, done, Condition::Condemned);
        }
    }

    /// Drops the entries of all condemned tables, and then the tables.
    pub fn drain<F: Format>(&self, state: &mut PagingState) -> Drained {
        while let Some(mfn) = state.condemned {
            let info = self.host.frames.info(mfn).expect("a table is RAM");
            let (mut done, _) = info.type_word().partial().expect("what is on the list is partial");
            state.condemned = self.next(mfn);
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
        let next = self.host.frames.info(mfn)?.next.load(Relaxed);
        (next != NIL).then_some(Mfn(next.into()))
    }

    fn set_next(&self, mfn: Mfn, next: Option<Mfn>) {
        if let Some(info) = self.host.frames.info(mfn) {
            info.next.store(next.map_or(NIL, |next| next.0 as u32), Relaxed);
        }
    }

    /// The domain's partial tables: those suspended, then those condemned.
    pub(crate) fn partial_tables(&self, state: &PagingState) -> impl Iterator<Item = (Mfn, Condition)> {
        let list =
            |head, condition| core::iter::successors(head, |&mfn| self.next(mfn)).map(move |mfn| (mfn, condition));
        list(state.suspended, Condition::Suspended).chain(list(state.condemned, Condition::Condemned))
    }

    /// Says where it can be read without the lock whether anything is half done.
    fn note_unsettled(&self, state: &PagingState) {
        self.dom.unsettled.store(state.suspended.is_some() || state.condemned.is_some(), Relaxed);
    }
}
