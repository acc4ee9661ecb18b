//! The context switch: what of a domain's state lies in a CPU while it runs, and the way of that to memory and back.
//!
//! There is one stack a CPU, and a guest's registers lie at its top whenever the hypervisor runs. So a switch replaces
//! that frame, on the way back to a guest, and nothing else of the stack: it is a store and a load of registers,
//! page-table base, descriptor tables, breakpoints and FPU. What is left of the old domain in the CPU when it is parked
//! is nothing: from then on any CPU may run it, look at it, or take its memory.
//!
//! No lock: what is in a CPU is that CPU's, what is in [`Running`] its owner's.

use super::{Running, deliver, fpu, hw, syscall};
use crate::cpu::entry::TrapFrame;
use crate::cpu::gdt;
use crate::cpu::percpu::Cpu;
use crate::cpu::speculation;
use crate::cpu::tlb;
use crate::ex_table;
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use proxenos_abi::{Selector, X86_32, X86_64};
use proxenos_core::bounce::DataSegments;
use proxenos_core::domain::Arch;
use proxenos_core::machine::CpuTables;
use proxenos_core::personality::Personality;
use proxenos_image::builder::InitialState;
use x86_64::VirtAddr;

/// A domain's state that is in the CPU while it runs, apart from what its [`Vcpu`](proxenos_core::vcpu::Vcpu) knows
/// anyway.
#[derive(Clone, Debug)]
pub struct Context {
    /// General registers, and where it stands.
    pub frame: TrapFrame,
    /// Data selectors.
    pub data: DataSegments,
    /// Segment bases of x86_64 guests, which selectors alone do not say.
    pub bases: Bases,
    /// The FPU's registers, once it has used them.
    pub fpu: fpu::State,
}

/// Bases of the segments fs and gs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Bases {
    /// Of fs.
    pub fs: VirtAddr,
    /// Of gs.
    pub gs: VirtAddr,
    /// Of gs in the other mode ([`super::user`]).
    pub other_gs: VirtAddr,
}

impl Context {
    /// As a domain starts.
    pub fn at_start(state: &InitialState) -> Self {
        let frame = TrapFrame {
            rip: state.ip.0,
            cs: state.code.0.into(),
            rflags: state.flags,
            rsp: state.sp.0,
            ss: state.data.0.into(),
            rsi: state.start_info.0,
            ..TrapFrame::default()
        };
        let data = DataSegments { ds: state.data, es: state.data, fs: state.data, gs: state.data };
        Self { frame, data, ..Self::zero() }
    }

    /// All registers zero.
    pub fn zero() -> Self {
        Self {
            frame: TrapFrame::default(),
            data: DataSegments { ds: Selector::NULL, es: Selector::NULL, fs: Selector::NULL, gs: Selector::NULL },
            bases: Bases { fs: VirtAddr::zero(), gs: VirtAddr::zero(), other_gs: VirtAddr::zero() },
            fpu: fpu::State::new(),
        }
    }
}

/// The registers of [`Bases`], in its order, have numbers one behind the other.
const FIRST_BASE: u32 = 0xc000_0100;

impl Bases {
    /// Takes those in this CPU. (By halves, as the registers are read: to put them together would cost as much again.)
    #[inline(always)]
    fn take(&mut self) {
        // SAFETY: every 64-bit CPU has the three, and reading them changes nothing. What is in them is canonical, as a
        // `VirtAddr` is.
        unsafe {
            asm!(
                "rdmsr", "mov [{to}], eax", "mov [{to} + 4], edx",
                "inc ecx", "rdmsr", "mov [{to} + 8], eax", "mov [{to} + 12], edx",
                "inc ecx", "rdmsr", "mov [{to} + 16], eax", "mov [{to} + 20], edx",
                to = in(reg) core::ptr::from_mut(self),
                inout("ecx") FIRST_BASE => _, out("eax") _, out("edx") _,
                options(nostack)
            );
        }
    }

    /// Makes them this CPU's.
    #[inline(always)]
    fn load(&self) {
        // SAFETY: the three are the guest's, which the hypervisor makes no use of, and are given canonical addresses.
        unsafe {
            asm!(
                "mov eax, [{from}]", "mov edx, [{from} + 4]", "wrmsr", "inc ecx",
                "mov eax, [{from} + 8]", "mov edx, [{from} + 12]", "wrmsr", "inc ecx",
                "mov eax, [{from} + 16]", "mov edx, [{from} + 20]", "wrmsr",
                from = in(reg) core::ptr::from_ref(self),
                inout("ecx") FIRST_BASE => _, out("eax") _, out("edx") _,
                options(nostack)
            );
        }
    }
}

/// The domain that ran here no longer does: `run` gets what is the guest's. Its page tables and descriptor tables are
/// still this CPU's, until [`load`] or [`unload`]. None of its page tables is open.
pub fn save(run: &mut Running, frame: &TrapFrame) {
    copy_frame(frame, &mut run.context.frame);
    save_all_but_frame(run);
}

/// [`save`], but for the frame.
#[inline(always)]
pub fn save_all_but_frame(run: &mut Running) {
    let context = &mut run.context;
    take_data_segments(&mut context.data);
    if run.dom.arch == Arch::X86_64 {
        context.bases.take();
    }
    fpu::save(&mut run.vcpu.fpu, &mut context.fpu);
}

/// Makes a domain the one that this CPU's tables and registers are of. `frame` becomes what it goes on with.
#[inline]
pub fn load(cpu: &Cpu, run: &mut Running, frame: &mut TrapFrame) {
    let loaded = load_all_but_frame(cpu, run);
    load_frame(run, frame, loaded);
}

/// [`load`], but for the frame: general registers, and where the domain stands.
#[inline(always)]
pub fn load_all_but_frame(cpu: &Cpu, run: &mut Running) -> Loaded {
    let arch = run.dom.arch;
    let local = &cpu.local;
    let root = run.dom.roots.of(run.vcpu.mode).expect("a domain that can run has a page-table base");
    cpu.tlb.begin_to_walk();
    hw::load_root_of_next(cpu, root);
    run.vcpu.segments.load_gdt(run.host, &run.dom);
    let ldt_entries = run.vcpu.segments.ldt_entries();
    if ldt_entries | local.ldt_entries.get() != 0 {
        run.host.hw.load_ldt(ldt_entries);
    }
    if local.syscall.get() != arch as u8 {
        local.syscall.set(arch as u8);
        syscall::allow(arch);
    }
    if run.vcpu.debug.control() | local.breakpoints.get() != 0 {
        run.host.hw.load_breakpoints(&run.vcpu.debug);
    }
    if !speculation::switches_plainly() {
        speculation::enter_domain();
        fpu::enter(&mut run.vcpu.fpu, &run.context.fpu);
    }
    map_local_segments(run);
    let loaded = load_data_segments(&run.context.data);
    if arch == Arch::X86_64 {
        run.context.bases.load();
    }
    loaded
}

/// What [`load_all_but_frame`] has left out.
#[inline]
pub fn load_frame(run: &mut Running, frame: &mut TrapFrame, loaded: Loaded) {
    copy_frame(&run.context.frame, frame);
    if loaded == Loaded::Partly {
        let data = run.context.data;
        deliver::segments_refused(run, frame, data);
    }
}

/// Leaves this CPU with nothing of any domain's: the hypervisor's own page tables and descriptor tables.
pub fn unload(cpu: &Cpu) {
    tlb::rest();
    // SAFETY: the CPU's own table, which was filled when its area was built, and is never unmapped.
    unsafe { gdt::load(cpu.area().gdt()) }
}

/// [`load_frame`] and the way back to the guest at once: registers are loaded from where they were saved. What is on
/// the stack is forgotten: nothing that needs to be dropped may be alive there.
///
/// # Safety
/// As for [`resume_guest`](crate::cpu::entry::resume_guest), of the frame in the domain's context, all of which but
/// that frame has been [loaded](load_all_but_frame). `frame` is where this CPU has that of a guest.
#[inline(always)]
pub unsafe fn resume_saved(run: &mut Running, frame: &mut TrapFrame) -> ! {
    // SAFETY: as the caller promises.
    unsafe { resume_from(&raw mut run.context.frame, frame) }
}

unsafe extern "C" {
    fn resume_from(saved: *mut TrapFrame, frame: *mut TrapFrame) -> !;
}

// What `iretq` loads goes to this CPU's stack, where a fault of its own finds the stack below it and its handler the
// five words. The general registers are popped from where they are; what may come in between (an NMI, a machine check)
// has a stack of its own. The word behind the last of them, which means nothing in a frame that is saved, says where
// the stack goes on.
global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".balign 16",
    ".globl resume_from",
    "resume_from:",
    "   movq {rip}(%rdi), %rax",
    "   movq {cs}(%rdi), %rcx",
    "   movq {rflags}(%rdi), %rdx",
    "   movq {rsp}(%rdi), %r8",
    "   movq {ss}(%rdi), %r9",
    "   movq %rax, {rip}(%rsi)",
    "   movq %rcx, {cs}(%rsi)",
    "   movq %rdx, {rflags}(%rsi)",
    "   movq %r8, {rsp}(%rsi)",
    "   movq %r9, {ss}(%rsi)",
    "   addq ${rip}, %rsi",
    "   movq %rsi, {vector}(%rdi)",
    "   movq %rdi, %rsp",
    "   popq %r15",
    "   popq %r14",
    "   popq %r13",
    "   popq %r12",
    "   popq %rbp",
    "   popq %rbx",
    "   popq %r11",
    "   popq %r10",
    "   popq %r9",
    "   popq %r8",
    "   popq %rax",
    "   popq %rcx",
    "   popq %rdx",
    "   popq %rsi",
    "   popq %rdi",
    "   popq %rsp",
    ".globl resume_from_iret",
    "resume_from_iret:",
    "   iretq",
    ".popsection",
    rip = const offset_of!(TrapFrame, rip),
    cs = const offset_of!(TrapFrame, cs),
    rflags = const offset_of!(TrapFrame, rflags),
    rsp = const offset_of!(TrapFrame, rsp),
    ss = const offset_of!(TrapFrame, ss),
    vector = const offset_of!(TrapFrame, vector),
    options(att_syntax)
);
const _: () = assert!(offset_of!(TrapFrame, vector) == 15 * 8 && offset_of!(TrapFrame, r15) == 0);

/// Copies a frame, by words: what the compiler calls for so many bytes copies single ones, on the CPUs that do that
/// fast.
#[inline]
fn copy_frame(from: &TrapFrame, to: &mut TrapFrame) {
    // SAFETY: two frames, of which the second is ours alone; the direction flag is clear.
    unsafe {
        asm!(
            "rep movsq",
            inout("rcx") size_of::<TrapFrame>() / 8 => _,
            inout("rsi") core::ptr::from_ref(from) => _,
            inout("rdi") core::ptr::from_mut(to) => _,
            options(nostack, preserves_flags)
        );
    }
}

/// The bit of [`Selector::is_local`], in each of four selectors.
const ANY_LOCAL: u64 = 0x0004_0004_0004_0004;

/// The pages of the LDT that data selectors name are mapped, where the guest has them: the CPU could not ask for them
/// in the midst of a switch.
#[inline(always)]
fn map_local_segments(run: &mut Running) {
    const _: () = assert!(size_of::<DataSegments>() == size_of::<u64>());
    // SAFETY: four selectors are as long as the word, of which any value is one.
    let all = unsafe { (&raw const run.context.data).cast::<u64>().read_unaligned() };
    if all & ANY_LOCAL != 0 {
        map_some_local_segments(run);
    }
}

#[cold]
#[inline(never)]
fn map_some_local_segments(run: &mut Running) {
    let DataSegments { ds, es, fs, gs } = run.context.data;
    let all = [ds, es, fs, gs];
    match run.dom.arch {
        Arch::X86_32 => map_local_segments_of::<X86_32>(run, all),
        Arch::X86_64 => map_local_segments_of::<X86_64>(run, all),
    }
}

fn map_local_segments_of<P: Personality>(run: &mut Running, all: [Selector; 4]) {
    for selector in all.into_iter().filter(|selector| selector.is_local()) {
        // Where there is none, loading the selector fails, and the guest is told.
        let _: bool = run.vcpu.segments.ldt_fault::<P, _>(run.host, &run.dom, u64::from(selector.index()) * 8);
    }
}

/// Whether all data segments could be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loaded {
    /// They could.
    All,
    /// Those that could not are null.
    Partly,
}

/// Takes the data selectors in this CPU.
#[inline(always)]
fn take_data_segments(into: &mut DataSegments) {
    // SAFETY: reads four registers, into fields of 16 bits, of which each is as long as what such a `mov` writes.
    unsafe {
        asm!(
            "mov word ptr [{into} + {ds}], ds",
            "mov word ptr [{into} + {es}], es",
            "mov word ptr [{into} + {fs}], fs",
            "mov word ptr [{into} + {gs}], gs",
            into = in(reg) core::ptr::from_mut(into),
            ds = const offset_of!(DataSegments, ds),
            es = const offset_of!(DataSegments, es),
            fs = const offset_of!(DataSegments, fs),
            gs = const offset_of!(DataSegments, gs),
            options(nostack, preserves_flags)
        );
    }
}

/// Loads the segment registers that `iretq` does not. The guest may have changed its tables since it loaded them last,
/// so each may fail; such a register is made null.
#[inline(always)]
fn load_data_segments(data: &DataSegments) -> Loaded {
    let failed: u32;
    // SAFETY: the selectors name descriptors of the guest's tables, which were checked, and the hypervisor uses none of
    // the four registers. One that cannot be loaded faults (#GP, #NP, or #PF at the LDT's place), and is made null
    // behind that.
    unsafe {
        asm!(
            "xor {failed:e}, {failed:e}",
            "2: mov ds, word ptr [{data} + {ds}]",
            "3: mov es, word ptr [{data} + {es}]",
            "4: mov fs, word ptr [{data} + {fs}]",
            "5: mov gs, word ptr [{data} + {gs}]",
            "6:",
            ".pushsection .text.fixup, \"ax\", @progbits",
            "12: xor {failed:e}, {failed:e}", "mov ds, {failed:e}", "inc {failed:e}", "jmp 3b",
            "13: xor {failed:e}, {failed:e}", "mov es, {failed:e}", "inc {failed:e}", "jmp 4b",
            "14: xor {failed:e}, {failed:e}", "mov fs, {failed:e}", "inc {failed:e}", "jmp 5b",
            "15: xor {failed:e}, {failed:e}", "mov gs, {failed:e}", "inc {failed:e}", "jmp 6b",
            ".popsection",
            ex_table!("2b", "12b"),
            ex_table!("3b", "13b"),
            ex_table!("4b", "14b"),
            ex_table!("5b", "15b"),
            failed = out(reg) failed,
            data = in(reg) core::ptr::from_ref(data),
            ds = const offset_of!(DataSegments, ds),
            es = const offset_of!(DataSegments, es),
            fs = const offset_of!(DataSegments, fs),
            gs = const offset_of!(DataSegments, gs),
            options(nostack)
        );
    }
    if failed == 0 { Loaded::All } else { Loaded::Partly }
}
