//! From a number and its arguments to a result: the one place where hypercalls are decoded.
//!
//! A result is a non-negative number or an [`Errno`], which becomes its negative in the guest's register here and
//! nowhere else. Arguments are taken as wide as the interface has them: an `int` is the register's low 32 bits.

mod multicall;

use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn, PAGE_SHIFT, PAGE_SIZE};
use crate::assist;
use crate::bounce::Callback;
use crate::debugreg::Changed;
use crate::dom0_op;
use crate::domain::{Arch, Domain, Privileges, RunState};
use crate::event::{self, Reply};
use crate::grant;
use crate::host::{Hardware, Host};
use crate::mmu::{self, Abandoned, Course};
use crate::paging::partial::Drained;
use crate::paging::{Pager, Target};
use crate::personality::Personality;
use crate::preempt::{Answer, Call, Place, Poll, Progress, Stop, cost};
use crate::rarely;
use crate::reservation;
use crate::segments::{INITIAL_GDT_ENTRIES, TABLE_PAGES};
use crate::user_mode;
use crate::vcpu::Vcpu;
use proxenos_abi::context::{NR_TRAPS, TrapInfo};
use proxenos_abi::event_channel::{EventChannelOp, EvtchnOp};
use proxenos_abi::hypercall::{ConsoleIo, MulticallEntry, SCHEDOP_CMDMASK, SCHEDOP_REASONSHIFT, SchedOp, XEN_VERSION};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};
use proxenos_abi::{Errno, GuestWord, Hypercall, Port, Selector, X86_32, X86_64};

/// A call's arguments, as the guest's registers have them (zero-extended).
pub type Args = [u64; 6];

/// Longest text that one `console_io` writes.
const CONSOLE_WRITE_MAX: usize = 4095;

/// Who calls, and on what.
pub struct Caller<'a, H> {
    /// The machine.
    pub host: &'a Host<H>,
    /// The calling domain.
    pub dom: &'a Domain,
    /// The virtual CPU that made the call, which this CPU owns while it runs.
    pub vcpu: &'a mut Vcpu,
    /// Where the guest made the call.
    pub place: Place,
}

/// Whether a call stands alone or within a multicall, which must not contain another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nesting {
    Alone,
    InMulticall,
}

impl<H: Hardware> Caller<'_, H> {
    /// Carries out a call by its raw number, or as much of it as there is time for.
    pub fn hypercall(&mut self, number: u64, args: &Args) -> Answer {
        let Some(number) = decode(number) else { return Answer::Done(to_register(Err(Errno::ENOSYS))) };
        match self.dom.arch {
            Arch::X86_32 => self.call::<X86_32>(number, args),
            Arch::X86_64 => self.call::<X86_64>(number, args),
        }
    }

    /// Carries out a call of a guest of a known architecture.
    pub fn call<P: Personality>(&mut self, number: Hypercall, args: &Args) -> Answer {
        match answer::<P, H>(self.host, self.dom, self.vcpu, number, args) {
            Some(result) => Answer::Done(result),
            None => self.call_at_length::<P>(number, args),
        }
    }

    /// Carries out a call to which [`answer`] has just had no answer. Inlined where the number is a constant, it is
    /// that one call.
    #[inline(always)]
    pub fn call_at_length<P: Personality>(&mut self, number: Hypercall, args: &Args) -> Answer {
        let result = self.dispatch::<P>(number, args, Nesting::Alone);
        self.vcpu.call_made_way = result == Err(Stop::Preempted);
        match result {
            Ok(value) => Answer::Done(value),
            Err(Stop::Error(error)) => Answer::Done(to_register(Err(error))),
            Err(Stop::Preempted) => Answer::Again,
        }
    }

    /// A call that is made here, as it is recognised when it is made again.
    pub(crate) const fn recognised(&self, number: Hypercall, args: [u64; 5]) -> Call {
        Call { number, args, place: self.place }
    }

    /// Reads from the guest, after a look whether it may use the addresses at all.
    pub fn copy_from_guest<P: Personality>(&self, from: GuestVirt, into: &mut [u8]) -> Result<(), Errno> {
        if !P::in_guest_range(from, into.len() as u64) {
            return Err(Errno::EFAULT);
        }
        self.host.hw.copy_from_guest(from, into).map_err(|_| Errno::EFAULT)
    }

    /// Writes to the guest, after a look whether it may use the addresses at all.
    pub fn copy_to_guest<P: Personality>(&self, to: GuestVirt, from: &[u8]) -> Result<(), Errno> {
        if !P::in_guest_range(to, from.len() as u64) {
            return Err(Errno::EFAULT);
        }
        self.host.hw.copy_to_guest(to, from).map_err(|_| Errno::EFAULT)
    }

    #[inline(always)]
    fn dispatch<P: Personality>(&mut self, number: Hypercall, args: &Args, nesting: Nesting) -> Result<u64, Stop> {
        let changes_mappings = matches!(
            number,
            Hypercall::UpdateVaMapping
                | Hypercall::UpdateVaMappingOtherdomain
                | Hypercall::SetGdt
                | Hypercall::UpdateDescriptor
        );
        let result = self.attempt::<P>(number, args, nesting);
        if changes_mappings && result == Err(Stop::Error(Errno::EINVAL)) && self.dom.is_unsettled() {
            return self.try_again::<P>(number, *args, nesting);
        }
        result
    }

    /// A call that changes mappings was refused. What another call never came back for may be what stands in the way.
    #[cold]
    #[inline(never)]
    fn try_again<P: Personality>(&mut self, number: Hypercall, args: Args, nesting: Nesting) -> Result<u64, Stop> {
        loop {
            if mmu::settle(self.host, self.dom, &mut Poll::begin(), Abandoned::Undo) == Drained::Partly {
                return Err(Stop::Preempted);
            }
            let result = self.attempt::<P>(number, &args, nesting);
            if result != Err(Stop::Error(Errno::EINVAL)) || !self.dom.is_unsettled() {
                return result;
            }
        }
    }

    #[inline(always)]
    fn attempt<P: Personality>(&mut self, number: Hypercall, args: &Args, nesting: Nesting) -> Result<u64, Stop> {
        let [a, b, c, d, e, _] = *args;
        let result = match number {
            Hypercall::MmuUpdate => return mmu::mmu_update::<P, H>(self, GuestVirt(a), b as u32, GuestVirt(c)),
            Hypercall::UpdateVaMapping => mmu::update_va_mapping::<P, H>(self, a, b, c as u32, Target::Own),
            Hypercall::UpdateVaMappingOtherdomain => {
                mmu::update_va_mapping_otherdomain::<P, H>(self, a, b, c as u32, DomId(d as u16))
            }
            Hypercall::DomMemOp => {
                return reservation::dom_mem_op::<P, H>(self, a as u32, GuestVirt(b), c, d as u32, DomId(e as u16));
            }
            Hypercall::GrantTableOp => {
                return grant::ops::grant_table_op::<P, H>(self, a as u32, GuestVirt(b), c as u32);
            }
            Hypercall::EventChannelOp => self.event_channel_op::<P>(GuestVirt(a)),
            Hypercall::SchedOp => self.sched_op(a as u32),
            Hypercall::Multicall if nesting == Nesting::Alone => return self.multicall::<P>(GuestVirt(a), b as u32),
            Hypercall::Multicall => Err(Errno::EINVAL),
            Hypercall::SetTrapTable => self.set_trap_table::<P>(GuestVirt(a)),
            Hypercall::SetCallbacks => self.set_callbacks::<P>(a, b, c, d, e),
            Hypercall::StackSwitch => stack_switch::<P>(self.vcpu, a, b),
            Hypercall::FpuTaskswitch => Ok(fpu_taskswitch(self.host, self.vcpu)),
            Hypercall::PhysdevOp => self.physdev_op::<P>(GuestVirt(a)),
            Hypercall::SetFastTrap => self.vcpu.traps.set_fast_trap::<P>(a as u32).map(|()| 0),
            Hypercall::SetDebugreg => self.set_debugreg::<P>(a as u32, b),
            Hypercall::GetDebugreg => self.vcpu.debug.get(a as u32),
            Hypercall::SetGdt => self.set_gdt::<P>(GuestVirt(a), b as u32),
            Hypercall::UpdateDescriptor => self.update_descriptor::<P>(a, b, c),
            Hypercall::SetTimerOp => {
                self.vcpu.set_timer((a as u32 as u64) << 32 | b & 0xffff_ffff);
                Ok(0)
            }
            Hypercall::XenVersion => Ok(xen_version(a)),
            Hypercall::ConsoleIo => self.console_io::<P>(a as u32, b as u32 as i32, GuestVirt(c)),
            Hypercall::Dom0Op => return dom0_op::dom0_op::<P, H>(self, GuestVirt(a)),
            Hypercall::VmAssist => assist::vm_assist(self.host, self.dom, a as u32, b as u32),
            // Of the rest none exists, rather than half of one (SPECIFICATION.md says which issue brings it).
            Hypercall::SetSegmentBase => {
                user_mode::set_segment_base::<P, H>(self.host, self.dom, self.vcpu, a as u32, b)
            }
            // Alone it does not come here: it goes on with other registers (`user_mode::Application`).
            Hypercall::SwitchToUser if P::ARCH == Arch::X86_64 => Err(Errno::EINVAL),
            Hypercall::SwitchToUser => Err(Errno::ENOSYS),
        };
        Ok(result?)
    }

    /// One call of a multicall's list.
    fn call_in_multicall<P: Personality>(&mut self, number: u64, args: &Args) -> Result<u64, Stop> {
        let number = decode(number).ok_or(Errno::ENOSYS)?;
        if number != Hypercall::Multicall
            && let Some(result) = answer::<P, H>(self.host, self.dom, self.vcpu, number, args)
        {
            return Ok(result);
        }
        self.dispatch::<P>(number, args, Nesting::InMulticall)
    }

    /// `multicall(list, n)`: calls in order, each result written into its entry. Makes way between two calls, and where
    /// one of them does.
    fn multicall<P: Personality>(&mut self, list: GuestVirt, count: u32) -> Result<u64, Stop> {
        let size = size_of::<MulticallEntry<P>>() as u64;
        if !P::in_guest_range(list, u64::from(count) * size) {
            return Err(Errno::EFAULT.into());
        }
        let call = self.recognised(Hypercall::Multicall, [list.0, count.into(), 0, 0, 0]);
        // The quick answer has begun it, or it was begun before.
        let Course { completed: mut index, mut poll, .. } = core::mem::replace(&mut self.vcpu.course, Course::begin());
        if let Some(Progress::Multicall(done)) = self.vcpu.unfinished.take(&call) {
            index = done;
        }
        while index < count {
            if poll.is_due(&self.host.hw) {
                return Err(self.suspend_multicall(call, index));
            }
            let at = list.offset(u64::from(index) * size);
            match self.call_of_multicall::<P>(at, index)? {
                Answer::Done(result) => {
                    multicall::write_result::<P, H>(self.host, at, result).map_err(|_| Errno::EFAULT)?
                }
                Answer::Again => return Err(self.suspend_multicall(call, index)),
            }
            index += 1;
            poll.step(2 * cost::ENTRY);
            // A domain that has ended does nothing more. One that merely waits still gets its calls done first.
            if self.dom.run_state().intersects(RunState::SHUTDOWN | RunState::CRASHED) {
                break;
            }
        }
        Ok(0)
    }

    #[cold]
    fn suspend_multicall(&mut self, call: Call, index: u32) -> Stop {
        self.vcpu.unfinished.keep(call, Progress::Multicall(index));
        Stop::Preempted
    }

    /// Makes one of a multicall's calls.
    #[inline(never)]
    fn call_of_multicall<P: Personality>(&mut self, at: GuestVirt, index: u32) -> Result<Answer, Errno> {
        let (op, args) = multicall::words_of_entry::<P, H>(self.host, at).map_err(|_| Errno::EFAULT)?;
        self.place.entry = Some(index);
        let result = self.call_in_multicall::<P>(op, &args);
        self.place.entry = None;
        Ok(match result {
            Err(Stop::Preempted) => Answer::Again,
            Ok(value) => Answer::Done(value),
            Err(Stop::Error(error)) => Answer::Done(to_register(Err(error))),
        })
    }

    fn event_channel_op<P: Personality>(&mut self, at: GuestVirt) -> Result<u64, Errno> {
        let mut op = EvtchnOp::new_zeroed();
        self.copy_from_guest::<P>(at, op.as_mut_bytes())?;
        match event::event_channel_op(self.dom, &self.host.domains, &self.host.hw, &mut op)? {
            Reply::CopyBack => self.copy_to_guest::<P>(at, op.as_bytes())?,
            Reply::Nothing => {}
        }
        Ok(0)
    }

    fn sched_op(&mut self, op: u32) -> Result<u64, Errno> {
        let op_kind = SchedOp::from_raw(op & SCHEDOP_CMDMASK).ok_or(Errno::ENOSYS)?;
        // Another domain's turn may come: no table stays open, and who has a bad one does not get as far as to wait.
        drop(Pager::new(self.host, self.dom).lock());
        match op_kind {
            SchedOp::Yield => self.vcpu.reschedule = true,
            SchedOp::Block => event::block(&self.host.hw, self.dom.shared_info, &self.dom.run),
            SchedOp::Shutdown => self.dom.shut_down((op >> SCHEDOP_REASONSHIFT) as u8),
        }
        Ok(0)
    }

    /// `set_trap_table(table)`: installs until an entry with address 0.
    fn set_trap_table<P: Personality>(&mut self, table: GuestVirt) -> Result<u64, Errno> {
        let size = size_of::<TrapInfo<P>>() as u64;
        // A table has an end: each vector once is all there can be to say (2.0 read on for as long as it found memory).
        for index in 0..=NR_TRAPS as u64 {
            let mut entry = TrapInfo::<P>::new_zeroed();
            self.copy_from_guest::<P>(table.offset(index * size), entry.as_mut_bytes())?;
            let address = entry.address;
            if address.to_u64() == 0 {
                return Ok(0);
            }
            self.vcpu.traps.set::<P>(&entry)?;
        }
        Err(Errno::EINVAL)
    }

    fn set_callbacks<P: Personality>(
        &mut self,
        event_cs: u64,
        event_ip: u64,
        failsafe_cs: u64,
        failsafe_ip: u64,
        system_call: u64,
    ) -> Result<u64, Errno> {
        let event = Callback::new::<P>(Selector(event_cs as u16), GuestVirt(event_ip))?;
        let failsafe = Callback::new::<P>(Selector(failsafe_cs as u16), GuestVirt(failsafe_ip))?;
        self.vcpu.event_callback = Some(event);
        self.vcpu.failsafe_callback = Some(failsafe);
        if P::ARCH == Arch::X86_64 {
            // A kernel of 2004 does not set the fifth argument: what it happens to be must not be refused.
            let given = GuestVirt(system_call);
            let entry = (given.0 != 0).then(|| Callback::new::<P>(P::FLAT_GUESTOS_CS, given));
            self.vcpu.system_call = entry.and_then(Result::ok).map(|entry| entry.ip);
        }
        Ok(0)
    }

    #[cold]
    #[inline(never)]
    fn set_debugreg<P: Personality>(&mut self, register: u32, value: u64) -> Result<u64, Errno> {
        if self.vcpu.debug.set::<P>(register, value)? == Changed::Breakpoints {
            self.host.hw.load_breakpoints(&self.vcpu.debug);
        }
        Ok(0)
    }

    fn set_gdt<P: Personality>(&mut self, list: GuestVirt, entries: u32) -> Result<u64, Errno> {
        if entries < INITIAL_GDT_ENTRIES.into() || entries > 512 * TABLE_PAGES as u32 {
            return Err(Errno::EINVAL);
        }
        let pages = entries.div_ceil(512) as usize;
        let mut frames = [Mfn(0); TABLE_PAGES];
        for (index, frame) in frames[..pages].iter_mut().enumerate() {
            let mut word = P::Word::ZERO;
            self.copy_from_guest::<P>(list.offset((index * P::Word::BYTES) as u64), word.as_mut_bytes())?;
            *frame = Mfn(word.to_u64());
        }
        self.vcpu.segments.set_gdt::<P, H>(self.host, self.dom, &frames[..pages], entries as u16)?;
        Ok(0)
    }

    fn update_descriptor<P: Personality>(&mut self, at: u64, low: u64, high: u64) -> Result<u64, Errno> {
        let value = low & 0xffff_ffff | high << 32;
        self.vcpu.segments.update_descriptor::<P, H>(self.host, self.dom, MachineAddr(at), value)?;
        Ok(0)
    }

    /// `console_io(command, count, buffer)`: the machine's own console, for domain 0. Others may at most write to it,
    /// and that only where the host's options let them (in 2.0, where it was built so).
    fn console_io<P: Personality>(&mut self, command: u32, count: i32, buffer: GuestVirt) -> Result<u64, Errno> {
        let is_domain0 = self.dom.id == DomId::DOM0;
        let may_write = is_domain0 || self.dom.privileges.contains(Privileges::LOG);
        if !is_domain0 && (!may_write || ConsoleIo::from_raw(command) != Some(ConsoleIo::Write)) {
            return Err(Errno::EPERM);
        }
        let command = ConsoleIo::from_raw(command).ok_or(Errno::ENOSYS)?;
        let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
        let mut chunk = [0; 128];
        match command {
            ConsoleIo::Write => {
                let count = count.min(CONSOLE_WRITE_MAX);
                if !P::in_guest_range(buffer, count as u64) {
                    return Err(Errno::EFAULT);
                }
                let mut done = 0;
                while done < count {
                    let chunk = &mut chunk[..(count - done).min(128)];
                    self.copy_from_guest::<P>(buffer.offset(done as u64), chunk)?;
                    let text = chunk.split(|&byte| byte == 0).next().unwrap_or_default();
                    match is_domain0 {
                        true => self.host.hw.console_write(text),
                        false => self.host.hw.console_log(self.dom.id, text),
                    }
                    if text.len() < chunk.len() {
                        break;
                    }
                    done += chunk.len();
                }
                Ok(count as u64)
            }
            ConsoleIo::Read => {
                let mut done = 0;
                while done < count {
                    let want = (count - done).min(chunk.len());
                    // Input that cannot be delivered would be lost: look at the buffer before taking it.
                    if !P::in_guest_range(buffer.offset(done as u64), want as u64) {
                        return Err(Errno::EFAULT);
                    }
                    let got = self.host.hw.console_read(&mut chunk[..want]);
                    self.copy_to_guest::<P>(buffer.offset(done as u64), &chunk[..got])?;
                    done += got;
                    if got < want {
                        break;
                    }
                }
                Ok(done as u64)
            }
        }
    }
}

/// The answer to a call that needs no more than is at hand, as the guest's register has it. `None` says nothing: then
/// nothing has been done that [`Caller::call_at_length`] does not know of. Inlined where the number is a constant, it
/// is that one call.
#[inline(always)]
pub fn answer<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    number: Hypercall,
    args: &Args,
) -> Option<u64> {
    let [a, b, c, ..] = *args;
    match number {
        Hypercall::XenVersion => Some(xen_version(a)),
        Hypercall::MmuUpdate => mmu::quick::mmu_update::<P, H>(host, dom, vcpu, GuestVirt(a), b as u32, GuestVirt(c)),
        Hypercall::UpdateVaMapping => mmu::quick::update_va_mapping::<P, H>(host, dom, vcpu, a, b, c as u32),
        Hypercall::Multicall => multicall::answer::<P, H>(host, dom, vcpu, GuestVirt(a), b as u32),
        Hypercall::EventChannelOp => answer_send::<P, H>(host, dom, GuestVirt(a)),
        Hypercall::Dom0Op => dom0_op::answer_iopl::<P, H>(host, dom, vcpu, GuestVirt(a)),
        _ => None,
    }
}

/// `event_channel_op`, if it is a send that is carried out: nearly all of them are.
#[inline(always)]
fn answer_send<P: Personality, H: Hardware>(host: &Host<H>, dom: &Domain, at: GuestVirt) -> Option<u64> {
    const { assert!(EventChannelOp::Send.raw() != u32::MAX) };
    let [command, argument] = head_of_request::<P, H, { size_of::<EvtchnOp>() }>(host, at)?;
    if command as u32 != EventChannelOp::Send.raw() {
        return None;
    }
    event::send_at_once(dom, &host.domains, &host.hw, Port(argument as u32))
}

/// The first words of a request of so many bytes, if it lies in one page; all ones if they cannot be read, which is no
/// request's command. They may be all that counts of it; but all of it must be there, as of any other.
#[inline(always)]
pub(crate) fn head_of_request<P: Personality, H: Hardware, const SIZE: usize>(
    host: &Host<H>,
    at: GuestVirt,
) -> Option<[u64; 2]> {
    // A page is the guest's or is not, so of one that begins there is no more to ask.
    if at.page_offset() > PAGE_SIZE - SIZE {
        // Else the compiler works out both conditions before it looks at either.
        rarely();
        return None;
    }
    P::guest_page(at.0 >> PAGE_SHIFT)?;
    Some(host.hw.read_words_or_ones(at))
}

/// `stack_switch(ss, sp)`: where entries from ring 3 begin.
#[inline]
fn stack_switch<P: Personality>(vcpu: &mut Vcpu, ss: u64, sp: u64) -> Result<u64, Errno> {
    // The hypervisor loads ss on the guest's behalf, so it must not lead to ring 0.
    if ss & 3 == 0 || (P::ARCH == Arch::X86_64 && ss & 3 != 3) {
        return Err(Errno::EPERM);
    }
    vcpu.set_kernel_stack(Selector(ss as u16), GuestVirt(sp));
    Ok(0)
}

/// `fpu_taskswitch()`: the next use of the FPU is the guest's #NM.
#[inline]
fn fpu_taskswitch<H: Hardware>(host: &Host<H>, vcpu: &mut Vcpu) -> u64 {
    vcpu.fpu.trap_next_use();
    host.hw.trap_fpu();
    0
}

/// The call with this number.
fn decode(number: u64) -> Option<Hypercall> {
    u32::try_from(number).ok().and_then(Hypercall::from_raw)
}

/// Whether `sched_op(op)` is a yield, which asks for nothing but another domain's turn.
#[inline]
#[must_use]
pub const fn is_yield(op: u64) -> bool {
    op as u32 & SCHEDOP_CMDMASK == SchedOp::Yield.raw()
}

/// `xen_version(command)`: command 0 is the only one. It concerns nobody, so it needs no caller.
#[inline]
#[must_use]
pub fn xen_version(command: u64) -> u64 {
    if command as u32 == 0 { XEN_VERSION.into() } else { to_register(Err(Errno::ENOSYS)) }
}

/// A result as the guest's register has it; for x86_32 the caller keeps the low half.
fn to_register(result: Result<u64, Errno>) -> u64 {
    match result {
        Ok(value) => value,
        Err(error) => error.to_result() as u64,
    }
}
