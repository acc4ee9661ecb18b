//! I/O ports for guests: their `in`, `out`, `ins` and `outs`, which all fault, carried out where
//! [`Rights`](proxenos_core::ports::Rights) allow it, or the ports are those of a device that the domain was given.
//!
//! Devices that the hypervisor drives itself answer as if nothing were there: reads give ones, writes are lost.
//! Everything else is the domain's that has the right; Xen 2.0 kept nothing back. No lock.

use super::Running;
use super::hw::Hw;
use crate::cpu::entry::TrapFrame;
use crate::power;
use core::marker::PhantomData;
use proxenos_abi::{Selector, X86_32, X86_64};
use proxenos_core::bounce::{self, DataSegments};
use proxenos_core::domain::Arch;
use proxenos_core::personality::Personality;
use proxenos_core::ports::instruction::{self, PortAccess};
use proxenos_core::ports::string::{Fault, GuestStrings, StringAccess, StringsOf};
use proxenos_core::ports::{IoPort, Mode, Ports, Width, touches};
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::{FsBase, GsBase};

/// The hypervisor's own: interrupt controllers and their trigger modes, the interval timer, the serial console, and PCI
/// configuration, whose two registers belong together (guests have `physdev_op`).
const OWN: [core::ops::RangeInclusive<u16>; 6] =
    [0x20..=0x21, 0xa0..=0xa1, 0x4d0..=0x4d1, 0x40..=0x43, 0x3f8..=0x3ff, 0xcf8..=0xcff];

/// The ports, but for the hypervisor's own.
struct GuestPorts;

fn is_own(port: IoPort, width: Width) -> bool {
    let exit = power::debug_exit_port();
    OWN.into_iter().any(|ports| touches(port, width, ports))
        || exit.is_some_and(|exit| touches(port, width, exit.0..=exit.0))
        // Ports past the last are none.
        || port.0.checked_add(width.bytes() - 1).is_none()
}

impl Ports for GuestPorts {
    fn port_in(&self, port: IoPort, width: Width) -> u32 {
        if is_own(port, width) {
            return u32::MAX;
        }
        // SAFETY: the domain has the right to these ports, and is trusted with them; what is the hypervisor's own is
        // not among them.
        unsafe {
            match width {
                Width::Byte => Port::<u8>::new(port.0).read().into(),
                Width::Word => Port::<u16>::new(port.0).read().into(),
                Width::Long => Port::<u32>::new(port.0).read(),
            }
        }
    }

    fn port_out(&self, port: IoPort, width: Width, value: u32) {
        if is_own(port, width) {
            return;
        }
        // SAFETY: as above.
        unsafe {
            match width {
                Width::Byte => Port::new(port.0).write(value as u8),
                Width::Word => Port::new(port.0).write(value as u16),
                Width::Long => Port::new(port.0).write(value),
            }
        }
    }
}

/// What became of a #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest goes on behind the instruction.
    Done,
    /// It is the guest's own.
    Other,
    /// The instruction comes to another fault, after some elements of its string perhaps.
    Fault(Fault),
}

/// A #GP with code 0: a port that the guest may use, or something else.
pub fn general_protection(run: &mut Running, frame: &mut TrapFrame, data: DataSegments) -> Outcome {
    let by_kernel = match run.dom.arch {
        Arch::X86_32 => frame.cs & 3 < 3,
        Arch::X86_64 => run.vcpu.mode == bounce::Mode::Kernel,
    };
    let mode = if by_kernel { Mode::Kernel } else { Mode::Application };
    if !run.vcpu.ports.any() {
        return Outcome::Other;
    }
    match run.dom.arch {
        Arch::X86_32 => port_access::<X86_32>(run, frame, mode, data),
        Arch::X86_64 => port_access::<X86_64>(run, frame, mode, data),
    }
}

fn port_access<P: Personality>(run: &mut Running, frame: &mut TrapFrame, mode: Mode, data: DataSegments) -> Outcome {
    let cs = Selector(frame.cs as u16);
    let Some(code) = run.vcpu.segments.code_segments::<P, Hw>(run.host, &run.dom, cs, data.ds) else {
        return Outcome::Other;
    };
    let Some(fetched) = instruction::fetch::<P, Hw>(run.host, &code, frame) else { return Outcome::Other };
    let (all, granted) = (run.vcpu.ports.allow(mode), &run.dom.granted);
    if let Some(access) = PortAccess::decode(fetched.bytes(), code.width) {
        if !all && !granted.covers(access.span(frame)) {
            return Outcome::Other;
        }
        access.carry_out(frame, code.width, &GuestPorts);
        return Outcome::Done;
    }
    let Some(access) = StringAccess::decode(fetched.bytes(), code.width) else { return Outcome::Other };
    if !all && !granted.covers(access.span(frame)) {
        return Outcome::Other;
    }
    let strings = GuestStrings {
        host: run.host,
        dom: &run.dom,
        segments: &mut run.vcpu.segments,
        code: code.width,
        mode,
        cs,
        ss: Selector(frame.ss as u16),
        data,
        bases: [FsBase::read().as_u64(), GsBase::read().as_u64()],
    };
    match access.carry_out(frame, code.width, &mut StringsOf::<P, Hw>(strings, PhantomData), &GuestPorts) {
        Ok(()) => Outcome::Done,
        Err(fault) => Outcome::Fault(fault),
    }
}
