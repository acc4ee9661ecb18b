//! Building a domain: its frames asked for, contents written through a window, tables pinned, its first registers set.
//! All of it in pieces of some hundred pages, but for the two calls that hand out its memory and list it.
//!
//! Promise: what fails or is given up leaves no domain behind. The domain is paused until somebody unpauses it, since
//! it was created so.

use crate::dom0::{op, op_with_memory, refused};
use crate::link::GuestLink;
use crate::map::Window;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr;
use proxenos_control_core::{Begun, Order, Step};
use proxenos_guest::abi::context::{ContextFlags, CpuContext, FullExecutionContext, TrapInfo};
use proxenos_guest::abi::dom0_ops::args::{
    BuildDomain, CREATE_OTHER_ARCH, CreateDomain, DestroyDomain, GetDomainInfo, GetMemList, PinCpuDomain,
    SetDomainMaxMem, SetDomainVmAssist,
};
use proxenos_guest::abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate};
use proxenos_guest::abi::start_info::StartInfoFlags;
use proxenos_guest::abi::{
    Arch, DomId, Errno, GuestArch, GuestWord, Mfn, PAGE_SHIFT, PAGE_SIZE, Padded, Pfn, Port, X86_32, X86_64,
};
use proxenos_guest::{hypercall, memory};
use proxenos_image::builder::{
    BuildError, DomainKind, DomainMemory, FrameContents, InitialState, Layout, Pages, Populating, Request, Source,
    StartOfDay, initial_state,
};
use proxenos_image::{Image, PageTableMode};
use proxenos_rpc::{Cause, Failure, Stage};

/// `DOM0_CREATEDOMAIN`: any CPU.
const ANY_CPU: u32 = u32::MAX;

/// A new domain's memory, through a window.
struct Foreign<'a> {
    id: DomId,
    frames: &'a [u64],
    window: Window,
}

/// Why a domain cannot be built.
enum Fault {
    Layout(BuildError),
    Hypervisor(Errno),
}

impl From<BuildError> for Fault {
    fn from(error: BuildError) -> Self {
        Self::Layout(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Layout(error) => layout_failure(error),
            Fault::Hypervisor(errno) => refused("writing to the new domain's memory", errno),
        }
    }
}

fn layout_failure(error: BuildError) -> Failure {
    let cause = match error {
        BuildError::TooBig { .. } => Cause::Invalid,
        _ => Cause::BadImage,
    };
    Failure::new(cause, &format!("{error}"))
}

impl DomainMemory for Foreign<'_> {
    type Error = Fault;

    fn mfn(&self, pfn: Pfn) -> Mfn {
        Mfn(self.frames[pfn.raw() as usize])
    }

    fn clear(&mut self, pfn: Pfn) -> Result<(), Fault> {
        self.write(pfn, 0, &[0; PAGE_SIZE])
    }

    fn write(&mut self, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        assert!(offset + bytes.len() <= PAGE_SIZE, "beyond the frame");
        let page = self.window.show(self.id, self.mfn(pfn)).map_err(Fault::Hypervisor)?;
        // SAFETY: inside the page that is mapped there; its owner has not run yet.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast::<u8>().as_ptr().add(offset), bytes.len()) };
        Ok(())
    }
}

fn word(value: u64) -> Padded<X86_64> {
    Padded::new(value)
}

/// Pages that are written, or frames that are numbered, before others have their turn.
const PIECE: u64 = 256;

/// A domain that is being built. It ends with this value, unless it is built by then.
pub struct Build {
    id: DomId,
    layout: Layout,
    next: Next,
}

/// What is to be done next.
enum Next {
    /// It has only been created.
    Furnish,
    /// Its contents.
    Populate(Box<Furnished>, Populating),
    /// The machine-to-physical entries, from this frame on; the last is its top-level page table.
    Number(Box<Furnished>, usize, Mfn),
    /// Nothing.
    Built,
}

/// What is known of a domain when it has its frames.
struct Furnished {
    link: GuestLink,
    port: Port,
    shared_info: Mfn,
    frames: Vec<u64>,
}

impl Drop for Build {
    fn drop(&mut self) {
        if !matches!(self.next, Next::Built) {
            // What is mapped of it goes first. If it cannot be ended it is listed, and can be seen.
            self.next = Next::Furnish;
            let _ = op(DestroyDomain { domain: self.id, pad: 0 });
        }
    }
}

/// The kernel, which was looked at when the build was begun.
fn image<'a>(order: &Order<'a>) -> Result<Image<'a>, Failure> {
    Image::parse(order.kernel)
        .map_err(|error| Failure::new(Cause::BadImage, &format!("the kernel is of no use: {error}")))
}

/// Begins to build a domain.
pub fn begin(order: &Order<'_>) -> Result<Begun<Build>, Failure> {
    let image = image(order)?;
    let pages = order.memory.0 / 4;
    let request = Request { module_bytes: order.ramdisk.len() as u64, pages, kind: DomainKind::Ordinary };
    let layout = Layout::plan(&image, &request).map_err(layout_failure)?;
    let other_arch = if image.arch() == Arch::X86_64 { 0 } else { CREATE_OTHER_ARCH };
    let create = CreateDomain::<X86_64> {
        memory_kb: word(order.memory.0),
        cpu: order.cpu.unwrap_or(ANY_CPU),
        domain: DomId(other_arch),
        ..CreateDomain::default()
    };
    let id = op(create).map_err(|errno| refused("creating the domain", errno))?.domain;
    let arch = match image.arch() {
        Arch::X86_32 => proxenos_rpc::Arch::X86_32,
        Arch::X86_64 => proxenos_rpc::Arch::X86_64,
    };
    Ok(Begun { id, arch, build: Build { id, layout, next: Next::Furnish } })
}

/// Goes on.
pub fn go_on(build: &mut Build, order: &Order<'_>) -> Result<Step<GuestLink>, Failure> {
    let (id, layout) = (build.id, &build.layout);
    match core::mem::replace(&mut build.next, Next::Furnish) {
        Next::Furnish | Next::Built => {
            let image = image(order)?;
            let furnished = furnish(id, order, &image, layout)?;
            let memory = foreign(id, &furnished.frames)?;
            let start = start_of_day(&furnished, order);
            let source = Source { layout, image: &image, module: order.ramdisk, start: &start };
            let populating = Populating::begin(&memory, FrameContents::Zero, &source)?;
            drop(memory);
            build.next = Next::Populate(Box::new(furnished), populating);
            Ok(Step::More { stage: Stage::Memory, done: layout.pages, total: layout.pages })
        }
        Next::Populate(furnished, mut populating) => {
            let image = image(order)?;
            let mut memory = foreign(id, &furnished.frames)?;
            let start = start_of_day(&furnished, order);
            let source = Source { layout, image: &image, module: order.ramdisk, start: &start };
            let top = populating.go_on(&mut memory, &source, Pages(PIECE))?;
            let (done, total) = (populating.pages(&source), layout.region_pages());
            drop(memory);
            build.next = match top {
                Some(top) => Next::Number(furnished, 0, top),
                None => Next::Populate(furnished, populating),
            };
            Ok(Step::More { stage: Stage::Copy, done: done.min(total), total })
        }
        Next::Number(furnished, from, top) if from < furnished.frames.len() => {
            let to = (from + PIECE as usize).min(furnished.frames.len());
            number_frames(id, from, &furnished.frames[from..to])
                .map_err(|errno| refused("numbering the new domain's frames", errno))?;
            build.next = Next::Number(furnished, to, top);
            Ok(Step::More { stage: Stage::Tables, done: to as u64, total: layout.pages })
        }
        Next::Number(furnished, _, top) => {
            let level = match layout.arch {
                Arch::X86_32 => MmuExtCommand::PinL2Table,
                Arch::X86_64 => MmuExtCommand::PinL4Table,
            };
            let pin = memory::extended(level, top.addr().raw(), 0);
            update_foreign(id, &mut vec![pin])
                .map_err(|errno| refused("pinning the new domain's page tables", errno))?;
            set_registers(id, layout, &initial_state(layout), top)
                .map_err(|errno| refused("setting its registers", errno))?;
            build.next = Next::Built;
            Ok(Step::Built(furnished.link))
        }
    }
}

fn foreign(id: DomId, frames: &[u64]) -> Result<Foreign<'_>, Failure> {
    let window = Window::new().map_err(|errno| refused("mapping the new domain's memory", errno))?;
    Ok(Foreign { id, frames, window })
}

fn start_of_day<'a>(furnished: &Furnished, order: &Order<'a>) -> StartOfDay<'a> {
    StartOfDay {
        shared_info: furnished.shared_info,
        flags: StartInfoFlags::empty(),
        controller: Port(furnished.port.raw()),
        command_line: order.command_line,
    }
}

/// Gives a domain that was created its limits, and looks at what frames it has got.
fn furnish(id: DomId, order: &Order<'_>, image: &Image<'_>, layout: &Layout) -> Result<Furnished, Failure> {
    if order.memory_limit > order.memory {
        let limit =
            SetDomainMaxMem::<X86_64> { domain: id, max_memkb: word(order.memory_limit.0), ..Default::default() };
        op(limit).map_err(|errno| refused("setting the memory's limit", errno))?;
    }
    if let Some(cpu) = order.cpu {
        let pin = PinCpuDomain { domain: id, pad: 0, cpu: cpu as i32 };
        op(pin).map_err(|errno| refused("pinning the domain", errno))?;
    }
    if image.page_tables() == PageTableMode::Writable {
        let assist = SetDomainVmAssist {
            domain: id,
            pad0: 0,
            cmd: VmAssistCommand::Enable.raw(),
            assist: VmAssistType::WritablePagetables.raw(),
        };
        op(assist).map_err(|errno| refused("turning writable page tables on", errno))?;
    }
    let frames = frames_of(id, layout.pages)?;
    let info = op(GetDomainInfo::<X86_64> { domain: id, ..GetDomainInfo::default() })
        .map_err(|errno| refused("looking at the new domain", errno))?;
    let shared_info = Mfn(info.shared_info_frame.to_u64());
    let (link, port) = GuestLink::new(id, shared_info).map_err(|errno| refused("connecting the new domain", errno))?;
    Ok(Furnished { link, port, shared_info, frames })
}

/// The domain's frames, by pfn.
pub fn frames_of(id: DomId, pages: u64) -> Result<Vec<u64>, Failure> {
    let mut frames: Vec<u64> = Vec::new();
    let out_of_memory = |_| Failure::new(Cause::OutOfMemory, "the control domain has no memory for the list of frames");
    frames.try_reserve_exact(pages as usize).map_err(out_of_memory)?;
    frames.resize(pages as usize, 0);
    let list = GetMemList::<X86_64> {
        domain: id,
        max_pfns: word(pages),
        buffer: word(frames.as_mut_ptr() as u64),
        ..GetMemList::default()
    };
    // SAFETY: at most so many words are written to the vector.
    let (_, list) = unsafe { op_with_memory(list) }.map_err(|errno| refused("listing the domain's frames", errno))?;
    if list.num_pfns.to_u64() < pages {
        return Err(Failure::new(Cause::OutOfMemory, "the domain got fewer frames than were asked for"));
    }
    Ok(frames)
}

/// Requests about another domain's frames, in one list.
fn update_foreign(id: DomId, requests: &mut Vec<MmuUpdate<X86_64>>) -> Result<(), Errno> {
    // The domain's number lies in bits 16 to 31 of the word, of which `extended` shifts its argument by 8.
    let foreign = memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(id.raw()) << 8);
    requests.insert(0, foreign);
    // SAFETY: these are frames of a domain that has not run; nothing of ours is changed.
    unsafe { hypercall::mmu_update(requests) }.map(drop).map_err(|(errno, _)| errno)
}

/// Enters frames into the machine-to-physical table, counted from a number on.
fn number_frames(id: DomId, first: usize, frames: &[u64]) -> Result<(), Errno> {
    let mut requests = Vec::with_capacity(frames.len() + 1);
    for (pfn, frame) in (first as u64..).zip(frames) {
        requests.push(memory::request(MmuCommand::MachphysUpdate, Mfn(*frame).addr(), pfn));
    }
    update_foreign(id, &mut requests)
}

/// Sets the state in which the domain begins.
fn set_registers(id: DomId, layout: &Layout, state: &InitialState, top: Mfn) -> Result<(), Errno> {
    match layout.arch {
        Arch::X86_32 => {
            let mut context = context::<X86_32>(state, top, ContextFlags::OTHER_ARCH);
            let data = state.data.raw().into();
            let mut registers = context.cpu_ctxt;
            (registers.ds, registers.es, registers.fs, registers.gs) = (data, data, data, data);
            context.cpu_ctxt = registers;
            build_domain(id, &*context)
        }
        Arch::X86_64 => build_domain(id, &*context::<X86_64>(state, top, ContextFlags::empty())),
    }
}

/// A virtual CPU at a kernel's first instruction.
fn context<A: GuestArch>(state: &InitialState, top: Mfn, flags: ContextFlags) -> Box<FullExecutionContext<A>> {
    let word = |value: u64| A::Word::from_u64_truncating(value);
    let mut context = Box::<FullExecutionContext<A>>::default();
    context.flags = word(flags.bits().into());
    // The fields of a packed structure lie anywhere: they are changed in copies.
    let (mut registers, mut traps) = (context.cpu_ctxt, context.trap_ctxt);
    registers.set_ip(state.ip.raw());
    registers.set_sp(state.sp.raw());
    registers.set_flags(state.flags);
    registers.set_code(state.code);
    registers.set_stack(state.data);
    registers.set_start_info(state.start_info.raw());
    for (vector, trap) in (0..=255).zip(&mut traps) {
        *trap = TrapInfo { vector, cs: state.code, ..TrapInfo::default() };
    }
    (context.cpu_ctxt, context.trap_ctxt) = (registers, traps);
    let (code, kernel_ss) = (word(state.code.raw().into()), word(state.kernel_ss.raw().into()));
    (context.event_callback_cs, context.failsafe_callback_cs) = (code, code);
    context.guestos_ss = kernel_ss;
    context.guestos_esp = word(state.kernel_sp.raw());
    context.pt_base = word(top.raw() << PAGE_SHIFT);
    context
}

fn build_domain<T>(id: DomId, context: &T) -> Result<(), Errno> {
    let build =
        BuildDomain::<X86_64> { domain: id, ctxt: word(ptr::from_ref(context) as u64), ..BuildDomain::default() };
    // SAFETY: the context is read.
    unsafe { op_with_memory(build) }.map(drop)
}
