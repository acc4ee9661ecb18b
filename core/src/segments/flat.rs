//! Which segments of a guest's own are known to begin at address 0, and what follows for its system calls: the short
//! ways into its kernel are for flat stacks only. Of each use of a segment ([`Use`]) the last one is known.
//!
//! Nobody looks at the tables for this. What the long way has found is remembered ([`FlatSegments::learn`]) until a
//! request changes the descriptor ([`FlatSegments::forget_entry`]) or the table ([`FlatSegments::forget`]). Only
//! selectors of the GDT are remembered: its pages are the domain's own frames, typed as descriptor tables, so requests
//! are all that can change them, while what the LDT holds depends on page tables too. Promise:
//! [`is_flat`](FlatSegments::is_flat) implies that a look at the tables would find the same now, and so does a [system
//! call's frame](FlatSegments::set_kernel) for the kernel's stack.
//!
//! Owned by whoever runs the virtual CPU; no lock. The entry of system calls, in assembly, reads the fields by their
//! offsets.

use crate::addr::GuestVirt;
use crate::personality::Personality;
use crate::rarely;
use core::mem::offset_of;
use proxenos_abi::{GuestArch, Selector, X86_32};

/// As wide as a register: the entry in assembly compares it with one.
type Word = u32;

/// No selector.
const NONE: Word = 0x1_0000;
/// The flat selector that every x86_32 guest has: its descriptor is the hypervisor's.
const FLAT: Word = X86_32::FLAT_GUESTOS_DS.0 as Word;
/// Bytes of the frame of a system call from an application of an x86_32 guest's: eip, cs, eflags, esp, ss.
const FRAME: u64 = 5 * 4;

/// What a segment is looked at for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// As a kernel's stack, or another: known to be writable data.
    Stack = 0,
    /// As what an instruction reads by DS: known to be writable data.
    Data = 1,
    /// As an x86_32 kernel's code: known to be of 32 bits.
    Code = 2,
}

/// What is known of a virtual CPU's segments.
#[derive(Debug)]
pub struct FlatSegments {
    /// By use, a selector of the GDT that names a segment that begins at 0.
    known: [Word; 3],
    /// The segment of the kernel's stack.
    kernel: Word,
    /// Where the frame of a system call lies on that stack if its segment is flat; 0 if it is misaligned or not the
    /// guest's.
    frame: Word,
    /// The same, if the segment is known to be flat, else 0.
    system_call_frame: Word,
}

impl FlatSegments {
    /// Offset of the selector known as a stack's, 32 bits wide.
    pub(super) const KNOWN: usize = offset_of!(Self, known) + Use::Stack as usize * size_of::<Word>();
    /// Offset of the kernel's stack selector, 32 bits wide.
    pub(super) const KERNEL: usize = offset_of!(Self, kernel);
    /// Offset of the frame's address, 0 for none.
    pub(super) const SYSTEM_CALL_FRAME: usize = offset_of!(Self, system_call_frame);

    /// Nothing is known, and there is no stack.
    pub(super) const fn new() -> Self {
        Self { known: [NONE; 3], kernel: 0, frame: 0, system_call_frame: 0 }
    }

    /// Where entries from ring 3 begin. They have a short way if the segment is known to be flat, the stack aligned to
    /// words and the whole frame at addresses of the guest's.
    #[inline]
    pub(super) fn set_kernel(&mut self, ss: Selector, sp: GuestVirt) {
        // Below 0 it would begin at an address of nobody's; at 0 it does without the short way.
        let at = GuestVirt(sp.0.wrapping_sub(FRAME));
        let possible = sp.0.is_multiple_of(4) && X86_32::in_guest_range(at, FRAME);
        self.kernel = ss.0.into();
        self.frame = if possible { at.0 as Word } else { 0 };
        self.conclude();
    }

    /// A selector was just found to name a segment that begins at 0, and is of the kind that goes with the use.
    pub(super) fn learn(&mut self, role: Use, selector: Selector) {
        if !selector.is_local() {
            self.known[role as usize] = selector.0.into();
            self.conclude();
        }
    }

    /// The table is another, or at its end.
    pub(super) fn forget(&mut self) {
        self.known = [NONE; 3];
        self.conclude();
    }

    /// A descriptor was stored somewhere, in the place of this index of a page. In whichever page: one that does not
    /// hold a known one, or holds it elsewhere, is none of its table's.
    pub(super) fn forget_entry(&mut self, index: u16) {
        let stored = |known: Word| known != NONE && Selector(known as u16).index() % super::PER_PAGE == index;
        if self.known.into_iter().any(stored) {
            self.forget();
        }
    }

    /// Whether a selector is known to name a writable data segment that begins at 0.
    #[inline]
    pub(super) fn is_flat<P: Personality>(&self, ss: Selector) -> bool {
        if ss == P::FLAT_GUESTOS_DS {
            return true;
        }
        // Else the compiler looks at both always, since it can.
        rarely();
        self.is_known(Use::Stack, ss)
    }

    /// Whether a selector is remembered.
    #[inline]
    pub(super) fn is_known(&self, role: Use, selector: Selector) -> bool {
        self.known[role as usize] == Word::from(selector.0)
    }

    #[inline]
    const fn conclude(&mut self) {
        let flat = self.kernel == FLAT || self.kernel == self.known[Use::Stack as usize];
        self.system_call_frame = if flat { self.frame } else { 0 };
    }

    /// What the entry of system calls finds.
    #[cfg(test)]
    pub(crate) const fn system_call_frame(&self) -> u32 {
        self.system_call_frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Selector = Selector(0x69);
    const TOP: GuestVirt = GuestVirt(0xc000_1000);
    const FRAME_AT: u32 = 0xc000_0fec;

    #[test]
    fn frames_lie_on_aligned_stacks_of_the_guest_s() {
        let frame = |sp| {
            let mut stacks = FlatSegments::new();
            stacks.set_kernel(X86_32::FLAT_GUESTOS_DS, GuestVirt(sp));
            stacks.system_call_frame()
        };
        assert_eq!(frame(TOP.0), FRAME_AT);
        for sp in [0xc000_1001, 0xc000_1002, 0xc000_1003, 0, 4, 20, 0xfc00_0004, 0xffff_fffc] {
            assert_eq!(frame(sp), 0, "{sp:#x}");
        }
        assert_eq!((frame(24), frame(0xfc00_0000)), (4, 0xfbff_ffec), "the edges");
    }

    #[test]
    fn a_segment_of_the_guest_s_own_counts_while_it_is_known() {
        let mut stacks = FlatSegments::new();
        stacks.set_kernel(OWN, TOP);
        assert_eq!(stacks.system_call_frame(), 0);
        stacks.learn(Use::Stack, OWN);
        assert_eq!(stacks.system_call_frame(), FRAME_AT);
        stacks.set_kernel(OWN, GuestVirt(TOP.0 + 4));
        assert_eq!(stacks.system_call_frame(), FRAME_AT + 4, "another stack in it");
        stacks.set_kernel(Selector(0x71), TOP);
        assert_eq!(stacks.system_call_frame(), 0, "another segment");
        stacks.set_kernel(OWN, TOP);
        stacks.learn(Use::Stack, Selector(0x71));
        assert_eq!(stacks.system_call_frame(), 0, "one is remembered");
        stacks.set_kernel(X86_32::FLAT_GUESTOS_DS, TOP);
        assert_eq!(stacks.system_call_frame(), FRAME_AT, "beside the one that all have");
        stacks.forget();
        assert_eq!(stacks.system_call_frame(), FRAME_AT);
    }

    #[test]
    fn what_may_have_changed_is_forgotten() {
        let known = || {
            let mut stacks = FlatSegments::new();
            stacks.set_kernel(OWN, TOP);
            stacks.learn(Use::Stack, OWN);
            assert!(stacks.is_flat::<X86_32>(OWN));
            stacks
        };
        let mut stacks = known();
        for index in (0..super::super::PER_PAGE).filter(|&index| index != OWN.index()) {
            stacks.forget_entry(index);
        }
        assert_eq!(stacks.system_call_frame(), FRAME_AT);
        stacks.forget_entry(OWN.index());
        assert_eq!((stacks.system_call_frame(), stacks.is_flat::<X86_32>(OWN)), (0, false));
        let mut stacks = known();
        stacks.forget();
        assert_eq!((stacks.system_call_frame(), stacks.is_flat::<X86_32>(OWN)), (0, false));
        // A selector of another page of the table, and one that leads to the LDT.
        let mut stacks = known();
        stacks.learn(Use::Stack, Selector::gdt(512 + 13, 1));
        stacks.forget_entry(13);
        assert!(!stacks.is_flat::<X86_32>(Selector::gdt(512 + 13, 1)));
        stacks.learn(Use::Stack, Selector(OWN.0 | 4));
        assert!(!stacks.is_flat::<X86_32>(Selector(OWN.0 | 4)));
        // Each use has its own; what makes one of them forgotten may take the others along.
        let mut stacks = known();
        stacks.learn(Use::Data, Selector(0x7b));
        stacks.learn(Use::Code, Selector(0x61));
        assert!(stacks.is_flat::<X86_32>(OWN) && !stacks.is_flat::<X86_32>(Selector(0x7b)));
        stacks.forget_entry(Selector(0x61).index());
        assert!(!stacks.is_known(Use::Code, Selector(0x61)));
        // No selector is known at first, and none of them is the mark for that.
        assert!((0..=u16::MAX).all(|raw| !FlatSegments::new().is_flat::<X86_32>(Selector(raw)) || raw == FLAT as u16));
    }
}
