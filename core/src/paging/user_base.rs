//! A second page-table base, for the applications of an x86_64 guest (MMUEXT_NEW_USER_BASEPTR).
//!
//! Kernel and applications of an x86_64 guest both run in ring 3, so the user bit of an entry keeps nothing of the
//! kernel's from its applications. What does is that they run on other tables, in which the kernel is not. The kernel
//! names them beforehand; the CPU walks them from [`switch_mode`](Pager::switch_mode) to user mode on until that to
//! kernel mode. A kernel that wants one base names the same table twice: then nothing is protected from anybody, and a
//! change of modes loads nothing.
//!
//! Promises:
//! - both bases are held by a reference each, and each table that a CPU walks is one of them (or a shadow of it);
//! - requests are made in kernel mode, so they, and all that the hypervisor does for them, mean the kernel's tables;
//! - nothing that was translated by one base is in a TLB when the other is walked: loading a root drops everything;
//! - in user mode no page table is open for writing ([`super::window`]).
//!
//! Lock: the owner's paging lock.

use super::format::Format;
use super::{Pager, PagingError, PagingState};
use crate::addr::Mfn;
use crate::bounce::Mode;
use crate::frame::FrameType;
use crate::host::Hardware;
use crate::sync::MutexGuard;
use core::sync::atomic::{AtomicU64, Ordering};

/// What a CPU walks for a domain in each mode, worked out when it changes: in the domain, since a CPU that comes to run
/// it need not take the paging lock for that. Written under the lock; and what a CPU may come to walk changes only
/// while the domain runs there, or is kept from running.
#[derive(Debug)]
pub struct Roots([AtomicU64; 2]);

/// No frame that could be a table.
const NO_ROOT: Mfn = Mfn(0);

impl Roots {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(NO_ROOT.0) }; 2])
    }

    /// The L4 table for the CPU: the guest's own, or the one its shadows hang in.
    #[inline]
    #[must_use]
    pub fn of(&self, mode: Mode) -> Option<Mfn> {
        Some(self.word(mode)).filter(|&root| root != NO_ROOT)
    }

    /// The same; frame 0 if there is none.
    #[inline]
    pub(super) fn word(&self, mode: Mode) -> Mfn {
        Mfn(self.0[mode as usize].load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, mode: Mode, root: Option<Mfn>) {
        self.0[mode as usize].store(root.unwrap_or(NO_ROOT).0, Ordering::Relaxed);
    }
}

/// What the applications of a four-level guest run on, and whether it is they that run. Two-level guests have none:
/// their applications run in another ring.
#[derive(Debug)]
pub struct UserBase {
    /// The top-level table, of which a type reference is held.
    pub base: Option<Mfn>,
    /// While the guest is watched, its shadow ([`super::log_dirty`]).
    pub(crate) root: Option<Mfn>,
    /// Whose tables the CPU walks when the domain runs. User mode only if there is a base.
    pub mode: Mode,
}

impl UserBase {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self { base: None, root: None, mode: Mode::Kernel }
    }
}

/// What was done to the kernel's tables before the mode changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Nothing.
    Nothing,
    /// Some may have been open, and have been closed: that may be the domain's end.
    Tables,
}

/// A domain's applications have nothing to run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoUserBase;

impl<H: Hardware> Pager<'_, H> {
    /// Makes `table` what the domain's applications run on, or has them run on nothing. The kernel runs.
    ///
    /// # Errors
    /// The table cannot be one, or there is no memory for its shadow; or the request made way.
    pub fn set_user_base<F: Format>(&self, state: &mut PagingState, table: Option<Mfn>) -> Result<(), PagingError> {
        debug_assert!(!F::SHADOWED && state.user.mode == Mode::Kernel, "only a kernel makes requests");
        let Some(table) = table else {
            self.replace_user_base::<F>(state, None);
            return Ok(());
        };
        self.get_frame_and_type::<F>(state, table, self.dom.id, FrameType::table(F::TOP))?;
        if let Err(error) = self.need_shadow::<F>(state, table) {
            self.put_frame_and_type::<F>(state, table);
            return Err(error);
        }
        self.replace_user_base::<F>(state, Some(table));
        Ok(())
    }

    /// Replaces the base, of which a reference has been taken. The CPU does not walk the old one.
    pub(super) fn replace_user_base<F: Format>(&self, state: &mut PagingState, table: Option<Mfn>) {
        let old = core::mem::replace(&mut state.user.base, table);
        self.hang_user_shadow(state);
        if let Some(old) = old {
            self.put_frame_and_type::<F>(state, old);
        }
    }

    /// Notes the shadow of the base, if the CPU is to walk that.
    pub(super) fn hang_user_shadow(&self, state: &mut PagingState) {
        let watched = state.user.base.filter(|_| self.dom.log.is_on());
        state.user.root = watched.and_then(|base| self.host.frames.info(base)?.shadow());
        self.note_roots(state);
    }

    /// To be called when anything has changed that the roots depend on.
    pub(super) fn note_roots(&self, state: &PagingState) {
        self.dom.roots.set(Mode::Kernel, state.upper.map(|(l4, _)| l4).or(state.root).or(state.base));
        self.dom.roots.set(Mode::User, state.user.root.or(state.user.base));
    }

    /// Goes over to the kernel or to its applications. `load` is given the root that the CPU is to walk from now on, if
    /// it is another.
    ///
    /// # Errors
    /// The applications have no base; nothing has changed.
    #[inline]
    pub fn switch_mode(&self, to: Mode, load: impl FnOnce(Mfn)) -> Result<Settled, NoUserBase> {
        self.switch_mode_holding(self.dom.paging.lock(), to, load)
    }

    /// The same, if nobody has the lock: whoever may wait for one keeps more in registers for it. Else nothing has
    /// changed.
    #[inline(always)]
    pub fn switch_mode_at_once(&self, to: Mode, load: impl FnOnce(Mfn)) -> Option<Result<Settled, NoUserBase>> {
        Some(self.switch_mode_holding(self.dom.paging.try_lock()?, to, load))
    }

    #[inline(always)]
    fn switch_mode_holding(
        &self,
        mut state: MutexGuard<'_, PagingState>,
        to: Mode,
        load: impl FnOnce(Mfn),
    ) -> Result<Settled, NoUserBase> {
        let mut settled = Settled::Nothing;
        // What the kernel wrote to its tables counts when applications run; they open none.
        if to == Mode::User && self.dom.has_busy_tables() {
            self.settle(&mut state);
            settled = Settled::Tables;
        }
        let (kernel, user) = (self.dom.roots.word(Mode::Kernel), self.dom.roots.word(Mode::User));
        let root = if to == Mode::Kernel { kernel } else { user };
        if to == Mode::User && root == NO_ROOT {
            return Err(NoUserBase);
        }
        debug_assert!(state.user.mode != to, "it changes");
        state.user.mode = to;
        if kernel != user {
            load(root);
        }
        Ok(settled)
    }
}
