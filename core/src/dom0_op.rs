//! `dom0_op`: requests of a domain that controls the machine.
//!
//! Refused in this order, as Xen 2.0 did: callers without the privilege (-EPERM), a request that cannot be read
//! (-EFAULT), another version of the interface (-EACCES), a command that does not exist (-ENOSYS). Then each command
//! has its own errors, and one that is refused changes nothing. Where a command answers in its argument, the request is
//! written back if it succeeded; whether it can be is found out before anything is done (-EFAULT).
//!
//! No lock is held from one command to the next. Other domains' virtual CPUs are reached through [`crate::others`].

mod build;
mod context;
#[cfg(test)]
mod control_tests;
pub mod debug;
mod devices;
mod info;
mod life;
mod machine;
mod memory;
mod msr;
mod scheduling;
mod shadow;
#[cfg(test)]
mod tests;

use crate::addr::{DomId, GuestVirt};
use crate::domain::{Domain, RunState};
use crate::event::EventDomains;
use crate::host::{Hardware, Host};
use crate::hypercall::{Caller, head_of_request};
use crate::others::Stopped;
use crate::personality::Personality;
use crate::ports::Level;
use crate::preempt::{Call, Stop};
use crate::trace::Event;
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use core::mem::offset_of;
use proxenos_abi::dom0_ops::args::Iopl;
use proxenos_abi::dom0_ops::{Dom0Argument, Dom0Command, Dom0Op, Dom0Version};
use proxenos_abi::zerocopy::{FromZeros, IntoBytes};
use proxenos_abi::{Errno, Hypercall};

/// `dom0_op(op)`.
pub fn dom0_op<P: Personality, H: Hardware>(caller: &mut Caller<'_, H>, at: GuestVirt) -> Result<u64, Stop> {
    if !caller.dom.is_privileged() {
        return Err(Errno::EPERM.into());
    }
    let mut op = Dom0Op::new_zeroed();
    caller.copy_from_guest::<P>(at, op.as_mut_bytes())?;
    let version = op.version().map_err(|_| Errno::EACCES)?;
    let command = op.command().map_err(|_| Errno::ENOSYS)?;
    let mut request = Request { caller, at, op, version };
    request.caller.host.hw.trace(|| Event::ControlBegun { command: command.raw(), words: words_of(&request.op) });
    let result = request.carry_out::<P>(command);
    request.caller.host.hw.trace(|| Event::ControlEnded {
        command: command.raw(),
        result: result_of(&result),
        words: words_of(&request.op),
    });
    result
}

/// The first words of a request's argument, for the trace.
fn words_of(op: &Dom0Op) -> [u32; 4] {
    let bytes = op.u.as_bytes();
    core::array::from_fn(|index| u32::from_le_bytes(core::array::from_fn(|byte| bytes[4 * index + byte])))
}

/// What the caller gets, for the trace. A request that made way gets nothing yet.
fn result_of(result: &Result<u64, Stop>) -> u32 {
    match result {
        Ok(value) => *value as u32,
        Err(Stop::Error(error)) => error.to_result() as u32,
        Err(Stop::Preempted) => Errno::EAGAIN.to_result() as u32,
    }
}

/// A request that is well-formed, and its caller.
struct Request<'r, 'c, H> {
    caller: &'r mut Caller<'c, H>,
    /// Where the caller has it.
    at: GuestVirt,
    op: Dom0Op,
    version: Dom0Version,
}

impl<'c, H: Hardware> Request<'_, 'c, H> {
    /// One arm a command. Those that only take arguments are called with them; those that answer in them as well,
    /// through [`with_answer`](Self::with_answer).
    fn carry_out<P: Personality>(&mut self, command: Dom0Command) -> Result<u64, Stop> {
        match command {
            Dom0Command::Iopl => iopl(self.caller, self.op.argument()),
            // The life of domains.
            Dom0Command::CreateDomain => {
                let call = self.call();
                self.with_answer::<P, _>(|caller, _, argument| life::create::<P, H>(caller, call, argument))
            }
            Dom0Command::BuildDomain => build::build::<P, H>(self),
            Dom0Command::DestroyDomain => life::destroy(self.caller, self.op.argument()),
            Dom0Command::PauseDomain => life::pause(self.caller, self.op.argument()),
            Dom0Command::UnpauseDomain => life::unpause(self.caller, self.op.argument()),
            Dom0Command::GetDomainInfo => self.with_answer::<P, _>(info::get_domain_info::<P, H>),
            // Their memory.
            Dom0Command::GetMemList => {
                let call = self.call();
                self.with_answer::<P, _>(|caller, _, argument| memory::get_mem_list::<P, H>(caller, call, argument))
            }
            Dom0Command::GetPageFrameInfo => {
                self.with_answer::<P, _>(|caller, _, argument| memory::get_page_frame_info::<P, H>(caller, argument))
            }
            Dom0Command::GetPageFrameInfo2 => {
                let call = self.call();
                memory::get_page_frame_info2::<P, H>(self.caller, call, self.op.argument())
            }
            Dom0Command::SetDomainInitialMem => memory::set_initial_mem::<P, H>(self.caller, self.op.argument()),
            Dom0Command::SetDomainMaxMem => memory::set_max_mem::<P, H>(self.caller, self.op.argument()),
            Dom0Command::SetDomainVmAssist => memory::set_vm_assist(self.caller, self.op.argument()),
            // The machine and its schedulers.
            Dom0Command::SchedCtl => self.with_answer::<P, _>(scheduling::sched_ctl),
            Dom0Command::AdjustDom => self.with_answer::<P, _>(scheduling::adjust_dom),
            Dom0Command::PinCpuDomain => scheduling::pin_cpu_domain(self.caller, self.op.argument()),
            Dom0Command::SchedId => self.with_answer::<P, _>(scheduling::sched_id),
            Dom0Command::PhysInfo => self.with_answer::<P, _>(machine::phys_info::<P, H>),
            Dom0Command::SetTime => machine::set_time(self.caller, self.op.argument()),
            Dom0Command::ReadConsole => machine::read_console::<P, H>(self.caller, self.op.argument()),
            Dom0Command::GetTbufs => self.with_answer_anyway::<P, _>(machine::get_tbufs::<P, H>),
            Dom0Command::Msr => self.with_answer::<P, _>(msr::msr),
            Dom0Command::Debug => self.with_answer::<P, _>(debug::debug),
            Dom0Command::PcidevAccess => devices::pcidev_access(self.caller, self.op.argument()),
            Dom0Command::ShadowControl => self.with_answer_anyway::<P, _>(shadow::shadow_control::<P, H>),
        }
    }

    /// This request, as it is recognised when it is made again.
    fn call(&self) -> Call {
        // What it asks for is part of what it is: a list of requests that is used over and over lies at one place.
        let word = |at: usize| self.op.as_bytes()[at..].first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes));
        self.caller.recognised(Hypercall::Dom0Op, [self.at.0, word(0), word(8), word(16), word(24)])
    }

    /// Carries out a command that answers in its argument.
    fn with_answer<P: Personality, T: Dom0Argument>(
        &mut self,
        command: impl FnOnce(&mut Caller<'c, H>, Dom0Version, &mut T) -> Result<u64, Stop>,
    ) -> Result<u64, Stop> {
        self.caller.copy_to_guest::<P>(self.at, self.op.as_bytes())?;
        let mut argument: T = self.op.argument();
        let result = command(self.caller, self.version, &mut argument)?;
        self.op.u.write(argument);
        self.caller.copy_to_guest::<P>(self.at, self.op.as_bytes())?;
        Ok(result)
    }

    /// As [`with_answer`](Self::with_answer), for one that answers whether it succeeds or not.
    fn with_answer_anyway<P: Personality, T: Dom0Argument>(
        &mut self,
        command: impl FnOnce(&mut Caller<'c, H>, Dom0Version, &mut T) -> Result<u64, Stop>,
    ) -> Result<u64, Stop> {
        let mut failed = None;
        self.with_answer::<P, T>(|caller, version, argument| {
            command(caller, version, argument).or_else(|why| match why {
                Stop::Error(error) => {
                    failed = Some(error);
                    Ok(0)
                }
                Stop::Preempted => Err(why),
            })
        })
        .and_then(|result| failed.map_or(Ok(result), |error| Err(error.into())))
    }
}

/// The domain that a command names, which must not be the caller.
fn other<H: Hardware>(caller: &Caller<'_, H>, id: DomId) -> Result<Arc<Domain>, Errno> {
    let dom = caller.host.domains.find(id).ok_or(Errno::ESRCH)?;
    if dom.id == caller.dom.id { Err(Errno::EINVAL) } else { Ok(dom) }
}

/// A domain that is not at its end.
fn living<H: Hardware>(caller: &Caller<'_, H>, id: DomId) -> Result<Arc<Domain>, Errno> {
    let dom = caller.host.domains.find(id).ok_or(Errno::ESRCH)?;
    if dom.run_state().contains(RunState::DYING) { Err(Errno::ESRCH) } else { Ok(dom) }
}

/// `dom0_op`, if it is a `DOM0_IOPL` that is carried out: kernels make it whenever they change tasks.
#[inline(always)]
pub(crate) fn answer_iopl<P: Personality, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    at: GuestVirt,
) -> Option<u64> {
    const { assert!(offset_of!(Dom0Op, interface_version) == 4 && offset_of!(Dom0Op, u) == 8) };
    const { assert!(offset_of!(Iopl, domain) == 0 && offset_of!(Iopl, iopl) == 4) };
    if !dom.is_privileged() {
        return None;
    }
    let [command, argument] = head_of_request::<P, H, { size_of::<Dom0Op>() }>(host, at)?;
    if command as u32 != Dom0Command::Iopl.raw() || Dom0Version::try_from((command >> 32) as u32).is_err() {
        return None;
    }
    let argument = Iopl { domain: DomId(argument as u16), iopl: (argument >> 32) as u32, ..Iopl::default() };
    own_iopl(dom, vcpu, argument)
}

/// `DOM0_IOPL` of the caller's: its I/O privilege level, of which the low two bits count. `None` if it is another's
/// that is named.
#[inline]
fn own_iopl(dom: &Domain, vcpu: &mut Vcpu, argument: Iopl) -> Option<u64> {
    let domain = argument.domain;
    if domain != DomId::SELF && domain != dom.id {
        return None;
    }
    vcpu.ports.set_level(Level::from_raw(argument.iopl));
    Some(0)
}

/// `DOM0_IOPL`: a domain's I/O privilege level. 2.0 did not look at the domain, and gave the level to the caller
/// whichever it named; here it is that domain's, and one that was given to another can be taken away again.
fn iopl<H: Hardware>(caller: &mut Caller<'_, H>, argument: Iopl) -> Result<u64, Stop> {
    if let Some(done) = own_iopl(caller.dom, caller.vcpu, argument) {
        return Ok(done);
    }
    let dom = living(caller, argument.domain)?;
    let level = Level::from_raw(argument.iopl);
    caller.host.hw.with_stopped(&dom, |Stopped { vcpu, .. }| vcpu.ports.assign_level(level))?;
    Ok(0)
}
