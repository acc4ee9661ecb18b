//! The requests that kernels make most, by a short way: changes of L1 entries, flushes, a new base.
//!
//! [`Course::run`] carries out requests from where the call stands for as long as they are such, and as nothing about them is
//! out of the ordinary: the caller's own frames, types that are held already. It stops *before* the first that is not, of
//! which it has changed nothing; that one is for the way at length, which decides everything anew. So what is done here is a
//! special case of what would be done there, and nothing is refused here.
//!
//! Some requests are read at a time, where 2.0 reads one at a time: a list that changes while it is being read may be seen
//! as it was or as it is. Behind a request that is not for here it is read again. If some of them cannot be read, none of
//! them is carried out here, and the way at length finds the one that cannot.
//!
//! The paging lock is held for all that were read at a time, and no longer: never while guest memory is touched.

use super::machine_to_phys;
use crate::addr::{GuestVirt, MachineAddr};
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::machine::BadPointer;
use crate::paging::entry::L1Table;
use crate::paging::format::Format;
use crate::paging::{Pager, PagingState};
use crate::personality::Personality;
use crate::preempt::{Poll, cost};
use proxenos_abi::GuestWord;
use proxenos_abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};

/// Requests that are read at a time. In tests few, so that a short list has many points at which it can be interrupted.
const CHUNK: usize = if cfg!(test) { 3 } else { 16 };

/// How far an `mmu_update` has come.
pub(super) struct Course {
    /// Requests done.
    pub completed: u32,
    /// The whole TLB is to be flushed before the guest goes on.
    pub flush_tlb: bool,
    /// What it has taken since the guest's entry.
    pub poll: Poll,
}

impl Course {
    /// Nothing is done yet.
    #[inline(always)]
    pub const fn begin() -> Self {
        Self { completed: 0, flush_tlb: false, poll: Poll::begin() }
    }

    /// Carries out requests of a list of `count`, all of whose addresses are the guest's, up to one that is not for here, or
    /// until the call should make way.
    #[inline(always)]
    pub fn run<P: Personality, H: Hardware>(&mut self, caller: &Caller<'_, H>, list: GuestVirt, count: u32) {
        if count - self.completed == 1 {
            if let Ok(request) = read_one::<P, H>(caller, self.place::<P>(list)) {
                self.carry_out::<P, H>(caller, core::slice::from_ref(&request));
            }
        } else {
            self.run_many::<P, H>(caller, list, count);
        }
    }

    #[inline(never)]
    fn run_many<P: Personality, H: Hardware>(&mut self, caller: &Caller<'_, H>, list: GuestVirt, count: u32) {
        let mut chunk = [MmuUpdate::<P>::new_zeroed(); CHUNK];
        while self.completed < count && !self.poll.is_due(&caller.host.hw) {
            let requests = &mut chunk[..CHUNK.min((count - self.completed) as usize)];
            if caller.host.hw.copy_from_guest(self.place::<P>(list), requests.as_mut_bytes()).is_err()
                || !self.carry_out::<P, H>(caller, requests)
            {
                break;
            }
        }
    }

    /// Where in its list the next request is.
    #[inline(always)]
    fn place<P: Personality>(&self, list: GuestVirt) -> GuestVirt {
        list.offset(u64::from(self.completed) * size_of::<MmuUpdate<P>>() as u64)
    }

    /// Carries out requests; true when all of them are done.
    #[inline(always)]
    fn carry_out<P: Personality, H: Hardware>(&mut self, caller: &Caller<'_, H>, requests: &[MmuUpdate<P>]) -> bool {
        let pager = Pager::new(caller.host, caller.dom);
        let mut state = pager.lock();
        let mut table = None;
        let mut done = 0;
        for request in requests {
            let carried_out = match request.command() {
                Some(MmuCommand::NormalPtUpdate) => {
                    store::<P, H>(&pager, &mut table, request.address(), request.val.to_u64())
                }
                Some(MmuCommand::MachphysUpdate) => {
                    machine_to_phys::<P, H>(caller.host, caller.dom.id, request).is_ok()
                }
                Some(MmuCommand::ExtendedCommand) => self.extended::<P, H>(caller, &pager, &mut state, request),
                None => false,
            };
            if !carried_out {
                break;
            }
            done += 1;
        }
        self.completed += done;
        self.poll.step(done * cost::ENTRY);
        done as usize == requests.len()
    }

    fn extended<P: Personality, H: Hardware>(
        &mut self,
        caller: &Caller<'_, H>,
        pager: &Pager<'_, H>,
        state: &mut PagingState,
        request: &MmuUpdate<P>,
    ) -> bool {
        let at = request.address();
        match request.ext_command() {
            Some(MmuExtCommand::NewBaseptr) => {
                // Pages of the LDT would have to be looked up anew.
                let switched = !caller.vcpu.segments.has_ldt_pages()
                    && pager.switch_held_base::<P::Tables>(state, at.mfn(), |root| caller.host.hw.load_root(root));
                // Loading the root has flushed whatever an earlier request wanted flushed.
                self.flush_tlb &= !switched;
                switched
            }
            Some(MmuExtCommand::TlbFlush) => {
                self.flush_tlb = true;
                true
            }
            Some(MmuExtCommand::Invlpg) => {
                super::flush_page::<P, H>(caller.host, GuestVirt(at.0));
                true
            }
            _ => false,
        }
    }
}

/// A checked store to an entry of an L1 table of the caller's; false when that is not what it is, or more is to be looked at.
/// `table` is the one of the last store: it stays one while the paging lock is held (see [`L1Table`]).
#[inline(always)]
fn store<P: Personality, H: Hardware>(
    pager: &Pager<'_, H>,
    table: &mut Option<L1Table>,
    at: MachineAddr,
    value: u64,
) -> bool {
    let table = match *table {
        Some(table) if table.mfn() == at.mfn() => table,
        _ => {
            let Some(found) = pager.own_l1_table::<P::Tables>(at.mfn()) else { return false };
            *table.insert(found)
        }
    };
    let Some(index) = P::Tables::entry_index(at) else { return false };
    pager.update_l1_quickly::<P::Tables>(&table, index, P::Tables::truncate(value))
}

/// Reads a request.
#[inline(always)]
pub(super) fn read_one<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    at: GuestVirt,
) -> Result<MmuUpdate<P>, BadPointer> {
    let word = P::Word::from_u64_truncating;
    let (ptr, val) = if P::Word::BYTES == 4 {
        let [both] = caller.host.hw.read_words(at)?;
        (both, both >> 32)
    } else {
        let [ptr, val] = caller.host.hw.read_words(at)?;
        (ptr, val)
    };
    Ok(MmuUpdate { ptr: word(ptr), val: word(val) })
}
