//! `DOM0_DEBUG`: a debugger's requests to a domain: stop, go on, memory, registers.
//!
//! | opcode | arguments | what |
//! |---|---|---|
//! | `s` | | stops the domain, as `DOM0_PAUSEDOMAIN` does |
//! | `c` | | lets it go on |
//! | `r` | in1, in4: address, low and high; in2: bytes, 4096 at most | reads: the first eight into out1 and out2, and more than that into the log too |
//! | `w` | in1, in4: address; in2: bytes, 1 to 4; in3: their value | writes, also where the domain may only read |
//! | `g` | in1: register | reads a register into out1 and out2 |
//! | `p` | in1: register; in3, in4: its value | sets one |
//!
//! The first three are 2.0's (whose in3, a process of a Linux, and in4 meant nothing to the domain itself); the others,
//! high halves and outputs are ours. Addresses are those of the domain's kernel. Registers are rax, rbx, rcx, rdx, rsi,
//! rdi, rbp, r8 to r15, rsp, rip, and rflags, which is not set; an x86_32 domain has no r8 to r15.
//!
//! The call succeeds; `status` says what came of it: see [`Status`]. Memory that is not the domain's own, or is a page
//! table or descriptors, is not written. The domain does not run meanwhile.

use super::life;
use crate::addr::{GuestVirt, MachineAddr, PAGE_SIZE};
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::frame::FrameType;
use crate::host::{Hardware, Host};
use crate::hypercall::Caller;
use crate::machine::BadPointer;
use crate::others::{Registers, Stopped};
use crate::paging::Pager;
use crate::paging::format::{Format, FourLevel, TwoLevel};
use crate::preempt::Stop;
use alloc::format;
use alloc::vec::Vec;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::{DebugOp, PauseDomain, UnpauseDomain};

/// What came of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Status {
    /// It was done.
    Done = 0,
    /// A domain does not debug itself.
    Oneself = 1,
    /// There is no such domain (2.0's).
    NoDomain = 2,
    /// No such request, or not with these arguments.
    Unknown = 3,
    /// There is no such memory, or not to be written.
    NoMemory = 4,
}

/// The most that is read at a time.
const MOST: u32 = 4096;
/// The most that is written at a time.
const WORD: u32 = 4;
/// Bytes of a line in the log.
const LINE: usize = 8;
/// Numbers of registers behind the general ones.
const SP: u32 = 15;
const IP: u32 = 16;
const FLAGS: u32 = 17;
/// The first register that x86_32 domains do not have, of the general ones.
const R8: u32 = 7;

/// `DOM0_DEBUG`.
pub(super) fn debug<H: Hardware>(
    caller: &mut Caller<'_, H>,
    _: Dom0Version,
    argument: &mut DebugOp,
) -> Result<u64, Stop> {
    let status = match caller.host.domains.find(argument.domain) {
        None => Status::NoDomain,
        Some(dom) if dom.id == caller.dom.id => Status::Oneself,
        Some(dom) => carry_out(caller, &dom, argument)?,
    };
    argument.status = status as u32;
    Ok(0)
}

fn carry_out<H: Hardware>(caller: &Caller<'_, H>, dom: &Domain, argument: &mut DebugOp) -> Result<Status, Stop> {
    let (host, domain) = (caller.host, dom.id);
    let at = GuestVirt(u64::from(argument.in4) << 32 | u64::from(argument.in1));
    let bytes = argument.in2;
    let set = |argument: &mut DebugOp, value: u64| {
        argument.out1 = value as u32;
        argument.out2 = (value >> 32) as u32;
    };
    match argument.opcode {
        b's' => unless_refused(life::pause(caller, PauseDomain { domain, pad: 0 })),
        b'c' => unless_refused(life::unpause(caller, UnpauseDomain { domain, pad: 0 })),
        b'r' if bytes <= MOST => {
            let mut read = Vec::new();
            read.try_reserve_exact(bytes as usize).map_err(|_| Errno::ENOMEM)?;
            read.resize(bytes as usize, 0);
            if host.hw.with_stopped(dom, |_| access(host, dom, at, Access::Read(&mut read)))?.is_err() {
                return Ok(Status::NoMemory);
            }
            // What fits the outputs is told there.
            let lines = if read.len() > LINE { read.chunks(LINE) } else { [].chunks(LINE) };
            for (line, bytes) in (0..).zip(lines) {
                let text = format!("{:08x} {bytes:02x?}\n", at.0 + line * LINE as u64);
                host.hw.console_log(dom.id, text.as_bytes());
            }
            let mut first = [0; 8];
            let shown = read.len().min(8);
            first[..shown].copy_from_slice(&read[..shown]);
            set(argument, u64::from_le_bytes(first));
            Ok(Status::Done)
        }
        b'w' if (1..=WORD).contains(&bytes) => {
            let value = u32::to_le_bytes(argument.in3);
            let written =
                host.hw.with_stopped(dom, |_| access(host, dom, at, Access::Write(&value[..bytes as usize])))?;
            Ok(if written.is_ok() { Status::Done } else { Status::NoMemory })
        }
        b'g' => {
            let number = argument.in1;
            let found = host.hw.with_stopped(dom, |Stopped { state, .. }| {
                if number == FLAGS {
                    return Some(state.registers.flags);
                }
                register(&mut state.registers, dom.arch, number).map(|register| *register)
            })?;
            let Some(value) = found else { return Ok(Status::Unknown) };
            set(argument, value);
            Ok(Status::Done)
        }
        b'p' => {
            let value = u64::from(argument.in4) << 32 | u64::from(argument.in3);
            let number = argument.in1;
            if !may_hold(dom.arch, number, value) {
                return Ok(Status::Unknown);
            }
            let found = host.hw.with_stopped(dom, |Stopped { state, .. }| {
                register(&mut state.registers, dom.arch, number).map(|register| *register = value).is_some()
            })?;
            Ok(if found { Status::Done } else { Status::Unknown })
        }
        _ => Ok(Status::Unknown),
    }
}

/// What came of a request that has a command of its own: one that is not built yet cannot go on.
fn unless_refused(result: Result<u64, Stop>) -> Result<Status, Stop> {
    match result {
        Ok(_) => Ok(Status::Done),
        Err(Stop::Error(_)) => Ok(Status::Unknown),
        Err(Stop::Preempted) => Err(Stop::Preempted),
    }
}

/// A register that may be set, by its number.
fn register(registers: &mut Registers, arch: Arch, number: u32) -> Option<&mut u64> {
    match number {
        SP => Some(&mut registers.sp),
        IP => Some(&mut registers.ip),
        R8..SP if arch == Arch::X86_32 => None,
        number => registers.general.get_mut(number as usize),
    }
}

/// Whether a register of a guest's can have a value.
fn may_hold(arch: Arch, number: u32, value: u64) -> bool {
    match arch {
        Arch::X86_32 => value <= u32::MAX.into(),
        // A return to an address that is not canonical faults in the hypervisor.
        Arch::X86_64 => number != IP || (value as i64) << 16 >> 16 == value as i64,
    }
}

/// What is done to memory.
enum Access<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

/// Reads or writes a domain's memory, by its kernel's addresses. All that is named is there before anything is written.
fn access<H: Hardware>(host: &Host<H>, dom: &Domain, at: GuestVirt, mut access: Access<'_>) -> Result<(), BadPointer> {
    let length = match &access {
        Access::Read(into) => into.len(),
        Access::Write(from) => from.len(),
    };
    let end = at.0.checked_add(length as u64).ok_or(BadPointer)?;
    if dom.arch == Arch::X86_32 && end > 1 << 32 {
        return Err(BadPointer);
    }
    let mut done = 0;
    while done < length {
        let here = at.offset(done as u64);
        let step = (length - done).min(PAGE_SIZE - here.page_offset());
        // A word that crosses pages: the second is looked at before the first is written.
        let last = at.offset(length as u64 - 1);
        if matches!(access, Access::Write(_)) && done == 0 && step < length {
            on_page(host, dom, last, &mut Access::Write(&[]))?;
        }
        let mut part = match &mut access {
            Access::Read(into) => Access::Read(&mut into[done..done + step]),
            Access::Write(from) => Access::Write(&from[done..done + step]),
        };
        on_page(host, dom, here, &mut part)?;
        done += step;
    }
    Ok(())
}

/// The same, within a page.
fn on_page<H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    at: GuestVirt,
    access: &mut Access<'_>,
) -> Result<(), BadPointer> {
    match dom.arch {
        Arch::X86_32 => on_page_of::<TwoLevel, H>(host, dom, at, access),
        Arch::X86_64 => on_page_of::<FourLevel, H>(host, dom, at, access),
    }
}

fn on_page_of<F: Format, H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    at: GuestVirt,
    access: &mut Access<'_>,
) -> Result<(), BadPointer> {
    let pager = Pager::new(host, dom);
    let state = pager.lock();
    let entry =
        pager.walk::<F>(&state, at).map(|found| found.entry).filter(|entry| entry.present()).ok_or(BadPointer)?;
    let mfn = entry.mfn();
    let info = host.frames.info(mfn).filter(|_| host.is_ram(mfn)).ok_or(BadPointer)?;
    info.get(dom.id).map_err(|_| BadPointer)?;
    let machine = MachineAddr(mfn.addr().0 + at.page_offset() as u64);
    let result = match access {
        Access::Read(into) => {
            host.hw.read(machine, into);
            Ok(())
        }
        Access::Write(from) => match info.get_type(FrameType::Writable, |stamp| host.hw.flush_if_older(stamp)) {
            Ok(_) => {
                host.hw.write(machine, from);
                pager.mark_dirty(mfn);
                let _: crate::frame::TypeRest = info.put_type(|| host.hw.stamp());
                Ok(())
            }
            Err(_) => Err(BadPointer),
        },
    };
    drop(state);
    host.put_frame(mfn, info);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_hold_what_their_architecture_can() {
        assert!(may_hold(Arch::X86_32, 0, 0xffff_ffff) && !may_hold(Arch::X86_32, 0, 1 << 32));
        assert!(may_hold(Arch::X86_64, 0, 1 << 47) && !may_hold(Arch::X86_64, IP, 1 << 47));
        assert!(may_hold(Arch::X86_64, IP, 0xffff_8000_0000_0000) && may_hold(Arch::X86_64, SP, 1 << 47));
    }
}
