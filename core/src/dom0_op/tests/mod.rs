//! `dom0_op` from a privileged domain of a simulated machine: the tools of the tests, which build domains as 2.0's
//! tools do.

mod build;
mod ends;
mod life;
mod memory;

use crate::addr::{DomId, Mfn};
use crate::audit::Census;
use crate::domain::{Arch, Domain};
use crate::event::EventDomains;
use crate::machine::GuestMemory;
use crate::paging::format::bits;
use crate::paging::tests::world::*;
use crate::preempt::{Answer, Place};
use alloc::sync::Arc;
use alloc::vec::Vec;
use proxenos_abi::context::FullExecutionContext;
use proxenos_abi::dom0_ops::args::*;
use proxenos_abi::dom0_ops::{Dom0Argument, Dom0Op, Dom0Version};
use proxenos_abi::zerocopy::{FromBytes, FromZeros, IntoBytes};
use proxenos_abi::{Errno, GuestArch, GuestWord, Hypercall, Padded, Selector, X86_32, X86_64};

/// Frames of a domain that is made here: those of its tables, its kernel's page, and some more.
pub const PAGES: u64 = 8;
/// Where the controlling domain maps what is another's.
pub const WINDOW: usize = FRAMES + 8;

/// The controlling domain's architecture, at compile time.
pub trait Control: GuestArch {}
impl<A: GuestArch> Control for A {}

/// Calls a test for callers of both architectures.
macro_rules! for_both_callers {
    ($test:ident) => {
        $test::<proxenos_abi::X86_32>(crate::domain::Arch::X86_32);
        $test::<proxenos_abi::X86_64>(crate::domain::Arch::X86_64);
    };
}
pub(super) use for_both_callers;

pub const ARCHES: [Arch; 2] = [Arch::X86_32, Arch::X86_64];

/// A domain that controls, of this architecture, and one that is none of its making.
pub fn world(arch: Arch) -> World {
    World::with_memory(0x100 + 1024, &[(arch, PRIVILEGED), (arch, PLAIN)], None)
}

pub fn word<A: GuestArch>(value: u64) -> Padded<A> {
    Padded::from_u64(value).expect("a word of the caller's")
}

impl World {
    /// Puts a request where domain 0 has its arguments.
    pub fn write_op(&mut self, op: &Dom0Op) {
        let zero = &self.guests[0];
        zero.run();
        self.host.hw.copy_to_guest(zero.va(ARGS), op.as_bytes()).expect("mapped");
    }

    /// Makes a request, again and again until it is over: its result, and what it has become.
    pub fn dom0_op(&mut self, op: &Dom0Op) -> (u64, Dom0Op) {
        self.write_op(op);
        let at = self.guests[0].va(ARGS);
        let result = self.guest(0).call(Hypercall::Dom0Op, [at.0, 0, 0, 0, 0, 0]);
        let mut back = Dom0Op::new_zeroed();
        self.guests[0].run();
        self.host.hw.copy_from_guest(at, back.as_mut_bytes()).expect("mapped");
        (result, back)
    }

    /// Makes a request once.
    pub fn try_once(&mut self, op: &Dom0Op) -> Answer {
        self.write_op(op);
        let at = self.guests[0].va(ARGS);
        self.guest(0).hypercall_once(Hypercall::Dom0Op, [at.0, 0, 0, 0, 0, 0], Place::default())
    }

    /// Makes a request with this argument.
    pub fn ask<T: Dom0Argument>(&mut self, argument: T) -> (u64, T) {
        let (result, back) = self.dom0_op(&Dom0Op::new(argument));
        (result, back.argument())
    }

    /// Makes a request that answers with no more than its result.
    pub fn tell<T: Dom0Argument>(&mut self, argument: T) -> u64 {
        self.ask(argument).0
    }

    /// Creates a domain: its number.
    pub fn create<A: GuestArch>(&mut self, arch: Arch, pages: u64) -> DomId {
        let other = (arch != self.guests[0].dom.arch) as u16 * CREATE_OTHER_ARCH;
        let (result, made) = self.ask(CreateDomain::<A> {
            memory_kb: word(4 * pages),
            cpu: u32::MAX,
            domain: DomId(other),
            ..CreateDomain::default()
        });
        assert_eq!(result, OK);
        made.domain
    }

    pub fn find(&self, id: DomId) -> Arc<Domain> {
        self.host.domains.find(id).expect("it is there")
    }

    pub fn info<A: GuestArch>(&mut self, id: DomId) -> (u64, GetDomainInfo<A>) {
        self.ask(GetDomainInfo::<A> { domain: id, ..GetDomainInfo::default() })
    }

    pub fn destroy(&mut self, id: DomId) -> u64 {
        self.tell(DestroyDomain { domain: id, pad: 0 })
    }

    /// A domain's frames.
    pub fn mem_list<A: GuestArch>(&mut self, id: DomId, room: u64) -> (u64, Vec<Mfn>) {
        let at = self.guests[0].va(DATA);
        let (result, list) =
            self.ask(GetMemList::<A> { domain: id, max_pfns: word(room), buffer: word(at.0), ..GetMemList::default() });
        let count = list.num_pfns.to_u64();
        let mut frames = Vec::new();
        for index in 0..count {
            let mut value = A::Word::ZERO;
            let slot = at.offset(index * A::Word::BYTES as u64);
            self.guests[0].run();
            self.host.hw.copy_from_guest(slot, value.as_mut_bytes()).expect("mapped");
            frames.push(Mfn(value.to_u64()));
        }
        (result, frames)
    }

    /// Maps a frame of another domain's, as a builder does.
    pub fn map_foreign(&mut self, id: DomId, frame: Mfn) -> u64 {
        let entry = frame.addr().0 | self.guests[0].flags(bits::RW);
        let page = self.guests[0].va(WINDOW).0 >> 12;
        self.guest(0).call(Hypercall::UpdateVaMappingOtherdomain, [page, entry, 2, id.0.into(), 0, 0])
    }

    pub fn unmap_foreign(&mut self) {
        assert_eq!(self.guest(0).remap(WINDOW, 0, 2), OK);
    }

    /// Writes entries of a page that is another domain's.
    pub fn fill_foreign(&mut self, id: DomId, arch: Arch, frame: Mfn, entries: &[(u64, u64)]) {
        assert_eq!(self.map_foreign(id, frame), OK);
        let at = self.guests[0].va(WINDOW);
        self.guests[0].run();
        for &(slot, value) in entries {
            match arch {
                Arch::X86_32 => self.host.hw.copy_to_guest(at.offset(4 * slot), &(value as u32).to_le_bytes()),
                Arch::X86_64 => self.host.hw.copy_to_guest(at.offset(8 * slot), &value.to_le_bytes()),
            }
            .expect("mapped writable");
        }
        self.unmap_foreign();
    }

    /// Writes a domain's page tables: its first frames map all of it, from its region's beginning on. The rest is the
    /// builder's.
    pub fn plant_tables(&mut self, id: DomId, arch: Arch, frames: &[Mfn]) {
        let table = |frame: Mfn| frame.addr().0 | bits::P | bits::RW | bits::US | bits::A | bits::D;
        let tables: u64 = if arch == Arch::X86_32 { 2 } else { 4 };
        match arch {
            Arch::X86_32 => self.fill_foreign(id, arch, frames[0], &[(0xc000_0000 >> 22, table(frames[1]))]),
            Arch::X86_64 => {
                self.fill_foreign(id, arch, frames[0], &[(0x1ff, table(frames[3]))]);
                self.fill_foreign(id, arch, frames[3], &[(0, table(frames[2]))]);
                self.fill_foreign(id, arch, frames[2], &[(0, table(frames[1]))]);
            }
        }
        let user = if arch == Arch::X86_64 { bits::US } else { 0 };
        let entries: Vec<_> = (0..)
            .zip(frames)
            .map(|(pfn, frame)| {
                (pfn, frame.addr().0 | bits::P | bits::A | user | if pfn < tables { 0 } else { bits::RW })
            })
            .collect();
        self.fill_foreign(id, arch, frames[1], &entries);
    }

    /// Domain 0 makes requests on a domain's frames.
    pub fn foreign_update(&mut self, id: DomId, requests: &[Request]) -> Done {
        let all: Vec<Request> = core::iter::once(foreign(id)).chain(requests.iter().copied()).collect();
        self.guest(0).mmu_update(&all)
    }

    /// Makes a domain with page tables, pinned, as 2.0's builder leaves it.
    pub fn prepare<A: GuestArch>(&mut self, arch: Arch) -> (DomId, Vec<Mfn>) {
        let id = self.create::<A>(arch, PAGES);
        let (result, frames) = self.mem_list::<A>(id, 100);
        assert_eq!((result, frames.len() as u64), (OK, PAGES));
        self.plant_tables(id, arch, &frames);
        let machphys = (0..).zip(&frames).map(|(pfn, &frame)| self.guests[0].machphys(frame, pfn));
        let level = if arch == Arch::X86_32 { 2 } else { 4 };
        let requests: Vec<_> = machphys.chain([pin(frames[0], level)]).collect();
        assert_eq!(self.foreign_update(id, &requests), Done { result: OK, count: 1 + requests.len() as u32 });
        (id, frames)
    }

    /// Passes a context of bytes on.
    pub fn build_with<A: GuestArch>(&mut self, id: DomId, version: Dom0Version, context: &[u8]) -> u64 {
        let at = self.guests[0].va(DATA);
        self.guests[0].run();
        self.host.hw.copy_to_guest(at, context).expect("mapped");
        let mut op = Dom0Op::new(BuildDomain::<A> { domain: id, ctxt: word(at.0), ..BuildDomain::default() });
        op.interface_version = version.raw();
        self.dom0_op(&op).0
    }

    /// Makes a domain that could run.
    pub fn built<A: GuestArch>(&mut self, arch: Arch) -> (DomId, Vec<Mfn>) {
        let (id, frames) = self.prepare::<A>(arch);
        let context = self.context(arch, frames[0]);
        assert_eq!(self.build_with::<A>(id, Dom0Version::V19, &context), OK);
        (id, frames)
    }

    /// A context that a domain of this architecture could begin with.
    pub fn context(&self, arch: Arch, top: Mfn) -> Vec<u8> {
        let other = u64::from(arch != self.guests[0].dom.arch) << 1;
        match arch {
            Arch::X86_32 => context_32(top, |context| context.flags = other as u32).as_bytes().to_vec(),
            Arch::X86_64 => context_64(top, |context| context.flags = other).as_bytes().to_vec(),
        }
    }

    /// What the machine's memory is in use for, but for how often it was looked at.
    pub fn usage(&self) -> (u64, u64, u64, u64) {
        let Census { free, domains, shadows, hypervisor, .. } = self.check();
        (free, domains, shadows, hypervisor)
    }
}

/// A context of x86_32's as 2.0's builder makes it, then changed.
pub fn context_32(top: Mfn, change: impl FnOnce(&mut FullExecutionContext<X86_32>)) -> FullExecutionContext<X86_32> {
    let mut context = FullExecutionContext::<X86_32>::new_zeroed();
    let data = u32::from(X86_32::FLAT_GUESTOS_DS.0);
    let c = &mut context.cpu_ctxt;
    (c.cs, c.ss, c.ds, c.es, c.fs, c.gs) = (X86_32::FLAT_GUESTOS_CS.0.into(), data, data, data, data, data);
    (c.eip, c.esp, c.eflags, c.esi) = (0xc000_4000, 0xc000_5000, 0x202, 0xc000_4800);
    (context.guestos_ss, context.guestos_esp) = (data, 0xc000_5000);
    context.pt_base = top.addr().0 as u32;
    change(&mut context);
    context
}

/// The same of x86_64's.
pub fn context_64(top: Mfn, change: impl FnOnce(&mut FullExecutionContext<X86_64>)) -> FullExecutionContext<X86_64> {
    let mut context = FullExecutionContext::<X86_64>::new_zeroed();
    let data = u64::from(X86_64::FLAT_GUESTOS_DS.0);
    let base = 0xffff_ff80_0000_0000_u64;
    let c = &mut context.cpu_ctxt;
    (c.cs, c.ss, c.eflags) = (X86_64::FLAT_GUESTOS_CS.0.into(), data, 0x202);
    (c.rip, c.rsp, c.rsi) = (base + 0x4000, base + 0x5000, base + 0x4800);
    (context.guestos_ss, context.guestos_esp) = (data, base + 0x5000);
    context.pt_base = top.addr().0;
    change(&mut context);
    context
}

/// A result as an error's.
pub fn refused(errno: Errno) -> u64 {
    error(errno)
}
