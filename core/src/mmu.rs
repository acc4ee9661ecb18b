//! The hypercalls on page tables: `mmu_update`, `update_va_mapping` and `update_va_mapping_otherdomain`.
//!
//! Requests are decoded here and carried out by [`crate::paging`]. Guest memory is never touched while a paging lock is
//! held: reading it may itself need the lock, to set an accessed bit.
//!
//! A list of any length makes way between two requests, and within one that validates or drops a tree of tables; see
//! [`crate::preempt`]. Most calls are made by a short way ([`quick`]); what is here is the way at length, for what that
//! leaves.

pub(crate) mod quick;

use crate::addr::{DomId, FRAMES_BELOW_4G, GuestVirt, MachineAddr, Mfn};
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::frame::FrameType;
use crate::grant;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::life::keep_alive;
use crate::paging::format::{Format, FourLevel, TwoLevel};
use crate::paging::partial::Drained;
use crate::paging::{Pager, PagingError, PagingState, Target};
use crate::personality::Personality;
use crate::preempt::{Call, Poll, Progress, Stop, cost};
use alloc::sync::Arc;
use proxenos_abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate, UpdateVaFlags};
use proxenos_abi::{Errno, GuestWord, Hypercall, Pfn};
pub use quick::Course;

/// A request was refused. The guest sees `-EINVAL`, whatever the reason, as in 2.0.
struct Refused;

impl From<PagingError> for Refused {
    fn from(_: PagingError) -> Self {
        Self
    }
}

impl From<crate::frame::RefError> for Refused {
    fn from(_: crate::frame::RefError) -> Self {
        Self
    }
}

impl From<Errno> for Refused {
    fn from(_: Errno) -> Self {
        Self
    }
}

/// What one `mmu_update` carries from request to request.
struct Batch {
    /// What L1 entries may map, and whose frames the other commands take.
    target: Target,
    /// The foreign domain, kept alive, when it is an ordinary one.
    foreign: Option<Arc<Domain>>,
    /// How far the call has come.
    course: Course,
    /// The request has to be made again: it made way before anything was done.
    waits: bool,
    /// What the request has condemned is not all undone yet.
    left_over: bool,
    /// When the call began, or named its foreign domain, tables stood half validated: a refusal may be their fault.
    unsettled: bool,
}

/// Flushes what the requests wanted flushed, and says how many there were.
#[inline(always)]
fn conclude<P: Personality, H: Hardware>(host: &Host<H>, flush_tlb: bool, completed: u32, done: GuestVirt) {
    if flush_tlb {
        host.hw.flush_all();
    }
    // As in 2.0, a bad pointer here is not worth an error: the requests have been carried out.
    if done.0 != 0 && P::in_guest_range(done, 4) {
        let _ = host.hw.write_u32(done, completed);
    }
}

/// `mmu_update(list, count, *done)`: carries out requests in order until one is refused. Writes how many were done, if
/// `done` is not null.
pub fn mmu_update<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    list: GuestVirt,
    count: u32,
    done: GuestVirt,
) -> Result<u64, Stop> {
    let course = core::mem::replace(&mut caller.vcpu.course, Course::begin());
    let size = size_of::<MmuUpdate<P>>() as u64;
    if !P::in_guest_range(list, u64::from(count) * size) {
        return Err(Errno::EFAULT.into());
    }
    // What the guest wrote to its tables itself comes before what it asks for.
    drop(Pager::new(caller.host, caller.dom).lock());
    let call = |caller: &Caller<'_, H>| caller.recognised(Hypercall::MmuUpdate, [list.0, count.into(), done.0, 0, 0]);
    let mut batch = Batch::new(caller.dom, course);
    let mut result = Ok(0);
    // Another domain may have let go of a page of this one's.
    caller.vcpu.segments.drop_moved_ldt::<P, H>(caller.host, caller.dom);
    if !caller.vcpu.unfinished.is_empty() {
        if let Some(progress) = caller.vcpu.unfinished.take(&call(caller)) {
            result = batch.resume(caller, progress);
            if !batch.settle(caller) {
                return Err(batch.suspend::<P, H>(caller, call(caller), result.is_err()));
            }
        } else {
            // Others are unfinished, perhaps for good. This one has not been tried by the short way yet.
            batch.course.run::<P, H>(caller.host, caller.dom, caller.vcpu, list, count);
            caller.vcpu.segments.drop_moved_ldt::<P, H>(caller.host, caller.dom);
        }
    }
    while result.is_ok() && batch.course.completed < count {
        if batch.course.poll.is_due(&caller.host.hw) {
            return Err(batch.suspend::<P, H>(caller, call(caller), false));
        }
        let at = list.offset(u64::from(batch.course.completed) * size);
        let Ok(request) = quick::read_one::<P, H>(caller.host, at) else {
            // What the list said when the request was begun cannot be gone on with: nothing of it stays.
            if caller.dom.is_unsettled() && !batch.sweep(caller) {
                return Err(batch.suspend::<P, H>(caller, call(caller), false));
            }
            result = Err(Errno::EFAULT);
            break;
        };
        let carried_out = batch.carry_out::<P, H>(caller, &request);
        // Afterwards: had the first request to make way before it began, nothing would ever be done.
        batch.course.poll.step(cost::ENTRY);
        match carried_out {
            Ok(()) => batch.course.completed += 1,
            Err(Refused) if batch.waits => return Err(batch.suspend::<P, H>(caller, call(caller), false)),
            Err(Refused) if batch.unsettled => {
                // What a call never came back for may be what stands in the way.
                batch.unsettled = false;
                if !batch.sweep(caller) {
                    return Err(batch.suspend::<P, H>(caller, call(caller), false));
                }
            }
            Err(Refused) => result = Err(Errno::EINVAL),
        }
        caller.vcpu.segments.drop_moved_ldt::<P, H>(caller.host, caller.dom);
        if batch.left_over {
            return Err(batch.suspend::<P, H>(caller, call(caller), result.is_err()));
        }
        // What follows may be for the short way again.
        if result.is_ok() && batch.target == Target::Own && batch.course.completed < count {
            batch.course.run::<P, H>(caller.host, caller.dom, caller.vcpu, list, count);
            caller.vcpu.segments.drop_moved_ldt::<P, H>(caller.host, caller.dom);
        }
    }
    let Course { flush_tlb, completed, .. } = batch.course;
    caller.vcpu.segments.refresh_ldt::<P, H>(caller.host, caller.dom);
    conclude::<P, H>(caller.host, flush_tlb, completed, done);
    Ok(result?)
}

impl Batch {
    fn new(dom: &Domain, course: Course) -> Self {
        Self {
            target: Target::Own,
            foreign: None,
            course,
            waits: false,
            left_over: false,
            unsettled: dom.is_unsettled(),
        }
    }

    /// Notes how far the call has come. The guest goes on with no translation that it wanted flushed.
    fn suspend<P: Personality, H: Hardware>(&self, caller: &mut Caller<'_, H>, call: Call, refused: bool) -> Stop {
        if self.course.flush_tlb {
            caller.host.hw.flush_all();
        }
        caller.vcpu.segments.refresh_ldt::<P, H>(caller.host, caller.dom);
        let completed = self.course.completed;
        let progress = Progress::MmuUpdate { completed, refused, target: self.target, unsettled: self.unsettled };
        caller.vcpu.unfinished.keep(call, progress);
        Stop::Preempted
    }

    /// The call is made again.
    fn resume<H: Hardware>(&mut self, caller: &Caller<'_, H>, progress: Progress) -> Result<u64, Errno> {
        let Progress::MmuUpdate { completed, refused, target, unsettled } = progress else { return Ok(0) };
        self.course.completed = completed;
        self.target = target;
        self.unsettled = unsettled;
        if let Target::Domain(id) = target {
            // If it is gone, so is what it was named for: whatever needs it is refused.
            self.foreign = caller.host.domains.find(id);
        }
        if refused { Err(Errno::EINVAL) } else { Ok(0) }
    }

    /// Works with a domain's paging state within this call's time.
    fn paging<R>(
        &mut self,
        state: &mut PagingState,
        work: impl FnOnce(&mut PagingState) -> Result<R, PagingError>,
    ) -> Result<R, Refused> {
        state.poll = self.course.poll;
        let result = work(state);
        self.course.poll = core::mem::replace(&mut state.poll, Poll::NEVER);
        self.left_over |= state.has_condemned();
        self.waits |= matches!(result, Err(PagingError::Preempted));
        Ok(result?)
    }

    /// Undoes what requests of this call have condemned; false when there was no time for all of it.
    fn settle<H: Hardware>(&mut self, caller: &Caller<'_, H>) -> bool {
        self.each_domain(caller, |host, dom, poll| settle(host, dom, poll, Abandoned::Keep))
    }

    /// Undoes all that stands half validated; false when there was no time for all of it.
    fn sweep<H: Hardware>(&mut self, caller: &Caller<'_, H>) -> bool {
        self.each_domain(caller, |host, dom, poll| settle(host, dom, poll, Abandoned::Undo))
    }

    fn each_domain<H: Hardware>(
        &mut self,
        caller: &Caller<'_, H>,
        mut work: impl FnMut(&Host<H>, &Domain, &mut Poll) -> Drained,
    ) -> bool {
        let mut done = work(caller.host, caller.dom, &mut self.course.poll) == Drained::Wholly;
        if let Some(foreign) = &self.foreign {
            done &= work(caller.host, foreign, &mut self.course.poll) == Drained::Wholly;
        }
        done
    }

    fn carry_out<P: Personality, H: Hardware>(
        &mut self,
        caller: &mut Caller<'_, H>,
        request: &MmuUpdate<P>,
    ) -> Result<(), Refused> {
        match request.command() {
            Some(MmuCommand::NormalPtUpdate) => self.store::<P, H>(caller, request),
            Some(MmuCommand::MachphysUpdate) => {
                let owner = match self.target {
                    Target::Own => caller.dom.id,
                    Target::Domain(id) => id,
                    Target::Io | Target::Hypervisor => return Err(Refused),
                };
                machine_to_phys::<P, H>(caller.host, owner, request)
            }
            Some(MmuCommand::ExtendedCommand) => self.extended::<P, H>(caller, request),
            None => Err(Refused),
        }
    }

    /// A checked store: to a page-table entry of the caller's, or to a frame of the caller's that is no table.
    fn store<P: Personality, H: Hardware>(
        &mut self,
        caller: &Caller<'_, H>,
        request: &MmuUpdate<P>,
    ) -> Result<(), Refused> {
        let (host, dom) = (caller.host, caller.dom);
        let at = request.address();
        let value = request.val.to_u64();
        // Not just no table: not RAM either, or the first MiB.
        if !host.is_ram(at.mfn()) {
            return Err(Refused);
        }
        let info = host.frames.get(at.mfn(), dom.id)?;
        let pager = Pager::new(host, dom);
        let mut state = pager.lock();
        let result = match pager.locate::<P::Tables>(at) {
            Some((table, level, index)) => {
                let (entry, target) = (P::Tables::truncate(value), self.target);
                if level == 1 {
                    pager.update_l1::<P::Tables>(table, index, entry, target).map_err(Refused::from)
                } else {
                    self.paging(&mut state, |state| {
                        pager.update_entry::<P::Tables>(state, level, table, index, entry, target)
                    })
                }
            }
            None => plain_store::<P, H>(host, &pager, &mut state, at, value).map_err(Refused::from),
        };
        drop(state);
        host.put_frame(at.mfn(), info);
        result
    }

    fn extended<P: Personality, H: Hardware>(
        &mut self,
        caller: &mut Caller<'_, H>,
        request: &MmuUpdate<P>,
    ) -> Result<(), Refused> {
        let frame = request.address().mfn();
        let at = GuestVirt(request.address().0);
        match request.ext_command().ok_or(Refused)? {
            MmuExtCommand::PinL1Table => self.pin(caller, frame, Some(1)),
            MmuExtCommand::PinL2Table => self.pin(caller, frame, Some(2)),
            MmuExtCommand::PinL3Table => self.pin(caller, frame, Some(3)),
            MmuExtCommand::PinL4Table => self.pin(caller, frame, Some(4)),
            MmuExtCommand::UnpinTable => self.pin(caller, frame, None),
            MmuExtCommand::NewBaseptr => self.new_base::<P, H>(caller, frame),
            MmuExtCommand::NewUserBaseptr => self.new_user_base::<P, H>(caller, request.address()),
            MmuExtCommand::TlbFlush => {
                self.course.flush_tlb = true;
                Ok(())
            }
            MmuExtCommand::Invlpg => {
                flush_page::<P, H>(caller.host, at);
                Ok(())
            }
            MmuExtCommand::FlushCache => {
                if !caller.dom.drives_devices() {
                    return Err(Refused);
                }
                caller.host.hw.flush_caches();
                Ok(())
            }
            MmuExtCommand::SetLdt => {
                let entries = request.ext_arg();
                Ok(caller.vcpu.segments.set_ldt::<P, H>(caller.host, caller.dom, at, entries)?)
            }
            MmuExtCommand::SetForeigndom => self.set_foreign(caller, request.ext_domain()),
            MmuExtCommand::ClearForeigndom => {
                (self.target, self.foreign) = (Target::Own, None);
                Ok(())
            }
            MmuExtCommand::TransferPage => {
                let (to, grant) = (request.ext_domain(), request.ext_grant_ref());
                grant::transfer::transfer(caller.host, caller.dom, frame, to, grant).map_err(|_| Refused)
            }
            MmuExtCommand::ReassignPage => self.reassign(caller, frame),
        }
    }

    /// Pins a frame as a table of a level, or (`None`) unpins it. The frame belongs to the foreign domain, if there is
    /// one, and is validated as what that domain's architecture takes it for.
    fn pin<H: Hardware>(&mut self, caller: &Caller<'_, H>, frame: Mfn, level: Option<u8>) -> Result<(), Refused> {
        let foreign = self.foreign.clone();
        let subject = match (self.target, &foreign) {
            (Target::Own, _) => caller.dom,
            (Target::Domain(_), Some(foreign)) => foreign,
            _ => return Err(Refused),
        };
        fn of_format<F: Format, H: Hardware>(
            pager: Pager<'_, H>,
            state: &mut PagingState,
            frame: Mfn,
            level: Option<u8>,
        ) -> Result<(), PagingError> {
            match level {
                Some(level) => pager.pin::<F>(state, frame, level),
                None => pager.unpin::<F>(state, frame),
            }
        }
        let pager = Pager::new(caller.host, subject);
        if !caller.host.is_ram(frame) {
            return Err(Refused);
        }
        self.paging(&mut pager.lock(), |state| match subject.arch {
            Arch::X86_32 => of_format::<TwoLevel, H>(pager, state, frame, level),
            Arch::X86_64 => of_format::<FourLevel, H>(pager, state, frame, level),
        })
    }

    fn new_base<P: Personality, H: Hardware>(&mut self, caller: &mut Caller<'_, H>, frame: Mfn) -> Result<(), Refused> {
        if !caller.host.is_ram(frame) {
            return Err(Refused);
        }
        let pager = Pager::new(caller.host, caller.dom);
        let mut state = pager.lock();
        let load = |root| caller.host.hw.load_root(root);
        self.paging(&mut state, |state| pager.switch_base::<P::Tables>(state, frame, load))?;
        drop(state);
        caller.vcpu.segments.drop_ldt::<P, H>(caller.host, caller.dom);
        // Loading the root has flushed whatever an earlier request wanted flushed.
        self.course.flush_tlb = false;
        Ok(())
    }

    /// The kernel's own tables stay loaded, and those of the user base are in no TLB: they were loaded with it, and
    /// every change of modes that changes tables drops all.
    fn new_user_base<P: Personality, H: Hardware>(
        &mut self,
        caller: &Caller<'_, H>,
        at: MachineAddr,
    ) -> Result<(), Refused> {
        if P::ARCH != Arch::X86_64 || at.0 != 0 && !caller.host.is_ram(at.mfn()) {
            return Err(Refused);
        }
        let pager = Pager::new(caller.host, caller.dom);
        let table = (at.0 != 0).then_some(at.mfn());
        self.paging(&mut pager.lock(), |state| pager.set_user_base::<P::Tables>(state, table))
    }

    fn set_foreign<H: Hardware>(&mut self, caller: &Caller<'_, H>, id: DomId) -> Result<(), Refused> {
        // A request that fails still clears what was set before, as in 2.0.
        (self.target, self.foreign) = (Target::Own, None);
        if id == DomId::IO {
            self.target = Target::Io;
            return Ok(());
        }
        if !caller.dom.is_privileged() {
            return Err(Refused);
        }
        if id == DomId::XEN {
            self.target = Target::Hypervisor;
            return Ok(());
        }
        let foreign = caller.host.domains.find(id).ok_or(Refused)?;
        self.unsettled |= foreign.is_unsettled();
        self.foreign = Some(foreign);
        self.target = Target::Domain(id);
        Ok(())
    }

    /// Gives a frame of the caller's, that nothing refers to, to the foreign domain.
    fn reassign<H: Hardware>(&self, caller: &Caller<'_, H>, frame: Mfn) -> Result<(), Refused> {
        let foreign = self.foreign.as_ref().filter(|_| caller.dom.is_privileged()).ok_or(Refused)?;
        let info = caller.host.frames.info(frame).filter(|_| caller.host.is_ram(frame)).ok_or(Refused)?;
        let _kept = keep_alive(foreign).ok_or(Refused)?;
        if foreign.arch == Arch::X86_32 && frame.0 >= FRAMES_BELOW_4G {
            return Err(Refused);
        }
        let flush = |stamp| {
            caller.host.hw.flush_if_older(stamp);
            if info.take_uncached() {
                caller.host.hw.flush_frame(frame);
            }
        };
        foreign.expect_frame(frame);
        if !info.reassign(caller.dom.id, foreign.id, flush) {
            return Err(Refused);
        }
        // Whatever pfn it still has, what is there is not what was.
        Pager::new(caller.host, foreign).mark_dirty(frame);
        use core::sync::atomic::Ordering::Relaxed;
        caller.dom.total_pages.fetch_sub(1, Relaxed);
        foreign.total_pages.fetch_add(1, Relaxed);
        Ok(())
    }
}

/// Says which pfn a frame is.
fn machine_to_phys<P: Personality, H: Hardware>(
    host: &Host<H>,
    owner: DomId,
    request: &MmuUpdate<P>,
) -> Result<(), Refused> {
    let frame = request.address().mfn();
    let info = host.frames.get(frame, owner)?;
    host.m2p.set(&host.hw, frame, Pfn(request.val.to_u64()));
    // Under this number there is another frame now, as far as a copy of the domain is concerned.
    if host.is_any_watched()
        && let Some(owner) = host.domains.find(owner)
    {
        Pager::new(host, &owner).mark_dirty(frame);
    }
    host.put_frame(frame, info);
    Ok(())
}

/// Drops the translations of a page, if its address is one that the guest can have.
#[inline]
fn flush_page<P: Personality, H: Hardware>(host: &Host<H>, at: GuestVirt) {
    if P::in_guest_range(at, 1) {
        host.hw.flush_page(at);
    }
}

/// What is to become of tables that were suspended and that nobody came back for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// Somebody may yet.
    Keep,
    /// They are in the way.
    Undo,
}

/// Undoes what is condemned of a domain's tables, as far as time allows.
pub fn settle<H: Hardware>(host: &Host<H>, dom: &Domain, poll: &mut Poll, abandoned: Abandoned) -> Drained {
    if !dom.is_unsettled() {
        return Drained::Wholly;
    }
    let pager = Pager::new(host, dom);
    let mut state = pager.lock();
    if abandoned == Abandoned::Undo {
        pager.abandon_suspended(&mut state);
    }
    state.poll = *poll;
    let drained = match dom.arch {
        Arch::X86_32 => pager.drain::<TwoLevel>(&mut state),
        Arch::X86_64 => pager.drain::<FourLevel>(&mut state),
    };
    *poll = core::mem::replace(&mut state.poll, Poll::NEVER);
    drained
}

fn plain_store<P: Personality, H: Hardware>(
    host: &Host<H>,
    pager: &Pager<'_, H>,
    state: &mut crate::paging::PagingState,
    at: MachineAddr,
    value: u64,
) -> Result<(), PagingError> {
    P::Tables::entry_index(at).ok_or(PagingError::NoTable)?;
    pager.get_frame_and_type::<P::Tables>(state, at.mfn(), pager.dom.id, FrameType::Writable)?;
    match P::ARCH {
        Arch::X86_32 => host.hw.store32(at, value as u32),
        Arch::X86_64 => host.hw.store64(at, value),
    }
    pager.mark_dirty(at.mfn());
    pager.put_frame_and_type::<P::Tables>(state, at.mfn());
    Ok(())
}

/// What `update_va_mapping` wants flushed.
#[inline(always)]
fn flush<H: Hardware>(host: &Host<H>, at: GuestVirt, flags: UpdateVaFlags) {
    if flags.contains(UpdateVaFlags::FLUSH_TLB) {
        host.hw.flush_all();
    } else if flags.contains(UpdateVaFlags::INVLPG) {
        host.hw.flush_page(at);
    }
}

/// `update_va_mapping(virtual page number, value, flags)`: changes the L1 entry of a page of the current address space.
pub fn update_va_mapping<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    page: u64,
    value: u64,
    flags: u32,
    target: Target,
) -> Result<u64, Errno> {
    let (host, dom) = (caller.host, caller.dom);
    let at = P::guest_page(page).ok_or(Errno::EINVAL)?;
    // Another domain may have let go of a page of this one's.
    caller.vcpu.segments.drop_moved_ldt::<P, H>(host, dom);
    let pager = Pager::new(host, dom);
    let state = pager.lock();
    let result = pager
        .walk::<P::Tables>(&state, at)
        // A directory that is read as an L1 table is not changed as one.
        .filter(|found| found.level == 1)
        .ok_or(PagingError::NoTable)
        .and_then(|found| pager.update_l1::<P::Tables>(found.table, found.index, P::Tables::truncate(value), target));
    drop(state);
    flush(host, at, UpdateVaFlags::from_bits_truncate(flags));
    caller.vcpu.segments.refresh_ldt::<P, H>(host, dom);
    result.map(|()| 0).map_err(|_| Errno::EINVAL)
}

/// `update_va_mapping_otherdomain(virtual page number, value, flags, domid)`: the same, mapping another domain's frame.
pub fn update_va_mapping_otherdomain<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    page: u64,
    value: u64,
    flags: u32,
    id: DomId,
) -> Result<u64, Errno> {
    if !caller.dom.is_privileged() {
        return Err(Errno::EPERM);
    }
    let foreign = caller.host.domains.find(id).ok_or(Errno::ESRCH)?;
    update_va_mapping::<P, H>(caller, page, value, flags, Target::Domain(foreign.id))
}
