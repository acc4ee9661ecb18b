//! Calls and jumps through the 32-bit call gates of x86_32 guests, carried out in the CPU's stead.
//!
//! Long mode reads a call gate as one of 16 bytes that leads to 64-bit code, so guests' gates are stored closed
//! ([`crate::descriptor`]): the CPU refuses each use with #GP and the gate's selector. What the guest meant is then
//! done here, by the rules that a CPU outside long mode has (Intel SDM vol. 3 §5.8.4, §5.8.5; vol. 2, CALL): the
//! caller's ring and the selector's must be allowed by the gate, the target must be code of the caller's ring, or
//! conforming, or, for calls, of an inner ring, whose stack is the virtual TSS's (`stack_switch`), to which the gate's
//! parameters are copied. What such a CPU would answer with a fault is that fault, with nothing changed.
//!
//! Promise: nothing is reached that the guest's descriptors, as stored, do not give: no ring but 1 to 3, no 64-bit
//! code, no segment of the hypervisor's; and a ring-3 caller reads no more for its parameters than its own pages.
//!
//! Lock: the paging lock for a look at the guest's tables; never while guest memory is touched.

#[cfg(test)]
mod tests;

use crate::addr::GuestVirt;
use crate::bounce::DataSegments;
use crate::code::{self, LONGEST};
use crate::descriptor::{self, CallGate};
use crate::domain::Domain;
use crate::far_call::{self, FarTransfer, General, Kind, SegmentRegister, Size, Target};
use crate::host::{Hardware, Host};
use crate::paging::Pager;
use crate::paging::format::{TwoLevel, bits};
use crate::paging::shadow::Access;
use crate::personality::Personality;
use crate::vcpu::Vcpu;
use proxenos_abi::{Selector, X86_32};

/// Index of esp among the general registers.
const ESP: usize = 4;
/// Words of the largest frame: eip, cs, 31 parameters, esp, ss.
const FRAME_WORDS: usize = 35;
/// Exceptions (Intel SDM vol. 3 §6.15).
const INVALID_TSS: u8 = 10;
const NOT_PRESENT: u8 = 11;
const STACK: u8 = 12;
const PROTECTION: u8 = 13;

/// The registers that a far transfer depends on or changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    /// eax to edi, as instructions number them.
    pub general: General,
    /// eip.
    pub ip: u32,
    /// cs.
    pub cs: Selector,
    /// ss.
    pub ss: Selector,
    /// The others.
    pub data: DataSegments,
}

/// What became of a #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was a transfer through a gate, and is done: the registers are what the guest goes on with.
    Done,
    /// It was something else: the #GP is the guest's.
    Other,
    /// A transfer through a gate that faults.
    Fault {
        /// The exception.
        vector: u8,
        /// Its code.
        code: u32,
    },
    /// One that met a page that is not to be had.
    PageFault {
        /// Where.
        at: GuestVirt,
        /// Write and user bits of the code.
        access: Access,
    },
}

/// A step, or what the attempt comes to without it.
type Step<T> = Result<T, Outcome>;

const fn fault(vector: u8, selector: Selector) -> Outcome {
    Outcome::Fault { vector, code: (selector.0 & !3) as u32 }
}

/// The ring that a transfer leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ring {
    /// The caller's ring stays.
    Same,
    /// It becomes this one, with that ring's stack.
    Inner(u8),
}

/// The rules for the gate and its target, which stands in the guest's tables as `target` (Intel SDM vol. 3, table 5-1).
fn enter(far: Kind, selector: Selector, gate: &CallGate, target: Option<u64>, ring: u8) -> Step<Ring> {
    if ring.max(selector.rpl()) > gate.dpl {
        return Err(fault(PROTECTION, selector));
    }
    let refused = fault(PROTECTION, gate.target);
    if gate.target.0 & !3 == 0 {
        return Err(fault(PROTECTION, Selector::NULL));
    }
    let code = target.and_then(descriptor::code).ok_or(refused)?;
    let allowed = match (far, code.conforming) {
        (_, descriptor::Conforming::Yes) | (Kind::Call, _) => code.dpl <= ring,
        (Kind::Jump, descriptor::Conforming::No) => code.dpl == ring,
    };
    if !allowed {
        return Err(refused);
    }
    if !code.present {
        return Err(fault(NOT_PRESENT, gate.target));
    }
    if gate.offset > descriptor::limit(target.unwrap_or_default()) {
        return Err(fault(PROTECTION, Selector::NULL));
    }
    let inner = code.conforming == descriptor::Conforming::No && code.dpl < ring;
    Ok(if inner { Ring::Inner(code.dpl) } else { Ring::Same })
}

/// A guest took a #GP with this error code. If it was a far call or jump through a gate of its, that is carried out.
pub fn general_protection<H: Hardware>(
    host: &Host<H>,
    dom: &Domain,
    vcpu: &mut Vcpu,
    registers: &mut Registers,
    code: u32,
) -> Outcome {
    // A selector that an instruction named, not the IDT, and no external event.
    if code & 3 != 0 || code == 0 || code > 0xffff {
        return Outcome::Other;
    }
    let mut attempt = Attempt { host, dom, vcpu, registers };
    match attempt.carry_out(Selector(code as u16)) {
        Ok(()) => Outcome::Done,
        Err(outcome) => outcome,
    }
}

struct Attempt<'a, H> {
    host: &'a Host<H>,
    dom: &'a Domain,
    vcpu: &'a mut Vcpu,
    registers: &'a mut Registers,
}

impl<H: Hardware> Attempt<'_, H> {
    fn descriptor(&mut self, selector: Selector) -> Option<u64> {
        self.vcpu.segments.descriptor::<X86_32, H>(self.host, self.dom, selector)
    }

    fn carry_out(&mut self, named: Selector) -> Step<()> {
        let gate = self.descriptor(named).and_then(descriptor::call_gate).ok_or(Outcome::Other)?;
        let far = self.instruction().ok_or(Outcome::Other)?;
        let selector = self.selector_of(&far).ok_or(Outcome::Other)?;
        // Something else may have named the gate.
        if selector.0 & !3 != named.0 {
            return Err(Outcome::Other);
        }
        let ring = self.registers.cs.rpl();
        let target = self.descriptor(gate.target);
        let entered = enter(far.kind, selector, &gate, target, ring)?;
        let back = self.registers.ip.wrapping_add(far.length);
        let new_ring = match entered {
            Ring::Same => {
                if far.kind == Kind::Call {
                    self.call_within_ring(back)?;
                }
                ring
            }
            Ring::Inner(inner) => {
                self.call_inner_ring(back, &gate, inner)?;
                inner
            }
        };
        self.registers.cs = Selector(gate.target.0 & !3 | u16::from(new_ring));
        self.registers.ip = gate.offset;
        Ok(())
    }

    /// The instruction that the guest stands at.
    fn instruction(&mut self) -> Option<FarTransfer> {
        let raw = self.descriptor(self.registers.cs)?;
        let at = GuestVirt(descriptor::base(raw).wrapping_add(self.registers.ip).into());
        let mut bytes = [0; LONGEST];
        let code = code::fetch::<X86_32, H>(&self.host.hw, at, &mut bytes)?;
        let size = if descriptor::is_wide(raw) { Size::Wide } else { Size::Narrow };
        far_call::decode(code, size, &self.registers.general)
    }

    fn copy(&self, at: GuestVirt, into: &mut [u8]) -> Option<()> {
        if !X86_32::in_guest_range(at, into.len() as u64) {
            return None;
        }
        self.host.hw.copy_from_guest(at, into).ok()
    }

    /// The selector that the instruction names. The CPU has read it from there a moment ago, so nothing is checked but
    /// that it can be read.
    fn selector_of(&mut self, far: &FarTransfer) -> Option<Selector> {
        let (segment, offset) = match far.target {
            Target::Direct(selector) => return Some(selector),
            Target::Memory(segment, offset) => (segment, offset),
        };
        let Registers { cs, ss, data: DataSegments { ds, es, fs, gs }, .. } = *self.registers;
        let segment = match segment {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
        };
        let base = descriptor::base(self.descriptor(segment)?);
        let mut selector = [0; 2];
        self.copy(GuestVirt(base.wrapping_add(offset).into()), &mut selector)?;
        Some(Selector(u16::from_le_bytes(selector)))
    }

    /// The frame goes on the caller's own stack.
    fn call_within_ring(&mut self, back: u32) -> Step<()> {
        let raw = self.descriptor(self.registers.ss).ok_or(fault(STACK, Selector::NULL))?;
        let sp = self.registers.general[ESP];
        let user = self.registers.cs.rpl() == 3;
        let words = [back, self.registers.cs.0.into()];
        let sp = self.push(raw, sp, &words, user).map_err(|outcome| match outcome {
            // Of its own stack the selector is not named.
            Outcome::Fault { vector, .. } => Outcome::Fault { vector, code: 0 },
            outcome => outcome,
        })?;
        self.registers.general[ESP] = sp;
        Ok(())
    }

    /// The frame goes on the inner ring's stack, with the parameters between.
    fn call_inner_ring(&mut self, back: u32, gate: &CallGate, ring: u8) -> Step<()> {
        // The virtual TSS has a stack for ring 1 only.
        let (ss, sp) = match ring {
            1 => self.vcpu.kernel_stack,
            _ => (Selector::NULL, GuestVirt(0)),
        };
        let invalid = fault(INVALID_TSS, ss);
        if ss.0 & !3 == 0 || ss.rpl() != ring {
            return Err(invalid);
        }
        let raw = self.descriptor(ss).ok_or(invalid)?;
        match descriptor::stack_segment(raw) {
            Some(descriptor::StackSegment { dpl, .. }) if dpl != ring => return Err(invalid),
            Some(descriptor::StackSegment { present: false, .. }) => return Err(fault(STACK, ss)),
            Some(_) => {}
            None => return Err(invalid),
        }
        let mut words = [0; FRAME_WORDS];
        let parameters = usize::from(gate.parameters);
        (words[0], words[1]) = (back, self.registers.cs.0.into());
        self.parameters(&mut words[2..2 + parameters])?;
        words[2 + parameters] = self.registers.general[ESP];
        words[3 + parameters] = self.registers.ss.0.into();
        let pushed = self.push(raw, sp.0 as u32, &words[..4 + parameters], false);
        self.registers.general[ESP] = pushed.map_err(|outcome| match outcome {
            Outcome::Fault { .. } => fault(STACK, ss),
            outcome => outcome,
        })?;
        self.registers.ss = ss;
        Ok(())
    }

    /// Reads the parameters from the caller's stack, as the caller could.
    fn parameters(&mut self, into: &mut [u32]) -> Step<()> {
        if into.is_empty() {
            return Ok(());
        }
        let outside = fault(STACK, Selector::NULL);
        let raw = self.descriptor(self.registers.ss).ok_or(outside)?;
        let sp = stack_offset(raw, self.registers.general[ESP]);
        let at = descriptor::writable_at(raw, sp, 4 * into.len() as u32).ok_or(outside)?;
        let access = Access { write: false, user: self.registers.cs.rpl() == 3 };
        for (index, word) in (0..).zip(into) {
            let at = wrapping(at, 4 * index);
            let mut bytes = [0; 4];
            self.may_touch(at, access)?;
            self.copy(at, &mut bytes).ok_or(Outcome::PageFault { at, access })?;
            *word = u32::from_le_bytes(bytes);
        }
        Ok(())
    }

    /// Writes words below a stack pointer, the lowest first; returns the stack pointer then.
    fn push(&mut self, raw: u64, sp: u32, words: &[u32], user: bool) -> Step<u32> {
        let bytes = 4 * words.len() as u32;
        let offset = stack_offset(raw, sp.wrapping_sub(bytes));
        let first = descriptor::writable_at(raw, offset, bytes).ok_or(fault(STACK, Selector::NULL))?;
        let access = Access { write: true, user };
        // All of it, before any of it changes.
        for index in 0..words.len() as u64 {
            self.may_touch(wrapping(first, 4 * index), access)?;
        }
        for (index, word) in (0..).zip(words) {
            let at = wrapping(first, 4 * index);
            let fits = X86_32::in_guest_range(at, 4);
            if !fits || self.host.hw.copy_to_guest(at, &word.to_le_bytes()).is_err() {
                return Err(Outcome::PageFault { at, access });
            }
        }
        Ok(stack_pointer(raw, sp, offset))
    }

    /// Whether the guest's own tables allow an access to a word.
    fn may_touch(&self, at: GuestVirt, access: Access) -> Step<()> {
        let needed = bits::P | if access.user { bits::US } else { 0 } | if access.write { bits::RW } else { 0 };
        // No table is open then: what an open one says has not been looked at.
        let pager = Pager::new(self.host, self.dom);
        let state = pager.lock();
        for at in [at, wrapping(at, 3)] {
            let found = X86_32::in_guest_range(at, 1).then(|| pager.walk::<TwoLevel>(&state, at)).flatten();
            let allowed = found.is_some_and(|found| found.entry.0 & (found.rights | bits::P) & needed == needed);
            if !allowed {
                return Err(Outcome::PageFault { at, access });
            }
        }
        Ok(())
    }
}

/// What a stack pointer means in a segment: 16 bits of it, or all.
const fn stack_offset(raw: u64, sp: u32) -> u32 {
    if descriptor::is_wide(raw) { sp } else { sp & 0xffff }
}

/// The stack pointer that becomes of an old one at a new offset.
const fn stack_pointer(raw: u64, old: u32, offset: u32) -> u32 {
    if descriptor::is_wide(raw) { offset } else { old & 0xffff_0000 | offset }
}

/// An address further on; they wrap at 4 GiB.
const fn wrapping(at: GuestVirt, bytes: u64) -> GuestVirt {
    GuestVirt(at.0.wrapping_add(bytes) & 0xffff_ffff)
}
