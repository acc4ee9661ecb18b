//! The memory invariants, checked over the whole machine.
//!
//! [`audit`] works out from scratch what every frame's counts and type should be (by walking every validated table, and
//! adding ownership, pins, page-table bases and descriptor tables) and compares that with what the frame table says,
//! the shadows with the tables they stand for, and the allocator's lists with both. It is how host tests judge every
//! step, and how the hypervisor itself looks after its guests where its options ask for it (`audit`).
//!
//! What it cannot see is a TLB, nor a request that failed: of I5 and I7 it says little (the simulated CPUs of `sim_hw`,
//! and the tests that compare before and after, do).
//!
//! Memory: it changes nothing but the heap, of which it takes a bounded part *before* it looks at anything: the counts
//! of [`FRAMES_AT_A_TIME`] frames, for which it walks all tables; then of the next. From the first look on nothing is
//! allocated, since a heap that grows takes frames, which are what is being counted.
//!
//! Locks: takes every domain's paging lock, in the order given, then the allocator's, which it does not hold while it
//! calls anything that might lock or allocate, and those of grants for one domain at a time. The caller holds none of
//! them. References to frames that are no tables change without a lock, so all other CPUs stand still meanwhile.

mod allocator;
mod grants;
mod shadows;
mod tables;
#[cfg(test)]
mod tests;
mod windows;

use crate::addr::{DomId, Mfn};
use crate::domain::Domain;
use crate::frame::{FrameInfo, FrameType};
use crate::host::{Hardware, Host};
use crate::paging::{Pager, PagingState};
use crate::segments::Segments;
use crate::sync::MutexGuard;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

/// The invariants, by the names that the design gives them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Invariant {
    /// I1: a frame is never at once writable to a guest and a page table or descriptor table.
    WritableOrTable,
    /// I2: a validated type implies that every entry is allowed and holds its references.
    TypeIsHeld,
    /// I3: the reference count is what refers to the frame, at least the type count, and zero when the frame is free.
    Counted,
    /// I4: no mapping of a frame that the domain does not own, was not granted, and has no right to.
    Rightful,
    /// I5: a frame that leaves a type or a domain is in no TLB when it is reused.
    Flushed,
    /// I6: a shadow is a function of the guest's tables.
    ShadowFollows,
    /// I7: a failed request leaves everything as it was.
    Unchanged,
}

/// Something is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What is broken.
    pub invariant: Invariant,
    /// Which frame shows it.
    pub frame: Mfn,
    /// What was looked at.
    pub what: &'static str,
    /// What it should be.
    pub expected: u64,
    /// What it is.
    pub found: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.invariant as u8 + 1;
        write!(
            f,
            "I{number}, frame {:#x}: {} should be {:#x}, is {:#x}",
            self.frame.0, self.what, self.expected, self.found
        )
    }
}

/// A domain under audit: every domain there is must be given.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The domain.
    pub dom: &'a Domain,
    /// Its virtual CPU's descriptor tables.
    pub segments: &'a Segments,
}

impl Invariant {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::WritableOrTable,
        Self::TypeIsHeld,
        Self::Counted,
        Self::Rightful,
        Self::Flushed,
        Self::ShadowFollows,
        Self::Unchanged,
    ];
}

/// How the machine's frames are used, where all is well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Frames on the allocator's lists.
    pub free: u64,
    /// Frames that are some domain's, shared ones included.
    pub domains: u64,
    /// Frames that shadow a domain's tables.
    pub shadows: u64,
    /// The hypervisor's other frames. What no request changes: if it grows, frames leak.
    pub hypervisor: u64,
    /// Tables that were walked: page tables and pages of descriptors.
    pub tables: u64,
    /// How many things were compared for each invariant.
    pub checked: [u64; 7],
}

/// For the console: what is there, and what was checked.
impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self.free + self.domains + self.shadows + self.hypervisor;
        write!(
            f,
            "{frames} frames ({} free, {} of domains, {} of shadows, {} own), {} tables; checks:",
            self.free, self.domains, self.shadows, self.hypervisor, self.tables
        )?;
        Invariant::ALL
            .iter()
            .zip(self.checked)
            .try_for_each(|(&invariant, checked)| write!(f, " I{} {checked}", invariant as u8 + 1))
    }
}

/// The most violations that are reported: one fault shows in many places.
const REPORTED: usize = 16;

/// The frames whose counts are worked out in one walk of all tables: 160 KiB of the heap.
pub const FRAMES_AT_A_TIME: usize = 8192;

/// What was found to refer to a frame.
#[derive(Clone, Copy, Default)]
struct Tally {
    refs: u32,
    /// References as `kind`.
    uses: u32,
    kind: Option<FrameType>,
    /// Entries of directories that name it as a directory, its own included.
    linear: u32,
    /// Part of a free block, a shadow, an upper table or a descriptor page: at most one of these.
    claimed: bool,
}

struct Audit<'a, H> {
    host: &'a Host<H>,
    subjects: &'a [Subject<'a>],
    states: Vec<MutexGuard<'a, PagingState>>,
    /// Of the frames from `first` on.
    tallies: Vec<Tally>,
    first: u64,
    /// Whether this is not only a repetition of what an earlier walk has looked at.
    afresh: bool,
    violations: Vec<Violation>,
    census: Census,
    /// Frames of shadows and views found, of each subject.
    shadows: Vec<u64>,
}

/// Checks all invariants that memory alone shows.
///
/// # Errors
/// What is violated, up to sixteen findings.
pub fn audit<H: Hardware>(host: &Host<H>, subjects: &[Subject<'_>]) -> Result<Census, Vec<Violation>> {
    audit_in_steps(host, subjects, FRAMES_AT_A_TIME)
}

/// As [`audit`], with so many frames at a time.
fn audit_in_steps<H: Hardware>(
    host: &Host<H>,
    subjects: &[Subject<'_>],
    step: usize,
) -> Result<Census, Vec<Violation>> {
    let frames = host.frames.len();
    let mut tallies = Vec::new();
    tallies.resize(step.min(frames as usize), Tally::default());
    let mut states = Vec::with_capacity(subjects.len());
    let violations = Vec::with_capacity(REPORTED);
    let shadows = alloc::vec![0; subjects.len()];
    states.extend(subjects.iter().map(|subject| subject.dom.paging.lock()));
    let census = Census::default();
    let mut audit = Audit { host, subjects, states, tallies, first: 0, afresh: true, violations, census, shadows };
    for first in (0..frames).step_by(step) {
        (audit.first, audit.afresh) = (first, first == 0);
        audit.tallies.fill(Tally::default());
        audit.free_lists();
        audit.claim_hypervisor_frames();
        for mfn in 0..frames {
            audit.tally_frame(Mfn(mfn));
        }
        audit.tally_roots();
        audit.afresh = true;
        for mfn in first..frames.min(first + step as u64) {
            audit.compare(Mfn(mfn));
        }
    }
    audit.compare_domains();
    if audit.violations.is_empty() { Ok(audit.census) } else { Err(audit.violations) }
}

impl<'a, H: Hardware> Audit<'a, H> {
    fn report(&mut self, invariant: Invariant, frame: Mfn, what: &'static str, expected: u64, found: u64) {
        let violation = Violation { invariant, frame, what, expected, found };
        // What one walk of the tables finds, the next finds again.
        if self.violations.len() < REPORTED && !self.violations.contains(&violation) {
            self.violations.push(violation);
        }
    }

    /// Something is looked at for the sake of an invariant.
    fn count(&mut self, invariant: Invariant) {
        self.census.checked[invariant as usize] += u64::from(self.afresh);
    }

    /// Where a frame's counts are, if it is one of those that are looked at.
    fn tally(&mut self, mfn: Mfn) -> Option<&mut Tally> {
        self.tallies.get_mut(mfn.0.checked_sub(self.first)? as usize)
    }

    /// Reports unless the two are equal.
    fn expect(&mut self, invariant: Invariant, frame: Mfn, what: &'static str, expected: u64, found: u64) {
        self.count(invariant);
        if expected != found {
            self.report(invariant, frame, what, expected, found);
        }
    }

    fn info(&self, mfn: Mfn) -> &'static FrameInfo {
        self.host.frames.info(mfn).expect("only frames of the table are looked at")
    }

    fn subject(&self, id: DomId) -> Option<&'a Subject<'a>> {
        self.subjects.iter().find(|subject| subject.dom.id == id)
    }

    /// Something refers to a frame of RAM.
    fn refer(&mut self, mfn: Mfn) {
        if let Some(tally) = self.tally(mfn) {
            tally.refs += 1;
        }
    }

    /// Something refers to a frame of RAM as `kind`.
    fn refer_as(&mut self, mfn: Mfn, kind: FrameType) {
        self.refer(mfn);
        self.use_as(mfn, kind);
    }

    /// A reference to a frame relies on its being `kind`.
    fn use_as(&mut self, mfn: Mfn, kind: FrameType) {
        self.count(Invariant::WritableOrTable);
        let Some(tally) = self.tally(mfn) else { return };
        tally.uses += 1;
        let before = *tally.kind.get_or_insert(kind);
        if before != kind {
            let writable = before == FrameType::Writable || kind == FrameType::Writable;
            let invariant = if writable { Invariant::WritableOrTable } else { Invariant::TypeIsHeld };
            self.report(invariant, mfn, "one type for all uses", before as u64, kind as u64);
        }
    }

    /// A frame is wholly in one use of the hypervisor's own.
    fn claim(&mut self, mfn: Mfn, what: &'static str) {
        let inside = mfn.0 < self.host.frames.len();
        match self.tally(mfn) {
            Some(tally) if !tally.claimed => tally.claimed = true,
            None if inside => {}
            _ => self.report(Invariant::Counted, mfn, what, 1, 2),
        }
    }

    /// A frame is claimed that must be the hypervisor's alone.
    fn claim_own(&mut self, mfn: Mfn, what: &'static str) {
        self.claim(mfn, what);
        let refs = self.info(mfn).refs();
        self.expect(Invariant::Counted, mfn, what, DomId::XEN.0.into(), refs.owner().0.into());
        self.expect(Invariant::Rightful, mfn, what, 0, refs.is_shared().into());
    }

    /// What domains keep besides their memory.
    fn claim_hypervisor_frames(&mut self) {
        for index in 0..self.subjects.len() {
            let dom = self.subjects[index].dom;
            if !dom.over.load(Ordering::Relaxed) {
                self.claim_own(dom.gdt_page, "claims on a first GDT page");
            }
            if let Some((l4, l3)) = self.states[index].upper {
                self.claim_own(l4, "claims on an upper L4");
                self.claim_own(l3, "claims on an upper L3");
            }
            self.claim_snapshots(index);
        }
    }

    /// Counts a frame's owner and pin, and, if it is a table, what its entries refer to.
    fn tally_frame(&mut self, mfn: Mfn) {
        let info = self.info(mfn);
        let (refs, word) = (info.refs(), info.type_word());
        if refs.is_allocated() {
            self.refer(mfn);
        }
        if refs.is_shared() && refs.is_allocated() {
            // The hypervisor writes to it for good.
            self.use_as(mfn, FrameType::Writable);
        }
        if word.is_pinned() {
            self.refer_as(mfn, word.kind());
        }
        if word.partial().is_some() {
            // It holds its one reference itself.
            self.refer_as(mfn, word.kind());
        }
        if word.count() > 0 && word.kind().needs_validation() {
            self.tally_table(mfn, refs.owner(), word.kind());
        } else if let Some(shadow) = info.shadow().filter(|_| refs.owner() != DomId::XEN) {
            // (A shadow's own frame names its table there.)
            self.report(Invariant::ShadowFollows, mfn, "shadow of what is no table", 0, shadow.0);
        }
    }

    /// Counts page-table bases and descriptor tables.
    fn tally_roots(&mut self) {
        for index in 0..self.subjects.len() {
            let Subject { dom, segments } = self.subjects[index];
            let bases = self.states[index].bases();
            for base in bases {
                self.refer_as(base, tables::top(dom.arch));
                self.expect_owner(base, dom);
            }
            for (_, frame) in segments.pages() {
                self.refer_as(frame, FrameType::Descriptor);
                self.expect_owner(frame, dom);
            }
            self.check_gdt_copy(dom);
            self.check_upper(dom, index);
            self.check_partial(dom, index);
            self.check_pool(dom, index);
            self.tally_windows(dom, index);
            self.tally_grants(dom);
        }
        let listed: usize = self
            .states
            .iter()
            .zip(self.subjects)
            .map(|(state, subject)| Pager::new(self.host, subject.dom).partial_tables(state).count())
            .sum();
        let partial = (0..self.host.frames.len()).filter(|&mfn| self.info(Mfn(mfn)).type_word().partial().is_some());
        let partial = partial.count() as u64;
        self.expect(Invariant::TypeIsHeld, Mfn(0), "half-validated tables that are on a list", partial, listed as u64);
    }

    fn expect_owner(&mut self, mfn: Mfn, dom: &Domain) {
        let owner = self.info(mfn).refs().owner();
        self.expect(Invariant::Rightful, mfn, "owner of a domain's table", dom.id.0.into(), owner.0.into());
    }

    /// Compares a frame's record with what was counted.
    fn compare(&mut self, mfn: Mfn) {
        let info = self.info(mfn);
        let (refs, word, tally) = (info.refs(), info.type_word(), self.tally(mfn).copied().unwrap_or_default());
        self.expect(Invariant::Counted, mfn, "references", tally.refs.into(), refs.count().into());
        let in_use = refs.count() > 0 && !(word.count() > 0 && word.kind().needs_validation());
        if info.is_uncached() && !in_use {
            self.report(Invariant::Flushed, mfn, "mark of a table or of a free frame", 0, 1);
        }
        match refs.owner() {
            // Of a free block's first frame the type word holds the order.
            _ if word.kind() == FrameType::Free => return,
            DomId::IO => {}
            DomId::XEN if tally.claimed => {}
            DomId::XEN => self.census.hypervisor += 1,
            id if self.subject(id).is_some() => self.census.domains += 1,
            _ => self.expect(Invariant::Counted, mfn, "claims on a frame of nobody's", 1, tally.claimed.into()),
        }
        self.expect(Invariant::TypeIsHeld, mfn, "type count", tally.uses.into(), word.count().into());
        if word.count() > 0 {
            let kind = tally.kind.unwrap_or(FrameType::None);
            let writable = kind == FrameType::Writable || word.kind() == FrameType::Writable;
            let invariant = if writable { Invariant::WritableOrTable } else { Invariant::TypeIsHeld };
            self.expect(invariant, mfn, "type", kind as u64, word.kind() as u64);
            let validated = word.partial().is_none();
            self.expect(Invariant::TypeIsHeld, mfn, "validated", validated.into(), word.is_validated().into());
        }
        self.check_linear_uses(mfn, tally.linear);
        if word.count() > refs.count() {
            self.report(Invariant::Counted, mfn, "type count at most", refs.count().into(), word.count().into());
        }
    }

    fn compare_domains(&mut self) {
        let table = self.host.frames;
        let owned = |id: DomId| {
            let frames = (0..table.len()).filter_map(|mfn| table.info(Mfn(mfn))).map(FrameInfo::refs);
            frames.filter(|refs| refs.owner() == id && !refs.is_shared()).count() as u64
        };
        for index in 0..self.subjects.len() {
            let subject = self.subjects[index];
            let owned = owned(subject.dom.id);
            let total = subject.dom.total_pages.load(Ordering::Relaxed);
            let at = Mfn(subject.dom.id.0.into());
            self.expect(Invariant::Counted, at, "frames of the domain with this number", owned, total.into());
        }
    }
}
