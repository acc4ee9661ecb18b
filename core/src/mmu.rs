//! The hypercalls on page tables: `mmu_update`, `update_va_mapping` and `update_va_mapping_otherdomain`.
//!
//! Requests are decoded here and carried out by [`crate::paging`]. Guest memory is never touched while a paging lock is
//! held: reading it may itself need the lock, to set an accessed bit.

use crate::addr::{DomId, FRAMES_BELOW_4G, GuestVirt, MachineAddr, Mfn};
use crate::domain::{Arch, Domain, Privileges};
use crate::event::EventDomains;
use crate::frame::FrameType;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::paging::format::{Format, FourLevel, TwoLevel};
use crate::paging::{Pager, PagingError, Target};
use crate::personality::Personality;
use alloc::sync::Arc;
use proxenos_abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate, UpdateVaFlags};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};
use proxenos_abi::{Errno, GuestWord, Pfn};

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
    flush_tlb: bool,
}

/// `mmu_update(list, count, *done)`: carries out requests in order until one is refused. Writes how many were done, if
/// `done` is not null.
pub fn mmu_update<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    list: GuestVirt,
    count: u32,
    done: GuestVirt,
) -> Result<u64, Errno> {
    let size = size_of::<MmuUpdate<P>>() as u64;
    if !P::in_guest_range(list, u64::from(count) * size) {
        return Err(Errno::EFAULT);
    }
    // What the guest wrote to its tables itself comes before what it asks for.
    drop(Pager::new(caller.host, caller.dom).lock());
    let mut batch = Batch { target: Target::Own, foreign: None, flush_tlb: false };
    let mut result = Ok(0);
    let mut completed = 0;
    // Another domain may have let go of a page of this one's.
    caller.vcpu.segments.drop_moved_ldt::<P, H>(caller.host, caller.dom);
    while completed < count {
        let mut request = MmuUpdate::<P>::new_zeroed();
        let at = list.offset(u64::from(completed) * size);
        if caller.host.hw.copy_from_guest(at, request.as_mut_bytes()).is_err() {
            result = Err(Errno::EFAULT);
            break;
        }
        if batch.carry_out::<P, H>(caller, &request).is_err() {
            result = Err(Errno::EINVAL);
            break;
        }
        caller.vcpu.segments.drop_moved_ldt::<P, H>(caller.host, caller.dom);
        completed += 1;
    }
    if batch.flush_tlb {
        caller.host.hw.flush_all();
    }
    caller.vcpu.segments.reload_ldt::<P, H>(caller.host, caller.dom);
    if done.0 != 0 {
        // As in 2.0, a bad pointer here is not worth an error: the requests have been carried out.
        let _ = caller.copy_to_guest::<P>(done, completed.as_bytes());
    }
    result
}

impl Batch {
    fn carry_out<P: Personality, H: Hardware>(
        &mut self,
        caller: &mut Caller<'_, H>,
        request: &MmuUpdate<P>,
    ) -> Result<(), Refused> {
        match request.command() {
            Some(MmuCommand::NormalPtUpdate) => self.store::<P, H>(caller, request),
            Some(MmuCommand::MachphysUpdate) => self.machine_to_phys::<P, H>(caller, request),
            Some(MmuCommand::ExtendedCommand) => self.extended::<P, H>(caller, request),
            None => Err(Refused),
        }
    }

    /// A checked store: to a page-table entry of the caller's, or to a frame of the caller's that is no table.
    fn store<P: Personality, H: Hardware>(
        &self,
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
                let entry = P::Tables::truncate(value);
                pager.update_entry::<P::Tables>(&mut state, level, table, index, entry, self.target)
            }
            None => plain_store::<P, H>(host, &pager, &mut state, at, value),
        };
        drop(state);
        host.put_frame(at.mfn(), info);
        Ok(result?)
    }

    /// Says which pfn a frame is.
    fn machine_to_phys<P: Personality, H: Hardware>(
        &self,
        caller: &Caller<'_, H>,
        request: &MmuUpdate<P>,
    ) -> Result<(), Refused> {
        let owner = match self.target {
            Target::Own => caller.dom.id,
            Target::Domain(id) => id,
            Target::Io | Target::Hypervisor => return Err(Refused),
        };
        let frame = request.address().mfn();
        let info = caller.host.frames.get(frame, owner)?;
        caller.host.m2p.set(&caller.host.hw, frame, Pfn(request.val.to_u64()));
        caller.host.put_frame(frame, info);
        Ok(())
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
            MmuExtCommand::TlbFlush => {
                self.flush_tlb = true;
                Ok(())
            }
            MmuExtCommand::Invlpg => {
                if P::in_guest_range(at, 1) {
                    caller.host.hw.flush_page(at);
                }
                Ok(())
            }
            MmuExtCommand::FlushCache => {
                if !caller.dom.privileges.contains(Privileges::DEVICES) {
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
                // A frame goes only where a grant table accepts it, and no domain has one: any reference is bad.
                caller.host.domains.find(request.ext_domain()).ok_or(Refused)?;
                Err(Refused)
            }
            MmuExtCommand::ReassignPage => self.reassign(caller, frame),
        }
    }

    /// Pins a frame as a table of a level, or (`None`) unpins it. The frame belongs to the foreign domain, if there is
    /// one, and is validated as what that domain's architecture takes it for.
    fn pin<H: Hardware>(&self, caller: &Caller<'_, H>, frame: Mfn, level: Option<u8>) -> Result<(), Refused> {
        let subject = match (self.target, &self.foreign) {
            (Target::Own, _) => caller.dom,
            (Target::Domain(_), Some(foreign)) => foreign,
            _ => return Err(Refused),
        };
        fn of_format<F: Format, H: Hardware>(
            pager: Pager<'_, H>,
            frame: Mfn,
            level: Option<u8>,
        ) -> Result<(), PagingError> {
            let mut state = pager.lock();
            match level {
                Some(level) => pager.pin::<F>(&mut state, frame, level),
                None => pager.unpin::<F>(&mut state, frame),
            }
        }
        let pager = Pager::new(caller.host, subject);
        if !caller.host.is_ram(frame) {
            return Err(Refused);
        }
        Ok(match subject.arch {
            Arch::X86_32 => of_format::<TwoLevel, H>(pager, frame, level),
            Arch::X86_64 => of_format::<FourLevel, H>(pager, frame, level),
        }?)
    }

    fn new_base<P: Personality, H: Hardware>(&mut self, caller: &mut Caller<'_, H>, frame: Mfn) -> Result<(), Refused> {
        if !caller.host.is_ram(frame) {
            return Err(Refused);
        }
        let pager = Pager::new(caller.host, caller.dom);
        let mut state = pager.lock();
        let load = |root| caller.host.hw.load_root(root);
        pager.switch_base::<P::Tables>(&mut state, frame, load)?;
        drop(state);
        caller.vcpu.segments.drop_ldt::<P, H>(caller.host, caller.dom);
        // Loading the root has flushed whatever an earlier request wanted flushed.
        self.flush_tlb = false;
        Ok(())
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
        self.foreign = Some(caller.host.domains.find(id).ok_or(Refused)?);
        self.target = Target::Domain(id);
        Ok(())
    }

    /// Gives a frame of the caller's, that nothing refers to, to the foreign domain.
    fn reassign<H: Hardware>(&self, caller: &Caller<'_, H>, frame: Mfn) -> Result<(), Refused> {
        let foreign = self.foreign.as_ref().filter(|_| caller.dom.is_privileged()).ok_or(Refused)?;
        let info = caller.host.frames.info(frame).filter(|_| caller.host.is_ram(frame)).ok_or(Refused)?;
        if foreign.arch == Arch::X86_32 && frame.0 >= FRAMES_BELOW_4G {
            return Err(Refused);
        }
        if !info.reassign(caller.dom.id, foreign.id, |stamp| caller.host.hw.flush_if_older(stamp)) {
            return Err(Refused);
        }
        use core::sync::atomic::Ordering::Relaxed;
        caller.dom.total_pages.fetch_sub(1, Relaxed);
        foreign.total_pages.fetch_add(1, Relaxed);
        Ok(())
    }
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
    pager.put_frame_and_type::<P::Tables>(state, at.mfn());
    Ok(())
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
    let at = GuestVirt(page.checked_mul(4096).ok_or(Errno::EINVAL)?);
    if !P::in_guest_range(at, 4096) {
        return Err(Errno::EINVAL);
    }
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
    let flags = UpdateVaFlags::from_bits_truncate(flags);
    if flags.contains(UpdateVaFlags::FLUSH_TLB) {
        host.hw.flush_all();
    } else if flags.contains(UpdateVaFlags::INVLPG) {
        host.hw.flush_page(at);
    }
    caller.vcpu.segments.drop_moved_ldt::<P, H>(host, dom);
    caller.vcpu.segments.reload_ldt::<P, H>(host, dom);
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
