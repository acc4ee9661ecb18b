//! Small domains, built by hand: a few frames, the page tables that map them, a page of code, and a context.

use crate::program::{CODE_BYTES, Program};
use crate::request::{Window, ask_in, create, frames, info, of, word};
use proxenos_guest::abi::context::{ContextFlags, FullExecutionContext, TrapFlags, TrapInfo};
use proxenos_guest::abi::dom0_ops::Dom0Version;
use proxenos_guest::abi::dom0_ops::args::{BuildDomain, GetDomainInfo};
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand};
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::x86_32::ExecutionContextV1A;
use proxenos_guest::abi::zerocopy::{FromBytes, FromZeros, IntoBytes};
use proxenos_guest::abi::{DomId, Errno, GuestArch, GuestWord, Mfn, X86_32, X86_64};
use proxenos_guest::arch::{Arch, Word};
use proxenos_guest::hypercall;
use proxenos_guest::memory::{self, Frame};

/// The architecture of a domain that is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    Narrow,
    Wide,
}

/// Both.
pub const BOTH: [Subject; 2] = [Subject::Narrow, Subject::Wide];

/// Frames of a small domain: tables first, then these.
pub const PAGES: usize = 8;
/// Frames of a larger one: 4 MiB.
const LARGER_PAGES: usize = 1024;
/// Requests that are made at a time.
const BATCH: usize = 64;
pub const CODE: usize = 4;
const STACK: usize = 5;
pub const COUNTER: usize = 6;
/// A table that maps nothing, for who writes to page tables.
pub const SPARE: usize = 7;
/// The vector of an instruction that is none.
const INVALID_OPCODE: u8 = 6;

/// Bits of entries that both architectures have (Intel SDM vol. 3 §4.3, §4.5): present, writable, user, accessed,
/// dirty.
const TABLE: u64 = 0x67;
const READ_ONLY: u64 = 0x21;
const WRITABLE: u64 = 0x63;
const USER: u64 = 4;

impl Subject {
    /// Whether it is the architecture of the domain that builds.
    pub fn is_ours(self) -> bool {
        (self == Self::Narrow) == (Arch::PAGE_TABLE_LEVELS == 2)
    }

    /// Where a domain's first frame is mapped.
    pub const fn base(self) -> u64 {
        match self {
            Self::Narrow => 0xc000_0000,
            Self::Wide => 0xffff_ff80_0000_0000,
        }
    }

    /// Where its code begins.
    pub const fn entry(self) -> u64 {
        self.base() + 4096 * CODE as u64
    }

    const fn entry_bytes(self) -> usize {
        match self {
            Self::Narrow => 4,
            Self::Wide => 8,
        }
    }

    /// What marks a context as laid out for it.
    fn flags(self) -> ContextFlags {
        if self.is_ours() { ContextFlags::empty() } else { ContextFlags::OTHER_ARCH }
    }
}

/// A domain that was built.
#[derive(Clone, Copy)]
pub struct Built {
    pub id: DomId,
    pub subject: Subject,
    pub program: Program,
    pub frames: [Mfn; PAGES],
}

impl Built {
    /// The frame that it counts in.
    pub fn counter(&self) -> Mfn {
        self.frames[COUNTER]
    }
}

/// Where contexts lie: two pages of ours, one behind the other.
#[derive(Clone, Copy)]
pub struct Context(Frame);

impl Context {
    pub fn new() -> Self {
        let pages = [(); 2].map(|()| memory::alloc_frame().expect("domain 0 has memory"));
        assert!(pages[1].virt().raw() == pages[0].virt().raw() + 4096, "one lies behind the other");
        Self(pages[0])
    }

    /// Where it is.
    pub fn address(self) -> u64 {
        self.0.virt().raw()
    }

    fn bytes<const N: usize>(self) -> &'static mut [u8] {
        const { assert!(N <= 8192) };
        // SAFETY: two pages that are nobody else's; one reference at a time, which each function here lets go of.
        unsafe { core::slice::from_raw_parts_mut(self.address() as usize as *mut u8, N) }
    }

    /// What is told of a domain: some of its registers, flags and page-table base.
    pub fn of(self, domain: DomId, subject: Subject, version: Dom0Version) -> Result<Told, Errno> {
        self.bytes::<8192>().fill(0xaa);
        let asked = GetDomainInfo::<Arch> { domain, ctxt: word(self.address()), ..GetDomainInfo::default() };
        ask_in(version, asked)?;
        Ok(match subject {
            Subject::Narrow => {
                const SIZE: usize = size_of::<FullExecutionContext<X86_32>>();
                let c = FullExecutionContext::<X86_32>::ref_from_bytes(self.bytes::<SIZE>()).expect("as large");
                let cpu = match version {
                    Dom0Version::V19 => c.cpu_ctxt,
                    Dom0Version::V1A => {
                        ExecutionContextV1A::read_from_bytes({ c.cpu_ctxt }.as_bytes()).expect("as large").into()
                    }
                };
                Told {
                    flags: c.flags.into(),
                    ip: cpu.eip.into(),
                    sp: cpu.esp.into(),
                    bx: cpu.ebx.into(),
                    cs: cpu.cs.into(),
                    ds: cpu.ds.into(),
                    base: c.pt_base.into(),
                }
            }
            Subject::Wide => {
                const SIZE: usize = size_of::<FullExecutionContext<X86_64>>();
                let c = FullExecutionContext::<X86_64>::ref_from_bytes(self.bytes::<SIZE>()).expect("as large");
                let cpu = c.cpu_ctxt;
                let (ip, sp, bx, cs) = (cpu.rip, cpu.rsp, cpu.rbx, cpu.cs);
                Told { flags: c.flags, ip, sp, bx, cs, ds: 0, base: c.pt_base }
            }
        })
    }

    /// Passes the context on in which a domain begins.
    fn give(self, built: &Built, version: Dom0Version) -> Result<(), Errno> {
        let subject = built.subject;
        let stack = subject.base() + 4096 * (STACK + 1) as u64;
        let top = built.frames[0].addr().raw();
        match subject {
            Subject::Narrow => {
                let mut c = FullExecutionContext::<X86_32>::new_zeroed();
                let data = u32::from(X86_32::FLAT_GUESTOS_DS.raw());
                let cpu = &mut c.cpu_ctxt;
                (cpu.ds, cpu.es, cpu.fs, cpu.gs, cpu.ss) = (data, data, data, data, data);
                cpu.cs = X86_32::FLAT_GUESTOS_CS.raw().into();
                (cpu.eip, cpu.esp, cpu.eflags) = (subject.entry() as u32, stack as u32, 0x202);
                (c.guestos_ss, c.guestos_esp, c.pt_base) = (data, stack as u32, top as u32);
                c.flags = subject.flags().bits();
                if built.program == Program::CrashTwice {
                    let (cs, at) = (X86_32::FLAT_GUESTOS_CS, subject.entry() as u32);
                    c.trap_ctxt[usize::from(INVALID_OPCODE)] =
                        TrapInfo::new(INVALID_OPCODE, TrapFlags::empty(), cs, at);
                }
                match version {
                    Dom0Version::V19 => {
                        self.bytes::<{ size_of::<FullExecutionContext<X86_32>>() }>().copy_from_slice(c.as_bytes())
                    }
                    Dom0Version::V1A => self
                        .bytes::<{ size_of::<FullExecutionContext<X86_32>>() }>()
                        .copy_from_slice(c.reordered::<ExecutionContextV1A>().as_bytes()),
                }
            }
            Subject::Wide => {
                let bytes = self.bytes::<{ size_of::<FullExecutionContext<X86_64>>() }>();
                let c = FullExecutionContext::<X86_64>::mut_from_bytes(bytes).expect("as large");
                c.as_mut_bytes().fill(0);
                let data = u64::from(X86_64::FLAT_GUESTOS_DS.raw());
                let cpu = &mut c.cpu_ctxt;
                (cpu.cs, cpu.ss) = (X86_64::FLAT_GUESTOS_CS.raw().into(), data);
                (cpu.rip, cpu.rsp, cpu.eflags) = (subject.entry(), stack, 0x202);
                (c.guestos_ss, c.guestos_esp, c.pt_base) = (data, stack, top);
                c.flags = subject.flags().bits().into();
                if built.program == Program::CrashTwice {
                    let (cs, at) = (X86_64::FLAT_GUESTOS_CS, subject.entry());
                    c.trap_ctxt[usize::from(INVALID_OPCODE)] =
                        TrapInfo::new(INVALID_OPCODE, TrapFlags::empty(), cs, at);
                }
            }
        }
        let asked = BuildDomain::<Arch> { domain: built.id, ctxt: word(self.address()), ..BuildDomain::default() };
        ask_in(version, asked).map(drop)
    }
}

/// Some of a context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    pub flags: u64,
    pub ip: u64,
    pub sp: u64,
    pub bx: u64,
    pub cs: u64,
    pub ds: u64,
    pub base: u64,
}

/// Builds a small domain, as 2.0's tools do. It is paused.
pub fn build(
    subject: Subject,
    program: Program,
    version: Dom0Version,
    window: Window,
    context: Context,
) -> Result<Built, Errno> {
    let id = create(subject, 4 * PAGES as u64)?;
    let mut list = [0 as Word; PAGES + 1];
    let count = frames(id, &mut list)?;
    assert!(count == PAGES, "as many as were asked for");
    complete(id, &list[..PAGES], subject, program, version, window, context)
}

/// Builds a domain that has as much memory as the start of a day takes at least, and knows all of its frames as theirs
/// are known.
pub fn build_larger(subject: Subject, program: Program, window: Window, context: Context) -> Result<Built, Errno> {
    let id = create(subject, 4 * LARGER_PAGES as u64)?;
    // SAFETY: the two pages are long enough, a word each, and nobody else uses them before the context does, which
    // comes behind this.
    let list = unsafe { core::slice::from_raw_parts_mut(context.address() as usize as *mut Word, LARGER_PAGES) };
    let count = frames(id, list)?;
    assert!(count == LARGER_PAGES, "as many as were asked for");
    for (first, part) in (PAGES..).step_by(BATCH).zip(list[PAGES..].chunks(BATCH)) {
        let mut requests = [of(id); BATCH + 1];
        for ((pfn, frame), request) in (first..).zip(part).zip(&mut requests[1..]) {
            *request = memory::request(MmuCommand::MachphysUpdate, Mfn(frame.to_u64()).addr(), pfn as Word);
        }
        // SAFETY: none of the frames is ours.
        unsafe { hypercall::mmu_update(&requests[..part.len() + 1]) }.map_err(|(errno, _)| errno)?;
    }
    let few: [Word; PAGES] = core::array::from_fn(|index| list[index]);
    complete(id, &few, subject, program, Dom0Version::V19, window, context)
}

/// What is still to be done for a domain that was created: `list` are its first frames.
fn complete(
    id: DomId,
    list: &[Word],
    subject: Subject,
    program: Program,
    version: Dom0Version,
    window: Window,
    context: Context,
) -> Result<Built, Errno> {
    let own: [Mfn; PAGES] = core::array::from_fn(|index| Mfn(list[index].to_u64()));
    let built = Built { id, subject, program, frames: own };
    let entry = |index: usize, bits: u64| own[index].addr().raw() | bits;
    let put = |table: usize, slot: usize, value: u64| -> Result<(), Errno> {
        window.show(id, own[table])?;
        window.write(slot * subject.entry_bytes(), &value.to_le_bytes()[..subject.entry_bytes()]);
        window.close();
        Ok(())
    };
    let (tables, user) = match subject {
        Subject::Narrow => {
            put(0, 0xc000_0000 >> 22, entry(1, TABLE))?;
            (2, 0)
        }
        Subject::Wide => {
            put(0, 511, entry(3, TABLE))?;
            put(3, 0, entry(2, TABLE))?;
            put(2, 0, entry(1, TABLE))?;
            (4, USER)
        }
    };
    // The spare table hangs beside the other.
    let spare = (program == Program::BadTable).then_some(SPARE);
    if spare.is_some() {
        match subject {
            Subject::Narrow => put(0, (0xc000_0000 >> 22) + 1, entry(SPARE, TABLE))?,
            Subject::Wide => put(2, 1, entry(SPARE, TABLE))?,
        }
    }
    for page in 0..PAGES {
        let is_table = page < tables || spare == Some(page);
        put(1, page, entry(page, user | if is_table { READ_ONLY } else { WRITABLE }))?;
    }
    let mut code = [0; CODE_BYTES];
    program.code(subject, &mut code);
    window.show(id, own[CODE])?;
    window.write(0, &code);
    window.close();
    // It has no callback: an event would only keep it from waiting.
    let shared = info(id)?.shared_info_frame;
    window.show(id, Mfn(shared.to_u64()))?;
    window.write(SharedInfo::EVTCHN_MASK, &[0xff; 128]);
    window.close();
    let pin = if subject == Subject::Narrow { MmuExtCommand::PinL2Table } else { MmuExtCommand::PinL4Table };
    let mut requests = [of(id); PAGES + 2];
    for (pfn, frame) in own.iter().enumerate() {
        requests[1 + pfn] = memory::request(MmuCommand::MachphysUpdate, frame.addr(), pfn as Word);
    }
    requests[PAGES + 1] = memory::extended(pin, own[0].addr().raw(), 0);
    // SAFETY: none of the frames is ours.
    unsafe { hypercall::mmu_update(&requests) }.map_err(|(errno, _)| errno)?;
    context.give(&built, version)?;
    Ok(built)
}
