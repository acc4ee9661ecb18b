//! The calls and requests that kernels make most, by a short way: changes of L1 entries, flushes, a new base.
//!
//! [`mmu_update`] carries out requests for as long as they are such, and as nothing about them is out of the ordinary:
//! the caller's own frames, types that are held already. It stops *before* the first that is not, of which it has
//! changed nothing; that one is for the way at length ([`super::mmu_update`]), which decides everything anew and begins
//! where this one stopped ([`Course`]). So what is done here is a special case of what would be done there, and nothing
//! is refused here. The same goes for [`update_va_mapping`].
//!
//! Some requests are read at a time, where 2.0 reads one at a time: a list that changes while it is being read may be
//! seen as it was or as it is. Behind a request that is not for here it is read again. If some of them cannot be read,
//! none of them is carried out here, and the way at length finds the one that cannot.
//!
//! The paging lock is held for all that were read at a time, and no longer: never while guest memory is touched.

use super::{conclude, flush, flush_page, machine_to_phys};
use crate::addr::GuestVirt;
use crate::domain::Domain;
use crate::host::{Hardware, Host};
use crate::machine::BadPointer;
use crate::paging::entry::L1Table;
use crate::paging::format::Format;
use crate::paging::{Pager, PagingState};
use crate::personality::Personality;
use crate::preempt::{Poll, cost};
use crate::vcpu::Vcpu;
use proxenos_abi::GuestWord;
use proxenos_abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate, UpdateVaFlags};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};

/// Requests that are read at a time. In tests few, so that a short list has many points at which it can be interrupted.
const CHUNK: usize = if cfg!(test) { 3 } else { 16 };

/// How far a call has come since the guest's entry: an `mmu_update`, or a multicall.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// Requests done.
    pub(crate) completed: u32,
    /// The whole TLB is to be flushed before the guest goes on.
    pub(crate) flush_tlb: bool,
    /// What it has taken.
    pub(crate) poll: Poll,
}

impl Course {
    /// Nothing is done yet.
    #[inline]
    #[must_use]
    pub const fn begin() -> Self {
        Self { completed: 0, flush_tlb: false, poll: Poll::begin() }
    }

    /// Carries out requests of a list of `count`, all of whose addresses are the guest's, up to one that is not for
    /// here, or until the call should make way.
    pub(super) fn run<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        vcpu: &Vcpu,
        list: GuestVirt,
        count: u32,
    ) {
        let pager = Pager::new(host, dom);
        let mut chunk = [MmuUpdate::<P>::new_zeroed(); CHUNK];
        while self.completed < count && !self.poll.is_due(&host.hw) {
            let requests = &mut chunk[..CHUNK.min((count - self.completed) as usize)];
            let at = list.offset(u64::from(self.completed) * size_of::<MmuUpdate<P>>() as u64);
            if host.hw.copy_from_guest(at, requests.as_mut_bytes()).is_err() {
                break;
            }
            let mut table = L1Table::NONE;
            let mut state = pager.lock();
            let base = state.base;
            let mut done = 0;
            let mut stopped = false;
            for request in &*requests {
                if is_store(request) {
                    stopped = !store::<P, H>(pager, &mut table, request);
                } else {
                    stopped = !others::<P, H>(pager, &mut state, vcpu, &mut self.flush_tlb, request);
                    // What follows lies in another address space now, and is read anew.
                    if state.base != base {
                        done += 1;
                        break;
                    }
                }
                if stopped {
                    break;
                }
                done += 1;
            }
            drop(state);
            self.completed += done;
            self.poll.step(done * cost::ENTRY);
            if stopped {
                break;
            }
        }
    }
}

/// `mmu_update`, if the short way leads to its end; else what it has come to is in [`Vcpu::course`].
#[inline(always)]
pub(crate) fn mmu_update<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    list: GuestVirt,
    count: u32,
    done: GuestVirt,
) -> Option<u64> {
    if !P::in_guest_range(list, u64::from(count) * size_of::<MmuUpdate<P>>() as u64) || !vcpu.unfinished.is_empty() {
        return None;
    }
    if count != 1 {
        return many::<P, H>(host, dom, vcpu, list, count, done);
    }
    let request = read_one::<P, H>(host, list).ok()?;
    let pager = Pager::new(host, dom);
    let mut flush_tlb = false;
    let mut state = pager.lock_at_once()?;
    let carried_out = if is_store(&request) {
        store::<P, H>(pager, &mut { L1Table::NONE }, &request)
    } else {
        carry_out::<P, H>(pager, &mut state, vcpu, &mut flush_tlb, &request)
    };
    drop(state);
    if !carried_out {
        return None;
    }
    conclude::<P, H>(host, flush_tlb, 1, done);
    follow_ldt::<P, H>(host, dom, vcpu);
    Some(0)
}

#[inline(never)]
fn many<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    list: GuestVirt,
    count: u32,
    done: GuestVirt,
) -> Option<u64> {
    let mut course = Course::begin();
    course.run::<P, H>(host, dom, vcpu, list, count);
    if course.completed < count {
        vcpu.course = course;
        return None;
    }
    if count == 0 {
        // What the guest wrote to its tables itself comes before what it asks for.
        drop(Pager::new(host, dom).lock());
    }
    conclude::<P, H>(host, course.flush_tlb, count, done);
    follow_ldt::<P, H>(host, dom, vcpu);
    Some(0)
}

/// `update_va_mapping` of a frame of the caller's own, if the short way leads to its end; else nothing has changed.
#[inline(always)]
pub(crate) fn update_va_mapping<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    page: u64,
    value: u64,
    flags: u32,
) -> Option<u64> {
    let at = P::guest_page(page)?;
    let pager = Pager::new(host, dom);
    let state = pager.lock_at_once()?;
    let (table, index) = pager.l1_entry::<P::Tables>(&state, at)?;
    let slot = P::Tables::entry_addr(table.mfn(), index);
    if !pager.update_l1_quickly::<P::Tables>(&table, slot, P::Tables::truncate(value)) {
        return None;
    }
    drop(state);
    flush::<H>(host, at, UpdateVaFlags::from_bits_truncate(flags));
    follow_ldt::<P, H>(host, dom, vcpu);
    Some(0)
}

/// Looks where the LDT lies, if a mapping of it may have gone. Nothing else is due of it: what is done here sets none.
#[inline(always)]
fn follow_ldt<P: Personality, H: Hardware>(host: &Host<H>, dom: &Domain, vcpu: &mut Vcpu) {
    if dom.has_ldt_moved() {
        vcpu.segments.refresh_ldt::<P, H>(host, dom);
    }
}

/// Whether a request is a checked store.
#[inline(always)]
fn is_store<P: Personality>(request: &MmuUpdate<P>) -> bool {
    request.command() == Some(MmuCommand::NormalPtUpdate)
}

/// [`carry_out`], out of the way of stores.
#[inline(never)]
fn others<P: Personality, H: Hardware>(
    pager: Pager<'_, H>,
    state: &mut PagingState,
    vcpu: &Vcpu,
    flush_tlb: &mut bool,
    request: &MmuUpdate<P>,
) -> bool {
    carry_out::<P, H>(pager, state, vcpu, flush_tlb, request)
}

/// Carries out a request that is no store; false when it is not for here, and nothing has changed.
#[inline(always)]
fn carry_out<P: Personality, H: Hardware>(
    pager: Pager<'_, H>,
    state: &mut PagingState,
    vcpu: &Vcpu,
    flush_tlb: &mut bool,
    request: &MmuUpdate<P>,
) -> bool {
    match request.command() {
        Some(MmuCommand::MachphysUpdate) => machine_to_phys::<P, H>(pager.host, pager.dom.id, request).is_ok(),
        Some(MmuCommand::ExtendedCommand) => extended::<P, H>(pager, state, vcpu, flush_tlb, request),
        _ => false,
    }
}

#[inline(always)]
fn extended<P: Personality, H: Hardware>(
    pager: Pager<'_, H>,
    state: &mut PagingState,
    vcpu: &Vcpu,
    flush_tlb: &mut bool,
    request: &MmuUpdate<P>,
) -> bool {
    let at = request.address();
    match request.ext_command() {
        Some(MmuExtCommand::NewBaseptr) => {
            let load = |root| pager.host.hw.load_root(root);
            // Pages of the LDT would have to be looked up anew.
            if vcpu.segments.has_ldt_pages() || !pager.switch_held_base::<P::Tables>(state, at.mfn(), load) {
                return false;
            }
            // Loading the root has flushed whatever an earlier request wanted flushed.
            *flush_tlb = false;
            true
        }
        Some(MmuExtCommand::TlbFlush) => {
            *flush_tlb = true;
            true
        }
        Some(MmuExtCommand::Invlpg) => {
            flush_page::<P, H>(pager.host, GuestVirt(at.0));
            true
        }
        _ => false,
    }
}

/// Carries out a checked store, if it is one to an entry of an L1 table of the caller's; false when it is not for here,
/// and nothing has changed. `table` is the one of the last store since the lock was taken, or none: it stays one while
/// that is held (see [`L1Table`]).
#[inline(always)]
fn store<P: Personality, H: Hardware>(pager: Pager<'_, H>, table: &mut L1Table, request: &MmuUpdate<P>) -> bool {
    let (at, value) = (request.address(), request.val.to_u64());
    if table.mfn() != at.mfn() {
        let Some(found) = pager.own_l1_table::<P::Tables>(at.mfn()) else { return false };
        *table = found;
    }
    P::Tables::entry_index(at).is_some() && pager.update_l1_quickly::<P::Tables>(table, at, P::Tables::truncate(value))
}

/// Reads a request.
#[inline(always)]
pub(super) fn read_one<P: Personality, H: Hardware>(host: &Host<H>, at: GuestVirt) -> Result<MmuUpdate<P>, BadPointer> {
    let word = P::Word::from_u64_truncating;
    let (ptr, val) = if P::Word::BYTES == 4 {
        let [both] = host.hw.read_words(at)?;
        (both, both >> 32)
    } else {
        let [ptr, val] = host.hw.read_words(at)?;
        (ptr, val)
    };
    Ok(MmuUpdate { ptr: word(ptr), val: word(val) })
}
