//! `grant_table_op(command, array, count)`: sets tables up, maps and unmaps grants.
//!
//! Each operation of the array has a status of its own, and the call's result is 0; it is an error where the call
//! itself is wrong, or its array cannot be read and written. Statuses are 2.0's: an entry that does not grant what is
//! asked for is GNTST_general_error; GNTST_bad_gntref is for what cannot be a grant at all; no room for one more
//! mapping is GNTST_no_device_space. [ours] The address for devices is an address, as the header says (2.0: a frame's
//! number). An address in a request must be a page's first.
//!
//! Operations that come before a bad pointer have been done. One whose outcome cannot be written is not carried out,
//! but if it is itself what made its outcome's place unwritable: then a mapping is undone, and an unmapping stays done.
//!
//! A long array makes way between operations ([`crate::preempt`]); unmaps go [`GROUP`] at a time.

use super::mappings::{Handle, HostEntry, Mapping};
use super::status::Access;
use super::table::MAX_TABLE_FRAMES;
use super::{Grants, limit, pin, unpin};
use crate::addr::{DomId, FRAMES_BELOW_4G, GuestVirt, Mfn, PAGE_SIZE};
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::frame::FrameType;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::paging::format::{Format, Pte, bits};
use crate::paging::{Pager, Target};
use crate::personality::Personality;
use crate::preempt::{Poll, Progress, Stop, cost};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::mem::offset_of;
use proxenos_abi::arch::Padded;
use proxenos_abi::grant_table::{
    GrantMapFlags, GrantStatus, GrantTableCommand, MAX_GRANT_TABLE_OPS, MapGrantRef, SetupTable, UnmapGrantRef,
};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};
use proxenos_abi::{Errno, GuestWord, Hypercall};

/// Unmaps for which the TLB is flushed once.
pub const GROUP: usize = 32;

/// `grant_table_op`.
///
/// # Errors
/// EINVAL for more than 512 operations, or more than one of GNTTABOP_setup_table; ENOSYS for an unknown command; EFAULT
/// for a bad pointer.
pub fn grant_table_op<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    command: u32,
    list: GuestVirt,
    count: u32,
) -> Result<u64, Stop> {
    if count > MAX_GRANT_TABLE_OPS {
        return Err(Errno::EINVAL.into());
    }
    let command = GrantTableCommand::from_raw(command).ok_or(Errno::ENOSYS)?;
    let size = match command {
        GrantTableCommand::SetupTable if count != 1 => return Err(Errno::EINVAL.into()),
        GrantTableCommand::SetupTable => return Ok(set_up::<P, H>(caller, list).map(|()| 0)?),
        GrantTableCommand::MapGrantRef => size_of::<MapGrantRef<P>>(),
        GrantTableCommand::UnmapGrantRef => size_of::<UnmapGrantRef<P>>(),
    };
    if !P::in_guest_range(list, u64::from(count) * size as u64) {
        return Err(Errno::EFAULT.into());
    }
    // A mapping may be put in the place of a page of the LDT, and another domain may have let go of one.
    caller.vcpu.segments.drop_moved_ldt::<P, H>(caller.host, caller.dom);
    let call = caller.recognised(Hypercall::GrantTableOp, [command.raw().into(), list.0, count.into(), 0, 0]);
    let mut done = match caller.vcpu.unfinished.take(&call) {
        Some(Progress::Grants(done)) => done,
        _ => 0,
    };
    let mut poll = Poll::begin();
    let mut result = Ok(0);
    while result.is_ok() && done < count {
        if poll.is_due(&caller.host.hw) {
            caller.vcpu.unfinished.keep(call, Progress::Grants(done));
            result = Err(Stop::Preempted);
            break;
        }
        let at = list.offset(u64::from(done) * size as u64);
        let group = match command {
            GrantTableCommand::UnmapGrantRef => (count - done).min(GROUP as u32),
            _ => 1,
        };
        let carried_out = match command {
            GrantTableCommand::UnmapGrantRef => unmap_group::<P, H>(caller, at, group),
            _ => map_and_tell::<P, H>(caller, at),
        };
        if let Err(error) = carried_out {
            result = Err(error.into());
        }
        done += group;
        poll.step(group * 2 * cost::ENTRY);
    }
    caller.vcpu.segments.refresh_ldt::<P, H>(caller.host, caller.dom);
    result
}

/// Makes sure that bytes of the guest's can be written, by writing what is there.
fn probe<P: Personality, H: Hardware>(caller: &Caller<'_, H>, at: GuestVirt, bytes: usize) -> Result<(), Errno> {
    let mut buffer = [0; MAX_TABLE_FRAMES * 8];
    let buffer = &mut buffer[..bytes];
    caller.copy_from_guest::<P>(at, buffer)?;
    caller.copy_to_guest::<P>(at, buffer)
}

/// GNTTABOP_setup_table.
fn set_up<P: Personality, H: Hardware>(caller: &Caller<'_, H>, at: GuestVirt) -> Result<(), Errno> {
    let mut op = SetupTable::<P>::new_zeroed();
    caller.copy_from_guest::<P>(at, op.as_mut_bytes())?;
    let status_at = at.offset(offset_of!(SetupTable<P>, status) as u64);
    probe::<P, H>(caller, status_at, size_of::<i16>())?;
    let frames = usize::from(op.nr_frames);
    let list = GuestVirt(op.frame_list.to_u64());
    let mut words = [P::Word::ZERO; MAX_TABLE_FRAMES];
    if (1..=MAX_TABLE_FRAMES).contains(&frames) {
        probe::<P, H>(caller, list, frames * P::Word::BYTES)?;
    }
    let status = match table_of(caller, op.dom, frames, &mut words) {
        Ok(()) if frames == 0 => GrantStatus::Okay,
        Ok(()) => {
            caller.copy_to_guest::<P>(list, words[..frames].as_bytes())?;
            GrantStatus::Okay
        }
        Err(status) => status,
    };
    caller.copy_to_guest::<P>(status_at, &status.raw().to_le_bytes())
}

/// Sets a domain's table up, and says which frames it lies in.
fn table_of<W: GuestWord, H: Hardware>(
    caller: &Caller<'_, H>,
    id: DomId,
    frames: usize,
    words: &mut [W],
) -> Result<(), GrantStatus> {
    if frames > MAX_TABLE_FRAMES {
        return Err(GrantStatus::GeneralError);
    }
    let other: Arc<Domain>;
    let subject = match id {
        DomId::SELF => caller.dom,
        _ if !caller.dom.is_privileged() => return Err(GrantStatus::PermissionDenied),
        _ => {
            other = caller.host.domains.find(id).ok_or(GrantStatus::BadDomain)?;
            &other
        }
    };
    let mut table = subject.grants.table.lock();
    table.set_up(caller.host, subject.id, frames)?;
    for (word, frame) in words.iter_mut().zip(&table.frames()[..frames]) {
        *word = W::from_u64_truncating(frame.0);
    }
    Ok(())
}

/// GNTTABOP_map_grant_ref, for one operation.
fn map_and_tell<P: Personality, H: Hardware>(caller: &Caller<'_, H>, at: GuestVirt) -> Result<(), Errno> {
    const { assert!(offset_of!(MapGrantRef<P>, handle) + 2 == offset_of!(MapGrantRef<P>, dev_bus_addr)) };
    let mut op = MapGrantRef::<P>::new_zeroed();
    caller.copy_from_guest::<P>(at, op.as_mut_bytes())?;
    let outcome_at = at.offset(offset_of!(MapGrantRef<P>, handle) as u64);
    let outcome = offset_of!(MapGrantRef<P>, handle)..size_of::<MapGrantRef<P>>();
    caller.copy_to_guest::<P>(outcome_at, &op.as_bytes()[outcome.clone()])?;
    match map::<P, H>(caller, &op) {
        Err(status) => {
            op.handle = status.raw();
            caller.copy_to_guest::<P>(outcome_at, &op.as_bytes()[outcome.start..outcome.start + 2])
        }
        Ok((handle, frame)) => {
            op.handle = handle.0 as i16;
            op.dev_bus_addr = Padded::from_u64(frame.addr().0).unwrap_or_default();
            let told = caller.copy_to_guest::<P>(outcome_at, &op.as_bytes()[outcome]);
            if told.is_err()
                && let Some(mapping) = caller.dom.grants.mappings.lock().remove(handle)
            {
                undo::<P, H>(caller.host, caller.dom, &mapping);
            }
            told
        }
    }
}

fn undo<P: Personality, H: Hardware>(host: &Host<H>, dom: &Domain, mapping: &Mapping) {
    if let Some(entry) = mapping.host {
        clear::<P, H>(host, dom, entry, mapping.frame);
        host.hw.flush_all();
    }
    unpin(host, dom.id, mapping);
}

/// Maps a grant; the handle, and the frame.
fn map<P: Personality, H: Hardware>(caller: &Caller<'_, H>, op: &MapGrantRef<P>) -> Result<(Handle, Mfn), GrantStatus> {
    let (host, dom) = (caller.host, caller.dom);
    let flags = GrantMapFlags::from_bits_truncate(op.flags);
    if !flags.intersects(GrantMapFlags::HOST_MAP | GrantMapFlags::DEVICE_MAP) {
        return Err(GrantStatus::BadGrantRef);
    }
    let owner = host.domains.find(op.dom).filter(|owner| owner.id != dom.id).ok_or(GrantStatus::BadDomain)?;
    dom.grants.mappings.lock().make_room(limit(dom)).ok_or(GrantStatus::NoDeviceSpace)?;
    let access = if flags.contains(GrantMapFlags::READONLY) { Access::Read } else { Access::Write };
    let frame = pin(host, &owner, op.grant, dom.id, access)?;
    let device = flags.contains(GrantMapFlags::DEVICE_MAP);
    let mut mapping = Mapping { owner, grant: op.grant, access, device, frame, host: None };
    // What a domain cannot name it cannot have.
    let nameable = P::ARCH == Arch::X86_64 || frame.0 < FRAMES_BELOW_4G;
    if nameable && flags.contains(GrantMapFlags::HOST_MAP) {
        mapping.host = write::<P, H>(host, dom, GuestVirt(op.host_virt_addr.to_u64()), &mapping, flags);
    }
    if !nameable || flags.contains(GrantMapFlags::HOST_MAP) && mapping.host.is_none() {
        unpin(host, dom.id, &mapping);
        return Err(GrantStatus::GeneralError);
    }
    let handle = dom.grants.mappings.lock().insert(mapping.clone());
    handle.map(|handle| (handle, frame)).ok_or_else(|| {
        undo::<P, H>(host, dom, &mapping);
        GrantStatus::NoDeviceSpace
    })
}

/// Writes the page-table entry of a mapping for CPUs; `None` if there is no place for it.
fn write<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    at: GuestVirt,
    mapping: &Mapping,
    flags: GrantMapFlags,
) -> Option<HostEntry> {
    P::guest_page(at.0 / PAGE_SIZE as u64).filter(|&page| page == at)?;
    let write = if mapping.access == Access::Write { bits::RW | bits::D } else { 0 };
    // An x86_64 kernel runs in ring 3 itself.
    let user = P::ARCH == Arch::X86_64 || flags.contains(GrantMapFlags::APPLICATION_MAP);
    let user = if user { bits::US } else { 0 };
    let entry = Pte(mapping.frame.addr().0 | bits::P | bits::A | write | user);
    let pager = Pager::new(host, dom);
    let state = pager.lock();
    // A directory that is read as an L1 table is not changed as one.
    let found = pager.walk::<P::Tables>(&state, at).filter(|found| found.level == 1)?;
    pager.update_l1::<P::Tables>(found.table, found.index, entry, Target::Domain(mapping.owner.id)).ok()?;
    drop(state);
    if found.entry.present() {
        host.hw.flush_page(at);
    }
    Some(HostEntry { at, table: found.table, slot: found.index as u16 })
}

/// Clears a mapping's page-table entry, if it is there: the domain may have made something else of the table, or of the
/// entry.
fn clear<P: Personality, H: Hardware>(host: &Host<H>, dom: &Domain, entry: HostEntry, frame: Mfn) {
    let pager = Pager::new(host, dom);
    let state = pager.lock();
    let (table, slot) = (entry.table, usize::from(entry.slot));
    if host.frames.info(table).is_some_and(|info| info.is_held(dom.id, FrameType::L1)) {
        let there = P::Tables::load(&host.hw, table, slot);
        if there.present() && there.mfn() == frame {
            // An entry is never refused to be cleared.
            let _ = pager.update_l1::<P::Tables>(table, slot, Pte(0), Target::Own);
        }
    }
    drop(state);
}

/// GNTTABOP_unmap_grant_ref, for a group of operations.
fn unmap_group<P: Personality, H: Hardware>(caller: &Caller<'_, H>, list: GuestVirt, count: u32) -> Result<(), Errno> {
    let (host, dom) = (caller.host, caller.dom);
    let mut outcomes = ArrayVec::<(GuestVirt, GrantStatus), GROUP>::new();
    let mut over = ArrayVec::<Mapping, GROUP>::new();
    let (mut cleared, mut result) = (false, Ok(()));
    for index in 0..count {
        let at = list.offset(u64::from(index) * size_of::<UnmapGrantRef<P>>() as u64);
        let status_at = at.offset(offset_of!(UnmapGrantRef<P>, status) as u64);
        let mut op = UnmapGrantRef::<P>::new_zeroed();
        let readable = caller.copy_from_guest::<P>(at, op.as_mut_bytes());
        result = readable.and_then(|()| probe::<P, H>(caller, status_at, size_of::<i16>()));
        if result.is_err() {
            break;
        }
        let status = match unmap(&dom.grants, &op) {
            Ok(unmapped) => {
                if let Some((entry, frame)) = unmapped.entry {
                    clear::<P, H>(host, dom, entry, frame);
                    cleared = true;
                }
                over.extend(unmapped.over);
                GrantStatus::Okay
            }
            Err(status) => status,
        };
        outcomes.push((status_at, status));
    }
    // Before anybody is told: also of an entry that its domain has cleared itself, and perhaps not flushed.
    if cleared {
        host.hw.flush_all();
    }
    for mapping in &over {
        unpin(host, dom.id, mapping);
    }
    for (at, status) in outcomes {
        let told = caller.copy_to_guest::<P>(at, &status.raw().to_le_bytes());
        result = result.and(told);
    }
    result
}

/// What an unmap has come to.
struct Unmapped {
    /// The page-table entry that is to be cleared, if the frame is there.
    entry: Option<(HostEntry, Mfn)>,
    /// The mapping, if it is for nothing any more.
    over: Option<Mapping>,
}

/// Takes from a mapping what an operation names.
fn unmap<P: Personality>(grants: &Grants, op: &UnmapGrantRef<P>) -> Result<Unmapped, GrantStatus> {
    let (host_at, device_at) = (GuestVirt(op.host_virt_addr.to_u64()), op.dev_bus_addr.to_u64());
    let mut mappings = grants.mappings.lock();
    let handle = Handle(op.handle);
    let mapping = mappings.get_mut(handle).ok_or(GrantStatus::BAD_HANDLE)?;
    let fits_host = host_at.0 == 0 || mapping.host.is_some_and(|entry| entry.at == host_at);
    let fits_device = device_at == 0 || mapping.device && mapping.frame.addr().0 == device_at;
    if !fits_host || !fits_device {
        return Err(GrantStatus::GeneralError);
    }
    let frame = mapping.frame;
    let entry = mapping.host.take_if(|_| host_at.0 != 0).map(|entry| (entry, frame));
    mapping.device &= device_at == 0;
    let unused = mapping.host.is_none() && !mapping.device;
    let over = if unused { mappings.remove(handle) } else { None };
    Ok(Unmapped { entry, over })
}
