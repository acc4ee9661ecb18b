//! `DOM0_SHADOW_CONTROL`: shadows of another domain's page tables, and what it writes to
//! ([`log_dirty`](crate::paging::log_dirty)). The domain does not run meanwhile.

use super::other;
use crate::addr::GuestVirt;
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::paging::log_dirty::{Report, Room, control};
use crate::personality::Personality;
use crate::preempt::Stop;
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::{ShadowControl, ShadowControlOp, ShadowControlStats};
use proxenos_abi::{Errno, GuestWord, Padded};

/// A bitmap is copied in pieces of so many words.
const PIECE: usize = 64;

/// `DOM0_SHADOW_CONTROL`. The counts are told even where there is no room for the bitmap, as in 2.0 (the request is
/// written back whatever comes of it). Unlike in 2.0 a bitmap that cannot be written to is found out before anything is
/// read away, so that no record is lost by it.
pub(super) fn shadow_control<P: Personality, H: Hardware>(
    caller: &mut Caller<'_, H>,
    _: Dom0Version,
    argument: &mut ShadowControl<P>,
) -> Result<u64, Stop> {
    let host = caller.host;
    let dom = other(caller, argument.domain)?;
    let to = GuestVirt({ argument.dirty_bitmap.value }.to_u64());
    let has_buffer = to.0 != 0;
    let room = Room(if has_buffer { argument.pages.value.to_u64() } else { 0 });
    let carry_out = |op: u32| -> Result<Option<Report>, Stop> {
        // It is parked: no CPU walks what changes.
        let done = host.hw.with_stopped(&dom, |_| control(host, &dom, caller.dom.id, op, room, |_| ()))?;
        Ok(done.map_err(Errno::from)?)
    };
    let op = argument.op;
    if op == ShadowControlOp::Clean.raw()
        && let Some(Report { bitmap: Some(bitmap), pages, .. }) = carry_out(ShadowControlOp::Peek.raw())?
    {
        write_bitmap::<P, H>(caller, to, &bitmap, pages)?;
    }
    let Some(report) = carry_out(op)? else { return Ok(0) };
    argument.stats = ShadowControlStats {
        fault_count: report.stats.faults,
        dirty_count: report.stats.dirty,
        ..ShadowControlStats::default()
    };
    let bitmap = report.bitmap.ok_or(Errno::EINVAL)?;
    argument.pages = Padded::new(P::Word::from_u64_truncating(report.pages.into()));
    write_bitmap::<P, H>(caller, to, &bitmap, report.pages)?;
    Ok(0)
}

/// Writes a bitmap of so many bits to the caller: whole bytes, and no more.
fn write_bitmap<P: Personality, H: Hardware>(
    caller: &Caller<'_, H>,
    to: GuestVirt,
    bitmap: &[u64],
    bits: u32,
) -> Result<(), Stop> {
    let mut left = bits.div_ceil(8) as usize;
    let mut piece = [0; PIECE * 8];
    for (index, words) in bitmap.chunks(PIECE).enumerate() {
        for (bytes, word) in piece.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let bytes = &piece[..left.min(words.len() * 8)];
        left -= bytes.len();
        // An error of the argument's, not of the request's, as in 2.0.
        caller.copy_to_guest::<P>(to.offset((index * PIECE * 8) as u64), bytes).map_err(|_| Errno::EINVAL)?;
    }
    Ok(())
}
