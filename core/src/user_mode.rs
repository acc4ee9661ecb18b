//! User mode of x86_64 guests: `switch_to_user` and `set_segment_base`.
//!
//! Kernel and applications of an x86_64 guest both run in ring 3; which of them runs is the virtual CPU's [`Mode`]. The
//! kernel leaves for an application by `switch_to_user`, with a frame on its stack; everything that happens to an
//! application (exception, `int n`, event, `syscall`) brings the kernel back, on the stack of `stack_switch`
//! ([`crate::bounce`]). With the mode change the page-table base ([`crate::paging::user_base`]) and the base of gs.
//!
//! Promises: nothing that a frame says gives an application more than ring 3 with interrupts on and no I/O privilege;
//! whatever it names that the CPU cannot load (a selector, a rip that is not canonical) becomes its kernel's failsafe
//! callback when the CPU finds out. A frame that cannot be read is `-EFAULT`, and nothing has happened. No lock but the
//! paging lock, for the base.
//!
//! Source: Xen at 1de2eb95ef (March 2005), arch-x86_64.h; what differs is marked [ours].

use crate::addr::{GuestVirt, Mfn};
use crate::bounce::{Context, Mode};
use crate::domain::{Arch, Domain};
use crate::host::{Hardware, Host};
use crate::paging::Pager;
use crate::paging::user_base::{NoUserBase, Settled};
use crate::personality::Personality;
use crate::vcpu::Vcpu;
use core::mem::offset_of;
use proxenos_abi::hypercall::{SWITCH_TO_USER_IN_SYSCALL, SWITCH_TO_USER_RAX, SegmentBase, SwitchToUser};
use proxenos_abi::{Errno, GuestArch, Selector, X86_64};

/// Flags that an application may be given: CF, PF, AF, ZF, SF, TF, DF, OF, NT, RF, AC and ID. Not IOPL, VM, VIF or VIP.
const GIVEN_FLAGS: u64 = 0x0025_4dd5;
/// Flags that it has: IF, and the one that is always set.
const FIXED_FLAGS: u64 = 1 << 9 | 1 << 1;

/// The registers that an application goes on with; all others stay as its kernel had them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Application {
    /// Those that entering a kernel changes.
    pub context: Context,
    /// rax, where it is not left as it was.
    pub rax: Option<u64>,
}

impl Application {
    /// As from a system call: the CPU's own return would leave no more.
    #[inline(always)]
    #[must_use]
    pub const fn after_system_call(ip: u64, flags: u64, sp: u64, rax: Option<u64>) -> Self {
        let flags = given(flags);
        let (cs, ss) = (X86_64::FLAT_USER_CS, X86_64::FLAT_USER_DS);
        Self { context: Context { ip, cs, flags, sp, ss, rcx: ip, r11: flags }, rax }
    }

    /// With all that a frame says.
    ///
    /// [ours] Selectors are made ring 3's: in 2005 they were loaded as they came, and any number was obeyed.
    #[inline(always)]
    #[must_use]
    pub const fn whole(frame: &SwitchToUser, rax: Option<u64>) -> Self {
        let &SwitchToUser { r11, rcx, rip: ip, cs, rflags, rsp: sp, ss, .. } = frame;
        let (cs, ss) = (Selector(cs as u16 | 3), Selector(ss as u16 | 3));
        Self { context: Context { ip, cs, flags: given(rflags), sp, ss, rcx, r11 }, rax }
    }

    /// `switch_to_user()`: what the frame at the kernel's stack pointer says. What of it does not count need not be
    /// there.
    ///
    /// # Errors
    /// `EFAULT`: it cannot be read.
    #[inline]
    pub fn at_stack<H: Hardware>(host: &Host<H>, sp: GuestVirt) -> Result<Self, Errno> {
        const BYTES: u64 = size_of::<SwitchToUser>() as u64;
        // Two words at a time: nearly all calls are returns from system calls, of which four count.
        let pair = |offset: usize| host.hw.read_words::<2>(sp.offset(offset as u64)).map_err(|_| Errno::EFAULT);
        let word = |offset: u64| host.hw.read_words::<1>(sp.offset(offset)).map_err(|_| Errno::EFAULT);
        if !X86_64::in_guest_range(sp, BYTES) {
            return Err(Errno::EFAULT);
        }
        let [how, rip] = pair(offset_of!(SwitchToUser, flags))?;
        let [rflags, rsp] = pair(offset_of!(SwitchToUser, rflags))?;
        let rax = if how & SWITCH_TO_USER_RAX == 0 {
            None
        } else if X86_64::in_guest_range(sp, BYTES + 8) {
            Some(word(BYTES)?[0])
        } else {
            return Err(Errno::EFAULT);
        };
        if how & SWITCH_TO_USER_IN_SYSCALL != 0 {
            return Ok(Self::after_system_call(rip, rflags, rsp, rax));
        }
        let [r11, rcx] = pair(offset_of!(SwitchToUser, r11))?;
        let ([cs], [ss]) = (word(offset_of!(SwitchToUser, cs) as u64)?, word(offset_of!(SwitchToUser, ss) as u64)?);
        Ok(Self::whole(&SwitchToUser { r11, rcx, flags: how, rip, cs, rflags, rsp, ss }, rax))
    }
}

/// Flags that an application gets.
const fn given(flags: u64) -> u64 {
    flags & GIVEN_FLAGS | FIXED_FLAGS
}

/// Changes the mode of a virtual CPU that runs here: the page-table base with it, not the base of gs. `load` makes a
/// frame the root that the CPU walks, and drops every translation. It comes too often to be a step of the flush clock,
/// so this flush counts as made at the last: it may count as older than a stamp that was taken before it, never as
/// younger than one that was taken after it.
///
/// # Errors
/// Its applications have nothing to run on; nothing has changed.
#[inline]
pub fn switch<H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    to: Mode,
    load: impl FnOnce(Mfn),
) -> Result<Settled, NoUserBase> {
    let settled = Pager::new(host, dom).switch_mode(to, load)?;
    vcpu.mode = to;
    Ok(settled)
}

/// The same, if it needs no wait for the paging lock. Else nothing has changed.
#[inline(always)]
pub fn switch_at_once<H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    to: Mode,
    load: impl FnOnce(Mfn),
) -> Option<Result<Settled, NoUserBase>> {
    let settled = Pager::new(host, dom).switch_mode_at_once(to, load)?;
    if settled.is_ok() {
        vcpu.mode = to;
    }
    Some(settled)
}

/// `set_segment_base(which, base)`: of fs, or of gs in one of the modes. A base is a canonical address, and may be
/// anybody's: what it leads to is protected by page tables.
///
/// # Errors
/// `EINVAL`: there is no such register, the address is not canonical, or the selector cannot be loaded; nothing has
/// changed.
pub fn set_segment_base<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    which: u32,
    value: u64,
) -> Result<u64, Errno> {
    if P::ARCH != Arch::X86_64 {
        return Err(Errno::ENOSYS);
    }
    let which = SegmentBase::from_raw(which).ok_or(Errno::EINVAL)?;
    if which == SegmentBase::GsUserSelector {
        let null = value as u16 & !3 == 0;
        let selector = Selector(if null { 0 } else { value as u16 | 3 });
        if selector.is_local() {
            // A page of the LDT that is not there yet: there is no fault that could fetch it.
            vcpu.segments.ldt_fault::<P, H>(host, dom, u64::from(selector.index()) * 8);
        }
        return host.hw.load_user_gs(selector).map(|()| 0).map_err(|_| Errno::EINVAL);
    }
    // The topmost 17 bits are all the same.
    if !matches!((value as i64) >> 47, 0 | -1) {
        return Err(Errno::EINVAL);
    }
    host.hw.set_segment_base(which, value);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_loaded_whole_or_as_the_return_of_a_system_call() {
        let frame = SwitchToUser { r11: 1, rcx: 2, rip: 3, cs: 0x823, rflags: 0x4d7, rsp: 5, ss: 0x833, flags: 0 };
        let context = Context { ip: 3, cs: Selector(0x823), flags: 0x6d7, sp: 5, ss: Selector(0x833), rcx: 2, r11: 1 };
        assert_eq!(Application::whole(&frame, Some(9)), Application { context, rax: Some(9) });
        let context = Context { cs: Selector(0x82b), rcx: 3, r11: 0x6d7, ..context };
        assert_eq!(Application::after_system_call(3, 0x4d7, 5, None), Application { context, rax: None });
    }

    proptest! {
        #[test]
        fn whatever_a_frame_says_is_ring_3s(frame: [u64; 8]) {
            let [r11, rcx, flags, rip, cs, rflags, rsp, ss] = frame;
            let frame = SwitchToUser { r11, rcx, flags, rip, cs, rflags, rsp, ss };
            for found in [Application::whole(&frame, None), Application::after_system_call(rip, rflags, rsp, None)] {
                let context = found.context;
                prop_assert_eq!((context.cs.rpl(), context.ss.rpl()), (3, 3));
                // VM, IOPL, VIF, VIP; IF.
                prop_assert_eq!(context.flags & (1 << 17 | 3 << 12 | 3 << 19), 0);
                prop_assert_eq!(context.flags & (1 << 9), 1 << 9);
                prop_assert_eq!(context.flags >> 22, 0);
                prop_assert_eq!((context.ip, context.sp), (rip, rsp));
            }
        }
    }
}
