//! A machine with a few domains, each with page tables at which it can work, and what judges them.

use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn};
use crate::audit::{Census, Subject, audit};
use crate::bounce;
use crate::descriptor;
use crate::domain::{Arch, Privileges};
use crate::frame::{FrameInfo, FrameType};
use crate::host::Host;
use crate::machine::{CpuTables, DescriptorPage, MachineMemory};
use crate::paging::format::{FourLevel, TwoLevel, bits};
use crate::paging::{Pager, PagingError};
use crate::segments::Segments;
use crate::sim_hw::{Fault, Mode, SimDomain, SimHardware, domain, host_with};
use crate::store::Registers;
use crate::user_mode;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::Ordering;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_abi::mmu::{MmuCommand, MmuExtCommand};
use proxenos_abi::{Errno, Hypercall};

/// What a domain's first frames are; the rest is data.
pub const TOP: usize = 0;
/// A second top-level table, with the same entries, that is in no use yet.
pub const SECOND_TOP: usize = 1;
/// The L1 table that maps everything.
pub const L1: usize = 2;
/// A page of zeroes, mapped read-only: the stuff that tables are made of.
pub const SPARE: usize = 6;
/// The page through which arguments are passed.
pub const ARGS: usize = 5;
/// Another such page, and one that is mapped writable.
pub const SPARE2: usize = 7;
/// A page that is mapped writable.
pub const DATA: usize = 8;
/// How many frames a domain has.
pub const FRAMES: usize = 20;

/// A result that is an error.
pub const fn error(errno: Errno) -> u64 {
    errno.to_result() as u64
}

/// A domain and how to work with it.
pub struct Guest(pub SimDomain);

impl Deref for Guest {
    type Target = SimDomain;

    fn deref(&self) -> &SimDomain {
        &self.0
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut SimDomain {
        &mut self.0
    }
}

/// What `mmu_update` returned and how many requests it says it has carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// The result; 0 or an error.
    pub result: u64,
    /// The count at `*done`.
    pub count: u32,
}

/// A request was carried out.
pub const OK: u64 = 0;

/// The two words of a request.
pub type Request = (u64, u64);

/// An extended command.
pub fn extended(command: MmuExtCommand, ptr: u64, arg: u64) -> Request {
    (ptr & !3 | u64::from(MmuCommand::ExtendedCommand.raw()), arg << 8 | u64::from(command.raw()))
}

/// MMUEXT_SET_FOREIGNDOM.
pub fn foreign(id: DomId) -> Request {
    extended(MmuExtCommand::SetForeigndom, 0, u64::from(id.0) << 8)
}

/// MMUEXT_PIN_Ln_TABLE.
pub fn pin(frame: Mfn, level: u8) -> Request {
    let command = MmuExtCommand::from_raw(u32::from(level) - 1).expect("a level from 1 to 4");
    extended(command, frame.addr().0, 0)
}

/// MMUEXT_UNPIN_TABLE.
pub fn unpin(frame: Mfn) -> Request {
    extended(MmuExtCommand::UnpinTable, frame.addr().0, 0)
}

/// MMUEXT_NEW_BASEPTR.
pub fn new_base(frame: Mfn) -> Request {
    extended(MmuExtCommand::NewBaseptr, frame.addr().0, 0)
}

/// MMUEXT_NEW_USER_BASEPTR.
pub fn new_user_base(frame: Mfn) -> Request {
    extended(MmuExtCommand::NewUserBaseptr, frame.addr().0, 0)
}

/// MMUEXT_REASSIGN_PAGE.
pub fn reassign(frame: Mfn) -> Request {
    extended(MmuExtCommand::ReassignPage, frame.addr().0, 0)
}

impl Guest {
    /// Bytes of a table entry, and of a word.
    pub fn width(&self) -> u64 {
        if self.dom.arch == Arch::X86_32 { 4 } else { 8 }
    }

    /// Level of the top table.
    pub fn top_level(&self) -> u8 {
        if self.dom.arch == Arch::X86_32 { 2 } else { 4 }
    }

    /// The first address of the domain's region: frame `n` is mapped `n` pages further.
    pub fn base(&self) -> u64 {
        if self.dom.arch == Arch::X86_32 { 0xc000_0000 } else { 0xffff_8880_0000_0000 }
    }

    /// Address of a page of the region.
    pub fn va(&self, page: usize) -> GuestVirt {
        GuestVirt(self.base() + 4096 * page as u64)
    }

    /// Flags of a usual mapping.
    pub fn flags(&self, rw: u64) -> u64 {
        bits::P | bits::A | rw | if self.dom.arch == Arch::X86_32 { 0 } else { bits::US }
    }

    /// An entry that maps a frame of this domain's.
    pub fn entry(&self, pfn: usize, rw: u64) -> u64 {
        self.frames[pfn].addr().0 | self.flags(rw)
    }

    /// A request that writes an entry.
    pub fn set(&self, table: Mfn, slot: usize, value: u64) -> Request {
        (table.addr().0 + slot as u64 * self.width(), value)
    }

    /// A request that sets a frame's machine-to-physical entry.
    pub fn machphys(&self, frame: Mfn, pfn: u64) -> Request {
        (frame.addr().0 | u64::from(MmuCommand::MachphysUpdate.raw()), pfn)
    }

    /// Puts words where the guest passes arguments; false when that page is not to be had.
    pub fn put_args(&mut self, words: &[u64]) -> bool {
        self.run();
        let at = self.va(ARGS);
        let bytes: Vec<u8> =
            words.iter().flat_map(|w| w.to_le_bytes().into_iter().take(self.width() as usize)).collect();
        let mut chunks: Vec<u64> =
            bytes.chunks(8).map(|c| c.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte))).collect();
        chunks.resize(chunks.len().max(1), 0);
        (0..).zip(&chunks).all(|(i, &chunk)| self.host.hw.guest_store(at.offset(8 * i), chunk, Mode::Kernel).is_ok())
            && self.host.hw.guest_store(at.offset(4088), 0, Mode::Kernel).is_ok()
    }

    /// Writes to where the count of requests goes, by the entry that maps it now: what that does to the entry is no
    /// request's doing.
    fn touch_args(&self) {
        let at = self.va(ARGS).offset(4088);
        self.host.hw.forget(at);
        if let Ok(word) = self.host.hw.guest_load(at, Mode::Kernel) {
            // It may be read-only.
            let _ = self.host.hw.guest_store(at, word, Mode::Kernel);
        }
    }

    /// `mmu_update` of requests that are already in the arguments' page.
    pub fn mmu_update_in_place(&mut self, count: usize) -> Done {
        let at = self.va(ARGS).0;
        let result = self.hypercall(Hypercall::MmuUpdate, [at, count as u64, at + 4088, 0, 0, 0]);
        let done = self.host.hw.guest_load(GuestVirt(at + 4088), Mode::Kernel);
        let result = if self.dom.arch == Arch::X86_32 { result as u32 as i32 as i64 as u64 } else { result };
        Done { result, count: done.map_or(0, |word| word as u32) }
    }

    /// `mmu_update`.
    pub fn mmu_update(&mut self, requests: &[Request]) -> Done {
        let words: Vec<u64> = requests.iter().flat_map(|&(ptr, val)| [ptr, val]).collect();
        assert!(self.put_args(&words), "the arguments' page is mapped");
        self.mmu_update_in_place(requests.len())
    }

    /// `mmu_update` of one request: its result.
    pub fn request(&mut self, request: Request) -> u64 {
        let done = self.mmu_update(&[request]);
        assert_eq!(done.count == 1, done.result == OK, "the count says what the result says");
        done.result
    }

    /// Any other call, with a 32-bit guest's result sign-extended.
    pub fn call(&mut self, number: Hypercall, args: [u64; 6]) -> u64 {
        let result = self.hypercall(number, args);
        if self.dom.arch == Arch::X86_32 { result as u32 as i32 as i64 as u64 } else { result }
    }

    /// `update_va_mapping` of a page of the region.
    pub fn remap(&mut self, page: usize, value: u64, flags: u64) -> u64 {
        let page = self.va(page).0 >> 12;
        self.call(Hypercall::UpdateVaMapping, [page, value, flags, 0, 0, 0])
    }

    /// Writes an entry straight into memory, as the builder does before there are tables.
    fn write_entry(&self, pfn: usize, slot: usize, value: u64) {
        let at = MachineAddr(self.frames[pfn].addr().0 + slot as u64 * self.width());
        match self.dom.arch {
            Arch::X86_32 => self.host.hw.store32(at, value as u32),
            Arch::X86_64 => self.host.hw.store64(at, value),
        }
    }

    /// Builds the tables, pins the top one and makes it the base.
    fn start(&mut self) -> Result<(), PagingError> {
        self.run();
        let l1 = self.entry(L1, bits::RW) | bits::US;
        let tops = [TOP, SECOND_TOP];
        let (level, tables): (u8, &[usize]) = match self.dom.arch {
            Arch::X86_32 => {
                tops.iter().for_each(|&top| self.write_entry(top, 0xc000_0000 >> 22, l1));
                (2, &[TOP, SECOND_TOP, L1])
            }
            Arch::X86_64 => {
                // The region's slot of the L4; in the tables below it is the first.
                tops.iter().for_each(|&top| {
                    self.write_entry(top, (self.base() >> 39 & 511) as usize, self.entry(3, bits::RW))
                });
                self.write_entry(3, 0, self.entry(4, bits::RW));
                self.write_entry(4, 0, l1);
                (4, &[TOP, SECOND_TOP, L1, 3, 4])
            }
        };
        for pfn in 0..FRAMES {
            let table = tables.contains(&pfn) || pfn == SPARE || pfn == SPARE2;
            self.write_entry(L1, pfn, self.entry(pfn, if table { 0 } else { bits::RW | bits::D }));
        }
        self.write_entry(L1, FRAMES, self.dom.shared_info.addr().0 | self.flags(bits::RW));
        let pager = Pager::new(&*self.host, &self.dom);
        let mut state = self.dom.paging.lock();
        let top = self.frames[TOP];
        match self.dom.arch {
            Arch::X86_32 => pager.pin::<TwoLevel>(&mut state, top, level)?,
            Arch::X86_64 => pager.pin::<FourLevel>(&mut state, top, level)?,
        }
        match self.dom.arch {
            Arch::X86_32 => pager.set_base::<TwoLevel>(&mut state, top)?,
            Arch::X86_64 => pager.set_base::<FourLevel>(&mut state, top)?,
        }
        self.host.hw.load_root(self.dom.roots.of(state.user.mode).expect("just set"));
        Ok(())
    }

    /// Goes over to the kernel or to applications; false if those have no base.
    pub fn enter(&mut self, to: bounce::Mode) -> bool {
        self.run();
        let (host, dom) = (self.host.clone(), self.dom.clone());
        user_mode::switch(&host, &dom, &mut self.vcpu, to, |root| host.hw.load_root_of_mode(root)).is_ok()
    }

    /// Makes sure that arguments can be passed, whatever the guest did to its tables; false if nothing helps.
    pub fn rescue(&mut self) -> bool {
        if self.put_args(&[]) {
            return true;
        }
        let args = self.entry(ARGS, bits::RW | bits::D);
        if self.remap(ARGS, args, 1) == OK && self.put_args(&[]) {
            return true;
        }
        let hw = &self.host.hw;
        let pager = Pager::new(&*self.host, &self.dom);
        let mut state = pager.lock();
        let (top, load) = (self.frames[TOP], |root| hw.load_root(root));
        let _: Result<(), PagingError> = match self.dom.arch {
            Arch::X86_32 => pager.switch_base::<TwoLevel>(&mut state, top, load),
            Arch::X86_64 => pager.switch_base::<FourLevel>(&mut state, top, load),
        };
        drop(state);
        self.put_args(&[])
    }

    /// What every request that changes mappings does first, whether it then fails or not.
    pub fn settle_ldt(&mut self) {
        use proxenos_abi::{X86_32, X86_64};
        let (host, dom) = (self.host.clone(), self.dom.clone());
        let segments = &mut self.vcpu.segments;
        match dom.arch {
            Arch::X86_32 => segments.drop_moved_ldt::<X86_32, _>(&host, &dom),
            Arch::X86_64 => segments.drop_moved_ldt::<X86_64, _>(&host, &dom),
        }
        match dom.arch {
            Arch::X86_32 => segments.refresh_ldt::<X86_32, _>(&host, &dom),
            Arch::X86_64 => segments.refresh_ldt::<X86_64, _>(&host, &dom),
        }
    }

    /// The CPU looks into the LDT: whether there is anything to be found.
    pub fn ldt_fault(&mut self, offset: u64) -> bool {
        use proxenos_abi::{X86_32, X86_64};
        self.run();
        let (host, dom) = (self.host.clone(), self.dom.clone());
        let segments = &mut self.vcpu.segments;
        match dom.arch {
            Arch::X86_32 => segments.ldt_fault::<X86_32, _>(&host, &dom, offset),
            Arch::X86_64 => segments.ldt_fault::<X86_64, _>(&host, &dom, offset),
        }
    }

    /// `vm_assist`.
    pub fn assist(&mut self, command: VmAssistCommand, kind: VmAssistType) -> u64 {
        self.call(Hypercall::VmAssist, [command.raw().into(), kind.raw().into(), 0, 0, 0, 0])
    }

    /// The kernel executes an instruction that writes to `at`.
    pub fn execute(&self, at: GuestVirt, code: &[u8], registers: &mut Registers) -> Result<(), Fault> {
        self.run();
        self.host.hw.guest_execute(at, code, registers)
    }

    /// The kernel writes an entry of the table at a page of the region, by `mov`.
    pub fn write(&self, page: usize, slot: usize, value: u64) -> Result<(), Fault> {
        let code: &[u8] = if self.dom.arch == Arch::X86_32 { &[0x89, 0x08] } else { &[0x48, 0x89, 0x08] };
        let mut registers = Registers::default();
        registers.general[1] = value;
        self.execute(self.va(page).offset(slot as u64 * self.width()), code, &mut registers)
    }

    /// How many tables are open.
    pub fn open_tables(&self) -> usize {
        self.dom.paging.lock().writable.windows().count()
    }

    /// The record's type, if it is held.
    pub fn type_of(&self, frame: Mfn) -> (FrameType, u32) {
        let word = self.host.frames.info(frame).expect("a frame of the table").type_word();
        (if word.count() > 0 { word.kind() } else { FrameType::None }, word.count())
    }
}

/// One frame's record, without what nobody can see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    frame: Mfn,
    owner: DomId,
    refs: u32,
    allocated: bool,
    kind: FrameType,
    types: u32,
    pinned: bool,
    shadowed: bool,
    /// How many linear entries lead to it.
    linear: u32,
}

/// A domain's own state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    bases: Vec<Mfn>,
    total_pages: u32,
    gdt_entries: u16,
    descriptors: Vec<(DescriptorPage, Mfn)>,
}

/// All that a refused request must leave alone, apart from memory's contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Of each frame.
    pub records: Vec<Record>,
    /// Of each domain.
    pub domains: Vec<Own>,
}

/// The machine.
pub struct World {
    /// The host.
    pub host: Arc<Host<SimHardware>>,
    /// The domains, by number.
    pub guests: Vec<Guest>,
}

/// A domain that may do everything.
pub const PRIVILEGED: Privileges = Privileges::all();
/// One that may do nothing.
pub const PLAIN: Privileges = Privileges::empty();

impl World {
    /// A machine with as much free memory as is good, and these domains.
    pub fn new(domains: &[(Arch, Privileges)]) -> Self {
        Self::with_memory(0x100 + 512, domains, None)
    }

    /// A privileged domain and one that is not, of one architecture.
    pub fn of(arch: Arch) -> Self {
        Self::new(&[(arch, PRIVILEGED), (arch, PLAIN)])
    }

    /// A machine of so many frames.
    pub fn with_memory(frames: usize, domains: &[(Arch, Privileges)], narrow: Option<Mfn>) -> Self {
        let host = host_with(frames, domains.len(), narrow);
        let guests = (0..)
            .zip(domains)
            .map(|(id, &(arch, privileges))| {
                let mut guest = Guest(domain(&host, DomId(id), arch, privileges, FRAMES));
                guest.start().expect("the first tables are valid");
                guest
            })
            .collect();
        let world = Self { host, guests };
        world.check();
        world
    }

    /// A guest, by number.
    pub fn guest(&mut self, number: usize) -> &mut Guest {
        &mut self.guests[number]
    }

    /// What the audit, the TLBs and the descriptor mappings have to say.
    pub fn verdict(&self) -> Result<Census, Vec<alloc::string::String>> {
        use alloc::string::ToString;
        let text =
            |violations: Vec<crate::audit::Violation>| violations.iter().map(ToString::to_string).collect::<Vec<_>>();
        let census = self.audit().map_err(text)?;
        self.host.hw.stale().map_err(text)?;
        for guest in &self.guests {
            let mut expected: Vec<_> = guest.vcpu.segments.pages().collect();
            expected.retain(|(page, _)| *page != DescriptorPage::Gdt(0));
            expected.insert(0, (DescriptorPage::Gdt(0), guest.dom.gdt_page));
            let mapped = self.host.hw.descriptor_pages(guest.dom.id);
            if mapped != expected {
                return Err(alloc::vec![alloc::format!("descriptor pages {mapped:?}, expected {expected:?}")]);
            }
        }
        Ok(census)
    }

    /// The audit of all domains, those included that the control interface has made, or ended.
    fn audit(&self) -> Result<Census, Vec<crate::audit::Violation>> {
        let domains = self.host.domains.all();
        let others: Vec<_> = domains
            .iter()
            .filter(|dom| !self.guests.iter().any(|guest| guest.dom.id == dom.id))
            .map(|dom| (dom, dom.ending.lock()))
            .collect();
        let none = Segments::new();
        self.host.hw.with_parked_segments(|parked| {
            let of = |id: DomId| parked.iter().find(|(parked, _)| *parked == id).map(|(_, segments)| *segments);
            let others = others.iter().map(|(dom, ending)| Subject {
                dom,
                segments: ending.segments().or_else(|| of(dom.id)).unwrap_or(&none),
            });
            let guests = self.guests.iter().map(|guest| Subject { dom: &guest.dom, segments: &guest.vcpu.segments });
            audit(&self.host, &guests.chain(others).collect::<Vec<_>>())
        })
    }

    /// Panics unless all is well.
    #[track_caller]
    pub fn check(&self) -> Census {
        self.verdict().unwrap_or_else(|violations| panic!("{violations:#?}"))
    }

    /// How many linear entries lead to a frame, as its record has it.
    fn linear_uses(&self, info: &FrameInfo) -> u32 {
        let narrow = |id: DomId| self.guests.iter().any(|guest| guest.dom.id == id && guest.dom.arch == Arch::X86_32);
        let counted = info.is_directory() && info.type_word().is_validated() && narrow(info.refs().owner());
        if counted { info.linear_uses() } else { 0 }
    }

    /// Whether some domain's shadows are not all there: it has had too little room for them, or they are made by faults
    /// only.
    pub fn was_short(&self) -> bool {
        self.guests.iter().any(|guest| guest.dom.paging.lock().pool.was_short() || guest.dom.log.is_on())
    }

    /// How many linear entries there are.
    pub fn linear_total(&self) -> u32 {
        let records = (0..self.host.frames.len()).filter_map(|mfn| self.host.frames.info(Mfn(mfn)));
        records.map(|info| self.linear_uses(info)).sum()
    }

    /// All that must not change.
    pub fn snapshot(&self) -> Snapshot {
        let record = |mfn| {
            let info = self.host.frames.info(Mfn(mfn)).expect("in range");
            let (refs, word) = (info.refs(), info.type_word());
            Record {
                frame: Mfn(mfn),
                owner: refs.owner(),
                refs: refs.count(),
                allocated: refs.is_allocated(),
                // How the free blocks lie may differ.
                kind: if word.count() > 0 && word.kind() != FrameType::Free { word.kind() } else { FrameType::None },
                types: if word.kind() == FrameType::Free { 0 } else { word.count() },
                pinned: word.is_pinned(),
                shadowed: info.shadow().is_some(),
                linear: self.linear_uses(info),
            }
        };
        let own = |guest: &Guest| Own {
            bases: guest.dom.paging.lock().bases().collect(),
            total_pages: guest.dom.total_pages.load(Ordering::Relaxed),
            gdt_entries: guest.vcpu.segments.gdt_entries(),
            descriptors: guest.vcpu.segments.pages().collect(),
        };
        Snapshot {
            records: (0..self.host.frames.len()).map(record).collect(),
            domains: self.guests.iter().map(own).collect(),
        }
    }

    /// Does something of guest `who`'s, whose arguments are already in memory; if it fails, nothing but the word at
    /// `*done` may have changed (I7). Then checks everything else.
    pub fn judge(
        &mut self,
        who: usize,
        action: impl FnOnce(&mut Guest) -> u64,
    ) -> Result<u64, Vec<alloc::string::String>> {
        let guest = &self.guests[who];
        guest.run();
        guest.touch_args();
        let done = self.host.hw.guest_target(guest.va(ARGS).offset(4088), Mode::Kernel);
        self.guests[who].settle_ldt();
        let before = self.snapshot();
        let had_open = self.guests.iter().any(|guest| guest.dom.paging.lock().writable.is_open());
        self.host.hw.watch();
        let result = action(&mut self.guests[who]);
        let mut changes = self.host.hw.changes();
        let failed = (result as i64) < 0;
        // A request closes what is open, whatever becomes of it.
        if failed && !had_open {
            // The count is written to a page of the guest's, which may be used for the first time: what was to be the
            // arguments' page may be mapped anew, and the CPU not know of it until the request flushes what it
            // remembers.
            let guest = &self.guests[who];
            let mapped_by = guest.frames[L1].addr().0 + ARGS as u64 * guest.width();
            let used = (bits::A | bits::D) << (8 * (mapped_by & 7));
            changes.retain(|change| change.at.0 != mapped_by & !7 || (change.before ^ change.after) & !used != 0);
            // A page of good descriptors may have been brought into the form that they are kept in.
            let arch = self.guests[who].dom.arch;
            changes
                .retain(|change| done != Ok(change.at) && descriptor::check(arch, change.before) != Ok(change.after));
            // Shadows that were missing may have been made, or dropped, on the way.
            let of_hypervisor = |at: MachineAddr| {
                let owner = self.host.frames.info(at.mfn()).map(|info| info.refs().owner());
                owner.is_some_and(|owner| !self.guests.iter().any(|guest| guest.dom.id == owner))
            };
            changes.retain(|change| !(self.was_short() && of_hypervisor(change.at)));
            if let Some(change) = changes.first() {
                return Err(alloc::vec![alloc::format!("I7: a refused request changed memory: {change:x?}")]);
            }
            let mut before = before;
            let mut after = self.snapshot();
            if self.was_short() {
                // Shadows come and go by themselves.
                let records = before.records.iter_mut().chain(&mut after.records);
                records.for_each(|record| record.shadowed = false);
            }
            let loose = |record: &Record| self.was_short() && of_hypervisor(record.frame.addr());
            let pairs = before.records.iter().zip(&after.records).filter(|(_, after)| !loose(after));
            let differs = pairs.clone().find(|(before, after)| before != after);
            if let Some((before, after)) = differs {
                return Err(alloc::vec![alloc::format!("I7: a refused request made {after:?} of {before:?}")]);
            }
            if before.domains != after.domains {
                return Err(alloc::vec![alloc::format!("I7: {:?} became {:?}", before.domains, after.domains)]);
            }
        }
        self.verdict().map(|_| result)
    }
}
