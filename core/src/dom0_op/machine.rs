//! The machine itself: `DOM0_PHYSINFO`, `DOM0_SETTIME`, `DOM0_READCONSOLE`, `DOM0_GETTBUFS`.

use crate::addr::GuestVirt;
use crate::control::DateAtZero;
use crate::frame_alloc::Zone;
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::personality::Personality;
use crate::preempt::Stop;
use crate::timekeeping::{self, NS_PER_SEC};
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::{CONSOLE_RING_CLEAR, GetTbufs, PhysInfo, ReadConsole, SetTime};
use proxenos_abi::{Errno, GuestWord, Padded};

/// Text is copied in pieces of so many bytes.
const PIECE: usize = 512;

/// `DOM0_PHYSINFO`. The number of pages is one more than the highest, as in 2.0: it bounds what frame numbers there
/// are.
pub(super) fn phys_info<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    _: Dom0Version,
    argument: &mut PhysInfo<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    let processors = host.hw.processors();
    let word = |value: u64| Padded::new(P::Word::from_u64_truncating(value));
    *argument = PhysInfo {
        ht_per_core: processors.threads_per_core,
        cores: processors.count / processors.threads_per_core,
        cpu_khz: processors.khz,
        total_pages: word(host.frames.len()),
        free_pages: word(host.alloc.lock().free_frames(Zone::Any)),
        ..*argument
    };
    Ok(0)
}

/// `DOM0_SETTIME`: the date that there was, or will be, at a system time. The caller's page has it at once, all others'
/// when their clocks are written next: those that run within a tick, the others before they run.
///
/// A date is refused by which the clock would show less than 0 or more than 32 bits of seconds now: 2.0 showed
/// something else then.
pub(super) fn set_time<H: Hardware>(caller: &Caller<'_, H>, argument: SetTime) -> Result<u64, Stop> {
    let SetTime { secs, usecs, system_time } = argument;
    let date = i128::from(secs) * i128::from(NS_PER_SEC) + i128::from(usecs) * 1000;
    let at_zero = date - i128::from(system_time);
    let now = at_zero + i128::from(caller.host.hw.now_ns());
    let shown = 0..i128::from(u32::MAX) * i128::from(NS_PER_SEC);
    let at_zero = i64::try_from(at_zero).ok().filter(|_| shown.contains(&now)).ok_or(Errno::EINVAL)?;
    caller.host.hw.set_date(DateAtZero(at_zero));
    timekeeping::write_date(&caller.host.hw, caller.dom.shared_info, DateAtZero(at_zero));
    Ok(0)
}

/// `DOM0_READCONSOLE`: the log, from the oldest byte that is kept, and as much of it as there is room for. The result
/// is how much. With the flag, what there was when the call began is then forgotten, read or not, as in 2.0.
pub(super) fn read_console<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    argument: ReadConsole<P>,
) -> Result<u64, Stop> {
    let hw = &caller.host.hw;
    let kept = hw.log_kept();
    let mut left = (kept.end.0 - kept.start.0).min(argument.count.into());
    let (mut at, mut to) = (kept.start, GuestVirt({ argument.text.value }.to_u64()));
    let (mut piece, mut copied) = ([0; PIECE], 0);
    while left > 0 {
        let wanted = left.min(PIECE as u64) as usize;
        let (got, next) = hw.read_log(at, &mut piece[..wanted]);
        if got == 0 {
            break;
        }
        caller.copy_to_guest::<P>(to, &piece[..got])?;
        (at, to) = (next, to.offset(got as u64));
        left -= got as u64;
        copied += got as u64;
    }
    if { argument.cmd } & CONSOLE_RING_CLEAR != 0 {
        hw.forget_log(kept.end);
    }
    Ok(copied)
}

/// `DOM0_GETTBUFS`: where the trace buffers are. Without any (`tbuf_size=`), or where their heads have the other
/// architecture's layout, -ENODATA and zeroes.
pub(super) fn get_tbufs<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    _: Dom0Version,
    argument: &mut GetTbufs<P>,
) -> Result<u64, Stop> {
    let place = caller.host.hw.trace_buffers().filter(|place| place.reader == P::ARCH);
    let (address, size) = place.map_or((0, 0), |place| (place.address.0, place.bytes_each));
    *argument = GetTbufs { mach_addr: Padded::new(P::Word::from_u64_truncating(address)), size };
    if place.is_some() { Ok(0) } else { Err(Errno::ENODATA.into()) }
}
