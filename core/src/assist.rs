//! What the hypervisor does for a guest beyond its requests (`vm_assist`), and the page faults that come of it.
//!
//! Of the three kinds of assistance only writable page tables have anything to do here. *4 GiB segments* exist because
//! 2.0 kept itself from x86_32 guests by truncating their segments, so that one that wraps around 4 GiB (thread-local
//! storage at negative offsets) faulted and had to be emulated. Here segment limits are left alone: in long mode all
//! addresses that such a guest can form are its own. So these accesses simply work; turning them on is accepted and
//! changes nothing, and there is never an occasion for the notification.
//!
//! [`page_fault`] and [`repair_access`] take the paging lock themselves; instructions are fetched without it.

use crate::addr::{GuestVirt, PAGE_SIZE};
use crate::code::LONGEST;
use crate::domain::{Arch, Domain};
use crate::host::{Hardware, Host};
use crate::paging::Pager;
#[cfg(any(test, feature = "sim"))]
use crate::paging::format::Format;
use crate::paging::format::{FourLevel, TwoLevel};
use crate::paging::shadow::Access;
use crate::paging::writable::{TableFault, Written};
use crate::personality::Personality;
use crate::store::{CodeWidth, Move, NotDecoded, RegisterFile, Repeat, Store, decode};
use proxenos_abi::Errno;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_image::PageTableMode;

/// `vm_assist(command, type)`.
pub fn vm_assist<H: Hardware>(host: &Host<H>, dom: &Domain, command: u32, kind: u32) -> Result<u64, Errno> {
    let kind = VmAssistType::from_raw(kind).ok_or(Errno::EINVAL)?;
    let command = VmAssistCommand::from_raw(command).ok_or(Errno::ENOSYS)?;
    match command {
        VmAssistCommand::Enable => dom.assist(kind),
        VmAssistCommand::Disable => {
            dom.do_not_assist(kind);
            if kind == VmAssistType::WritablePagetables {
                Pager::new(host, dom).release_writable_tables();
            }
        }
    }
    Ok(0)
}

/// What an image says of how its kernel changes page tables (`PT_MODE_WRITABLE`).
pub fn follow_image(dom: &Domain, mode: PageTableMode) {
    if mode == PageTableMode::Writable {
        dom.assist(VmAssistType::WritablePagetables);
    }
}

/// What became of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest goes on, at the instruction that faulted or behind it, if its domain has not ended.
    Resolved,
    /// It has nothing to do with what is done here.
    Other,
}

/// A store that a guest was about to make, with what it reads from memory, if that is where its operand comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// The instruction.
    pub store: Store,
    /// What a `movs` reads.
    pub read: u64,
}

/// Where the guest's code and data segments lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodeSegments {
    /// How its code is decoded.
    pub width: CodeWidth,
    /// Base of the code segment.
    pub code: u64,
    /// Base of the data segment (ds), if that can be read.
    pub data: Option<u64>,
}

/// A page fault of a guest's. `segments` says where its segments lie, and is asked without any lock.
#[inline]
pub fn page_fault<P: Personality, H: Hardware, R: RegisterFile>(
    host: &Host<H>,
    dom: &Domain,
    at: GuestVirt,
    access: Access,
    registers: &mut R,
    segments: impl FnOnce() -> Option<CodeSegments>,
) -> Outcome {
    let pager = Pager::new(host, dom);
    let mut state = dom.paging.lock();
    let written = match pager.table_fault::<P::Tables>(&mut state, at, access) {
        TableFault::Other => return Outcome::Other,
        TableFault::TryAgain => return Outcome::Resolved,
        TableFault::Store(written) => written,
    };
    if pager.open_if_busy::<P::Tables>(&mut state, &written) {
        return Outcome::Resolved;
    }
    drop(state);
    let segments = segments();
    if let Some(segments) = &segments
        && let Some(code) = code_at::<P, H>(host, segments, registers)
        && let Some(store) = Move::decode(&code, segments.width, registers)
    {
        let mut state = dom.paging.lock();
        if pager.store_entry::<P::Tables>(&mut state, &written, store.width.bytes(), |_| store.value) {
            registers.set_ip(store.next);
            return Outcome::Resolved;
        }
    }
    store(host, dom, &written, registers, |registers| fetch::<P, H, R>(host, &segments?, registers))
}

/// The first half of [`page_fault`], for those who know the instruction: a store that it gives goes to [`store`].
#[cfg(any(test, feature = "sim"))]
pub fn look<H: Hardware>(host: &Host<H>, dom: &Domain, at: GuestVirt, access: Access) -> TableFault {
    fn of<F: Format, H: Hardware>(pager: Pager<'_, H>, at: GuestVirt, access: Access) -> TableFault {
        let mut state = pager.dom.paging.lock();
        match pager.table_fault::<F>(&mut state, at, access) {
            TableFault::Store(written) if pager.open_if_busy::<F>(&mut state, &written) => TableFault::TryAgain,
            fault => fault,
        }
    }
    let pager = Pager::new(host, dom);
    match dom.arch {
        Arch::X86_32 => of::<TwoLevel, H>(pager, at, access),
        Arch::X86_64 => of::<FourLevel, H>(pager, at, access),
    }
}

/// The next sixteen bytes of code, if they are all in one page.
#[inline]
fn code_at<P: Personality, H: Hardware>(
    host: &Host<H>,
    segments: &CodeSegments,
    registers: &impl RegisterFile,
) -> Option<[u8; 16]> {
    let at = segments.linear(segments.code, registers.ip());
    let mut code = [0; 16];
    let fits = at.page_offset() <= PAGE_SIZE - code.len() && P::in_guest_range(at, code.len() as u64);
    (fits && host.hw.copy_from_guest(at, &mut code).is_ok()).then_some(code)
}

/// Deals with a guest's store to a table. `fetch` looks what instruction it is; it is called without any lock.
#[cold]
pub fn store<H: Hardware, R: RegisterFile>(
    host: &Host<H>,
    dom: &Domain,
    written: &Written,
    registers: &mut R,
    fetch: impl FnOnce(&R) -> Option<Fetched>,
) -> Outcome {
    let pager = Pager::new(host, dom);
    let fetched = fetch(registers);
    if let Some(fetched) = fetched
        && fetched.store.repeat == Repeat::No
        && carry_out(&pager, written, &fetched, registers)
    {
        return Outcome::Resolved;
    }
    // More than one store, or one that is not known or not within one entry.
    let mut state = dom.paging.lock();
    let opened = match dom.arch {
        Arch::X86_32 => pager.open_for::<TwoLevel>(&mut state, written, registers.ip()),
        Arch::X86_64 => pager.open_for::<FourLevel>(&mut state, written, registers.ip()),
    };
    drop(state);
    // Of a string instruction one step at a time will do.
    if opened || fetched.is_some_and(|fetched| carry_out(&pager, written, &fetched, registers)) {
        Outcome::Resolved
    } else {
        Outcome::Other
    }
}

fn carry_out<H: Hardware>(
    pager: &Pager<'_, H>,
    written: &Written,
    fetched: &Fetched,
    registers: &mut impl RegisterFile,
) -> bool {
    let (store, bytes) = (fetched.store, fetched.store.width.bytes());
    let mut state = pager.dom.paging.lock();
    let compute = |old| store.carry_out(registers, old, fetched.read);
    match pager.dom.arch {
        Arch::X86_32 => pager.store_entry::<TwoLevel>(&mut state, written, bytes, compute),
        Arch::X86_64 => pager.store_entry::<FourLevel>(&mut state, written, bytes, compute),
    }
}

/// A page fault of the hypervisor's own at an address of the guest's; true when the access can be tried again. A store
/// cannot be carried out for it, so the table is opened.
pub fn repair_access<H: Hardware>(host: &Host<H>, dom: &Domain, at: GuestVirt, access: Access) -> bool {
    let pager = Pager::new(host, dom);
    let mut state = dom.paging.lock();
    let fault = match dom.arch {
        Arch::X86_32 => pager.table_fault::<TwoLevel>(&mut state, at, access),
        Arch::X86_64 => pager.table_fault::<FourLevel>(&mut state, at, access),
    };
    match (fault, dom.arch) {
        (TableFault::TryAgain, _) => true,
        (TableFault::Store(written), Arch::X86_32) => pager.open_for_copy::<TwoLevel>(&mut state, &written),
        (TableFault::Store(written), Arch::X86_64) => pager.open_for_copy::<FourLevel>(&mut state, &written),
        (TableFault::Other, Arch::X86_32) => pager.resolve_shadow_fault::<TwoLevel>(&mut state, at, access),
        (TableFault::Other, Arch::X86_64) => {
            dom.log.is_on() && pager.resolve_shadow_fault::<FourLevel>(&mut state, at, access)
        }
    }
}

impl CodeSegments {
    #[inline]
    pub(crate) fn linear(&self, base: u64, offset: u64) -> GuestVirt {
        let at = base.wrapping_add(offset);
        GuestVirt(if self.width == CodeWidth::Bits32 { at & 0xffff_ffff } else { at })
    }
}

/// Reads and decodes the instruction that a guest is about to execute, and what it reads.
fn fetch<P: Personality, H: Hardware, R: RegisterFile>(
    host: &Host<H>,
    segments: &CodeSegments,
    registers: &R,
) -> Option<Fetched> {
    let read = |at: GuestVirt, into: &mut [u8]| {
        let allowed = P::in_guest_range(at, into.len() as u64);
        allowed.then(|| host.hw.copy_from_guest(at, into).ok()).flatten()
    };
    let at = segments.linear(segments.code, registers.ip());
    // Two words in one copy, if they lie in one page: only an instruction that goes on in the next may read from there.
    let mut bytes = [0; 16];
    let here = (PAGE_SIZE - at.page_offset()).min(bytes.len());
    read(at, &mut bytes[..here])?;
    let store = match decode(&bytes[..here], segments.width) {
        Err(NotDecoded::Truncated) if here < LONGEST => {
            read(at.offset(here as u64), &mut bytes[here..])?;
            decode(&bytes, segments.width).ok()?
        }
        decoded => decoded.ok()?,
    };
    let mut operand = [0; 8];
    if let Some(offset) = store.reads_from(registers) {
        read(segments.linear(segments.data?, offset), &mut operand[..store.width.bytes() as usize])?;
    }
    Some(Fetched { store, read: u64::from_le_bytes(operand) })
}
