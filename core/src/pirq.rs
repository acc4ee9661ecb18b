//! Interrupt lines of devices: who gets them, and when a line is open.
//!
//! A line belongs to nobody or to up to seven domains that all will share it. A level-triggered line is closed when it
//! interrupts and opened when every domain that was told has called `PHYSDEVOP_IRQ_UNMASK_NOTIFY` with its port
//! unmasked (or has given the line up), so a device that nobody quietens interrupts once and holds nobody up. An
//! edge-triggered line stays open: an edge that came while it was closed would be lost.
//!
//! Promises: a line is open exactly if somebody has it and nobody's answer is outstanding; a refused request
//! changes nothing.
//!
//! Locks: a mutex a line, taken behind a domain's port mutex when it is bound or closed, and by itself when it
//! interrupts or is answered. Interrupts are disabled whenever the hypervisor runs, so an interrupt never finds its
//! line's mutex taken by its own CPU. (What the interface says: physdev.h, event_channel.h, and Xen 2.0's behaviour.)

use crate::event::{EventDomain, EventDomains, EventError, PIRQS, PirqSharing, raise_pirq};
use crate::machine::MachineMemory;
use crate::sync::Mutex;
use arrayvec::ArrayVec;
use proxenos_abi::{DomId, Pirq};

/// Domains that can share a line, as in Xen 2.0.
pub const MAX_SHARERS: usize = 7;

/// How a line interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// When it changes.
    Edge,
    /// As long as it is asserted.
    Level,
}

/// The machine's interrupt controllers. Called with a line's mutex held.
pub trait LineControl: Sync {
    /// How a line interrupts; `None` when there is no such line, or it is not for guests.
    fn trigger(&self, line: Pirq) -> Option<Trigger>;
    /// Lets it interrupt.
    fn open(&self, line: Pirq);
    /// Keeps it from interrupting.
    fn close(&self, line: Pirq);
}

/// A domain that has a line.
#[derive(Clone, Copy, Debug)]
struct Sharer {
    domain: DomId,
    /// It was told of an interrupt and has not answered.
    in_flight: bool,
}

/// A line's state.
#[derive(Debug)]
struct Line {
    sharers: ArrayVec<Sharer, MAX_SHARERS>,
    /// What the first of them wanted.
    sharing: PirqSharing,
}

impl Line {
    const IDLE: Self = Self { sharers: ArrayVec::new_const(), sharing: PirqSharing::Exclusive };

    /// Takes the note that a domain was told back. Whether that was the last one outstanding.
    fn answered(&mut self, domain: DomId) -> bool {
        let Some(sharer) = self.sharers.iter_mut().find(|sharer| sharer.domain == domain) else { return false };
        core::mem::take(&mut sharer.in_flight) && !self.sharers.iter().any(|sharer| sharer.in_flight)
    }
}

/// All lines.
pub struct Pirqs {
    lines: [Mutex<Line>; PIRQS],
    control: &'static dyn LineControl,
}

impl Pirqs {
    /// Lines that nobody has. The controller has them closed.
    #[must_use]
    pub const fn new(control: &'static dyn LineControl) -> Self {
        Self { lines: [const { Mutex::new(Line::IDLE) }; PIRQS], control }
    }

    /// How a line interrupts; `None` when there is none, or it is not for guests.
    #[must_use]
    pub fn trigger(&self, pirq: Pirq) -> Option<Trigger> {
        if pirq.0 as usize >= PIRQS {
            return None;
        }
        self.control.trigger(pirq)
    }

    /// Gives a line to a domain that does not have it. The domain's right to it is the caller's to check.
    ///
    /// # Errors
    /// [`EventError::NoSuchInterrupt`], [`EventError::InterruptBusy`].
    pub fn bind(&self, domain: DomId, pirq: Pirq, sharing: PirqSharing) -> Result<(), EventError> {
        self.trigger(pirq).ok_or(EventError::NoSuchInterrupt)?;
        let mut line = self.lines[pirq.0 as usize].lock();
        let is_first = line.sharers.is_empty();
        let shares = sharing == PirqSharing::Shared && line.sharing == PirqSharing::Shared;
        if !is_first && !shares {
            return Err(EventError::InterruptBusy);
        }
        line.sharers.try_push(Sharer { domain, in_flight: false }).map_err(|_| EventError::InterruptBusy)?;
        if is_first {
            line.sharing = sharing;
            self.control.open(pirq);
        }
        Ok(())
    }

    /// Takes a line from a domain, which counts as its answer if one is outstanding.
    pub fn unbind(&self, domain: DomId, pirq: Pirq) {
        let Some(line) = self.lines.get(pirq.0 as usize) else { return };
        let mut line = line.lock();
        let was_last_answer = line.answered(domain);
        line.sharers.retain(|sharer| sharer.domain != domain);
        if line.sharers.is_empty() {
            self.control.close(pirq);
        } else if was_last_answer && self.control.trigger(pirq) == Some(Trigger::Level) {
            self.control.open(pirq);
        }
    }

    /// A line has interrupted: tells everybody who has it. The interrupt controller may be told that it is over
    /// afterwards.
    pub fn interrupt<S: EventDomains, M: MachineMemory>(&self, domains: &S, memory: &M, pirq: Pirq) {
        let Some(line) = self.lines.get(pirq.0 as usize) else { return };
        let mut line = line.lock();
        // One that was under way when the line was given up.
        if line.sharers.is_empty() {
            return;
        }
        if self.control.trigger(pirq) == Some(Trigger::Level) {
            self.control.close(pirq);
        }
        for sharer in &mut line.sharers {
            if let Some(domain) = domains.find(sharer.domain) {
                sharer.in_flight = true;
                raise_pirq(&*domain, memory, pirq);
            }
        }
    }

    /// `PHYSDEVOP_IRQ_UNMASK_NOTIFY`: the domain has dealt with every interrupt of its whose port is unmasked.
    pub fn unmask_notify<D: EventDomain, M: MachineMemory>(&self, domain: &D, memory: &M) {
        for (number, line) in self.lines.iter().enumerate() {
            let pirq = Pirq(number as u32);
            let Some(port) = domain.events().pirq_port(pirq) else { continue };
            if crate::event::is_masked(memory, domain.shared_info(), port) {
                continue;
            }
            if line.lock().answered(domain.id()) && self.control.trigger(pirq) == Some(Trigger::Level) {
                self.control.open(pirq);
            }
        }
    }
}

#[cfg(test)]
mod tests;
