//! The memory of domains: which frames they have and what those are, and how many they may have.

use super::life::pages_of_kib;
use super::living;
use crate::addr::{GuestVirt, Mfn};
use crate::assist;
use crate::domain::{Domain, RunState};
use crate::event::EventDomains;
use crate::frame::FrameType;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::life::{self, Hungry};
use crate::personality::Personality;
use crate::preempt::{Call, Poll, Progress, Stop, cost};
use core::sync::atomic::Ordering;
use proxenos_abi::dom0_ops::args::{
    GetMemList, GetPageFrameInfo, GetPageFrameInfo2, L1TAB, L2TAB, L3TAB, L4TAB, LPINTAB, NOTAB, SetDomainInitialMem,
    SetDomainMaxMem, SetDomainVmAssist, XTAB,
};
use proxenos_abi::zerocopy::IntoBytes;
use proxenos_abi::{Errno, GuestWord, Padded};

/// The most frames that one `DOM0_GETPAGEFRAMEINFO2` describes (as in Xen 2.0).
const MAX_BATCH: u64 = 1024;
/// Words that are copied at a time.
const CHUNK: usize = 64;

/// `DOM0_GETMEMLIST`: the numbers of the frames that are a domain's own, the lowest first.
///
/// # Errors
/// EINVAL when there is no such domain (as in 2.0); EFAULT.
pub(super) fn get_mem_list<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    call: Call,
    argument: &mut GetMemList<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    let dom = host.domains.find(argument.domain).ok_or(Errno::EINVAL)?;
    let (at, room) = (GuestVirt(argument.buffer.to_u64()), argument.max_pfns.to_u64());
    let (mut next, mut count) = match caller.vcpu.unfinished.take(&call) {
        Some(Progress::MemList { next, count }) => (next, count),
        _ => (Mfn(0), 0),
    };
    let span = dom.span();
    next = next.max(Mfn(span.start));
    let mut poll = Poll::begin();
    let mut chunk = [P::Word::ZERO; CHUNK];
    while count < room && next.0 < span.end {
        if poll.is_due(&host.hw) {
            caller.vcpu.unfinished.keep(call, Progress::MemList { next, count });
            return Err(Stop::Preempted);
        }
        let want = room.saturating_sub(count).min(CHUNK as u64) as usize;
        let mut filled = 0;
        let start = next.0;
        while filled < want && next.0 < span.end && next.0 < start + 8 * CHUNK as u64 {
            if is_own(host, &dom, next) {
                chunk[filled] = P::Word::from_u64_truncating(next.0);
                filled += 1;
            }
            next.0 += 1;
        }
        let slot = at.offset(count * P::Word::BYTES as u64);
        caller.copy_to_guest::<P>(slot, chunk[..filled].as_bytes())?;
        count += filled as u64;
        poll.step((next.0 - start) as u32 * cost::EMPTY);
    }
    argument.num_pfns = Padded::new(P::Word::from_u64_truncating(count));
    Ok(0)
}

fn is_own<H: Hardware>(host: &Host<H>, dom: &Domain, mfn: Mfn) -> bool {
    let Some(info) = host.frames.info(mfn) else { return false };
    let refs = info.refs();
    refs.owner() == dom.id && refs.is_allocated() && !refs.is_shared()
}

/// What a frame of a domain's is used as, and whether it is pinned; `None` if it is not the domain's.
fn frame_type<H: Hardware>(host: &Host<H>, dom: &Domain, mfn: Mfn) -> Option<(u32, bool)> {
    let info = host.frames.get(mfn, dom.id).ok()?;
    let word = info.type_word();
    let table = match word.kind() {
        _ if word.count() == 0 => NOTAB,
        FrameType::L1 => L1TAB,
        FrameType::L2 => L2TAB,
        FrameType::L3 => L3TAB,
        FrameType::L4 => L4TAB,
        _ => NOTAB,
    };
    let pinned = word.is_pinned();
    host.put_frame(mfn, info);
    Some((table, pinned))
}

/// `DOM0_GETPAGEFRAMEINFO`: the type of one frame. EINVAL if it is not that domain's, or there is no such domain.
pub(super) fn get_page_frame_info<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    argument: &mut GetPageFrameInfo<P>,
) -> Result<u64, Stop> {
    let dom = caller.host.domains.find(argument.domain).ok_or(Errno::EINVAL)?;
    let (table, _) = frame_type(caller.host, &dom, Mfn(argument.pfn.to_u64())).ok_or(Errno::EINVAL)?;
    argument.frame_type = table;
    Ok(0)
}

/// `DOM0_GETPAGEFRAMEINFO2`: to each number in an array its frame's type is added, at the top of a word's low 32 bits.
/// A frame that is not the domain's gets them all.
///
/// # Errors
/// ESRCH; E2BIG for more than [`MAX_BATCH`]; EINVAL (as in 2.0) for an array that cannot be read and written, of which
/// the beginning may have been dealt with.
pub(super) fn get_page_frame_info2<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    call: Call,
    argument: GetPageFrameInfo2<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    let dom = host.domains.find(argument.domain).ok_or(Errno::ESRCH)?;
    let (at, count) = (GuestVirt(argument.array.to_u64()), argument.num.to_u64());
    if count > MAX_BATCH {
        return Err(Errno::E2BIG.into());
    }
    // What is described already must not be read again: it is a frame's number no more.
    let mut done = match caller.vcpu.unfinished.take(&call) {
        Some(Progress::Described(done)) => done.min(count),
        _ => 0,
    };
    let mut poll = Poll::begin();
    let mut chunk = [P::Word::ZERO; CHUNK];
    while done < count {
        if poll.is_due(&host.hw) {
            caller.vcpu.unfinished.keep(call, Progress::Described(done));
            return Err(Stop::Preempted);
        }
        let words = &mut chunk[..(count - done).min(CHUNK as u64) as usize];
        let slot = at.offset(done * P::Word::BYTES as u64);
        caller.copy_from_guest::<P>(slot, words.as_mut_bytes()).map_err(|_| Errno::EINVAL)?;
        for word in &mut *words {
            let bits = match frame_type(host, &dom, Mfn(word.to_u64())) {
                Some((table, pinned)) => table | if pinned { LPINTAB } else { 0 },
                None => XTAB,
            };
            *word = P::Word::from_u64_truncating(word.to_u64() | u64::from(bits));
        }
        caller.copy_to_guest::<P>(slot, words.as_bytes()).map_err(|_| Errno::EINVAL)?;
        done += words.len() as u64;
        poll.step(words.len() as u32 * cost::ENTRY);
    }
    Ok(0)
}

/// `DOM0_SETDOMAININITIALMEM`: a domain that is not built yet may have so much, and gets what it has less than that.
///
/// # Errors
/// ESRCH; EINVAL once it is built; ENOMEM: what could be had until then it keeps.
pub(super) fn set_initial_mem<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    argument: SetDomainInitialMem<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    let dom = living(caller, argument.domain)?;
    if !dom.run_state().contains(RunState::UNBUILT) {
        return Err(Errno::EINVAL.into());
    }
    let pages = pages_of_kib(argument.initial_memkb.to_u64());
    let more = pages.saturating_sub(dom.total_pages.load(Ordering::Relaxed));
    if u64::from(more) > host.alloc.lock().free_frames(life::zone(dom.arch)) {
        return Err(Errno::ENOMEM.into());
    }
    dom.max_pages.store(pages, Ordering::Relaxed);
    match life::feed(host, &dom, pages, &mut Poll::begin()) {
        Ok(()) => Ok(0),
        Err(Hungry::NotYet) => Err(Stop::Preempted),
        Err(Hungry::NoMemory) => Err(Errno::ENOMEM.into()),
    }
}

/// `DOM0_SETDOMAINMAXMEM`: how much a domain may have, in KiB (2.0 took the number for bytes). What it has more it
/// keeps.
pub(super) fn set_max_mem<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    argument: SetDomainMaxMem<P>,
) -> Result<u64, Stop> {
    let dom = living(caller, argument.domain)?;
    dom.max_pages.store(pages_of_kib(argument.max_memkb.to_u64()), Ordering::Relaxed);
    Ok(0)
}

/// `DOM0_SETDOMAINVMASSIST`: `vm_assist` in a domain's name. Its errors are this one's (2.0 told of none).
pub(super) fn set_vm_assist<H: Hardware>(caller: &Caller<'_, H>, argument: SetDomainVmAssist) -> Result<u64, Stop> {
    let dom = living(caller, argument.domain)?;
    let (command, kind) = (argument.cmd, argument.assist);
    if dom.id == caller.dom.id {
        return Ok(assist::vm_assist(caller.host, caller.dom, command, kind)?);
    }
    // Who runs it goes by what was set when its turn began.
    Ok(caller.host.hw.with_stopped(&dom, |_| assist::vm_assist(caller.host, &dom, command, kind))??)
}
