//! Carries out [`Op`]s in a [`World`], and judges after every one.

use super::ops::*;
use crate::addr::{DomId, Mfn};
use crate::bounce;
use crate::domain::{Arch, RunState};
use crate::paging::format::bits;
use crate::paging::tests::world::*;
use crate::sim_hw::Mode;
use crate::store::Registers;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, Hypercall};

fn domain_id(foreign: Foreign) -> DomId {
    match foreign {
        Foreign::None => DomId::SELF,
        Foreign::Dom(id) => DomId(id),
        Foreign::Io => DomId::IO,
        Foreign::Xen => DomId::XEN,
        Foreign::Nobody => DomId(77),
    }
}

/// What the ops mean to one domain of a world, now.
struct Meaning<'a> {
    world: &'a World,
    who: usize,
}

impl Meaning<'_> {
    fn guest(&self) -> &Guest {
        &self.world.guests[self.who]
    }

    fn frame(&self, frame: Frame) -> Mfn {
        match frame {
            Frame::Own(pfn) => self.guest().frames[pfn],
            Frame::Of(dom, pfn) => self.world.guests[dom % self.world.guests.len()].frames[pfn],
            Frame::SharedInfo => self.guest().dom.shared_info,
            Frame::Hypervisor => self.guest().dom.gdt_page,
            Frame::Free => {
                let alloc = self.world.host.alloc.lock();
                alloc.blocks().next().map_or(Mfn(0x1ff), |(first, _)| first)
            }
            Frame::LowIo => Mfn(0xb8),
            Frame::HighIo => Mfn(0xf_0000),
            Frame::ForbiddenIo => Mfn(0xfee00),
            Frame::Beyond => Mfn(1 << 30),
        }
    }

    fn slot(&self, slot: Slot) -> usize {
        let narrow = self.guest().dom.arch == Arch::X86_32;
        match slot {
            Slot::Page(page) => page,
            Slot::Region if narrow => 0x300,
            Slot::Region => (self.guest().base() >> 39 & 511) as usize,
            Slot::Window => {
                if narrow {
                    0x301
                } else {
                    2
                }
            }
            Slot::LastOwn => {
                if narrow {
                    1007
                } else {
                    255
                }
            }
            Slot::FirstReserved => {
                if narrow {
                    1008
                } else {
                    256
                }
            }
            Slot::Last => {
                if narrow {
                    1023
                } else {
                    511
                }
            }
        }
    }

    fn entry(&self, entry: Entry) -> u64 {
        use crate::paging::format::{Format, FourLevel, TwoLevel};
        let guest = self.guest();
        match entry {
            Entry::Empty => 0,
            Entry::Again(slot) => match guest.dom.arch {
                Arch::X86_32 => TwoLevel::load(&guest.host.hw, guest.frames[L1], slot).0,
                Arch::X86_64 => FourLevel::load(&guest.host.hw, guest.frames[L1], slot).0,
            },
            Entry::Maps(frame, flags) => self.frame(frame).addr().0 & bits::FRAME | flags,
            Entry::Junk(junk) => junk,
        }
    }

    fn request(&self, request: Req) -> Request {
        let at = |frame| self.frame(frame).addr().0;
        match request {
            Req::Update { table, slot, entry } => {
                self.guest().set(self.frame(table), self.slot(slot), self.entry(entry))
            }
            Req::MachPhys { frame, pfn } => self.guest().machphys(self.frame(frame), pfn),
            Req::Pin { frame, level } => pin(self.frame(frame), level),
            Req::Unpin { frame } => unpin(self.frame(frame)),
            Req::NewBase { frame } => new_base(self.frame(frame)),
            Req::NewUserBase { frame } => {
                extended(MmuExtCommand::NewUserBaseptr, frame.map_or(0, |frame| self.frame(frame).addr().0), 0)
            }
            Req::Flush => extended(MmuExtCommand::TlbFlush, 0, 0),
            Req::FlushPage(page) => extended(MmuExtCommand::Invlpg, self.guest().va(page).0, 0),
            Req::FlushCaches => extended(MmuExtCommand::FlushCache, 0, 0),
            Req::SetLdt { page, offset, entries } => {
                extended(MmuExtCommand::SetLdt, self.guest().va(page).0 + offset, entries)
            }
            Req::ClearForeign => extended(MmuExtCommand::ClearForeigndom, 0, 0),
            Req::SetForeign(whom) => foreign(domain_id(whom)),
            Req::Reassign { frame } => reassign(self.frame(frame)),
            Req::Transfer { frame, to } => extended(MmuExtCommand::TransferPage, at(frame), u64::from(to) << 8),
            Req::Unknown(command) => (3, command),
        }
    }
}

/// Counts what was carried out and what was refused, by the request's name, so that a test can see that both happen.
#[derive(Default)]
pub struct Score {
    pub by_name: BTreeMap<String, (u32, u32)>,
    /// Numbers of linear entries that there were after some step.
    pub linear: BTreeSet<u32>,
    /// What is counted.
    pub counts: Counts,
}

/// What is counted: names are made of text, which takes time.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Counts {
    /// Everything.
    #[default]
    All,
    /// Nothing.
    Nothing,
}

impl Score {
    fn count(&mut self, what: &impl core::fmt::Debug, result: u64) {
        if self.counts == Counts::Nothing {
            return;
        }
        let text = alloc::format!("{what:?}");
        let name = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let (carried_out, refused) = self.by_name.entry(name.to_string()).or_default();
        *(if (result as i64) < 0 { refused } else { carried_out }) += 1;
    }
}

pub type Verdict = Result<(), Vec<String>>;

impl World {
    fn requests(&mut self, who: usize, requests: &[Req], score: &mut Score) -> Verdict {
        let meaning = Meaning { world: self, who };
        let words: Vec<u64> = requests.iter().flat_map(|&request| <[u64; 2]>::from(meaning.request(request))).collect();
        if !self.guests[who].put_args(&words) {
            return Ok(());
        }
        // A batch that stops half way has done its first half, for good; only a lone request is all or nothing.
        let before = requests.split_last().map_or(&[][..], |(_, before)| before);
        let lone = before.iter().all(|request| matches!(request, Req::SetForeign(_)));
        let result = self.judge(who, |guest| {
            let done = guest.mmu_update_in_place(requests.len());
            if lone { done.result } else { done.result & !(1 << 63) }
        })?;
        if lone && let Some(request) = requests.last() {
            score.count(request, result);
        }
        Ok(())
    }

    fn perform(&mut self, who: usize, op: &Op, score: &mut Score) -> Verdict {
        let meaning = Meaning { world: self, who };
        let mut result = OK;
        match op {
            Op::One(Foreign::None, request) => return self.requests(who, &[*request], score),
            Op::One(whom, request) => return self.requests(who, &[Req::SetForeign(*whom), *request], score),
            Op::Batch(requests) => return self.requests(who, requests, score),
            &Op::Remap { page, entry, flags } => {
                let value = meaning.entry(entry);
                result = self.judge(who, |guest| guest.remap(page, value, flags))?;
            }
            &Op::RemapForeign { page, entry, flags, domain } => {
                let value = meaning.entry(entry);
                result = self.judge(who, |guest| {
                    let args = [guest.va(page).0 >> 12, value, flags, domain.into(), 0, 0];
                    guest.call(Hypercall::UpdateVaMappingOtherdomain, args)
                })?;
            }
            Op::SetGdt { frames, entries } => {
                let words: Vec<u64> = frames.iter().map(|&frame| meaning.frame(frame).0).collect();
                if self.guests[who].put_args(&words) {
                    let args = |guest: &Guest| [guest.va(ARGS).0, *entries, 0, 0, 0, 0];
                    result = self.judge(who, |guest| guest.call(Hypercall::SetGdt, args(guest)))?;
                }
            }
            &Op::UpdateDescriptor { frame, index, descriptor } => {
                let at = meaning.frame(frame).addr().0 + 8 * index;
                let args = [at, descriptor & 0xffff_ffff, descriptor >> 32, 0, 0, 0];
                result = self.judge(who, |guest| guest.call(Hypercall::UpdateDescriptor, args))?;
            }
            &Op::LdtFault { offset } => {
                result = self.judge(who, |guest| if guest.ldt_fault(offset) { OK } else { error(Errno::EFAULT) })?;
            }
            &Op::Load { page, mode } => {
                let at = self.guests[who].va(page);
                // A four-level guest's applications have a base of their own.
                let switches = mode == Mode::User && self.guests[who].enter(bounce::Mode::User);
                self.guests[who].run();
                result = self.host.hw.guest_load(at, mode).map_or(error(Errno::EFAULT), |_| OK);
                if switches {
                    self.verdict()?;
                    self.guests[who].enter(bounce::Mode::Kernel);
                }
            }
            &Op::Store { page, slot, entry } => {
                let value = meaning.entry(entry);
                // Into the frame there, at an entry's place; a 32-bit guest writes two of them.
                let at = self.guests[who].va(page).offset(8 * slot as u64);
                self.guests[who].run();
                result = self.host.hw.guest_store(at, value, Mode::Kernel).map_or(error(Errno::EFAULT), |()| OK);
            }
            &Op::Assist(on) => {
                let command = if on { VmAssistCommand::Enable } else { VmAssistCommand::Disable };
                result = self.guests[who].assist(command, VmAssistType::WritablePagetables);
            }
            Op::Write { page, slot, form, entries } => {
                let guest = &self.guests[who];
                let (narrow, wide) = FORMS[*form];
                let code = if guest.dom.arch == Arch::X86_32 { narrow } else { wide };
                for (slot, &entry) in (*slot..).zip(entries) {
                    let mut registers = Registers::default();
                    registers.general[1] = meaning.entry(entry);
                    let at = guest.va(*page).offset(slot as u64 * guest.width());
                    if guest.execute(at, code, &mut registers).is_err() {
                        result = error(Errno::EFAULT);
                    }
                }
            }
            &Op::GiveUp { frame, order, domain } => {
                let words = [meaning.frame(frame).0];
                if self.guests[who].put_args(&words) {
                    let id = domain_id(domain).0.into();
                    let done = self
                        .judge(who, |guest| guest.call(Hypercall::DomMemOp, [1, guest.va(ARGS).0, 1, order, id, 0]))?;
                    result = if done == 1 { OK } else { error(Errno::EINVAL) };
                }
            }
            &Op::Take { pfn, order, domain } => {
                if self.guests[who].put_args(&[0]) {
                    let id = domain_id(domain).0;
                    let at = self.guests[who].va(ARGS);
                    let done =
                        self.judge(who, |guest| guest.call(Hypercall::DomMemOp, [0, at.0, 1, order, id.into(), 0]))?;
                    result = if done == 1 { OK } else { error(Errno::EINVAL) };
                    let first = self.host.hw.guest_load(at, Mode::Kernel).map_or(0, |word| word as u32);
                    let whose = if id == DomId::SELF.0 { who } else { id.into() };
                    if done == 1 {
                        self.guests[whose].frames[pfn] = Mfn(first.into());
                    }
                }
            }
        }
        self.pardon();
        score.count(op, result);
        self.verdict().map(|_| ())
    }

    /// A domain that wrote what it must not would be no more. Here it lives on, since all must be well with it.
    fn pardon(&self) {
        for guest in &self.guests {
            if guest.dom.paging.lock().writable.refused.take().is_some() {
                assert!(guest.dom.run_state().contains(RunState::CRASHED), "it is to be ended");
                guest.dom.clear_state(RunState::CRASHED);
            }
        }
    }

    /// Carries out a sequence, as far as the domains are able to speak.
    pub fn play(&mut self, ops: &[(usize, Op)], score: &mut Score) -> Result<(), String> {
        let frames = self.census();
        for (step, (who, op)) in ops.iter().enumerate() {
            let who = who % self.guests.len();
            self.guests[who].rescue();
            let verdict = self.perform(who, op, score);
            if score.counts == Counts::All {
                score.linear.insert(self.linear_total());
            }
            if let Err(violations) = verdict {
                let text = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                return Err(alloc::format!("step {step}, domain {who}, {op:?}: {text}"));
            }
        }
        let after = self.census();
        if after != frames {
            return Err(alloc::format!("{frames} frames of the hypervisor became {after}"));
        }
        Ok(())
    }

    fn census(&self) -> u64 {
        self.check().hypervisor
    }
}
