//! Page faults that are plainly the guest's: the short way for nearly all that its kernel is to hear of (demand paging,
//! copy-on-write).
//!
//! A fault is the guest's unless writable page tables ([`super::writable`]) or shadows ([`super::shadow`]) caused it.
//! Both are told by one look at the guest's own entry, and where there is any doubt, this says so and changes nothing:
//! whoever asked goes the long way, which decides all cases. Takes the owner's paging lock itself, if it is free.

use super::format::{Format, Pte, TwoLevel, bits};
use super::shadow::Access;
use super::{Pager, PagingState};
use crate::addr::GuestVirt;
use crate::bounce::Mode;
use crate::host::Hardware;
use proxenos_abi::hypercall::VmAssistType;

/// Whether there is a page at an address: bit 0 of a page fault's error code (Intel SDM vol. 3 §4.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    /// None.
    Absent,
    /// There is, and it does not allow the access.
    Present,
}

impl<H: Hardware> Pager<'_, H> {
    /// Whether a page fault is the guest's, and what its tables say of the page; `None` if only the long way can tell.
    /// `seen` is what the CPU saw.
    #[inline(always)]
    pub fn plain_fault<F: Format>(&self, at: GuestVirt, access: Access, seen: Page) -> Option<Page> {
        // The CPU may have walked a shadow that says less than the guest's tables.
        if !F::SHADOWED && self.dom.log.is_on() {
            return None;
        }
        // (Asked where it matters only.)
        let assisted = || self.dom.is_assisted(VmAssistType::WritablePagetables);
        if !F::SHADOWED && !assisted() {
            return Some(seen);
        }
        // Who waits here keeps more in registers for it than who need not.
        let mut state = self.dom.paging.try_lock()?;
        // The guest's tables may say something else than what the CPU has seen.
        if state.writable.is_open() {
            return None;
        }
        let page = if F::SHADOWED { self.refused_page(&state, at, access)? } else { seen };
        let by_kernel = if F::SHADOWED { !access.user } else { state.user.mode == Mode::Kernel };
        // It may be a store to a page table. (One that is not mapped is none.)
        if page == Page::Present && access.write && by_kernel && assisted() {
            return None;
        }
        state.writable.forget_recent();
        Some(page)
    }

    /// What a two-level guest's tables say of a page that they do not let it access so; `None` if they do (then A or D,
    /// or a shadow, was missing), or if they must be looked at more closely.
    #[inline(always)]
    fn refused_page(&self, state: &PagingState, at: GuestVirt, access: Access) -> Option<Page> {
        let hw = &self.host.hw;
        let top = TwoLevel::index(2, at);
        if at.0 >> 32 != 0 || !TwoLevel::is_guest_slot(2, top) {
            return None;
        }
        let upper = TwoLevel::load(hw, state.base?, top);
        if !upper.present() {
            return Some(Page::Absent);
        }
        let index = TwoLevel::index(1, at);
        let entry = TwoLevel::load(hw, upper.mfn(), index);
        if !entry.present() {
            return Some(Page::Absent);
        }
        // Should this be a directory in the place of an L1 table, what is in the hypervisor's slots has never been
        // looked at.
        if !TwoLevel::is_guest_slot(2, index) {
            return None;
        }
        let needed = if access.user { bits::US } else { 0 } | if access.write { bits::RW } else { 0 };
        (!Pte(upper.0 & entry.0).has(needed)).then_some(Page::Present)
    }
}
