//! The list of a `multicall`, and the short way through it.
//!
//! [`answer`] makes calls of the list for as long as each has a short way: the questions and changes of which kernels
//! make their task switches and batches of mappings. It stops *before* the first that has none, of which it has done
//! nothing; that one is for the way at length, which begins where this one stopped ([`Course`]). So what is done here
//! is a special case of what would be done there.
//!
//! An entry is read in pieces, as they are needed: a list that changes while it is being read may be seen as it was or
//! as it is. A number that cannot be read is read as all ones, which is no call's: the way at length finds out what is
//! amiss. No lock of its own.

use super::{Args, fpu_taskswitch, stack_switch, to_register};
use crate::addr::{GuestVirt, MachineAddr};
use crate::dom0_op;
use crate::domain::{Domain, RunState};
use crate::host::{Hardware, Host};
use crate::machine::BadPointer;
use crate::mmu::{self, Course};
use crate::personality::Personality;
use crate::preempt::{Poll, cost};
use crate::vcpu::Vcpu;
use proxenos_abi::hypercall::{ARGS_PER_MULTICALL_ENTRY, MULTICALL_RESULT_ARG, MulticallEntry, XEN_VERSION};
use proxenos_abi::{Errno, GuestWord, Hypercall};

/// `multicall`, as long as its calls have a short way. If there are others, how far it has come is in [`Vcpu::course`].
#[inline(always)]
pub(super) fn answer<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    list: GuestVirt,
    count: u32,
) -> Option<u64> {
    let size = size_of::<MulticallEntry<P>>() as u64;
    // All entries of an aligned list are aligned.
    let aligned = list.0.is_multiple_of(P::Word::BYTES as u64);
    if !aligned || !P::in_guest_range(list, u64::from(count) * size) || !vcpu.unfinished.is_empty() {
        return None;
    }
    let (mut at, mut left, mut poll) = (list, count, Poll::begin());
    while left != 0 && !poll.is_due(&host.hw) {
        let head = first_words::<P, H>(host, at);
        let answer = if is_null_call(head) {
            Some(XEN_VERSION.into())
        } else if dom.run_state().intersects(RunState::SHUTDOWN | RunState::CRASHED) {
            // One of the calls has ended it (a page table of its own making): it does nothing more.
            return Some(0);
        } else {
            answer_entry::<P, H>(host, dom, vcpu, at, head)
        };
        let Some(result) = answer else { break };
        let slot = result_of_entry::<P>(at);
        let written = if P::Word::BYTES == 4 {
            host.hw.write_aligned_u32(slot, result as u32)
        } else {
            host.hw.write_aligned_u64(slot, result)
        };
        if written.is_err() {
            return write_failed();
        }
        at = at.offset(size);
        left -= 1;
        poll.step(2 * cost::ENTRY);
    }
    if left == 0 {
        return Some(0);
    }
    vcpu.course = Course { completed: count - left, poll, ..Course::begin() };
    None
}

/// A call was made, and its result cannot be written: it must not be made again. (Inlined, this would cost those that
/// can.)
#[cold]
#[inline(never)]
fn write_failed() -> Option<u64> {
    Some(to_register(Err(Errno::EFAULT)))
}

/// The number and the first argument of an entry.
#[derive(Clone, Copy)]
struct Head {
    op: u64,
    first: u64,
}

/// `xen_version(0)`.
#[inline(always)]
const fn is_null_call(head: Head) -> bool {
    head.op == Hypercall::XenVersion.raw() as u64 && head.first as u32 == 0
}

/// What kernels put into every change of tasks, at least. The rest is elsewhere, so that these need few registers.
#[inline(never)]
fn answer_entry<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    entry: GuestVirt,
    head: Head,
) -> Option<u64> {
    const STACK_SWITCH: u64 = Hypercall::StackSwitch.raw() as u64;
    const FPU_TASKSWITCH: u64 = Hypercall::FpuTaskswitch.raw() as u64;
    match head.op {
        STACK_SWITCH => {
            let [sp, _] = second_and_third::<P, H>(host, entry).ok()?;
            Some(to_register(stack_switch::<P>(vcpu, head.first, sp)))
        }
        FPU_TASKSWITCH => Some(fpu_taskswitch(host, vcpu)),
        _ => answer_other_entry::<P, H>(host, dom, vcpu, entry, head),
    }
}

/// The others that have a short way.
#[inline(never)]
fn answer_other_entry<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    entry: GuestVirt,
    head: Head,
) -> Option<u64> {
    let call = super::decode(head.op)?;
    let a = head.first;
    let [b, c] = second_and_third::<P, H>(host, entry).ok()?;
    match call {
        Hypercall::UpdateVaMapping => mmu::quick::update_va_mapping::<P, H>(host, dom, vcpu, a, b, c as u32),
        // Of a longer list, how far it has come would be noted where this call's course is.
        Hypercall::MmuUpdate if b as u32 == 1 => {
            mmu::quick::mmu_update::<P, H>(host, dom, vcpu, GuestVirt(a), 1, GuestVirt(c))
        }
        Hypercall::Dom0Op => dom0_op::answer_iopl::<P, H>(host, dom, vcpu, GuestVirt(a)),
        Hypercall::UpdateDescriptor => {
            let value = b & 0xffff_ffff | c << 32;
            vcpu.segments.update_descriptor::<P, H>(host, dom, MachineAddr(a), value).ok().map(|()| 0)
        }
        _ => None,
    }
}

/// The number and the first argument of an entry; all ones if they cannot be read.
#[inline(always)]
fn first_words<P: Personality, H: Hardware>(host: &Host<H>, entry: GuestVirt) -> Head {
    if P::Word::BYTES == 4 {
        let [both] = host.hw.read_words_or_ones(entry);
        Head { op: both & 0xffff_ffff, first: both >> 32 }
    } else {
        let [op, first] = host.hw.read_words_or_ones(entry);
        Head { op, first }
    }
}

/// The next two arguments.
#[inline(always)]
fn second_and_third<P: Personality, H: Hardware>(host: &Host<H>, entry: GuestVirt) -> Result<[u64; 2], BadPointer> {
    let at = entry.offset(2 * P::Word::BYTES as u64);
    if P::Word::BYTES == 4 {
        let [both] = host.hw.read_words(at)?;
        Ok([both & 0xffff_ffff, both >> 32])
    } else {
        host.hw.read_words(at)
    }
}

/// An entry of the list: the number, and the arguments.
#[inline(always)]
pub(super) fn words_of_entry<P: Personality, H: Hardware>(
    host: &Host<H>,
    entry: GuestVirt,
) -> Result<(u64, Args), BadPointer> {
    const { assert!(ARGS_PER_MULTICALL_ENTRY == 8) };
    if P::Word::BYTES == 4 {
        let pairs: [u64; 4] = host.hw.read_words(entry)?;
        let word = |index: usize| pairs[index / 2] >> (32 * (index % 2)) & 0xffff_ffff;
        Ok((word(0), core::array::from_fn(|index| word(index + 1))))
    } else {
        let [op, args @ ..]: [u64; 7] = host.hw.read_words(entry)?;
        Ok((op, args))
    }
}

/// Where the result of a call goes.
#[inline(always)]
const fn result_of_entry<P: Personality>(entry: GuestVirt) -> GuestVirt {
    entry.offset((P::Word::BYTES * (1 + MULTICALL_RESULT_ARG)) as u64)
}

/// Writes the result of a call into its entry.
pub(super) fn write_result<P: Personality, H: Hardware>(
    host: &Host<H>,
    entry: GuestVirt,
    result: u64,
) -> Result<(), BadPointer> {
    let slot = result_of_entry::<P>(entry);
    if P::Word::BYTES == 4 { host.hw.write_u32(slot, result as u32) } else { host.hw.write_u64(slot, result) }
}
