//! One simulated CPU: walking page tables, and never forgetting what it found.
//!
//! Intel SDM vol. 3 §4.5 (four-level paging), §4.8 (accessed and dirty), §4.10 (what may be cached, and what must be
//! forgotten when: a fault forgets the page's own translation and the tables on the way, INVLPG that and all tables).

use super::SimHardware;
use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use crate::assist::{self, Fetched, Outcome};
use crate::audit::{Invariant, Violation};
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::frame::FrameType;
use crate::host::Host;
use crate::machine::MachineMemory;
use crate::paging::Pager;
use crate::paging::fault::Page;
use crate::paging::format::{Format, FourLevel, Pte, TwoLevel, bits};
use crate::paging::shadow::Access;
use crate::paging::writable::TableFault;
use crate::store::{CodeWidth, Registers, decode};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Who a guest's access is made by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The guest's kernel: ring 1 on x86_32, ring 3 on x86_64.
    Kernel,
    /// An application: ring 3.
    User,
}

/// The guest's access faults, for reasons of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault;

/// What a frame was when the CPU cached something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    owner: DomId,
    /// If it was part of a shadow: of which table, and which part.
    shadows: Option<(Mfn, u64)>,
    /// It has been seen free since: if it is in use again, a flush is missing.
    was_free: bool,
}

/// A cached translation of a page.
#[derive(Clone, Copy, Debug)]
struct Translation {
    frame: Mfn,
    rights: u64,
    dirty: bool,
    /// It is not accessed through the caches.
    uncached: bool,
    seen: Option<Seen>,
}

/// A cached step on the way: the table that translates a range.
#[derive(Clone, Copy, Debug)]
struct CachedTable {
    frame: Mfn,
    rights: u64,
    seen: Option<Seen>,
}

/// A CPU.
#[derive(Default)]
pub(super) struct Cpu {
    pub(super) domain: Option<DomId>,
    pub(super) root: Option<Mfn>,
    pub(super) last_flush: u32,
    pub(super) gdt_entries: u16,
    pub(super) ldt_entries: u16,
    translations: BTreeMap<u64, Translation>,
    /// By level, and the bits of the address above what the table translates.
    tables: BTreeMap<(u8, u64), CachedTable>,
}

/// The bits of an address that select a table of a level.
const fn prefix(level: u8, at: GuestVirt) -> u64 {
    at.0 >> (12 + 9 * level as u32)
}

impl Cpu {
    pub(super) fn forget_all(&mut self, now: u32) {
        self.translations.clear();
        self.tables.clear();
        self.last_flush = now;
    }

    pub(super) fn forget_page(&mut self, at: GuestVirt) {
        self.translations.remove(&(at.0 >> 12));
        self.tables.clear();
    }

    fn forget_after_fault(&mut self, at: GuestVirt) {
        self.translations.remove(&(at.0 >> 12));
        self.tables.retain(|&(level, range), _| range != prefix(level, at));
    }
}

impl Seen {
    fn now(host: &Host<SimHardware>, frame: Mfn) -> Option<Self> {
        let owner = host.frames.info(frame)?.refs().owner();
        // Two frames at least shadow an L1 table, four an L2 table, two show it where it is read as an L1 table, one
        // any table of four levels, and no frame is part of two shadows.
        let part = |table: u64| {
            let info = host.frames.info(Mfn(table))?;
            let (owner, shadow) = (info.refs().owner(), info.shadow());
            // (A shadow's own frame names its table.)
            if owner == DomId::XEN || shadow.is_none() && !info.is_directory() {
                return None;
            }
            let narrow = host.domains.find(owner)?.arch == Arch::X86_32;
            let frames = match info.type_word().kind() {
                _ if !narrow => 1,
                FrameType::L1 => 2,
                _ => 4,
            };
            if let Some(part) = shadow.map(|first| frame.0.wrapping_sub(first.0)).filter(|&part| part < frames) {
                return Some((Mfn(table), part));
            }
            let part = frame.0.wrapping_sub(info.view().filter(|_| narrow && info.is_directory())?.0);
            (part < 2).then(|| (Mfn(table), frames + part))
        };
        let shadows = if owner == DomId::XEN { (0..host.frames.len()).find_map(part) } else { None };
        Some(Self { owner, shadows, was_free: false })
    }
}

fn allows(rights: u64, access: Access) -> bool {
    let needed = if access.write { bits::RW } else { 0 } | if access.user { bits::US } else { 0 };
    rights & needed == needed
}

impl SimHardware {
    /// Where a guest's write to `at` goes.
    ///
    /// # Errors
    /// The access faults.
    pub fn guest_target(&self, at: GuestVirt, mode: Mode) -> Result<MachineAddr, Fault> {
        self.access(at, self.access_of(mode, true))
    }

    /// A guest reads a word of eight bytes.
    ///
    /// # Errors
    /// The access faults.
    pub fn guest_load(&self, at: GuestVirt, mode: Mode) -> Result<u64, Fault> {
        let found = self.access(at, self.access_of(mode, false))?;
        Ok(match found.mfn().0 < self.machine.frames() {
            true if self.is_uncached(at) => self.load_past_caches(found),
            true => self.machine.load64(found),
            false => u64::MAX,
        })
    }

    /// The executing CPU drops a page's translation, as it may at any time.
    pub fn forget(&self, at: GuestVirt) {
        self.on_cpu(|cpu| cpu.forget_page(at));
    }

    /// A guest writes a word of eight bytes.
    ///
    /// # Errors
    /// The access faults.
    pub fn guest_store(&self, at: GuestVirt, value: u64, mode: Mode) -> Result<(), Fault> {
        let found = self.access(at, self.access_of(mode, true))?;
        match found.mfn().0 < self.machine.frames() {
            true if self.is_uncached(at) => self.store_past_caches(found, value),
            true => self.store64(found, value),
            false => {}
        }
        Ok(())
    }

    /// A guest's kernel executes an instruction that writes to `at`: if it faults, as the hypervisor would deal with
    /// it. What is written where nothing stands in the way is the result of the same instruction.
    ///
    /// # Errors
    /// The access faults.
    ///
    /// # Panics
    /// If the instruction is not one store within a word, or faults for ever.
    pub fn guest_execute(&self, at: GuestVirt, code: &[u8], registers: &mut Registers) -> Result<(), Fault> {
        let access = self.access_of(Mode::Kernel, true);
        let host = self.host().ok_or(Fault)?;
        let domain = self.on_cpu(|cpu| cpu.domain).ok_or(Fault)?;
        let dom = host.domains.find(domain).ok_or(Fault)?;
        let width = if dom.arch == Arch::X86_32 { CodeWidth::Bits32 } else { CodeWidth::Bits64 };
        let store = decode(code, width).expect("a store");
        let start = registers.ip;
        for _ in 0..10 {
            if let Ok(found) = self.translate(at, access) {
                let (word, shift) = (MachineAddr(found.0 & !7), 8 * (found.0 & 7));
                if word.mfn().0 < self.machine.frames() {
                    let (old, mask) = (self.load64(word), store.width.mask());
                    let new = store.carry_out(registers, old >> shift & mask, 0);
                    self.store64(word, old & !(mask << shift) | new << shift);
                }
                return Ok(());
            }
            self.on_cpu(|cpu| cpu.forget_after_fault(at));
            let fetched = Fetched { store, read: 0 };
            let plain = self.is_plain_fault(&host, &dom, at, access);
            let outcome = match assist::look(&host, &dom, at, access) {
                TableFault::Store(written) => assist::store(&host, &dom, &written, registers, |_| Some(fetched)),
                TableFault::TryAgain => Outcome::Resolved,
                TableFault::Other => Outcome::Other,
            };
            assert!(!plain || outcome == Outcome::Other, "the guest's fault at {:#x} is {outcome:?}", at.0);
            match outcome {
                Outcome::Resolved if registers.ip != start => return Ok(()),
                Outcome::Resolved => {}
                Outcome::Other if assist::repair_access(&host, &dom, at, access) => {
                    assert!(!plain, "the guest's fault at {:#x} was repaired", at.0);
                }
                Outcome::Other => return Err(Fault),
            }
        }
        panic!("the store at {:#x} faults for ever, though the fault is said to be resolved", at.0);
    }

    /// Whether the short way takes a fault for the guest's own. What it says of the page must be what the guest's
    /// tables say.
    fn is_plain_fault(&self, host: &Host<Self>, dom: &Domain, at: GuestVirt, access: Access) -> bool {
        fn of<F: Format>(pager: Pager<'_, SimHardware>, at: GuestVirt, access: Access) -> bool {
            let found = pager.walk_as_cpu::<F>(&pager.dom.paging.lock(), at);
            let page = if found.is_some_and(|found| found.entry.present()) { Page::Present } else { Page::Absent };
            let plain = pager.plain_fault::<F>(at, access, page);
            assert!(plain.is_none_or(|plain| plain == page), "{plain:?} at {:#x}, not {page:?}", at.0);
            plain.is_some()
        }
        let pager = Pager::new(host, dom);
        match dom.arch {
            Arch::X86_32 => of::<TwoLevel>(pager, at, access),
            Arch::X86_64 => of::<FourLevel>(pager, at, access),
        }
    }

    /// Whether the executing CPU accesses a page past the caches, by the translation that it has used last.
    fn is_uncached(&self, at: GuestVirt) -> bool {
        self.on_cpu(|cpu| cpu.translations.get(&(at.0 >> 12)).is_some_and(|found| found.uncached))
    }

    fn access_of(&self, mode: Mode, write: bool) -> Access {
        let domain = self.on_cpu(|cpu| cpu.domain).expect("a CPU on which a guest runs");
        let dom = self.host().and_then(|host| host.domains.find(domain)).expect("a domain that exists");
        Access { write, user: mode == Mode::User || dom.arch == Arch::X86_64 }
    }

    /// Translates an access of the executing CPU, resolving the faults that exist only because of shadowing.
    pub(super) fn access(&self, at: GuestVirt, access: Access) -> Result<MachineAddr, Fault> {
        // A fault that closes tables, one that opens one or sets the accessed bit, one for the dirty bit, some for
        // shadows that are missing, and it must work.
        for _ in 0..10 {
            if let Ok(found) = self.translate(at, access) {
                return Ok(found);
            }
            self.on_cpu(|cpu| cpu.forget_after_fault(at));
            let domain = self.on_cpu(|cpu| cpu.domain).ok_or(Fault)?;
            let host = self.host().ok_or(Fault)?;
            let dom = host.domains.find(domain).ok_or(Fault)?;
            let plain = self.is_plain_fault(&host, &dom, at, access);
            if !assist::repair_access(&host, &dom, at, access) {
                return Err(Fault);
            }
            assert!(!plain, "the guest's fault at {:#x} was repaired", at.0);
        }
        panic!("the access at {:#x} faults for ever, though the fault is said to be resolved", at.0);
    }

    /// As [`access`](Self::access), of an instruction that needs two pages: it begins anew after each fault.
    pub(super) fn access_both(&self, one: GuestVirt, other: GuestVirt, access: Access) -> Result<(), Fault> {
        for _ in 0..20 {
            self.access(one, access)?;
            self.access(other, access)?;
            if self.translate(one, access).is_ok() && self.translate(other, access).is_ok() {
                return Ok(());
            }
        }
        panic!("an access at {:#x} and {:#x} faults for ever: each page is given up for the other", one.0, other.0);
    }

    fn translate(&self, at: GuestVirt, access: Access) -> Result<MachineAddr, Fault> {
        let hit = self.on_cpu(|cpu| cpu.translations.get(&(at.0 >> 12)).copied());
        let found = match hit {
            Some(hit) if !allows(hit.rights, access) => return Err(Fault),
            Some(hit) if hit.dirty || !access.write => hit,
            _ => self.walk(at, access)?,
        };
        Ok(MachineAddr(found.frame.addr().0 + at.page_offset() as u64))
    }

    /// Walks from the deepest table that is cached.
    fn walk(&self, at: GuestVirt, access: Access) -> Result<Translation, Fault> {
        let cached = |level| self.on_cpu(|cpu| cpu.tables.get(&(level, prefix(level, at))).map(|t| (level, *t)));
        let root = self.on_cpu(|cpu| cpu.root).ok_or(Fault)?;
        let top = (4, CachedTable { frame: root, rights: bits::RW | bits::US, seen: None });
        let (mut level, mut table) = (1..4).find_map(cached).unwrap_or(top);
        loop {
            let slot = MachineAddr(table.frame.addr().0 + 8 * (prefix(level - 1, at) & 511));
            let entry = Pte(self.load64(slot));
            if !entry.present() {
                return Err(Fault);
            }
            assert!(!entry.has(bits::PAT_OR_PS) || level == 2, "PAT or reserved bit in {:#x} at {slot:?}", entry.0);
            let is_leaf = level == 1 || entry.has(bits::PAT_OR_PS);
            let rights = table.rights & entry.0;
            if is_leaf && !allows(rights, access) {
                return Err(Fault);
            }
            self.mark_used(slot, entry, if is_leaf && access.write { bits::A | bits::D } else { bits::A });
            if is_leaf {
                let offset = if level == 2 { at.0 >> 12 & 511 } else { 0 };
                let frame = Mfn(entry.mfn().0 + offset);
                let dirty = access.write || entry.has(bits::D);
                let uncached = entry.0 & bits::UNCACHED != 0;
                let found = Translation { frame, rights, dirty, uncached, seen: self.seen(frame) };
                self.on_cpu(|cpu| cpu.translations.insert(at.0 >> 12, found));
                return Ok(found);
            }
            level -= 1;
            table = CachedTable { frame: entry.mfn(), rights, seen: self.seen(entry.mfn()) };
            self.on_cpu(|cpu| cpu.tables.insert((level, prefix(level, at)), table));
        }
    }

    /// Sets accessed and dirty bits in an entry, as the CPU does.
    fn mark_used(&self, slot: MachineAddr, entry: Pte, used: u64) {
        if entry.has(used) {
            return;
        }
        let of_hypervisor = self.seen(slot.mfn()).is_some_and(|seen| seen.owner == DomId::XEN);
        assert!(!of_hypervisor, "the CPU would write a shadow's entry at {slot:?}: {:#x}", entry.0);
        self.cas64(slot, entry.0, entry.0 | used).expect("nobody else executes");
    }

    fn seen(&self, frame: Mfn) -> Option<Seen> {
        Seen::now(&*self.host()?, frame)
    }

    /// Invariant I5: what CPUs have cached must not reach a frame that is used otherwise since, or by somebody else.
    ///
    /// # Errors
    /// What is stale.
    pub fn stale(&self) -> Result<(), Vec<Violation>> {
        let Some(host) = self.host() else { return Ok(()) };
        let mut violations = Vec::new();
        let mut expect = |frame, what, expected: u64, found: u64| {
            if expected != found {
                violations.push(Violation { invariant: Invariant::Flushed, frame, what, expected, found });
            }
        };
        for (&at, word) in self.past_caches.lock().iter() {
            // Who reads the frame now reads something else than what is in memory.
            let frame = MachineAddr(at).mfn();
            let Some(info) = host.frames.info(frame) else { continue };
            let word_now = info.type_word();
            let is_table = word_now.count() > 0 && word_now.kind().needs_validation();
            expect(frame, "words written past the caches in a table", 0, is_table.into());
            let owner = info.refs().owner();
            expect(frame, "owner of what was written past the caches", word.owner.0.into(), owner.0.into());
        }
        let mut cpus = self.cpus.lock();
        for cpu in cpus.iter_mut() {
            let dom = cpu.domain.and_then(|domain| host.domains.find(domain));
            let windows: Vec<_> = dom
                .map_or_else(Vec::new, |dom| dom.paging.lock().writable.windows().map(|(window, _)| *window).collect());
            let open = |frame| windows.iter().any(|window| window.table == frame);
            for found in cpu.translations.values_mut() {
                let Some((seen, info)) = found.seen.as_mut().zip(host.frames.info(found.frame)) else { continue };
                let (refs, word) = (info.refs(), info.type_word());
                if !host.is_ram(found.frame) {
                    continue;
                }
                if refs.count() == 0 {
                    seen.was_free = true;
                    continue;
                }
                expect(found.frame, "owner of a cached frame", seen.owner.0.into(), refs.owner().0.into());
                expect(found.frame, "new uses of a cached frame", 0, seen.was_free.into());
                let is_table = word.count() > 0 && word.kind().needs_validation();
                if found.rights & bits::RW != 0 && is_table && !open(found.frame) {
                    expect(found.frame, "writable translations of a table", 0, 1);
                }
            }
            for (&(level, _), found) in &mut cpu.tables {
                let Some((seen, info)) = found.seen.as_mut().zip(host.frames.info(found.frame)) else { continue };
                if info.refs().count() == 0 {
                    seen.was_free = true;
                    continue;
                }
                expect(found.frame, "owner of a cached table", seen.owner.0.into(), info.refs().owner().0.into());
                expect(found.frame, "cached tables that the guest can write to", 0, open(found.frame).into());
                let kind = info.type_word().kind();
                if seen.owner == DomId::XEN {
                    let now = Seen::now(&host, found.frame).and_then(|now| now.shadows);
                    expect(found.frame, "new uses of a cached shadow", 0, (now != seen.shadows).into());
                } else {
                    expect(found.frame, "new uses of a cached table", 0, seen.was_free.into());
                    if kind != FrameType::None {
                        expect(found.frame, "type of a cached table", level.into(), kind as u64);
                    }
                }
            }
            if let Some((domain, root)) = cpu.domain.zip(cpu.root) {
                let dom = host.domains.find(domain);
                let expected = dom.and_then(|dom| dom.roots.of(dom.paging.lock().user.mode));
                expect(root, "the root that is loaded", expected.map_or(0, |root| root.0), root.0);
            }
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }
}
