//! Looking into a domain: its registers and its memory, read through a window.

use crate::build::frames_of;
use crate::dom0::{op_with_memory, refused};
use crate::map::Window;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use proxenos_guest::abi::context::FullExecutionContext;
use proxenos_guest::abi::dom0_ops::args::GetDomainInfo;
use proxenos_guest::abi::zerocopy::{FromBytes, IntoBytes};
use proxenos_guest::abi::{DomId, GuestArch, GuestWord, MachineAddr, Mfn, PAGE_SIZE, Padded, X86_32, X86_64};
use proxenos_guest::memory;
use proxenos_rpc::{AddressSpace, Arch, Cause, Failure};

/// Bit of a page-table entry: it leads somewhere.
const PRESENT: u64 = 1;
/// The frame's bits of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// A domain's registers, in the layout of its architecture.
pub fn context(id: DomId, arch: Arch) -> Result<Vec<u8>, Failure> {
    match arch {
        Arch::X86_32 => read_context::<X86_32>(id),
        Arch::X86_64 => read_context::<X86_64>(id),
    }
}

fn read_context<A: GuestArch>(id: DomId) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; size_of::<FullExecutionContext<A>>()];
    let info = GetDomainInfo::<X86_64> {
        domain: id,
        ctxt: Padded::new(bytes.as_mut_ptr() as u64),
        ..GetDomainInfo::default()
    };
    // SAFETY: a context of the domain's architecture is written to the vector, which has room for it.
    let (_, info) = unsafe { op_with_memory(info) }.map_err(|errno| refused("reading its registers", errno))?;
    let found = info.domain;
    if found != id {
        return Err(Failure::new(Cause::NoSuchDomain, "the domain is gone"));
    }
    Ok(bytes)
}

/// A domain's frames by its own numbers, kept for the next piece of the same memory: to list them takes long. They are
/// as they were; whether one still is, is looked up.
pub struct Known {
    /// Whose.
    pub id: DomId,
    /// How many it had.
    pages: u64,
    /// By pfn.
    frames: Vec<(u64, Mfn)>,
}

impl Known {
    /// The frame with a number, or why it may be that there is none.
    fn find(&self, pfn: u64) -> Found {
        let Ok(at) = self.frames.binary_search_by_key(&pfn, |(pfn, _)| *pfn) else { return Found::Nothing };
        let (_, frame) = self.frames[at];
        if memory::machine_to_phys(frame) == Some(pfn) { Found::Frame(frame) } else { Found::Outdated }
    }
}

/// What a look for a frame came to.
enum Found {
    Frame(Mfn),
    Nothing,
    /// The domain has changed its frames.
    Outdated,
}

/// The frame with one of a domain's numbers, by what is known of it, which is brought up to date if it must be.
fn numbered(known: &mut Option<Known>, id: DomId, pfn: u64) -> Result<Option<Mfn>, Failure> {
    let info = GetDomainInfo::<X86_64> { domain: id, ..GetDomainInfo::default() };
    let info = crate::dom0::op(info).map_err(|errno| refused("looking at the domain", errno))?;
    let pages = info.tot_pages.to_u64();
    if let Some(known) = known.as_ref().filter(|known| known.id == id && known.pages == pages) {
        match known.find(pfn) {
            Found::Frame(frame) => return Ok(Some(frame)),
            Found::Nothing => return Ok(None),
            Found::Outdated => {}
        }
    }
    // One of both is enough at a time.
    *known = None;
    let listed = frames_of(id, pages)?;
    let mut frames = Vec::new();
    let out_of_memory = |_| Failure::new(Cause::OutOfMemory, "the control domain has no memory for the list of frames");
    frames.try_reserve_exact(listed.len()).map_err(out_of_memory)?;
    frames.extend(listed.into_iter().filter_map(|mfn| Some((memory::machine_to_phys(Mfn(mfn))?, Mfn(mfn)))));
    frames.sort_unstable_by_key(|(pfn, _)| *pfn);
    let found = match known.insert(Known { id, pages, frames }).find(pfn) {
        Found::Frame(frame) => Some(frame),
        Found::Nothing | Found::Outdated => None,
    };
    Ok(found)
}

/// Up to `len` bytes of a domain's memory, as far as they are there.
pub fn read_memory(
    known: &mut Option<Known>,
    id: DomId,
    arch: Arch,
    space: AddressSpace,
    address: u64,
    len: usize,
) -> Result<Vec<u8>, Failure> {
    let mut window = Window::new().map_err(|errno| refused("looking into the domain", errno))?;
    let mut bytes = Vec::new();
    let root = match space {
        AddressSpace::Virtual => Some(root(id, arch)?),
        AddressSpace::PseudoPhysical => None,
    };
    while bytes.len() < len {
        let Some(at) = address.checked_add(bytes.len() as u64) else { break };
        let frame = match root {
            Some(root) => walk(&mut window, id, arch, root, at),
            None => numbered(known, id, at / PAGE_SIZE as u64)?,
        };
        let offset = (at % PAGE_SIZE as u64) as usize;
        let part = (len - bytes.len()).min(PAGE_SIZE - offset);
        let Some(page) = frame.and_then(|frame| window.read(id, frame)) else { break };
        bytes.extend_from_slice(&page[offset..offset + part]);
    }
    if bytes.is_empty() && len > 0 {
        return Err(Failure::new(Cause::BadAddress, &format!("nothing of the domain's is at {address:#x}")));
    }
    Ok(bytes)
}

/// The top-level page table that the domain's virtual CPU has loaded.
fn root(id: DomId, arch: Arch) -> Result<Mfn, Failure> {
    let bytes = context(id, arch)?;
    let unreadable = |_| Failure::new(Cause::Internal, "a context of another size");
    let base = match arch {
        Arch::X86_32 => {
            let context =
                FullExecutionContext::<X86_32>::read_from_bytes(bytes.as_bytes()).map_err(|_| unreadable(()))?;
            { context.pt_base }.to_u64()
        }
        Arch::X86_64 => {
            let context =
                FullExecutionContext::<X86_64>::read_from_bytes(bytes.as_bytes()).map_err(|_| unreadable(()))?;
            context.pt_base
        }
    };
    Ok(MachineAddr(base).mfn())
}

/// The frame behind a virtual address.
fn walk(window: &mut Window, id: DomId, arch: Arch, root: Mfn, at: u64) -> Option<Mfn> {
    let (shifts, bits, width): (&[u32], u32, usize) = match arch {
        Arch::X86_32 if at >> 32 != 0 => return None,
        Arch::X86_32 => (&[22, 12], 10, 4),
        Arch::X86_64 => (&[39, 30, 21, 12], 9, 8),
    };
    shifts.iter().try_fold(root, |table, shift| {
        let index = (at >> shift) as usize & ((1 << bits) - 1);
        let page = window.read(id, table)?;
        let entry = page[index * width..][..width].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        (entry & PRESENT != 0).then_some(Mfn((entry & FRAME) >> 12))
    })
}
